"""Packing sequences into a stream: nothing lost, nothing twice, nobody sees what is not their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.stream_attention import Layout
from pipeline.streams import SHORTEST_SHARED, at_places, balanced, pack, parts_within, stream_of

TOKENS = st.integers(0, 1)
"""So few that beginnings are often shared."""
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=30), min_size=1, max_size=8)


def seen(packed: Any) -> list[set[int]]:
    """Which tokens of the row each of them looks at, by the slow way: masks of every segment."""
    layout = Layout(packed.segments, packed.positions_N)
    found: list[set[int]] = [set() for _ in packed.ids_N]
    for index, segment in enumerate(packed.segments):
        keys = [at for run in layout.keys(segment) for at in range(run.start, run.stop)]
        mask = layout.mask(index, None)
        size = segment.stop - segment.start
        rows = torch.ones(size, size).tril().bool() if mask is None else mask
        for row, token in enumerate(range(segment.start, segment.stop)):
            found[token] = {key for key, open_ in zip(keys, rows[row].tolist(), strict=True) if open_}
    return found


@given(SEQUENCES)
def test_every_token_sees_exactly_its_sequence_so_far(sequences):
    packed = pack(sequences)
    looked = seen(packed)
    for sequence, places in zip(sequences, packed.places, strict=True):
        assert packed.ids_N[torch.from_numpy(places)].tolist() == sequence
        assert packed.positions_N[torch.from_numpy(places)].tolist() == list(range(len(sequence)))
        for position, place in enumerate(places.tolist()):
            assert looked[place] == set(places[: position + 1].tolist())


@given(SEQUENCES)
def test_segments_are_the_row(sequences):
    packed = pack(sequences)
    assert [segment.start for segment in packed.segments] == [0, *(segment.stop for segment in packed.segments[:-1])]
    assert packed.segments[-1].stop == len(packed.ids_N)


def test_common_beginnings_stand_once():
    """A template's ten tokens, two prompts, two answers each: 10 + 2 (9 + 3 + 4); the third answer shares nothing."""
    system, prompts = list(range(10)), [list(range(20, 29)), list(range(30, 39))]
    rows = [[*system, *prompt, *answer] for prompt in prompts for answer in ([1, 1, 1], [2, 2, 2, 2])]
    packed = pack(rows)
    assert len(packed.ids_N) == 10 + 2 * (9 + 3 + 4)
    assert [len(segment.context) for segment in packed.segments] == [0, 1, 1, 2]
    assert len(pack([*rows, [9] * 5]).ids_N) == len(packed.ids_N) + 5
    assert len(pack([rows[0]] * 3).ids_N) == len(rows[0]), "the same sequence again costs nothing"


def test_short_beginnings_are_not_worth_it():
    few, enough = [7] * (SHORTEST_SHARED - 1), [7] * SHORTEST_SHARED
    assert len(pack([[*few, 1], [*few, 2]]).segments) == 2
    assert all(not segment.context for segment in pack([[*few, 1], [*few, 2]]).segments)
    assert pack([[*enough, 1], [*enough, 2]]).segments[1].context == ((0, SHORTEST_SHARED),)


@given(SEQUENCES, st.randoms(use_true_random=False))
def test_response_tokens_keep_who_predicts_them(sequences, draw):
    rows = [(ids, [False, *(draw.random() < 0.5 for _ in ids[1:])]) for ids in sequences]
    stream = stream_of(rows)
    places = pack(sequences).places
    expected = [
        (int(places[index][at - 1]), ids[at], index)
        for index, (ids, mask) in enumerate(rows)
        for at, wanted in enumerate(mask)
        if wanted
    ]
    found = zip(stream.predictors_M.tolist(), stream.targets_M.tolist(), stream.sequences_M.tolist(), strict=True)
    assert list(found) == expected
    assert stream.ends_S.tolist() == [int(each[-1]) for each in places]
    assert stream.lengths_S().tolist() == [sum(mask) for _, mask in rows]
    ones = torch.ones(len(expected), dtype=torch.float64)
    assert stream.per_sequence(ones).tolist() == [float(sum(mask)) for _, mask in rows]


def test_windows_are_heeded():
    packed = pack([[*range(12), 1, 2], [*range(12), 3, 4, 5]])
    layout = Layout(packed.segments, packed.positions_N)
    mask = layout.mask(1, 4)
    assert mask is not None and mask.sum(-1).tolist() == [4, 4, 4]
    assert layout.mask(0, 100) is None and layout.mask(0, 14) is None and layout.mask(0, 13) is not None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([([1, 2], [False])], "2 ids but a response mask of 1"),
        ([([1, 2], [True, True])], "nothing predicts it"),
        ([([], [])], "at least one token"),
    ],
)
def test_what_has_no_place_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        stream_of(rows)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 6))
def test_parts_are_balanced_and_whole(sizes, parts):
    found = balanced(sizes, parts)
    assert sorted(index for part in found for index in part) == list(range(len(sizes)))
    assert len(found) == parts and sum(1 for part in found if part) == min(parts, len(sizes))
    totals = [sum(sizes[index] for index in part) for part in found]
    best = max(max(sizes), sum(sizes) / parts)
    assert max(totals) <= 4 / 3 * best + max(sizes)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 120))
def test_parts_keep_to_a_number_wherever_they_can(sizes, most):
    found = parts_within(sizes, most)
    assert sorted(index for part in found for index in part) == list(range(len(sizes)))
    assert all(len(part) == 1 or 0 < sum(sizes[index] for index in part) <= most for part in found)
    assert len(found) == 1 or sum(sizes) > most


def test_parts_of_a_known_size():
    assert parts_within([30, 10, 10, 10], 30) == [[0], [1, 2, 3]]
    assert parts_within([100, 1, 1], 10) == [[0], [1, 2]]
    assert parts_within([5, 5, 5], 15) == [[0, 1, 2]]


def test_gradients_of_one_place_are_added_in_one_order():
    """Plain indexing fails this on two threads, mostly at the second try."""
    draw = torch.Generator().manual_seed(0)
    values_N = torch.randn(700, 576, generator=draw)
    places, weights = torch.randint(300, (30, 25), generator=draw), torch.randn(30, 25, 576, generator=draw)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    try:
        gradients = []
        for _ in range(10):
            leaf = values_N.clone().requires_grad_()
            found = at_places(leaf, places)
            assert torch.equal(found, values_N[places])
            (found * weights).sum().backward()
            gradients.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, gradients[0]) for each in gradients)
    slow = torch.zeros(700, 576, dtype=torch.float64)
    for place, weight in zip(places.flatten().tolist(), weights.reshape(-1, 576), strict=True):
        slow[place] += weight.double()
    torch.testing.assert_close(gradients[0].double(), slow, atol=1e-5, rtol=1e-5)
