"""What a worker finds in its environment: as many threads as the user said, the stage's engine and no other."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import processes
from pipeline.assignment import Assignment
from pipeline.models.source import BaseIdentity
from pipeline.runtime import Ranks

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


HUNG = {"code": 1, "slain": False, "left_behind": True, "sentence": processes._HUNG}
WAITED = {"code": 1, "slain": False, "sentence": "RuntimeError: Timed out waiting 1800000ms for recv operation"}
FAILED = {"code": 1, "slain": False, "sentence": "IndexError: list index out of range"}
ASKED = {"code": 75, "slain": False, "sentence": "asked to stop before it had begun"}
BROKEN = {"code": 1, "slain": False, "sentence": "Connection closed by peer"}
SLAIN = {"code": 1, "slain": True, "sentence": "the worker was killed by SIGKILL"}
OWN = {"code": 78, "slain": False, "sentence": "rank 2's data ends early"}
FINE = {"code": 0, "slain": False, "sentence": ""}


def _asked_of(outcomes: dict[int, Any], world_size: int, gone: frozenset[int] = frozenset()) -> dict[str, Any]:
    """What the first rank makes of the others' words."""
    failed = any(outcome["code"] for outcome in outcomes.values())
    peers: Any = SimpleNamespace(outcomes=lambda: outcomes, gone=lambda: gone, any_failed=lambda: failed)
    ranks: Any = SimpleNamespace(world_size=world_size)
    return processes._first_fault(outcomes[0], peers, ranks)


@pytest.mark.parametrize(
    ("as_noticed", "cause"),
    [
        ((BROKEN, SLAIN), SLAIN),  # the peer noticed first
        ((SLAIN, BROKEN), SLAIN),
        ((SLAIN, OWN), OWN),
        ((BROKEN, OWN, SLAIN), OWN),
        ((BROKEN, FAILED), FAILED),
        ((WAITED, BROKEN, HUNG), HUNG),
        ((FAILED, WAITED, HUNG), FAILED),
        ((HUNG, SLAIN), SLAIN),
        ((SLAIN, ASKED), ASKED),
        ((FINE, BROKEN, {**BROKEN, "sentence": "Connection reset by peer, later"}), BROKEN),
        ((FINE, FINE), FINE),
    ],
)
def test_the_outcome_that_explains_the_others(as_noticed, cause) -> None:
    """By the order in which they were noticed, which one counter gives; machines' clocks say nothing."""
    places = range(len(as_noticed))
    for ranks in (places, reversed(places)):
        outcomes = {rank: {**as_noticed[place], "rank": rank, "order": place} for place, rank in enumerate(ranks)}
        assert _asked_of(outcomes, len(outcomes))["sentence"] == cause["sentence"]


@pytest.mark.parametrize("others", [BROKEN, WAITED, HUNG, ASKED, FINE])
def test_a_rank_that_is_gone_is_the_cause_of_what_the_others_say(others) -> None:
    found = _asked_of({0: {**others, "rank": 0, "order": 1}}, 2, frozenset({1}))
    assert found["code"] == 1 and found["rank"] == 1
    assert found["sentence"].startswith("is gone without a word: its process was killed")


def test_a_rank_that_has_left_after_its_word_is_not_missed() -> None:
    outcomes = {0: {**FINE, "rank": 0, "order": 0}, 1: {**FINE, "rank": 1, "order": 0}}
    assert _asked_of(outcomes, 2, frozenset({1}))["code"] == 0


def test_a_reason_of_its_own_stands_whoever_is_gone() -> None:
    assert _asked_of({0: {**OWN, "rank": 0, "order": 1}}, 2, frozenset({1}))["sentence"] == OWN["sentence"]


def test_being_asked_to_stop_because_a_rank_died_does_not_hide_whose_death_it_was(monkeypatch, tmp_path) -> None:
    """A launcher asks all to stop as soon as one is dead, while the first rank still waits for that one's word."""

    def asked_twice() -> dict[int, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {0: {**BROKEN, "rank": 0, "order": 1}}

    def ends(number: int, frame: Any) -> None:
        raise AssertionError("ended before the dead rank was found")

    worker = SimpleNamespace(stdin=io.BytesIO())
    peers: Any = SimpleNamespace(outcomes=asked_twice, gone=lambda: frozenset({1}), any_failed=lambda: True)
    base = BaseIdentity("builtin:tiny-llama", None, "0")
    assignment = Assignment(
        stage="sft", kind="sft", key="0", algorithm_version=1, settings={}, recipe={}, folder="", run_dir="",
        parents={}, base=base, base_folder="",
    )  # fmt: skip
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=lambda *a, **k: worker, PIPE=subprocess.PIPE))
    monkeypatch.setattr(processes, "_wait", lambda *a: {**BROKEN, "rank": 0})
    monkeypatch.setattr(processes.FLAG, "asked", False)
    before = signal.signal(signal.SIGTERM, ends)
    try:
        found = processes.run_worker(assignment, Ranks(0, 0, 2), peers, 1, tmp_path / "log")
        assert processes.FLAG.asked and signal.getsignal(signal.SIGTERM) is ends
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found["rank"] == 1 and found["sentence"].startswith("is gone without a word")


def test_nobody_waits_for_ever_for_the_word_of_a_rank_that_lives(monkeypatch) -> None:
    """Its worker cannot be killed; the first that failed is named, and the mute one where nothing else explains it."""
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(processes, "_LAST_WORD_SECONDS", 0.0)
    found = _asked_of({0: {**FAILED, "rank": 0, "order": 1}}, 2)
    assert (found["rank"], found["sentence"]) == (0, FAILED["sentence"])
    assert _asked_of({0: {**WAITED, "rank": 0, "order": 1}}, 2)["rank"] == 1


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
    outcome = _waited(_Worker(returncode), failed=True)
    assert outcome["code"] == 1 and outcome["slain"] is slain
    assert (outcome["sentence"] == processes._HUNG) is outcome["left_behind"] is (returncode is None)


def test_a_worker_does_not_outlive_another_ranks_supervisor() -> None:
    """Nobody has said that anything failed; who would have is gone."""
    outcome = _waited(_Worker(None), failed=False, gone=frozenset({1}))
    assert outcome["left_behind"] and not outcome["slain"]


def _waited(worker: _Worker, *, failed: bool, gone: frozenset[int] = frozenset()) -> dict[str, Any]:
    peers: Any = SimpleNamespace(
        asked_to_stop=lambda: False, any_failed=lambda: failed, report=lambda outcome: None, gone=lambda: gone
    )
    hears, tells = os.pipe()
    os.set_blocking(hears, False)
    try:
        return processes._wait(worker, peers, SimpleNamespace(rank=0), hears)
    finally:
        os.close(hears)
        os.close(tells)
