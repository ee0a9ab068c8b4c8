"""Requests to stop at moments by chance in each phase of a run: exit 75, nothing marked done, not a bit different.

Each round is one run of SFT, reward model and PPO that is signalled once in every phase: in one of them, another one in
each round, it was started as users start it, in the others forked from a warm parent. One round by default;
`TRIVET_SIGNAL_ROUNDS=20 pytest -n 0 -m slow tests/e2e/test_signals.py` sends a hundred signals.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from pipeline.artefact import is_sealed
from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "tiny_ppo.yaml"
ROUNDS = int(os.environ.get("TRIVET_SIGNAL_ROUNDS", "1"))
STAGES = ("sft", "reward", "ppo", "evaluation")
LATE = ROUNDS // 20
"""How many signals of a phase may come when all is over but the last words, which then are code 0."""
ANSWERED: dict[str, list[int]] = {}
"""Exit codes by phase, of all rounds."""


def phases(run, passed: Path):
    """Name, stage, what to wait for, and for how long the phase goes on then, in seconds; in the order they come."""
    said, inside = run.said, run.inside
    return [
        ("data", "sft", passed.is_file, 0.1),
        ("an SFT step", "sft", lambda: inside("sft-*/checkpoints/checkpoint-2"), 0.4),
        ("a step of the reward model", "reward", lambda: inside("reward-*/checkpoints/checkpoint-2"), 0.4),
        ("a rollout", "ppo", lambda: "after rollout 0" in said(), 0.6),
        ("evaluation", "evaluation", lambda: inside("evaluation-*/work/*.json"), 0.3),
    ]


@pytest.fixture(scope="module")
def through(tmp_path_factory, run_in, warm):
    """Uninterrupted."""
    run = run_in(tmp_path_factory.mktemp("signals") / "runs" / "through", recipe=RECIPE)
    run.warm = warm
    run.go(launcher="forked")
    return run


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_signal_in_every_phase_and_not_a_bit_of_difference(new_run, through, number, warm, tmp_path, capsys):
    run = new_run("signalled", RECIPE)
    run.warm = warm
    # A worker appends to it when it begins to read; nothing fails.
    passed = tmp_path / "passed.txt"
    run.faults = f"data.begun:note={passed}"
    draw = random.Random(number)
    answered = []
    for index, (phase, stage, condition, seconds) in enumerate(phases(run, passed)):
        launcher = "python" if index == number % 5 else "forked"
        passed.unlink(missing_ok=True)
        process = run.start(launcher)
        assert run.wait_for(condition, process), f"{phase}: did not come\n{run.said()}\n{run.log()[-2000:]}"
        time.sleep(draw.uniform(0.0, seconds))
        # Either to the supervisor, as a person or a job script does, or to all, as Slurm does to a step.
        everyone = draw.random() < 0.5
        signalled = process.poll() is None
        send = os.killpg if everyone else os.kill
        if signalled:
            send(process.pid, draw.choice((signal.SIGUSR1, signal.SIGTERM)))
        code = process.wait(120)
        where = f"{phase}, {launcher}, to {'all' if everyone else 'the supervisor'}\n{run.said()}\n{run.log()[-3000:]}"
        outcome = run.outcome()
        answered.append(code)
        ANSWERED.setdefault(phase, []).append(code)
        assert outcome["code"] == code, where
        assert run.left_behind() == {}, where
        assert "Traceback" not in run.said(), where
        if code == 0:
            # Too late for this phase: whatever was asked came with the last stage's last words.
            assert stage == "evaluation", where
            continue
        assert code == 75 and "run the same command again" in outcome["sentence"], where
        for name, status in run.statuses().items():
            sealed = bool(run.inside(f"{name}-*")) and is_sealed(run.inside(f"{name}-*")[0])
            assert sealed == (status in ("done", "skipped")), f"{name} is {status}: {where}"
    run.faults = ""
    run.go(launcher="forked")
    with capsys.disabled():
        print(f"round {number}: ended with {answered}")
    assert set(run.statuses().values()) <= {"done", "skipped"}
    for stage in ("sft", "reward", "ppo"):
        assert run.weights(stage) == through.weights(stage), f"{stage} differs from an uninterrupted run"
    mine, theirs = (one.json("results.json") for one in (run, through))
    for part in ("policies", "families", "comparisons"):
        assert mine["evaluation"][part] == theirs["evaluation"][part]
    for stage in ("sft", "reward", "ppo"):
        assert mine["stages"][stage]["metrics"] == theirs["stages"][stage]["metrics"]
    assert [(line["step"], line["value"]) for line in run.lines("ppo", "policy/loss")] == [
        (line["step"], line["value"]) for line in through.lines("ppo", "policy/loss")
    ]


def test_the_signals_were_really_answered():
    """A run that ends with 0 whatever it is asked would pass the rounds above by being fast."""
    if sum(len(codes) for codes in ANSWERED.values()) < 5 * ROUNDS:
        pytest.skip("not all rounds were run before")
    assert len(ANSWERED) == 5
    for phase, codes in ANSWERED.items():
        assert codes.count(75) >= ROUNDS - LATE, f"{phase}: {codes}"


def test_another_seed_would_be_noticed(new_run, through, warm):
    run = new_run("other", RECIPE, ("--until", "sft", "--set", "seed=18"))
    run.warm = warm
    run.go(launcher="forked")
    assert run.weights("sft") != through.weights("sft")
