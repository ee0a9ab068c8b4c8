"""From a recipe's data settings to the tokens that a stage trains on.

`data_sets` gives the records (readers, split, cleaning, duplicates, mixture), `chat` turns them into tokens here. What
falls out on the way is counted under a reason, and the counts travel with the artefact into the report. Large sets are
kept by `cache`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from data_prep.cache import Kept, Part, kept_or_made
from data_prep.chat import ChatFormatter, EncodedDemonstration, EncodedPair, UnusableRow
from data_prep.cleaning import Dropped, tell_dropped
from data_prep.cleaning.dropped import Finding
from data_prep.data_sets import (
    EVALUATION_SEED,
    DataSet,
    demonstrations,
    held_out_fraction,
    preference_pairs,
    prompts,
)
from data_prep.readers import BadRow, write_quarantine
from data_prep.records import Demonstration, PreferencePair, Prompt
from data_prep.row_statistics import demonstration_statistics, pair_statistics
from data_prep.split import prompt_hash, prompt_messages
from data_prep.workers import mapped
from pipeline.errors import DataError
from pipeline.recipe.cleaning_settings import CleanSettings
from pipeline.recipe.schema import DataSetSettings, DataSettings

__all__ = [
    "EVALUATION_SEED",
    "MAX_EXAMPLES",
    "QUARANTINE",
    "DataSet",
    "EncodedSet",
    "demonstrations",
    "encode",
    "encode_demonstrations",
    "encode_each",
    "encode_pairs",
    "held_out_fraction",
    "leave_aside",
    "preference_pairs",
    "prompt_hashes",
    "prompts",
    "without_seen",
]

R = TypeVar("R", Demonstration, PreferencePair, Prompt)


class Encoded(Protocol):
    """What every encoded row can say."""

    @property
    def prompt_cut(self) -> bool:
        """Whether the beginning of its prompt was cut off to fit."""


E = TypeVar("E", bound=Encoded)
Rated = TypeVar("Rated", EncodedDemonstration, EncodedPair)

QUARANTINE = "quarantine.jsonl"
"""In an artefact: the rows of its data that could not be used, each with place, reason and content."""
_WORTH_WORKERS = 20_000
"""Rows from which tokenising in several processes repays starting them."""
MAX_EXAMPLES = 12
"""Rows named in a report, of those that could not be encoded."""


@dataclass(frozen=True, slots=True)
class _Unusable:
    """In place of a row that cannot be trained on; a value, as exceptions do not come back from workers one by one."""

    reason: str


@dataclass(frozen=True, slots=True)
class EncodedSet(Generic[R, E]):
    """Records with their tokens, in step: `rows[i]` encodes `records[i]`."""

    records: list[R]
    rows: list[E]
    dropped: list[Dropped] = field(default_factory=list)
    """What could not be tokenised; of the training part also what cleaning took out before."""


@dataclass(frozen=True, slots=True)
class _Kind(Generic[R, Rated]):
    """What differs between demonstrations and pairs on the way from settings to tokens."""

    name: str
    """Of its block under `data`."""
    settings: DataSetSettings
    read: Callable[[DataSettings, int, str | None], DataSet[R]]
    statistics: Callable[[Sequence[R], Sequence[Rated]], dict[str, Any]]
    length: Callable[[Rated], int]
    """Tokens of a row, of a pair with its longer answer."""


def encode(records: Sequence[R], encoder: Callable[[R], E], report: dict[str, Any]) -> EncodedSet[R, E]:
    """Tokenise records, each as one row; those that cannot be used are counted in `report["dropped"]`.

    Args:
        records: of one kind.
        encoder: a method of `ChatFormatter`, bound to its length limit; raises `UnusableRow`.
        report: of the data set, completed in place: drops by reason with a few examples, cut prompts.
    """
    return encode_each(records, lambda record: [encoder(record)], report)


def encode_each(
    records: Sequence[R], encoder: Callable[[R], list[E]], report: dict[str, Any], *, workers: bool = False
) -> EncodedSet[R, E]:
    """As `encode`, for an encoder that may make several rows of one record, which then stands beside each of them.

    Args:
        records: of one kind.
        encoder: as for `encode`.
        report: as for `encode`.
        workers: whether many records may be encoded in several processes; the encoder can then be pickled.
    """
    kept: list[R] = []
    rows: list[E] = []
    unusable: list[Dropped] = []
    dropped: Counter[str] = Counter(report["dropped"])
    examples = report.setdefault("dropped_examples", [])
    results = mapped(partial(_tried, encoder), records, _WORTH_WORKERS if workers else len(records) + 1)
    for record, result in zip(records, results, strict=True):
        if isinstance(result, _Unusable):
            dropped[result.reason] += 1
            unusable.append(Dropped(record, Finding(result.reason)))
            if len(examples) < MAX_EXAMPLES:
                examples.append([record.origin.source, record.origin.row, result.reason])
        else:
            rows += result
            kept += [record] * len(result)
    report["dropped"] = dict(dropped)
    report["prompts_truncated"] = report.get("prompts_truncated", 0) + sum(row.prompt_cut for row in rows)
    return EncodedSet(kept, rows, unusable)


def encode_demonstrations(
    data: DataSettings, formatter: ChatFormatter, seed: int, part: str | None = None, aside: Path | None = None
) -> tuple[
    EncodedSet[Demonstration, EncodedDemonstration], EncodedSet[Demonstration, EncodedDemonstration], dict[str, Any]
]:
    """Training rows, held-out rows and the data report of `data.sft`.

    Args:
        data: of the recipe.
        formatter: of the model.
        seed: of the recipe.
        part: as for `demonstrations`.
        aside: folder that gets a `quarantine.jsonl` of the rows set aside, if there are any.

    Raises:
        DataError: nothing is left to train on; the message says what removed most.
    """
    assert data.sft is not None
    of = _Kind("sft", data.sft, demonstrations, demonstration_statistics, lambda row: len(row.input_ids))
    return _encoded(of, formatter.demonstrations, data, formatter, seed, part, aside)


def encode_pairs(
    data: DataSettings, formatter: ChatFormatter, seed: int, part: str | None = None, aside: Path | None = None
) -> tuple[EncodedSet[PreferencePair, EncodedPair], EncodedSet[PreferencePair, EncodedPair], dict[str, Any]]:
    """Training pairs, held-out pairs and the data report of `data.preference`; arguments as `encode_demonstrations`.

    Raises:
        DataError: nothing is left to train on; the message says what removed most.
    """
    assert data.preference is not None
    of = _Kind("preference", data.preference, preference_pairs, pair_statistics, _longer_side)
    return _encoded(of, partial(_one_row, formatter.pair), data, formatter, seed, part, aside)


def _encoded(
    of: _Kind[R, Rated],
    encoder: Callable[..., list[Rated]],
    data: DataSettings,
    formatter: ChatFormatter,
    seed: int,
    part: str | None,
    aside: Path | None,
) -> tuple[EncodedSet[R, Rated], EncodedSet[R, Rated], dict[str, Any]]:
    """Training rows, held-out rows and the report of one kind of data, from the cache where it has them."""

    def make() -> Kept:
        found = of.read(data, seed, part)
        leave_aside(found.quarantined, aside)
        limited = partial(encoder, max_length=of.settings.max_length)
        train = encode_each(found.train, partial(_of_length, of.settings.clean, limited), found.report, workers=True)
        held_out = encode_each(found.held_out, limited, found.report)
        _finish(found.report, train, held_out, [of.length(row) for row in train.rows], of.settings.max_length)
        found.report["statistics"] = of.statistics(train.records, train.rows)
        return _kept(found, train, held_out)

    return _opened(kept_or_made(of.name, data, formatter.tokenizer, seed, part, make), aside)


def leave_aside(quarantined: Sequence[BadRow], aside: Path | None) -> None:
    """Write rows that were set aside into a stage's folder; None on ranks that leave that to the first."""
    if aside is not None:
        write_quarantine(aside / QUARANTINE, quarantined)


def prompt_hashes(records: Sequence[Demonstration | PreferencePair | Prompt]) -> list[str]:
    """Sorted hashes of the records' prompts, to tell later what a policy has been trained on."""
    return sorted({prompt_hash(prompt_messages(record)) for record in records})


def without_seen(records: Sequence[R], seen: frozenset[str]) -> list[R]:
    """The records whose prompts are not among the given hashes."""
    return [record for record in records if prompt_hash(prompt_messages(record)) not in seen]


def _one_row(encoder: Callable[..., E], record: R, max_length: int) -> list[E]:
    return [encoder(record, max_length=max_length)]


def _longer_side(row: EncodedPair) -> int:
    return len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids))


def _tried(encoder: Callable[[R], list[E]], record: R) -> list[E] | _Unusable:
    try:
        return encoder(record)
    except UnusableRow as reason:
        return _Unusable(str(reason))


def _kept(found: DataSet[Any], train: EncodedSet[Any, Any], held_out: EncodedSet[Any, Any]) -> Kept:
    dropped = [*found.dropped, *train.dropped]
    tell_dropped(found.report, dropped)
    return Kept(
        Part(train.records, train.rows, dropped),
        Part(held_out.records, held_out.rows, held_out.dropped),
        found.report,
        found.quarantined,
    )


def _opened(kept: Kept, aside: Path | None) -> tuple[EncodedSet[Any, Any], EncodedSet[Any, Any], dict[str, Any]]:
    leave_aside(kept.quarantined, aside)
    return EncodedSet(*kept.train), EncodedSet(*kept.held_out), kept.report


def _of_length(clean: CleanSettings, encoder: Callable[[R], list[Rated]], record: R) -> list[Rated]:
    """Encode a record whose answer (of plain text, the whole) has as many tokens as it should.

    Raises:
        UnusableRow: `min_tokens`, `max_tokens`, or what the encoder raises.
    """
    rows = encoder(record)
    tokens = sum(len(row.chosen_ids) if isinstance(row, EncodedPair) else sum(row.response_mask) for row in rows)
    if clean.min_tokens is not None and tokens < clean.min_tokens:
        raise UnusableRow("min_tokens")
    if clean.max_tokens is not None and tokens > clean.max_tokens:
        raise UnusableRow("max_tokens")
    return rows


def _finish(
    report: dict[str, Any], train: EncodedSet[Any, Any], held_out: EncodedSet[Any, Any], lengths: list[int], limit: int
) -> None:
    if not train.rows:
        reasons = sorted(report["dropped"].items(), key=lambda item: -item[1]) or [("all_held_out", 0)]
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons)
        paths = ", ".join(source["path"] for source in report["sources"])
        raise DataError(
            f"{paths}: no row is left to train on, most went as {reasons[0][0]} ({listed}); sequences may have "
            f"{limit} tokens, set max_length, limit or eval_fraction accordingly"
        )
    ordered = sorted(lengths)
    report["train_rows"] = len(train.rows)
    report["eval_rows"] = len(held_out.rows)
    report["tokens"] = {
        "mean": round(sum(ordered) / len(ordered), 1),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
    }
