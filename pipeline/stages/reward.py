"""A Bradley-Terry reward model, on streams or TRL's RewardTrainer: a scalar score for a prompt and its answer.

Takes: `data.preference`, an earlier policy (`init`) to start from, and the demonstrations of `data.sft` where there
are any. Gives: a reward model, of one member or several, with the scale of its scores. Accuracy, calibration and what
else the score goes by are measured on held-out pairs.
"""

from __future__ import annotations

from typing import Any, cast

from data_prep.build import encode_pairs
from data_prep.chat import ChatFormatter
from data_prep.reasons import left_out_told
from pipeline.batch_order import pair_padding
from pipeline.context import StageContext, StageResult, require_same_base, require_same_tokenizer
from pipeline.durable import write_json_atomically
from pipeline.errors import TrivetError
from pipeline.models.load import describe_tokenizer, device, load_tokenizer
from pipeline.models.reward_model import SPEC
from pipeline.models.seeing import require_text_model
from pipeline.recipe.stage_settings import RewardSettings
from pipeline.runtime import resolve_precision
from pipeline.stages.pairs import unseen_pairs, write_held_out, write_lines, write_train_rows
from pipeline.stages.reward_member import MemberScores, Training, train_member
from pipeline.stages.reward_objective import margin_pairs
from pipeline.stages.reward_questions import questions
from pipeline.stages.reward_results import measured, pair_lines, scored_lines, scored_pairs, spec_of
from pipeline.stages.reward_weights import keep_members

SCORED = "scored_answers.jsonl"
"""In the artefact: raw scores of the answers that fix its scale, and what changes of good answers do to theirs."""


def run(context: StageContext) -> StageResult:
    """Train and leave the reward model in the context's folder."""
    settings = cast(RewardSettings, context.recipe.stages[context.stage])
    require_text_model(context.base_folder, context.stage, settings.kind)
    tokenizer = load_tokenizer(context.base_folder, context.recipe.data.chat_template)
    description = describe_tokenizer(tokenizer)
    require_same_base(context)
    require_same_tokenizer(context, description)
    formatter = ChatFormatter(tokenizer)
    train, held_out, report = encode_pairs(
        context.recipe.data, formatter, context.recipe.seed, context.data_part, context.aside
    )
    held_out = unseen_pairs(held_out, context, report)
    asked = questions(context, formatter, train, held_out)
    assert context.recipe.data.preference is not None
    report["padding"] = pair_padding(settings, train.rows, context.recipe.data.preference, context.recipe.seed)
    told = left_out_told(report)
    context.console.say(f"{len(train.rows)} pairs to train on, {len(held_out.rows)} held out{told}")
    training = Training(
        settings=settings,
        start=context.parents.get("init"),
        form=_form(context),
        tokenizer=tokenizer,
        description=description,
        precision=resolve_precision(settings.precision),
        rows=margin_pairs(train.records, train.rows, use_margins=settings.use_margins),
        groups=[record.group for record in train.records],
        origins=[record.origin for record in train.records],
        questions=asked,
    )
    members = _train_all(context, training)
    spec = spec_of(members, settings, asked, context.stage)
    scored = scored_pairs(members, spec, held_out)
    steps = sum(member.steps for member in members)
    metrics = measured(members, spec, scored, asked) | {"steps": steps, "train_rows": len(train.rows)}
    if context.ranks.is_first:
        keep_members(context, training.form, len(members))
        write_json_atomically(context.folder / SPEC, spec.model_dump(mode="json"))
        write_held_out(context, pair_lines(held_out, scored))
        write_lines(context, SCORED, scored_lines(members, spec, asked))
        write_train_rows(context, train)
        _log(context, metrics, steps)
    return StageResult(
        form=cast(Any, training.form),
        tokenizer=description,
        precision=training.precision,
        device=str(device()),
        data={"preference": report},
        metrics=metrics,
    )


def _form(context: StageContext) -> str:
    """`adapter` or `model`; a policy that is stored in the other form cannot be started from."""
    form = "model" if context.recipe.model.adapter == "none" else "adapter"
    start = context.parents.get("init")
    if start is not None and start.manifest.form != form:
        raise TrivetError(
            f"stage {context.stage}: {start.manifest.stage} was stored as a full {start.manifest.form}, but "
            f"model.adapter asks for {form}; remake it with `--force {start.manifest.stage}`"
        )
    return form


def _train_all(context: StageContext, training: Training) -> list[MemberScores]:
    members: list[MemberScores] = []
    for index in range(training.settings.ensemble):
        if training.settings.ensemble > 1:
            context.console.say(f"member {index + 1} of {training.settings.ensemble}")
        members.append(train_member(context, training, index, sum(member.steps for member in members)))
    return members


def _log(context: StageContext, metrics: dict[str, Any], steps: int) -> None:
    # A repeated attempt that found every member finished has not been through training's own rewind.
    context.tracker.rewind(steps)
    if metrics["eval_n"]:
        for step, suffix in ((0, "_before"), (steps, "")):
            values = {"accuracy": metrics[f"eval_accuracy{suffix}"], "margin": metrics[f"eval_margin{suffix}"]}
            context.tracker.log(step, "eval", values)
