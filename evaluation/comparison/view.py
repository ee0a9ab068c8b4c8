"""Everything that a comparison shows, as one record: made once, shown as page, on a terminal, as CSV and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.comparison.by_value import ValueTable, sweep_notes, value_tables
from evaluation.comparison.costs import Cost, costs
from evaluation.comparison.equal_kl import Frontier, Pair, frontiers
from evaluation.comparison.evaluation_set import EvaluationSet, require_one_set
from evaluation.comparison.fine_tuning import tuned_pairs, tuned_policies, tuned_spreads
from evaluation.comparison.held_out import on_the_same_rows
from evaluation.comparison.load import ComparedRun, load_runs
from evaluation.comparison.recipes import Difference, differences
from evaluation.comparison.rows import PolicyRow, policy_rows
from evaluation.comparison.seeds import SeedGroup, Spread, floors, seed_groups, spreads
from evaluation.comparison.side_by_side import Sample, samples
from evaluation.comparison.sweeps import Sweep, find_sweeps
from evaluation.comparison.token_units import tokenizer_notes
from evaluation.comparison.voting import vote_sentence, voted_on
from evaluation.comparison.words import notes, second_opinions, seed_notes, tuned_verdicts, verdicts
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
    tuned: tuple[Pair, ...]
    """SFT beside the base model, and recipes of SFT beside each other."""
    tuned_noise: Mapping[str, float]
    """By measure: what another seed of SFT alone changes."""
    sweeps: tuple[Sweep, ...]
    """Runs that differ in some keys alone."""
    by_value: tuple[ValueTable, ...]
    """The policies that those keys reach, value by value."""
    verdicts: tuple[Sentence, ...]
    tuned_verdicts: tuple[Sentence, ...]
    """Those on SFT alone."""
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
    runs, unlike = on_the_same_rows(runs)
    sweeps = find_sweeps(runs)
    found = frontiers(runs, sweeps)
    rows = policy_rows(runs)
    voted, unknown = voted_on(runs, rows, votes)
    groups = seed_groups(runs)
    recipes = tuned_policies(runs, groups)
    by_seed = [*tuned_spreads(recipes), *(one for one in spreads(runs, groups) if one.kind != "sft")]
    noise, tuned_noise = floors(by_seed), floors(by_seed, ("sft",))
    tuned = tuned_pairs(recipes, sweeps)
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
        tuned=tuple(tuned),
        tuned_noise=tuned_noise,
        sweeps=tuple(sweeps),
        by_value=tuple(by_value),
        verdicts=(*verdicts(found, groups, noise), *map(vote_sentence, voted)),
        tuned_verdicts=tuple(tuned_verdicts(tuned, tuned_noise)),
        notes=(
            *sweep_notes(sweeps, by_value),
            *seed_notes(groups, noise, tuned_noise),
            *second_opinions(found, groups, noise),
            *tokenizer_notes(runs),
            *notes(runs, rows, found, groups),
            *unlike,
            *unknown,
        ),
        samples=tuple(samples(runs, rows)),
        costs=tuple(costs(runs)),
        voted=tuple(voted),
        set=measured_on,
    )
