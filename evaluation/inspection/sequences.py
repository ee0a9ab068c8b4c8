"""Rows of a stage read back token by token: one sequence each, or the two sides of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.chat import ChatFormatter, EncodedDemonstration, EncodedPair
from data_prep.pieces import Piece, pieces
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt
from evaluation.inspection.stage_rows import StageRows

_UNLIMITED = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSequence:
    """One sequence of T tokens as the trainer gets it."""

    name: str
    """conversation; chosen or rejected, behind the prompt that they share; prompt."""
    ids: tuple[int, ...]
    response_mask: tuple[bool, ...]
    """True on the answers' tokens."""
    pieces: tuple[Piece, ...]

    @property
    def trained(self) -> int:
        """Tokens of answers."""
        return sum(self.response_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row."""

    number: int
    """1-based, in the order in which the trainer is given the rows."""
    origin: Origin
    sequences: tuple[ShownSequence, ...]
    cut: int
    """Tokens that its beginning lost to fit."""
    notes: tuple[tuple[str, str], ...]
    """What the row says of itself: family, fault, margin, label noise, the functions that it calls."""


def shown_rows(found: StageRows, formatter: ChatFormatter, first: int, count: int) -> list[ShownRow]:
    """Rows `first` to `first + count - 1`, as far as there are any."""
    places = range(first - 1, min(first - 1 + count, len(found.rows)))
    return [_shown(found.records[at], found.rows[at], formatter, at + 1) for at in places]


def _shown(record: Any, row: Any, formatter: ChatFormatter, number: int) -> ShownRow:
    cut = _lost(record, row, formatter) if row.prompt_cut else 0
    origin: Origin = record.origin
    notes = [("family", origin.family), ("fault", getattr(record, "fault", None))]
    margin = getattr(record, "margin", None)
    notes.append(("margin", None if margin is None else f"{margin:g}"))
    noise = getattr(record, "label_noise", None)
    notes.append(("label noise", None if noise is None else f"{noise:g}"))
    notes.append(("functions called", _called(record)))
    return ShownRow(
        number=number,
        origin=origin,
        sequences=tuple(_sequences(record, row, formatter)),
        cut=cut,
        notes=tuple((name, value) for name, value in notes if value),
    )


def _called(record: Any) -> str:
    """Names of the functions that a row calls, those of a pair's answers included."""
    turns = record.prompt if isinstance(record, PreferencePair) else record.messages
    answers = (record.chosen_turn, record.rejected_turn) if isinstance(record, PreferencePair) else ()
    return ", ".join(dict.fromkeys(call.name for turn in (*turns, *answers) for call in turn.tool_calls))


def _sequences(record: Any, row: Any, formatter: ChatFormatter) -> list[ShownSequence]:
    if isinstance(row, EncodedDemonstration):
        return [_sequence("conversation", formatter, row.input_ids, row.response_mask, record.messages)]
    if isinstance(row, EncodedPair):
        sides = (("chosen", record.chosen_turn), ("rejected", record.rejected_turn))
        return [
            _sequence(name, formatter, ids, mask, [*record.prompt, turn])
            for (name, turn), (ids, mask) in zip(sides, row.answers(), strict=True)
        ]
    return [_sequence("prompt", formatter, row.ids, [False] * len(row.ids), record.messages)]


def _sequence(
    name: str, formatter: ChatFormatter, ids: Sequence[int], mask: Sequence[bool], messages: Sequence[Message]
) -> ShownSequence:
    return ShownSequence(
        name=name,
        ids=tuple(ids),
        response_mask=tuple(mask),
        pieces=tuple(pieces(formatter.tokenizer, ids, mask, messages)),
    )


def _lost(record: Any, row: Any, formatter: ChatFormatter) -> int:
    """How many tokens the row would have more, had it had room."""
    if isinstance(record, Demonstration):
        return len(formatter.demonstration(record, _UNLIMITED).input_ids) - len(row.input_ids)
    if isinstance(record, PreferencePair):
        return len(formatter.pair(record, _UNLIMITED).prompt_ids) - len(row.prompt_ids)
    assert isinstance(record, Prompt)
    return len(formatter.prompt(record, _UNLIMITED).ids) - len(row.ids)
