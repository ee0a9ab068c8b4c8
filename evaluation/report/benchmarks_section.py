"""Public benchmarks side by side: each policy's figure with its standard error, and what it lost or won on the base.

What alignment made a policy forget shows here and nowhere else in a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.files import bounds, mapping, number, text, whole
from evaluation.report.measures import shown

TITLES = {
    "mmlu": "MMLU", "cmmlu": "CMMLU", "ceval": "C-Eval", "hellaswag": "HellaSwag", "gsm8k": "GSM8K",
    "truthfulqa": "TruthfulQA", "humaneval": "HumanEval", "ifeval": "IFEval", "bbh": "BIG-Bench Hard",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkCell:
    """One policy on one benchmark."""

    value: float
    stderr: float | None
    n: int | None
    difference: float | None
    """To the base model, on the same questions; None for the base itself, and where it was not asked alike."""
    bounds: tuple[float, float] | None
    tone: str
    """better, worse, none, or plain where nothing was compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkRow:
    """One figure of one benchmark under one setting."""

    label: str
    metric: str
    cells: tuple[BenchmarkCell | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkTable:
    """All benchmarks of a run."""

    policies: tuple[str, ...]
    rows: tuple[BenchmarkRow, ...]
    versions: tuple[str, ...]
    """Of the harness and its libraries; several where entries were made by several."""


def benchmark_table(entries: Sequence[Mapping[str, Any]], policies: Sequence[str] = ()) -> BenchmarkTable | None:
    """The table of all entries; None without any.

    Args:
        entries: as `evaluation.benchmarks.record` keeps them.
        policies: in the order of the columns, where it is known.
    """
    if not entries:
        return None
    found = {text(entry.get("policy")) for entry in entries}
    names = [name for name in ("base", *policies) if name in found]
    names = list(dict.fromkeys([*names, *(text(entry.get("policy")) for entry in entries)]))
    groups: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for entry in entries:
        key = text(entry.get("benchmark")), _setting(mapping(entry.get("settings")))
        groups.setdefault(key, {})[text(entry.get("policy"))] = mapping(entry.get("figures"))
    rows = []
    for (benchmark, setting), by_policy in groups.items():
        metrics = dict.fromkeys(metric for figures in by_policy.values() for metric in figures)
        for metric in metrics:
            cells = tuple(_cell(mapping(by_policy.get(name, {}).get(metric))) for name in names)
            label = f"{TITLES.get(benchmark, benchmark)}{f' ({setting})' if setting else ''}"
            rows.append(BenchmarkRow(label=label, metric=metric.replace("_", " ").replace(",", ", "), cells=cells))
    versions = dict.fromkeys(_versions(mapping(entry.get("settings"))) for entry in entries)
    return BenchmarkTable(policies=tuple(names), rows=tuple(rows), versions=tuple(versions))


def print_benchmarks(entries: Sequence[Mapping[str, Any]]) -> None:
    """The table on a terminal, one line per figure."""
    from rich.console import Console

    from evaluation.report.terminal import say, tables

    console = Console(highlight=False)
    table = benchmark_table(entries)
    if table is None:
        return
    heads = ["benchmark", *(f"{row.label}\n{row.metric}" for row in table.rows)]
    columns = [
        [policy, *("–" if (cell := row.cells[at]) is None else _written(cell) for row in table.rows)]
        for at, policy in enumerate(table.policies)
    ]
    console.print()
    for one in tables(console, heads, columns):
        console.print(one)
    say(console, "In %, ± one standard error; ▼ worse and ▲ better than base by a 95 % interval over questions.", "dim")
    for versions in table.versions:
        say(console, versions, "dim")


def _written(cell: BenchmarkCell) -> str:
    mark = {"worse": " ▼", "better": " ▲"}.get(cell.tone, "")
    error = "" if cell.stderr is None else f" ±{100 * cell.stderr:.1f}"
    return f"{100 * cell.value:.1f}{error}{mark}"


def _cell(figure: Mapping[str, Any]) -> BenchmarkCell | None:
    value = number(figure.get("value"))
    if value is None:
        return None
    against = mapping(figure.get("against_base"))
    difference, around = number(against.get("difference")), bounds(against.get("ci95"))
    n = whole(figure.get("n"))
    tone = "plain" if around is None else ("none", "better", "worse")[shown(around, n)]
    return BenchmarkCell(
        value=value, stderr=number(figure.get("stderr")), n=n, difference=difference, bounds=around, tone=tone,
    )  # fmt: skip


def _setting(settings: Mapping[str, Any]) -> str:
    """What of the settings a reader must know to read the figure rightly."""
    limit = whole(settings.get("limit"))
    told = [f"first {limit} of each task" if limit is not None else ""]
    told.append("as a conversation" if settings.get("chat_template") is True else "")
    told.append("data of the hub" if settings.get("data") == "hub" else "")
    return ", ".join(filter(None, told))


def _versions(settings: Mapping[str, Any]) -> str:
    names = ("lm_eval", "transformers", "torch", "datasets")
    return ", ".join(f"{name} {text(settings[name])}" for name in names if name in settings)
