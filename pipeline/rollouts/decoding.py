"""Answers token by token from a model that attends in streams: prompts read once and unpadded, ended answers dropped.

transformers' generate pads every prompt to the longest, reads what they begin with alike for each of them, and carries
answers that have ended along until the last one has. Here the prompts are one stream, and rows leave the batch. What
is computed for a token is the same, so answers are generate's but for rounding. Layer 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.errors import TrivetError
from pipeline.models.answer_cache import AnswerCache
from pipeline.models.forward import VocabularyHead, attends_in_streams, trunk_of, vocabulary_head
from pipeline.models.shards import is_spread_model
from pipeline.rollouts.answers import Answer
from pipeline.streams import pack

STILL_FULL = 0.8
"""While more than this share of the rows goes on, none is dropped: that copies what is kept of all others."""


class Choice(Protocol):
    """How the next token is chosen, for the rows that are under way."""

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Tokens (B,) from logits in float32, which it may change."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows come again, in this order."""
        ...


class Largest:
    """The most probable token."""

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Greedy tokens (B,)."""
        return logits_BV.argmax(-1)

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing to remember of a row."""


def streaming_head(model: Any) -> VocabularyHead | None:
    """The head of a model that can decode in streams; None for one that cannot.

    A model that is spread over ranks cannot: all of them would have to call it equally often.
    """
    if not attends_in_streams(model) or is_spread_model(model):
        return None
    try:
        return vocabulary_head(model)
    except TrivetError:
        return None


def decode(
    model: Any,
    head: VocabularyHead,
    prompts: Sequence[Sequence[int]],
    choice: Choice,
    max_new_tokens: int,
    stop_ids: Sequence[int],
) -> list[Answer]:
    """One answer per prompt, in their order.

    Args:
        model: a causal language model that attends in streams, in evaluation mode and without gradients.
        head: its head.
        prompts: ids of each.
        choice: chooses tokens, knowing as many rows as there are prompts.
        max_new_tokens: longest answer.
        stop_ids: ids that end an answer.
    """
    trunk, stops = trunk_of(model), frozenset(stop_ids)
    found: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    cache = AnswerCache(pack(prompts), max_new_tokens, next(trunk.parameters()).device)
    hidden_BH = cache.read(trunk)
    while True:
        tokens_B = choice(head(hidden_BH).float())
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            if not _ended(found[row], stops):
                found[row].append(token)
        going = [at for at, row in enumerate(rows) if not _ended(found[row], stops)]
        if not going or len(found[rows[going[0]]]) == max_new_tokens:
            return [Answer(ids, _ended(ids, stops)) for ids in found]
        if len(going) <= STILL_FULL * len(rows):
            cache.keep(going)
            choice.keep(going)
            rows, tokens_B = [rows[at] for at in going], tokens_B[torch.tensor(going, device=tokens_B.device)]
        hidden_BH = cache.extend(trunk, tokens_B)


def _ended(ids: Sequence[int], stops: frozenset[int]) -> bool:
    return bool(ids) and ids[-1] in stops
