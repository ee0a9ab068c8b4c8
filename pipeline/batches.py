"""Padding, and the alignment convention of everything that is computed per token.

Index r is response token r: `token_logps[r] = log pi(y_r | x, y_<r)`. Masks are true up to and including EOS.
Sequences are padded on the left where responses must end together (generation, scoring), positions always come from
the mask, and masks are carried from the data on: no id means "padding". Only this module pads. Layer 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class ScoringBatch(NamedTuple):
    """B sequences padded on the left to T tokens; their last R positions hold every response."""

    ids_BT: Tensor
    mask_BT: Tensor
    """True on real tokens."""
    positions_BT: Tensor
    response_mask_BT: Tensor
    """True on response tokens, EOS included."""
    responses_within: int
    """R: no response token lies before the last R positions."""


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and mask (B, T) of rows that end together.

    Args:
        rows: token ids, of any lengths above 0.
        pad_id: fills the front; its value never matters.
    """
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[index, width - len(row) :] = True
    return ids, mask


def positions(mask_BT: Tensor) -> Tensor:
    """Position ids from a mask: real tokens count from 0, padding gets 0 (any constant would do)."""
    return (mask_BT.long().cumsum(-1) - 1).clamp(min=0)


def scoring_batch(rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad_id: int) -> ScoringBatch:
    """Pad rows of (ids, response mask) for scoring.

    Raises:
        ValueError: a response mask that differs in length from its ids, or marks the first token (which nothing
            predicts).
    """
    for ids, response_mask in rows:
        if len(ids) != len(response_mask):
            raise ValueError(f"{len(ids)} ids but a response mask of {len(response_mask)}")
        if response_mask[0]:
            raise ValueError("the first token cannot be a response: nothing predicts it")
    ids_BT, mask_BT = pad_left([ids for ids, _ in rows], pad_id)
    response_mask_BT = torch.zeros_like(mask_BT)
    for index, (ids, response_mask) in enumerate(rows):
        response_mask_BT[index, ids_BT.shape[1] - len(ids) :] = torch.tensor(response_mask, dtype=torch.bool)
    marked = response_mask_BT.any(0).nonzero()
    within = ids_BT.shape[1] - int(marked[0]) if len(marked) else 0
    return ScoringBatch(ids_BT, mask_BT, positions(mask_BT), response_mask_BT, within)


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padding and the peak comes early."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def by_beginning(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of rows that begin alike, where these share what they begin with and nothing is padded."""
    order = sorted(range(len(rows)), key=lambda index: (tuple(rows[index]), index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def same_prompt(prompts: Sequence[Sequence[int]]) -> list[range]:
    """Rows next to one another whose prompts are the same: a pass over all of them reads their prompt once."""
    starts = [row for row in range(len(prompts)) if row == 0 or list(prompts[row]) != list(prompts[row - 1])]
    return [range(first, end) for first, end in pairwise([*starts, len(prompts)])]


def longest_first(groups: Sequence[range], lengths: Sequence[int]) -> list[list[int]]:
    """The rows of each group, groups with the most tokens first, so that the peak comes early."""
    inner = [sorted(group, key=lambda row: (-lengths[row], row)) for group in groups]
    return sorted(inner, key=lambda rows: (-sum(lengths[row] for row in rows), rows[0]))


class ResponseBatch(NamedTuple):
    """B prompts, padded on the left to P tokens, each followed by a response, padded on the right to R tokens."""

    ids_BT: Tensor
    """T = P + R."""
    mask_BT: Tensor
    """True on real tokens."""
    positions_BT: Tensor
    response_ids_BR: Tensor
    response_mask_BR: Tensor
    """True up to and including the last token of each response."""

    @property
    def lengths_B(self) -> Tensor:
        """Tokens of each response."""
        return self.response_mask_BR.sum(-1)

    def before_responses(self, states_BTX: Tensor) -> Tensor:
        """What stands before each response token (B, R, X): entry r saw the prompt and y_<r."""
        width = self.response_ids_BR.shape[1]
        return states_BTX[:, -width - 1 : -1]


def response_batch(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> ResponseBatch:
    """Pad prompts and their responses.

    Raises:
        ValueError: an empty prompt or response, which has no place in the alignment convention.
    """
    if not all(map(len, prompts)) or not all(map(len, responses)):
        raise ValueError("every prompt and every response must have at least one token")
    prompt_ids, prompt_mask = pad_left(prompts, pad_id)
    response_ids, response_mask = pad_right(responses, pad_id)
    mask = torch.cat((prompt_mask, response_mask), dim=1)
    ids = torch.cat((prompt_ids, response_ids), dim=1)
    return ResponseBatch(ids, mask, positions(mask), response_ids, response_mask)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids (B, R) and mask (B, R) of rows that begin together."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = True
    return ids, mask
