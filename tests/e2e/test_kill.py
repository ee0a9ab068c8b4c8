"""Kills of one launched run, of each of its processes: no help needed, not a bit of the result different.

Five of ten moments by default, all ten where TRIVET_KILLS is set: each costs a start. Accelerate starts the run that is
killed with it, and the last one; for the others its imports would only cost time.
"""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from pipeline.checkpoint import newest_complete

pytestmark = pytest.mark.slow
SEED = 20


def moments(run):
    """What to wait for, and whom to kill then; in the order in which a run comes by."""
    said, inside = run.said, run.inside
    return [
        ("SFT's worker is starting", "launcher", lambda: "sft: starts" in said()),
        ("SFT has its rows", "worker", lambda: "rows to train on" in said()),
        ("SFT begins its first save", "launcher", lambda: inside("sft-*/checkpoints/checkpoint-2")),
        ("SFT has committed a save", "supervisor", lambda: inside("sft-*/checkpoints/checkpoint-4/COMPLETE.json")),
        ("SFT begins a later save", "worker", lambda: inside("sft-*/checkpoints/checkpoint-6")),
        ("SFT writes its result", "launcher", lambda: inside("sft-*/adapter")),
        ("DPO's worker is starting", "supervisor", lambda: "dpo: starts" in said()),
        ("DPO begins its first save", "worker", lambda: inside("dpo-*/checkpoints/checkpoint-2")),
        ("DPO has committed a save", "launcher", lambda: inside("dpo-*/checkpoints/checkpoint-4/COMPLETE.json")),
        ("evaluation has measured something", "supervisor", lambda: inside("evaluation-*/work/*.json")),
    ]


def kill(run, process, role) -> bool:
    """SIGKILL to the launcher, or to the first process of that part; whether there was one to kill."""
    found = [process.pid] if role == "launcher" else run.pids(role)
    for pid in found[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


def test_kills_no_help_and_not_a_bit_of_difference(new_run, chain):
    run = new_run("killed")
    draw = random.Random(SEED)
    for name, role, condition in moments(run) if "TRIVET_KILLS" in os.environ else moments(run)[1::2]:
        process = run.start("accelerate" if role == "launcher" else "python")
        assert run.wait_for(condition, process), f"{name}: did not come\n{run.said()}\n{run.log()[-2000:]}"
        time.sleep(draw.uniform(0.0, 0.15))
        assert process.poll() is None, f"{name}: the run was over before the kill\n{run.said()}"
        assert run.wait_for(lambda process=process, role=role: kill(run, process, role), process), f"{name}: no {role}"
        assert process.wait(60) != 0, name
        left = run.left_behind()
        assert left == {}, f"{name}: left behind after a kill of the {role}: {left}"
        if role == "worker":
            assert "was killed by SIGKILL" in run.said() and "Traceback" not in said_by_us(run)
    said = run.go(launcher="accelerate")
    assert "finished earlier" in said
    for stage in ("sft", "dpo"):
        assert run.weights(stage) == chain.weights(stage), f"{stage} differs from an uninterrupted run"
        assert run.train_steps(stage) == chain.train_steps(stage), "each step stands in the metrics once"
        assert figures(run, stage) == figures(chain, stage)
    assert set(run.statuses().values()) <= {"done", "skipped"}
    mine, theirs = (one.json("results.json")["evaluation"] for one in (run, chain))
    assert mine["policies"] == theirs["policies"]
    assert run.outcome()["code"] == 0
    assert not run.inside("*/checkpoints") and not run.inside("*/work")


def said_by_us(run) -> str:
    """What was printed before the launcher reported the failure in its own way."""
    return run.said().partition('Traceback (most recent call last):\n  File "<frozen runpy>"')[0]


def figures(run, stage):
    """Everything in a stage's metrics but the time."""
    names = ("loss", "grad_norm", "learning_rate")
    return [[(line["step"], line["value"]) for line in run.lines(stage, name)] for name in names]


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_bits_are_the_same(new_run, chain):
    """After a kill somebody's disk flips a bit in the newest save: an older one or the beginning is gone on from."""
    run = new_run("flipped", options=("--until", "sft"))
    process = run.start("python")
    assert run.wait_for(lambda: run.inside("sft-*/checkpoints/checkpoint-4/COMPLETE.json"), process)
    assert kill(run, process, "supervisor")
    process.wait(60)
    assert run.left_behind() == {}
    [folder] = run.inside("sft-*/checkpoints")
    newest, _ = newest_complete(folder)
    weights = newest / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = run.go()
    assert f"{newest.name} was not complete when the run ended; it is left out" in said
    assert run.weights("sft") == chain.weights("sft")
    assert run.train_steps("sft") == chain.train_steps("sft")


def test_resuming_without_the_random_state_would_be_noticed(new_run, chain, warm):
    """The comparison can fail: another seed gives other bits, with the same steps and settings otherwise."""
    run = new_run("other-seed", options=("--until", "sft", "--set", "seed=18"))
    run.warm = warm
    run.go(launcher="forked")
    assert run.train_steps("sft") == chain.train_steps("sft")
    assert run.weights("sft") != chain.weights("sft")
