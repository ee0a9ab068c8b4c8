"""What is said of a stage when it is done, and whose divergence `results.json` gives a DPO stage."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
from synthetic_ppo import PPO, RESULTS, REWARD

from pipeline import results
from pipeline.plan import Node


@pytest.mark.parametrize(
    ("kind", "metrics", "said"),
    [
        ("sft", {"eval_loss_before": 2.31, "eval_loss": 1.2}, "held-out loss 2.310 -> 1.200"),
        (
            "reward",
            REWARD,
            "held-out preference accuracy 0.48 -> 0.74 [0.67, 0.81] on 160 pairs, calibration error 0.06",
        ),
        (
            "dpo",
            {"eval_accuracy_before": 0.5, "eval_accuracy": 0.81, "eval_accuracy_ci95": [0.74, 0.86], "eval_n": 207},
            "held-out preference accuracy 0.50 -> 0.81 [0.74, 0.86] on 207 pairs",
        ),
        (
            "ppo",
            PPO,
            "held-out score 0.12 -> 0.95 (gain [0.60, 1.06]) on 64 prompts at 3.1 nats, kept the policy after rollout "
            "9 of 12",
        ),
        ("ppo", {**PPO, "selected_rollout": 0}, "held-out score 0.95 on 64 prompts, kept the policy it started from"),
        ("ppo", {**PPO, "score": None}, "768 episodes, nothing held out to measure it on"),
        ("reward", {"eval_n": 0, "eval_accuracy": None}, "nothing held out to measure it on"),
        ("sft", {}, "nothing held out to measure it on"),
        ("evaluation", RESULTS["evaluation"], "4 policies measured"),
    ],
)
def test_the_headline_of_each_kind(kind, metrics, said):
    assert results.headline(kind, metrics).endswith(said)


def write(tmp_path, monkeypatch, parents, reference):
    """`results.json` of a DPO, a reward and a PPO stage and an evaluation, their manifests made up."""
    evaluation = {**copy.deepcopy(RESULTS["evaluation"]), "reference": reference}
    metrics = {"dpo": {"eval_n": 3}, "reward": REWARD, "ppo": PPO, "evaluation": evaluation}
    nodes = [Node(kind, kind, "k", {}, parents, tmp_path / kind) for kind in metrics]
    monkeypatch.setattr(results, "_manifest", lambda node: {"metrics": metrics[node.name], "seconds": 1.0})
    ledger = SimpleNamespace(stages=[{"name": kind, "status": "done"} for kind in metrics])
    results.write_results(tmp_path, "x", nodes, ledger)
    return json.loads((tmp_path / "results.json").read_text())


def test_figures_pass_through_lists_and_tables_included(tmp_path, monkeypatch):
    found = write(tmp_path, monkeypatch, {"policy": "sft"}, "sft")
    assert found["stages"]["reward"]["metrics"] == REWARD
    assert found["stages"]["ppo"]["metrics"] == PPO, "its own divergence, measured on its own prompts"
    assert found["evaluation"]["policies"] == RESULTS["evaluation"]["policies"]
    assert found["evaluation"]["score_by"] == "reward"


@pytest.mark.parametrize(
    ("parents", "reference", "kl"),
    [({"policy": "sft"}, "sft", 1.23), ({}, "base", 1.23), ({"policy": "ppo"}, "sft", None), ({}, "sft", None)],
)
def test_dpo_gets_the_divergence_from_where_it_started_or_none(tmp_path, monkeypatch, parents, reference, kl):
    found = write(tmp_path, monkeypatch, parents, reference)
    assert found["stages"]["dpo"]["metrics"] == {"eval_n": 3, "kl_to_reference": kl}
