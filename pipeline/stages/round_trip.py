"""After a save from under an engine: do the files give what the model in training gives?

Weights that lie spread over ranks, or in the engine's type, go through hands that have lost them before: empty
adapters, heads left out, keys that nobody loads. So the first rank loads what was written as the next stage will, and
compares a few rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from evaluation.likelihood import Row, response_logps
from pipeline.batches import ScoringBatch, pad_left, scoring_batch
from pipeline.context import StageContext, engine_of
from pipeline.errors import TrivetError
from pipeline.models import adapters
from pipeline.models.forward import evaluating
from pipeline.models.fully_sharded import computed_within
from pipeline.models.heads import ScalarHead, sequence_scores
from pipeline.models.load import load_base
from pipeline.models.reward_model import head_of
from pipeline.models.shards import scoring_mode
from pipeline.runtime import autocast, from_first_rank, resolve_precision

_ROWS, _TOKENS = 4, 64
_AGREEMENT = {"fp32": 1e-3}
_ROUGH_AGREEMENT = 0.05
"""Nats per token, or units of score: half precision on two devices."""


def require_same_policy(
    model: Any,
    folder: Path,
    rows: Sequence[Sequence[int]],
    context: StageContext,
    live: Callable[[ScoringBatch], torch.Tensor] | None = None,
) -> None:
    """Check that a saved policy gives fixed rows the log-probabilities that the model in training gives them.

    Args:
        model: in training; every rank calls with its own.
        folder: that the first rank wrote.
        rows: token ids of sequences; the first few are used.
        context: of the stage. Without an engine there is nothing to check.
        live: what gives log-probabilities of responses, of the model in training; None for the model itself.

    Raises:
        TrivetError: they differ; both values are named.
    """
    if not _is_due(rows, context):
        return
    picked: list[Row] = [(ids, [False] + [True] * (len(ids) - 1)) for ids in _pick(rows)]
    batch = scoring_batch(picked, 0)

    def per_token(policy: Any, score: Callable[[ScoringBatch], torch.Tensor]) -> list[float]:
        lengths = batch.response_mask_BT.sum(-1)
        return (_scored(policy, context, lambda: score(batch)).cpu() / lengths).tolist()

    def from_file() -> list[float]:
        saved = _loaded(folder, context)
        return per_token(saved, partial(response_logps, saved))

    mine = per_token(model, live or partial(response_logps, model))
    from_first_rank(lambda: _require_close(mine, from_file(), folder, context))


def require_same_scores(
    model: Any, head: ScalarHead, folder: Path, rows: Sequence[Sequence[int]], context: StageContext
) -> None:
    """The same for a reward model and the scores of fixed rows.

    Args:
        model: in training.
        head: its head.
        folder: of the member's saved weights.
        rows: token ids of prompts with their answers.
        context: of the stage.

    Raises:
        TrivetError: they differ; both values are named.
    """
    if not _is_due(rows, context):
        return
    ids, mask = pad_left(_pick(rows), 0)

    def scores(trunk: Any, head: ScalarHead) -> list[float]:
        return _scored(trunk, context, lambda: sequence_scores(trunk, head, ids, mask)).tolist()

    live = scores(model, head)
    from_first_rank(
        lambda: _require_close(live, scores(_loaded(folder, context, rewards=True), head_of(folder)), folder, context)
    )


def _is_due(rows: Sequence[Sequence[int]], context: StageContext) -> bool:
    return engine_of(context).kind != "none" and bool(_pick(rows))


def _pick(rows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    return [row[:_TOKENS] for row in rows[:_ROWS] if len(row) > 1]


def _scored(model: Any, context: StageContext, compute: Any) -> torch.Tensor:
    precision = resolve_precision(context.recipe.stages[context.stage].precision)
    with evaluating(model), scoring_mode(model), autocast(precision):
        found: torch.Tensor = computed_within(model, compute)
    return found.float()


def _loaded(folder: Path, context: StageContext, *, rewards: bool = False) -> Any:
    """What was written, as the next stage will have it; on the CPU, but for a quantised base."""
    # Training is over; while transformers knows of the engine, it would spread this model too, on one rank alone.
    unset_hf_deepspeed_config()
    settings = context.recipe.model
    precision = resolve_precision(context.recipe.stages[context.stage].precision)
    if settings.adapter == "none":
        return load_base(folder, settings, frozen=True, precision=precision, on_host=True)
    base = load_base(context.base_folder, settings, frozen=True, precision=precision, on_host=True)
    if not rewards:
        return adapters.attach_frozen(base, folder, adapters.TRAINED)
    model = adapters.attach_reward(base, folder, adapters.TRAINED)
    model.set_adapter(adapters.TRAINED, inference_mode=True)
    return model


def _require_close(live: list[float], saved: list[float], folder: Path, context: StageContext) -> None:
    precision = resolve_precision(context.recipe.stages[context.stage].precision)
    allowed = _AGREEMENT.get(precision, _ROUGH_AGREEMENT)
    for row, (mine, theirs) in enumerate(zip(live, saved, strict=True)):
        # Written so that a value which is no number does not pass.
        if not abs(mine - theirs) <= allowed * max(1.0, abs(mine)):
            raise TrivetError(
                f"stage {context.stage}: the weights in {folder} are not those that were trained: row {row} gives "
                f"{theirs:.6g} from them and {mine:.6g} from the model under {engine_of(context)}; nothing is handed "
                f"on. Use --set stages.{context.stage}.deepspeed=none, or another ZeRO stage, and report this"
            )
