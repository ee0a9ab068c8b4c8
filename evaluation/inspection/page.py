"""An inspection, or data reports, as one self-contained page: no script, no network, every text escaped."""

from __future__ import annotations

from evaluation.inspection.report import grouped
from evaluation.inspection.stage_rows import StageRows
from evaluation.inspection.view import Inspection, runs
from evaluation.report.page import render_template
from evaluation.report.provenance import data_set_from
from evaluation.report.sections import DataUse
from pipeline.recipe.schema import Recipe


def inspection_page(inspection: Inspection) -> str:
    """The page of `trivet data inspect`."""
    return render_template("inspect.html", inspection=inspection, found=inspection.found, runs=runs)


def report_page(recipe: Recipe, found: list[StageRows]) -> str:
    """The page of `trivet data report`: the data section of a run's report, before the run."""
    uses = [DataUse(data=data_set_from(rows.data, rows.report), stages=stages) for rows, stages in grouped(found)]
    return render_template("data_page.html", recipe=recipe, data_uses=uses)
