"""What a worker finds in its environment: as many threads as the user said, the stage's engine and no other."""

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


# The engine that a worker finds

LAUNCHED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_CPU": "True"}


def _engine(monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], **variables: str) -> dict[str, str]:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", *LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = processes._worker_environment(4711, SimpleNamespace(settings=settings))
    return {name: value for name, value in found.items() if name in {*LAUNCHED, "RANK", "WORLD_SIZE", "MASTER_PORT"}}


@pytest.mark.parametrize("settings", [{}, {"stage": {"deepspeed": "none"}}])
def test_no_engine_means_none_of_the_launchs_either(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    """Evaluation, whose settings have no stage, has none."""
    assert _engine(monkeypatch, settings, **LAUNCHED) == {"ACCELERATE_USE_CPU": "True"}


def test_the_launchs_engine_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _engine(monkeypatch, {"stage": {"deepspeed": "inherit"}}, ACCELERATE_USE_DEEPSPEED="true", RANK="1")
    assert found == {"ACCELERATE_USE_DEEPSPEED": "true", "RANK": "1", "MASTER_PORT": "4711"}


@pytest.mark.parametrize("deepspeed", ["zero2", "inherit"])
def test_accelerate_is_kept_from_passing_over_deepspeed_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, deepspeed: str
) -> None:
    found = _engine(
        monkeypatch, {"stage": {"deepspeed": deepspeed}}, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_USE_CPU="True"
    )
    assert "ACCELERATE_USE_CPU" not in found


def test_deepspeed_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would look for MPI."""
    found = _engine(monkeypatch, {"stage": {"deepspeed": "zero3_offload_cpu"}})
    assert found == {"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "4711"}
    assert _engine(monkeypatch, {"stage": {"deepspeed": "inherit"}}) == {}


def test_a_service_of_the_program_around_us_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's service outlives a killed worker there, and keeps its run open."""
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/nowhere")
    monkeypatch.setenv("WANDB_PROJECT", "kept")
    found = processes._worker_environment(1, ASSIGNMENT)
    assert "WANDB_SERVICE" not in found and found["WANDB_PROJECT"] == "kept"


BROKEN = {"code": 1, "slain": False, "sentence": "Connection closed by peer"}
SLAIN = {"code": 1, "slain": True, "sentence": "the worker was killed by SIGKILL"}
OWN = {"code": 78, "slain": False, "sentence": "rank 2's data ends early"}
FINE = {"code": 0, "slain": False, "sentence": ""}


@pytest.mark.parametrize(
    ("in_order_of_time", "cause"),
    [
        ((BROKEN, SLAIN), SLAIN),  # the peer noticed first
        ((SLAIN, BROKEN), SLAIN),
        ((SLAIN, OWN), OWN),
        ((BROKEN, OWN, SLAIN), OWN),
        ((FINE, BROKEN, {**BROKEN, "sentence": "a later one"}), BROKEN),
        ((FINE, FINE), FINE),
    ],
)
def test_the_outcome_that_explains_the_others(in_order_of_time, cause) -> None:
    outcomes = {rank: {**each, "rank": rank, "time": 100.0 + rank} for rank, each in enumerate(in_order_of_time)}
    peers, ranks = SimpleNamespace(outcomes=lambda: outcomes), SimpleNamespace(world_size=len(outcomes))
    assert processes._first_fault(outcomes[0], peers, ranks)["sentence"] == cause["sentence"]
    # Which rank it is does not matter.
    for each in outcomes.values():
        each["rank"] = len(outcomes) - each["rank"]
    assert processes._first_fault(outcomes[0], peers, ranks)["sentence"] == cause["sentence"]


class _Worker:
    """A worker that has ended, or that ends only when it is killed."""

    def __init__(self, returncode: int | None):
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9


@pytest.mark.parametrize(("returncode", "slain"), [(-9, True), (-11, True), (-6, False), (1, False), (None, False)])
def test_what_counts_as_a_death(monkeypatch: pytest.MonkeyPatch, returncode: int | None, slain: bool) -> None:
    """Not an abort, by which a library gives up on a lost peer, and not our own end to a rank that hangs."""
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.0)
    peers = SimpleNamespace(asked_to_stop=lambda: False, any_failed=lambda: True, report=lambda outcome: None)
    hears, tells = os.pipe()
    os.set_blocking(hears, False)
    try:
        outcome = processes._wait(_Worker(returncode), peers, SimpleNamespace(rank=0), hears)
    finally:
        os.close(hears)
        os.close(tells)
    assert outcome["code"] == 1 and outcome["slain"] is slain
