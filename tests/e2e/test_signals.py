"""Requests to stop at moments by chance in each phase of a run: exit 75, nothing marked done, not a bit different.

Each round is one run of SFT, reward model and PPO that is signalled once in every phase. One round by default, of
processes started as users start them; `TRIVET_SIGNAL_ROUNDS=20 pytest -n 0 -m slow tests/e2e/test_signals.py` sends a
hundred signals, those of the further rounds to runs forked from a warm parent.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from pipeline.artefact import is_sealed
from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "tiny_ppo.yaml"
ROUNDS = int(os.environ.get("TRIVET_SIGNAL_ROUNDS", "1"))
STAGES = ("sft", "reward", "ppo", "evaluation")


def phases(run, launcher):
    """Name, stage, what to wait for, and for how long the phase goes on then, in seconds; in the order they come."""
    said, inside = run.said, run.inside
    return [
        # A freshly started worker imports for seconds before it reads.
        ("data", "sft", lambda: "sft: starts" in said(), 6.0 if launcher == "python" else 0.6),
        ("an SFT step", "sft", lambda: inside("sft-*/checkpoints/checkpoint-2"), 0.4),
        ("a step of the reward model", "reward", lambda: inside("reward-*/checkpoints/checkpoint-2"), 0.4),
        ("a rollout", "ppo", lambda: "after rollout 0" in said(), 0.6),
        ("evaluation", "evaluation", lambda: inside("evaluation-*/work/*.json"), 0.6),
    ]


@pytest.fixture(scope="module")
def through(tmp_path_factory, run_in):
    """Uninterrupted."""
    run = run_in(tmp_path_factory.mktemp("signals") / "runs" / "through", recipe=RECIPE)
    run.go()
    return run


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_signal_in_every_phase_and_not_a_bit_of_difference(new_run, through, number, request, capsys):
    run = new_run("signalled", RECIPE)
    launcher = "forked" if number else "python"
    if number:
        run.warm = request.getfixturevalue("warm")
    draw = random.Random(number)
    answered = []
    for phase, stage, condition, seconds in phases(run, launcher):
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
        where = f"{phase}, to {'all' if everyone else 'the supervisor'}\n{run.said()}\n{run.log()[-3000:]}"
        outcome = run.outcome()
        answered.append(code)
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
    run.go(launcher=launcher)
    with capsys.disabled():
        print(f"round {number} ({launcher}): ended with {answered}")
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


def test_another_seed_would_be_noticed(new_run, through):
    run = new_run("other", RECIPE, ("--until", "sft", "--set", "seed=18"))
    run.go()
    assert run.weights("sft") != through.weights("sft")
