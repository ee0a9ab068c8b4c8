"""Answers by transformers' continuous batching: paged attention, and an answer that ends makes room for the next.

Prompts and answers go forward packed, without padding. The attention is the one the model was loaded with: sdpa and
eager, which build a mask over everything in the pack, or flash attention, which needs none and is what continuous
batching is made for.

Promised: plain sampling from the whole tempered distribution, nothing inherited from the model's own generation
settings; the same answers from the same call on the same number of ranks, since all requests wait before the first
step; the model, its attention, its modes and the random generators left as they were.

Not promised: the answers of `generate`. Noise is drawn for whatever is scheduled together, so an answer depends on
the other prompts, on `batch_size` and on the number of ranks. The forward pass runs in a thread of its own, where
autocast does not reach: it computes in the weights' own type. So the sampler's log-probabilities are handed on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import TrivetError
from pipeline.models.forward import causal_model
from pipeline.models.stream_attention import STREAMS
from pipeline.rollouts.answers import Answer, Progress, Sampling, agree_to_go_on, asked, cut_at_stop
from pipeline.rollouts.generate import place_seed, without_own_settings
from pipeline.runtime import Ranks, StopRequest, gather_lists

CHUNK = 1024
"""Tokens that go forward together at most, unless more answers are under way: longer prompts are read in parts."""


@dataclass(frozen=True, slots=True)
class PagedGenerator:
    """Generates with continuous batching, prompts shared out over the ranks.

    Args:
        model: a causal language model, adapters included.
        stop_ids: ids that end an answer.
        batch_size: answers under way at a time.
        ranks: this process among its peers; every rank must make the same calls.
    """

    model: Any
    stop_ids: tuple[int, ...]
    batch_size: int
    ranks: Ranks

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in the prompts' order, with the sampler's log-probabilities unless greedy.

        Raises:
            TrivetError: continuous batching does not know this model, or there is no memory for so many answers.
        """
        mine = [list(prompt) for prompt in prompts[self.ranks.rank :: self.ranks.world_size]]
        if progress is not None:
            progress(0, len(mine))
        found = self._generated(mine, sampling, progress, stop) if mine else []
        agree_to_go_on(stop)
        return gather_lists(found)

    def _generated(
        self, prompts: list[list[int]], sampling: Sampling, progress: Progress | None, stop: StopRequest | None
    ) -> list[Answer]:
        inner = causal_model(self.model)
        try:
            with _left_as_found(inner), without_own_settings(self.model):
                how = _sampling(sampling, self.stop_ids)
                results = _run(inner, prompts, self._config(prompts, sampling), how, progress, stop)
        except ValueError as error:
            raise TrivetError(
                f"rollout_engine: paged cannot run {type(inner).__name__} ({error}); use rollout_engine: generate"
            ) from error
        except MemoryError as error:
            raise TrivetError(
                f"rollout_engine: paged has no memory for the keys and values of {self.batch_size} answers at a time "
                f"({error}); lower generation_batch_size"
            ) from error
        drawn = sampling.temperature is not None
        return [cut_at_stop(one.generated_tokens, self.stop_ids, one.logprobs if drawn else None) for one in results]

    def _config(self, prompts: list[list[int]], sampling: Sampling) -> Any:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        longest = sorted(map(len, prompts), reverse=True)[: self.batch_size]
        page = ContinuousBatchingConfig.page_size
        return ContinuousBatchingConfig(
            # Room for all that can be under way, so that no answer is ever put back and read anew.
            num_blocks=sum(math.ceil((length + sampling.max_new_tokens) / page) for length in longest),
            safety_margin=0.0,
            max_requests_per_batch=self.batch_size,
            max_batch_tokens=max(CHUNK, self.batch_size),
            return_logprobs=sampling.temperature is not None,
            seed=place_seed(sampling.seed, self.ranks.rank),
            # Another attention than the trainer's would be fetched from the hub without a word.
            auto_switch_to_flash=False,
            allow_block_sharing=False,
            disable_nccl_graph_mixing=False,
        )


def _sampling(sampling: Sampling, stop_ids: Sequence[int]) -> Any:
    from transformers import GenerationConfig

    # Unsaid, `do_sample` is greedy here.
    drawn = sampling.temperature is not None
    how = {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if drawn else {}
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=drawn,
        repetition_penalty=1.0,
        eos_token_id=list(stop_ids),
        **how,
    )


def _run(
    inner: Any,
    prompts: list[list[int]],
    config: Any,
    sampling: Any,
    progress: Progress | None,
    stop: StopRequest | None,
) -> list[Any]:
    """Results in the prompts' order, or none if asked to stop.

    `generate_batch` would begin before all requests wait, and swallow errors.
    """
    if inner.device.type == "cuda":
        # What the trainer's allocator keeps for itself counts as taken.
        torch.cuda.empty_cache()
    manager = inner.init_continuous_batching(generation_config=sampling, continuous_batching_config=config)
    found: dict[str, Any] = {}
    try:
        names = manager.add_requests(prompts, max_new_tokens=sampling.max_new_tokens)
        manager.start()
        while len(found) < len(names):
            if asked(stop):
                return []
            result = manager.get_result(timeout=1)
            if result is not None and result.error is None:
                found[result.request_id] = result
                if progress is not None:
                    progress(len(found), len(names))
            elif result is not None or not manager.is_running():
                # The results of a crash are handed out before its cause.
                manager.join(time.perf_counter(), timeout=5)
                raise manager.background_thread_status.fatal_error or RuntimeError(
                    f"continuous batching gave {len(found)} of {len(names)} answers"
                    + (f": {result.error}" if result is not None else "")
                )
    finally:
        if manager.is_running():
            manager.stop(hard_stop=True)
        manager.destroy()
    return [found[name] for name in names]


@contextmanager
def _left_as_found(inner: Any) -> Iterator[None]:
    """Put back what continuous batching changes: training modes, attention, and the generators that it seeds."""
    modes = [(module, module.training) for module in inner.modules()]
    attention = inner.config._attn_implementation
    if attention == STREAMS:
        # It knows scaled-dot-product attention by that name alone.
        inner.set_attn_implementation("sdpa")
    try:
        with torch.random.fork_rng(devices=[inner.device] if inner.device.type == "cuda" else []):
            yield
    finally:
        if inner.config._attn_implementation != attention:
            inner.set_attn_implementation(attention)
        for module, training in modes:
            module.training = training
