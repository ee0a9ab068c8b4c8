"""`trivet push --workspace`: what is saved shows the series that stages write, one line per run."""

from __future__ import annotations

import ast
import json
import re
import sys

import pytest

from pipeline.recipe.schema import WandbSettings
from pipeline.runtime import ROOT
from pipeline.wandb_workspace import MEASURES, PANELS, SeenStage, build_workspace
from tests.pipeline.fake_cloud import Cloud, push

workspaces = pytest.importorskip("wandb_workspaces.workspaces")
OF_LIBRARIES = {"loss", "grad_norm"}
"""Metrics that transformers' trainer logs under these names."""


def spec(workspace):
    """As it would be sent to the server."""
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def sections(found):
    return {
        one["name"]: [panel["config"] for panel in one["panels"]]
        for one in found["section"]["panelBankConfig"]["sections"]
        if one["panels"]
    }


def stage(name, *series, figures=()):
    return SeenStage(
        name=name, kind=name, series=frozenset(tuple(one.split("|")) for one in series), figures=frozenset(figures)
    )


PPO = stage(
    "ppo", "train|objective/sqrt_kl", "train|objective/score", "train|policy/entropy", "eval|score", "eval|kl_seq"
)


def built(*stages):
    return spec(build_workspace(WandbSettings(project="p", entity="e"), "view", ["a", "b"], stages))


def test_the_score_stands_against_what_it_cost():
    panels = {one["chartTitle"]: one for one in sections(built(PPO))["ppo"]}
    assert (panels["Score against sqrt(KL)"]["xAxis"], panels["Score against sqrt(KL)"]["metrics"]) == (
        "ppo/objective/sqrt_kl", ["ppo/objective/score"],
    )  # fmt: skip
    held_out = panels["Held-out score against KL in nats"]
    assert (held_out["xAxis"], held_out["metrics"]) == ("ppo/eval/kl_seq", ["ppo/eval/score"])
    assert panels["Entropy in nats per token"]["metrics"] == ["ppo/policy/entropy"]
    assert "KL in nats per response" not in panels, "no run has logged it"


def test_runs_are_filtered_and_one_line_each():
    (runs,) = built(PPO)["section"]["runSets"]
    assert json.dumps(runs["filters"]).count('"a"') == 1 and '"b"' in json.dumps(runs["filters"])
    assert "group" in json.dumps(runs["filters"]) and json.dumps(runs["grouping"]).count('"group"') == 1


def test_policies_of_the_evaluation_are_bars():
    figures = ("ppo/score", "sft/score", "ppo/kl_to_reference", "ppo/by/score")
    panels = {
        one["chartTitle"]: one["metrics"] for one in sections(built(stage("evaluation", figures=figures)))["evaluation"]
    }
    assert panels == {
        "Score": ["evaluation/ppo/score", "evaluation/sft/score"],
        "KL to the reference in nats": ["evaluation/ppo/kl_to_reference"],
    }


def test_every_panel_is_of_something_that_stages_write():
    """A metric that is renamed would leave its panel out for ever, and nobody would notice."""
    written = {
        node.value
        for path in (ROOT / "pipeline" / "stages").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    documented = set(re.findall(r"`([a-z_]+/[a-z_0-9]+)`", (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")))
    for kind, panels in PANELS.items():
        for panel in panels:
            for split, name in (*panel.y, *((panel.x,) if panel.x else ())):
                known = written | OF_LIBRARIES | (documented if kind == "ppo" and split == "train" else set())
                assert name in known, f"{kind}: no stage writes {split} {name}"
    assert "objective/sqrt_kl" in documented and "policy/los" not in documented | written


def test_every_bar_is_a_column_of_policies():
    from evaluation.measures import base_row

    assert set(MEASURES) <= set(base_row())


def test_it_is_pushed_then_saved(run, wandb, monkeypatch, capsys):
    saved = []
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: saved.append(self) or self)
    monkeypatch.setattr(workspaces.Workspace, "url", "https://wandb.ai/e/p?nw=1")
    assert push(run, "--workspace") == 0
    (one,) = saved
    assert (one.name, one.entity, one.project) == ("trivet: mine", "e", "p")
    found = sections(spec(one))
    assert [panel["metrics"] for panel in found["sft"]] == [["sft/loss"], ["sft/eval/loss"]]
    assert found["evaluation"][0]["metrics"] == ["evaluation/ppo/score"]
    assert "workspace saved: https://wandb.ai/e/p?nw=1" in capsys.readouterr().out
    assert push(run, "--workspace", "mine", "--json") == 0
    assert saved[1].name == "mine" and json.loads(capsys.readouterr().out)[-1] == {"workspace": one.url}


def test_an_entity_that_nobody_named_is_asked_for(run, wandb, monkeypatch):
    saved = []
    monkeypatch.setattr(workspaces.Workspace, "save", lambda self: saved.append(self) or self)
    monkeypatch.setattr(workspaces.Workspace, "url", "u")
    monkeypatch.setattr(Cloud, "Api", lambda cloud: type("Api", (), {"default_entity": "whoever"})(), raising=False)
    (run / "recipe.yaml").unlink()
    assert push(run, "--workspace") == 0 and saved[0].entity == "whoever"


def test_a_server_that_does_not_take_it(run, wandb, monkeypatch, capsys):
    def gone(self):
        raise ConnectionError("gone")

    monkeypatch.setattr(workspaces.Workspace, "save", gone)
    assert push(run, "--workspace") == 69
    said = capsys.readouterr().err
    assert "did not save the workspace (ConnectionError: gone); all metrics were sent" in said and said.count("\n") == 1


def test_what_stands_in_the_way_is_said_before_anything_is_sent(run, wandb, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert push(run, "--workspace") == 69 and "needs W&B's server; unset WANDB_MODE" in capsys.readouterr().err
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert push(run, "--workspace") == 2 and 'pip install -e ".[wandb]"' in capsys.readouterr().err
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delitem(sys.modules, "wandb_workspaces")
    assert push(run, "--workspace") == 69 and "wandb login" in capsys.readouterr().err
    assert wandb.runs == {}


def test_runs_of_two_projects_have_no_view_in_common(run, wandb, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("sft", "run.json", "results.json"):
        (other / name).symlink_to(run / name)
    (other / "recipe.yaml").write_text("tracking: {wandb: {project: q}}\n")
    assert push(run, other, "--workspace") == 2
    assert "belong to several projects (e/p, your own/q)" in capsys.readouterr().err and wandb.runs == {}
