"""A process among its peers: who is first, what precision means, how a request to stop is agreed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from data_prep.workers import mapped
from pipeline import runtime, worker
from pipeline.errors import PreemptedError, TrivetError
from pipeline.recipe.stage_settings import DpoSettings, SftSettings
from pipeline.runtime import (
    ROOT,
    Ranks,
    StopRequest,
    autocast,
    barrier,
    code_state,
    gather_lists,
    library_versions,
    resolve_precision,
    seed_everything,
)
from pipeline.starting import listen
from pipeline.stopping import FLAG, stop_if_asked


def test_one_process_without_a_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks.from_environment()
    assert ranks == Ranks(0, 0, 1) and ranks.is_first


def test_as_the_launcher_says(monkeypatch):
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    ranks = Ranks.from_environment()
    assert ranks == Ranks(5, 1, 8) and not ranks.is_first


# Gathering -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch):
    """Stand in for a process group: `world(parts)` makes the ranks hold the given lists."""

    def make(parts):
        def all_gather_object(out, mine):
            out[:] = parts

        monkeypatch.setattr(runtime, "_is_distributed", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: len(parts))
        monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)

    return make


@pytest.mark.parametrize("length", range(0, 12))
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_what_was_dealt_round_comes_back_in_order(world, length, processes):
    """Rank r of W computes elements r, r + W, ...: gathered, they stand as one process would have them."""
    whole = [f"row {index}" for index in range(length)]
    parts = [whole[rank::processes] for rank in range(processes)]
    world(parts)
    assert gather_lists(parts[0]) == whole


def test_alone_a_list_is_its_own_whole():
    assert gather_lists([3, 1]) == [3, 1]
    barrier()


# Stop requests -------------------------------------------------------------------------------------------------------


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    FLAG.asked = False
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_only_sets_a_flag(handlers, number):
    stop = StopRequest()
    stop.listen()
    assert not stop.agreed()
    signal.raise_signal(number)
    assert stop.asked and stop.agreed()


def test_what_changes_nothing_ends_where_it_is(handlers):
    """Rows being read or prepared, and measurements: nothing is saved, so they need no other rank's consent."""
    stop_if_asked("reading rows")
    assert mapped(abs, [-1, 2], worth=5) == [1, 2]
    StopRequest().listen()
    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(PreemptedError, match="asked to stop while reading rows; run the same command again") as stopped:
        stop_if_asked("reading rows")
    assert stopped.value.exit_code == 75
    with pytest.raises(PreemptedError, match="preparing rows"):
        mapped(abs, [-1, 2], worth=5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_between_stages_that_python_swallows_is_remembered(handlers):
    """What is raised while an object goes, or between a fork and its return, reaches nobody."""

    class Going:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    listen(Ranks(0, 0, 1))
    Going()
    with pytest.raises(PreemptedError):
        stop_if_asked("reading rows")


def test_a_request_between_stages_ends_the_run(handlers):
    listen(Ranks(0, 0, 1))
    with pytest.raises(PreemptedError, match="asked to stop; run the same command again to go on"):
        signal.raise_signal(signal.SIGUSR1)


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not(handlers):
    stop = StopRequest()
    stop.listen()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_one_rank_that_was_asked_stops_all(monkeypatch):
    """The flags of all ranks are combined by maximum: another's 1 counts here too."""
    monkeypatch.setattr(runtime, "_is_distributed", lambda: True)
    monkeypatch.setattr(runtime, "_collective_device", lambda: torch.device("cpu"))
    for others, expected in ((0.0, False), (1.0, True)):

        def all_reduce(flag, op, others=others):
            assert op == torch.distributed.ReduceOp.MAX
            flag.copy_(torch.maximum(flag, torch.tensor([others])))

        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        assert StopRequest().agreed() is expected


# Precision -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["fp32", "bf16", "fp16"])
def test_what_is_asked_for_is_what_is_used(setting):
    assert resolve_precision(setting) == setting


@pytest.mark.parametrize(
    ("maker", "flags", "expected"),
    [
        ("AuthenticAMD", {"avx512_bf16"}, "bf16"),
        ("GenuineIntel", {"avx512_bf16"}, "fp32"),
        ("GenuineIntel", {"avx512_bf16", "amx_bf16"}, "bf16"),
        ("AuthenticAMD", {"avx2"}, "fp32"),
        ("", set(), "fp32"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_is_faster_in_it(monkeypatch, maker, flags, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "_cpu", lambda: (maker, frozenset(flags)))
    assert resolve_precision("auto") == expected


def test_what_the_processor_is_stands_in_the_systems_own_words(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse amx_bf16\n\n")
    monkeypatch.setattr(runtime, "Path", lambda name: tmp_path / "cpuinfo")
    runtime._cpu.cache_clear()
    assert runtime._cpu() == ("GenuineIntel", frozenset({"fpu", "sse", "amx_bf16"}))
    (tmp_path / "cpuinfo").unlink()
    runtime._cpu.cache_clear()
    assert runtime._cpu() == ("", frozenset())
    runtime._cpu.cache_clear()


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_gpu_does_not_take_emulation_for_support(monkeypatch, supported, expected):
    def is_bf16_supported(including_emulation=True):
        return True if including_emulation else supported

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert resolve_precision("auto") == expected


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_named_type(monkeypatch, precision, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with autocast(precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# Seeds and provenance ------------------------------------------------------------------------------------------------


def test_a_seed_fixes_all_three_generators_and_another_seed_changes_them():
    def draw(seed):
        seed_everything(seed)
        return random.random(), float(numpy.random.rand()), float(torch.rand(()))

    first, again, other = draw(17), draw(17), draw(18)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    draw(2**31 - 1)


def test_versions_name_the_libraries_that_are_here():
    found = library_versions()
    assert found["torch"] == torch.__version__
    assert {"python", "machine", "transformers", "trl", "peft"} <= set(found)


def test_code_state_is_the_commit_of_the_checkout_or_nothing(monkeypatch, tmp_path):
    state = code_state()
    assert not state or (len(state["commit"]) == 40 and isinstance(state["dirty"], bool))
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    assert code_state() == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_state() == {}


def test_importing_the_light_part_loads_no_torch():
    code = (
        "import pipeline.cli, pipeline.supervisor, pipeline.plan, sys\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'wandb', 'datasets', 'accelerate', 'numpy'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["bf16", "bf16"], ""),
        (["bf16", "fp32"], "(bf16 on rank 0; fp32 on rank 1)"),
        (["fp32", "bf16", "fp32"], "(bf16 on rank 1; fp32 on ranks 0, 2)"),
    ],
)
def test_ranks_compute_alike_or_not_at_all(monkeypatch, kinds, said):
    recipe: Any = SimpleNamespace(stages={"sft": SftSettings(), "dpo": DpoSettings(precision="fp32")})
    monkeypatch.setattr(worker, "gather_lists", lambda mine: kinds)
    worker._require_one_precision(recipe, "dpo")
    worker._require_one_precision(recipe, "evaluation")
    if not said:
        worker._require_one_precision(recipe, "sft")
        return
    with pytest.raises(TrivetError) as caught:
        worker._require_one_precision(recipe, "sft")
    assert said in str(caught.value) and "`stages.sft.precision: fp32`" in str(caught.value)
