"""One stage of any kind on any base, as its worker starts it, for a few steps on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import reward_function
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.models.source import identify
from pipeline.recipe.schema import Recipe
from pipeline.runtime import ROOT, Ranks, StopRequest, seed_everything
from pipeline.stages import dpo, ppo, reward, sft
from pipeline.tracking import Tracker, read_metrics
from tests.rollouts.ppo_parts import REWARD_FILE, sealed_tensors, write_rows

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


def run_stage(
    place: Path, kind: str, base: Path, adapter: Any, parents: dict[str, Any] | None = None, **settings: Any
) -> dict[str, Any]:
    """Run it; its losses by step, weights, words and figures.

    Args:
        place: an empty folder; what the stage leaves is in `stage`.
        kind: of the stage.
        base: folder of the base model.
        adapter: the recipe's `model.adapter`.
        parents: earlier artefacts by role.
        settings: of the stage.
    """
    (place / "stage").mkdir(parents=True)
    (place / "mine.py").write_text(REWARD_FILE)
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
            recipe=recipe, stage=kind, folder=place / "stage", parents=parents or {}, base=identify(str(base), None),
            base_folder=base, ranks=Ranks(0, 0, 1), stop=StopRequest(), console=Console(stream),
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
