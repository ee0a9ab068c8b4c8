"""Everything that a comparison shows, as one record: made once, shown as page, on a terminal, as CSV and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.comparison.by_value import ValueTable, sweep_notes, value_tables
from evaluation.comparison.costs import Cost, costs
from evaluation.comparison.equal_kl import Frontier, frontiers
from evaluation.comparison.evaluation_set import EvaluationSet, require_one_set
from evaluation.comparison.load import ComparedRun, load_runs
from evaluation.comparison.recipes import Difference, differences
from evaluation.comparison.rows import PolicyRow, policy_rows
from evaluation.comparison.seeds import SeedGroup, Spread, floors, seed_groups, spreads
from evaluation.comparison.side_by_side import Sample, samples
from evaluation.comparison.sweeps import Sweep, find_sweeps
from evaluation.comparison.voting import vote_sentence, voted_on
from evaluation.comparison.words import notes, second_opinions, seed_notes, verdicts
from evaluation.judging.votes import VotedPair
from evaluation.report.words import Sentence, state


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs side by side."""

    runs: tuple[ComparedRun, ...]
    states: tuple[Sentence, ...]
    """How far each run has come, in the runs' order."""
    differences: tuple[Difference, ...]
    rows: tuple[PolicyRow, ...]
    frontiers: tuple[Frontier, ...]
    seeds: tuple[SeedGroup, ...]
    """Runs that differ by their seed alone."""
    spreads: tuple[Spread, ...]
    """What the policies of such runs differ by."""
    noise: Mapping[str, float]
    """By measure: what another seed alone changes."""
    sweeps: tuple[Sweep, ...]
    """Runs that differ in some keys alone."""
    by_value: tuple[ValueTable, ...]
    """The policies that those keys reach, value by value."""
    verdicts: tuple[Sentence, ...]
    notes: tuple[str, ...]
    """What a reader must know to read the rest rightly."""
    samples: tuple[Sample, ...]
    costs: tuple[Cost, ...]
    voted: tuple[VotedPair, ...]
    set: EvaluationSet | None


def compare_runs(directories: Sequence[Path], votes: Path | None = None) -> Comparison:
    """Read the runs and compare them, and what people voted on their answers.

    Raises:
        DataError: a folder holds no run, two runs were evaluated on different prompts, or votes cannot be read.
        RecipeError: a run is named twice.
    """
    runs = load_runs(directories)
    measured_on = require_one_set(runs)
    sweeps = find_sweeps(runs)
    found = frontiers(runs, sweeps)
    rows = policy_rows(runs)
    voted, unknown = voted_on(runs, rows, votes)
    groups = seed_groups(runs)
    by_seed = spreads(runs, groups)
    noise = floors(by_seed)
    by_value = value_tables(runs, sweeps, noise)
    return Comparison(
        runs=tuple(runs),
        states=tuple(state(compared.run) for compared in runs),
        differences=tuple(differences(runs)),
        rows=tuple(rows),
        frontiers=tuple(found),
        seeds=tuple(groups),
        spreads=tuple(by_seed),
        noise=noise,
        sweeps=tuple(sweeps),
        by_value=tuple(by_value),
        verdicts=(*verdicts(found, groups, noise), *map(vote_sentence, voted)),
        notes=(
            *sweep_notes(sweeps, by_value),
            *seed_notes(groups, noise),
            *second_opinions(found, groups, noise),
            *notes(runs, rows, found, groups),
            *unknown,
        ),
        samples=tuple(samples(runs, rows)),
        costs=tuple(costs(runs)),
        voted=tuple(voted),
        set=measured_on,
    )
