"""Every kind of stage on every architecture of docs/models.md: it learns, or is refused in a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import TrivetError
from pipeline.runtime import ROOT
from tests.models.architectures import configurations, seeing_configurations, written
from tests.stages.one_stage import run_stage

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
        adapter = {"r": 4, "alpha": 8, **(SSM if name == "mamba" else {})}
        return run_stage(place, kind, folders(name), adapter, **settings)

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


def test_the_table_names_them_all():
    rows = re.findall(r"^\| `(\w+)`", TABLE, re.MULTILINE)
    assert sorted(rows) == sorted([*NAMES, *seeing_configurations()])
