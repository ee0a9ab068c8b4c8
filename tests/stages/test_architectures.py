"""Every kind of stage on every architecture of docs/models.md: it learns, or is refused in a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import reward_function
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.errors import TrivetError
from pipeline.models.load import load_base
from pipeline.models.source import identify
from pipeline.recipe.schema import ModelSettings, Recipe
from pipeline.runtime import ROOT, Ranks, StopRequest, seed_everything
from pipeline.stages import dpo, ppo, reward, sft
from pipeline.tracking import Tracker, read_metrics
from tests.models.architectures import configurations, written, written_vision_model
from tests.rollouts.ppo_parts import REWARD_FILE, sealed_tensors, write_rows

pytestmark = pytest.mark.slow
NAMES = sorted(configurations())
PADDED = {
    "gemma2": "its attention is eager", "mamba": "its attention is eager",
    "mixtral": "the model's router has a loss of its own",
}  # fmt: skip
"""Where TRL's trainer computes the steps, and this is said."""
ROUTER = 5e-3
"""More than Mixtral's load-balancing loss can come to: its coefficient is 1e-3."""
SSM = {"target_modules": ["in_proj", "x_proj"]}
"""PEFT refuses `out_proj` of a state-space model, whose kernel reads that weight itself."""
RUN: dict[str, Callable[[StageContext], Any]] = {"sft": sft.run, "reward": reward.run, "dpo": dpo.run, "ppo": ppo.run}
OFFLINE = {
    "learning_rate": 1e-2, "max_steps": 4, "global_batch_size": 4, "per_device_batch_size": 2, "precision": "fp32",
    "log_every": 1, "schedule": "constant", "warmup_ratio": 0.0,
}  # fmt: skip
PPO = {
    "learning_rate": 1e-2, "rewards": [{"from": "function"}], "episodes": 8, "rollout_batch_size": 4, "minibatches": 1,
    "per_device_batch_size": 2, "max_new_tokens": 4, "eval_prompts": 1, "missing_eos_penalty": 0, "precision": "fp32",
    "select": "last",
}  # fmt: skip
TABLE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_folder) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("architectures")

    def folder(name: str) -> Path:
        return root / name if (root / name).is_dir() else written(root / name, name, tiny_folder)

    return folder


@pytest.fixture
def run(tmp_path, folders):
    """Runs a stage of a kind on an architecture, from the base; gives its losses, weights, words and figures."""

    def go(kind: str, name: str, **settings: Any) -> dict[str, Any]:
        place = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        (place / "stage").mkdir(parents=True)
        (place / "mine.py").write_text(REWARD_FILE)
        adapter = {"r": 4, "alpha": 8, **(SSM if name == "mamba" else {})}
        recipe = Recipe.model_validate({
            "name": "x",
            "model": {"base": "x", "adapter": adapter},
            "data": {
                "sft": {"sources": [{"path": str(write_rows(place / "rows.jsonl", 12))}]},
                "preference": {
                    "sources": [{"path": str(ROOT / "tests/data/plain_pairs.jsonl"), "limit": 12}], "max_length": 256
                },
                "prompts": {"from": "sft"},
            },
            "stages": {kind: {"kind": kind, **(PPO if kind == "ppo" else OFFLINE), **settings}},
        })  # fmt: skip
        said = place / "said.txt"
        with said.open("w") as stream:
            context = StageContext(
                recipe=recipe, stage=kind, folder=place / "stage", parents={}, base=identify(str(folders(name)), None),
                base_folder=folders(name), ranks=Ranks(0, 0, 1), stop=StopRequest(), console=Console(stream),
                tracker=Tracker(place / "stage" / "metrics.jsonl", kind),
                reward_function=reward_function.find(f"{place}/mine.py:shorter"),
            )  # fmt: skip
            seed_everything(0)
            result = RUN[kind](context)
        lines = [line for line in read_metrics(place / "stage" / "metrics.jsonl") if line["split"] == "train"]
        found: dict[str, Any] = {"said": said.read_text(), "metrics": result.metrics}
        for line in lines:
            found.setdefault(line["name"], []).append(line["value"])
        found["weights"] = sealed_tensors(place / "stage")
        return found

    return go


def require_adapters(weights: dict[str, torch.Tensor]) -> None:
    """That of every adapted module was trained: of experts too, where there are any."""
    second = {name: tensor for name, tensor in weights.items() if "lora_B" in name}
    assert len(second) >= 4 and all(tensor.numel() for tensor in weights.values())
    moved = [name for name, tensor in second.items() if tensor.abs().max() > 0]
    assert len(moved) > 0.7 * len(second), sorted(set(second) - set(moved))


@pytest.mark.parametrize("name", NAMES)
def test_sft_learns_and_both_engines_agree(run, name):
    found = run("sft", name)
    assert all(map(math.isfinite, found["loss"])) and found["loss"][-1] < found["loss"][0]
    require_adapters(found["weights"])
    if name in PADDED:
        assert found["metrics"]["engine"] == "trl" and PADDED[name] in found["said"]
        return
    assert found["metrics"]["engine"] == "streams"
    padded = run("sft", name, engine="trl")
    assert padded["metrics"]["engine"] == "trl"
    assert found["loss"] == pytest.approx(padded["loss"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_dpo_learns(run, name):
    found = run("dpo", name)
    assert found["loss"][0] == pytest.approx(math.log(2), abs=ROUTER if name == "mixtral" else 1e-4)
    assert all(map(math.isfinite, found["loss"])) and min(found["loss"][1:]) < found["loss"][0]
    assert found["metrics"]["engine"] == ("trl" if name in PADDED else "streams")
    require_adapters(found["weights"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mamba"])
def test_a_reward_model_learns(run, name):
    found = run("reward", name, epochs=2, max_steps=6)
    assert all(map(math.isfinite, found["loss"])) and min(found["loss"][3:]) < found["loss"][0]
    require_adapters(found["weights"])


@pytest.mark.parametrize("name", NAMES)
def test_ppo_learns_from_the_policy_that_sampled(run, name):
    """The ratio before the first step is 1: two passes, and a sampler, of one policy."""
    found = run("ppo", name)
    assert found["metrics"]["ratio_first_minibatch_maxdev"] < 1e-5
    assert found["metrics"]["measured"][0]["kl_seq"] == pytest.approx(0.0, abs=1e-5)
    assert all(map(math.isfinite, [*found["policy/loss"], *found["value/loss"]]))
    assert found["objective/kl_seq"][-1] != 0.0, "it moved"
    require_adapters(found["weights"])


def test_a_state_space_model_has_no_reward_form(run):
    with pytest.raises(TrivetError, match=r"no reward model can be made of the one in .*use dpo with it") as caught:
        run("reward", "mamba")
    assert "no reward model can be made" in TABLE, caught.value


def test_a_state_space_model_asks_for_other_modules(run, monkeypatch):
    monkeypatch.setitem(SSM, "target_modules", "all-linear")
    with pytest.raises(TrivetError, match=r"model\.adapter\.target_modules: .*out_proj"):
        run("sft", "mamba")


def test_a_model_that_sees_is_refused(tmp_path, tiny_folder):
    folder = written_vision_model(tmp_path / "seeing", tiny_folder)
    with pytest.raises(TrivetError, match=r"model\.base: .*qwen2_vl.* name a text model"):
        load_base(folder, ModelSettings(base="x"), frozen=True, precision="fp32")


def test_the_table_names_them_all():
    rows = re.findall(r"^\| `(\w+)`", TABLE, re.MULTILINE)
    assert sorted(rows) == sorted([*NAMES, "qwen2_vl"])
