"""W&B's lineage: data, SFT, reward model and policy as artefacts, each there once however it came there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import artefact, wandb_mirror
from pipeline.artefact import BaseModelEntry, Manifest, ParentEntry, TokenizerEntry
from pipeline.console import Console
from pipeline.recipe.schema import WandbSettings
from pipeline.runtime import ROOT
from pipeline.tracking import Tracker
from pipeline.wandb_artefacts import stage_lineage, summary_of
from pipeline.wandb_mirror import WandbMirror
from tests.pipeline.fake_cloud import Cloud, push, records_of

CHAIN = {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward")}
"""Stages with what they are made from."""
KEYS = {name: f"{name[0]}" * 64 for name in CHAIN}


def manifest_of(name, **changed):
    values = {
        "kind": "reward_model" if name == "reward" else "policy", "stage": name, "stage_kind": name, "key": KEYS[name],
        "algorithm_version": 1,
        "settings": {"data": {"sft" if name == "sft" else "preference": {"sources": [{"content": "c" * 64}]}}},
        "parents": tuple(ParentEntry(role=f"as {one}", stage=one, key=KEYS[one]) for one in CHAIN[name]),
        "base": BaseModelEntry(name="builtin:tiny-llama", revision=None, fingerprint="b" * 64),
        "tokenizer": TokenizerEntry(
            sha256="t", chat_template_sha256="u", vocabulary=9, pad_id=0, stop_ids=(1,), bos_id=None
        ),
        "form": "adapter", "seed": 17, "world_size": 1, "precision": "fp32", "device": "cpu", "code": {},
        "libraries": {}, "data": {}, "metrics": {"eval_loss": 1.5, "ci": [1, 2], "name": "x"}, "created": "now",
        "seconds": time.time(),
    }  # fmt: skip
    return Manifest(**{**values, **changed})


def folder_of(place, name):
    folder = place / ".store" / name
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "adapter" / "weights.safetensors").write_bytes(b"weights of " + name.encode())
    (folder / "reward_model.json").write_text("{}")
    (folder / "train_prompts.txt").write_text("somebody's prompt")
    return folder


def run_chain(place, name="mine", *, seal=True, heard=None, **settings):
    """What the workers of three stages do, one after the other; returns the run directory."""
    run = place / name
    run.mkdir(parents=True, exist_ok=True)
    sealed, entries = {}, []
    for stage, parents in CHAIN.items():
        folder = folder_of(place, stage)
        mirror = WandbMirror(WandbSettings(project="p", **settings), run, name, stage, KEYS[stage], Console(heard))
        mirror.start({"name": name})
        tracker = Tracker(folder / "metrics.jsonl", stage, mirror)
        tracker.rewind(-1)
        tracker.log(1, "train", {"loss": 0.5})
        made = artefact.completed(folder, manifest_of(stage))
        tracker.made(made, [sealed[one] for one in parents])
        tracker.finish()
        if seal:
            artefact.write_seal(made)
        sealed[stage] = made
        entries.append({"name": stage, "kind": stage, "key": KEYS[stage]})
        if not (run / stage).exists():
            (run / stage).symlink_to(folder)
    (run / "run.json").write_text(json.dumps({"name": name, "stages": entries}))
    return run


def edges(cloud, run="mine"):
    return {
        one["options"]["job_type"]: (sorted(one["used"]), one["made"])
        for one in cloud.runs.values() if one["options"]["group"] == run
    }  # fmt: skip


SFT, REWARD, PPO = (f"{name}-{KEYS[name][:16]}:v0" for name in CHAIN)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_chain_is_one_graph(tmp_path, wandb, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    run_chain(tmp_path)
    (sft_data,) = (name for kind, name in wandb.artefacts if name.startswith("data-sft"))
    (pairs,) = (name for kind, name in wandb.artefacts if name.startswith("data-preference"))
    assert edges(wandb) == {
        "sft": ([f"{sft_data}:v0"], {SFT: ["mine.sft"]}),
        "reward": ([f"{pairs}:v0", SFT], {REWARD: ["mine.reward"]}),
        "ppo": ([f"{pairs}:v0", REWARD, SFT], {PPO: ["mine.ppo"]}),
    }
    assert {kind for kind, _ in wandb.artefacts} == {"data", "sft", "reward-model", "policy"}
    assert all(one["summary"] == {f"{name}/eval_loss": 1.5} for name, one in wandb.by_stage().items())


def test_made_again_pushed_and_shared_it_is_there_once(tmp_path, wandb):
    """Killed before its seal and repeated, pushed afterwards, taken over by another run: one version each."""
    run_chain(tmp_path, seal=False)
    run = run_chain(tmp_path)
    before = edges(wandb)
    assert push(run) == 0
    run_chain(tmp_path, "other")
    assert edges(wandb) == before
    assert {len(versions) for versions in wandb.artefacts.values()} == {1} and len(wandb.artefacts) == 5
    assert edges(wandb, "other")["ppo"][0] == before["ppo"][0]


def test_a_run_without_wandb_is_pushed_with_its_lineage(tmp_path, wandb, monkeypatch):
    live = Cloud()
    monkeypatch.setitem(sys.modules, "wandb", live)
    run_chain(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert push(tmp_path / "mine", "--project", "p") == 0
    assert edges(wandb) == edges(live) and wandb.artefacts == live.artefacts


def test_what_is_really_another_artefact_is_another_version(tmp_path, wandb):
    """The control: content counts, so the tests above do not pass because everything is taken for the same."""
    run_chain(tmp_path)
    other = artefact.completed(folder_of(tmp_path, "sft"), manifest_of("sft", metrics={"eval_loss": 9.0}))
    one = stage_lineage(other, (), "mine", weights=False)
    assert one.made.name == SFT[:-3] and json.dumps(one.made.content, sort_keys=True).encode() not in b"".join(
        versions["manifest.json"] for versions in wandb.artefacts["sft", one.made.name]
    )


@pytest.mark.parametrize("weights", [False, True])
def test_weights_only_where_asked_for_and_rows_never(tmp_path, wandb, weights):
    run_chain(tmp_path, log_weights=weights)
    (found,) = wandb.artefacts["reward-model", REWARD[:-3]]
    assert set(found) == {"manifest.json"} | (
        {"adapter/weights.safetensors", "reward_model.json"} if weights else set()
    )
    everything = b"".join(text for versions in wandb.artefacts.values() for one in versions for text in one.values())
    assert b"somebody's prompt" not in everything and b"weights.safetensors" in everything
    assert (b"weights of reward" in everything) == weights


def test_no_secret_is_in_it(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "Canary-1-token")
    made = artefact.completed(
        folder_of(tmp_path, "sft"), manifest_of("sft", data={"where": "https://x/?token=Canary-1-token"})
    )
    found = stage_lineage(made, (), "mine", weights=False)
    assert (
        "Canary" not in json.dumps([found.made.content, found.made.metadata]) and "where" in found.made.content["data"]
    )


class Heard:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return False

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
def test_artefacts_that_wandb_does_not_take_cost_no_metrics(tmp_path, wandb, monkeypatch, fault):
    monkeypatch.setattr(wandb_mirror, "FINISH_SECONDS", 0.2)
    refuses = {"hangs": lambda cloud, artifact: time.sleep(5), "refuses": lambda cloud, artifact: 1 / 0}
    monkeypatch.setattr(Cloud, "keep", refuses[fault])
    heard = Heard()
    run_chain(tmp_path, heard=heard)
    assert heard.text.count("W&B did not take the artefacts of stage") == 3 and heard.text.count("\n") == 3
    assert "`trivet push` tries again" in heard.text
    assert all(one["finished"] == 1 and len(one["history"]) == 1 for one in wandb.runs.values())


def test_a_manifest_that_cannot_be_read_costs_its_artefact_only(tmp_path, wandb, capsys):
    run = run_chain(tmp_path)
    wandb.runs.clear()
    wandb.artefacts.clear()
    (tmp_path / ".store" / "reward" / "manifest.json").write_text("{}")
    assert push(run) == 0
    assert "cannot be read" in (said := capsys.readouterr()).err and "reward" in said.out
    assert edges(wandb)["reward"] == ([], {}) and edges(wandb)["ppo"][1] == {PPO: ["mine.ppo"]}


def test_an_evaluations_figures_are_its_policies(tmp_path):
    found = manifest_of("sft", stage="evaluation", stage_kind="evaluation", metrics={"policies": {"ppo": {"score": 1}}})
    assert summary_of(found) == {"evaluation/ppo/score": 1}


def test_figures_of_this_machine_belong_to_live_runs_only(tmp_path, wandb, monkeypatch):
    run = run_chain(tmp_path)
    live = [one["options"]["settings"]["x_disable_stats"] for one in wandb.runs.values()]
    wandb.runs.clear()
    push(run)
    later = [one["options"]["settings"]["x_disable_stats"] for one in wandb.runs.values()]
    assert live == [False] * 3 and later == [True] * 3


REAL = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.pipeline.test_wandb_artefacts import run_chain
run_chain(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_the_real_library_offline_holds_the_graph(tmp_path):
    """wandb itself; what it has written for `wandb sync` is read back, with the files that it points at."""
    from wandb.proto import wandb_internal_pb2 as records

    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")}
    for name in ("WANDB_API_KEY", "WANDB_SERVICE"):
        environment.pop(name, None)
    subprocess.run([sys.executable, "-P", "-c", REAL, str(tmp_path)], env=environment, check=True, timeout=300)
    found = {}
    for path in sorted((tmp_path / "mine" / "wandb").glob("offline-run-*/run-*.wandb")):
        used, made, stage = [], [], None
        for data in records_of(path):
            record = records.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                stage = record.run.job_type
            elif kind == "artifact":
                one = record.artifact
                (used if one.use_after_commit and one.user_created else made).append(f"{one.type} {one.name}")
                for entry in one.manifest.contents:
                    assert Path(entry.local_path).is_file() and tmp_path in Path(entry.local_path).parents
        found[stage] = (sorted(used), made)
    data = {name.split("-")[1] for used, _ in found.values() for name in used if name.startswith("data ")}
    assert data == {"sft", "preference"}
    without = {
        stage: ([name for name in used if not name.startswith("data ")], made) for stage, (used, made) in found.items()
    }
    sft, reward, ppo = (name[:-3] for name in (SFT, REWARD, PPO))
    assert without == {
        "sft": ([], [f"sft {sft}"]),
        "reward": ([f"sft {sft}"], [f"reward-model {reward}"]),
        "ppo": ([f"reward-model {reward}", f"sft {sft}"], [f"policy {ppo}"]),
    }
