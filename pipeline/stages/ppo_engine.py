"""Which engine samples a PPO stage's answers: the policy itself through transformers, or vLLM with its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data_prep.chat import ChatFormatter
from pipeline.context import StageContext
from pipeline.errors import RecipeError
from pipeline.models.forward import causal_model
from pipeline.models.load import device
from pipeline.models.roles import Roles
from pipeline.models.shards import is_spread_model
from pipeline.models.stream_forward import attend_in_streams
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import Answer, Engine, Progress, Sampling
from pipeline.rollouts.decoding import streaming_head
from pipeline.rollouts.generate import Generator
from pipeline.rollouts.paged import PagedGenerator
from pipeline.runtime import StopRequest
from pipeline.stages.ppo_vllm import ColocatedEngine, ServerEngine


class PolicyEngine:
    """Samples with the policy in training itself.

    Args:
        roles: whose policy samples.
        on: what generates with a model.
    """

    def __init__(self, roles: Roles, on: Callable[[Any], Engine]):
        self._roles = roles
        self._on = on

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> list[Answer]:
        """One answer per prompt, of the policy as it is now."""
        with self._roles.sampling() as model:
            return self._on(model).answers(prompts, sampling, progress, stop)


def make_engine(
    context: StageContext, settings: PpoSettings, roles: Roles, formatter: ChatFormatter, pad_id: int, precision: str
) -> Engine:
    """The engine that the recipe asks for.

    Raises:
        RecipeError: vLLM without a GPU, or with a quantised base; streams that the policy cannot decode in.
        SourceUnreachableError: vLLM is not installed, or its server not there.
    """
    kind, stops, ranks = settings.rollout_engine, formatter.stop_ids, context.ranks
    size = settings.generation_batch_size
    if kind in ("auto", "streams", "generate"):
        padded = kind == "generate" or not _decodes_in_streams(context, roles, must=kind == "streams")
        return PolicyEngine(roles, lambda model: Generator(model, pad_id, stops, size, precision, ranks, padded))
    if kind == "paged":
        return PolicyEngine(roles, lambda model: PagedGenerator(model, stops, size, ranks))
    _require_vllm_fits(context, kind)
    if kind == "vllm_server":
        return ServerEngine(roles, settings.vllm.url, context.base_folder, stops, device())
    return ColocatedEngine(
        roles,
        context.base_folder,
        stops,
        ranks,
        memory=settings.vllm.gpu_memory_utilization,
        longest=context.recipe.data.prompts.max_prompt_length + settings.max_new_tokens,
        batch_size=size,
        device=device(),
    )


def _decodes_in_streams(context: StageContext, roles: Roles, *, must: bool) -> bool:
    """Whether the policy decodes in streams; if not, why is said, or raised where the recipe insists."""
    with roles.sampling() as model:
        if streaming_head(model) is not None:
            return True
        why = _why_not_in_streams(model, context.recipe.model.attention)
    at = f"stages.{context.stage}.rollout_engine"
    if must:
        raise RecipeError(f"{at}: streams are not possible here: {why}; leave it at auto")
    context.console.say(f"transformers' generate samples the answers: {why}")
    return False


def _why_not_in_streams(model: Any, attention: str) -> str:
    if attention != "auto":
        return f"model.attention is {attention}, which pads rows"
    if is_spread_model(model):
        return "the policy is spread over the ranks, which must call it equally often"
    return attend_in_streams(model) or f"the output of {type(causal_model(model)).__name__} cannot be taken apart"


def _require_vllm_fits(context: StageContext, kind: str) -> None:
    quantization = context.recipe.model.quantization
    if quantization != "none":
        raise RecipeError(
            f"stages.{context.stage}.rollout_engine: {kind} is sent merged weights, and an adapter cannot be merged "
            f"into a base in {quantization}; write model.quantization: none, or rollout_engine: generate or paged"
        )
    if device().type != "cuda":
        raise RecipeError(
            f"stages.{context.stage}.rollout_engine: {kind} needs a CUDA GPU, which this machine lacks; use "
            f"`--set stages.{context.stage}.rollout_engine=generate`"
        )
