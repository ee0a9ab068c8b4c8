"""Answers of a model in training or evaluation: greedy or sampled, in streams where it takes them, else by generate.

Nothing is inherited from the model's own generation settings.

Sampling noise belongs to the prompt, not to the process: the answer to prompt i is drawn with a generator of its own,
seeded by (seed, i). So it does not depend on how prompts are batched or shared out over processes, there is no state
to save for a resume, and two policies that answer the same prompts do so with the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from pipeline.batches import by_length, pad_left, same_prompt
from pipeline.faults import reach
from pipeline.models import adapters
from pipeline.models.forward import VocabularyHead, evaluating
from pipeline.rollouts.answers import Answer, Progress, Sampling, agree_to_go_on, asked, cut_at_stop
from pipeline.rollouts.decoding import Choice, Largest, decode, streaming_head
from pipeline.runtime import Ranks, StopRequest, autocast, gather_rows


@dataclass(frozen=True, slots=True)
class Generator:
    """Generates, prompts shared out over the ranks.

    Args:
        model: a causal language model, adapters included.
        pad_id: any id.
        stop_ids: ids that end an answer.
        batch_size: prompts at a time.
        precision: bf16, fp16 or fp32.
        ranks: this process among its peers; every rank must make the same calls.
        padded: by transformers' generate, even where the model could decode in streams.
    """

    model: Any
    pad_id: int
    stop_ids: tuple[int, ...]
    batch_size: int
    precision: str
    ranks: Ranks
    padded: bool = False

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in the prompts' order; a sampled answer depends on the seed and its place alone."""
        reach("answers.begun")
        # Answers to one prompt stay on one rank, where it is read once for all of them.
        groups = same_prompt(prompts)[self.ranks.rank :: self.ranks.world_size]
        mine = [row for group in groups for row in group]
        found: dict[int, Answer] = {}
        if progress is not None:
            progress(0, len(mine))
        # Adapters first: what inference mode makes could not be trained afterwards.
        with (
            evaluating(self.model), adapters.held_in(self.model, self.precision), torch.inference_mode(),
            autocast(self.precision),
        ):  # fmt: skip
            head = None if self.padded or not mine else streaming_head(self.model)
            for batch in by_length([len(prompts[index]) for index in mine], self.batch_size):
                if asked(stop):
                    break
                picked = [mine[index] for index in batch]
                answers = self._batch([prompts[index] for index in picked], picked, sampling, head)
                found.update(zip(picked, answers, strict=True))
                if progress is not None:
                    progress(len(found), len(mine))
        agree_to_go_on(stop)
        return gather_rows({row: found[row] for row in mine})

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        places: Sequence[int],
        sampling: Sampling,
        head: VocabularyHead | None,
    ) -> list[Answer]:
        if head is None:
            return self._by_transformers(prompts, places, sampling)
        choice = _choice(places, sampling, next(self.model.parameters()).device)
        return decode(self.model, head, prompts, choice, sampling.max_new_tokens, self.stop_ids)

    def _by_transformers(
        self, prompts: Sequence[Sequence[int]], places: Sequence[int], sampling: Sampling
    ) -> list[Answer]:
        from transformers import GenerationConfig

        device = next(self.model.parameters()).device
        ids, mask = pad_left(prompts, self.pad_id)
        # Noise is added to the logits, so that the largest one is the sample.
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        with without_own_settings(self.model):
            produced = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.long().to(device),
                generation_config=config,
                logits_processor=_processors(places, sampling, device),
            )
        return [cut_at_stop(row, self.stop_ids) for row in produced[:, ids.shape[1] :].tolist()]


class GumbelNoise(LogitsProcessor):
    """Adds each row's own Gumbel noise to its tempered logits: their largest entry is a sample (Gumbel-max trick).

    Args:
        seeds: of each row's generator.
        temperature: divides the logits.
        device: of the logits.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device):
        self._temperature = temperature
        self._rows = [_exponential(seed, device) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Noisy scores (B, V)."""
        noise = torch.empty_like(scores)
        for values, row in zip(noise, self._rows, strict=True):
            row(values)
        return scores / self._temperature - noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_()

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows come again, in this order; each goes on with the noise of its own."""
        self._rows = [self._rows[row] for row in rows]


class Drawn:
    """A sample of each row's tempered distribution, with the row's own noise."""

    def __init__(self, noise: GumbelNoise):
        self._noise = noise

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Sampled tokens (B,)."""
        return self._noise(torch.empty(0), logits_BV).argmax(-1)

    def keep(self, rows: Sequence[int]) -> None:
        """As the noise does."""
        self._noise.keep(rows)


def _processors(places: Sequence[int], sampling: Sampling, device: torch.device) -> LogitsProcessorList:
    noise = _noise(places, sampling, device)
    return LogitsProcessorList() if noise is None else LogitsProcessorList([noise])


def _choice(places: Sequence[int], sampling: Sampling, device: torch.device) -> Choice:
    noise = _noise(places, sampling, device)
    return Largest() if noise is None else Drawn(noise)


def _noise(places: Sequence[int], sampling: Sampling, device: torch.device) -> GumbelNoise | None:
    if sampling.temperature is None:
        return None
    return GumbelNoise([place_seed(sampling.seed, place) for place in places], sampling.temperature, device)


def place_seed(seed: int, place: int) -> int:
    """Seed of the answer to one prompt of a call: a hash, as generators with neighbouring seeds may start alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{place}".encode()).digest()[:8]) >> 1


def _exponential(seed: int, device: torch.device) -> Callable[[Tensor], Any]:
    """Fills tensors (V,), one after the other, with standard exponential noise."""
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(seed)
        return lambda values: values.exponential_(generator=generator)
    # On a CPU torch takes three times as long, for a large vocabulary as long as a small model's layers. In double
    # precision: a rare token wins by noise near 0, where numbers drawn in float32 lie too far apart.
    draw = np.random.Generator(np.random.SFC64(seed))
    return lambda values: values.copy_(torch.from_numpy(draw.standard_exponential(len(values))))


@contextmanager
def without_own_settings(model: Any) -> Iterator[None]:
    """Hide the model's own generation settings: transformers fills in from them whatever a call leaves open."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own
