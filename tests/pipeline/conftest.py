"""What several tests of the pipeline need."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.pipeline.fake_cloud import Cloud


@pytest.fixture
def small_disk():
    """A disk of 2 MB that is really full when it is full; needs the right to mount one."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("no right to mount a small disk")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def wandb(monkeypatch):
    cloud = Cloud()
    monkeypatch.setitem(sys.modules, "wandb", cloud)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    return cloud


@pytest.fixture
def run(tmp_path):
    """SFT has logged, PPO too and is still going, evaluation has figures only."""
    folder = tmp_path / "run"
    stages = [{"name": name, "kind": name, "key": f"key-{name}"} for name in ("sft", "ppo", "reward", "evaluation")]
    for name in ("sft", "ppo"):
        (folder / name).mkdir(parents=True)
        lines = [
            {"stage": name, "step": step, "split": split, "name": "loss", "value": None if step == 3 else 1 / step}
            for split in ("train", "eval") for step in range(1, 6) if split == "train" or step == 5
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / "metrics.jsonl").write_text(text + ('{"stage": "pp' if name == "ppo" else ""))
    (folder / "run.json").write_text(json.dumps({"name": "mine", "stages": stages}))
    policies = {"ppo": {"score": 0.5, "rule_accuracy": None, "kl_ci95": [1, 2]}}
    results = {"stages": {"sft": {"metrics": {"eval_loss": 1.5}}}, "evaluation": {"policies": policies}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "recipe.yaml").write_text("name: mine\ntracking: {wandb: {project: p, entity: e}}\n")
    return folder
