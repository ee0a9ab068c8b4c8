"""Where it got worse: every loss that an interval shows, of each policy against what it started from, and no other.

Looked for in all measures of which less, or more, is worse, family by family, and in public benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evaluation.report.benchmarks_section import benchmark_table
from evaluation.report.differences import family_cell, starts
from evaluation.report.load import Comparison, FamilyComparison, Run
from evaluation.report.measures import LEAST_PROMPTS, measure_named
from evaluation.report.words import brief, lower, told, tone_of

_BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What one policy lost."""

    after: str
    before: str
    names: tuple[str, ...]
    """Of what, in a few words each."""
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorseSection:
    """All losses that are shown, and how hard it was looked for them."""

    losses: tuple[Losses, ...]
    looked: int
    """Comparisons that could have shown one."""
    few: tuple[str, ...]
    """Measures that rest on too few prompts to show anything."""
    benchmarks: bool
    """Whether public benchmarks were asked."""


def worse_section(run: Run) -> WorseSection:
    """The losses of a run; `looked` is 0 where nothing has been compared."""
    own = [row for row in run.comparisons if starts(run)[row.after] == row.before and measure_named(row.metric).better]
    families = [row for row in run.family_comparisons if starts(run).get(row.after) == row.before]
    against_base = list(_benchmarks(run))
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in own:
        if tone_of(row) == "worse":
            found.setdefault((row.before, row.after), []).append((brief(measure_named(row.metric)), told(row).text))
    for one in families:
        if family_cell(one).tone == "worse":
            found.setdefault((one.before, one.after), []).append((one.family, _family(one)))
    for policy, label, tone, text in against_base:
        if tone == "worse":
            found.setdefault((_BASE, policy), []).append((label, text))
    return WorseSection(
        losses=tuple(
            Losses(after=after, before=before, names=tuple(n for n, _ in each), sentences=tuple(t for _, t in each))
            for (before, after), each in sorted(found.items(), key=lambda item: _place(run, item[0][1]))
        ),
        looked=sum(map(_can_show, own)) + sum(map(_can_show, families)) + len(against_base),
        few=tuple(_few(own)),
        benchmarks=bool(run.benchmarks),
    )


def in_short(section: WorseSection) -> str:
    """The losses in one sentence, for the verdict; empty where nothing was looked for."""
    if not section.looked:
        return ""
    if not section.losses:
        return f"Nothing was shown to be worse in {section.looked:,} comparisons."
    parts = [f"{each.after} (against {each.before}) in {_listed(each.names)}" for each in section.losses]
    return f"Where it got worse: {'; '.join(parts)}."


def _place(run: Run, policy: str) -> int:
    """Of a policy in the run's order; what the run does not list comes last."""
    names = [*run.policies]
    return names.index(policy) if policy in names else len(names)


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _can_show(row: Comparison | FamilyComparison) -> bool:
    return row.bounds is not None and (row.n is None or row.n >= LEAST_PROMPTS)


def _few(rows: Iterable[Comparison]) -> list[str]:
    by_name = {row.metric: row for row in rows if row.bounds is not None and not _can_show(row)}
    return [f"{lower(measure_named(name).label)} (n = {row.n})" for name, row in by_name.items()]


def _family(row: FamilyComparison) -> str:
    cell = family_cell(row)
    bounds = f" [{cell.bounds[0]}, {cell.bounds[1]}]" if cell.bounds else ""
    prompts = "its prompts" if row.n is None else f"{row.n:,} prompts"
    return (
        f"{row.family}: {row.after} answers {cell.value.lstrip('-')} points fewer of {prompts} right than {row.before} "
        f"(difference {cell.value}{bounds}, widened for looking at every family)."
    )


def _benchmarks(run: Run) -> Iterable[tuple[str, str, str, str]]:
    """Policy, benchmark, tone and sentence of every figure that was held against the base model's."""
    table = benchmark_table(run.benchmarks, tuple(run.policies))
    for row in table.rows if table else ():
        for policy, cell in zip(table.policies if table else (), row.cells, strict=True):
            if cell is None or cell.difference is None or cell.bounds is None:
                continue
            low, high = (f"{100 * bound:.1f}" for bound in cell.bounds)
            over = "" if cell.n is None else f" over {cell.n:,} questions"
            change = f"{policy} {100 * cell.difference:+.1f} points [{low}, {high}] on base{over}"
            text = f"{row.label}, {row.metric}: {change}."
            yield policy, row.label, cell.tone, text
