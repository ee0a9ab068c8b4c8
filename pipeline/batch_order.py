"""In which order rows come to the trainer, and how much of its batches is padding. Layer 2.

The order that groups rows of like length is the library's own; here it follows from seed and epoch alone, so that every
rank and every resumed run goes through the rows alike.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from data_prep.chat import EncodedDemonstration, EncodedPair
from pipeline.recipe.schema import DataSetSettings
from pipeline.recipe.stage_settings import OfflineSettings, SftSettings

_BATCHES = 2000
"""The share of padding in randomly drawn batches is measured over about so many of them."""


class EpochSampler(Sampler[int]):
    """Indices of rows in an order of its own for every pass.

    Args:
        rows: how many there are.
        order: from a seed to every index once.
        seed: of the run.
    """

    def __init__(self, rows: int, order: Callable[[int], list[int]], seed: int):
        self._rows = rows
        self._order = order
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        return iter(self._order(self._seed + self._epoch))


class ShuffledSampler(EpochSampler):
    """Indices of rows, shuffled: the order that accelerate's own sampler draws with this seed.

    Args:
        rows: how many there are.
        seed: of the run.
    """

    def __init__(self, rows: int, seed: int):
        super().__init__(rows, lambda seed: _permutation(rows, seed), seed)


class GroupedSampler(EpochSampler):
    """Indices of rows, shuffled, but with rows of like length next to one another.

    Args:
        lengths: of the rows, in tokens.
        group: rows per optimiser step, over all processes.
        seed: of the run.
    """

    def __init__(self, lengths: Sequence[int], group: int, seed: int):
        known = list(lengths)
        super().__init__(len(known), lambda seed: grouped_order(known, group, seed), seed)


class TogetherSampler(EpochSampler):
    """Indices of rows, shuffled, but with the rows of one group in one optimiser step.

    Args:
        groups: of the rows; None for one that is alone.
        step_rows: rows per optimiser step, over all processes.
        seed: of the run.
    """

    def __init__(self, groups: Sequence[str | None], step_rows: int, seed: int):
        known = list(groups)
        super().__init__(len(known), lambda seed: together_order(known, step_rows, seed), seed)


def together_order(groups: Sequence[str | None], step_rows: int, seed: int) -> list[int]:
    """Every index once: groups in random order, each whole inside a run of `step_rows` indices.

    Where the next group does not fit into what is left of a step, the first one behind it that does comes before it. A
    group is cut only where it is larger than a step, or where no other fits.
    """
    waiting = _shuffled_units(groups, step_rows, seed)
    order: list[int] = []
    while waiting:
        room = step_rows - len(order) % step_rows
        # The first of each size will do: equal ones stand in random order.
        places = {size: units[0][0] for size, units in waiting.items()}
        fitting = [size for size in places if size <= room]
        size = min(fitting or places, key=places.__getitem__)
        place, unit = waiting[size].popleft()
        if not waiting[size]:
            del waiting[size]
        order += unit[:room]
        if rest := unit[room:]:
            waiting.setdefault(len(rest), deque()).appendleft((place, rest))
    return order


def _shuffled_units(groups: Sequence[str | None], largest: int, seed: int) -> dict[int, deque[tuple[int, list[int]]]]:
    """Groups and rows that are alone by their size, each with its place in a random order, none larger than a step."""
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(index if group is None else group, []).append(index)
    units = [rows[at : at + largest] for rows in members.values() for at in range(0, len(rows), largest)]
    found: dict[int, deque[tuple[int, list[int]]]] = {}
    for place, chosen in enumerate(_permutation(len(units), seed)):
        found.setdefault(len(units[chosen]), deque()).append((place, units[chosen]))
    return found


def _permutation(count: int, seed: int) -> list[int]:
    return [int(index) for index in torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


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
