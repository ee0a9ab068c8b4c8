"""Many sequences as one row of tokens: nothing padded, and every common beginning there once.

A stream is what the layers of a model see when nothing is computed twice and nothing for nothing. The two answers of
a pair share their prompt, rows of one chat template share its system message, samples of one prompt share all of it.
Who looks at whom is said by segments, not by a mask: a segment sees itself up to each token, and the whole of the runs
that it continues. Positions are those that each sequence would have alone. Layer 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SHORTEST_SHARED = 8
"""A common beginning shorter than this is not worth a segment."""

Row = tuple[Sequence[int], Sequence[bool]]
"""Ids of a sequence, and which of them are response tokens."""


class Segment(NamedTuple):
    """Tokens [start, stop) of a stream, which continue the runs of `context`, each a range too, in order."""

    start: int
    stop: int
    context: tuple[tuple[int, int], ...]


class StandIn(Protocol):
    """What a trunk's lowest layers give for a stream, known beforehand."""

    def standing_in(self) -> AbstractContextManager[None]:
        """Within the block, a pass over the stream starts from there."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences as one row of N tokens."""

    ids_N: Tensor
    positions_N: Tensor
    """Of each token in its sequences."""
    segments: tuple[Segment, ...]
    places: tuple[np.ndarray, ...]
    """Where in the row the tokens of each sequence stand."""


@dataclass(frozen=True, slots=True)
class Stream:
    """S sequences in one row of N tokens, with their M response tokens."""

    ids_N: Tensor
    positions_N: Tensor
    segments: tuple[Segment, ...]
    predictors_M: Tensor
    """Where in the row the token stands that each response token follows."""
    targets_M: Tensor
    """Ids of the response tokens."""
    sequences_M: Tensor
    """Which sequence each response token belongs to, in the order they were given in."""
    ends_S: Tensor
    """Where in the row the last token of each sequence stands."""
    places: tuple[np.ndarray, ...]
    """Where in the row the tokens of each sequence stand."""
    below: StandIn | None = None

    def to(self, device: torch.device) -> Stream:
        """The same on a device."""
        names = ("ids_N", "positions_N", "predictors_M", "targets_M", "sequences_M", "ends_S")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def per_sequence(self, values_M: Tensor) -> Tensor:
        """Sums of response tokens' values over their sequences (S,), in at least float32."""
        values = values_M if values_M.dtype == torch.float64 else values_M.float()
        sums_S = values.new_zeros(len(self.ends_S))
        if values.is_cuda:  # where index_add takes them as they come
            return sums_S.index_put((self.sequences_M,), values, accumulate=True)
        return sums_S.index_add(0, self.sequences_M, values)

    def lengths_S(self) -> Tensor:
        """Response tokens of each sequence."""
        return torch.bincount(self.sequences_M, minlength=len(self.ends_S))


def at_places(values_N: Tensor, places: Tensor) -> Tensor:
    """Values of tokens at places of a stream, one of which may be wanted several times; gradients repeat to the bit.

    Of `values[places]`, float32 gradients of one place are added by several threads of a CPU in the order in which they
    arrive. On a GPU it is the other way round: `index_select` adds as they arrive, indexing in order.

    Args:
        values_N: (N, ...).
        places: of any shape.

    Returns:
        (*places, ...).
    """
    if values_N.is_cuda:
        return values_N[places]
    return values_N.index_select(0, places.flatten()).reshape(*places.shape, *values_N.shape[1:])


def pack(sequences: Sequence[Sequence[int]]) -> Packed:
    """One sequence behind the other, without what one of those before begins with as well.

    Raises:
        ValueError: a sequence without a token.
    """
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    segments: list[Segment] = []
    done: list[tuple[np.ndarray, np.ndarray]] = []
    length = 0
    for sequence in sequences:
        own = np.asarray(sequence, dtype=np.int64)
        if not len(own):
            raise ValueError("a sequence needs at least one token")
        shared, places = _longest_shared(own, done)
        rest = len(own) - shared
        if rest:
            segments.append(Segment(length, length + rest, _ranges(places)))
            ids.append(own[shared:])
            positions.append(np.arange(shared, len(own)))
            places = np.concatenate([places, np.arange(length, length + rest)])
            length += rest
        done.append((own, places))
    joined = [torch.from_numpy(np.concatenate(parts)) for parts in (ids, positions)]
    return Packed(joined[0], joined[1], tuple(segments), tuple(places for _, places in done))


def stream_of(rows: Sequence[Row]) -> Stream:
    """Sequences with their response tokens as a stream.

    Raises:
        ValueError: a mask that differs in length from its ids, or marks the first token (which nothing predicts).
    """
    for ids, mask in rows:
        if len(ids) != len(mask):
            raise ValueError(f"{len(ids)} ids but a response mask of {len(mask)}")
        if len(mask) and mask[0]:
            raise ValueError("the first token cannot be a response: nothing predicts it")
    packed = pack([ids for ids, _ in rows])
    marked = [np.flatnonzero(np.asarray(mask, dtype=bool)) for _, mask in rows]
    predictors = [places[at - 1] for places, at in zip(packed.places, marked, strict=True)]
    targets = [np.asarray(ids, dtype=np.int64)[at] for (ids, _), at in zip(rows, marked, strict=True)]
    return Stream(
        ids_N=packed.ids_N,
        positions_N=packed.positions_N,
        segments=packed.segments,
        predictors_M=torch.from_numpy(np.concatenate(predictors)),
        targets_M=torch.from_numpy(np.concatenate(targets)),
        sequences_M=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(at) for at in marked])),
        ends_S=torch.tensor([int(places[-1]) for places in packed.places]),
        places=packed.places,
    )


def balanced(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Indices in so many parts of about equal total size, none empty while there are enough; in order within a part.

    The largest go first, each to the part that is smallest so far: at most 4/3 of the best possible (Graham 1969).
    """
    found: list[list[int]] = [[] for _ in range(parts)]
    totals = [0] * parts
    for index in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        smallest = min(range(parts), key=lambda part: (len(found[part]) > 0, totals[part], part))
        found[smallest].append(index)
        totals[smallest] += sizes[index]
    return [sorted(part) for part in found]


def parts_within(sizes: Sequence[int], most: int) -> list[list[int]]:
    """As few balanced parts as have at most so much in total; before them, each by itself, what is larger alone."""
    large = [index for index, size in enumerate(sizes) if size > most]
    rest = [index for index, size in enumerate(sizes) if size <= most]
    parts = -(-sum(sizes[index] for index in rest) // most)
    while True:
        found = [[rest[at] for at in part] for part in balanced([sizes[index] for index in rest], parts)]
        if all(sum(sizes[index] for index in part) <= most for part in found):
            return [[index] for index in large] + found
        parts += 1


def _longest_shared(own: np.ndarray, done: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[int, np.ndarray]:
    """How many first tokens an earlier sequence has too, and where they stand; 0 where they are few."""
    shared, where = 0, np.empty(0, dtype=np.int64)
    for other, places in done:
        length = min(len(own), len(other))
        # Most sequences part early; only one that agrees beyond the best so far is compared token by token.
        if length <= shared or not np.array_equal(own[: shared + 1], other[: shared + 1]):
            continue
        differing = np.flatnonzero(own[:length] != other[:length])
        shared = int(differing[0]) if len(differing) else length
        where = places[:shared]
    return (shared, where) if shared >= SHORTEST_SHARED else (0, where[:0])


def _ranges(places: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Places, in order, as ranges."""
    if not len(places):
        return ()
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    runs = np.split(places, breaks)
    return tuple((int(run[0]), int(run[-1]) + 1) for run in runs)
