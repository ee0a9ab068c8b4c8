"""Histograms as inline SVG, in the style of `charts`: no library, no script, colours from the page's style sheet."""

from __future__ import annotations

from markupsafe import Markup, escape

from evaluation.report.charts import nice_ticks
from evaluation.report.files import whole
from evaluation.report.measures import count

_WIDTH, _HEIGHT = 420, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 34


def histogram(title: str, width: int | None, counts: object) -> Markup:
    """Columns of rows by length; each says what it counts when it is pointed at. Empty without usable counts.

    Args:
        title: what it shows, for screen readers.
        width: of a bin, in tokens; the first begins at 0.
        counts: rows per bin.
    """
    known = [whole(value) or 0 for value in counts] if isinstance(counts, list) else []
    if not width or not sum(known):
        return Markup("")
    most = max(known)
    ticks = [tick for tick in nice_ticks(0, most, 4) if tick == int(tick)] if most > 1 else [0.0, 1.0]
    top = max(ticks)
    across, height = (_WIDTH - _LEFT - _RIGHT) / len(known), _HEIGHT - _TOP - _BOTTOM
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    peak = known.index(most)
    told = f"{title}: most, {count(most)}, have {_range(peak, width)}; longest have {_range(len(known) - 1, width)}"
    parts = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(told)}">']
    for tick in ticks:
        y = bottom - tick / top * height
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{count(int(tick))}</text>')
    for index, rows in enumerate(known):
        if not rows:
            continue
        # A bin of one row among thousands is still to be seen.
        tall = max(rows / top * height, 1.0)
        parts.append(
            f'<rect class="column" x="{_LEFT + index * across + 0.5:.1f}" y="{bottom - tall:.1f}" '
            f'width="{max(across - 1, 0.5):.1f}" height="{tall:.1f}">'
            f"<title>{escape(_range(index, width))}: {count(rows)}</title></rect>"
        )
    every = max(1, -(-len(known) // 6))
    for index in range(0, len(known) + 1, every):
        x = _LEFT + index * across
        parts.append(f'<line class="tick" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{count(index * width)}</text>')
    parts.append("</svg>")
    return Markup("\n".join(parts))  # every text in parts was escaped above


def _range(index: int, width: int) -> str:
    """`40 to 59 tokens`."""
    low = index * width
    return f"{count(low)} to {count(low + width - 1)} tokens" if width > 1 else f"{count(low)} tokens"
