"""Encoded rows read back for a person: which text each token stands for, what it is, and whose turn it belongs to.

The way back from `chat`: it starts from the ids and masks that a stage trains on, and looks at a record's messages only
to say where each of them ended up. What the model learns from is never rendered a second time here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Literal

from data_prep.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["trained", "context", "special", "template"]
_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_GROUP = 12
"""Tokens that are joined at most to find whole characters; more of them are no text at all."""
_PROBE = 12
"""Characters at a message's end by which one that lost its beginning is found."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that stand for whole characters together: one of them almost always, several for many a rare one."""

    ids: tuple[int, ...]
    text: str
    kind: Kind
    """trained: part of an answer; special: a control token; template: what the chat template wrote; else context."""
    role: str | None
    """Of the turn that it belongs to; None before the first."""
    turn: int | None
    """Place of that turn among the record's messages."""


def pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mask: Sequence[bool], messages: Sequence[Message]
) -> list[Piece]:
    """What a sequence of T tokens says, in order; the ids of all pieces are the sequence's.

    Args:
        tokenizer: that encoded it.
        ids: of the sequence.
        mask: true on the answers' tokens.
        messages: the turns that it was made from; of those that were cut off nothing shows.
    """
    specials = special_ids(tokenizer)
    groups = _whole_characters(tokenizer, ids, [(bool(m), i in specials) for i, m in zip(ids, mask, strict=True)])
    texts = [(text, token_ids[0] in specials) for token_ids, text in groups]
    starts = list(accumulate((len(token_ids) for token_ids, _ in groups), initial=0))
    trained = [mask[start] for start in starts[: len(groups)]]
    places = _with_template(_answers_placed(_contents(texts, messages), trained, messages), texts)
    found = []
    for (token_ids, text), (turn, is_content), is_trained in zip(groups, places, trained, strict=True):
        kind: Kind = "context" if is_content else "template"
        if is_trained:
            kind = "trained"
        elif token_ids[0] in specials:
            kind = "special"
        role = None if turn is None else messages[turn].role
        found.append(Piece(token_ids, text, kind, role, turn))
    return found


def _answers_placed(
    places: Sequence[tuple[int | None, bool]], trained: Sequence[bool], messages: Sequence[Message]
) -> list[tuple[int | None, bool]]:
    """Give all of an answer, white space and closing token included, to the assistant's turn that it is."""
    found, answers = list(places), [turn for turn, message in enumerate(messages) if message.role == "assistant"]
    at = 0
    for is_answer, group in groupby(range(len(found)), key=lambda index: trained[index]):
        here = list(group)
        if not is_answer:
            continue
        seen = [turn for index in here if (turn := found[index][0]) in answers]
        turn = seen[0] if seen else next((turn for turn in answers if turn >= at), None)
        for index in here:
            found[index] = (turn, True)
        at = at if turn is None else turn + 1
    return found


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of control tokens, those included that a tokenizer merely marks as special."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _whole_characters(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], classes: Sequence[tuple[bool, bool]]
) -> list[tuple[tuple[int, ...], str]]:
    """Ids in the smallest groups that decode to whole characters; none spans tokens of two classes."""
    groups: list[tuple[tuple[int, ...], str]] = []
    start = 0
    while start < len(ids):
        # A decoder may treat a text's first token differently, so each group is decoded behind the one before it.
        before = list(groups[-1][0]) if groups and not classes[start][1] else []
        known = _decode(tokenizer, before)
        last = min(start + _LONGEST_GROUP, len(ids))
        end = start + 1
        text = _decode(tokenizer, [*before, *ids[start:end]])[len(known) :]
        longer, wider = end, text
        while _BROKEN in wider and longer < last and classes[longer] == classes[start]:
            longer += 1
            wider = _decode(tokenizer, [*before, *ids[start:longer]])[len(known) :]
        if _BROKEN not in wider:
            end, text = longer, wider
        groups.append((tuple(ids[start:end]), text))
        start = end
    return groups


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _contents(groups: Sequence[tuple[str, bool]], messages: Sequence[Message]) -> list[tuple[int | None, bool]]:
    """For each group the turn whose own text it is, with true; (None, False) for what the template wrote."""
    starts, text = [], ""
    for part, _ in groups:
        starts.append(len(text))
        text += part
    spans = _spans(text, messages)
    found: list[tuple[int | None, bool]] = []
    for start, (part, _) in zip(starts, groups, strict=True):
        inside = [turn for turn, (low, high) in spans.items() if start < high and low < start + max(len(part), 1)]
        found.append((inside[0], True) if inside else (None, False))
    return found


def _spans(text: str, messages: Sequence[Message]) -> dict[int, tuple[int, int]]:
    """Where each message stands in the text, from the last to the first; the earliest one may have lost its start."""
    spans: dict[int, tuple[int, int]] = {}
    end = len(text)
    for turn in reversed(range(len(messages))):
        content = messages[turn].content.strip()
        at = text.rfind(content, 0, end) if content else -1
        if at < 0:
            at, length = _found_by_its_end(text[:end], content)
        else:
            length = len(content)
        if at < 0:
            continue
        spans[turn] = (at, at + length)
        end = at
    return spans


def _found_by_its_end(text: str, content: str) -> tuple[int, int]:
    """Place and length of as much of a message as is left at the text's beginning, or (-1, 0)."""
    for size in range(min(_PROBE, len(content)), 0, -1):
        at = text.rfind(content[-size:])
        if at >= 0:
            break
    else:
        return -1, 0
    while at > 0 and size < len(content) and text[at - 1] == content[-size - 1]:
        at, size = at - 1, size + 1
    if not text[:at].strip(_BROKEN):  # the rest of a character that the cut went through
        at, size = 0, size + at
    # In a whole text a few equal letters mean nothing: only what the cut left may be shorter than the message.
    return (at, size) if at <= _PROBE or size >= _PROBE else (-1, 0)


def _with_template(
    found: list[tuple[int | None, bool]], groups: Sequence[tuple[str, bool]]
) -> list[tuple[int | None, bool]]:
    """Give what the template wrote between turns to one of them: what closes to the turn before, the rest to the next.

    What a template writes of its own accord before the first turn, such as a system prompt, belongs to none.
    """
    at = 0
    while at < len(found):
        if found[at][1]:
            at += 1
            continue
        end = next((i for i in range(at, len(found)) if found[i][1]), len(found))
        before = found[at - 1][0] if at else None
        after = found[end][0] if end < len(found) else None
        closing = _opening(groups, at, end) if before is None else _closing(groups, at, end)
        for i in range(at, end):
            found[i] = (before if i < closing else after, False)
        at = end
    return found


def _closing(groups: Sequence[tuple[str, bool]], start: int, end: int) -> int:
    """Where what closes the turn before ends: behind its control token and the white space that follows.

    That token may be the answer's own last one; else it is the first in between, unless text stands before it and none
    comes after: then it opens the next turn.
    """
    specials = [i for i in range(start, end) if groups[i][1]]
    if groups[start - 1][1]:
        closed = start
    elif specials and (specials[0] == start or len(specials) > 1):
        closed = specials[0] + 1
    else:
        return start
    return next((i for i in range(closed, end) if groups[i][0].strip()), end)


def _opening(groups: Sequence[tuple[str, bool]], start: int, end: int) -> int:
    """Where the first turn's own header begins: at the last of the first control token that occurs repeatedly."""
    controls = [text for text, is_special in groups[start:end] if is_special]
    repeated = next((text for text in controls if controls.count(text) > 1), None)
    return max((i for i in range(start, end) if groups[i][0] == repeated), default=start)
