"""Supervised fine-tuning: imitate the demonstrations' answers, on TRL's SFTTrainer.

Takes: `data.sft`, optionally an earlier policy (`init`). Gives: a policy. Loss on response tokens only; the held-out
loss is measured before and after.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from data_prep.build import encode_demonstrations, prompt_hashes
from data_prep.chat import ChatFormatter, EncodedDemonstration
from evaluation.likelihood import Scorer, demonstration_rows, mean_loss
from pipeline.context import TRAIN_PROMPTS, StageContext, StageResult, once, seen_prompts
from pipeline.models.load import device
from pipeline.recipe.stage_settings import SftSettings
from pipeline.runtime import resolve_precision
from pipeline.stages.offline import CommittedTrainer, fit, training_arguments
from pipeline.stages.policy import load_policy, save_policy

IGNORED = -100
"""The label value that transformers' losses leave out."""


class CommittedSFTTrainer(CommittedTrainer, SFTTrainer):
    """TRL's trainer under the commit protocol."""


def run(context: StageContext) -> StageResult:
    """Train and leave the policy in the context's folder."""
    settings = cast(SftSettings, context.recipe.stages[context.stage])
    parent = context.parents.get("init")
    precision = resolve_precision(settings.precision)
    policy = load_policy(context, parent, precision=precision, dropout=True)
    train, held_out, report = encode_demonstrations(
        context.recipe.data, ChatFormatter(policy.tokenizer), context.recipe.seed, context.data_part, context.aside
    )
    context.console.say(f"{len(train.rows)} rows to train on, {len(held_out.rows)} held out")
    scorer = Scorer(
        policy.model, policy.description.pad_id, 2 * settings.per_device_batch_size, precision, context.ranks
    )
    before = once(context, "before", lambda: _held_out_loss(scorer, held_out.rows, context))
    arguments = training_arguments(
        SFTConfig, settings, context, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True}
    )
    trainer = CommittedSFTTrainer(
        model=policy.model,
        args=arguments,
        train_dataset=Dataset.from_list([_row(row) for row in train.rows]),
        processing_class=policy.tokenizer,
    )
    fit(trainer, context)
    after = _held_out_loss(scorer, held_out.rows, context)
    save_policy(policy, context)
    if context.ranks.is_first:
        seen = seen_prompts(context.parents) | set(prompt_hashes(train.records))
        (context.folder / TRAIN_PROMPTS).write_text("\n".join(sorted(seen)) + "\n")
        context.tracker.log(0, "eval", {"loss": before["loss"]} if before["loss"] is not None else {})
        context.tracker.log(trainer.state.global_step, "eval", {"loss": after["loss"]} if held_out.rows else {})
    metrics = {
        "eval_loss_before": before["loss"],
        "eval_loss": after["loss"],
        "eval_tokens": after["tokens"],
        "steps": trainer.state.global_step,
        "train_rows": len(train.rows),
        "eval_rows": len(held_out.rows),
    }
    return StageResult(
        form=cast(Any, policy.form),
        tokenizer=policy.description,
        precision=precision,
        device=str(device()),
        data={"sft": report},
        metrics=metrics,
    )


def _held_out_loss(scorer: Scorer, rows: list[EncodedDemonstration], context: StageContext) -> dict[str, Any]:
    """Loss per response token on held-out rows; nulls when there are none."""
    if not rows:
        return {"loss": None, "tokens": 0}
    found = scorer.score(demonstration_rows(rows), partial(context.console.progress, "held-out rows"))
    return {"loss": mean_loss(found), "tokens": sum(row.tokens for row in found)}


def _row(row: EncodedDemonstration) -> dict[str, list[int]]:
    labels = [token if trained else IGNORED for token, trained in zip(row.input_ids, row.response_mask, strict=True)]
    return {"input_ids": row.input_ids, "labels": labels}
