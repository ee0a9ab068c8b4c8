"""Function calls and plain text as tokens: the assistant's call is trained, the function's result is not."""

from __future__ import annotations

import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from data_prep.chat import ChatFormatter, EncodedDemonstration, UnusableRow
from data_prep.clean import content_key, drop_duplicates
from data_prep.readers import SourceSpec, read_demonstrations, read_pairs
from data_prep.records import Demonstration, Message, Origin, PreferencePair, ToolCall
from data_prep.tool_rendering import native

ORIGIN = Origin(source="x", row=1)
OFFERED = ('{"type": "function", "function": {"name": "weather", "description": "天气"}}',)
CALL = ToolCall(name="weather", arguments='{"city": "北京"}', id="b")
OTHER = ToolCall(name="clock", arguments="{}", id="a")
ASKED = Message(role="user", content="北京的天气？", tools=OFFERED)
CALLED = Message(role="assistant", content="", tool_calls=(CALL,))
TOLD = Message(role="tool", content="下雨")
SAID = Message(role="assistant", content="北京在下雨。")
TALK = Demonstration(messages=(ASKED, CALLED, TOLD, SAID), origin=ORIGIN)
CALL_TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'

QWEN = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}"
    "{%- for tool in tools %}{{- tool | tojson + '\n' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}{%- else %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content }}{%- if m.tool_calls %}{%- for call in m.tool_calls %}"
    '{{- \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""After Qwen2.5: a call stands on a line of its own."""
MISTRAL = (
    "{%- for tool in tools or [] %}{{- '[AVAILABLE_TOOLS]' + tool | tojson }}{%- endfor %}{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{{- m.content }}{%- if m.tool_calls %}{{- '[TOOL_CALLS]' }}"
    "{%- for call in m.tool_calls %}"
    "{%- if call.id | length != 9 %}{{- raise_exception('Tool call IDs should be of length 9') }}{%- endif %}"
    "{{- {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}{%- endfor %}"
    "{%- endif %}{{- eos_token }}{%- elif m.role == 'tool' %}"
    "{{- '[TOOL_RESULTS]' + m.tool_call_id + m.content }}{%- else %}"
    "{{- '[INST] ' + m.content + ' [/INST]' }}{%- endif %}{%- endfor %}"
)
"""After Mistral's: the marker of a call is a control token in the middle of an answer."""
DEAF = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@pytest.fixture
def formatter(tiny_tokenizer: Any):
    def make(template: str | None = None) -> ChatFormatter:
        if template == MISTRAL:
            markers = ["[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]"]
            tiny_tokenizer.add_special_tokens({"additional_special_tokens": markers})
        if template:
            tiny_tokenizer.chat_template = template
        return ChatFormatter(tiny_tokenizer)

    return make


def spoken(formatter: ChatFormatter, row: EncodedDemonstration) -> list[tuple[str, bool]]:
    """The row's text in pieces, each with whether it is trained."""
    pieces = groupby(zip(row.input_ids, row.response_mask, strict=True), key=lambda each: each[1])
    return [(str(formatter.tokenizer.decode([i for i, _ in ids])), trained) for trained, ids in pieces]


def answers(formatter: ChatFormatter, record: Demonstration) -> list[str]:
    return [text for text, trained in spoken(formatter, formatter.demonstration(record, 100_000)) if trained]


def test_a_template_without_tools_gets_them_as_text(formatter: Any) -> None:
    chat = formatter(DEAF)
    pieces = spoken(chat, chat.demonstration(TALK, 4096))
    assert [trained for _, trained in pieces] == [False, True, False, True]
    assert pieces[0][0].startswith("<|im_start|>system\nYou may call one or more functions")
    assert OFFERED[0] in pieces[0][0]
    assert pieces[0][0].endswith("<|im_start|>user\n北京的天气？<|im_end|>\n<|im_start|>assistant\n")
    assert pieces[1][0] == f"{CALL_TEXT}<|im_end|>"
    expected = "\n<|im_start|>user\n<tool_response>\n下雨\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert pieces[2][0] == expected
    assert pieces[3][0] == "北京在下雨。<|im_end|>"


def test_the_systems_own_text_comes_before_the_functions(formatter: Any) -> None:
    chat = formatter(DEAF)
    system = Message(role="system", content="Be brief.", tools=OFFERED)
    record = Demonstration(messages=(system, Message(role="user", content="a"), SAID), origin=ORIGIN)
    text = spoken(chat, chat.demonstration(record, 4096))[0][0]
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou may call") and text.count("<|im_start|>system") == 1


@pytest.mark.parametrize("template", [QWEN, MISTRAL])
def test_a_template_that_knows_tools_is_given_them(formatter: Any, template: str) -> None:
    chat = formatter(template)
    pieces = spoken(chat, chat.demonstration(TALK, 4096))
    assert [trained for _, trained in pieces] == [False, True, False, True]
    assert "weather" in pieces[0][0] and "You may call" not in pieces[0][0]
    assert '"city"' in pieces[1][0] and "北京" in pieces[1][0], "the whole call is trained"
    assert pieces[1][0].endswith("<|im_end|>" if template == QWEN else chat.tokenizer.eos_token)
    assert "下雨" in pieces[2][0] and "下雨" not in pieces[1][0], "the result is not"
    assert pieces[3][0].startswith("北京在下雨。")


def test_without_the_rule_for_markers_a_call_would_be_cut(formatter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: taking the first control token behind words for the end loses the call of this turn."""
    told = Message(role="assistant", content="I look.", tool_calls=(CALL,))
    record = Demonstration(messages=(ASKED, told, TOLD, SAID), origin=ORIGIN)
    chat = formatter(MISTRAL)
    assert '"city"' in answers(chat, record)[0]
    split = ChatFormatter._split_response
    monkeypatch.setattr(ChatFormatter, "_split_response", lambda self, text, calls: split(self, text, False))
    assert answers(chat, record)[0] == "I look.[TOOL_CALLS]"


def test_a_conversation_without_functions_is_rendered_as_ever(formatter: Any) -> None:
    """A tool's turn that follows no call goes to the template as it is."""
    chat = formatter(DEAF)
    talk = (Message(role="user", content="a"), Message(role="assistant", content="b"), TOLD, SAID)
    text = "".join(
        text for text, _ in spoken(chat, chat.demonstration(Demonstration(messages=talk, origin=ORIGIN), 999))
    )
    assert "<|im_start|>tool\n下雨<|im_end|>" in text and "tool_response" not in text


def test_several_results_are_one_turn_of_the_user(formatter: Any) -> None:
    both = Message(role="assistant", content="I look.", tool_calls=(CALL, OTHER))
    talk = (ASKED, both, TOLD, Message(role="tool", content="noon"), SAID)
    record = Demonstration(messages=talk, origin=ORIGIN)
    pieces = spoken(formatter(DEAF), formatter(DEAF).demonstration(record, 4096))
    assert pieces[1][0].startswith(f"I look.\n{CALL_TEXT}\n<tool_call>\n" + '{"name": "clock", "arguments": {}}')
    assert pieces[2][0].count("<|im_start|>user") == 1
    assert "下雨\n</tool_response>\n<tool_response>\nnoon" in pieces[2][0]


def test_results_find_their_calls_by_id_or_else_in_order() -> None:
    calls = Message(role="assistant", content="", tool_calls=(CALL, OTHER))
    turned = (Message(role="tool", content="noon", call_id="a"), Message(role="tool", content="下雨", call_id="b"))
    turns = native((ASKED, calls, *turned, SAID, ASKED, CALLED, TOLD)).turns
    ids = [call["id"] for turn in turns for call in turn.get("tool_calls", [])]
    assert len(set(ids)) == 3 and all(len(name) == 9 and name.isalnum() for name in ids)
    assert [(t["tool_call_id"], t["name"]) for t in turns if t["role"] == "tool"] == [
        (ids[1], "clock"), (ids[0], "weather"), (ids[2], "weather"),
    ]  # fmt: skip


def test_a_pairs_call_is_its_answer(formatter: Any) -> None:
    chat = formatter(DEAF)
    record = PreferencePair(prompt=(ASKED,), chosen="", chosen_calls=(CALL,), rejected="不知道", origin=ORIGIN)
    pair = chat.pair(record, 4096)
    assert chat.tokenizer.decode(pair.chosen_ids) == f"{CALL_TEXT}<|im_end|>"
    assert chat.tokenizer.decode(pair.rejected_ids) == "不知道<|im_end|>"
    assert pair.prompt_ids == chat.prompt_ids((ASKED,))


def test_control_tokens_in_a_call_or_a_description_are_refused(formatter: Any) -> None:
    chat = formatter(DEAF)
    forged = ToolCall(name="f", arguments=json.dumps({"a": "<|im_end|>"}))
    for messages in (
        (ASKED, Message(role="assistant", content="", tool_calls=(forged,))),
        (Message(role="user", content="a", tools=('{"name": "<|im_start|>"}',)), SAID),
    ):
        with pytest.raises(UnusableRow, match="control_token"):
            chat.demonstration(Demonstration(messages=messages, origin=ORIGIN), 4096)


def test_rows_that_differ_in_calls_or_functions_are_no_duplicates() -> None:
    other = Demonstration(messages=(ASKED, Message(role="assistant", content="", tool_calls=(OTHER,))), origin=ORIGIN)
    one = Demonstration(messages=(ASKED, CALLED), origin=ORIGIN)
    bare = Demonstration(messages=(Message(role="user", content=ASKED.content), CALLED), origin=ORIGIN)
    assert len({content_key(record) for record in (one, other, bare)}) == 3
    assert len(drop_duplicates([one, other, bare, one]).records) == 3


# Plain text


def test_plain_text_is_trained_whole_without_a_template(formatter: Any) -> None:
    chat = formatter()
    text = "从前有座山，山里有座庙。" * 5
    record = Demonstration(messages=(Message(role="assistant", content=text),), origin=ORIGIN)
    [row] = chat.demonstrations(record, 4096)
    assert chat.tokenizer.decode(row.input_ids) == text + chat.tokenizer.eos_token
    assert row.response_mask == [False] + [True] * (len(row.input_ids) - 1)


def test_long_text_goes_on_in_the_next_piece(formatter: Any) -> None:
    chat = formatter()
    text = "".join(chr(97 + n % 26) for n in range(100))
    record = Demonstration(messages=(Message(role="assistant", content=text),), origin=ORIGIN)
    pieces = chat.demonstrations(record, 16)
    assert [len(piece.input_ids) for piece in pieces] == [16] * 6 + [5], "100 letters and EOS"
    ids = [token for piece in pieces for token in piece.input_ids]
    assert chat.tokenizer.decode(ids) == text + chat.tokenizer.eos_token
    conversation = Demonstration(messages=(Message(role="user", content="a"), SAID), origin=ORIGIN)
    assert chat.demonstrations(conversation, 4096) == [chat.demonstration(conversation, 4096)]


# Real rows

FOLDER = Path(os.environ.get("TRIVET_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no folder {FOLDER}; set TRIVET_REAL_DATA")
@pytest.mark.parametrize("template", [DEAF, QWEN])
@pytest.mark.parametrize(
    "name", ["glaive_toolcall_en_demo.json", "glaive_toolcall_zh_demo.json", "reason_tool_use_demo_50.jsonl"]
)
def test_masks_of_published_tool_calls(formatter: Any, name: str, template: str) -> None:
    chat = formatter(template)
    records = read_demonstrations(SourceSpec(path=str(FOLDER / "llama_factory" / name))).records
    records = [record for record in records if any(message.tool_calls for message in record.messages)][:12]
    assert len(records) == 12
    for record in records:
        row = chat.demonstration(record, 100_000)
        trained = [text for text, is_trained in spoken(chat, row) if is_trained]
        said = [message for message in record.messages if message.role == "assistant"]
        assert len(trained) == len(said)
        for text, message in zip(trained, said, strict=True):
            assert text.endswith("<|im_end|>") and text.count("<|im_end|>") == 1
            assert message.content in text and text.count("<tool_call>") == len(message.tool_calls)
            assert all(f'"{call.name}"' in text for call in message.tool_calls)
        context = "".join(text for text, is_trained in spoken(chat, row) if not is_trained)
        heard = [message for message in record.messages if message.role in ("user", "tool")]
        assert all(message.content in context for message in heard)
        assert not any(message.content in text for message in heard if message.role == "tool" for text in trained)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no folder {FOLDER}; set TRIVET_REAL_DATA")
@pytest.mark.parametrize("name", ["sharegpt/sharegpt_zh_300.jsonl", "history_format/oaast_sft_zh.json"])
def test_masks_of_published_chinese_conversations(formatter: Any, name: str) -> None:
    chat = formatter(DEAF)
    records = [r for r in read_demonstrations(SourceSpec(path=str(FOLDER / name))).records if len(r.messages) > 2][:10]
    assert len(records) == 10
    for record in records:
        said = [message.content for message in record.messages if message.role == "assistant"]
        assert answers(chat, record) == [f"{text}<|im_end|>" for text in said]


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no folder {FOLDER}; set TRIVET_REAL_DATA")
def test_tokens_of_published_rankings(formatter: Any) -> None:
    chat = formatter(DEAF)
    pairs = read_pairs(SourceSpec(path=str(FOLDER / "preference" / "oaast_rm_zh.json"))).records[:10]
    for record in pairs:
        pair = chat.pair(record, 100_000)
        assert chat.tokenizer.decode(pair.chosen_ids) == f"{record.chosen}<|im_end|>"
        assert chat.tokenizer.decode(pair.rejected_ids) == f"{record.rejected}<|im_end|>"
