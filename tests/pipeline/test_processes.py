"""How many threads a worker gets: the launcher's guess is not the user's word."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline import processes

ASSIGNMENT = SimpleNamespace(settings={})
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As under `accelerate launch`, which writes one thread where nobody said anything."""
    monkeypatch.setattr(processes, "launched_by_a_launcher", lambda: True)
    monkeypatch.setattr(processes, "_said_to_the_launcher", lambda name: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return monkeypatch


def _threads() -> str | None:
    return processes._worker_environment(1, ASSIGNMENT).get("OMP_NUM_THREADS")


def test_a_worker_uses_every_core_where_only_the_launcher_spoke(launched: pytest.MonkeyPatch) -> None:
    assert _threads() == str(CORES)


def test_ranks_of_one_machine_share_its_cores(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("LOCAL_WORLD_SIZE", str(2 * CORES))
    assert _threads() == "1"


def test_what_the_user_said_stands(launched: pytest.MonkeyPatch) -> None:
    launched.setattr(processes, "_said_to_the_launcher", lambda name: True)
    assert _threads() == "1"


def test_without_a_launcher_nothing_is_touched(launched: pytest.MonkeyPatch) -> None:
    launched.setattr(processes, "launched_by_a_launcher", lambda: False)
    launched.setenv("OMP_NUM_THREADS", "7")
    assert _threads() == "7"


def test_the_launchers_own_environment_is_asked() -> None:
    question = "from pipeline.processes import _said_to_the_launcher as s; print(s('PATH'), s('ONLY_HERE'))"
    child = {**os.environ, "ONLY_HERE": "1", "PYTHONPATH": str(processes.ROOT)}
    done = subprocess.run([sys.executable, "-c", question], env=child, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
