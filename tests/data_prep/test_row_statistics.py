"""Figures of rows, each by hand."""

from __future__ import annotations

import pytest

from data_prep.chat import EncodedDemonstration, EncodedPair, EncodedPrompt
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt
from data_prep.row_statistics import (
    demonstration_statistics,
    pair_statistics,
    prompt_statistics,
    scripts,
    spread,
)

USER = (Message(role="user", content="why"),)


def demonstration(prompt: int, answer: int, text: str = "so", family: str | None = None, source: str = "a"):
    record = Demonstration(
        messages=(*USER, Message(role="assistant", content=text)), origin=Origin(source=source, row=1, family=family)
    )
    return record, EncodedDemonstration([1] * (prompt + answer), [False] * prompt + [True] * answer, False)


def pair(prompt: int, chosen: int, rejected: int, fault: str | None = None, margin: float | None = None):
    record = PreferencePair(
        prompt=USER, chosen="да", rejected="no", origin=Origin(source="a", row=1), fault=fault, margin=margin
    )
    return record, EncodedPair([1] * prompt, [2] * chosen, [3] * rejected, False)


def test_demonstrations():
    records, rows = zip(demonstration(10, 5, family="x"), demonstration(20, 1, family="x"), strict=True)
    found = demonstration_statistics(records, rows)
    assert found["tokens"] == {"all": 36, "answers": 6, "answers_share": round(6 / 36, 4)}
    assert found["prompt_tokens"]["mean"] == 15 and found["response_tokens"]["max"] == 5
    assert found["families"] == {"x": 2} and found["sources"] == {"a": 2}
    assert found["answers_per_row"] == {"1": 2}
    assert found["scripts"]["rows"] == {"Latin": 2}


def test_what_each_source_comes_to_in_tokens():
    """Rows and tokens tell different stories: half of the rows, a tenth of what is trained."""
    made = [demonstration(10, 9), demonstration(3, 1, source="b"), demonstration(2, 9), demonstration(1, 1, source="b")]
    records, rows = zip(*made, strict=True)
    found = demonstration_statistics(records, rows)
    assert found["sources"] == {"a": 2, "b": 2}
    assert found["source_tokens"] == {"a": {"all": 30, "answers": 18}, "b": {"all": 6, "answers": 2}}


def test_pairs():
    """Both sides carry the prompt; the longer answer wins once of three."""
    records, rows = zip(pair(10, 4, 2, "terse", 1.0), pair(5, 1, 3), pair(5, 2, 2, "terse", 0.5), strict=True)
    found = pair_statistics(records, rows)
    assert found["tokens"]["all"] == (2 * 10 + 6) + (2 * 5 + 4) + (2 * 5 + 4)
    assert found["tokens"]["answers"] == 14
    assert found["source_tokens"] == {"a": {"all": 54, "answers": 14}}
    assert found["longer_answer"] == {"chosen": 1, "rejected": 1, "equal": 1, "mean_difference": 0.0}
    assert found["faults"] == {"terse": 2} and found["margins"] == {"rows": 2, "mean": 0.75}
    swapped = [EncodedPair(row.prompt_ids, row.rejected_ids, row.chosen_ids, False) for row in rows[:1]]
    assert pair_statistics(records[:1], swapped)["longer_answer"]["rejected"] == 1


def test_prompts():
    records = [
        Prompt(messages=USER, origin=Origin(source="a", row=n), check={"exact": "b"} if n else None) for n in range(3)
    ]
    found = prompt_statistics(records, [EncodedPrompt([1] * 7, False) for _ in records])
    assert found["with_rule"] == 2 and found["tokens"] == {"all": 21, "answers": 0, "answers_share": 0.0}
    assert found["source_tokens"] == {"a": {"all": 21, "answers": 0}}
    assert prompt_statistics([], [])["prompt_tokens"] == {}


@pytest.mark.parametrize("lengths", [[0], [1], [3, 9, 9, 40], [*range(500)], [7] * 30 + [2**20]])
def test_a_histogram_holds_every_length_in_its_bin(lengths):
    found = spread(lengths)["histogram"]
    width, counts = found["width"], found["counts"]
    assert sum(counts) == len(lengths) and 1 <= len(counts) <= 25 and counts[-1] > 0
    for number, rows in enumerate(counts):
        assert rows == sum(number * width <= length < (number + 1) * width for length in lengths)
    assert str(width)[0] in "125" and set(str(width)[1:]) <= {"0"}


def test_quantiles():
    found = spread(list(range(101)))
    assert (found["p5"], found["p50"], found["p95"], found["max"], found["mean"]) == (5, 50, 95, 100, 50.0)


def test_scripts():
    """By letters alone: digits, signs and emoji belong to none; a row is mixed from a tenth on."""
    found = scripts(["Hello there", "今天天气很好", "今天 is ok!!", "123 🙂", "Привет", "aaaaaaaaaaaaaaaaaaaaa今"])
    assert found["rows"] == {"Latin": 3, "Han": 1, "none": 1, "Cyrillic": 1}
    assert found["mixed_rows"] == 1
    assert sum(found["letters"].values()) == pytest.approx(1, abs=1e-3)
    assert scripts([]) == {"rows": {}, "letters": {}, "mixed_rows": 0}
