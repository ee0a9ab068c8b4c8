"""A sweep's policies in one table, a line for each value: how every figure moves with the keys.

Where several seeds were trained of a value, its figures are their mean, from the lowest to the highest of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from evaluation import selection
from evaluation.comparison.load import BASE, ComparedRun
from evaluation.comparison.recipes import written
from evaluation.comparison.spots import spot_of
from evaluation.comparison.sweep_paths import mean_spot, varying
from evaluation.comparison.sweeps import Point, Sweep
from evaluation.frontier import Array
from evaluation.report.measures import Cell, Measure, cell, figures, measured

_CALLED = {
    "score_heldout": "score by a reward model that training did not use",
    "rule_accuracy": "share of prompts answered right",
    "score": "score by the reward model",
}
_CHOOSING = tuple(_CALLED)
"""What a value is chosen by: the first that was measured, what training did not use before what it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRow:
    """One value of a sweep's keys."""

    values: tuple[str, ...]
    """As the recipe has them, in the order of the keys."""
    runs: tuple[str, ...]
    seeds: int
    """How many policies the figures are the mean of."""
    cells: tuple[Cell, ...]
    """One per measure: with the interval over prompts, or of several seeds from the lowest to the highest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The value that looks best, by one measure, among all that were tried."""

    measure: Measure
    best: tuple[str, ...]
    """Several where they have the very same figure."""
    value: float
    tried: int
    level_with: tuple[str, ...]
    """Values of which it cannot be said that they are behind."""
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTable:
    """One policy over a sweep."""

    sweep: Sweep
    policy: str
    measures: tuple[Measure, ...]
    rows: tuple[ValueRow, ...]
    reference: ValueRow | None
    """The policy that all started from, where the keys change nothing about it."""
    reference_name: str
    chosen: Chosen | None

    @property
    def seeded(self) -> bool:
        """Whether any figure is a mean over seeds."""
        return any(row.seeds > 1 for row in self.rows)


def value_tables(runs: Sequence[ComparedRun], sweeps: Sequence[Sweep], noise: Mapping[str, float]) -> list[ValueTable]:
    """A table for every policy of every sweep that its keys reach.

    Args:
        runs: all that are compared.
        sweeps: among them.
        noise: by measure, what another seed alone changes (`seeds.floors`).
    """
    found = []
    for sweep in sweeps:
        members = {compared.label: compared for compared in runs if compared.label in sweep.runs}
        policies = dict.fromkeys(policy for run in sweep.runs for policy in members[run].run.policies)
        found += [
            _table(sweep, members, policy, noise)
            for policy in policies
            if policy != BASE and varying(sweep, members, policy)
        ]
    return found


def _table(sweep: Sweep, members: Mapping[str, ComparedRun], policy: str, noise: Mapping[str, float]) -> ValueTable:
    held = {point: _distinct([members[run] for run in point.runs], policy) for point in sweep.points}
    held = {point: each for point, each in held.items() if each}
    everyone = [compared for each in held.values() for compared in each]
    measures = tuple(
        measure
        for measure in measured([compared.run.policies[policy] for compared in everyone])
        # Scores by several reward models are no series.
        if len({compared.judge_of(measure.name) for compared in everyone}) == 1
    )
    first = everyone[0]
    reference = first.run.reference
    shared = reference != policy and len({compared.identity(compared.run.reference) for compared in everyone}) == 1
    return ValueTable(
        sweep=sweep,
        policy=policy,
        measures=measures,
        rows=tuple(_row(tuple(map(written, point.values)), each, policy, measures) for point, each in held.items()),
        reference=_row((), [first], reference, measures) if shared and reference in first.run.policies else None,
        reference_name=reference,
        chosen=_chosen(sweep, held, policy, measures, noise),
    )


def _distinct(runs: Sequence[ComparedRun], policy: str) -> list[ComparedRun]:
    holding = [compared for compared in runs if policy in compared.run.policies]
    return list({compared.identity(policy): compared for compared in holding}.values())


def _row(values: tuple[str, ...], holding: Sequence[ComparedRun], policy: str, measures: Sequence[Measure]) -> ValueRow:
    return ValueRow(
        values=values,
        runs=tuple(compared.label for compared in holding),
        seeds=len(holding),
        cells=tuple(_over_seeds([cell(one.run.policies[policy], measure) for one in holding]) for measure in measures),
    )


def _over_seeds(cells: Sequence[Cell]) -> Cell:
    """One figure as it is; of several their mean, lowest and highest, and none where a seed lacks it."""
    if len(cells) == 1:
        return cells[0]
    known = [one.value for one in cells if one.value is not None]
    if len(known) < len(cells):
        return Cell(value=None, bounds=None, n=None)
    return Cell(value=fmean(known), bounds=(min(known), max(known)), n=min(one.n or 0 for one in cells) or None)


def _chosen(
    sweep: Sweep, held: Mapping[Point, Sequence[ComparedRun]], policy: str, measures: Sequence[Measure],
    noise: Mapping[str, float],
) -> Chosen | None:  # fmt: skip
    for name in _CHOOSING:
        measure = next((one for one in measures if one.name == name), None)
        columns = [_prompt_by_prompt(each, policy, name) for each in held.values()]
        whole = [column for column in columns if column is not None]
        if measure is None or len(whole) < len(columns) or len({column.size for column in whole}) > 1:
            continue
        found = selection.best_of(whole, least=noise.get(name, 0.0))
        # Where all are the same there is nothing to choose, by this measure.
        if found is not None and len(found.ties) + 1 < len(whole):
            points = list(held)
            level_with = [at for at in found.level_with if at not in found.ties]
            return Chosen(
                measure=measure,
                best=tuple(sweep.label(points[at]) for at in (found.best, *found.ties)),
                value=found.mean,
                tried=len(points),
                level_with=tuple(sweep.shown(points[at]) for at in level_with),
                n=found.n,
            )
    return None


def _prompt_by_prompt(holding: Sequence[ComparedRun], policy: str, metric: str) -> Array | None:
    """A value's figure on every prompt, over its seeds the mean; None where an evaluation left none."""
    spots = [spot for one in holding if (spot := spot_of(one, policy, metric)) is not None]
    whole = len(spots) == len(holding) and len({spot.value_P.size for spot in spots}) == 1
    return mean_spot(spots).value_P if whole else None


def sweep_notes(sweeps: Sequence[Sweep], tables: Sequence[ValueTable]) -> Iterable[str]:
    """Which runs are a sweep, and what choosing the best of its values is worth."""
    for sweep in sweeps:
        keys = " and ".join(sweep.keys)
        values = "; ".join(sweep.shown(point) for point in sweep.points)
        yield f"{', '.join(sweep.runs)} are one recipe over {keys}: {values}."
    for table in tables:
        if table.chosen is not None:
            yield _choice(table, table.chosen)


def _choice(table: ValueTable, chosen: Chosen) -> str:
    measure = chosen.measure
    unit = f" {measure.unit}" if measure.percent else ""
    (value,) = figures(measure, chosen.value)
    seeds = " and seeds" if table.seeded else ""
    has = "has" if len(chosen.best) == 1 else "have"
    best, called = " and ".join(chosen.best), _CALLED[measure.name]
    said = (
        f"{table.policy}: {best} {has} the highest {called} ({value}{unit}) of {chosen.tried} values tried, picked on "
        f"these same {chosen.n} prompts{seeds}, so part of its lead is chance"
    )
    if chosen.level_with:
        return f"{said}: {', '.join(chosen.level_with)} cannot be told from it."
    if len(chosen.best) > 1:
        return f"{said}; every other is behind by intervals that hold for all differences together."
    return f"{said}, but not all: every other is behind by intervals that hold for all differences together."
