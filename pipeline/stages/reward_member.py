"""One member of a reward model: started from the policy, trained, asked, and put aside until all members are done.

A member that is done stays under the stage's `work` folder, so that a kill while the next one trains costs nothing of
it. Members differ by their seed, which decides the head they start with and the order of the pairs.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from trl import RewardConfig

from data_prep.records import Origin
from evaluation.scores import SequenceScorer
from pipeline import checkpoint
from pipeline.artefact import Artefact, TokenizerEntry
from pipeline.context import StageContext, once
from pipeline.errors import TrivetError
from pipeline.models.forward import causal_model, without_dropout
from pipeline.recipe.stage_settings import RewardSettings
from pipeline.runtime import seed_everything
from pipeline.stages.engine import STREAMS, choose_engine
from pipeline.stages.offline import CommittedTrainer, fit, training_arguments
from pipeline.stages.pairs import keep_together
from pipeline.stages.reward_objective import Comparison, MarginPair
from pipeline.stages.reward_questions import Questions
from pipeline.stages.reward_trainer import CommittedRewardTrainer, trainer_rows
from pipeline.stages.reward_weights import member_aside, save_member, starting_model
from pipeline.stages.round_trip import require_same_scores
from pipeline.stages.shared_trunk import share_trunk
from pipeline.stages.spreading import Before
from pipeline.stages.stream_trainer import StreamTrainer
from pipeline.tracking import Tracker

_SEEDS_APART = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What all members have in common."""

    settings: RewardSettings
    start: Artefact | None
    """The policy whose weights they start from; None for the base model."""
    form: str
    """`adapter` or `model`."""
    tokenizer: Any
    description: TokenizerEntry
    precision: str
    rows: list[MarginPair]
    """To train on."""
    groups: list[str | None]
    """Of the rows: those of one group come from one judgement."""
    origins: list[Origin]
    """Of the rows."""
    questions: Questions


@dataclass(frozen=True, slots=True)
class MemberScores:
    """A trained member's raw scores."""

    steps: int
    chosen_before: list[float]
    """Of the held-out pairs, with the head untrained."""
    rejected_before: list[float]
    chosen: list[float]
    rejected: list[float]
    reference: list[float]
    stress_original: list[float]
    stress_changed: list[float]
    alone: list[float]
    """Some of these answers once more, each in a batch of its own."""
    beside_longer: list[float]
    """The same, in one batch with much longer ones."""

    @property
    def padding_residual(self) -> float | None:
        """Largest difference that padding makes to a score."""
        return max((abs(a - b) for a, b in zip(self.alone, self.beside_longer, strict=True)), default=None)


class _Following(Tracker):
    """Writes a later member's steps behind those of the members before it: every step stands in the file once."""

    def __init__(self, tracker: Tracker, steps_before: int):
        self._tracker = tracker
        self._before = steps_before

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one line per value."""
        self._tracker.log(self._before + step, split, values)

    def rewind(self, step: int, *, keep_held_out: bool | Collection[str] = False) -> None:
        """Forget everything after a step of this member."""
        self._tracker.rewind(self._before + max(step, 0), keep_held_out=keep_held_out)

    def finish(self) -> None:
        """Nothing: the stage's tracker goes on."""


def train_member(context: StageContext, training: Training, index: int, steps_before: int) -> MemberScores:
    """Train and ask one member, unless an earlier attempt did; its weights then lie aside.

    Args:
        context: of the stage.
        training: what all members share.
        index: of the member, from 0.
        steps_before: optimiser steps of all members before it.

    Raises:
        PreemptedError: asked to stop; everything is saved.
        TrivetError: training or scoring met a value that is not finite.
    """
    own = _own_context(context, training.settings, index, steps_before)
    found = once(context, f"member_{index + 1}", lambda: asdict(_train(own, training, index)))
    if context.ranks.is_first:
        checkpoint.keep_only(own.checkpoints, None)
    _free_memory()
    return MemberScores(**found)


def _own_context(context: StageContext, settings: RewardSettings, index: int, steps_before: int) -> StageContext:
    """The stage's context with the member's own seed; data was drawn before, with the recipe's."""
    seed = context.recipe.seed if settings.seed is None else settings.seed
    if index == 0:
        return replace(context, recipe=context.recipe.model_copy(update={"seed": seed}))
    return replace(
        context,
        part=f"member_{index + 1}",
        recipe=context.recipe.model_copy(update={"seed": seed + _SEEDS_APART * index}),
        tracker=_Following(context.tracker, steps_before),
    )


def _train(context: StageContext, training: Training, index: int) -> MemberScores:
    settings, asked = training.settings, training.questions
    seed_everything(context.recipe.seed)
    model = starting_model(context, training.start, training.form, training.precision)
    scorer = SequenceScorer(
        model,
        causal_model(model).score,
        training.description.pad_id,
        2 * settings.per_device_batch_size,
        training.precision,
        context.ranks,
    )
    task = context.progress("held-out answers")
    pairs = [*asked.chosen, *asked.rejected]
    name = f"member_{index + 1}_before"
    before = Before(context, lambda: once(context, name, lambda: {"scores": scorer.score(pairs, task)}))
    engine = choose_engine(context, settings, [model])
    trainer = _trainer(engine, model, training, context)
    trainer.origins = training.origins
    keep_together(trainer, training.groups, settings, context.recipe.seed)
    fit(trainer, context, before)
    scores = _ask(scorer, asked, trainer.state.global_step, before.found["scores"], context)
    save_member(model, training.tokenizer, context, training.form, index)
    require_same_scores(model, scorer.head, member_aside(context, training.form, index), pairs, context)
    return scores


def _trainer(engine: str, model: Any, training: Training, context: StageContext) -> CommittedTrainer:
    settings = training.settings
    arguments = training_arguments(
        RewardConfig, settings, context, max_length=None,
        center_rewards_coefficient=settings.center_coefficient or None,
    )  # fmt: skip
    if engine == STREAMS:
        objective = Comparison(
            use_margins=any(row.margin for row in training.rows), center_coefficient=settings.center_coefficient
        )
        # As TRL's trainer does: the scores of a pair's two answers would come from two different models.
        without_dropout(model)
        trunk = share_trunk(context, settings, model, training.rows, objective)
        return StreamTrainer(
            model=model, args=arguments, rows=training.rows, objective=objective, trunk=trunk,
            most_tokens=settings.tokens_per_device,
        )  # fmt: skip
    return CommittedRewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(trainer_rows(training.rows)),
        processing_class=training.tokenizer,
    )


def _ask(
    scorer: SequenceScorer, asked: Questions, steps: int, before: list[float], context: StageContext
) -> MemberScores:
    parts = (
        asked.chosen,
        asked.rejected,
        asked.reference,
        [row.original_ids for row in asked.stress],
        [row.changed_ids for row in asked.stress],
    )
    # Several of them are the same answer: each is scored once.
    rows = list(dict.fromkeys(tuple(row) for part in parts for row in part))
    found = dict(zip(rows, scorer.score(rows, context.progress("answers scored")), strict=True))
    _require_finite([*found.values()], context)
    chosen, rejected, reference, original, changed = ([found[tuple(row)] for row in part] for part in parts)
    half = len(asked.chosen)
    return MemberScores(
        steps, before[:half], before[half:], chosen, rejected, reference, original, changed,
        *_padded(scorer, asked.padded),
    )  # fmt: skip


def _padded(scorer: SequenceScorer, rows: list[list[int]]) -> tuple[list[float], list[float]]:
    """Scores in a batch of their own, and beside much longer sequences."""
    if not rows:
        return [], []
    return replace(scorer, batch_size=1).score(rows), replace(scorer, batch_size=len(rows)).score(rows)


def _require_finite(scores: list[float], context: StageContext) -> None:
    bad = [score for score in scores if not math.isfinite(score)]
    if bad:
        raise TrivetError(
            f"stage {context.stage}: the trained model scores {len(bad)} of {len(scores)} answers {bad[0]}; lower "
            "learning_rate, or use precision: fp32"
        )


def _free_memory() -> None:
    """Give back what the member held: trainer and model refer to one another, so that only the collector frees them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
