"""`trivet push`: what arrives in W&B is what lies on disk, each step once, however often it is pushed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pipeline.runtime import ROOT
from pipeline.wandb_mirror import WandbMirror
from tests.pipeline.fake_cloud import push, records_of


def test_every_step_arrives_once_in_one_group_with_a_job_type_per_stage(run, wandb, capsys):
    assert push(run) == 0
    found = wandb.by_stage()
    assert list(found) == ["sft", "ppo", "evaluation"], "a stage that logged nothing makes no run"
    assert {one["options"]["group"] for one in found.values()} == {"mine"}
    assert {(one["options"]["project"], one["options"]["entity"]) for one in found.values()} == {("p", "e")}
    assert found["sft"]["history"] == [
        (1, {"sft/loss": 1.0}), (2, {"sft/loss": 0.5}), (3, {"sft/loss": None}), (4, {"sft/loss": 0.25}),
        (5, {"sft/loss": 0.2, "sft/eval/loss": 0.2}),
    ]  # fmt: skip
    assert [step for step, _ in found["ppo"]["history"]] == [1, 2, 3, 4, 5], "its torn last line is left out"
    assert found["sft"]["summary"] == {"sft/eval_loss": 1.5}
    assert found["evaluation"]["summary"] == {"evaluation/ppo/score": 0.5}
    assert all(one["finished"] == 1 and one["options"]["config"]["name"] == "mine" for one in found.values())
    assert "5 steps sent" in capsys.readouterr().out


def test_pushing_again_sends_nothing_twice_and_goes_on_where_the_file_has_grown(run, wandb, capsys):
    push(run)
    with (run / "sft" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"stage": "sft", "step": 6, "split": "train", "name": "loss", "value": 0.1}) + "\n")
    capsys.readouterr()
    assert push(run, "--json") == 0
    assert [row["steps"] for row in json.loads(capsys.readouterr().out)] == [1, 0, 0]
    assert [step for step, _ in wandb.by_stage()["sft"]["history"]] == [1, 2, 3, 4, 5, 6]


def test_after_a_broken_connection_the_same_command_goes_on(run, wandb, capsys):
    wandb.fail_at = 3
    assert push(run) == 69
    said = capsys.readouterr().err
    assert "W&B failed at stage sft (ConnectionError: gone); push again" in said and said.count("\n") == 1
    assert push(run) == 0
    assert [step for step, _ in wandb.by_stage()["sft"]["history"]] == [1, 2, 3, 4, 5]


def test_the_ids_are_those_of_the_live_mirror(run, wandb):
    from pipeline.console import Console
    from pipeline.recipe.schema import WandbSettings

    push(run)
    mirror = WandbMirror(WandbSettings(project="p"), run, "mine", "sft", "key-sft", Console(None))
    assert wandb.by_stage()["sft"]["options"]["id"] == mirror._options["id"]


def test_project_and_entity_can_be_said(run, wandb):
    push(run, "--project", "other", "--entity", "team")
    assert {(one["options"]["project"], one["options"]["entity"]) for one in wandb.runs.values()} == {("other", "team")}
    (run / "recipe.yaml").unlink()
    assert push(run) == 0


@pytest.mark.parametrize(
    ("mode", "key", "said"), [("disabled", "0" * 40, "WANDB_MODE is disabled"), ("", "", "wandb login")]
)
def test_where_wandb_cannot_be_reached_it_says_what_to_do(run, tmp_path, monkeypatch, capsys, mode, key, said):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert push(run) == 69 and said in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, wandb, run, capsys):
    assert push(tmp_path) == 65 and "holds no run" in capsys.readouterr().err
    (run / "run.json").write_text("{")
    assert push(run) == 65 and "cannot be read" in capsys.readouterr().err
    for stranger in ('{"name": "../x", "stages": []}', '{"stages": [{"name": "../../x", "kind": "sft", "key": "k"}]}'):
        (run / "run.json").write_text(stranger)
        assert push(run) == 65 and "is no name of a run or stage" in capsys.readouterr().err
    (run / "run.json").write_text('{"stages": []}')
    assert push(run) == 65 and "no stage of this run has logged anything yet" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_library_offline_holds_each_step_once(run):
    """wandb itself, in offline mode and in a process that ends, as its writer runs on beside it; its files are read."""
    from wandb.proto import wandb_internal_pb2 as records

    command = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()", "push", str(run)]
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    environment.pop("WANDB_API_KEY", None)
    subprocess.run(command, env=environment, check=True, timeout=300)
    found = {}
    for path in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        steps, made = [], None
        for data in records_of(path):
            record = records.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                steps.append(record.history.step.num)
            elif kind == "run":
                made = record.run
        found[made.job_type] = (made.run_group, made.project, steps)
    assert found == {
        "sft": ("mine", "p", [1, 2, 3, 4, 5]), "ppo": ("mine", "p", [1, 2, 3, 4, 5]), "evaluation": ("mine", "p", []),
    }  # fmt: skip


def test_no_secret_of_the_environment_is_in_the_config(run, wandb, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "Canary-2-token")
    with (run / "recipe.yaml").open("a") as stream:
        stream.write("note: from https://x/?token=Canary-2-token\n")
    push(run)
    config = wandb.by_stage()["sft"]["options"]["config"]
    assert "note" in config and "Canary" not in json.dumps(config)
