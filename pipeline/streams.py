"""Many sequences as one row of tokens without padding, those of one prompt sharing its tokens.

A stream is what the layers of a model see when nothing is computed twice and nothing for nothing: every prompt once,
however many answers follow it, and no token that stands for none. Who may look at whom is said by its segments, not by
a mask: a segment sees itself up to each token, and the whole of the one it continues. Positions start anew behind the
prompt in each answer, so that every sequence has the positions it would have alone. Layer 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """A run of tokens [start, stop) of a stream; one that continues a prompt sees that prompt's segment whole."""

    start: int
    stop: int
    prompt_start: int
    """Where the prompt begins that it continues, and `prompt_stop` where it ends; both `start` where there is none."""
    prompt_stop: int


class Group(NamedTuple):
    """A prompt and its answers, each at least one token."""

    prompt_ids: Sequence[int]
    answers: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Stream:
    """S sequences in one row of N tokens, M of which are response tokens."""

    ids_N: Tensor
    positions_N: Tensor
    segments: tuple[Segment, ...]
    predictors_M: Tensor
    """Where in the row the token stands that each response token follows in its sequence."""
    targets_M: Tensor
    """Ids of the response tokens."""
    sequences_M: Tensor
    """Which sequence each response token belongs to, counted in the order that groups and answers were given in."""
    ends_S: Tensor
    """Where in the row the last token of each sequence stands."""

    def to(self, device: torch.device) -> Stream:
        """The same on a device."""
        names = ("ids_N", "positions_N", "predictors_M", "targets_M", "sequences_M", "ends_S")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def per_sequence(self, values_M: Tensor) -> Tensor:
        """Sums of response tokens' values over their sequences (S,), in at least float32."""
        values = values_M if values_M.dtype == torch.float64 else values_M.float()
        return values.new_zeros(len(self.ends_S)).index_add(0, self.sequences_M, values)

    def lengths_S(self) -> Tensor:
        """Response tokens of each sequence."""
        return torch.bincount(self.sequences_M, minlength=len(self.ends_S))


def stream_of_groups(groups: Sequence[Group]) -> Stream:
    """Prompts, each followed by its answers; every answer is a sequence, all its tokens are response tokens.

    Raises:
        ValueError: an empty prompt, answer or group, which has no place in the alignment convention.
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    predictors: list[int] = []
    lengths: list[int] = []
    for prompt, answers in groups:
        if not len(prompt) or not len(answers) or not all(map(len, answers)):
            raise ValueError("every prompt needs an answer, and both at least one token")
        start, stop = len(ids), len(ids) + len(prompt)
        ids += prompt
        positions += range(len(prompt))
        segments.append(Segment(start, stop, start, start))
        for answer in answers:
            first = len(ids)
            ids += answer
            positions += range(len(prompt), len(prompt) + len(answer))
            segments.append(Segment(first, len(ids), start, stop))
            predictors += [stop - 1, *range(first, len(ids) - 1)]
            lengths.append(len(answer))
    ends = [segment.stop - 1 for segment in segments if segment.prompt_stop > segment.prompt_start]
    targets = [ids[at] for end, length in zip(ends, lengths, strict=True) for at in range(end - length + 1, end + 1)]
    return _stream(ids, positions, segments, predictors, targets, lengths, ends)


def stream_of_rows(rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Stream:
    """Whole sequences as (ids, response mask), one behind the other.

    Raises:
        ValueError: a mask that differs in length from its ids, or marks the first token (which nothing predicts).
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    predictors: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    for row, mask in rows:
        if len(row) != len(mask) or not len(row):
            raise ValueError(f"{len(row)} ids but a response mask of {len(mask)}")
        if mask[0]:
            raise ValueError("the first token cannot be a response: nothing predicts it")
        start = len(ids)
        ids += row
        positions += range(len(row))
        segments.append(Segment(start, len(ids), start, start))
        marked = [at for at, wanted in enumerate(mask) if wanted]
        predictors += [start + at - 1 for at in marked]
        targets += [row[at] for at in marked]
        lengths.append(len(marked))
    return _stream(ids, positions, segments, predictors, targets, lengths, [each.stop - 1 for each in segments])


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


def within_budget(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in parts of at most `budget` in total (or one alone that is larger), largest first."""
    found: list[list[int]] = []
    room = 0
    for index in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        if not found or sizes[index] > room:
            found.append([])
            room = budget
        found[-1].append(index)
        room -= sizes[index]
    return found


def _stream(
    ids: list[int],
    positions: list[int],
    segments: list[Segment],
    predictors: list[int],
    targets: list[int],
    lengths: list[int],
    ends: list[int],
) -> Stream:
    sequences = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    as_tensor = [torch.tensor(values, dtype=torch.long) for values in (ids, positions, predictors, targets, ends)]
    ids_N, positions_N, predictors_M, targets_M, ends_S = as_tensor
    return Stream(ids_N, positions_N, tuple(segments), predictors_M, targets_M, sequences, ends_S)
