"""How many training rows each source gives: all, at most `limit`, exactly `count`, or its `weight` of the mixture.

After `split` and the removal of duplicates inside each source, before duplicates between sources go. Everything is
drawn by a hash of seed and content, as in `clean`: the order of a file plays no role.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from data_prep.clean import content_key, limit_records, mix
from data_prep.records import Demonstration, PreferencePair, Prompt
from pipeline.errors import DataError
from pipeline.recipe.schema import SourceSettings

R = TypeVar("R", Demonstration, PreferencePair, Prompt)


@dataclass(frozen=True, slots=True)
class Mixture(Generic[R]):
    """The rows of every source that are trained on, source by source."""

    parts: list[list[R]]
    dropped: dict[str, int]
    """`over_limit`: above a source's limit or count; `outside_mixture`: above what its weight allows."""

    @property
    def records(self) -> list[R]:
        """All rows, in the order of the sources."""
        return [record for part in self.parts for record in part]


def draw(sources: Sequence[tuple[SourceSettings, Sequence[R]]], seed: int) -> Mixture[R]:
    """Take from every source what its settings ask for.

    A source with a `count` gives only rows that no source without one has, and none that another with a `count` gave:
    so that no duplicate is taken out later and the count holds.

    Raises:
        DataError: a source has fewer rows than its `count`, or none and a `weight`.
    """
    limited = [limit_records(records, settings.limit, seed) for settings, records in sources]
    weighted = [at for at, (settings, _) in enumerate(sources) if settings.weight is not None]
    mixed = iter(mix([(limited[at], sources[at][0].weight) for at in weighted], seed))
    taken = _by_source(list(mixed), [limited[at] for at in weighted])
    parts = [list(records) for records in limited]
    for at, records in zip(weighted, taken, strict=True):
        parts[at] = records
    outside = sum(len(limited[at]) - len(parts[at]) for at in weighted)
    counted = [at for at, (settings, _) in enumerate(sources) if settings.count is not None]
    others = [part for at, part in enumerate(parts) if counted and at not in counted]
    seen = {content_key(record) for part in others for record in part}
    for at in counted:
        parts[at] = _exactly(sources[at][0], [r for r in limited[at] if content_key(r) not in seen], seed)
        seen |= {content_key(record) for record in parts[at]}
    read = sum(len(records) for _, records in sources)
    over = read - outside - sum(map(len, parts))
    return Mixture(parts, {"over_limit": over, "outside_mixture": outside})


def shuffled(records: Sequence[R], seed: int) -> list[R]:
    """The records in an order that depends on seed and content alone."""

    def place(record: R) -> tuple[str, str, int]:
        digest = hashlib.sha256(f"{seed}:order:{content_key(record)}".encode()).hexdigest()
        return digest, record.origin.source, record.origin.row

    return sorted(records, key=place)


def _exactly(settings: SourceSettings, records: Sequence[R], seed: int) -> list[R]:
    assert settings.count is not None
    if len(records) < settings.count:
        raise DataError(
            f"{settings.path}: count asks for {settings.count} training rows and there are {len(records)} that no "
            "other source has; write limit for `at most`, or hold out less"
        )
    return limit_records(records, settings.count, seed)


def _by_source(mixed: Sequence[R], sources: Sequence[Sequence[R]]) -> list[list[R]]:
    """The rows of a mixture, apart again by the source they came from."""
    homes = {id(record): at for at, records in enumerate(sources) for record in records}
    parts: list[list[R]] = [[] for _ in sources]
    for record in mixed:
        parts[homes[id(record)]].append(record)
    return parts
