"""Win rates by a reward model: every prompt counts alike, ties one half, and each part adds up to the whole."""

from __future__ import annotations

import pytest

from evaluation.score_wins import score_wins

TOKENS = {"sft": [3, 3, 3, 3], "ppo": [5, 3, 2, 9]}


def test_by_hand():
    """One large gain and two small losses: the mean rises, the win rate says that most answers are worse."""
    scores = {"sft": [0.0, 0.5, 0.5, 1.0], "ppo": [9.0, 0.4, 0.5, 0.9]}
    found = score_wins(scores, TOKENS, ["a", "b", "a", None], "sft")
    assert list(found) == ["ppo"]
    assert found["ppo"]["win_rate"] == pytest.approx((1 + 0 + 0.5 + 0) / 4) and found["ppo"]["ties"] == 1
    parts = found["ppo"]["by_family"]
    assert {name: (part["win_rate"], part["n"]) for name, part in parts.items()} == {
        "a": (0.75, 2), "b": (0.0, 1), "none named": (0.0, 1),
    }  # fmt: skip
    lengths = found["ppo"]["by_length"]
    assert {name: (part["win_rate"], part["n"]) for name, part in lengths.items()} == {
        "longer": (0.5, 2), "equal": (0.0, 1), "shorter": (0.5, 1),
    }  # fmt: skip


def test_a_policy_that_is_its_reference_only_ties():
    found = score_wins({"sft": [1.0, 2.0], "ppo": [1.0, 2.0]}, {"sft": [1, 2], "ppo": [1, 2]}, ["a", "a"], "sft")
    assert (found["ppo"]["win_rate"], found["ppo"]["ties"]) == (0.5, 2)
    low, high = found["ppo"]["ci95"]
    assert 0 < low < 0.5 < high < 1, "two ties do not prove that all are"


def test_turning_the_sides_turns_the_rate():
    scores = {"sft": [0.1, 0.7, 0.3, 0.3], "ppo": [0.2, 0.6, 0.9, 0.3]}
    one = score_wins(scores, TOKENS, ["a"] * 4, "sft")["ppo"]
    other = score_wins(scores, TOKENS, ["a"] * 4, "ppo")["sft"]
    assert one["win_rate"] + other["win_rate"] == pytest.approx(1.0)
    assert one["by_length"]["longer"]["win_rate"] + other["by_length"]["shorter"]["win_rate"] == pytest.approx(1.0)
