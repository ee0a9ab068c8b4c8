"""Raw rows -> records: every format, what is dropped and counted, and when a bad row stops the reading."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.readers import FORMATS, ReadResult, SourceSpec, read_demonstrations, read_pairs, read_prompts
from data_prep.readers.containers import RawRow
from data_prep.readers.make import SPLITS
from data_prep.readers.recognise import resolve_format
from data_prep.records import Demonstration, Message, PreferencePair, Prompt
from pipeline.errors import DataError, RecipeError
from pipeline.recipe.schema import DataFormat

S = Message(role="system", content="Be brief.")
U = Message(role="user", content="Hi?")
A = Message(role="assistant", content="Hello.")
U2 = Message(role="user", content="And?")
A2 = Message(role="assistant", content="Nothing.")
TOOL = Message(role="tool", content="4")
WORSE = "Go away."


@pytest.fixture
def write(tmp_path: Path):
    def writer(rows: list[dict[str, Any]], format: str = "auto") -> SourceSpec:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceSpec(path=str(path), format=format)

    return writer


def openai(*messages: Message) -> list[dict[str, Any]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def sharegpt(*messages: Message) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(m.role, m.role), "value": m.content} for m in messages]


def parts(message: Message, key: str) -> dict[str, Any]:
    half = len(message.content) // 2
    texts = (message.content[:half], message.content[half:])
    return {"role": message.role, "content": [{"type": "text", key: text} for text in texts]}


DEMONSTRATIONS: list[tuple[str, dict[str, Any], tuple[Message, ...]]] = [
    ("alpaca", {"instruction": "Hi?", "input": "", "output": "Hello."}, (U, A)),
    ("alpaca", {"instruction": "Hi?", "output": "Hello."}, (U, A)),
    ("alpaca", {"instruction": "Hi?", "input": None, "output": "Hello.", "system": "Be brief."}, (S, U, A)),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        (Message(role="user", content="Add.\n\n1 2"), Message(role="assistant", content="3")),
    ),
    ("alpaca", {"instruction": "And?", "output": "Nothing.", "history": [["Hi?", "Hello."]]}, (U, A, U2, A2)),
    ("messages", {"messages": openai(S, U, A)}, (S, U, A)),
    ("messages", {"messages": openai(U, A, U2, A2)}, (U, A, U2, A2)),
    ("messages", {"messages": [parts(U, "text"), parts(A, "value")]}, (U, A)),
    ("messages", {"messages": [{"role": "system", "content": " "}, *openai(U, A)]}, (U, A)),
    ("messages", {"messages": [{"role": "developer", "content": "Be brief."}, *openai(U, A)]}, (S, U, A)),
    ("messages", {"messages": openai(U, A, TOOL, A2)}, (U, A, TOOL, A2)),
    ("sharegpt", {"conversations": sharegpt(U, A), "system": "Be brief."}, (S, U, A)),
    ("sharegpt", {"id": "x", "conversations": sharegpt(S, U, A, U2, A2)}, (S, U, A, U2, A2)),
    ("sharegpt", {"conversations": [{"from": "user", "value": "Hi?"}, {"from": "chatgpt", "value": "Hello."}]}, (U, A)),
    ("prompt_completion", {"prompt": "Hi?", "completion": "Hello."}, (U, A)),
    ("prompt_completion", {"prompt": "Hi?", "response": "Hello.", "system": "Be brief."}, (S, U, A)),
    ("prompt_completion", {"prompt": openai(S, U), "completion": openai(A)}, (S, U, A)),
    ("prompt_completion", {"prompt": openai(U), "completion": openai(A, U2, A2)}, (U, A, U2, A2)),
    ("preference", {"prompt": "Hi?", "chosen": "Hello.", "rejected": WORSE}, (U, A)),
]


@pytest.mark.parametrize(("name", "row", "messages"), DEMONSTRATIONS)
def test_demonstrations_of_every_format(write, name: str, row: dict[str, Any], messages: tuple[Message, ...]) -> None:
    result = read_demonstrations(write([row]))
    assert result.format == name
    assert [record.messages for record in result.records] == [messages]
    named = read_demonstrations(write([row], name))
    assert named.records == result.records and named.why != result.why


def hh(*messages: Message) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[m.role]}: {m.content}" for m in messages)


BAD_A = Message(role="assistant", content=WORSE)
PAIRS: list[tuple[str, dict[str, Any], tuple[Message, ...]]] = [
    ("preference", {"prompt": "Hi?", "chosen": "Hello.", "rejected": WORSE}, (U,)),
    ("preference", {"system": "Be brief.", "prompt": "Hi?", "chosen": "Hello.", "rejected": WORSE}, (S, U)),
    ("preference", {"prompt": openai(S, U), "chosen": "Hello.", "rejected": WORSE}, (S, U)),
    ("preference", {"prompt": openai(U), "chosen": openai(A), "rejected": openai(BAD_A)}, (U,)),
    # ultrafeedback_binarized: the prompt as a string and again inside both conversations
    ("preference", {"prompt": "Hi?", "chosen": openai(U, A), "rejected": openai(U, BAD_A)}, (U,)),
    ("preference", {"prompt": "Hi?", "chosen": openai(S, U, A), "rejected": openai(S, U, BAD_A)}, (S, U)),
    ("preference", {"prompt": openai(S, U), "chosen": openai(U, A), "rejected": openai(U, BAD_A)}, (S, U)),
    ("preference", {"chosen": openai(U, A), "rejected": openai(U, BAD_A)}, (U,)),
    ("preference", {"chosen_messages": openai(U, A), "rejected_messages": openai(U, BAD_A)}, (U,)),
    # LLaMA-Factory
    (
        "preference",
        {"conversations": sharegpt(U), "chosen": sharegpt(A)[0], "rejected": sharegpt(BAD_A)[0]},
        (U,),
    ),
    ("preference", {"instruction": "Hi?", "input": "", "output": "x", "chosen": "Hello.", "rejected": WORSE}, (U,)),
    # a continuation of several turns after the prompt
    (
        "preference",
        {"prompt": "And?", "chosen": openai(A2, U, A), "rejected": openai(A2, U, BAD_A)},
        (U2, A2, U),
    ),
    ("hh", {"chosen": hh(U, A), "rejected": hh(U, BAD_A)}, (U,)),
    ("hh", {"chosen": hh(U2, A2, U, A), "rejected": hh(U2, A2, U, BAD_A)}, (U2, A2, U)),
]


@pytest.mark.parametrize(("name", "row", "prompt"), PAIRS)
def test_pairs_of_every_spelling(write, name: str, row: dict[str, Any], prompt: tuple[Message, ...]) -> None:
    result = read_pairs(write([row]))
    assert result.format == name
    [pair] = result.records
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "Hello.", WORSE)


@pytest.mark.parametrize(("name", "row", "prompt"), PAIRS)
def test_a_preference_source_serves_for_demonstrations_and_prompts(write, name, row, prompt) -> None:
    spec = write([row], name)
    assert read_demonstrations(spec).records[0].messages == (*prompt, A)
    [record] = read_prompts(spec).records
    assert (record.messages, record.reference) == (prompt, "Hello.")


@pytest.mark.parametrize(
    ("row", "prompt", "reference"),
    [
        ({"instruction": "Hi?", "input": "", "output": "Hello."}, (U,), "Hello."),
        ({"instruction": "Hi?", "input": "", "output": ""}, (U,), None),
        ({"instruction": "Hi?"}, (U,), None),
        ({"prompt": "Hi?"}, (U,), None),
        ({"prompt": "Hi?", "completion": "Bye.", "reference": "Hello."}, (U,), "Hello."),
        ({"messages": openai(S, U)}, (S, U), None),
        ({"messages": openai(U, A, U2, A2)}, (U, A, U2), "Nothing."),
        ({"conversations": sharegpt(U, A, U2)}, (U, A, U2), None),
    ],
)
def test_any_source_serves_for_prompts(write, row: dict[str, Any], prompt: tuple, reference: str | None) -> None:
    [record] = read_prompts(write([row])).records
    assert (record.messages, record.reference) == (prompt, reference)


def test_what_a_row_says_about_itself_is_kept(write) -> None:
    said = {"family": "sums", "split": "test", "check": {"kind": "equals", "value": "3", "absent": None}}
    row = {"instruction": "1+2?", "output": "3", **said}
    spec = write([row, {**row, "split": "train", "family": None, "check": json.dumps({"kind": "x"})}])
    first, second = read_prompts(spec).records
    assert (first.origin.split, first.origin.family, first.origin.row) == ("eval", "sums", 1)
    assert first.origin.source == spec.path
    assert first.check == {"kind": "equals", "value": "3"}
    assert (second.origin.split, second.origin.family, second.check) == ("train", None, {"kind": "x"})
    assert read_demonstrations(spec).records[0].origin == first.origin


def test_a_split_of_an_unknown_name_is_not_guessed(write) -> None:
    with pytest.raises(DataError, match=r"`split` is 'gpt4', expected one of train"):
        read_demonstrations(write([{"instruction": "a", "output": "b", "split": "gpt4"}]))
    assert set(SPLITS.values()) == {"train", "eval"}


@pytest.mark.parametrize(
    ("fields", "margin"),
    [
        ({}, None),
        ({"margin": 1.5}, 1.5),
        ({"margin": "2"}, 2.0),
        ({"margin": ""}, None),
        ({"score_chosen": 8, "score_rejected": 3.5}, 4.5),
        ({"score_chosen": 8, "score_rejected": None}, None),
    ],
)
def test_margin_and_fault(write, fields: dict[str, Any], margin: float | None) -> None:
    row = {"prompt": "Hi?", "chosen": "a", "rejected": "b", "fault": "wrong sum", **fields}
    [pair] = read_pairs(write([row])).records
    assert (pair.margin, pair.fault) == (margin, "wrong sum")


# Recognition


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a", "output": "b", "messages": openai(U, A)}, "fit alpaca or messages; say which"),
        ({"question": "a", "answer": "b"}, "the fields question, answer, which fit no known format.*alpaca .*hh "),
        ({"chosen": "a", "rejected": "b"}, "and there is no prompt"),
        ({"messages": openai(U, A), "prompt": "Hi?", "completion": "Hello."}, "fit messages or prompt_completion; say"),
        ({"turns": ["a", "b"]}, "look like questions, which has no answers to imitate; formats with answers: alpaca"),
    ],
)
def test_recognition_refuses_to_guess(write, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_demonstrations(write([row]))


def test_ultrafeedback_is_pairs_to_who_wants_pairs(write) -> None:
    row = {"prompt": "Hi?", "messages": openai(U, A), "chosen": openai(U, A), "rejected": openai(U, BAD_A)}
    assert read_pairs(write([row])).format == "preference"
    with pytest.raises(DataError, match="fit messages or preference"):
        read_demonstrations(write([row]))
    assert read_demonstrations(write([row], "messages")).records[0].messages == (U, A)


def test_recognition_says_why(write) -> None:
    result = read_demonstrations(write([{"instruction": "a", "output": "b"}]))
    assert result.why == "the first row has the fields instruction, output"


@pytest.mark.parametrize("format", ["auto", "alpaca"])
def test_pairs_cannot_come_from_a_format_without_pairs(write, format: str) -> None:
    with pytest.raises(DataError, match=r"has no pairs; formats with pairs: preference .*; hh "):
        read_pairs(write([{"instruction": "a", "output": "b"}], format))


def test_an_unknown_format_names_its_neighbour(write) -> None:
    with pytest.raises(RecipeError, match="'alpca', did you mean 'alpaca'"):
        read_demonstrations(write([{"instruction": "a", "output": "b"}], "alpca"))


def test_formats_have_the_names_that_recipes_use() -> None:
    assert {"auto", *FORMATS} == set(get_args(DataFormat))
    for name, form in FORMATS.items():
        assert resolve_format(name, RawRow("x", 1, {}), form.serves[0]).format.name == name


# Bad rows

GOOD_ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Hi?", "input": "", "output": "Hello."},
    "messages": {"messages": openai(U, A)},
    "preference": {"prompt": "Hi?", "chosen": "Hello.", "rejected": WORSE},
    "hh": {"chosen": hh(U, A), "rejected": hh(U, BAD_A)},
}
EMPTY_A = Message(role="assistant", content=" \n")
EMPTY_U = Message(role="user", content="")
IMAGE = {"role": "user", "content": [{"type": "image", "image": "x.png"}, {"type": "text", "text": "What is it?"}]}
FAULTS: list[tuple[str, str, dict[str, Any], str]] = [
    ("structural", "missing_field", {"instruction": "Hi?"}, "no field with an answer (found: instruction)"),
    ("structural", "missing_field", {"output": "Hello."}, "no field `instruction` (found: output)"),
    ("structural", "wrong_type", {"instruction": "Hi?", "output": ["a", "b"]}, "`output` is a list"),
    ("structural", "wrong_type", {"instruction": 7, "output": "b"}, "`instruction` is a number, expected a string"),
    ("structural", "wrong_type", {"instruction": "a", "output": "b", "history": ["c"]}, "`history[0]`"),
    ("structural", "missing_field", {"messages": [{"role": "user"}]}, "`messages[0]` has no `content`"),
    ("structural", "wrong_type", {"messages": "Hi?"}, "`messages` is a string"),
    ("structural", "wrong_type", {"messages": ["Hi?"]}, "`messages[0]` is a string"),
    ("structural", "unknown_role", {"messages": [{"role": "narrator", "content": "x"}]}, "role 'narrator'"),
    ("structural", "roles_out_of_order", {"messages": openai(A, U, A2)}, "turn 1 is of assistant at the start"),
    ("structural", "roles_out_of_order", {"messages": openai(A)}, "turn 1 is of assistant"),
    ("structural", "roles_out_of_order", {"messages": openai(U, U2, A)}, "turn 2 is of user after a turn of user"),
    ("structural", "roles_out_of_order", {"messages": openai(U, A, A2)}, "turn 3 is of assistant after"),
    ("structural", "roles_out_of_order", {"messages": openai(U, S, A)}, "turn 2 is of system"),
    ("structural", "no_final_answer", {"messages": openai(U, A, U2)}, "does not end with a turn of the assistant"),
    ("structural", "missing_field", {"prompt": "Hi?", "chosen": "Hello."}, "no field `rejected`"),
    (
        "structural",
        "no_final_answer",
        {"prompt": "Hi?", "chosen": openai(U, A, U2), "rejected": openai(U, A, U2)},
        "`chosen` does not end",
    ),
    ("structural", "wrong_type", {"prompt": "Hi?", "chosen": 1, "rejected": 2}, "`chosen` is a number"),
    ("structural", "wrong_type", {"prompt": "Hi?", "chosen": "a", "rejected": "b", "margin": "much"}, "`margin` is"),
    ("structural", "wrong_type", {"chosen": "once upon a time", "rejected": hh(U, A)}, "is not a dialogue"),
    ("structural", "roles_out_of_order", {"chosen": hh(U, U2, A), "rejected": hh(U, U2, A2)}, "turn 2"),
    ("content", "empty_answer", {"instruction": "Hi?", "output": "  "}, ""),
    ("content", "empty_answer", {"instruction": "Hi?", "output": None}, ""),
    ("content", "empty_prompt", {"instruction": "", "input": " ", "output": "Hello."}, ""),
    ("content", "invalid_text", {"instruction": "Hi?", "output": "\ud83d"}, ""),
    ("content", "empty_prompt", {"messages": []}, ""),
    ("content", "empty_prompt", {"messages": openai(U, A, EMPTY_U, A2)}, ""),
    ("content", "empty_answer", {"messages": openai(U, EMPTY_A)}, ""),
    ("content", "empty_answer", {"messages": openai(U, EMPTY_A, U2, A2)}, ""),
    ("content", "non_text_content", {"messages": [IMAGE, *openai(A)]}, ""),
    ("content", "non_text_content", {"messages": openai(U, A), "images": ["cat.png"]}, "its `images` holds"),
    ("content", "non_text_content", {"instruction": "Hi?", "output": "a cat", "image": "cat.png"}, ""),
    ("content", "bad_tool_call", {"messages": [*openai(U), {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, ""),
    ("content", "bad_tool_call", {"messages": [*openai(U), {"role": "function_call", "content": "f(1)"}]}, ""),
    ("content", "bad_tools", {"messages": openai(U, A), "tools": "search"}, ""),
    ("content", "identical_pair", {"prompt": "Hi?", "chosen": "a  b\n", "rejected": "a b"}, ""),
    ("content", "empty_answer", {"prompt": "Hi?", "chosen": "a", "rejected": ""}, ""),
    ("content", "prompts_differ", {"prompt": "Hi?", "chosen": openai(U2, A), "rejected": openai(U2, A2)}, ""),
    ("content", "empty_prompt", {"prompt": "", "chosen": "a", "rejected": "b"}, ""),
    ("content", "prompts_differ", {"prompt": "Hi?", "chosen": openai(U, A, U2, A2), "rejected": openai(U, A)}, ""),
    ("content", "prompts_differ", {"chosen": hh(U, A), "rejected": hh(U2, A2)}, ""),
    ("content", "prompts_differ", {"chosen": hh(U, A), "rejected": hh(U, A, A2)}, ""),
    ("content", "prompts_differ", {"chosen": hh(U, A, U2, A2), "rejected": hh(U, A)}, ""),
]


def _format_of(row: dict[str, Any]) -> str:
    if "messages" in row:
        return "messages"
    if "chosen" in row:
        return "preference" if "prompt" in row else "hh"
    return "alpaca"


def _read(spec: SourceSpec) -> ReadResult[Any]:
    return read_pairs(spec) if spec.format in ("preference", "hh") else read_demonstrations(spec)


def test_a_column_of_pictures_that_is_empty_takes_no_row(write) -> None:
    rows = [{**GOOD_ROWS["messages"], "images": empty} for empty in ([], None)]
    assert len(_read(write(rows, "messages")).records) == 2


@pytest.mark.parametrize(("kind", "reason", "row", "detail"), FAULTS)
def test_a_rare_bad_row_is_dropped_and_counted(write, kind, reason, row, detail) -> None:
    form = _format_of(row)
    good = [GOOD_ROWS[form]]
    result = _read(write([*good * 60, row, *good * 39], form))
    assert result.dropped == {reason: 1}
    assert result.examples == [(61, reason)]
    assert (result.rows_read, len(result.records)) == (100, 99)


@pytest.mark.parametrize(("kind", "reason", "row", "detail"), FAULTS)
def test_two_bad_rows_in_a_hundred_stop_only_where_the_format_is_in_doubt(write, kind, reason, row, detail) -> None:
    form = _format_of(row)
    spec = write([*[GOOD_ROWS[form]] * 98, row, row], form)
    if kind == "content":
        assert _read(spec).dropped == {reason: 2}
        return
    with pytest.raises(DataError) as caught:
        _read(spec)
    message = str(caught.value)
    assert f"{spec.path}: row 99 (the first of 2 such rows in 100)" in message
    assert detail in message and f"expected format {form} (" in message


@pytest.mark.parametrize(("kind", "reason", "row", "detail"), FAULTS)
def test_a_first_row_of_another_format_stops_at_once(write, kind, reason, row, detail) -> None:
    form = _format_of(row)
    spec = write([row, *[GOOD_ROWS[form]] * 500], form)
    if kind == "content":
        assert len(_read(spec).records) == 500
        return
    with pytest.raises(DataError, match=r"row 1 \(the very first row\)"):
        _read(spec)


@pytest.mark.parametrize(("identical", "stops"), [(20, False), (21, True)])
def test_too_many_identical_pairs_stop(write, identical: int, stops: bool) -> None:
    same = {"prompt": "Hi?", "chosen": "a", "rejected": " a"}
    empty = {"prompt": "Hi?", "chosen": "", "rejected": "a"}
    spec = write([GOOD_ROWS["preference"]] * (100 - identical) + [same] * identical + [empty] * 50)
    if not stops:
        assert read_pairs(spec).dropped == {"identical_pair": 20, "empty_answer": 50}
        return
    with pytest.raises(DataError, match="in 21 of 100 pairs chosen equals rejected; at most 20%"):
        read_pairs(spec)


def test_nothing_left_names_the_reason_that_removed_most(write) -> None:
    rows = [{"instruction": "a", "output": ""}] * 3 + [{"instruction": "", "output": "b"}] * 2
    with pytest.raises(DataError, match=r"none of 5 rows is left.*empty_answer \(empty_answer 3, empty_prompt 2\)"):
        read_demonstrations(write(rows))


def test_at_most_three_examples_are_kept(write) -> None:
    rows = [GOOD_ROWS["alpaca"], *[{"instruction": "a", "output": ""}] * 5]
    assert [row for row, _ in read_demonstrations(write(rows)).examples] == [2, 3, 4]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["", "x", None, "y"]), min_size=1, max_size=30), st.data())
def test_every_row_is_accounted_for(tmp_path_factory, outputs: list[str | None], data: st.DataObject) -> None:
    rows = [{"prompt": data.draw(st.sampled_from(["", "q"])), "chosen": out, "rejected": "x"} for out in outputs]
    rows += [GOOD_ROWS["preference"]] * len(rows) * 5  # so that reading does not stop
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(rows))
    spec = SourceSpec(path=str(path))
    for read, kind in ((read_demonstrations, Demonstration), (read_pairs, PreferencePair), (read_prompts, Prompt)):
        result = read(spec)
        assert result.rows_read == len(rows) == len(result.records) + sum(result.dropped.values())
        assert all(isinstance(record, kind) for record in result.records)


def test_csv_rows_become_records_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('instruction,input,output,history,check\nHi?,,"Hello.",,"{""kind"": ""x""}"\nAnd?,,,,\n')
    result = read_demonstrations(SourceSpec(path=str(path)))
    assert [record.messages for record in result.records] == [(U, A)]
    assert (result.dropped, result.records[0].origin.row) == ({"empty_answer": 1}, 2)
    assert read_prompts(SourceSpec(path=str(path))).records[0].check == {"kind": "x"}


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("sharegpt", {"conversations": [{"from": "human", "value": "Hi?"}]}), ("alpaca", {"instruction": "Hi?"})],
)
def test_other_trainers_pairs_go_by_the_name_of_their_prompts(write, name, prompt) -> None:
    row = {**prompt, "chosen": {"from": "gpt", "value": "Yo."}, "rejected": {"from": "gpt", "value": "No."}}
    if name == "alpaca":
        row |= {"input": "", "chosen": "Yo.", "rejected": "No."}
    named, found = read_pairs(write([row], name)), read_pairs(write([row]))
    assert named.records == found.records and named.format == "preference" and name in named.why
    assert (named.records[0].chosen, named.records[0].rejected) == ("Yo.", "No.")
    assert read_demonstrations(write([row], name)).records[0].messages[-1].content == "Yo."
    del row["rejected"]
    with pytest.raises(DataError, match="has no pairs"):
        read_pairs(write([row], name))
