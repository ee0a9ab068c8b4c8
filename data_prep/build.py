"""From a recipe's data settings to the records a stage trains on and those it is judged by.

The path of a row: `readers` (raw row -> record), `split` (train or held out, by its prompt), `cleaning` (rules),
`clean` (duplicates, `limit` and weights), then `chat` (record -> tokens). Every row that falls out on the way is
counted under a reason, and the counts travel with the artefact into the report. Large sets are kept by `cache`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from data_prep.cache import Kept, Part, kept_or_made
from data_prep.chat import ChatFormatter, EncodedDemonstration, EncodedPair, UnusableRow
from data_prep.clean import drop_duplicates, limit_records, mix
from data_prep.cleaning import Cleaner, Dropped
from data_prep.cleaning.dropped import Finding
from data_prep.readers import ReadResult, SourceSpec, read_demonstrations, read_pairs, read_prompts
from data_prep.records import Demonstration, PreferencePair, Prompt
from data_prep.row_statistics import demonstration_statistics, pair_statistics
from data_prep.split import Split, prompt_hash, prompt_messages, split_records
from data_prep.workers import mapped
from pipeline.errors import DataError
from pipeline.recipe.cleaning_settings import CleanSettings, DecontaminateSettings
from pipeline.recipe.schema import DataSetSettings, DataSettings, SourceSettings

R = TypeVar("R", Demonstration, PreferencePair, Prompt)


class Encoded(Protocol):
    """What every encoded row can say."""

    @property
    def prompt_cut(self) -> bool:
        """Whether the beginning of its prompt was cut off to fit."""


E = TypeVar("E", bound=Encoded)
Rated = TypeVar("Rated", EncodedDemonstration, EncodedPair)

_WORTH_WORKERS = 20_000
"""Rows from which tokenising in several processes repays starting them."""
MAX_EXAMPLES = 12
"""Rows named in a report, of those that could not be encoded."""
EVALUATION_SEED = 0
"""Held-out rows are chosen alike whatever the recipe's seed, so that runs which differ by seed are comparable."""


@dataclass(frozen=True, slots=True)
class _Unusable:
    """In place of a row that cannot be trained on; a value, as exceptions do not come back from workers one by one."""

    reason: str


@dataclass(frozen=True, slots=True)
class DataSet(Generic[R]):
    """Records of one kind, divided, with the account of every row that was read."""

    name: str
    train: list[R]
    held_out: list[R]
    report: dict[str, Any]
    dropped: list[Dropped] = field(default_factory=list)
    """What cleaning took out of the training part."""


@dataclass(frozen=True, slots=True)
class EncodedSet(Generic[R, E]):
    """Records with their tokens, in step: `rows[i]` encodes `records[i]`."""

    records: list[R]
    rows: list[E]
    dropped: list[Dropped] = field(default_factory=list)
    """What could not be tokenised; of the training part also what cleaning took out before."""


def demonstrations(data: DataSettings, seed: int) -> DataSet[Demonstration]:
    """The demonstrations of `data.sft`."""
    assert data.sft is not None
    return _load("sft", data.sft, data.decontaminate, read_demonstrations, held_out_fraction(data), seed)


def preference_pairs(data: DataSettings, seed: int) -> DataSet[PreferencePair]:
    """The pairs of `data.preference`."""
    assert data.preference is not None
    return _load("preference", data.preference, data.decontaminate, read_pairs, held_out_fraction(data), seed)


def prompts(data: DataSettings, seed: int = EVALUATION_SEED) -> DataSet[Prompt]:
    """Prompts to answer, from the data set that `data.prompts.from` names; no stage trains on the held-out ones.

    Args:
        data: of the recipe.
        seed: draws the training part where there is a limit; the held-out part is always the same.
    """
    name = data.prompts.from_ or ("preference" if data.preference else "sft")
    settings = data.preference if name == "preference" else data.sft
    assert settings is not None
    return _load(name, settings, data.decontaminate, read_prompts, held_out_fraction(data), seed)


def held_out_fraction(data: DataSettings) -> float:
    """The largest `eval_fraction`: a prompt held out of one data set trains in none of the others."""
    return max(part.eval_fraction for part in (data.sft, data.preference) if part is not None)


def encode(
    records: Sequence[R], encoder: Callable[[R], E], report: dict[str, Any], *, workers: bool = False
) -> EncodedSet[R, E]:
    """Tokenise records; those that cannot be used are counted in `report["dropped"]`.

    Args:
        records: of one kind.
        encoder: a method of `ChatFormatter`, bound to its length limit; raises `UnusableRow`.
        report: of the data set, completed in place: drops by reason with a few examples, cut prompts.
        workers: whether many records may be encoded in several processes; the encoder can then be pickled.
    """
    kept, rows, unusable = [], [], []
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
            rows.append(result)
            kept.append(record)
    report["dropped"] = dict(dropped)
    report["prompts_truncated"] = report.get("prompts_truncated", 0) + sum(row.prompt_cut for row in rows)
    return EncodedSet(kept, rows, unusable)


def encode_demonstrations(
    data: DataSettings, formatter: ChatFormatter, seed: int
) -> tuple[
    EncodedSet[Demonstration, EncodedDemonstration], EncodedSet[Demonstration, EncodedDemonstration], dict[str, Any]
]:
    """Training rows, held-out rows and the data report of `data.sft`.

    Raises:
        DataError: nothing is left to train on; the message says what removed most.
    """
    assert data.sft is not None
    settings = data.sft

    def make() -> Kept:
        found = demonstrations(data, seed)
        limit = settings.max_length
        encoder = partial(formatter.demonstration, max_length=limit)
        train = encode(found.train, partial(_of_length, settings.clean, encoder), found.report, workers=True)
        held_out = encode(found.held_out, encoder, found.report)
        _finish(found.report, train, held_out, [len(row.input_ids) for row in train.rows], limit)
        found.report["statistics"] = demonstration_statistics(train.records, train.rows)
        return _kept(found, train, held_out)

    return _opened(kept_or_made("sft", data, formatter.tokenizer, seed, make))


def encode_pairs(
    data: DataSettings, formatter: ChatFormatter, seed: int
) -> tuple[EncodedSet[PreferencePair, EncodedPair], EncodedSet[PreferencePair, EncodedPair], dict[str, Any]]:
    """Training pairs, held-out pairs and the data report of `data.preference`.

    Raises:
        DataError: nothing is left to train on; the message says what removed most.
    """
    assert data.preference is not None
    settings = data.preference

    def make() -> Kept:
        found = preference_pairs(data, seed)
        limit = settings.max_length
        encoder = partial(formatter.pair, max_length=limit)
        train = encode(found.train, partial(_of_length, settings.clean, encoder), found.report, workers=True)
        held_out = encode(found.held_out, encoder, found.report)
        lengths = [len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids)) for row in train.rows]
        _finish(found.report, train, held_out, lengths, limit)
        found.report["statistics"] = pair_statistics(train.records, train.rows)
        return _kept(found, train, held_out)

    return _opened(kept_or_made("preference", data, formatter.tokenizer, seed, make))


def prompt_hashes(records: Sequence[Demonstration | PreferencePair | Prompt]) -> list[str]:
    """Sorted hashes of the records' prompts, to tell later what a policy has been trained on."""
    return sorted({prompt_hash(prompt_messages(record)) for record in records})


def without_seen(records: Sequence[R], seen: frozenset[str]) -> list[R]:
    """The records whose prompts are not among the given hashes."""
    return [record for record in records if prompt_hash(prompt_messages(record)) not in seen]


def _tried(encoder: Callable[[R], E], record: R) -> E | _Unusable:
    try:
        return encoder(record)
    except UnusableRow as reason:
        return _Unusable(str(reason))


def _kept(found: DataSet[Any], train: EncodedSet[Any, Any], held_out: EncodedSet[Any, Any]) -> Kept:
    return Kept(
        Part(train.records, train.rows, [*found.dropped, *train.dropped]),
        Part(held_out.records, held_out.rows, held_out.dropped),
        found.report,
    )


def _opened(kept: Kept) -> tuple[EncodedSet[Any, Any], EncodedSet[Any, Any], dict[str, Any]]:
    return EncodedSet(*kept.train), EncodedSet(*kept.held_out), kept.report


def _of_length(clean: CleanSettings, encoder: Callable[[R], Rated], record: R) -> Rated:
    """Encode a record whose answer has as many tokens as it should.

    Raises:
        UnusableRow: `min_tokens`, `max_tokens`, or what the encoder raises.
    """
    row = encoder(record)
    tokens = len(row.chosen_ids) if isinstance(row, EncodedPair) else sum(row.response_mask)
    if clean.min_tokens is not None and tokens < clean.min_tokens:
        raise UnusableRow("min_tokens")
    if clean.max_tokens is not None and tokens > clean.max_tokens:
        raise UnusableRow("max_tokens")
    return row


def _load(
    name: str,
    settings: DataSetSettings,
    decontaminate: DecontaminateSettings | None,
    read: Callable[[SourceSpec], ReadResult[R]],
    held_out: float,
    seed: int,
) -> DataSet[R]:
    chosen: list[tuple[Sequence[R], float | None]] = []
    evaluation: list[R] = []
    elsewhere: list[R] = []
    dropped: Counter[str] = Counter()
    sources = []
    cleaner = Cleaner(settings.clean, decontaminate)
    for source in settings.sources:
        result = read(SourceSpec(path=source.path, format=source.format, revision=source.revision, split=source.split))
        parts: Split[R] = cleaner.rows(split_records(result.records, settings.eval_fraction, held_out))
        train = drop_duplicates(parts.train)
        cleaner.duplicates(parts.train, train.records)
        clean: list[R] = cleaner.among(train.records, parts.eval + parts.held_elsewhere)
        picked = limit_records(clean, source.limit, seed)
        chosen.append((picked, source.weight))
        evaluation += parts.eval
        elsewhere += parts.held_elsewhere
        dropped.update(train.dropped)
        dropped["held_out_by_another_set"] += len(parts.held_elsewhere)
        dropped["prompt_is_held_out"] += len(parts.forbidden)
        dropped["over_limit"] += len(clean) - len(picked)
        sources.append(_source_report(source, result))
    mixed = mix(chosen, seed)
    dropped["outside_mixture"] += sum(len(records) for records, _ in chosen) - len(mixed)
    train_rows = drop_duplicates(mixed)
    dropped.update(train_rows.dropped)
    cleaner.duplicates(mixed, train_rows.records)
    every_train = train_rows.records
    if len(settings.sources) > 1:
        every_train = cleaner.among(every_train, evaluation + elsewhere)
    dropped.update(cleaner.counts())
    every_held_out = drop_duplicates(evaluation).records
    limited = limit_records(every_held_out, settings.eval_limit, EVALUATION_SEED)
    dropped["held_out_over_limit"] += len(every_held_out) - len(limited)
    report = {"sources": sources, "dropped": {reason: count for reason, count in dropped.items() if count}}
    if cleaning := cleaner.report(every_train):
        report["cleaning"] = cleaning
    return DataSet(name, list(every_train), limited, report, cleaner.dropped)


def _source_report(source: SourceSettings, result: ReadResult[Any]) -> dict[str, Any]:
    return {
        "path": source.path,
        "format": result.format,
        "recognised_by": result.why,
        "rows_read": result.rows_read,
        "kept": len(result.records),
        "dropped": result.dropped,
        "dropped_examples": [[row, reason] for row, reason in result.examples],
    }


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
