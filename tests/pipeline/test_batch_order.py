"""Orders of rows and shares of padding, by hand and against the library's own packing."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import pack_dataset

from pipeline.batch_order import (
    GroupedSampler,
    TogetherSampler,
    grouped_order,
    packed_count,
    padded_share,
    padding_report,
    together_order,
)


def test_padding_by_hand():
    """Batches of two: (1, 3) has 2 of 6 positions empty, (4, 4) none; a pair's two sides share a batch."""
    items = [(1,), (3,), (4,), (4,)]
    assert padded_share(items, [0, 1, 2, 3], 2) == pytest.approx(2 / 14)
    assert padded_share(items, [0, 2, 1, 3], 2) == pytest.approx(4 / 16)
    assert padded_share([(2, 5)], [0], 4) == pytest.approx(3 / 10)
    assert padded_share([(5,)] * 9, range(9), 4) == 0


@pytest.mark.parametrize("seed", range(6))
def test_packed_sequences_are_counted_as_the_library_packs(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 64) for _ in range(draw.randint(1, 300))]
    rows = Dataset.from_dict({"input_ids": [[7] * length for length in lengths]})
    packed = pack_dataset(rows, 64, "bfd", {"batch_size": len(lengths)})
    assert packed_count(lengths, 64) == len(packed)


def test_a_row_too_long_to_be_packed_is_refused():
    with pytest.raises(ValueError, match="65 tokens does not fit in 64"):
        packed_count([3, 65], 64)


def test_grouped_rows_are_all_there_once_and_pad_less():
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(4, 0.8)) + 1 for _ in range(600)]
    order = grouped_order(lengths, 16, 17)
    assert sorted(order) == list(range(600))
    assert lengths[order[0]] == max(lengths), "so that a batch that does not fit in memory comes first"
    items = [(length,) for length in lengths]
    assert padded_share(items, order, 4) < 0.25 * padded_share(items, range(600), 4)
    found = padding_report(items, 4, 16, 17, longest=4096)
    assert found["used"] == "shuffled" and found["grouped"] == round(padded_share(items, order, 4), 4)
    assert found["shuffled"] == pytest.approx(padded_share(items, draw.sample(range(600), 600), 4), rel=0.1)
    assert found["packed"]["filled"] == pytest.approx(sum(lengths) / (found["packed"]["sequences"] * 4096), rel=1e-3)


def test_pairs_are_neither_grouped_nor_packed():
    found = padding_report([(3, 5), (4, 4)], 2, 2, 0, longest=64)
    assert found == {"batch_rows": 2, "used": "shuffled", "shuffled": 0.2}
    assert padding_report([], 2, 2, 0, longest=64) == {}


def test_the_order_follows_from_seed_and_pass_alone():
    lengths = list(range(1, 101))
    one, other = GroupedSampler(lengths, 4, 17), GroupedSampler(lengths, 4, 17)
    list(one)  # what was drawn before plays no role
    assert list(one) == list(other) and len(one) == 100
    other.set_epoch(1)
    assert list(one) != list(other)
    assert list(GroupedSampler(lengths, 4, 18)) == list(other), "a pass further is a seed further"


groups_of_rows = st.lists(st.integers(1, 9), min_size=1, max_size=40).map(
    lambda sizes: [None if size == 1 else f"g{at}" for at, size in enumerate(sizes) for _ in range(size)]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(groups_of_rows, st.integers(1, 12), st.integers(0, 5))
def test_a_group_is_cut_only_where_no_other_fits(groups, step_rows, seed):
    order = together_order(groups, step_rows, seed)
    assert sorted(order) == list(range(len(groups))) and order == together_order(groups, step_rows, seed)
    steps = [order[at : at + step_rows] for at in range(0, len(order), step_rows)]
    sizes = Counter(group for group in groups if group is not None)
    for number, step in enumerate(steps):
        here = Counter(groups[index] for index in step)
        later = Counter(groups[index] for rest in steps[number + 1 :] for index in rest)
        cut = [group for group in here if group is not None and later[group] and sizes[group] <= step_rows]
        begun_before = {groups[index] for rest in steps[:number] for index in rest}
        for group in set(cut) - begun_before:
            room = here[group]
            assert len(step) == step_rows, "only the last step may be short"
            whole_later = [size for other, size in later.items() if other not in (None, group) and size == sizes[other]]
            assert not later[None] and all(size > room for size in whole_later), "another would have fitted"


def test_groups_that_divide_a_step_are_never_cut_and_are_shuffled():
    groups = [f"g{number // 3}" for number in range(60)]
    orders = [together_order(groups, 6, seed) for seed in (17, 18)]
    for order in orders:
        for at in range(0, 60, 6):
            assert set(Counter(groups[index] for index in order[at : at + 6]).values()) == {3}
    assert orders[0] != orders[1] and orders[0] != list(range(60))


def test_a_sampler_of_groups_has_an_order_for_every_pass():
    groups = ["a", "a", None, "b", "b", None]
    sampler = TogetherSampler(groups, 2, 17)
    first = list(sampler)
    sampler.set_epoch(1)
    assert len(sampler) == 6 and list(sampler) == together_order(groups, 2, 18)
    sampler.set_epoch(0)
    assert list(sampler) == first == together_order(groups, 2, 17)
