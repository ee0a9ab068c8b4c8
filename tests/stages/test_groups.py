"""Pairs of one judgement meet in one step, whichever engine computes it; pairs without groups are drawn as ever."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.assignment import Assignment
from pipeline.models.source import identify
from pipeline.recipe import loads_recipe
from pipeline.stages import offline
from pipeline.stages.stream_trainer import StreamTrainer
from pipeline.worker import run_here

TEXT = """
name: x
model: {base: "builtin:tiny-llama", adapter: {r: 2}}
data: {preference: {sources: [{path: FILE}], eval_fraction: 0}}
stages: {STAGE: {epochs: 2, per_device_batch_size: 3, global_batch_size: 6, engine: ENGINE}}
"""
LISTS = 6


def write_rows(path: Path, *, ranked: bool) -> None:
    """Six prompts of three pairs each: as lists of three answers, or as pairs of their own."""
    rows = []
    for number in range(LISTS):
        asked, answers = f"Question {number}?", [f"best {number}", f"middling {number}", f"worst {number}"]
        if ranked:
            rows.append({"prompt": asked, "responses": answers})
        else:
            sides = [(answers[a], answers[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
            rows += [{"prompt": asked, "chosen": chosen, "rejected": rejected} for chosen, rejected in sides]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def steps_of(tmp_path: Path, tiny_folder, monkeypatch):
    """Runs a stage and returns the prompts of the rows of each step."""

    def run(stage: str, *, ranked: bool) -> list[list[tuple[int, ...]]]:
        path = tmp_path / "rows.jsonl"
        write_rows(path, ranked=ranked)
        recipe = loads_recipe(
            TEXT.replace("FILE", str(path)).replace("STAGE", stage).replace("ENGINE", "streams")
        ).recipe
        drawn: list[list[tuple[int, ...]]] = []
        original = StreamTrainer.get_batch_samples

        def watched(self: Any, *args: Any) -> Any:
            micros, items = original(self, *args)
            rows = [getattr(row, "pair", row) for micro in micros for row in micro.rows]
            drawn.append([tuple(row.prompt_ids) for row in rows])
            return micros, items

        monkeypatch.setattr(StreamTrainer, "get_batch_samples", watched)
        assignment = Assignment(
            stage=stage, kind=stage, key=stage * 16, algorithm_version=1, settings={},
            recipe=recipe.model_dump(mode="json", by_alias=True), folder=str(tmp_path / stage), run_dir=str(tmp_path),
            parents={}, base=identify(recipe.model.base, None), base_folder=str(tiny_folder),
        )  # fmt: skip
        run_here(assignment)
        return [step for step in drawn if step]

    return run


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_all_pairs_of_a_list_are_one_look(steps_of, stage) -> None:
    steps = steps_of(stage, ranked=True)
    assert [len(step) for step in steps] == [6] * (2 * LISTS // 2)
    assert all(set(Counter(step).values()) == {3} for step in steps)
    first, second = steps[: LISTS // 2], steps[LISTS // 2 :]
    assert {prompt for step in first for prompt in step} == {prompt for step in second for prompt in step}
    assert [set(step) for step in first] != [set(step) for step in second], "every pass has its own order"


def test_pairs_without_a_group_are_drawn_as_ever(steps_of, monkeypatch) -> None:
    """The control: the same pairs, of which nobody says that they belong together."""
    monkeypatch.setattr(offline.CommittedTrainer, "draw_by", lambda self, sampler: pytest.fail("no group to keep"))
    steps = steps_of("dpo", ranked=False)
    assert not all(set(Counter(step).values()) == {3} for step in steps)


def test_trls_trainers_draw_by_the_same_sampler(tiny_folder, tmp_path) -> None:
    from datasets import Dataset
    from trl import DPOConfig

    from pipeline.batch_order import TogetherSampler
    from pipeline.models.load import load_base, load_tokenizer
    from pipeline.recipe.schema import ModelSettings
    from pipeline.stages.dpo import CommittedDPOTrainer

    rows = [{"prompt_ids": [5, number], "chosen_ids": [7, 2], "rejected_ids": [8, 2]} for number in range(12)]
    model = load_base(tiny_folder, ModelSettings(base="x"), frozen=False, precision="fp32")
    arguments = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=3, gradient_accumulation_steps=2, use_cpu=True,
        bf16=False, report_to="none", max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = CommittedDPOTrainer(
        model=model, ref_model=copy.deepcopy(model), args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(tiny_folder, "auto"),
    )  # fmt: skip
    sampler = TogetherSampler([f"g{number % 4}" for number in range(12)], 6, 17)
    trainer.draw_by(sampler)
    batches = [batch["input_ids"][:3, 1].tolist() for batch in trainer.get_train_dataloader()]
    assert [number for batch in batches for number in batch] == list(sampler)
