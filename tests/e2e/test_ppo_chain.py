"""The tiny reward-model and PPO chain, as a user runs it: through, again, killed five times, and on two processes.

Ten times where TRIVET_KILLS is set.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest

from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "tiny_ppo.yaml"
SEED = 7
ROLLOUTS = 4


@pytest.fixture(scope="module")
def through(tmp_path_factory, run_in):
    """The recipe from nothing to its end, uninterrupted. Only to be read."""
    run = run_in(tmp_path_factory.mktemp("ppo") / "runs" / "tiny-ppo", recipe=RECIPE)
    run.go(launcher="accelerate")
    return run


def test_the_whole_chain_runs_and_says_what_it_found(through):
    assert set(through.statuses().values()) == {"done"}
    results = through.json("results.json")
    reward, ppo = (results["stages"][name]["metrics"] for name in ("reward", "ppo"))
    assert {"eval_accuracy", "eval_accuracy_ci95", "ece"} <= set(reward)
    assert {"score_before", "score", "score_gain_ci95", "kl_to_reference", "episodes"} <= set(ppo)
    assert ppo["ratio_first_minibatch_maxdev"] <= 1e-5
    assert list(results["evaluation"]["policies"]) == ["base", "sft", "ppo"], "a reward model is no policy"
    assert results["evaluation"]["policies"]["ppo"]["score"] is not None
    assert (through.folder / "report.html").is_file()


def test_the_same_command_again_runs_nothing(through):
    run = type(through)(through.folder, through.recipe, through.caches)
    before = {stage: through.weights(stage) for stage in ("sft", "reward", "ppo")}
    said = run.go()
    assert "nothing had to be run" in " ".join(said.split())
    assert {stage: run.weights(stage) for stage in before} == before


def moments(run):
    """What to wait for, and whom to kill then: in rollouts, scoring, updates and saves, in the order they come by."""
    said, inside = run.said, run.inside
    return [
        ("the reward model's worker is starting", "launcher", lambda: "reward: starts" in said()),
        ("it begins a save", "worker", lambda: inside("reward-*/checkpoints/checkpoint-2")),
        ("it has committed a save", "supervisor", lambda: inside("reward-*/checkpoints/checkpoint-4/COMPLETE.json")),
        ("PPO's worker is starting", "launcher", lambda: "ppo: starts" in said()),
        ("PPO answers held-out prompts", "worker", lambda: "held-out answers" in said()),
        ("PPO is in its first rollout", "supervisor", lambda: "after rollout 0" in said()),
        ("PPO has learnt from a rollout", "launcher", lambda: inside("ppo-*/work/rollouts.jsonl")),
        ("PPO begins its first save", "worker", lambda: inside("ppo-*/checkpoints/checkpoint-2")),
        ("PPO has committed a save", "launcher", lambda: inside("ppo-*/checkpoints/checkpoint-2/COMPLETE.json")),
        ("PPO begins its last save", "worker", lambda: inside(f"ppo-*/checkpoints/checkpoint-{ROLLOUTS}")),
    ]


def test_kills_and_not_a_bit_of_difference(new_run, through):
    run = new_run("killed", RECIPE)
    draw = random.Random(SEED)
    for name, role, condition in moments(run) if "TRIVET_KILLS" in os.environ else moments(run)[1::2]:
        process = run.start("accelerate" if role == "launcher" else "python")
        assert run.wait_for(condition, process), f"{name}: did not come\n{run.said()}\n{run.log()[-2000:]}"
        time.sleep(draw.uniform(0.0, 0.3))
        found = [process.pid] if role == "launcher" else run.pids(role)
        for pid in found[:1]:
            os.kill(pid, signal.SIGKILL)
        process.wait(60)
        left = run.left_behind()
        assert left == {}, f"{name}: left behind after a kill of the {role}: {left}"
    run.go()
    for stage in ("sft", "reward", "ppo"):
        assert run.weights(stage) == through.weights(stage), f"{stage} differs from an uninterrupted run"
    for name in ("objective/score", "policy/loss", "value/loss", "policy/grad_norm", "lr/policy"):
        assert values(run, name) == values(through, name), name
    assert samples(run) == samples(through)
    mine, theirs = (one.json("results.json")["stages"]["ppo"]["metrics"] for one in (run, through))
    assert mine == theirs


def test_another_seed_gives_other_bits(new_run, through, warm):
    """The comparison can fail."""
    run = new_run("other", RECIPE, ("--until", "ppo", "--set", "seed=18"))
    run.warm = warm
    run.go(launcher="forked")
    assert run.weights("ppo") != through.weights("ppo")


def test_two_processes_make_the_same_rollouts_and_learn_the_same(new_run, through, warm):
    options = ("--no-reuse", "--set", "evaluation.tasks=[]")
    run = new_run("two", RECIPE, options)
    run.warm = warm
    run.go_ranks()
    first = [sample["response"] for sample in samples(run) if sample["rollout"] == 1]
    assert first == [sample["response"] for sample in samples(through) if sample["rollout"] == 1]
    for name in ("objective/score", "objective/kl_seq", "policy/loss", "value/loss"):
        two, one = (dict(values(each, name)) for each in (run, through))
        assert two[1] == pytest.approx(one[1], rel=1e-4, abs=1e-4), name


def values(run, name):
    """A figure by rollout, without the time at which it was written."""
    return [(line["step"], line["value"]) for line in run.lines("ppo", name)]


def samples(run):
    text = (run.folder / "ppo" / "rollouts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
