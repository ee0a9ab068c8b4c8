"""In which order rows come to the trainer, and how much of its batches is padding. Layer 2.

The order that groups rows of like length is the library's own; here it follows from seed and epoch alone, so that every
rank and every resumed run goes through the rows alike.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from data_prep.chat import EncodedDemonstration, EncodedPair
from pipeline.recipe.schema import DataSetSettings
from pipeline.recipe.stage_settings import OfflineSettings, SftSettings

_BATCHES = 2000
"""The share of padding in randomly drawn batches is measured over about so many of them."""


class GroupedSampler(Sampler[int]):
    """Indices of rows, shuffled, but with rows of like length next to one another.

    Args:
        lengths: of the rows, in tokens.
        group: rows per optimiser step, over all processes.
        seed: of the run.
    """

    def __init__(self, lengths: Sequence[int], group: int, seed: int):
        self._lengths = list(lengths)
        self._group = group
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(grouped_order(self._lengths, self._group, self._seed + self._epoch))


def grouped_order(lengths: Sequence[int], group: int, seed: int) -> list[int]:
    """Every index once: shuffled, cut into large parts, each part sorted by length, the longest row of all first."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(seed)
    return [int(index) for index in get_length_grouped_indices(list(lengths), group, generator=generator)]


def padding_report(
    items: Sequence[Sequence[int]], batch_size: int, group: int, seed: int, *, longest: int, used: str = "shuffled"
) -> dict[str, Any]:
    """How much of the batches is padding as rows come shuffled, grouped by length, and packed.

    Args:
        items: of each row the tokens of its sequences: one, or two for a pair, which come in one batch.
        batch_size: rows per forward pass on one process.
        group: rows per optimiser step.
        seed: of the run.
        longest: tokens that a packed sequence may have.
        used: which of the three the stage uses.

    The share for shuffled rows is an average over many draws, not that of the trainer's own. Pairs are neither
    grouped nor packed.
    """
    if not items:
        return {}
    lengths = [sum(item) for item in items]
    found: dict[str, Any] = {
        "batch_rows": batch_size,
        "used": used,
        "shuffled": round(_shuffled_share(items, batch_size, seed), 4),
    }
    if all(len(item) == 1 for item in items):
        found["grouped"] = round(padded_share(items, grouped_order(lengths, group, seed), batch_size), 4)
        sequences = packed_count(lengths, longest)
        filled = sum(lengths) / (sequences * longest)
        found["packed"] = {"sequences": sequences, "max_length": longest, "filled": round(filled, 4), "padding": 0.0}
    return found


def sft_padding(
    settings: SftSettings, rows: Sequence[EncodedDemonstration], data: DataSetSettings, seed: int
) -> dict[str, Any]:
    """The report of a stage on demonstrations."""
    used = "packed" if settings.packing else "grouped" if settings.group_by_length else "shuffled"
    items = [(len(row.input_ids),) for row in rows]
    size, group = settings.per_device_batch_size, settings.global_batch_size
    return padding_report(items, size, group, seed, longest=data.max_length, used=used)


def pair_padding(
    settings: OfflineSettings, rows: Sequence[EncodedPair], data: DataSetSettings, seed: int
) -> dict[str, Any]:
    """The report of a stage on pairs, both sides of which come in one batch, each behind the whole prompt."""
    items = [(len(row.prompt_ids) + len(row.chosen_ids), len(row.prompt_ids) + len(row.rejected_ids)) for row in rows]
    size, group = settings.per_device_batch_size, settings.global_batch_size
    return padding_report(items, size, group, seed, longest=data.max_length)


def padded_share(items: Sequence[Sequence[int]], order: Sequence[int], batch_size: int) -> float:
    """The share of padding among all positions of batches that are drawn in an order; 0 where rows are equally long."""
    real = positions = 0
    for start in range(0, len(order), batch_size):
        lengths = [length for index in order[start : start + batch_size] for length in items[index]]
        real += sum(lengths)
        positions += len(lengths) * max(lengths)
    return 1 - real / positions


def packed_count(lengths: Sequence[int], longest: int) -> int:
    """How many sequences of at most `longest` tokens hold all rows: best fit, longest rows first, as the library packs.

    Raises:
        ValueError: a row that does not fit, which packing would cut.
    """
    free: list[int] = []
    count = 0
    for length in sorted(lengths, reverse=True):
        if length > longest:
            raise ValueError(f"a row of {length} tokens does not fit in {longest}")
        at = bisect.bisect_left(free, length)
        if at == len(free):
            count, room = count + 1, longest
        else:
            room = free.pop(at)
        if room > length:
            bisect.insort(free, room - length)
    return count


def _shuffled_share(items: Sequence[Sequence[int]], batch_size: int, seed: int) -> float:
    """The share of padding over whole passes in random order: one over a large set, many over a small one."""
    passes = max(1, min(200, _BATCHES * batch_size // len(items)))
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(items), generator=generator).tolist() for _ in range(passes))
    return sum(padded_share(items, order, batch_size) for order in orders) / passes
