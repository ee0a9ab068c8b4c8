"""Rows shared out over ranks and batches: who measures anything row by row does it through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.batches import by_beginning, by_length
from pipeline.faults import reach
from pipeline.runtime import Ranks, gather_lists

T = TypeVar("T")
Progress = Callable[[int, int], None]


def over_ranks(
    rows: Sequence[Sequence[int]],
    batch_size: int,
    ranks: Ranks,
    compute: Callable[[list[int]], Sequence[T]],
    progress: Progress | None = None,
    *,
    by_beginnings: bool = False,
    together: bool = False,
) -> list[T]:
    """One result per row, in the rows' order, on every rank; the same rows always meet in the same batches.

    Args:
        rows: token ids.
        batch_size: most rows in a batch.
        ranks: this process among its peers; every rank must make the same call.
        compute: from the indices of a batch's rows to their results.
        progress: told how many of this rank's rows are done, and of how many.
        by_beginnings: put rows that begin alike into a batch, not those of one length.
        together: let every rank compute equally many batches, as a model spread over them needs; a rank that has
            fewer computes its last one, or the first row, again.
    """
    reach("rows.begun")
    mine = list(range(ranks.rank, len(rows), ranks.world_size))
    found: dict[int, T] = {}
    if progress is not None:
        progress(0, len(mine))
    own = [rows[index] for index in mine]
    parts = by_beginning(own, batch_size) if by_beginnings else by_length([len(row) for row in own], batch_size)
    batches = [[mine[index] for index in part] for part in parts]
    if together and rows:
        most = max(gather_lists([len(batches)]))
        batches += [batches[-1] if batches else [0]] * (most - len(batches))
    for picked in batches:
        found.update(zip(picked, compute(picked), strict=True))
        if progress is not None:
            progress(min(len(found), len(mine)), len(mine))
    return gather_lists([found[index] for index in mine])
