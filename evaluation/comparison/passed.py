"""What PPO, and DPO under a watch, measured of themselves while training, for the frontier of the model that scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evaluation.comparison.load import ComparedRun
from evaluation.report.files import mapping
from evaluation.report.load import Stage
from evaluation.report.watched import watched
from pipeline.recipe.lineage import WATCHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a stage measured by itself while it trained: its own held-out prompts, at its own temperature."""

    name: str
    run: str
    kind: str
    """Of the stage: `ppo` or `dpo`."""
    counter: str
    """What its measurements are counted by, `rollout` or `step`."""
    group: str
    points: tuple[tuple[float, float, float], ...]
    """Where the counter stood, KL in nats, score by the reward model of the group."""
    turned: float | None = None
    """Where the counter stood when this score turned while the training reward still rose; None where it did not."""


def passed_by(compared: ComparedRun, metric: str) -> Iterable[Passed]:
    """Held-out measurements of every stage that makes any, whether it has ended or not, by its rewards or by what it
    watched.
    """
    for stage in compared.run.stages:
        figure, group = _scored(compared, stage, metric)
        points = tuple(_eval_points(stage, figure)) if figure else ()
        if points:
            name = f"{stage.name} while training ({compared.label})"
            counter = "rollout" if stage.kind == "ppo" else "step"
            seen = watched(stage)
            turned = seen.step if seen is not None and seen.opinion == figure else None
            yield Passed(
                name=name, run=compared.label, kind=stage.kind, counter=counter, group=group, points=points,
                turned=turned,
            )  # fmt: skip


def _scored(compared: ComparedRun, stage: Stage, metric: str) -> tuple[str, str]:
    """Under which figure a stage logged a metric, and the key of the reward model behind it; both empty without one."""
    if stage.kind == "ppo":
        return metric, _rewarded_by(compared, stage) if metric == "score" else _watched_by(compared, stage)
    if stage.kind != "dpo":
        return "", ""
    # DPO is trained against no reward model, so it may watch the one that all policies are scored by.
    judge = _watched_by(compared, stage)
    figure = "score" if judge == compared.score_by else "score_heldout"
    return ("score_heldout", judge) if figure == metric else ("", "")


def _rewarded_by(compared: ComparedRun, stage: Stage) -> str:
    """Key of the reward model that a PPO stage was rewarded by; of an unfinished one, the last not watched."""
    parents = stage.provenance.parents if stage.provenance else ()
    named = [parent.key for parent in parents if parent.role.startswith("reward")]
    apart = _watched_by(compared, stage)
    trained_on = [key for key in reversed(reward_keys(compared)) if key != apart]
    return next(iter([*named, *trained_on]), f"the rewards of {compared.label}")


def _watched_by(compared: ComparedRun, stage: Stage) -> str:
    """Key of the reward model that a stage watched; of an unfinished one, as the recipe says."""
    parents = stage.provenance.parents if stage.provenance else ()
    named = [parent.key for parent in parents if parent.role == WATCHED]
    written = mapping(mapping(compared.recipe.get("stages")).get(stage.name)).get("watch")
    told = [compared.identity(str(written))] if written else []
    return next(iter([*named, *told]), compared.score_heldout_by or f"what {compared.label} watched")


def _eval_points(stage: Stage, metric: str) -> Iterable[tuple[float, float, float]]:
    """Steps at which score and divergence are finite numbers; a step that was logged twice counts as logged last."""
    by_step: dict[float, dict[str, float | None]] = {}
    for point in stage.points:
        if point.split == "eval":
            by_step.setdefault(point.step, {})[point.name] = point.value
    for step, values in sorted(by_step.items()):
        kl, score = values.get("kl_seq"), values.get(metric)
        if kl is not None and score is not None:
            yield step, kl, score


def reward_keys(compared: ComparedRun) -> list[str]:
    """Keys of a run's reward models, in the order of its stages."""
    return [stage.key for stage in compared.run.stages if stage.kind == "reward"]
