"""The lineage of a run as inline SVG: what every artefact was made from, from data and base model at the top down.

Boxes stand in rows, each below all that went into it. A line that passes rows by has a place of its own in each, and
rows are ordered so that few lines cross (Sugiyama et al. 1981, by the mean place of neighbours).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

from evaluation.report.load import Stage

_BOX, _TALL, _LANE, _GAP, _BETWEEN = 98, 34, 10, 10, 34
"""Of a box its width and height, of a line that passes by its width; between two of a row; between rows."""
_LEAST_WIDTH, _MARGIN = 420, 8
_LETTERS = 15
"""As many fit into a box."""
_SWEEPS = 4
_NAMELESS = "nameless"
_KINDS = {"sft": "policy", "dpo": "policy", "ppo": "policy", "reward": "reward model", "evaluation": "evaluation"}


@dataclass(slots=True)
class _Node:
    """A box, or (without a label) the place of a line in a row that it passes."""

    label: str = ""
    kind: str = ""
    style: str = "made"
    told: str = ""
    row: int = 0
    x: float = 0.0
    above: list[str] = field(default_factory=list)
    below: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        return _BOX if self.label else _LANE


def lineage_graph(stages: Iterable[Stage]) -> Markup:
    """The graph of all sealed artefacts; empty where there is none."""
    nodes, edges = _gathered(stages)
    if not edges:
        return Markup("")
    told = _told(nodes, edges)
    _place_in_rows(nodes, edges)
    # Manifests that lead in circles are damaged; the list beside the graph shows all that they say.
    paths = {edge: _with_lanes(nodes, edge) for edge in edges if nodes[edge[0]].row < nodes[edge[1]].row}
    rows = _ordered(nodes)
    width = _place_across(nodes, rows)
    height = 2 * _MARGIN + len(rows) * _TALL + (len(rows) - 1) * _BETWEEN
    least = f"min-width: {0.75 * width:.0f}px; " if width > _LEAST_WIDTH else ""
    parts = [
        f'<svg class="chart lineage" viewBox="0 0 {width:.0f} {height}" role="img" '
        f'style="{least}max-width: {1.4 * width:.0f}px" aria-label="{escape(f"Lineage: {told}")}">',
        *(_line([nodes[name] for name in path], edges[edge]) for edge, path in paths.items()),
        *(_box(node) for node in nodes.values() if node.label),
        "</svg>",
    ]
    return Markup("\n".join(parts))  # every text in parts was escaped above or in the functions called


def _told(nodes: Mapping[str, _Node], edges: Iterable[tuple[str, str]]) -> str:
    """The graph in words: `sft from base, alpaca; dpo from sft, preference`."""
    made_from: dict[str, list[str]] = {}
    for above, below in edges:
        made_from.setdefault(below, []).append(nodes[above].label)
    return "; ".join(f"{nodes[below].label} from {', '.join(above)}" for below, above in made_from.items())


def _gathered(stages: Iterable[Stage]) -> tuple[dict[str, _Node], dict[tuple[str, str], str]]:
    """Boxes by key, and as what one went into the other."""
    nodes: dict[str, _Node] = {}
    edges: dict[tuple[str, str], str] = {}
    stages = [stage for stage in stages if stage.provenance is not None]
    names = {stage.key: stage.name for stage in reversed(stages) if stage.key}
    for stage in stages:
        made = stage.provenance
        if made is None:
            continue
        if made.base and not made.parents:
            nodes.setdefault(
                f"base {made.base}", _Node(_short(made.base) or _NAMELESS, "base model", "given", made.base)
            )
            edges[f"base {made.base}", stage.name] = "base model"
        for data in made.data:
            paths = ", ".join(source.path for source in data.sources)
            nodes.setdefault(f"data {data.name} {paths}", _Node(data.name or _NAMELESS, "data", "given", paths))
            edges[f"data {data.name} {paths}", stage.name] = "data"
        for parent in made.parents:
            name = names.get(parent.key) or f"elsewhere {parent.key}"
            if parent.key not in names:
                told = f"{parent.stage} {parent.key[:12]}, not the one of this run"
                nodes.setdefault(name, _Node(parent.stage or _NAMELESS, "of another run", "elsewhere", told))
            edges[name, stage.name] = parent.role.replace("_", " ")
        nodes[stage.name] = _Node(stage.name, _KINDS.get(stage.kind, stage.kind), "made", f"{stage.name} {stage.key}")
    return nodes, edges


def _short(base: str) -> str:
    """The last part of a base model's name."""
    return base.split(",")[0].rpartition("/")[2].rpartition(":")[2]


def _place_in_rows(nodes: Mapping[str, _Node], edges: Iterable[tuple[str, str]]) -> None:
    """Every box one row below the lowest of what went into it; what was given just above the first that takes it."""
    edges = list(edges)
    for _ in nodes:  # no chain is longer than there are boxes
        for above, below in edges:
            nodes[below].row = max(nodes[below].row, nodes[above].row + 1)
    for name, node in nodes.items():
        if node.style != "made":
            node.row = min(nodes[below].row for above, below in edges if above == name) - 1


def _with_lanes(nodes: dict[str, _Node], edge: tuple[str, str]) -> list[str]:
    """The way from one box to the other: their names, and between them those of new lanes, one in each row passed."""
    above, below = edge
    lanes = {f"{above} > {below} {row}": row for row in range(nodes[above].row + 1, nodes[below].row)}
    nodes.update((name, _Node(row=row)) for name, row in lanes.items())
    path = [above, *lanes, below]
    for one, next_ in pairwise(path):
        nodes[one].below.append(next_)
        nodes[next_].above.append(one)
    return path


def _ordered(nodes: Mapping[str, _Node]) -> list[list[str]]:
    """The names of each row, from left to right."""
    rows = [[name for name, node in nodes.items() if node.row == row] for row in range(_last_row(nodes) + 1)]
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for at in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            beside = _places(rows[at - 1 if down else at + 1])
            own = _places(rows[at])
            means = {}
            for name in rows[at]:
                others = nodes[name].above if down else nodes[name].below
                means[name] = sum(beside[other] for other in others) / len(others) if others else own[name]
            rows[at].sort(key=means.__getitem__)
    return rows


def _places(row: Sequence[str]) -> dict[str, float]:
    """How far to the right each stands, from 0 to 1."""
    return {name: (place + 0.5) / len(row) for place, name in enumerate(row)}


def _last_row(nodes: Mapping[str, _Node]) -> int:
    return max(node.row for node in nodes.values())


def _place_across(nodes: Mapping[str, _Node], rows: Sequence[Sequence[str]]) -> float:
    """Rows in the middle of one another; returns the width of all."""
    widths = [sum(nodes[name].width for name in row) + _GAP * (len(row) - 1) for row in rows]
    width = float(max(_LEAST_WIDTH, max(widths) + 2 * _MARGIN))
    for row, taken in zip(rows, widths, strict=True):
        left = (width - taken) / 2
        for name in row:
            nodes[name].x = left + nodes[name].width / 2
            left += nodes[name].width + _GAP
    return width


def _top(node: _Node) -> int:
    return _MARGIN + node.row * (_TALL + _BETWEEN)


def _line(path: Sequence[_Node], role: str) -> str:
    """From the foot of one box to the head of the other, straight through the rows between."""
    parts = [f"M{path[0].x:.1f},{_top(path[0]) + _TALL}"]
    for one, other in pairwise(path):
        start, end = _top(one) + _TALL, _top(other) - (4 if other is path[-1] else 0)
        middle = (start + end) / 2
        parts.append(f"C{one.x:.1f},{middle:.1f} {other.x:.1f},{middle:.1f} {other.x:.1f},{end}")
        if other is not path[-1]:
            parts.append(f"V{_top(other) + _TALL}")
    x, y = path[-1].x, _top(path[-1])
    told = escape(f"{path[0].label} → {path[-1].label}{f', as {role}' if role else ''}")
    return (
        f'<path class="edge" d="{" ".join(parts)}"><title>{told}</title></path>'
        f'<polygon class="head" points="{x - 3:.1f},{y - 6} {x + 3:.1f},{y - 6} {x:.1f},{y}"/>'
    )


def _box(node: _Node) -> str:
    label = node.label if len(node.label) <= _LETTERS else node.label[: _LETTERS - 1] + "…"
    left, top = node.x - _BOX / 2, _top(node)
    return (
        f'<g class="node {node.style}"><title>{escape(node.told or node.label)}</title>'
        f'<rect x="{left:.1f}" y="{top}" width="{_BOX}" height="{_TALL}" rx="4"/>'
        f'<text class="name" x="{node.x:.1f}" y="{top + 15}" text-anchor="middle">{escape(label)}</text>'
        f'<text x="{node.x:.1f}" y="{top + 28}" text-anchor="middle">{escape(node.kind)}</text></g>'
    )
