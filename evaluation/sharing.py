"""Rows shared out over ranks and batches: who measures anything row by row does it through here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pipeline.batches import by_beginning, by_length
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
) -> list[T]:
    """One result per row, in the rows' order, on every rank; the same rows always meet in the same batches.

    Args:
        rows: token ids.
        batch_size: most rows in a batch.
        ranks: this process among its peers; every rank must make the same call.
        compute: from the indices of a batch's rows to their results.
        progress: told how many of this rank's rows are done, and of how many.
        by_beginnings: put rows that begin alike into a batch, not those of one length.
    """
    mine = list(range(ranks.rank, len(rows), ranks.world_size))
    found: dict[int, T] = {}
    if progress is not None:
        progress(0, len(mine))
    own = [rows[index] for index in mine]
    for batch in by_beginning(own, batch_size) if by_beginnings else by_length([len(row) for row in own], batch_size):
        picked = [mine[index] for index in batch]
        found.update(zip(picked, compute(picked), strict=True))
        if progress is not None:
            progress(len(found), len(mine))
    return gather_lists([found[index] for index in mine])
