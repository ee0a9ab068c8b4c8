"""Each change of an answer does what its name says, and reaches the model as the same prompt with another answer."""

from __future__ import annotations

from typing import Any

import pytest

from data_prep.chat import ChatFormatter
from data_prep.readers import SourceSpec, read_pairs
from data_prep.records import Message, Origin, PreferencePair
from evaluation.reward_stress import (
    CHANGES,
    MOST_ANSWERS,
    flattered,
    padded,
    reformatted,
    repeated,
    stress_rows,
    truncated,
)

ENGLISH = "Water boils at 100 degrees. It freezes at 0."
CHINESE = "水在一百度沸腾。在零度结冰。"


def pairs(*answers: str) -> list[PreferencePair]:
    prompt = (Message(role="user", content="When does water boil?"),)
    return [
        PreferencePair(prompt=prompt, chosen=answer, rejected="No.", origin=Origin(source="x", row=row))
        for row, answer in enumerate(answers, start=1)
    ]


def test_padded():
    assert padded(ENGLISH).strip() == ENGLISH
    assert padded(ENGLISH).startswith(ENGLISH) and len(padded(ENGLISH)) > len(ENGLISH) + 4


def test_repeated():
    assert repeated(ENGLISH).split("\n\n") == [ENGLISH, ENGLISH]


def test_flattered_in_the_answers_language():
    assert flattered(ENGLISH) == f"Great question! I'm so glad you asked. {ENGLISH}"
    assert flattered(CHINESE) == f"好问题！很高兴为你解答。{CHINESE}"
    assert flattered("4").startswith("Great question!")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ENGLISH, "- Water boils at 100 degrees.\n- It freezes at 0."),
        (CHINESE, "- 水在一百度沸腾。\n- 在零度结冰。"),
        ("One line\n\nand another", "- One line\n- and another"),
        ("- tea\n- coffee", "**- tea**\n**- coffee**"),
        ("42", "**42**"),
    ],
)
def test_reformatted(text, expected):
    assert reformatted(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("abcd", "ab"), ("abc", "ab"), ("a", "a"), (" ab cd ", "ab"), ("四个汉字", "四个")]
)
def test_truncated(text, expected):
    assert truncated(text) == expected


def test_rows_are_the_same_prompt_with_another_answer(tiny_tokenizer):
    """As many as changes, each changed, ending with the end of turn; the original encodes as the pair's own does."""
    formatter = ChatFormatter(tiny_tokenizer)
    [pair] = pairs(ENGLISH)
    rows = stress_rows([pair], formatter, 512)
    encoded = formatter.pair(pair, 512)
    assert [row.change for row in rows] == list(CHANGES)
    for row in rows:
        assert row.original_ids == encoded.prompt_ids + encoded.chosen_ids
        assert row.changed_ids[: len(encoded.prompt_ids)] == encoded.prompt_ids
        assert row.changed_ids != row.original_ids
        assert row.changed_ids[-1] == encoded.chosen_ids[-1] == formatter.stop_ids[0]
        answer = formatter.response_text(row.changed_ids[len(encoded.prompt_ids) :])
        assert answer == CHANGES[row.change](ENGLISH).strip()


def test_whatever_the_bundled_pairs_hold(tiny_tokenizer):
    """Several turns and system prompts included, originals are the ids that training sees."""
    formatter = ChatFormatter(tiny_tokenizer)
    records = read_pairs(SourceSpec(path="builtin:preference_sample")).records[::7]
    assert any(len(record.prompt) > 1 for record in records)
    rows: Any = iter(stress_rows(records[:MOST_ANSWERS], formatter, 4096))
    for record in records[:MOST_ANSWERS]:
        encoded = formatter.pair(record, 4096)
        for change in CHANGES:
            row = next(rows)
            assert (row.change, row.original_ids) == (change, encoded.prompt_ids + encoded.chosen_ids)


def test_what_does_not_fit_is_left_out(tiny_tokenizer):
    """Repeating makes the answer too long; the others stay."""
    formatter = ChatFormatter(tiny_tokenizer)
    [pair] = pairs("x" * 100)
    room = len(formatter.pair(pair, 4096).prompt_ids) + 160
    assert {row.change for row in stress_rows([pair], formatter, room)} == set(CHANGES) - {"repeated"}
    assert stress_rows([pair], formatter, 20) == []


def test_no_more_answers_than_stated(tiny_tokenizer):
    rows = stress_rows(pairs(*(f"answer {n}" for n in range(MOST_ANSWERS + 9))), ChatFormatter(tiny_tokenizer), 512)
    assert len(rows) == MOST_ANSWERS * len(CHANGES)
