"""`report.html`: one page that needs nothing else, neither network nor script.

Model answers are untrusted text: everything is escaped by the templates, control characters are taken out, and the
page's own policy forbids scripts and outside content in case something is overlooked.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.report import measures, sections
from evaluation.report.benchmarks_section import benchmark_table
from evaluation.report.conduct_section import conduct_table, scored_table
from evaluation.report.curves import curves
from evaluation.report.differences import difference_table, family_differences
from evaluation.report.frontier_section import frontier_section, frontiers_of
from evaluation.report.grades_section import grade_table
from evaluation.report.judge_section import judge_table
from evaluation.report.load import Run, load_run
from evaluation.report.outcomes import outcome_of
from evaluation.report.ppo_section import ppo_sections
from evaluation.report.reward_section import reward_sections
from evaluation.report.samples_section import samples
from evaluation.report.verdict import verdict
from evaluation.report.wins_section import win_tables
from evaluation.report.words import state
from evaluation.report.worse_section import worse_section
from pipeline.durable import write_text_atomically

_TEMPLATES = Path(__file__).parent / "templates"
_UNPRINTABLE = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160), *range(0xD800, 0xE000))}
_UNPRINTABLE.update({ord("\t"): "\t", ord("\n"): "\n", ord("\r"): "\n"})


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into `run_dir` in one step and return its path; shows what there is of a half-done run."""
    path = run_dir / "report.html"
    write_text_atomically(path, render(load_run(run_dir)))
    return path


def render(run: Run) -> str:
    """The page as text. The same run gives the same text: nothing in it depends on when or where it is made."""
    drawn, frontiers, worse = curves(run.stages), frontiers_of(run), worse_section(run)
    return render_template(
        "page.html",
        run=run,
        state=state(run),
        verdict=verdict(run, frontiers, worse),
        differences=difference_table(run),
        frontier=frontier_section(run, frontiers),
        worse=worse,
        stage_outcomes=[(stage.name, told) for stage in run.stages if (told := outcome_of(stage))],
        policies=sections.policy_table(run),
        families=sections.family_table(run),
        family_differences=family_differences(run),
        wins=win_tables(run),
        conduct=conduct_table(run),
        conduct_scores=scored_table(run),
        benchmarks=benchmark_table(run.benchmarks, tuple(run.policies)),
        grades=grade_table(run),
        judge=judge_table(run),
        reward_sections=reward_sections(run),
        ppo_sections=ppo_sections(run, drawn),
        stage_curves=drawn,
        data_uses=sections.data_uses(run),
        samples=samples(run),
        lineage=sections.lineage(run),
        surroundings=sections.surroundings(run),
    )


def render_template(name: str, **values: Any) -> str:
    """A page from one of the templates: every value escaped, characters that no page can show replaced."""
    return _environment().get_template(name).render(**values).translate(_UNPRINTABLE)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (measures.figures, measures.plain, measures.count, measures.duration, measures.measure_named):
        environment.globals[function.__name__] = function
    return environment
