"""Formats that compare answers or label them, plain text, tool calls of every spelling: what a row becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers import SourceSpec, read_demonstrations, read_pairs, read_prompts
from data_prep.records import Message, ToolCall
from pipeline.errors import DataError

U = Message(role="user", content="Hi?")


@pytest.fixture
def write(tmp_path: Path):
    def writer(*rows: dict[str, Any], format: str = "auto") -> SourceSpec:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceSpec(path=str(path), format=format)

    return writer


def completion(text: str, **scores: Any) -> dict[str, Any]:
    return {"model": "m", "response": text, **scores}


def ratings(*values: str) -> dict[str, Any]:
    return {f"aspect{at}": {"Rating": value, "Rationale": "r"} for at, value in enumerate(values)}


POST = {"id": "t3", "post": "It rained.", "title": "Rain", "subreddit": "weather", "article": None}
TLDR = "SUBREDDIT: r/weather\n\nTITLE: Rain\n\nPOST: It rained.\n\nTL;DR:"
COMPARED: list[tuple[str, dict[str, Any], str, list[tuple[str, str, float | None, float | None]]]] = [
    ("ranked", {"instruction": "Hi?", "output": ["a", "b"]}, "Hi?", [("a", "b", None, None)]),
    (
        "ranked",
        {"prompt": "Hi?", "responses": ["a", "b", "c"]},
        "Hi?",
        [("a", "b", None, None), ("a", "c", None, None), ("b", "c", None, None)],
    ),
    (
        "ranked",
        {"prompt": "Hi?", "answers": [{"answer": text, "rank": rank} for text, rank in (("a", 2), ("b", 1), ("c", 2))]},
        "Hi?",
        [("b", "a", None, None), ("b", "c", None, None)],
    ),
    (
        "ultrafeedback",
        {"instruction": "Hi?", "completions": [completion("a", overall_score=3), completion("b", overall_score=7.5)]},
        "Hi?",
        [("b", "a", 4.5, None)],
    ),
    (
        "ultrafeedback",  # the ratings go before the overall score, which has a known error
        {
            "instruction": "Hi?",
            "completions": [
                completion("a", overall_score=10, annotations=ratings("1", "2", "N/A")),
                completion("b", overall_score=4, annotations=ratings("4", "5", "3")),
            ],
        },
        "Hi?",
        [("b", "a", 2.5, None)],
    ),
    (
        "votes",
        {"instruction": "Hi?", "response1": "a", "response2": "b", "annotator1": 1},
        "Hi?",
        [("a", "b", 1.0, 0.0)],
    ),
    (
        "votes",  # two of three, and one tie: 1 - (2 + 0.5) / 3
        {
            "instruction": "Hi?",
            "input": "",
            "response1": "a",
            "response2": "b",
            "annotator1": 2,
            "annotator2": 2,
            "annotator3": 0,
        },
        "Hi?",
        [("b", "a", 2 / 3, 1 / 6)],
    ),
    (
        "votes",
        {"instruction": "Hi?", "response1": True, "response2": "b", "annotator1": 1, "annotator2": 1, "annotator3": 2},
        "Hi?",
        [("True", "b", 1 / 3, 1 / 3)],
    ),
    (
        "tldr",
        {"info": POST, "summaries": [{"text": " Wet."}, {"text": " Dry."}], "choice": 1},
        TLDR,
        [("Dry.", "Wet.", None, None)],
    ),
    (
        "tldr",
        {"info": {"article": "It rained.", "post": None}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0},
        "Article:\nIt rained.\n\nTL;DR:",
        [("a", "b", None, None)],
    ),
    (
        "alpaca_eval",
        {"instruction": "Hi?", "output_1": "a", "output_2": "b", "preference": 2.0},
        "Hi?",
        [("b", "a", None, None)],
    ),
    ("alpaca_eval", {"input": "Hi?", "output_1": "a", "output_2": "b", "label": 1}, "Hi?", [("a", "b", None, None)]),
    (
        "alpaca_eval",  # 0.8 sure of the second
        {"instruction": "Hi?", "output_1": "a", "output_2": "b", "preference": 1.8},
        "Hi?",
        [("b", "a", 0.6, 0.2)],
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt", "pairs"), COMPARED)
def test_comparisons_become_pairs(write, name, row, prompt, pairs) -> None:
    result = read_pairs(write(row))
    assert (result.format, result.rows_read, result.rows_kept) == (name, 1, 1)
    found = [(pair.chosen, pair.rejected, pair.margin, pair.label_noise) for pair in result.records]
    assert [row[:2] for row in found] == [row[:2] for row in pairs]
    for row, expected in zip(found, pairs, strict=True):
        assert row[2:] == pytest.approx(expected[2:])
    assert {pair.prompt for pair in result.records} == {(Message(role="user", content=prompt),)}


@pytest.mark.parametrize(("name", "row", "prompt", "pairs"), COMPARED)
def test_the_best_answer_is_the_one_to_imitate(write, name, row, prompt, pairs) -> None:
    [record] = read_demonstrations(write(row)).records
    assert record.messages[-1].content == pairs[0][0]
    [asked] = read_prompts(write(row)).records
    assert (asked.messages[0].content, asked.reference) == (prompt, pairs[0][0])


def test_pairs_of_one_prompt_are_one_group(write) -> None:
    rows = [{"prompt": "Hi?", "responses": ["a", "b", "c"]}, {"prompt": "And?", "responses": ["a", "b"]}]
    pairs = read_pairs(write(*rows)).records
    groups = [pair.group for pair in pairs]
    assert len(pairs) == 4 and len(set(groups[:3])) == 1 and groups[0] and groups[3] is None


TIES = [
    {"instruction": "Hi?", "output_1": "a", "output_2": "b", "preference": 1.5},
    {"instruction": "Hi?", "output_1": "a", "output_2": "b", "preference": 0},
    {"instruction": "Hi?", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2},
    {"instruction": "Hi?", "completions": [completion("a", score=1), completion("b", score=1)]},
]


@pytest.mark.parametrize("tie", TIES)
def test_a_tie_is_no_pair_and_still_a_prompt(write, tie) -> None:
    good = {**tie, "preference": 1, "annotator2": 1} if "completions" not in tie else COMPARED[3][1]
    good = {key: value for key, value in good.items() if key in tie}
    assert read_pairs(write(good, tie, good)).dropped == {"tie": 1}
    assert len(read_prompts(write(good, tie, good)).records) == 3


@pytest.mark.parametrize(
    ("row", "format", "said"),
    [
        (
            {"instruction": "a", "output_1": "a", "output_2": "b", "preference": 3},
            "auto",
            "`preference` is 3, expected 1, 2",
        ),
        ({"instruction": "a", "response1": "a", "response2": "b", "annotator1": 7}, "auto", "votes are annotator1 7"),
        ({"info": POST, "summaries": [{"text": "a"}], "choice": 0}, "auto", "expected a list of two summaries"),
        (
            {"info": POST, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2},
            "auto",
            "`choice` is 2, expected 0 or 1",
        ),
        ({"instruction": "a", "output": "b"}, "ranked", "`output` is a string, expected a list of answers"),
        (
            {"instruction": "a", "completions": [completion("a"), completion("b")]},
            "auto",
            "`completions[0]` has no score",
        ),
        ({"prompt": "a", "completion": "b", "label": 1}, "kto", "`label` is 1, expected true or false"),
    ],
)
def test_a_comparison_that_is_none_is_a_sentence(write, row, format, said) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(write(row, format=format))
    assert said in str(caught.value)


# Labels


def labelled(prompt: str, answer: str, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "label": label}


LABELLED = [
    labelled("1", "good", True), labelled("2", "good", True), labelled("1", "bad", False), labelled("3", "bad", False),
    labelled("1", "worse", "false"),
]  # fmt: skip


def test_labelled_answers_serve_as_demonstrations_where_they_are_good(write) -> None:
    result = read_demonstrations(write(*LABELLED))
    assert (result.format, result.dropped) == ("kto", {"labelled_bad": 3})
    assert [record.messages[-1].content for record in result.records] == ["good", "good"]


def test_labelled_answers_make_pairs_where_a_prompt_has_both(write) -> None:
    result = read_pairs(write(*LABELLED))
    assert [(pair.chosen, pair.rejected, pair.origin.row) for pair in result.records] == [
        ("good", "bad", 1),
        ("good", "worse", 1),
    ]
    assert (result.rows_read, result.rows_kept, result.dropped) == (5, 3, {"no_counterpart": 2})
    assert len({pair.group for pair in result.records}) == 1 and result.records[0].group


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yo."}], "label": True},
        {"instruction": "Hi?", "output": "Yo.", "label": True},
        {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yo."}], "label": True},
    ],
)
def test_a_label_stands_beside_an_answer_of_any_format(write, row) -> None:
    assert read_demonstrations(write(row)).records[0].messages == (U, Message(role="assistant", content="Yo."))
    result = read_pairs(write(row, json.loads(json.dumps(row).replace("Yo.", "No.")) | {"label": False}))
    assert [(pair.chosen, pair.rejected) for pair in result.records] == [("Yo.", "No.")]


# Other formats of one answer


def test_every_instance_of_an_instruction_is_a_demonstration(write) -> None:
    row = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "1 2", "output": "3"}]}
    result = read_demonstrations(write(row))
    assert (result.format, result.rows_kept) == ("self_instruct", 1)
    asked = [(record.messages[0].content, record.messages[1].content) for record in result.records]
    assert asked == [("Add.\n\n1 1", "2"), ("Add.\n\n1 2", "3")]


def test_plain_text_is_one_turn_and_no_prompt(write, tmp_path) -> None:
    result = read_demonstrations(write({"text": "Once.", "url": "u"}))
    assert result.format == "text" and result.records[0].is_text
    (tmp_path / "a.txt").write_text("Once.\n\nTwice.\r\n")
    lines = read_demonstrations(SourceSpec(path=str(tmp_path / "a.txt"))).records
    assert [record.messages[0].content for record in lines] == ["Once.", "Twice."]
    with pytest.raises(DataError, match="look like text, which has no prompts"):
        read_prompts(write({"text": "Once."}))


def test_text_beside_other_fields_is_passed_over(write) -> None:
    """As in Alpaca on the hub, whose rows carry the whole prompt once more."""
    row = {"instruction": "Hi?", "input": "", "output": "Yo.", "text": "Below is an instruction ..."}
    assert read_demonstrations(write(row)).format == "alpaca"


def test_a_folder_of_data_is_read_without_its_readme(tmp_path) -> None:
    (tmp_path / "README.txt").write_text("About these data.\n")
    (tmp_path / "a.jsonl").write_text('{"instruction": "Hi?", "output": "Yo."}\n')
    assert len(read_demonstrations(SourceSpec(path=str(tmp_path))).records) == 1
    (tmp_path / "a.jsonl").unlink()
    assert read_demonstrations(SourceSpec(path=str(tmp_path))).format == "text"


# Tool calls

WEATHER = {
    "name": "weather",
    "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
OFFERED = (json.dumps({"type": "function", "function": WEATHER}),)
CALL = ToolCall(name="weather", arguments='{"city": "Köln"}')
ASKED = Message(role="user", content="Weather in Köln?", tools=OFFERED)
TOLD = Message(role="tool", content="rain")
SAID = Message(role="assistant", content="It rains.")
EXPECTED = (ASKED, Message(role="assistant", content="", tool_calls=(CALL,)), TOLD, SAID)
AS_JSON = '{"name": "weather", "arguments": {"city": "Köln"}}'


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": said} for who, said in turns]


def chat(*calls: Any, **turn: Any) -> list[dict[str, Any]]:
    called = {"role": "assistant", "content": None, "tool_calls": [*calls], **turn}
    told = {"role": "tool", "content": "rain"}
    return [{"role": "user", "content": ASKED.content}, called, told, {"role": "assistant", "content": SAID.content}]


TOOLS: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "conversations": sharegpt(
            ("human", ASKED.content), ("function_call", AS_JSON), ("observation", "rain"), ("gpt", SAID.content)
        ),
        "tools": json.dumps([WEATHER]),
    },
    "openai": {
        "messages": chat({"type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}),
        "tools": [{"type": "function", "function": WEATHER}],
    },
    "arguments as an object": {
        "messages": chat({"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}),
        "tools": [WEATHER],
    },
    "the older API": {
        "messages": [
            {**turn, "role": "function", "name": "weather"} if turn["role"] == "tool" else turn
            for turn in chat(tool_calls=None, function_call={"name": "weather", "arguments": '{"city": "Köln"}'})
        ],
        "functions": [WEATHER],
    },
    "parts": {
        "messages": chat(tool_calls=None, content=[{"type": "tool_call", "value": AS_JSON}]),
        "tools": json.dumps([WEATHER]),
    },
    "glaive": {
        "system": "SYSTEM: You are helpful with access to the following functions. Use them if required -\n"
        + json.dumps(WEATHER, indent=4),
        "chat": "USER: Weather in Köln?\n\n\nASSISTANT: <functioncall> "
        '{"name": "weather", "arguments": \'{"city": "Köln"}\'} <|endoftext|>\n\n\n'
        "FUNCTION RESPONSE: rain\n\n\nASSISTANT: It rains. <|endoftext|>\n\n\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("spelling", TOOLS)
def test_calls_of_every_spelling_are_one_and_the_same(write, spelling) -> None:
    [record] = read_demonstrations(write(TOOLS[spelling])).records
    messages = record.messages
    if spelling == "glaive":
        assert messages[0] == Message(role="system", content="You are helpful.", tools=OFFERED)
        messages = (ASKED, *messages[2:])
    assert messages == EXPECTED


def test_calls_in_turns_of_their_own_are_one_turn_of_the_assistant(write) -> None:
    other = '[{"name": "weather", "arguments": {"city": "Bonn"}}, {"name": "time", "arguments": {}}]'
    turns = sharegpt(
        ("human", "a"), ("gpt", "I look."), ("function_call", AS_JSON), ("function_call", other),
        ("observation", "1"), ("observation", "2"), ("observation", "3"), ("gpt", "b"),
    )  # fmt: skip
    [record] = read_demonstrations(write({"conversations": turns})).records
    assert [message.role for message in record.messages] == ["user", "assistant", "tool", "tool", "tool", "assistant"]
    called = record.messages[1]
    assert (called.content, [call.name for call in called.tool_calls]) == ("I look.", ["weather", "weather", "time"])


def test_two_plain_answers_in_a_row_stay_a_fault(write) -> None:
    with pytest.raises(DataError, match="turn 3 is of assistant after a turn of assistant"):
        read_demonstrations(write({"conversations": sharegpt(("human", "a"), ("gpt", "b"), ("gpt", "c"))}))


def test_a_call_may_have_the_last_word_and_be_preferred(write) -> None:
    row = {"conversations": sharegpt(("human", "a"), ("function_call", AS_JSON))}
    assert read_demonstrations(write(row)).records[0].messages[-1].tool_calls == (CALL,)
    pair = {"conversations": sharegpt(("human", "a")), "chosen": sharegpt(("function_call", AS_JSON))[0],
            "rejected": sharegpt(("gpt", "I do not know."))[0], "tools": [WEATHER]}  # fmt: skip
    [record] = read_pairs(write(pair)).records
    assert (record.chosen, record.chosen_calls, record.rejected) == ("", (CALL,), "I do not know.")
    assert record.prompt[0].tools == OFFERED


def test_reasoning_is_written_as_its_models_write_it(write) -> None:
    parts = [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "Yes."}]
    for answer in ({"content": parts}, {"content": "Yes.", "reasoning_content": "Hm."}):
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", **answer}]}
        assert read_demonstrations(write(row)).records[0].messages[1].content == "<think>\nHm.\n</think>\n\nYes."


def test_images_are_refused_with_their_reason(write) -> None:
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, chat()[3]]}
    with pytest.raises(DataError, match="most were dropped as non_text_content"):
        read_demonstrations(write(row))
