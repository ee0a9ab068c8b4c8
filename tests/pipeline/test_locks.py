"""One process at a time in a run directory: the others learn who holds it, and a killed holder holds nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from pipeline.errors import BusyError, TrivetError
from pipeline.locks import WORK_LOCK, clear, hold, tidy, work_on
from pipeline.runtime import ROOT

HOLDER = """
import sys
from pathlib import Path
from pipeline.errors import BusyError, TrivetError
from pipeline.locks import hold, work_on
folder = Path(sys.argv[1])
which = work_on(folder, 0.0) if sys.argv[2] == "work" else hold(folder)
try:
    with which:
        print("held", flush=True)
        sys.stdin.read()
except BusyError as error:
    print(f"busy {error.exit_code}", flush=True)
"""


MANY = """
import os, sys, time
from pathlib import Path
from pipeline.errors import BusyError
from pipeline.locks import hold
folder, go, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
children = []
for _ in range(number):
    child = os.fork()
    if not child:
        os.write(1, b"ready\\n")
        while not go.exists():
            time.sleep(0.002)
        try:
            with hold(folder):
                os.write(1, b"held\\n")
                sys.stdin.read()
        except BusyError as error:
            os.write(1, f"busy {error.exit_code}\\n".encode())
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""
"""Processes that all wait for one moment, forked: to start fifty would take seconds."""


def start(folder, mode="now"):
    """A process that takes the lock, says so, and keeps it until its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), mode],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process):
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def test_the_second_is_told_who_holds_it(tmp_path):
    first = start(tmp_path)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(BusyError) as caught, hold(tmp_path):
        pass
    message = str(caught.value)
    assert caught.value.exit_code == 73
    assert f"process {first.pid} on {socket.gethostname()}" in message
    assert str(tmp_path) in message and "-c" in message and "--output-dir" in message
    end(first)
    with hold(tmp_path):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path):
    for _ in range(3):
        holder = start(tmp_path)
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
        end(holder)
        with hold(tmp_path):
            pass


def test_the_one_after_a_killed_holder_is_named_and_not_the_dead_one(tmp_path):
    dead = start(tmp_path)
    assert dead.stdout.readline() == "held\n"
    dead.kill()
    end(dead)
    alive = start(tmp_path)
    assert alive.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"process {alive.pid} on"), hold(tmp_path):
        pass
    end(alive)


def test_of_many_simultaneous_starts_exactly_one_wins(tmp_path):
    go = tmp_path / "go"
    folder = tmp_path / "run"
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", MANY, str(folder), str(go), "50"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [parent.stdout.readline() for _ in range(50)] == ["ready\n"] * 50
    go.write_text("")
    said = [parent.stdout.readline() for _ in range(50)]
    end(parent)
    assert sorted(said) == ["busy 73\n"] * 49 + ["held\n"]


def test_held_again_after_the_block_even_when_it_raised(tmp_path):
    with pytest.raises(RuntimeError), hold(tmp_path):
        raise RuntimeError
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("holder", ["", "{", "[]", "{}"])
def test_a_torn_holder_file_is_no_crash(tmp_path, holder):
    first = start(tmp_path)
    assert first.stdout.readline() == "held\n"
    (tmp_path / ".holder.json").write_text(holder)
    with pytest.raises(BusyError, match="in use by process"), hold(tmp_path):
        pass
    end(first)


def test_runs_in_different_folders_do_not_meet(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with hold(tmp_path / "a"), hold(tmp_path / "b"):
        pass


def test_an_artefact_in_work_is_refused_to_others_until_its_worker_is_gone(tmp_path):
    worker = start(tmp_path, "work")
    assert worker.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=r"another process is working on .* --store") as caught, work_on(tmp_path, 0.0):
        pass
    assert str(tmp_path) in str(caught.value)
    worker.kill()
    end(worker)
    with work_on(tmp_path, 0.0):
        pass


def test_patience_outlasts_a_worker_that_is_just_going(tmp_path):
    worker = start(tmp_path, "work")
    assert worker.stdout.readline() == "held\n"
    worker.kill()
    with work_on(tmp_path, 60.0):
        assert worker.wait(60) == -signal.SIGKILL
    end(worker)


def test_clearing_keeps_the_lock_and_what_it_is_told(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("not ours")
    folder = tmp_path / "artefact"
    (folder / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (folder / "adapter").mkdir()
    for name in (WORK_LOCK, "metrics.jsonl", "adapter/weights", ".manifest.json.3.tmp"):
        (folder / name).write_text("x")
    os.symlink(outside, folder / "link")
    clear(folder, keep={WORK_LOCK, "metrics.jsonl", "checkpoints"})
    assert sorted(os.listdir(folder)) == [WORK_LOCK, "checkpoints", "metrics.jsonl"]
    assert (folder / "checkpoints" / "checkpoint-2").is_dir()
    assert (outside / "precious").is_file()


def test_what_a_killed_worker_left_in_a_sealed_artefact_is_removed_unless_one_is_at_it(tmp_path):
    folder = tmp_path / "artefact"
    for name in ("checkpoints/checkpoint-2", "work", "adapter"):
        (folder / name).mkdir(parents=True)
    worker = start(folder, "work")
    assert worker.stdout.readline() == "held\n"
    tidy(folder)
    assert (folder / "checkpoints").is_dir()
    worker.kill()
    worker.wait(60)
    tidy(folder)
    assert sorted(os.listdir(folder)) == [WORK_LOCK, "adapter"]
    end(worker)


@pytest.mark.parametrize("dangling", [False, True])
def test_an_artefact_whose_folder_leads_elsewhere_is_not_worked_on(tmp_path, dangling):
    outside = tmp_path / "outside"
    if not dangling:
        outside.mkdir()
    os.symlink(outside, tmp_path / "sft-abc")
    with pytest.raises(TrivetError, match=f"is a link to {outside}"), work_on(tmp_path / "sft-abc", 0.0):
        pass
    assert dangling or os.listdir(outside) == []
