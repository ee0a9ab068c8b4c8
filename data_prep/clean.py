"""Choosing among training records: no exact duplicate, at most so many, so many of each source.

After `split`, before `chat`. Everything here depends on content and seed only: the same rows in another order give
the same choice, and more rows at the end of a file change as little of it as possible.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Generic, NamedTuple, TypeVar

from data_prep.records import Demonstration, Message, PreferencePair, Prompt, Record
from data_prep.split import prompt_hash, prompt_messages
from pipeline.errors import DataError

R = TypeVar("R", Demonstration, PreferencePair, Prompt)


class Cleaned(NamedTuple, Generic[R]):
    """What is left of a list of records, and what was dropped, by reason."""

    records: list[R]
    dropped: dict[str, int]


def content_key(record: Record) -> str:
    """SHA-256 (hex) of what a record trains on: two records with one key are duplicates.

    The opening prompt counts as in `prompt_hash`. Later turns and answers are compared up to white space only, since
    letter case can be the point of an answer. Origin, and a prompt's rule or reference, play no role.
    """
    messages = prompt_messages(record)
    answers = [record.chosen_turn, record.rejected_turn] if isinstance(record, PreferencePair) else []
    texts = (" ".join(answer.content.split()) for answer in answers)
    parts = [prompt_hash(messages), *_after_opening(messages), "|", *texts, *_functions((*messages, *answers))]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def _after_opening(messages: Sequence[Message]) -> list[str]:
    """Role and text of every turn from the first answer on."""
    first = next((at for at, message in enumerate(messages) if message.role == "assistant"), len(messages))
    return [part for message in messages[first:] for part in (message.role, " ".join(message.content.split()))]


def _functions(messages: Sequence[Message]) -> list[str]:
    """What a conversation offers and calls: two that differ in it only are no duplicates."""
    called = [f"{call.name} {call.arguments}" for message in messages for call in message.tool_calls]
    return [*called, *(tool for message in messages for tool in message.tools)]


def drop_duplicates(records: Sequence[R]) -> Cleaned[R]:
    """Keep the first of every group of duplicates, in order; the others are counted as `duplicate`."""
    kept: dict[str, R] = {}
    for record in records:
        kept.setdefault(content_key(record), record)
    duplicates = len(records) - len(kept)
    return Cleaned(list(kept.values()), {"duplicate": duplicates} if duplicates else {})


def limit_records(records: Sequence[R], limit: int | None, seed: int) -> list[R]:
    """A sample of `limit` records without replacement; all of them, as they stand, where limit is None.

    Records are ranked by a hash of seed and content, so neither their order nor the rest of the file matters, and a
    larger limit only adds to a smaller one. The sample comes in the order of that hash.
    """
    if limit is None:
        return list(records)
    if limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1")

    def rank(record: R) -> tuple[str, str, int]:
        digest = hashlib.sha256(f"{seed}:{content_key(record)}".encode()).hexdigest()
        return digest, record.origin.source, record.origin.row  # the origin only tells duplicates apart

    return heapq.nsmallest(limit, records, key=rank)


def mix(sources: Sequence[tuple[Sequence[R], float | None]], seed: int) -> list[R]:
    """Put sources together in the proportion of their weights; a source of weight None is taken whole.

    Among weighted sources the shares are weight / sum of weights, in the largest mixture that uses no record twice:
    weights 3 and 1 over 900 and 100 records give 300 and 100. Sources follow one another; trainers shuffle.
    """
    weighted = [(len(records), weight) for records, weight in sources if weight is not None]
    counts = iter(mixture_counts([size for size, _ in weighted], [weight for _, weight in weighted]))
    mixed: list[R] = []
    for records, weight in sources:
        if weight is None:
            mixed += records
        elif count := next(counts):
            mixed += limit_records(records, count, seed)
    return mixed


def mixture_counts(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many records to take of each source: whole numbers by largest remainder, none above its source's size."""
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True), start=1):
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"weight {weight}, expected a positive number")
        if size == 0:
            raise DataError(
                f"weighted source {number} of {len(sizes)} has no training record left, so no mixture has its share; "
                "take it out, or hold out less"
            )
    # Exact: 0.7 and 0.3 are meant as seven to three, which their binary values are not.
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    total = min((math.floor(size / share) for size, share in zip(sizes, shares, strict=True)), default=0)
    quotas = [total * share for share in shares]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda at: (counts[at] - quotas[at], at))
    for at in by_remainder[: total - sum(counts)]:
        counts[at] += 1
    return counts
