"""From a recipe's data settings to the records that a stage trains on and those it is judged by.

The path of a row: `readers` (raw row -> record), `split` (train or held out, by its prompt), `cleaning` (rules), the
stage's part of the prompts, `clean` (duplicates), `mixture` (what each source gives). Every row that falls out on the
way is counted under a reason. `build` goes on from here: records -> tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from data_prep.clean import drop_duplicates, limit_records
from data_prep.cleaning import Cleaner, Dropped
from data_prep.mixture import draw, shuffled
from data_prep.readers import BadRow, ReadResult, SourceSpec, read_demonstrations, read_pairs, read_prompts
from data_prep.records import Demonstration, PreferencePair, Prompt, Record
from data_prep.split import Share, Split, prompt_hash, prompt_messages, shares_of, split_records
from pipeline.errors import DataError
from pipeline.recipe.schema import DataSetSettings, DataSettings, SourceSettings

R = TypeVar("R", Demonstration, PreferencePair, Prompt)

EVALUATION_SEED = 0
"""Held-out rows are chosen alike whatever the recipe's seed, so that runs which differ by seed are comparable."""


@dataclass(frozen=True, slots=True)
class DataSet(Generic[R]):
    """Records of one kind, divided, with the account of every row that was read."""

    name: str
    train: list[R]
    held_out: list[R]
    report: dict[str, Any]
    dropped: list[Dropped] = field(default_factory=list)
    """What cleaning took out of the training part."""
    quarantined: list[BadRow] = field(default_factory=list)
    """Rows that were set aside (`on_bad_row: quarantine`), of all sources."""


def demonstrations(data: DataSettings, seed: int, part: str | None = None) -> DataSet[Demonstration]:
    """The demonstrations of `data.sft`; `part` is the entry of `data.split` whose prompts may train, None for all."""
    assert data.sft is not None
    return _load("sft", data, read_demonstrations, seed, part)


def preference_pairs(data: DataSettings, seed: int, part: str | None = None) -> DataSet[PreferencePair]:
    """The pairs of `data.preference`; `part` as for `demonstrations`."""
    assert data.preference is not None
    return _load("preference", data, read_pairs, seed, part)


def prompts(data: DataSettings, seed: int = EVALUATION_SEED, part: str | None = None) -> DataSet[Prompt]:
    """Prompts to answer, from the data set that `data.prompts.from` names; no stage trains on the held-out ones.

    Args:
        data: of the recipe.
        seed: draws the training part where there is a limit; the held-out part is always the same.
        part: as for `demonstrations`.
    """
    return _load(prompts_set(data), data, read_prompts, seed, part)


def held_out_fraction(data: DataSettings) -> float:
    """The largest `eval_fraction`: a prompt held out of one data set trains in none of the others."""
    return max(part.eval_fraction for part in (data.sft, data.preference) if part is not None)


def other_set(name: str, data: DataSettings) -> DataSetSettings | None:
    """The data set whose held-out prompts a set must not come near either, where its `clean` block asks for that."""
    settings = data.preference if name == "preference" else data.sft
    near = None if settings is None else settings.clean.near_duplicates
    if near is None or not (near.held_out and near.other_set):
        return None
    return data.sft if name == "preference" else data.preference


def prompts_set(data: DataSettings) -> str:
    """The data set whose prompts are answered: what is written, else preference, else sft."""
    return data.prompts.from_ or ("preference" if data.preference else "sft")


def spec_of(source: SourceSettings) -> SourceSpec:
    """A source as the readers want it."""
    return SourceSpec(
        path=source.path,
        format=source.format,
        revision=source.revision,
        split=source.split,
        map=source.map,
        on_bad_row=source.on_bad_row,
    )


@dataclass(frozen=True, slots=True)
class _Source(Generic[R]):
    """What one source gives before any is chosen."""

    settings: SourceSettings
    read: ReadResult[R]
    train: list[R]
    eval: list[R]
    elsewhere: list[R]


def _load(
    name: str, data: DataSettings, read: Callable[[SourceSpec], ReadResult[R]], seed: int, part: str | None
) -> DataSet[R]:
    settings = data.preference if name == "preference" else data.sft
    assert settings is not None
    share = None if part is None else shares_of(data.split)[part]
    cleaner = Cleaner(settings.clean, data.decontaminate)
    dropped: Counter[str] = Counter()
    found: list[_Source[R]] = []
    others = _held_out_by_other(name, data)
    for source in settings.sources:
        result = read(spec_of(source))
        parts = split_records(result.records, settings.eval_fraction, held_out_fraction(data))
        found.append(_of_source(source, result, parts, share, cleaner, others, dropped))
    mixture = draw([(each.settings, each.train) for each in found], seed)
    dropped.update(mixture.dropped)
    train_rows = drop_duplicates(mixture.records)
    dropped.update(train_rows.dropped)
    cleaner.duplicates(mixture.records, train_rows.records)
    train: list[R] = train_rows.records
    if len(found) > 1:
        held: list[R] = [record for each in found for record in each.eval + each.elsewhere]
        train = cleaner.among(train, held)
    dropped.update(cleaner.counts())
    taken = [len(_among(rows, train)) for rows in mixture.parts]
    _require_counts(settings, taken)
    every_held_out = drop_duplicates([record for each in found for record in each.eval]).records
    limited = limit_records(every_held_out, settings.eval_limit, EVALUATION_SEED)
    dropped["held_out_over_limit"] += len(every_held_out) - len(limited)
    ordered = shuffled(train, seed) if settings.shuffle else list(train)
    sources = [
        _source_report(each) | {"train": rows, "held_out": len(_among(each.eval, limited))}
        for each, rows in zip(found, taken, strict=True)
    ]
    report = {"sources": sources, "dropped": {reason: count for reason, count in dropped.items() if count}}
    report |= _noise_report(ordered)
    if cleaning := cleaner.report(ordered):
        report["cleaning"] = cleaning
    quarantined = [row for each in found for row in each.read.quarantined]
    return DataSet(name, ordered, limited, report, cleaner.dropped, quarantined)


def _of_source(
    source: SourceSettings,
    result: ReadResult[R],
    parts: Split[R],
    share: Share | None,
    cleaner: Cleaner,
    others: Sequence[Record],
    dropped: Counter[str],
) -> _Source[R]:
    parts = cleaner.rows(parts)
    # By the prompt as it is trained on: two that are one only when repaired or masked are in one part.
    mine = parts.train if share is None else [r for r in parts.train if share.holds(prompt_hash(prompt_messages(r)))]
    once = drop_duplicates(mine)
    cleaner.duplicates(mine, once.records)
    train: list[R] = cleaner.among(once.records, [*parts.eval, *parts.held_elsewhere, *others])
    dropped.update(once.dropped)
    dropped["held_out_by_another_set"] += len(parts.held_elsewhere)
    dropped["prompt_is_held_out"] += len(parts.forbidden)
    dropped["other_stages_part"] += len(parts.train) - len(mine)
    return _Source(source, result, train, parts.eval, parts.held_elsewhere)


def _held_out_by_other(name: str, data: DataSettings) -> list[Record]:
    """What the recipe's other data set holds out, put right by its own rules; nothing unless it is asked for."""
    settings = other_set(name, data)
    if settings is None:
        return []
    other = "sft" if name == "preference" else "preference"
    # Prompts to be answered may be more than there are demonstrations or pairs: ties have one, for instance.
    own = read_demonstrations if other == "sft" else read_pairs
    read: Callable[[SourceSpec], ReadResult[Any]] = read_prompts if prompts_set(data) == other else own
    cleaner = Cleaner(settings.clean)
    found: list[Record] = []
    for source in settings.sources:
        parts = split_records(read(spec_of(source)).records, settings.eval_fraction, held_out_fraction(data))
        kept = cleaner.rows(replace(parts, train=[]))
        found += [*kept.eval, *kept.held_elsewhere]
    return found


def _require_counts(settings: DataSetSettings, taken: Sequence[int]) -> None:
    """Cleaning among the sources comes after they were drawn, and may take rows of a source with a `count`."""
    for source, rows in zip(settings.sources, taken, strict=True):
        if source.count is not None and rows < source.count:
            raise DataError(
                f"{source.path}: count asks for {source.count} training rows and {rows} are left once those were "
                "dropped that rules about several rows do not allow beside other sources; write limit for `at most`"
            )


def _noise_report(records: Sequence[Demonstration | PreferencePair | Prompt]) -> dict[str, Any]:
    """How often a pair's label is wrong by its annotators' votes: what a loss's `label_smoothing` may start from."""
    noise = [r.label_noise for r in records if isinstance(r, PreferencePair) and r.label_noise is not None]
    return {"label_noise": {"pairs": len(noise), "mean": round(sum(noise) / len(noise), 4)}} if noise else {}


def _among(records: Sequence[R], chosen: Sequence[R]) -> list[R]:
    """Those of the records that were chosen; identity counts, since equal ones may come from two sources."""
    identities = set(map(id, chosen))
    return [record for record in records if id(record) in identities]


def _source_report(source: _Source[Any]) -> dict[str, Any]:
    result = source.read
    return {
        "path": source.settings.path,
        "format": result.format,
        "recognised_by": result.why,
        "rows_read": result.rows_read,
        "kept": result.rows_kept,
        "records": len(result.records),
        "dropped": result.dropped,
        "quarantined": dict(Counter(bad.reason for bad in result.quarantined)),
        "dropped_examples": [[row, reason] for row, reason in result.examples],
    }
