"""The section of a PPO stage: what it gained and at what distance, by which settings, and how its answers changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation.report.answers import Rollout
from evaluation.report.charts import Mark, Series, line_chart
from evaluation.report.curves import Chart, StageCurves
from evaluation.report.files import bounds, mapping, number, objects, text, whole
from evaluation.report.load import Run, Stage
from evaluation.report.measures import count, figures, measure_named, plain
from evaluation.report.outcomes import outcome_of, percent, start_of
from evaluation.report.watched import Watched, watched
from pipeline.recipe.stage_settings import OF_VALUE_MODEL, WITH_VALUE_MODEL

SAMPLE_PAIRS = 4
RESPONSE_CHARACTERS = 800
"""A longer answer is cut on the page; `rollouts.jsonl` has all of it."""
_SETTINGS = (
    "episodes", "rollout_batch_size", "samples_per_prompt", "epochs", "minibatches", "learning_rate",
    "value_learning_rate", "kl_coef", "kl_target", "kl_max", "clip_range", "advantage_estimator", "gae_lambda",
    "temperature", "max_new_tokens", "missing_eos_penalty", "score_clip", "normalise_scores", "value_trunk",
    "value_init", "value_warmup", "ptx_coef", "eval_prompts", "eval_every", "select",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement on the held-out prompts, as the stage left it."""

    rollout: int
    score: float
    kl: float
    objective: float | None
    heldout: float | None
    """Score by the reward model that is watched."""
    eos_rate: float | None
    tokens: float | None
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An answer cut to a readable length."""

    rollout: Rollout
    text: str
    hidden: int
    """Characters that were cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoSection:
    """All that a PPO stage reports."""

    stage: str
    title: str
    told: str
    stopped: str
    watched: Watched | None
    charts: tuple[Chart, ...]
    frontier: Markup
    measured: tuple[Measured, ...]
    facts: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    samples: tuple[tuple[Shown, Shown], ...]
    """Early and late; where the prompt is not the same, each has its own."""


def ppo_sections(run: Run, drawn: Sequence[StageCurves]) -> list[PpoSection]:
    """One section per PPO stage that has run; `drawn` holds the curves of all stages."""
    charts = {curves.stage: curves.main for curves in drawn}
    stages = [stage for stage in run.stages if stage.kind == "ppo" and (stage.metrics or stage.points)]
    return [_section(stage, charts.get(stage.name, ())) for stage in stages]


def _section(stage: Stage, charts: tuple[Chart, ...]) -> PpoSection:
    measured, seen = tuple(_measured(stage.metrics)), watched(stage)
    return PpoSection(
        stage=stage.name,
        title="PPO" if stage.name == "ppo" else f"PPO in {stage.name}",
        told=outcome_of(stage),
        stopped=text(stage.metrics.get("stopped")),
        watched=seen,
        charts=charts,
        frontier=_frontier(stage, measured, seen),
        measured=measured,
        facts=tuple(_facts(stage)),
        settings=tuple(_settings(stage)),
        samples=tuple(_samples(stage.rollouts)),
    )


def _measured(metrics: Mapping[str, Any]) -> Iterable[Measured]:
    kept = whole(metrics.get("selected_rollout"))
    for row in objects(metrics.get("measured")):
        rollout, score, kl = whole(row.get("rollout")), number(row.get("score")), number(row.get("kl_seq"))
        if rollout is not None and score is not None and kl is not None:
            yield Measured(
                rollout=rollout,
                score=score,
                kl=kl,
                objective=number(row.get("objective")),
                heldout=number(row.get("score_heldout")),
                eos_rate=number(row.get("eos_rate")),
                tokens=number(row.get("len_mean")),
                kept=rollout == kept,
            )


def _frontier(stage: Stage, measured: Sequence[Measured], seen: Watched | None) -> Markup:
    """Held-out score against the square root of the divergence: what each nat bought, and where it turned."""
    hints = tuple(f"after rollout {one.rollout}: score {plain(one.score)} at {plain(one.kl)} nats" for one in measured)
    points = tuple((_root(one.kl), one.score) for one in measured)
    marks = [
        Mark(*point, f"kept, rollout {one.rollout}" if one.rollout else "kept, the start")
        for point, one in zip(points, measured, strict=True)
        if one.kept
    ]
    line = Series(label="held-out score", style="eval", points=points, hints=hints)
    second = tuple((_root(one.kl), one.heldout) for one in measured if one.heldout is not None)
    lines = [line, Series(label="score by the model that is watched", style="other", points=second)]
    return line_chart(
        f"Held-out score of {stage.name} against the square root of its KL", lines,
        x_label=f"square root of the KL to {start_of(stage)}, in nats per response", y_label="held-out score",
        steps=False, x_range=(0.0,), marks=[*marks, *_turned(measured, seen)],
    )  # fmt: skip


def _turned(measured: Sequence[Measured], seen: Watched | None) -> Iterable[Mark]:
    """A ring where over-optimisation began, on the line of the figure that showed it where that is drawn."""
    if seen is None or seen.step is None or not measured:
        return
    step, watched_score = seen.step, seen.opinion == "score_heldout"
    one = min(measured, key=lambda one: abs(one.rollout - step))
    value = one.heldout if watched_score and one.heldout is not None else one.score
    yield Mark(_root(one.kl), value, f"turned here, rollout {one.rollout}")


def _root(kl: float) -> float:
    # The estimate of a divergence near zero can fall below it.
    return max(kl, 0.0) ** 0.5


def _facts(stage: Stage) -> Iterable[tuple[str, str]]:
    metrics = stage.metrics
    rollouts, episodes, steps = (count(whole(metrics.get(name))) for name in ("rollouts", "episodes", "steps"))
    if metrics:
        yield "trained", f"{rollouts} rollouts, {episodes} episodes, {steps} optimiser steps"
    around = bounds(metrics.get("kl_ci95"))
    kl, *between = figures(measure_named("kl_to_reference"), number(metrics.get("kl_to_reference")), *(around or ()))
    if kl != "–":
        yield f"KL to {start_of(stage)}, nats per answer", f"{kl} [{', '.join(between)}]" if between else kl
    for name, term, write in (
        ("eos_rate", "answers that end by themselves, %", percent),
        ("response_tokens", "tokens per answer", plain),
        ("kl_coef", "kl_coef at the end", plain),
        ("ratio_first_minibatch_maxdev", "ratio before a rollout's first step is off 1 by", plain),
    ):
        value, before = number(metrics.get(name)), number(metrics.get(f"{name}_before"))
        if value is not None:
            yield term, write(value) + ("" if before is None else f", before training {write(before)}")


def _settings(stage: Stage) -> Iterable[tuple[str, str]]:
    if stage.provenance is None:
        return
    resolved = stage.provenance.settings
    rewards = [_reward(row, stage) for row in objects(resolved.get("rewards"))]
    if rewards:
        yield "rewards", " + ".join(rewards)
    own = mapping(resolved.get("stage"))
    idle = OF_VALUE_MODEL if own.get("advantage_estimator", WITH_VALUE_MODEL) != WITH_VALUE_MODEL else ()
    for name in _SETTINGS:
        if name in own and name not in idle:
            yield name, "not set" if own[name] is None else _plain(own[name])


def _reward(row: Mapping[str, Any], stage: Stage) -> str:
    """What one part of the reward is: `reward`, `0.5 × rules`."""
    parents = {parent.role: parent.stage for parent in stage.provenance.parents} if stage.provenance else {}
    name = "a foreign classifier" if row.get("model") else "rules" if row.get("rules") else "the function of --reward"
    if row.get("parent"):
        name = parents.get(text(row["parent"]), text(row["parent"]))
    weight = number(row.get("weight"))
    return name if weight in (None, 1.0) else f"{weight:g} × {name}"


def _plain(value: object) -> str:
    """As the recipe writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else text(value)


def _samples(rollouts: Sequence[Rollout]) -> Iterable[tuple[Shown, Shown]]:
    """The same prompts answered early and late, those furthest apart first; else the first rollout beside the last.

    Chosen by when they were drawn, never by how they turned out.
    """
    if not rollouts:
        return
    first, last = rollouts[0].rollout, rollouts[-1].rollout
    by_prompt: dict[object, list[Rollout]] = {}
    for one in rollouts:
        by_prompt.setdefault(one.prompt, []).append(one)
    # Closer together than half of the run they would show little of it.
    pairs = [(found[0], found[-1]) for found in by_prompt.values() if _apart(found) * 2 >= max(last - first, 1)]
    pairs.sort(key=lambda pair: pair[0].rollout - pair[1].rollout)
    if not pairs and last > first:
        ends = ([one for one in rollouts if one.rollout == end] for end in (first, last))
        pairs = list(zip(*ends, strict=False))
    for early, late in pairs[:SAMPLE_PAIRS]:
        yield _shown(early), _shown(late)


def _apart(found: Sequence[Rollout]) -> int:
    return found[-1].rollout - found[0].rollout


def _shown(one: Rollout) -> Shown:
    hidden = max(0, len(one.response) - RESPONSE_CHARACTERS)
    return Shown(rollout=one, text=one.response[:RESPONSE_CHARACTERS], hidden=hidden)
