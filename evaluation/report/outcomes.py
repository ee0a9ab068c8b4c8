"""What each stage says of its own held-out figures, one sentence per kind, and plainly where nothing is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evaluation.report.files import bounds, mapping, number, text, whole
from evaluation.report.load import Stage
from evaluation.report.measures import alike, count, measure_named, over, plain, shown

_SCORE = measure_named("score")


def outcome_of(stage: Stage) -> str:
    """What a stage's own held-out figures say; empty when it reported none."""
    tell = _OUTCOMES.get(stage.kind)
    return tell(stage) if tell else ""


def start_of(stage: Stage) -> str:
    """The policy that a stage started from, by name."""
    parents = stage.provenance.parents if stage.provenance else ()
    return next((parent.stage for parent in parents if parent.role == "policy"), "the base model")


def percent(share: float) -> str:
    """A share of 1 in percent, without the sign."""
    return f"{100 * share:.1f}"


def interval(metrics: Mapping[str, Any], name: str, scale: float = 100) -> str:
    """` [67.5, 80.6]` behind a figure in percent; empty where no interval was measured."""
    around = bounds(metrics.get(name))
    return "" if around is None else f" [{scale * around[0]:.1f}, {scale * around[1]:.1f}]"


def _sft(stage: Stage) -> str:
    metrics = stage.metrics
    before, after = number(metrics.get("eval_loss_before")), number(metrics.get("eval_loss"))
    if after is None:
        return ""
    came = "" if before is None else f" (before training {plain(before)})"
    return f"Held-out loss {plain(after)} nats per token{came}{over(metrics.get('eval_rows'), 'held-out rows')}."


def _pairs(stage: Stage) -> str:
    metrics = stage.metrics
    accuracy = number(metrics.get("eval_accuracy"))
    if accuracy is None:
        return ""
    around = interval(metrics, "eval_accuracy_ci95")
    pairs = over(metrics.get("eval_n"), "held-out pairs")
    told = f"Prefers the chosen answer in {percent(accuracy)} %{around}{pairs}{_before(metrics)}.{_chance(metrics)}"
    return told + _answers_watched(metrics)


def _answers_watched(metrics: Mapping[str, Any]) -> str:
    """What the reward model that a DPO stage watched said of its answers; empty without one."""
    before, after = number(metrics.get("score_heldout_before")), number(metrics.get("score_heldout"))
    if before is None or after is None:
        return ""
    scores, prompts = " → ".join(alike(_SCORE, [before, after])), over(metrics.get("heldout_n"), "held-out prompts")
    kept, steps = whole(metrics.get("selected_step")), whole(metrics.get("steps"))
    of = f"; kept the policy after step {kept} of {steps}" if kept is not None and kept != steps else ""
    ended = " Training ended early, as the held-out score had turned." if text(metrics.get("stopped")) else ""
    gained = _gain(metrics, "score_heldout")
    return f" Score of its answers by the model that is watched {scores}{prompts}{gained}{of}.{ended}"


def _reward(stage: Stage) -> str:
    metrics = stage.metrics
    accuracy, error = number(metrics.get("eval_accuracy")), number(metrics.get("ece"))
    if accuracy is None:
        return ""
    n = whole(metrics.get("eval_n"))
    pairs = "held-out pairs" if n is None else f"{n:,} held-out pairs"
    calibration = "" if error is None else f"; calibration error {error:.2f}"
    around = interval(metrics, "eval_accuracy_ci95")
    told = f"Prefers the better answer in {percent(accuracy)} % of {pairs}{around}{_before(metrics)}{calibration}."
    return told + _chance(metrics)


def _before(metrics: Mapping[str, Any]) -> str:
    before = number(metrics.get("eval_accuracy_before"))
    return "" if before is None else f", before training {percent(before)} %"


def _chance(metrics: Mapping[str, Any]) -> str:
    around = bounds(metrics.get("eval_accuracy_ci95"))
    if around is None or around[0] > 0.5:
        return ""
    return " Worse than chance." if around[1] < 0.5 else " Not shown to differ from chance."


def _ppo(stage: Stage) -> str:
    metrics = stage.metrics
    after = number(metrics.get("score"))
    if after is None:
        episodes = whole(metrics.get("episodes"))
        told = f"Trained on {count(episodes)} episodes; no prompts were held out to measure it on."
        return "" if episodes is None else told + _ended(metrics)
    n = whole(metrics.get("eval_n"))
    prompts = "held-out prompts" if n is None else f"{n:,} held-out prompts"
    if whole(metrics.get("selected_rollout")) == 0:
        kept = f"no policy measured was better than {start_of(stage)}, which is kept"
        return f"Score {alike(_SCORE, [after])[0]} on {prompts}: {kept}.{_ended(metrics)}"
    before = number(metrics.get("score_before"))
    scores = " → ".join(alike(_SCORE, [after] if before is None else [before, after]))
    told = f"Score {scores} on {prompts}{_gain(metrics)}{_distance(stage)}{_kept(metrics)}."
    return told + _ended(metrics)


def _gain(metrics: Mapping[str, Any], figure: str = "score") -> str:
    gain, around = number(metrics.get(f"{figure}_gain")), bounds(metrics.get(f"{figure}_gain_ci95"))
    after, before = number(metrics.get(figure)), number(metrics.get(f"{figure}_before"))
    if gain is None and after is not None and before is not None:
        gain = after - before
    if gain is None or around is None:
        return ""
    low, high = around
    values = [gain, low, high]
    sign = shown(around, whole(metrics.get("eval_n" if figure == "score" else "heldout_n")))
    what = ("no gain shown", "a gain of", "a loss of")[sign]
    if sign < 0:
        values = [-gain, -high, -low]
    size, least, most = alike(_SCORE, values)
    figures = f"{size} [{least}, {most}]"
    return f", {what} ({figures})" if not sign else f", {what} {figures}"


def _distance(stage: Stage) -> str:
    kl = number(stage.metrics.get("kl_to_reference"))
    return "" if kl is None else f", at {plain(kl)} nats from {start_of(stage)}"


def _kept(metrics: Mapping[str, Any]) -> str:
    kept, rollouts = whole(metrics.get("selected_rollout")), whole(metrics.get("rollouts"))
    if kept is None:
        return ""
    return f"; kept the policy after rollout {kept}{'' if rollouts is None else f' of {rollouts}'}"


def _ended(metrics: Mapping[str, Any]) -> str:
    if not text(metrics.get("stopped")):
        return ""
    why = "as the held-out score had turned" if mapping(metrics.get("turned")) else "over kl_max"
    return f" Training ended early, {why}."


_OUTCOMES: Mapping[str, Callable[[Stage], str]] = {"sft": _sft, "reward": _reward, "dpo": _pairs, "ppo": _ppo}
