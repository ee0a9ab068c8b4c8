"""From a recipe's data settings to the records a stage trains on and those it is judged by.

The path of a row: `readers` (raw row -> record), `split` (train or held out, by its prompt), `clean` (duplicates),
`limit` and weights, then `chat` (record -> tokens). Every row that falls out on the way is counted under a reason,
and the counts travel with the artefact into the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from data_prep.chat import ChatFormatter, EncodedDemonstration, EncodedPair, UnusableRow
from data_prep.clean import drop_duplicates, limit_records
from data_prep.mixture import draw, shuffled
from data_prep.readers import (
    BadRow,
    ReadResult,
    SourceSpec,
    read_demonstrations,
    read_pairs,
    read_prompts,
    write_quarantine,
)
from data_prep.records import Demonstration, PreferencePair, Prompt
from data_prep.split import Share, Split, prompt_hash, prompt_messages, shares_of, split_records
from pipeline.errors import DataError
from pipeline.recipe.schema import DataSetSettings, DataSettings, SourceSettings

R = TypeVar("R", Demonstration, PreferencePair, Prompt)


class Encoded(Protocol):
    """What every encoded row can say."""

    @property
    def prompt_cut(self) -> bool:
        """Whether the beginning of its prompt was cut off to fit."""


E = TypeVar("E", bound=Encoded)

QUARANTINE = "quarantine.jsonl"
"""In an artefact: the rows of its data that could not be used, each with place, reason and content."""
EVALUATION_SEED = 0
"""Held-out rows are chosen alike whatever the recipe's seed, so that runs which differ by seed are comparable."""


@dataclass(frozen=True, slots=True)
class DataSet(Generic[R]):
    """Records of one kind, divided, with the account of every row that was read."""

    name: str
    train: list[R]
    held_out: list[R]
    report: dict[str, Any]
    quarantined: list[BadRow]
    """Rows that were set aside (`on_bad_row: quarantine`), of all sources."""


@dataclass(frozen=True, slots=True)
class EncodedSet(Generic[R, E]):
    """Records with their tokens, in step: `rows[i]` encodes `records[i]`."""

    records: list[R]
    rows: list[E]


def demonstrations(data: DataSettings, seed: int, part: str | None = None) -> DataSet[Demonstration]:
    """The demonstrations of `data.sft`; `part` is the entry of `data.split` whose prompts may train, None for all."""
    assert data.sft is not None
    return _load("sft", data.sft, read_demonstrations, held_out_fraction(data), seed, _share(data, part))


def preference_pairs(data: DataSettings, seed: int, part: str | None = None) -> DataSet[PreferencePair]:
    """The pairs of `data.preference`; `part` as for `demonstrations`."""
    assert data.preference is not None
    return _load("preference", data.preference, read_pairs, held_out_fraction(data), seed, _share(data, part))


def prompts(data: DataSettings, seed: int = EVALUATION_SEED, part: str | None = None) -> DataSet[Prompt]:
    """Prompts to answer, from the data set that `data.prompts.from` names; no stage trains on the held-out ones.

    Args:
        data: of the recipe.
        seed: draws the training part where there is a limit; the held-out part is always the same.
        part: as for `demonstrations`.
    """
    name = data.prompts.from_ or ("preference" if data.preference else "sft")
    settings = data.preference if name == "preference" else data.sft
    assert settings is not None
    return _load(name, settings, read_prompts, held_out_fraction(data), seed, _share(data, part))


def _share(data: DataSettings, part: str | None) -> Share | None:
    return None if part is None else shares_of(data.split)[part]


def held_out_fraction(data: DataSettings) -> float:
    """The largest `eval_fraction`: a prompt held out of one data set trains in none of the others."""
    return max(part.eval_fraction for part in (data.sft, data.preference) if part is not None)


def encode(records: Sequence[R], encoder: Callable[[R], E], report: dict[str, Any]) -> EncodedSet[R, E]:
    """Tokenise records; those that cannot be used are counted in `report["dropped"]`.

    Args:
        records: of one kind.
        encoder: a method of `ChatFormatter`, bound to its length limit; raises `UnusableRow`.
        report: of the data set, completed in place: drops by reason, cut prompts, token statistics.
    """
    return encode_each(records, lambda record: [encoder(record)], report)


def encode_each(records: Sequence[R], encoder: Callable[[R], list[E]], report: dict[str, Any]) -> EncodedSet[R, E]:
    """As `encode`, for an encoder that may make several rows of one record, which then stands beside each of them."""
    kept: list[R] = []
    rows: list[E] = []
    dropped: Counter[str] = Counter(report["dropped"])
    for record in records:
        try:
            made = encoder(record)
            rows += made
            kept += [record] * len(made)
        except UnusableRow as reason:
            dropped[str(reason)] += 1
    report["dropped"] = dict(dropped)
    report["prompts_truncated"] = report.get("prompts_truncated", 0) + sum(row.prompt_cut for row in rows)
    return EncodedSet(kept, rows)


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
    found = demonstrations(data, seed, part)
    assert data.sft is not None
    limit = data.sft.max_length
    train = encode_each(found.train, lambda record: formatter.demonstrations(record, limit), found.report)
    held_out = encode_each(found.held_out, lambda record: formatter.demonstrations(record, limit), found.report)
    _leave(found.quarantined, aside)
    _finish(found.report, train, held_out, [len(row.input_ids) for row in train.rows], limit)
    return train, held_out, found.report


def encode_pairs(
    data: DataSettings, formatter: ChatFormatter, seed: int, part: str | None = None, aside: Path | None = None
) -> tuple[EncodedSet[PreferencePair, EncodedPair], EncodedSet[PreferencePair, EncodedPair], dict[str, Any]]:
    """Training pairs, held-out pairs and the data report of `data.preference`; arguments as `encode_demonstrations`.

    Raises:
        DataError: nothing is left to train on; the message says what removed most.
    """
    found = preference_pairs(data, seed, part)
    assert data.preference is not None
    limit = data.preference.max_length
    train = encode(found.train, lambda record: formatter.pair(record, limit), found.report)
    held_out = encode(found.held_out, lambda record: formatter.pair(record, limit), found.report)
    _leave(found.quarantined, aside)
    lengths = [len(row.prompt_ids) + max(len(row.chosen_ids), len(row.rejected_ids)) for row in train.rows]
    _finish(found.report, train, held_out, lengths, limit)
    return train, held_out, found.report


def _leave(quarantined: Sequence[BadRow], aside: Path | None) -> None:
    if aside is not None:
        write_quarantine(aside / QUARANTINE, quarantined)


def prompt_hashes(records: Sequence[Demonstration | PreferencePair | Prompt]) -> list[str]:
    """Sorted hashes of the records' prompts, to tell later what a policy has been trained on."""
    return sorted({prompt_hash(prompt_messages(record)) for record in records})


def without_seen(records: Sequence[R], seen: frozenset[str]) -> list[R]:
    """The records whose prompts are not among the given hashes."""
    return [record for record in records if prompt_hash(prompt_messages(record)) not in seen]


def _load(
    name: str,
    settings: DataSetSettings,
    read: Callable[[SourceSpec], ReadResult[R]],
    held_out: float,
    seed: int,
    share: Share | None,
) -> DataSet[R]:
    usable: list[tuple[SourceSettings, list[R]]] = []
    evaluation: list[list[R]] = []
    dropped: Counter[str] = Counter()
    results: list[ReadResult[R]] = []
    for source in settings.sources:
        result = read(_spec(source))
        parts: Split[R] = split_records(result.records, settings.eval_fraction, held_out)
        mine = parts.train if share is None else [r for r in parts.train if share.holds(_hash(r))]
        train = drop_duplicates(mine)
        usable.append((source, train.records))
        evaluation.append(parts.eval)
        dropped.update(train.dropped)
        dropped["held_out_by_another_set"] += len(parts.held_elsewhere)
        dropped["prompt_is_held_out"] += len(parts.forbidden)
        dropped["other_stages_part"] += len(parts.train) - len(mine)
        results.append(result)
    mixture = draw(usable, seed)
    dropped.update(mixture.dropped)
    train_rows = drop_duplicates(mixture.records)
    dropped.update(train_rows.dropped)
    every_held_out = drop_duplicates([record for part in evaluation for record in part]).records
    limited = limit_records(every_held_out, settings.eval_limit, EVALUATION_SEED)
    dropped["held_out_over_limit"] += len(every_held_out) - len(limited)
    ordered = shuffled(train_rows.records, seed) if settings.shuffle else list(train_rows.records)
    sources = [
        _source_report(source, result)
        | {"train": len(_among(part, train_rows.records)), "held_out": len(_among(held, limited))}
        for source, result, part, held in zip(settings.sources, results, mixture.parts, evaluation, strict=True)
    ]
    report = {"sources": sources, "dropped": {reason: count for reason, count in dropped.items() if count}}
    report |= _noise_report(ordered)
    quarantined = [row for result in results for row in result.quarantined]
    return DataSet(name, ordered, limited, report, quarantined)


def _noise_report(records: Sequence[Demonstration | PreferencePair | Prompt]) -> dict[str, Any]:
    """How often a pair's label is wrong by its annotators' votes: what a loss's `label_smoothing` may start from."""
    noise = [r.label_noise for r in records if isinstance(r, PreferencePair) and r.label_noise is not None]
    return {"label_noise": {"pairs": len(noise), "mean": round(sum(noise) / len(noise), 4)}} if noise else {}


def _spec(source: SourceSettings) -> SourceSpec:
    return SourceSpec(
        path=source.path,
        format=source.format,
        revision=source.revision,
        split=source.split,
        map=source.map,
        on_bad_row=source.on_bad_row,
    )


def _hash(record: Demonstration | PreferencePair | Prompt) -> str:
    return prompt_hash(prompt_messages(record))


def _among(records: Sequence[R], chosen: Sequence[R]) -> list[R]:
    """Those of the records that were chosen; identity counts, since equal ones may come from two sources."""
    identities = set(map(id, chosen))
    return [record for record in records if id(record) in identities]


def _source_report(source: SourceSettings, result: ReadResult[Any]) -> dict[str, Any]:
    return {
        "path": source.path,
        "format": result.format,
        "recognised_by": result.why,
        "rows_read": result.rows_read,
        "kept": result.rows_kept,
        "records": len(result.records),
        "dropped": result.dropped,
        "quarantined": dict(Counter(bad.reason for bad in result.quarantined)),
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
