"""The alignment convention of everything that is computed per token: index r is response token r."""

from __future__ import annotations

import pytest
import torch

from pipeline.batches import by_length, longest_first, pad_left, pad_right, positions, response_batch, same_prompt

PROMPTS = [[11, 12, 13], [21], [31, 32, 33, 34, 35]]
RESPONSES = [[51, 52], [61, 62, 63, 64], [71]]


@pytest.fixture
def batch():
    return response_batch(PROMPTS, RESPONSES, 9)


def test_rows_by_hand(batch):
    assert batch.ids_BT.tolist() == [
        [9, 9, 11, 12, 13, 51, 52, 9, 9],
        [9, 9, 9, 9, 21, 61, 62, 63, 64],
        [31, 32, 33, 34, 35, 71, 9, 9, 9],
    ]
    assert batch.mask_BT.tolist() == [[id_ != 9 for id_ in row] for row in batch.ids_BT.tolist()]
    assert batch.positions_BT.tolist() == [
        [0, 0, 0, 1, 2, 3, 4, 4, 4],
        [0, 0, 0, 0, 0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4, 5, 5, 5, 5],
    ]
    assert batch.response_ids_BR.tolist() == [[51, 52, 9, 9], [61, 62, 63, 64], [71, 9, 9, 9]]
    assert batch.response_mask_BR.sum(-1).tolist() == batch.lengths_B.tolist() == [2, 4, 1]
    assert batch.mask_BT.dtype == batch.response_mask_BR.dtype == torch.bool


def test_real_tokens_count_on_across_the_border(batch):
    """Each row's real tokens are its prompt and response, at positions 0, 1, 2, ..."""
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        mask = batch.mask_BT[row]
        assert batch.ids_BT[row][mask].tolist() == prompt + response
        assert batch.positions_BT[row][mask].tolist() == list(range(len(prompt + response)))


def test_entry_r_saw_the_prompt_and_what_came_before(batch):
    """The state at each place is everything a causal model has seen there."""
    seen = [[row[: t + 1] for t in range(9)] for row in batch.ids_BT.tolist()]
    places = torch.arange(9)[None, :, None].expand(3, 9, 1)
    before = batch.before_responses(places)[..., 0]
    assert before.shape == batch.response_ids_BR.shape
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for r in range(len(response)):
            history = [id_ for id_ in seen[row][int(before[row, r])] if id_ != 9]
            assert history == prompt + response[:r]


@pytest.mark.parametrize("pad_id", [0, 2, 51])
def test_a_pad_id_that_occurs_is_told_apart_by_the_mask(pad_id):
    """The mask comes from lengths: an end of turn that is also the padding stays a real token."""
    found = response_batch([[1, 2], [1]], [[51, 2], [2]], pad_id)
    assert found.response_mask_BR.tolist() == [[True, True], [True, False]]
    assert found.mask_BT.sum(-1).tolist() == [4, 2]


def test_empty_prompts_and_responses_are_refused():
    for prompts, responses in (([[1], []], [[2], [2]]), ([[1], [1]], [[2], []])):
        with pytest.raises(ValueError, match="must have at least one token"):
            response_batch(prompts, responses, 0)


def test_unequal_numbers_are_refused():
    with pytest.raises(RuntimeError):
        response_batch([[1], [1]], [[2]], 0)


def test_padding_on_either_side():
    left, right = pad_left([[1, 2], [3]], 9), pad_right([[1, 2], [3]], 9)
    assert left[0].tolist() == [[1, 2], [9, 3]] and left[1].tolist() == [[True, True], [False, True]]
    assert right[0].tolist() == [[1, 2], [3, 9]] and right[1].tolist() == [[True, True], [True, False]]
    assert positions(left[1]).tolist() == [[0, 1], [0, 0]] and positions(right[1]).tolist() == [[0, 1], [0, 0]]


def test_batches_of_similar_length_hold_every_row_once():
    lengths = [3, 9, 1, 9, 5, 2, 7]
    found = list(by_length(lengths, 3))
    assert sorted(index for rows in found for index in rows) == list(range(7))
    flat = [lengths[index] for rows in found for index in rows]
    assert flat == sorted(lengths, reverse=True) and [len(rows) for rows in found] == [3, 3, 1]
    assert list(by_length([], 3)) == []


def test_rows_of_one_prompt_are_those_next_to_one_another():
    a, b = [1, 2], [1, 2, 3]
    assert same_prompt([a, a, b, b, b, a]) == [range(2), range(2, 5), range(5, 6)]
    assert same_prompt([a, b]) == [range(1), range(1, 2)] and same_prompt([]) == []


def test_groups_with_the_most_tokens_come_first():
    """130 beside three of 10 is less than four of 129, and what a group holds stays together."""
    groups = [range(4), range(4, 8), range(8, 12)]
    lengths = [130, 10, 10, 10, 129, 129, 129, 129, 5, 7, 6, 7]
    assert longest_first(groups, lengths) == [[4, 5, 6, 7], [0, 1, 2, 3], [9, 11, 10, 8]]
    singles = [range(row, row + 1) for row in range(12)]
    assert [row for (row,) in longest_first(singles, lengths)] == next(by_length(lengths, 99))
