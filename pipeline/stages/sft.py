"""Supervised fine-tuning: imitate the demonstrations' answers, on streams or TRL's SFTTrainer.

Takes: `data.sft`, optionally an earlier policy (`init`). Gives: a policy. Loss on response tokens only; the held-out
loss is measured before and after.
"""

from __future__ import annotations

from typing import Any, cast

from trl import SFTConfig, SFTTrainer

from data_prep.build import encode_demonstrations, prompt_hashes
from data_prep.chat import ChatFormatter, EncodedDemonstration
from data_prep.cleaning import write_dropped
from data_prep.reasons import left_out_told
from evaluation.likelihood import Scorer, demonstration_rows, mean_loss
from pipeline.batch_order import EpochSampler, sft_padding
from pipeline.context import TRAIN_PROMPTS, StageContext, StageResult, once, seen_prompts
from pipeline.models.load import device
from pipeline.recipe.stage_settings import SftSettings
from pipeline.runtime import resolve_precision
from pipeline.stages.engine import STREAMS, choose_engine
from pipeline.stages.offline import CommittedTrainer, fit, training_arguments
from pipeline.stages.policy import Policy, load_policy, save_policy
from pipeline.stages.round_trip import require_same_policy
from pipeline.stages.sft_batches import batch_arguments, require_rows_apart, row_order, trainer_rows
from pipeline.stages.sft_objective import Imitation
from pipeline.stages.sft_pieces import Sharing
from pipeline.stages.sft_sequence_parallel import PieceTrainer
from pipeline.stages.sft_ulysses import parallelism
from pipeline.stages.shared_trunk import share_trunk
from pipeline.stages.spreading import Before
from pipeline.stages.stream_trainer import StreamTrainer


class CommittedSFTTrainer(CommittedTrainer, SFTTrainer):
    """TRL's trainer under the commit protocol.

    Args:
        order: of the rows; None for the library's own.
    """

    def __init__(self, *args: Any, order: EpochSampler | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if order is not None:
            self.draw_by(order)


def run(context: StageContext) -> StageResult:
    """Train and leave the policy in the context's folder."""
    settings = cast(SftSettings, context.recipe.stages[context.stage])
    parent = context.parents.get("init")
    precision = resolve_precision(settings.precision)
    policy = load_policy(context, parent, precision=precision, dropout=True)
    train, held_out, report = encode_demonstrations(
        context.recipe.data, ChatFormatter(policy.tokenizer), context.recipe.seed, context.data_part, context.aside
    )
    told = left_out_told(report)
    context.console.say(f"{len(train.rows)} rows to train on, {len(held_out.rows)} held out{told}")
    # Rows that are long enough to be cut up go alone: padding takes a mask of their length squared.
    together = 1 if settings.sequence_parallel_size > 1 else 2 * settings.per_device_batch_size
    scorer = Scorer(policy.model, policy.description.pad_id, together, precision, context.ranks)
    before = Before(context, lambda: once(context, "before", lambda: _held_out_loss(scorer, held_out.rows, context)))
    engine = choose_engine(context, settings, [policy.model], _lacks(settings))
    trainer = _trainer(engine, policy, settings, context, train.rows, precision)
    trainer.origins = [record.origin for record in train.records]
    assert context.recipe.data.sft is not None
    report["padding"] = sft_padding(settings, train.rows, context.recipe.data.sft, context.recipe.seed)
    fit(trainer, context, before)
    after = _held_out_loss(scorer, held_out.rows, context)
    save_policy(policy, context)
    require_same_policy(policy.model, context.folder / policy.form, [row.input_ids for row in train.rows], context)
    if context.ranks.is_first:
        write_dropped(context.folder, train.dropped)
        seen = seen_prompts(context.parents) | set(prompt_hashes(train.records))
        (context.folder / TRAIN_PROMPTS).write_text("\n".join(sorted(seen)) + "\n")
        context.tracker.log(0, "eval", {"loss": before.found["loss"]} if held_out.rows else {})
        context.tracker.log(trainer.state.global_step, "eval", {"loss": after["loss"]} if held_out.rows else {})
    metrics = {
        "eval_loss_before": before.found["loss"],
        "eval_loss": after["loss"],
        "eval_tokens": after["tokens"],
        "steps": trainer.state.global_step,
        "train_rows": len(train.rows),
        "eval_rows": len(held_out.rows),
        "engine": engine,
    }
    return StageResult(
        form=cast(Any, policy.form),
        tokenizer=policy.description,
        precision=precision,
        device=str(device()),
        data={"sft": report},
        metrics=metrics,
    )


def _trainer(
    engine: str,
    policy: Policy,
    settings: SftSettings,
    context: StageContext,
    rows: list[EncodedDemonstration],
    precision: str,
) -> CommittedTrainer:
    assert context.recipe.data.sft is not None
    longest = context.recipe.data.sft.max_length
    sharing = Sharing.of(settings, context.ranks, f"stages.{context.stage}")
    arguments = training_arguments(
        SFTConfig, settings, context, groups=sharing.groups, **batch_arguments(settings, longest),
        dataset_kwargs={"skip_prepare_dataset": True},
        parallelism_config=parallelism(sharing, policy.model, context.stage) if sharing.size > 1 else None,
    )  # fmt: skip
    if engine == STREAMS:
        objective = Imitation()
        trunk = share_trunk(context, settings, policy.model, rows, objective)
        return StreamTrainer(
            model=policy.model, args=arguments, rows=rows, objective=objective, trunk=trunk,
            most_tokens=settings.tokens_per_device,
        )  # fmt: skip
    order = row_order(rows, settings, context.recipe.seed)
    given: dict[str, Any] = {
        "model": policy.model, "args": arguments, "processing_class": policy.tokenizer,
        "train_dataset": trainer_rows(rows, settings, longest, context.recipe.seed),
    }  # fmt: skip
    if sharing.size > 1:
        return PieceTrainer(**given, sharing=sharing, order=order, context=context, precision=precision)
    if settings.packing:
        require_rows_apart(policy.model, rows, policy.description.pad_id, precision, context.stage)
    return CommittedSFTTrainer(**given, order=order if settings.group_by_length else None)


def _lacks(settings: SftSettings) -> str | None:
    """Why the steps are left to TRL: streams have neither padding to save nor sequences to fill."""
    if settings.sequence_parallel_size > 1:
        return f"{settings.sequence_parallel_size} processes compute each row together"
    if settings.packing:
        return "packing is TRL's"
    return "grouping by length is for padded batches" if settings.group_by_length else None


def _held_out_loss(scorer: Scorer, rows: list[EncodedDemonstration], context: StageContext) -> dict[str, Any]:
    """Loss per response token on held-out rows; nulls when there are none."""
    if not rows:
        return {"loss": None, "tokens": 0}
    found = scorer.score(demonstration_rows(rows), context.progress("held-out rows"))
    return {"loss": mean_loss(found), "tokens": sum(row.tokens for row in found)}
