"""A saved view in Weights & Biases that holds runs side by side: a section per stage, one line per run. Layer 2.

Panels are of series that the runs have, under the names that `wandb_runs` gives them; W&B itself would show every
series in a panel of its own, the score never against the KL that it cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RecipeError, SourceUnreachableError
from pipeline.recipe.schema import WandbSettings
from pipeline.wandb_runs import mode, series

EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """A panel with lines: metrics by split and name, against steps or another metric."""

    title: str
    y: tuple[tuple[str, str], ...]
    x: tuple[str, str] | None = None


def _over_steps(title: str, *names: str) -> Lines:
    """`eval/loss` is split `eval`, anything else split `train`."""
    return Lines(title=title, y=tuple(_parted(name) for name in names))


def _parted(name: str) -> tuple[str, str]:
    return ("eval", name.removeprefix("eval/")) if name.startswith("eval/") else ("train", name)


_SCORES = (("eval", "score"), ("eval", "score_heldout"))
PANELS: Mapping[str, tuple[Lines, ...]] = {
    "sft": (
        _over_steps("Loss", "loss"),
        _over_steps("Held-out loss", "eval/loss"),
        _over_steps("Gradient norm", "grad_norm"),
    ),
    "reward": (
        _over_steps("Loss", "loss"),
        _over_steps("Held-out preference accuracy", "eval/accuracy"),
        _over_steps("Held-out margin", "eval/margin"),
        _over_steps("Gradient norm", "grad_norm"),
    ),
    "dpo": (
        _over_steps("Loss", "loss"),
        _over_steps("Held-out preference accuracy", "eval/accuracy"),
        _over_steps("Held-out margin", "eval/margin"),
        _over_steps("Implicit rewards: margin", "rewards/margins"),
        _over_steps("Log-probabilities of chosen and rejected", "logps/chosen", "logps/rejected"),
        _over_steps("Gradient norm", "grad_norm"),
    ),
    "ppo": (
        Lines(title="Score against sqrt(KL)", x=("train", "objective/sqrt_kl"), y=(("train", "objective/score"),)),
        Lines(title="Held-out score against KL in nats", x=("eval", "kl_seq"), y=_SCORES),
        _over_steps("Held-out score", "eval/score", "eval/score_heldout"),
        _over_steps("Held-out prompts answered right", "eval/rule_accuracy"),
        _over_steps("Score", "objective/score"),
        _over_steps("KL in nats per response", "objective/kl_seq"),
        _over_steps("Response length in tokens", "response/len_mean"),
        _over_steps("Share of responses that end", "response/eos_rate"),
        _over_steps("Entropy in nats per token", "policy/entropy"),
        _over_steps("Policy loss", "policy/loss"),
        _over_steps("Share of tokens clipped", "policy/clipfrac_high", "policy/clipfrac_low"),
        _over_steps("Explained variance of the baseline", "value/explained_var"),
    ),
}
"""By kind of stage: what is looked at first."""
MEASURES: Mapping[str, str] = {
    "score": "Score",
    "score_heldout": "Score by the held-out reward model",
    "rule_accuracy": "Held-out prompts answered right",
    "win_rate": "Win rate by the judge",
    "kl_to_reference": "KL to the reference in nats",
    "response_tokens": "Response length in tokens",
    "eos_rate": "Share of responses that end",
    "entropy": "Entropy in nats per token",
    "perplexity": "Perplexity",
}
"""Figures of an evaluation's policies that get a panel with a bar for each policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenStage:
    """What the compared runs have logged of one stage."""

    name: str
    kind: str
    series: frozenset[tuple[str, str]]
    """Split and name of each metric, of all runs."""
    figures: frozenset[str]
    """Headline figures, of all runs."""


def require_workspaces() -> None:
    """Refuse where no view could be saved.

    Raises:
        SourceUnreachableError: W&B is offline.
        RecipeError: the library is missing; with what to install.
    """
    if mode() != "online":
        raise SourceUnreachableError("push: --workspace needs W&B's server; unset WANDB_MODE, or leave it out")
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            'push: --workspace needs the library wandb-workspaces; `pip install -e ".[wandb]" -c constraints.txt`'
        ) from error


def build_workspace(settings: WandbSettings, name: str, runs: Sequence[str], stages: Sequence[SeenStage]) -> Any:
    """The view, not yet saved.

    Args:
        settings: project and entity; an entity must be named.
        name: of the view.
        runs: their names, which are groups in W&B: one line each, whatever stage it comes from.
        stages: in the order of their sections.
    """
    import wandb_workspaces.workspaces as workspaces
    from wandb_workspaces import expr

    group = expr.Metric("Group")
    sections = [
        workspaces.Section(name=stage.name, panels=panels, is_open=True)
        for stage in stages
        if (panels := list(_panels(stage)))
    ]
    return workspaces.Workspace(
        name=name,
        entity=settings.entity or "",
        project=settings.project,
        sections=sections,
        runset_settings=workspaces.RunsetSettings(filters=[group.isin(list(runs))], groupby=[group]),
    )


def save_workspace(
    settings: WandbSettings, name: str, runs: Sequence[str], stages: Sequence[SeenStage],
    default_entity: Callable[[], str],
) -> str:  # fmt: skip
    """Save the view, a new one each time.

    Args:
        settings, name, runs, stages: as for `build_workspace`.
        default_entity: of whoever is logged in; asked only where none is named.

    Returns:
        Its address.

    Raises:
        SourceUnreachableError: the server did not take it.
    """
    try:
        entity = settings.entity or default_entity()
        found = build_workspace(settings.model_copy(update={"entity": entity}), name, runs, stages)
        return str(found.save().url)
    except Exception as error:
        raise SourceUnreachableError(
            f"push: W&B did not save the workspace ({type(error).__name__}: {error}); all metrics were sent: try again "
            "with the same command, which sends no step twice"
        ) from error


def _panels(stage: SeenStage) -> Iterable[Any]:
    if stage.kind == EVALUATION:
        yield from _bars(stage)
    for panel in PANELS.get(stage.kind, ()):
        y = [one for one in panel.y if one in stage.series]
        if y and (panel.x is None or panel.x in stage.series):
            yield _line_plot(stage.name, panel, y)


def _line_plot(stage: str, panel: Lines, y: Sequence[tuple[str, str]]) -> Any:
    import wandb_workspaces.reports.v2 as reports

    x = "Step" if panel.x is None else series(stage, *panel.x)
    return reports.LinePlot(title=panel.title, x=x, y=[series(stage, *one) for one in y])


def _bars(stage: SeenStage) -> Iterable[Any]:
    """One panel per measure, one bar per policy and run."""
    import wandb_workspaces.reports.v2 as reports

    for measure, title in MEASURES.items():
        names = sorted(name for name in stage.figures if name.split("/")[1:] == [measure])
        if names:
            yield reports.BarPlot(title=title, metrics=[f"{stage.name}/{name}" for name in names])
