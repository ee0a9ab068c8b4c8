"""The frontier of one run: score against sqrt(KL), every measured checkpoint and the best of n on it.

Drawn and compared by the code that lays several runs side by side; a run by itself is a comparison of one. That code
needs numpy, so it is imported where it is used: the process that writes the report is a light one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evaluation.report.files import number
from evaluation.report.load import Run
from evaluation.report.measures import alike, measure_named, plain
from evaluation.report.words import Sentence, brief, unit_of

if TYPE_CHECKING:
    from evaluation.comparison.drawing import FrontierChart
    from evaluation.comparison.equal_kl import Frontier, Pair

_ORDER = ("score_heldout", "rule_accuracy", "score")
"""What training was not after comes first."""
_FREE = "best of n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierSection:
    """The charts, and the comparisons at equal KL behind the verdict."""

    charts: tuple[FrontierChart, ...]
    pairs: tuple[Pair, ...]
    passed: bool
    """Whether any chart holds what a stage measured of itself while it trained."""


def frontiers_of(run: Run) -> list[Frontier]:
    """One frontier for each value that was measured; none while no policy stands anywhere on one."""
    placed = any(number(row.get("kl_to_reference")) is not None for row in run.policies.values())
    trained = any(stage.kind in ("dpo", "ppo") and stage.points for stage in run.stages)
    if not (placed or trained):
        return []
    from evaluation.comparison.equal_kl import frontiers
    from evaluation.comparison.load import with_rows

    compared = with_rows(run, run.name)
    alone = f" ({compared.label})"  # of one run there is no need to say which
    found = [
        replace(one, passed=tuple(replace(way, name=way.name.removesuffix(alone)) for way in one.passed))
        for one in frontiers([compared])
    ]
    return sorted(found, key=lambda one: _ORDER.index(one.metric))


def frontier_section(run: Run, found: Sequence[Frontier]) -> FrontierSection | None:
    """What the page shows of the frontiers; None without any."""
    if not found:
        return None
    from evaluation.comparison.drawing import frontier_charts

    drawn = [one for one in found if one.paths or one.passed]
    charts = [replace(chart, title=_title(run, one)) for one, chart in zip(drawn, frontier_charts(found), strict=True)]
    if not charts:
        return None
    return FrontierSection(
        charts=tuple(charts),
        pairs=tuple(pair for one in found for pair in one.pairs),
        passed=any(one.passed for one in found),
    )


def _title(run: Run, found: Frontier) -> str:
    """The reward model by name where the policies were scored by it; a stage may have been rewarded by another."""
    by = {"score": run.score_by, "score_heldout": run.score_heldout_by}.get(found.metric, "")
    if not (by and found.paths):
        return measure_named(found.metric).label
    return f"Score from {by}{', which training did not use' if found.metric == 'score_heldout' else ''}"


def trained_pair(found: Sequence[Frontier], one: str, other: str) -> Pair | None:
    """Two policies at equal KL, in the first value of `_ORDER` that both were compared in."""
    return next((pair for pair in _trained(found) if {pair.a, pair.b} == {one, other}), None)


def at_equal_kl(found: Sequence[Frontier], told: Pair | None = None) -> Iterable[Sentence]:
    """Trained policies against each other: the first value that they were compared in, others where they show more.

    `told` is left out, as the lead says it.
    """
    if not found:
        return
    from evaluation.comparison.words import second_opinions, verdict

    for at, pair in enumerate(_trained(found)):
        said = verdict(pair)
        if pair is not told and (at == 0 or said.tone == "better"):
            yield said
    for text in second_opinions(found):
        yield Sentence(text=text, tone="caution")


def against_best_of_n(found: Sequence[Frontier]) -> Iterable[Sentence]:
    """Trained policies against the best of n answers, which costs no training."""
    pairs = [pair for one in found for pair in one.pairs if _FREE in (pair.a, pair.b)]
    if not pairs:
        return
    from evaluation.comparison.words import verdict

    for pair in pairs:
        said = verdict(pair)
        ahead = pair.b if (pair.difference.estimate or 0) > 0 else pair.a
        # That drawing more answers gives as much, or more, is no good news for what was trained.
        lost = said.tone == "better" and ahead == _FREE
        yield Sentence(text=said.text, tone="worse" if lost else said.tone)


def _trained(found: Sequence[Frontier]) -> list[Pair]:
    return [pair for one in found for pair in one.pairs if pair.kl is not None and _FREE not in (pair.a, pair.b)]


def clause(pair: Pair) -> str:
    """The end of a sentence: who is ahead at equal KL, and by how much."""
    from evaluation.comparison.words import verdict

    at, measure = f"at equal KL ({plain(pair.kl or 0.0)} nats)", measure_named(pair.metric)
    gap, low, high = pair.difference.estimate, pair.difference.low, pair.difference.high
    if gap is None or low is None or high is None or verdict(pair).tone != "better":
        return f"{at} no difference is shown in {brief(measure)}"
    size, *around = alike(measure, [gap, low, high] if gap > 0 else [-gap, -high, -low])
    by = f"{size}{unit_of(measure)} [{around[0]}, {around[1]}]"
    return f"{at} {pair.b if gap > 0 else pair.a} is better by {by} in {brief(measure)}"
