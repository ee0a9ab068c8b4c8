"""Answers of a policy to prompts: greedy or sampled, nothing inherited from the model's own generation settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.batches import by_length, pad_left
from pipeline.runtime import Ranks, autocast, gather_lists

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated response."""

    ids: list[int]
    """Response tokens, the stop token included where there is one."""
    stopped: bool
    """Whether it ended by itself, rather than at the length limit."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    `temperature` None is greedy; otherwise plain sampling from the whole distribution, divided by the temperature.
    """

    max_new_tokens: int
    temperature: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generator:
    """Generates with transformers, prompts shared out over the ranks.

    Args:
        model: a causal language model, adapters included.
        pad_id: any id.
        stop_ids: ids that end an answer.
        batch_size: prompts at a time.
        precision: bf16, fp16 or fp32.
        ranks: this process among its peers; every rank must make the same calls.
    """

    model: Any
    pad_id: int
    stop_ids: tuple[int, ...]
    batch_size: int
    precision: str
    ranks: Ranks

    def answers(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> list[Answer]:
        """One answer per prompt, in the prompts' order; a sampled answer depends on the seed and its batch."""
        mine = list(range(self.ranks.rank, len(prompts), self.ranks.world_size))
        found: dict[int, Answer] = {}
        was_training = self.model.training
        self.model.eval()
        if progress is not None:
            progress(0, len(mine))
        with torch.inference_mode(), autocast(self.precision), torch.random.fork_rng():
            torch.manual_seed(sampling.seed * 1_000_003 + self.ranks.rank)
            for batch in by_length([len(prompts[index]) for index in mine], self.batch_size):
                picked = [mine[index] for index in batch]
                found.update(zip(picked, self._batch([prompts[index] for index in picked], sampling), strict=True))
                if progress is not None:
                    progress(len(found), len(mine))
        self.model.train(was_training)
        return gather_lists([found[index] for index in mine])

    def _batch(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Answer]:
        from transformers import GenerationConfig

        device = next(self.model.parameters()).device
        ids, mask = pad_left(prompts, self.pad_id)
        greedy = sampling.temperature is None
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=not greedy,
            temperature=1.0 if greedy else sampling.temperature,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        with _without_own_settings(self.model):
            produced = self.model.generate(
                input_ids=ids.to(device), attention_mask=mask.long().to(device), generation_config=config
            )
        return [self._cut(row) for row in produced[:, ids.shape[1] :].tolist()]

    def _cut(self, row: list[int]) -> Answer:
        """Everything up to and including the first stop token; what follows is padding."""
        for index, token in enumerate(row):
            if token in self.stop_ids:
                return Answer(row[: index + 1], True)
        return Answer(row, False)


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Hide the model's own generation settings: transformers fills in from them whatever a call leaves open."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own
