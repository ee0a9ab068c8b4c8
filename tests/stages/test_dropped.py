"""What cleaning took out of a stage's data lies in its artefact, sealed with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.cleaning.dropped import DROPPED_ROWS
from pipeline.artefact import open_artefact
from pipeline.assignment import Assignment
from pipeline.models.source import identify
from pipeline.recipe import loads_recipe
from pipeline.worker import run_here

DIRTY = Path(__file__).parents[1] / "data" / "dirty_pairs.jsonl"
TEXT = f"""
name: x
model: {{base: "builtin:tiny-llama", adapter: {{r: 2}}}}
data:
  sft: {{sources: [{{path: {DIRTY}}}], clean: {{refusals: drop, secrets: drop}}}}
  preference: {{sources: [{{path: {DIRTY}}}], max_length: 150, clean: {{label_conflicts: drop}}}}
stages: {{sft: {{max_steps: 1}}, dpo: {{max_steps: 1, policy: base}}}}
"""


@pytest.mark.parametrize(
    ("stage", "rules"),
    [
        ("sft", {"empty_answers": 1, "refusals": 1, "secrets": 1}),
        ("dpo", {"empty_answers": 1, "label_conflicts": 2, "answer_too_long": 1}),
    ],
)
def test_a_stage_leaves_the_rows_that_were_dropped(stage, rules, tmp_path, tiny_folder) -> None:
    recipe = loads_recipe(TEXT).recipe
    assignment = Assignment(
        stage=stage, kind=stage, key=stage * 16, algorithm_version=1, settings={},
        recipe=recipe.model_dump(mode="json", by_alias=True), folder=str(tmp_path / stage), run_dir=str(tmp_path),
        parents={}, base=identify(recipe.model.base, None), base_folder=str(tiny_folder),
    )  # fmt: skip
    run_here(assignment)
    artefact = open_artefact(tmp_path / stage)
    assert 0.1 < artefact.manifest.memory.process_gib < 64, "what the stage took, torch included"
    assert DROPPED_ROWS in {entry.path for entry in artefact.manifest.files}
    lines = [json.loads(line) for line in (artefact.path / DROPPED_ROWS).read_text(encoding="utf-8").splitlines()]
    found = {rule: sum(line["rule"] == rule for line in lines) for rule in {line["rule"] for line in lines}}
    assert found == rules
    report = next(iter(artefact.manifest.data.values()))
    assert report["dropped"] == rules and report["train_rows"] + report["eval_rows"] + len(lines) == 25
    assert all(line["source"] == str(DIRTY) for line in lines)
