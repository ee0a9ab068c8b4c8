"""How much a stage took at most: counted from where it began, and whole although phases within it are counted apart."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pipeline import peak_memory
from pipeline.artefact import MemoryEntry
from pipeline.peak_memory import GIB, Peak, begin, begin_phase, gpu_peak, peak
from pipeline.worker import _memory

MIB = 1 << 20
begins_anew = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux begins a process's peak anew"
)


@begins_anew
def test_the_peak_is_what_was_taken_and_given_back_again():
    begin()
    before = peak().process
    taken = b"\x01" * (256 * MIB)
    del taken
    assert 200 * MIB < peak().process - before < 400 * MIB


@begins_anew
def test_a_stage_in_the_process_of_another_has_a_peak_of_its_own():
    begin()
    taken = b"\x01" * (256 * MIB)
    del taken
    high = peak().process
    begin()
    assert peak().process < high - 200 * MIB


def test_a_worker_does_not_inherit_what_its_parent_took():
    """`getrusage` would: the kernel hands its figure on to whatever program a process becomes."""
    taken = b"\x01" * (256 * MIB)
    command = "from pipeline.peak_memory import peak; print(peak().process)"
    out = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout
    assert int(out) < len(taken) // 2


class FakeGpu:
    """torch's counter: what is taken now, and its peak since it was begun anew."""

    def __init__(self, monkeypatch, initialised=True):
        self.now = self.highest = 0
        self.initialised = initialised
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.initialised)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.highest)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def reset(self):
        if not self.initialised:
            raise RuntimeError("Invalid device argument 0: did you call init?")
        self.highest = self.now

    def take(self, size):
        self.now += size
        self.highest = max(self.highest, self.now)


def test_on_a_gpu_the_whole_stage_counts_although_phases_begin_anew(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    begin()
    for phase in (3 * GIB, 5 * GIB, 2 * GIB):
        begin_phase()
        gpu.take(phase)
        gpu.take(-phase)
    assert gpu.highest == 2 * GIB and gpu_peak() == 5 * GIB == peak().gpu
    begin()
    assert gpu_peak() == 0, "another stage's"


def test_a_gpu_that_torch_has_not_begun_on_is_left_alone(monkeypatch):
    FakeGpu(monkeypatch, initialised=False)
    begin()
    assert gpu_peak() == 0


def test_without_a_gpu_there_is_no_figure_of_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak().gpu is None


def test_where_the_kernel_keeps_no_status_the_systems_own_figure_stands(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(peak_memory, "_FORGET", tmp_path)
    begin()
    assert peak().process > 50 * MIB


def test_of_several_ranks_the_one_that_took_most_counts():
    ranks = [Peak(process=GIB, gpu=3 * GIB), Peak(process=2 * GIB, gpu=GIB)]
    assert _memory(ranks) == MemoryEntry(process_gib=2.0, gpu_gib=3.0)
    assert _memory([Peak(process=GIB // 2, gpu=None)]) == MemoryEntry(process_gib=0.5, gpu_gib=None)
