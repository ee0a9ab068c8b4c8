"""Direct preference optimisation, on streams or TRL's DPOTrainer, against a frozen copy of the policy it starts from.

Takes: `data.preference` and an earlier policy (the reference). Gives: a policy. With an adapter the reference is a
second, frozen adapter on the same base; with full fine-tuning it is a second model. Implicit-reward accuracy on
held-out pairs is measured before (0.5 by the tie rule: nothing has moved) and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from data_prep.build import encode_pairs
from data_prep.chat import ChatFormatter, EncodedPair
from data_prep.reasons import left_out_told
from data_prep.records import PreferencePair
from evaluation.intervals import bootstrap_mean_ci, preference_accuracy
from evaluation.likelihood import Likelihood, Row, Scorer, pair_rows
from evaluation.sharing import Progress
from pipeline.algorithms.dpo import preference_margins
from pipeline.batch_order import pair_padding
from pipeline.context import StageContext, StageResult, once
from pipeline.models import adapters
from pipeline.models.forward import without_dropout
from pipeline.models.load import device
from pipeline.recipe.stage_settings import DpoSettings
from pipeline.runtime import resolve_precision
from pipeline.stages.dpo_kept_reference import KeptReference, reference_of_rows
from pipeline.stages.dpo_loss import loss_arguments, rpo_loss
from pipeline.stages.dpo_objective import Preference, lacks
from pipeline.stages.dpo_reference import REFERENCE, add_reference, reference_call
from pipeline.stages.dpo_watch import Watch
from pipeline.stages.engine import STREAMS, choose_engine
from pipeline.stages.offline import CommittedTrainer, fit, training_arguments
from pipeline.stages.pairs import keep_together, pair_line, unseen_pairs, write_held_out, write_train_rows
from pipeline.stages.policy import Policy, load_policy, load_reference, save_policy
from pipeline.stages.round_trip import require_same_policy
from pipeline.stages.shared_trunk import share_trunk
from pipeline.stages.spreading import Before, beside_the_engine
from pipeline.stages.stream_trainer import StreamTrainer


class CommittedDPOTrainer(CommittedTrainer, DPOTrainer):
    """TRL's trainer under the commit protocol, on rows that are tokenised already.

    Args:
        rpo_alpha: weight of the chosen answers' likelihood, or None for TRL's own losses.
    """

    def __init__(self, *args: Any, rpo_alpha: float | None = None, **kwargs: Any):
        self._rpo_alpha = rpo_alpha
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        if self._rpo_alpha is None:
            return super()._compute_loss(model, inputs, return_outputs)
        return rpo_loss(self, model, inputs, self._rpo_alpha)


def run(context: StageContext) -> StageResult:
    """Train and leave the policy in the context's folder."""
    settings = cast(DpoSettings, context.recipe.stages[context.stage])
    parent = context.parents.get("policy")
    precision = resolve_precision(settings.precision)
    policy = load_policy(context, parent, precision=precision, dropout=False)
    reference = None if policy.form == "adapter" else load_reference(context, parent, precision)
    train, held_out, report = encode_pairs(
        context.recipe.data, ChatFormatter(policy.tokenizer), context.recipe.seed, context.data_part, context.aside
    )
    held_out = unseen_pairs(held_out, context, report)
    assert context.recipe.data.preference is not None
    report["padding"] = pair_padding(settings, train.rows, context.recipe.data.preference, context.recipe.seed)
    told = left_out_told(report)
    context.console.say(f"{len(train.rows)} pairs to train on, {len(held_out.rows)} held out{told}")
    models = [policy.model] if reference is None else [policy.model, reference]
    engine = choose_engine(context, settings, models, lacks(settings))
    kept = KeptReference() if settings.precompute_reference else None
    trainer = _trainer(engine, policy, reference, settings, context, train.rows, kept)
    trainer.origins = [record.origin for record in train.records]
    keep_together(trainer, [record.group for record in train.records], settings, context.recipe.seed)
    size = 2 * settings.per_device_batch_size
    scorer = Scorer(policy.model, policy.description.pad_id, size, precision, context.ranks)
    judge = _Judge(policy, reference, scorer, settings.beta, context)

    def before_training() -> dict[str, Any]:
        if kept is not None:
            ask = partial(judge.reference_of, train.rows, "reference on training pairs")
            kept.fill(train.rows, reference_of_rows(context, parent, train.rows, size, precision, ask))
        return once(context, "before", lambda: judge.reference_and_margins(held_out.rows))

    measured = Before(context, before_training)
    watch = None
    if settings.watch is not None:
        watch = Watch(context, settings, policy, judge.own_logps, judge.reference_logps, precision)
    fit(trainer, context, measured, watch)
    if watch is not None:
        watch.hand_over()
    before = measured.found
    after = judge.margins(held_out.rows, before["reference"])
    save_policy(policy, context)
    rows = [[*row.prompt_ids, *row.chosen_ids] for row in train.rows]
    require_same_policy(policy.model, context.folder / policy.form, rows, context)
    if context.ranks.is_first:
        write_held_out(context, _lines(held_out.records, before["margins"], after))
        write_train_rows(context, train)
    metrics = {
        **_metrics(before["margins"], after),
        "steps": trainer.state.global_step,
        "train_rows": len(train.rows),
        "engine": engine,
        **(watch.metrics() if watch is not None else {}),
    }
    if context.ranks.is_first and held_out.rows:
        for step, suffix in ((0, "_before"), (trainer.state.global_step, "")):
            values = {"accuracy": metrics[f"eval_accuracy{suffix}"], "margin": metrics[f"eval_margin{suffix}"]}
            context.tracker.log(step, "eval", values)
    return StageResult(
        form=cast(Any, policy.form),
        tokenizer=policy.description,
        precision=precision,
        device=str(device()),
        data={"preference": report},
        metrics=metrics,
    )


def _trainer(
    engine: str, policy: Policy, reference: Any, settings: DpoSettings, context: StageContext,
    rows: list[EncodedPair], kept: KeptReference | None = None,
) -> CommittedTrainer:  # fmt: skip
    arguments = training_arguments(
        DPOConfig, settings, context, beta=settings.beta, max_length=None, **loss_arguments(settings)
    )
    reference = beside_the_engine(reference, arguments, context)
    if engine == STREAMS:
        if reference is None:
            add_reference(policy.model)
        # As TRL's trainer does: policy and reference would drop different units of one and the same model.
        without_dropout(policy.model)
        call = reference_call(policy.model, reference, resolve_precision(settings.precision))
        objective = Preference(settings, call, kept)
        trunk = share_trunk(context, settings, policy.model, rows, objective)
        return StreamTrainer(
            model=policy.model, args=arguments, rows=rows, objective=objective, trunk=trunk,
            most_tokens=settings.tokens_per_device,
        )  # fmt: skip
    return CommittedDPOTrainer(
        model=policy.model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list([_row(row) for row in rows]),
        processing_class=policy.tokenizer,
        rpo_alpha=settings.rpo_alpha if settings.loss_type == "rpo" else None,
    )


class _Judge:
    """Margins of held-out pairs by implicit reward, against the same reference that training uses."""

    def __init__(self, policy: Policy, reference: Any, scorer: Scorer, beta: float, context: StageContext):
        self._policy = policy
        self._reference = reference
        self._scorer = scorer
        self._beta = beta
        self._context = context

    def reference_and_margins(self, rows: list[EncodedPair]) -> dict[str, Any]:
        """Log-probabilities under the reference, and the untrained policy's margins against them."""
        if not rows:
            return {"reference": [], "margins": []}
        logps = self.reference_of(rows, "reference on held-out pairs")
        return {"reference": logps, "margins": self.margins(rows, logps)}

    def reference_of(self, rows: list[EncodedPair], task: str) -> list[float]:
        """Log-probabilities under the reference of every chosen answer, then of every rejected one."""
        return [row.logp for row in self.reference_logps(pair_rows(rows), self._context.progress(task))]

    def reference_logps(self, rows: Sequence[Row], progress: Progress | None = None) -> list[Likelihood]:
        """Log-probabilities of rows under the reference."""
        if self._reference is not None:
            return replace(self._scorer, model=self._reference).score(rows, progress)
        self._policy.model.set_adapter(REFERENCE, inference_mode=True)
        found = self._scorer.score(rows, progress)
        self._policy.model.set_adapter(adapters.TRAINED)
        return found

    def margins(self, rows: list[EncodedPair], reference: list[float]) -> list[float]:
        """beta * h of each pair under the policy as it is now."""
        if not rows:
            return []
        progress = self._context.progress("policy on held-out pairs")
        logps = [row.logp for row in self.own_logps(pair_rows(rows), progress)]
        policy, ref = (torch.tensor(values, dtype=torch.float64).chunk(2) for values in (logps, reference))
        return preference_margins(policy[0], policy[1], ref[0], ref[1], self._beta).tolist()

    def own_logps(self, rows: Sequence[Row], progress: Progress | None = None) -> list[Likelihood]:
        """Log-probabilities of rows under the policy as it is now."""
        return self._scorer.score(rows, progress)


def _metrics(before: list[float], after: list[float]) -> dict[str, Any]:
    if not after:
        return {"eval_n": 0, "eval_accuracy_before": None, "eval_accuracy": None, "eval_margin": None}
    accuracy_before, _ = preference_accuracy(before)
    accuracy, interval = preference_accuracy(after)
    margin = bootstrap_mean_ci(after)
    return {
        "eval_n": len(after),
        "eval_accuracy_before": accuracy_before,
        "eval_accuracy": accuracy,
        "eval_accuracy_ci95": interval.bounds,
        "eval_margin_before": sum(before) / len(before),
        "eval_margin": margin.estimate,
        "eval_margin_ci95": margin.bounds,
    }


def _lines(records: list[PreferencePair], before: list[float], after: list[float]) -> list[dict[str, Any]]:
    return [
        {**pair_line(record), "margin_before": margin_before, "margin": margin}
        for record, margin_before, margin in zip(records, before, after, strict=True)
    ]


def _row(row: EncodedPair) -> dict[str, list[int]]:
    return {"prompt_ids": row.prompt_ids, "chosen_ids": row.chosen_ids, "rejected_ids": row.rejected_ids}
