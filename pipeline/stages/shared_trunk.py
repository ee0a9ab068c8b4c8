"""A stage's frozen trunk: what the layers below the adapter give, once for all roles of a step, or for all passes.

In one pass over the rows every micro-batch goes through them as a whole, sharing common beginnings. In several passes
rows meet in other micro-batches each time, so each row goes through them alone and is kept, if all of them fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.context import StageContext, engine_of
from pipeline.models.frozen_trunk import split_trunk
from pipeline.models.trunk_cache import TrunkCache
from pipeline.recipe.stage_settings import OfflineSettings
from pipeline.stages.stream_trainer import Objective
from pipeline.streams import StandIn, Stream


@dataclass(frozen=True, slots=True)
class SharedTrunk:
    """How a trainer gets what its steps start from."""

    cache: TrunkCache
    by_row: bool
    """Each row by itself and kept, or a micro-batch at a time."""

    def below(self, stream: Stream, rows: Sequence[Any], objective: Objective[Any]) -> StandIn:
        """What stands in for the frozen layers in a micro-batch."""
        if self.by_row:
            return self.cache.below_parts(stream, [objective.stream([row]) for row in rows])
        return self.cache.trunk.below(stream)


def trunk_cache(context: StageContext, model: Any) -> TrunkCache | None:
    """A model's frozen trunk with the recipe's memory for it; None, said to the person, where it cannot be had."""
    adapter = context.recipe.model.adapter
    if adapter == "none" or adapter.layers == "all":
        return None
    engine = engine_of(context)
    if engine.spreads_parameters:
        # A layer that one rank has the output of and another has not would wait for its pieces for ever.
        _say_why_not(context, f"under {engine} every layer is gathered by all ranks at once")
        return None
    found = split_trunk(model)
    if found.trunk is not None:
        context.console.say(f"layers below the adapter, computed once and without gradient: {len(found.trunk.frozen)}")
        return TrunkCache(found.trunk, int(adapter.trunk_cache_gib * 2**30))
    if found.why_not is not None:
        _say_why_not(context, found.why_not)
    return None


def _say_why_not(context: StageContext, why: str) -> None:
    context.console.say(f"the layers below the adapter are computed again for every role and pass: {why}")


def share_trunk(
    context: StageContext, settings: OfflineSettings, model: Any, rows: Sequence[Any], objective: Objective[Any]
) -> SharedTrunk | None:
    """What a stage's trainer shares below the adapter.

    Args:
        context: of the stage.
        settings: of the stage.
        model: in training, all adapters on it.
        rows: to train on.
        objective: what is learned from them.
    """
    cache = trunk_cache(context, model)
    if cache is None:
        return None
    if _passes(settings, len(rows)) <= 1:
        return SharedTrunk(cache, by_row=False)
    tokens = sum(len(objective.stream([row]).ids_N) for row in rows)
    fits = cache.has_room_for(tokens)
    if not fits:
        context.console.say(
            f"what these layers give for all rows takes {cache.bytes_for(tokens) / 2**30:.1f} GiB, more than "
            "model.adapter.trunk_cache_gib: it is computed anew in every pass"
        )
    return SharedTrunk(cache, by_row=fits)


def _passes(settings: OfflineSettings, rows: int) -> float:
    """How often training comes by a row."""
    if settings.max_steps is None:
        return settings.epochs
    return settings.max_steps * settings.global_batch_size / max(rows, 1)
