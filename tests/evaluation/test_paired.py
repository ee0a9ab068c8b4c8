"""What two policies of a run are held against each other in, by hand on a few rows."""

from __future__ import annotations

import math

import pytest

from data_prep.records import Message, Origin, Prompt
from evaluation.measures import Answered
from evaluation.paired import by_family, comparisons

PAIRS = [("sft", "dpo")]
CHECKS = ({"refuses": False}, {"refuses": False}, {"refuses": True}, {"equals": "4"})
PROMPTS = [
    Prompt(
        messages=(Message(role="user", content="x"),),
        check=check,
        origin=Origin(source="x", row=at + 1, family="ab"[at // 2]),
    )
    for at, check in enumerate(CHECKS)
]
NO = "I'm sorry, but I can't help with that."
ANSWERS = {
    "sft": [Answered("Yes.", True, 2, True), Answered("Yes.", True, 4, True), Answered(NO, True, 8, True),
            Answered("4", True, 1, True)],
    "dpo": [Answered(NO, False, 8, True), Answered("Yes.", True, 2, True), Answered("Sure", False, 2, False),
            Answered("5", False, 1, True)],
}  # fmt: skip
SAMPLED = [
    {"policy": "sft", "ids": [1, 2, 3, 4, 5], "tokens": 5, "logp": -10.0, "score": 1.0},
    {"policy": "dpo", "ids": [1, 1, 1, 1, 1, 1], "tokens": 6, "logp": -3.0, "score": 4.0},
    {"policy": "sft", "ids": [1], "tokens": 1, "logp": -2.0, "score": 2.0},
    {"policy": "dpo", "ids": [1, 2], "tokens": 2, "logp": -1.0, "score": 1.0},
]
TEXTS = [
    {"policy": "sft", "logp": -4.0, "tokens": 2}, {"policy": "dpo", "logp": -6.0, "tokens": 2},
    {"policy": "sft", "logp": -6.0, "tokens": 8}, {"policy": "dpo", "logp": -9.0, "tokens": 8},
]  # fmt: skip


def found():
    return {row["metric"]: row for row in comparisons(PAIRS, PROMPTS, ANSWERS, SAMPLED, TEXTS, {})}


@pytest.mark.parametrize(
    ("metric", "difference", "n"),
    [
        ("rule_accuracy", -0.75, 4),
        ("response_tokens", (13 - 15) / 4, 4),
        ("eos_rate", -0.25, 4),
        ("refusal_rate", 0.0, 4),
        ("refuses_harmless", 0.5, 2),
        ("refuses_harmful", -1.0, 1),
        ("score", 1.0, 2),
        ("repetition", (2 / 3 - 0) / 2, 2),
        ("entropy", 4 / 8 - 12 / 6, 2),
        ("perplexity", math.exp(15 / 10) - math.exp(10 / 10), 2),
    ],
)
def test_every_figure_by_hand(metric, difference, n):
    row = found()[metric]
    assert row["difference"] == pytest.approx(difference) and row["n"] == n
    assert (row["from"], row["to"]) == ("sft", "dpo") and row["ci95"][0] <= row["difference"] <= row["ci95"][1]


def test_what_was_not_measured_is_not_compared():
    assert set(found()) == {
        "rule_accuracy", "response_tokens", "eos_rate", "refusal_rate", "refuses_harmless", "refuses_harmful", "score",
        "repetition", "entropy", "perplexity",
    }  # fmt: skip
    bare = [{name: value for name, value in line.items() if name != "logp"} for line in SAMPLED]
    assert {row["metric"] for row in comparisons(PAIRS, PROMPTS, {}, bare, [], {})} == {"score", "repetition"}
    assert comparisons(PAIRS, [], {}, [], [], {}) == by_family(PAIRS, PROMPTS, {}) == []


def test_families_are_compared_by_the_same_answers():
    rows = by_family(PAIRS, PROMPTS, ANSWERS)
    assert [(row["family"], row["difference"], row["n"]) for row in rows] == [("a", -0.5, 2), ("b", -1.0, 2)]
