"""Encoded rows read back: nothing is lost or moved, characters stay whole, every token has its turn."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.chat import ChatFormatter
from data_prep.pieces import pieces
from data_prep.records import Demonstration, Message, Origin, Prompt, ToolCall

ORIGIN = Origin(source="x", row=1)
SYSTEM_OF_ITS_OWN = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def talk(*texts: str, system: str = "") -> Demonstration:
    """User and assistant in turn."""
    turns = [Message(role="system", content=system)] if system else []
    turns += [Message(role=("user", "assistant")[at % 2], content=text) for at, text in enumerate(texts)]
    return Demonstration(messages=tuple(turns), origin=ORIGIN)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    """Bytes as tokens: every Chinese character takes three."""
    from pipeline.models.load import load_tokenizer

    return load_tokenizer(tiny_folder, "auto")


def read_back(tokenizer, record, limit=4096):
    row = ChatFormatter(tokenizer).demonstration(record, limit)
    return row, pieces(tokenizer, row.input_ids, row.response_mask, record.messages)


def runs(found):
    """Neighbours of one turn and kind joined: (role, kind, text)."""
    joined: list[list] = []
    for piece in found:
        if joined and joined[-1][:2] == [piece.role, piece.kind]:
            joined[-1][2] += piece.text
        else:
            joined.append([piece.role, piece.kind, piece.text])
    return [tuple(run) for run in joined]


def test_a_conversation_in_its_parts(tokenizer):
    _, found = read_back(tokenizer, talk("Hi", "Yo", "More?", "No.", system="Be brief."))
    turn = {"special", "template"}
    assert [run for run in runs(found) if run[1] not in turn] == [
        ("system", "context", "Be brief."), ("user", "context", "Hi"), ("assistant", "trained", "Yo<|im_end|>"),
        ("user", "context", "More?"), ("assistant", "trained", "No.<|im_end|>"),
    ]  # fmt: skip
    template = [(role, text) for role, kind, text in runs(found) if kind in turn]
    assert template[:4] == [
        ("system", "<|im_start|>"), ("system", "system\n"), ("system", "<|im_end|>"), ("system", "\n"),
    ]  # fmt: skip
    assert ("assistant", "assistant\n") in template and ("user", "user\n") in template


def test_what_the_template_says_of_its_own_accord_belongs_to_no_turn(tokenizer):
    tokenizer.chat_template, own = SYSTEM_OF_ITS_OWN, tokenizer.chat_template
    try:
        _, found = read_back(tokenizer, talk("Hi", "Yo"))
    finally:
        tokenizer.chat_template = own
    alone = "".join(piece.text for piece in found if piece.role is None)
    assert alone == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert "".join(p.text for p in found if p.role == "user") == "<|im_start|>user\nHi<|im_end|>\n"


def test_a_call_and_its_result_keep_their_own_frames(tokenizer):
    turns = (
        Message(role="user", content="What is it?", tools=('{"type": "function", "function": {"name": "look"}}',)),
        Message(role="assistant", content="", tool_calls=(ToolCall(name="look"),)),
        Message(role="tool", content="a cat"),
        Message(role="assistant", content="A cat."),
    )
    _, found = read_back(tokenizer, Demonstration(messages=turns, origin=ORIGIN))
    shown: list[list] = []
    for piece in found:
        if shown and shown[-1][0] == piece.turn:
            shown[-1][1] += piece.text
        else:
            shown.append([piece.turn, piece.text])
    assert [turn for turn, _ in shown] == [None, 0, 1, 2, 3]
    assert shown[1][1] == "<|im_start|>user\nWhat is it?<|im_end|>\n"
    assert shown[2][1].startswith("<|im_start|>assistant\n<tool_call>") and shown[2][1].endswith("<|im_end|>\n")
    assert shown[3][1].startswith("<|im_start|>") and shown[3][1].endswith("</tool_response><|im_end|>\n")
    assert shown[4][1].startswith("<|im_start|>assistant\nA cat.")


def test_characters_of_several_tokens_stay_whole(tokenizer):
    _, found = read_back(tokenizer, talk("春节🙂 is", "好é"))
    several = [(piece.text, len(piece.ids)) for piece in found if len(piece.ids) > 1 and piece.kind != "special"]
    assert several == [("春", 3), ("节", 3), ("🙂", 4), ("好", 3), ("é", 2)]
    assert all(piece.kind == "trained" for piece in found if piece.text in "好é")


def test_a_row_that_lost_its_beginning(tokenizer):
    """Cut through a character: what is left of it is no text, and what follows is still the first turn's."""
    record = talk("零一二三四五六七八九十百千", "Yes")
    whole, _ = read_back(tokenizer, record)
    row, found = read_back(tokenizer, record, len(whole.input_ids) - len(["<|im_start|>", *"user\n"]) - 4)
    assert row.prompt_cut and "\N{REPLACEMENT CHARACTER}" in found[0].text
    content = [(p.role, p.kind) for p in found if p.role == "user" and p.kind not in ("special", "template")]
    assert len(content) > 5 and set(content) == {("user", "context")}
    assert found[0].role == "user" and found[0].kind == "context"


def test_an_answer_that_repeats_the_prompt_is_told_from_it(tokenizer):
    _, found = read_back(tokenizer, talk("again", "again", "again", "again"))
    assert [(p.turn, p.kind) for p in found if p.text == "g"] == [
        (0, "context"), (1, "trained"), (2, "context"), (3, "trained"),
    ]  # fmt: skip


def test_a_prompt_to_be_answered_ends_in_the_template(tokenizer):
    record = Prompt(messages=talk("Hi").messages, origin=ORIGIN)
    row = ChatFormatter(tokenizer).prompt(record, 100)
    found = pieces(tokenizer, row.ids, [False] * len(row.ids), record.messages)
    assert "".join(p.text for p in found if p.role is None) == "<|im_start|>assistant\n"
    assert not any(p.kind == "trained" for p in found)


TEXTS = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "<|" not in text)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=2, max_size=6),
    limit=st.integers(40, 400),
)  # fmt: skip
def test_nothing_is_lost_or_moved(tokenizer, texts, limit):
    from data_prep.chat import UnusableRow

    record = talk(*texts[: len(texts) // 2 * 2])
    try:
        row, found = read_back(tokenizer, record, limit)
    except UnusableRow:
        return
    assert [i for piece in found for i in piece.ids] == row.input_ids
    trained = [piece.kind == "trained" for piece in found for _ in piece.ids]
    assert trained == row.response_mask
    assert all(piece.role == "assistant" for piece in found if piece.kind == "trained")
