"""The comparison as one page that needs nothing else: the report's style, no script, everything escaped."""

from __future__ import annotations

from evaluation.comparison.costs import total
from evaluation.comparison.curves import compared_curves
from evaluation.comparison.drawing import frontier_charts
from evaluation.comparison.rows import table
from evaluation.comparison.view import Comparison
from evaluation.comparison.words import nothing_compared
from evaluation.report.page import render_template


def comparison_page(found: Comparison) -> str:
    """The page as text; the same runs give the same text."""
    return render_template(
        "compare.html",
        found=found,
        charts=frontier_charts(found.frontiers),
        curves=compared_curves(found.runs),
        figures_of=table(found.rows),
        nothing_compared=nothing_compared(found.sweeps),
        total=total(found.runs),
        memory=any(peak is not None for cost in found.costs for peak in (*cost.process_gib, *cost.peak_gib)),
    )
