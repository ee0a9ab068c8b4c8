"""The data section: every figure that it promises comes from the report, in a run's page as in one of its own."""

from __future__ import annotations

import copy
import json

import pytest
from seen import page
from synthetic_run import DATA, XSS, write, write_run

from evaluation.report.data_section import figures_of
from evaluation.report.histograms import histogram

LENGTHS = {"mean": 41.5, "p5": 3, "p50": 37, "p95": 97, "max": 119}
STATISTICS = {
    "tokens": {"all": 71_234, "answers": 23_456, "answers_share": 0.3293},
    "prompt_tokens": {**LENGTHS, "histogram": {"width": 20, "counts": [11, 48, 0, 29, 13, 1]}},
    "chosen_tokens": {**LENGTHS, "mean": 17.25, "histogram": {"width": 5, "counts": [7, 3]}},
    "longer_answer": {"chosen": 6, "rejected": 3, "equal": 1, "mean_difference": 4.75},
    "faults": {"terse_answer": 43, "rude": 5},
    "margins": {"rows": 17, "mean": 0.625},
    "families": {"arithmetic": 57, "dates": 45},
    "sources": {"a.jsonl": 111, "b.jsonl": 91},
    "source_tokens": {"a.jsonl": {"all": 51_234, "answers": 20_123}, "b.jsonl": {"all": 20_000, "answers": 3333}},
    "scripts": {"rows": {"Latin": 91, "Han": 11}, "letters": {"Latin": 0.9}, "mixed_rows": 6},
}
PADDING = {
    "batch_rows": 4, "used": "grouped", "shuffled": 0.31, "grouped": 0.043,
    "packed": {"sequences": 27, "max_length": 512, "filled": 0.913, "padding": 0.0},
}  # fmt: skip
CLEANING = {
    "changed": {"repaired": 14, "masked_email": 8, "masked_id": 3},
    "dropped": {"near_duplicate": {"a.jsonl": 21, "b.jsonl": 18}, "max_words": {"b.jsonl": 15}},
    "decontamination": {
        "sets": {"gsm8k": {"texts": 1319, "rows_dropped": 13}}, "not_on_this_machine": ["math500", "mmlu"],
    },
    "length_bias": {"chosen_longer": 0.6}, "label_conflicts": 12,
}  # fmt: skip
SOURCES = [
    {**DATA["sources"][0], "quarantined": {"broken_json": 25}, "train": 111, "held_out": 29},
    {
        "path": "b.jsonl", "format": "messages", "rows_read": 131, "dropped": {}, "quarantined": {}, "kept": 129,
        "train": 91, "held_out": 31,
    },
]  # fmt: skip
REPORT = DATA | {
    "sources": SOURCES, "statistics": STATISTICS, "padding": PADDING, "cleaning": CLEANING,
    "dropped_examples": [["a.jsonl", 7, "control_token"]],
}  # fmt: skip
SHOWN = [
    ("statistics", "tokens", "all"), ("statistics", "prompt_tokens", "mean"), ("statistics", "prompt_tokens", "p50"),
    ("statistics", "prompt_tokens", "p95"), ("statistics", "prompt_tokens", "max"),
    ("statistics", "prompt_tokens", "histogram", "width"), ("statistics", "prompt_tokens", "histogram", "counts", 3),
    ("statistics", "chosen_tokens", "mean"), ("statistics", "longer_answer", "chosen"),
    ("statistics", "longer_answer", "rejected"), ("statistics", "longer_answer", "equal"),
    ("statistics", "longer_answer", "mean_difference"), ("statistics", "faults", "rude"),
    ("statistics", "margins", "rows"), ("statistics", "margins", "mean"), ("statistics", "families", "dates"),
    ("statistics", "scripts", "rows", "Han"), ("statistics", "scripts", "mixed_rows"), ("padding", "batch_rows"),
    ("padding", "packed", "sequences"), ("padding", "packed", "max_length"), ("train_rows",), ("eval_rows",),
    ("prompts_truncated",), ("dropped", "duplicate"), ("dropped_examples", 0, 1),
    ("sources", 0, "quarantined", "broken_json"), ("sources", 0, "train"), ("sources", 1, "held_out"),
    ("statistics", "sources", "b.jsonl"), ("statistics", "source_tokens", "b.jsonl", "answers"),
    ("cleaning", "changed", "repaired"), ("cleaning", "changed", "masked_id"), ("cleaning", "label_conflicts"),
    ("cleaning", "dropped", "near_duplicate", "a.jsonl"), ("cleaning", "dropped", "max_words", "b.jsonl"),
    ("cleaning", "decontamination", "sets", "gsm8k", "texts"),
    ("cleaning", "decontamination", "sets", "gsm8k", "rows_dropped"),
]  # fmt: skip


def page_with(tmp_path, report):
    run = tmp_path / "demo"
    write_run(run)
    manifest = json.loads((run / "sft" / "manifest.json").read_text())
    write(run / "sft" / "manifest.json", manifest | {"data": {"sft": report}})
    return page(run)


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: ".".join(map(str, path)))
def test_every_figure_reaches_the_page(tmp_path, path):
    changed = copy.deepcopy(REPORT)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] += 1
    assert page_with(tmp_path, changed) != page_with(tmp_path, REPORT)


def test_what_stands_there(tmp_path):
    text = page_with(tmp_path, REPORT)
    for told in (
        "71,234, 33 % of them in answers",
        "in 60 % of pairs, equally long 10 %; going by length alone is right in 65 %",
        "4.75 tokens longer", "31 % with rows at random, 4.3 % with group_by_length (in use), 0 % with packing",
        "27 sequences of up to 512 tokens, 91 % filled", "terse answer", "a.jsonl row 7: control token",
        "60 to 79 tokens: 29", "near duplicates of another row", "an answer&#39;s words are above max_words",
        "email 8, id 3", "math500, mmlu", "Tokens of answers by source", "25 broken json",
    ):  # fmt: skip
        assert told in text, told
    assert text.count('class="column"') == 5 + 2, "empty bins have no column"


def test_a_report_from_before_is_shown_as_it_was(tmp_path):
    text = page_with(tmp_path, DATA)
    assert "p95 141" in text and "<svg" in text and "by length alone" not in text


def test_what_comes_from_data_is_text(tmp_path):
    cleaning = {
        "changed": {f"masked_{XSS}": 2}, "dropped": {XSS: {XSS: 3}},
        "decontamination": {"sets": {XSS: {"texts": 1}}, "not_on_this_machine": [XSS]},
    }  # fmt: skip
    hostile = {
        "families": {XSS: 3, "b": 1}, "scripts": {"rows": {XSS: 1}}, "faults": {XSS: 2},
        "prompt_tokens": {"histogram": {"width": 5, "counts": [1]}},
    }  # fmt: skip
    report = DATA | {
        "statistics": hostile,
        "cleaning": cleaning,
        "dropped_examples": [[XSS, XSS, XSS]],
        "padding": {"used": XSS},
    }
    assert XSS not in page_with(tmp_path, report) and "<script" not in page_with(tmp_path, report)


def test_going_by_length_counts_a_tie_as_one_half():
    """3 of 4 pairs decided by length, and the fourth by a coin."""
    facts = dict(figures_of({"statistics": {"longer_answer": {"chosen": 2, "rejected": 1, "equal": 1}}}).facts)
    assert facts["the longer answer is the chosen one"].endswith("right in 62 %")


@pytest.mark.parametrize("counts", [None, [], [0, 0], "many", [None]])
def test_no_histogram_of_nothing(counts):
    assert histogram("t", 5, counts) == "" and histogram("t", None, [1]) == ""
