"""Cleaning of rows that call functions, and of plain text: what is asked of words is not asked of a call."""

from __future__ import annotations

import json
from functools import partial

import pytest

from data_prep.cleaning import Cleaner
from data_prep.cleaning.personal import masked, personal_data
from data_prep.cleaning.rules import first_finding
from data_prep.cleaning.texts import rewritten
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Record, ToolCall
from data_prep.split import Split
from pipeline.recipe.cleaning_settings import CleanSettings, PairCleanSettings

ORIGIN = Origin(source="a", row=1)
USER = Message(role="user", content="Weather in Oslo?")


def calling(arguments: str = '{"city": "Oslo"}', text: str = "") -> Message:
    return Message(role="assistant", content=text, tool_calls=(ToolCall(name="weather", arguments=arguments),))


def talk(*turns: Message) -> Demonstration:
    return Demonstration(messages=(USER, *turns), origin=ORIGIN)


RESULT = Message(role="tool", content="rain")
SAID = Message(role="assistant", content="It rains in Oslo today.")


def pair(chosen: Message, rejected: Message, row: int = 1) -> PreferencePair:
    return PreferencePair(
        prompt=(USER,), chosen=chosen.content, rejected=rejected.content, origin=Origin(source="a", row=row),
        chosen_calls=chosen.tool_calls, rejected_calls=rejected.tool_calls,
    )  # fmt: skip


@pytest.mark.parametrize(
    "record", [talk(calling(), RESULT, SAID), talk(calling()), pair(calling(), SAID)], ids=["talk", "call", "pair"]
)
def test_a_call_without_words_is_no_empty_answer(record: Record) -> None:
    settings = CleanSettings(
        empty_answers="drop", min_characters=5, min_words=2, placeholders="drop", languages=("en",)
    )
    assert first_finding(record, settings) is None
    bare = talk(Message(role="assistant", content=""))
    found = first_finding(bare, settings)
    assert found is not None and found.rule == "empty_answers"


def test_arguments_are_searched_and_masked_and_stay_json() -> None:
    arguments = json.dumps({"to": "ada@lovelace.net", "card": 4111111111111111, "cc": ["x"], "n": 3})
    record = talk(calling(arguments), RESULT, SAID)
    found = first_finding(record, CleanSettings(personal_data="drop"))
    assert found is not None and found.rule == "personal_data"
    changed = rewritten(record, lambda text: masked(text, personal_data)[0])
    [call] = changed.messages[1].tool_calls
    assert json.loads(call.arguments) == {"to": "<EMAIL>", "card": "<CARD>", "cc": ["x"], "n": 3}
    plain = talk(calling('{"city":  "Oslo", "days": 1.50}'), RESULT, SAID)
    assert rewritten(plain, lambda text: masked(text, personal_data)[0]) is plain, "spelled as it was"


def test_answers_that_differ_in_a_call_only_do_not_contradict() -> None:
    settings = PairCleanSettings(label_conflicts="drop", near_equal_pairs=0.9)
    clean = partial(kept, settings)
    oslo, bergen = calling('{"city": "Oslo, by the fjord"}'), calling('{"units": "metric, please", "when": "now"}')
    assert len(clean(pair(oslo, SAID), pair(bergen, SAID, 2), pair(SAID, calling('{"at": "noon"}'), 3))) == 3
    assert clean(pair(oslo, SAID), pair(SAID, oslo, 2)) == []
    assert len(clean(pair(oslo, bergen))) == 1 and clean(pair(oslo, oslo)) == []


def test_near_duplicates_are_told_by_their_calls_too() -> None:
    clean = partial(kept, CleanSettings(near_duplicates={}))
    one = talk(calling('{"city": "Oslo", "detail": "a forecast of rain by the hour"}'))
    other = talk(calling('{"place": "Lima", "unit": "the wind in knots, and the gusts"}'))
    assert len(clean(one, other)) == 2
    assert len(clean(one, talk(calling('{"city": "Oslo", "detail": "a forecast of rain by the hours"}')))) == 1


def test_texts_are_not_near_duplicates_for_having_no_prompt() -> None:
    def text(content: str, row: int) -> Demonstration:
        return Demonstration(messages=(Message(role="assistant", content=content),), origin=Origin(source="a", row=row))

    held = text("The sea is salty because rivers carry minerals into it.", 1)
    other = text("Bread rises in the oven since yeast makes gas.", 2)
    near = text("The sea is salty because the rivers carry minerals into it.", 3)
    for of in ("rows", "prompts"):
        cleaner = Cleaner(CleanSettings(near_duplicates={"of": of}))
        assert cleaner.among([other, near], [held]) == [other]


def kept(settings: CleanSettings, *records: Record) -> list[Record]:
    cleaner = Cleaner(settings)
    train = cleaner.rows(Split(train=list(records))).train  # type: ignore[type-var]
    return cleaner.among(train, [])  # type: ignore[type-var]
