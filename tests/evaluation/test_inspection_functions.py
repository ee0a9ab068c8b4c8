"""Inspection and report of rows with more than a question and an answer: calls, plain text, parts, rows set aside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluation.inspection.page import inspection_page, report_page
from evaluation.inspection.report import data_reports
from evaluation.inspection.report_terminal import print_reports
from evaluation.inspection.terminal import print_inspection
from evaluation.inspection.view import inspect
from evaluation.report.data_section import figures_of
from pipeline.recipe import loads_recipe

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLED = {
    "role": "assistant", "content": "",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
}  # fmt: skip
RECIPE = """
name: seen
model: {base: "builtin:tiny-llama"}
data:
  SET: {sources: [{path: FILE, on_bad_row: quarantine}], max_length: 1024, eval_fraction: 0}
stages: {STAGE: {}}
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder):
    def load(stage: str, *rows: Any, **changes: Any):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        text = RECIPE.replace("SET", "sft" if stage == "sft" else "preference").replace("FILE", str(path))
        return loads_recipe(text.replace("STAGE", stage), overrides=[f"{k}={v}" for k, v in changes.items()]).recipe

    return load


def talk(number: int) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"Weather in Oslo, day {number}?"}, CALLED,
        {"role": "tool", "tool_call_id": "c1", "content": f"rain {number} mm"},
        {"role": "assistant", "content": f"It rains: {number} mm."},
    ]  # fmt: skip
    return {"messages": turns, "tools": [TOOL]}


def test_a_call_is_trained_and_shown_and_its_result_is_context(recipe) -> None:
    found = inspect(recipe("sft", *(talk(n) for n in range(10, 16))), "sft", 1, 1)
    [sequence] = found.rows[0].sequences
    text = {kind: "".join(p.text for p in sequence.pieces if (p.kind == "trained") is kind) for kind in (True, False)}
    assert '"arguments": {"city": "Oslo"}' in text[True] and "mm." in text[True]
    assert "<tool_response>" in text[False] and "<tools>" in text[False]
    assert "<tool_response>" not in text[True]
    assert ("functions called", "weather") in found.rows[0].notes
    roles = {piece.role for piece in sequence.pieces if piece.kind == "trained"}
    assert roles == {"assistant"}
    said = io.StringIO()
    print_inspection(found, ids=False, console=Console(file=said, width=100))
    assert "functions called weather" in " ".join(said.getvalue().split()) and "weather" in inspection_page(found)


def test_both_sides_of_a_pair_show_their_calls(recipe) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Weather, day {n}?"}], "tools": [TOOL], "label_noise": 0.25,
            "chosen": [CALLED], "rejected": [{"role": "assistant", "content": f"No idea {n}."}],
        }
        for n in range(5)
    ]  # fmt: skip
    found = inspect(recipe("dpo", *rows), "dpo", 1, 1)
    chosen, rejected = found.rows[0].sequences
    assert "weather" in "".join(piece.text for piece in chosen.pieces if piece.kind == "trained")
    assert "No idea" in "".join(piece.text for piece in rejected.pieces if piece.kind == "trained")
    assert ("label noise", "0.25") in found.rows[0].notes
    facts = dict(figures_of(found.found.report).facts)
    assert facts["rows with functions"] == "5, 5 calls in them"
    assert facts["pairs with their annotators' votes"] == "5, of whom 25 % would not have chosen so"


def test_plain_text_is_no_answer_without_an_end(recipe) -> None:
    found = inspect(
        recipe("sft", *({"text": f"Once {n} " * 60} for n in range(4)), **{"data.sft.max_length": 64}), "sft", 1, 1
    )
    told = " ".join(finding.text for finding in found.findings)
    assert "pieces of plain text" in told and "do not end with" not in told


def test_rows_set_aside_are_in_the_report(recipe) -> None:
    chosen = recipe("sft", *(talk(n) for n in range(10, 14)), '{"broken', {"messages": 3})
    [report] = data_reports(chosen, None)
    figures = figures_of(report.report)
    assert dict(figures.facts)["rows set aside in quarantine.jsonl"] == "2"
    told = {drop.told: drop.rows for drop in figures.drops}
    assert told == {
        "are not valid JSON (set aside)": 1,
        "a field is not of the type that their format wants (set aside)": 1,
    }
    assert "set aside" in report_page(chosen, [report])
    said = io.StringIO()
    print_reports([report], Console(file=said, width=400))
    assert (
        "the first row has the fields messages, tools; 4 kept, 2 set aside; 4 to train on, 0 held out"
        in said.getvalue()
    )


def test_what_rules_took_out_is_told_by_rule_and_source(recipe) -> None:
    rows = [{"instruction": f"Say {n}.", "output": "As an AI language model, I cannot."} for n in range(3)]
    rows += [{"instruction": f"Say {n}!", "output": f"It is {n}."} for n in range(4)]
    chosen = recipe("sft", *rows, **{"data.sft.clean.refusals": "drop"})
    [report] = data_reports(chosen, None)
    [row] = figures_of(report.report).cleaning.taken_out
    assert (row.rule, row.rows) == ("refusals", 3) and row.source.endswith("rows.jsonl")
    drop = next(drop for drop in figures_of(report.report).drops if drop.reason == "refusals")
    assert drop.on_purpose and drop.told == "an answer only declines"
    said = io.StringIO()
    print_reports([report], Console(file=said, width=400))
    assert "Taken out of training" in said.getvalue() and row.source in said.getvalue()
    assert "Taken out of training, by rule and source" in report_page(chosen, [report])


def test_a_stages_part_is_what_is_shown(recipe) -> None:
    chosen = recipe(
        "sft", *({"instruction": f"say {n}", "output": f"{n}"} for n in range(60)), **{"data.split": "{sft: 0.3}"}
    )
    found = inspect(chosen, "sft", 1, 1)
    assert 5 < found.total < 35
    left = " ".join(finding.text for finding in found.findings)
    assert f"{60 - found.total} in another stage's part of the prompts (data.split)" in left
