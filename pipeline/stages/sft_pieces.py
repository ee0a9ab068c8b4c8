"""Rows cut into pieces, for processes that compute each row together, and which of the rows a group of them gets.

A group's processes draw the same rows and keep their own columns of them, so that a stage goes on where it stopped and
a short last batch has its place; nothing has to be sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Sampler

from pipeline.batch_order import EpochSampler
from pipeline.recipe import row_groups
from pipeline.recipe.stage_settings import SftSettings
from pipeline.runtime import Ranks
from pipeline.stages.sft_batches import IGNORED


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which processes compute rows together, and which of them this one is."""

    size: int
    """Processes of a group: each has so many-th part of a row."""
    groups: int
    group: int
    """This process's."""
    place: int
    """Of this process's pieces in their rows."""

    @classmethod
    def of(cls, settings: SftSettings, ranks: Ranks, where: str) -> Sharing:
        """Neighbouring ranks form a group, as DeepSpeed has it.

        Raises:
            RecipeError: the processes do not divide into groups.
        """
        size = settings.sequence_parallel_size
        return cls(size, row_groups(ranks.world_size, size, where), *divmod(ranks.rank, size))


@dataclass(frozen=True, slots=True)
class Piece:
    """This process's part of a micro-batch: the same columns of each of its rows."""

    rows: tuple[Mapping[str, list[int]], ...]
    """The micro-batch's, uncut: to tell which they were."""
    ids_BT: Tensor
    labels_BT: Tensor
    """For each column the token behind it, or `IGNORED`."""
    positions_BT: Tensor
    """In the row; they go on in its padding, so that nothing looks like another row's beginning."""
    tokens: int
    """In these columns, without padding."""

    @property
    def learned_BT(self) -> Tensor:
        """Columns with a token behind them that the loss is a mean of."""
        return self.labels_BT != IGNORED

    def to(self, device: torch.device) -> Piece:
        """The same on a device."""
        return replace(
            self, ids_BT=self.ids_BT.to(device), labels_BT=self.labels_BT.to(device),
            positions_BT=self.positions_BT.to(device),
        )  # fmt: skip


class GroupBatches(Sampler[list[int]]):
    """Indices of the rows of each micro-batch of a group; the last ones may have fewer, or none.

    Args:
        order: of all rows.
        rows: of a micro-batch.
        sharing: whose group it is for.
    """

    def __init__(self, order: EpochSampler, rows: int, sharing: Sharing):
        self._order = order
        self._rows = rows
        self._sharing = sharing

    def __len__(self) -> int:
        return -(-len(self._order) // (self._rows * self._sharing.groups))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._order)
        for batch in range(len(self)):
            first = (batch * self._sharing.groups + self._sharing.group) * self._rows
            yield order[first : first + self._rows]


def cut(rows: Sequence[Mapping[str, list[int]]], count: int, pad_id: int, sharing: Sharing) -> Piece:
    """A process's piece of a micro-batch.

    Args:
        rows: ids and labels; at most `count`.
        count: rows that every micro-batch has; those that are missing are padding, on which nothing is learned.
        pad_id: of the tokenizer.
        sharing: whose piece it is.
    """
    width = -(-max((len(row["input_ids"]) for row in rows), default=1) // sharing.size)
    ids_BL = torch.full((count, width * sharing.size), pad_id)
    labels_BL = torch.full_like(ids_BL, IGNORED)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        ids_BL[at, :length] = torch.tensor(row["input_ids"])
        labels_BL[at, : length - 1] = torch.tensor(row["labels"][1:])
    first = sharing.place * width
    columns = slice(first, first + width)
    positions_BT = torch.arange(first, first + width).repeat(count, 1)
    tokens = sum(min(width, max(0, len(row["input_ids"]) - first)) for row in rows)
    return Piece(tuple(rows), ids_BL[:, columns].contiguous(), labels_BL[:, columns].contiguous(), positions_BT, tokens)
