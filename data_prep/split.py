"""Which records train and which are held out, decided by the prompt alone.

After `readers`, before `clean`. The place of a prompt is a hash, so that it needs no list of held-out rows, survives
reordering and growth of the data, and is the same in every stage: a prompt that the reward model is evaluated on is
never one that SFT or PPO trained on, even where the data sets hold out different fractions.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import takewhile
from typing import Generic, TypeVar

from data_prep.records import Demonstration, Message, PreferencePair, Prompt, Record

R = TypeVar("R", Demonstration, PreferencePair, Prompt)


@dataclass(frozen=True, kw_only=True)
class Split(Generic[R]):
    """The records of one data set, each in exactly one of four lists."""

    train: list[R] = field(default_factory=list)
    eval: list[R] = field(default_factory=list)
    held_elsewhere: list[R] = field(default_factory=list)
    """In no use here, because another data set of the recipe may hold their prompts out."""
    forbidden: list[R] = field(default_factory=list)
    """Would train, had their prompts not been evaluated on somewhere in the recipe."""


def prompt_hash(messages: Sequence[Message]) -> str:
    """SHA-256 (hex) of what opens a conversation: all turns before the first answer, with their roles.

    For one turn that is the whole prompt; for several it is the first question, so that two continuations of a
    conversation have one hash. Plain text, which has no prompt, goes by the whole of it. Letter case, white space and
    Unicode composition make no difference, nor do the functions on offer.
    """
    opening = list(takewhile(lambda message: message.role != "assistant", messages)) or list(messages)
    if not opening:
        raise ValueError("a conversation needs a turn")
    text = json.dumps([[message.role, _normalise(message.content)] for message in opening], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_position(messages: Sequence[Message]) -> float:
    """Where the prompt lies in [0, 1), uniformly over prompts."""
    return position_of(prompt_hash(messages))


def position_of(digest: str) -> float:
    """The position that belongs to a prompt's hash: its first 52 bits, which a float holds exactly."""
    return int(digest[:13], 16) / 16**13


def part_position(digest: str) -> float:
    """Where a prompt lies in [0, 1) for the division among stages, independent of `position_of`."""
    return int(digest[13:26], 16) / 16**13


@dataclass(frozen=True, slots=True)
class Share:
    """The part of all prompts that a stage may train on: those whose `part_position` is in [low, high)."""

    low: float
    high: float

    def holds(self, digest: str) -> bool:
        """Whether the prompt of this hash belongs to the part."""
        return self.low <= part_position(digest) < self.high


def shares_of(parts: Mapping[str, float]) -> dict[str, Share]:
    """The division that a recipe's `data.split` asks for, in the order of its entries; parts never overlap.

    Args:
        parts: name of a part -> its fraction of the prompts; together at most 1.
    """
    # Exact, so that the last of 0.2, 0.4 and 0.4 ends at 1 and not a hair below it.
    low, found = Fraction(0), {}
    for name, part in parts.items():
        high = low + Fraction(str(part))
        found[name] = Share(float(low), float(high))
        low = high
    return found


def prompt_messages(record: Record) -> tuple[Message, ...]:
    """The turns that `prompt_hash` looks at, for any kind of record."""
    return record.prompt if isinstance(record, PreferencePair) else record.messages


def eval_hashes(records: Iterable[Record], eval_fraction: float) -> frozenset[str]:
    """Hashes of the prompts that a data set evaluates on; their union over a recipe is forbidden in training."""
    found = set()
    for record in records:
        digest = prompt_hash(prompt_messages(record))
        by_hash = record.origin.split is None and position_of(digest) < eval_fraction
        if by_hash or record.origin.split == "eval":
            found.add(digest)
    return frozenset(found)


def split_records(
    records: Sequence[R],
    eval_fraction: float,
    held_out_fraction: float,
    forbidden: frozenset[str] = frozenset(),
) -> Split[R]:
    """Divide a data set; each list keeps the order of the records.

    A record whose row names its split goes there. Otherwise its position u decides: u < eval_fraction is evaluated on,
    eval_fraction <= u < held_out_fraction is used nowhere, the rest trains. `held_out_fraction` is the largest
    eval_fraction of the recipe. A training record whose prompt is evaluated on, here or (by `forbidden`, the union of
    `eval_hashes` over the recipe) in another data set, is taken out; where no row names its split there is none such.
    """
    if not 0 <= eval_fraction <= held_out_fraction < 1:
        raise ValueError(f"expected 0 <= eval {eval_fraction} <= held out {held_out_fraction} < 1")
    evaluated = forbidden | eval_hashes(records, eval_fraction)
    result: Split[R] = Split()
    for record in records:
        digest = prompt_hash(prompt_messages(record))
        place = record.origin.split or _place(position_of(digest), eval_fraction, held_out_fraction)
        if place == "eval":
            result.eval.append(record)
        elif place == "held_elsewhere":
            result.held_elsewhere.append(record)
        elif digest in evaluated:
            result.forbidden.append(record)
        else:
            result.train.append(record)
    return result


def _place(position: float, eval_fraction: float, held_out_fraction: float) -> str:
    if position < eval_fraction:
        return "eval"
    return "held_elsewhere" if position < held_out_fraction else "train"


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
