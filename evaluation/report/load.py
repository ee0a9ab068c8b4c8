"""A run directory, read into frozen records. What is missing or half written is listed in `Run.gaps`.

Comes before everything else in this package; knows where files lie and what their keys are called, nothing of how they
are shown.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.report import files
from evaluation.report.answers import Answer, Drawn, Rollout, answers_in, drawn_in, rollouts_in
from evaluation.report.provenance import Provenance, provenance_from
from evaluation.report.rates import BestOf, Rate, Tally, Wins, best_of, rates, tallies, wins
from pipeline.errors import DataError
from pipeline.holders import holder_is_gone

EVALUATION = "evaluation"
"""The folder, and the ledger's name, of the stage that measures the policies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One line of a stage's `metrics.jsonl`. `value` is None where it was not a finite number."""

    split: str
    name: str
    step: float
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage as the ledger, its results, its sealed manifest and its curves tell it."""

    name: str
    kind: str
    status: str
    reason: str
    key: str
    seconds: float | None
    metrics: Mapping[str, Any]
    provenance: Provenance | None
    points: tuple[Point, ...]
    rollouts: tuple[Rollout, ...]
    """Sampled answers that a PPO stage left to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How one measure differs between two policies on the same prompts: `after` minus `before`."""

    metric: str
    before: str
    after: str
    difference: float
    bounds: tuple[float, float] | None
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyComparison:
    """How many more prompts of one family a policy answers right than another: shares, `after` minus `before`."""

    family: str
    before: str
    after: str
    difference: float
    bounds: tuple[float, float] | None
    """Together with those of all other families of the same two policies they hold in 19 cases of 20."""
    n: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that a run directory says."""

    directory: Path
    name: str
    started: str
    command: str
    versions: Mapping[str, Any]
    recipe: str
    stages: tuple[Stage, ...]
    reference: str
    score_by: str
    """The reward stage whose model scored the policies; empty for none."""
    score_heldout_by: str
    """The reward stage that no policy was trained against and that scored them too; empty for none."""
    score_wins: Mapping[str, Mapping[str, Wins]]
    """By figure (`score`, `score_heldout`) and policy: how often its answer scored above the reference's."""
    conduct: Mapping[str, Mapping[str, Rate]]
    """By policy: what it did with harmful, harmless and unanswerable prompts."""
    conduct_scores: Mapping[str, Mapping[str, Any]]
    """By policy and kind of prompt: what reward models and the judge say of its answers."""
    benchmarks: tuple[Mapping[str, Any], ...]
    """Entries of public benchmarks, as `evaluation.benchmarks.record` keeps them."""
    policies: Mapping[str, Mapping[str, Any]]
    families: Mapping[str, Mapping[str, Tally]]
    comparisons: tuple[Comparison, ...]
    family_comparisons: tuple[FamilyComparison, ...]
    best_of_n: tuple[BestOf, ...]
    judge: str
    """The language model that compared answers; empty for none."""
    judged: Mapping[str, Mapping[str, Any]]
    """By policy: what it said against the reference, and its own biases."""
    judge_usage: Mapping[str, Any]
    """Replies and tokens that it took, as `evaluation.judging.usage.Usage` names them."""
    graded: Mapping[str, Mapping[str, Any]]
    """By policy: the grades that it gave to answers to the recipe's questions."""
    answers: tuple[Answer, ...]
    drawn: tuple[Drawn, ...]
    """Sampled answers, of which the scores and the divergence are."""
    gaps: tuple[str, ...]
    """What could not be measured or read, one sentence each."""


def load_run(directory: Path) -> Run:
    """Read `directory`; only a directory that does not exist is an error."""
    if not directory.is_dir():
        raise DataError(f"{directory}: there is no such run directory")
    gaps: list[str] = []
    ledger = files.read_json(directory / "run.json", gaps, "run.json")
    results = files.read_json(directory / "results.json", gaps, "results.json")
    recipe = files.read_text(directory / "recipe.yaml", gaps, "recipe.yaml")
    measured = files.mapping(results.get("evaluation"))
    judge = files.mapping(measured.get("judge"))
    gaps += files.texts(measured.get("gaps"))
    stages = _stages(directory, ledger, results, gaps)
    ended = bool(measured) or any(s.name == EVALUATION and s.status in ("done", "skipped") for s in stages)
    answers = answers_in(directory / EVALUATION, gaps if ended else [], EVALUATION)
    return Run(
        directory=directory,
        name=files.text(results.get("name") or ledger.get("name")) or directory.resolve().name,
        started=files.text(ledger.get("started")),
        command=_command(ledger.get("command")),
        versions=files.mapping(ledger.get("versions")),
        recipe=recipe,
        stages=stages,
        reference=files.text(measured.get("reference")),
        score_by=files.text(measured.get("score_by")),
        score_heldout_by=files.text(measured.get("score_heldout_by")),
        score_wins={name: wins(row) for name, row in files.mapping(measured.get("score_wins")).items()},
        conduct={name: rates(row) for name, row in files.mapping(measured.get("conduct")).items()},
        conduct_scores={
            name: files.mapping(row) for name, row in files.mapping(measured.get("conduct_scores")).items()
        },
        benchmarks=tuple(files.objects(measured.get("benchmarks"))),
        policies={name: files.mapping(row) for name, row in files.mapping(measured.get("policies")).items()},
        families={name: tallies(row) for name, row in files.mapping(measured.get("families")).items()},
        comparisons=tuple(c for row in files.objects(measured.get("comparisons")) if (c := _comparison(row))),
        family_comparisons=tuple(_families(measured)),
        best_of_n=tuple(b for row in files.objects(measured.get("best_of_n")) if (b := best_of(row))),
        judge=files.text(judge.get("model")),
        judged={name: files.mapping(row) for name, row in files.mapping(judge.get("policies")).items()},
        judge_usage=files.mapping(judge.get("usage")),
        graded={name: files.mapping(row) for name, row in files.mapping(judge.get("questions")).items()},
        answers=answers,
        drawn=drawn_in(directory / EVALUATION, EVALUATION),
        gaps=tuple(gaps),
    )


def _command(value: object) -> str:
    return shlex.join(map(str, value)) if isinstance(value, list) else files.text(value)


def _stages(
    directory: Path, ledger: Mapping[str, Any], results: Mapping[str, Any], gaps: list[str]
) -> tuple[Stage, ...]:
    """Every stage that the ledger or the results name, in the ledger's order; the evaluation last."""
    rows = {files.text(row.get("name")): row for row in files.objects(ledger.get("stages")) if row.get("name")}
    done = {name: files.mapping(row) for name, row in files.mapping(results.get("stages")).items()}
    if results.get("evaluation"):
        done[EVALUATION] = files.mapping(results["evaluation"])
    names = list(dict.fromkeys([*rows, *done]))
    return tuple(_stage(directory, name, rows.get(name, {}), done.get(name, {}), gaps) for name in names)


def _stage(directory: Path, name: str, row: Mapping[str, Any], result: Mapping[str, Any], gaps: list[str]) -> Stage:
    status = files.text(row.get("status") or result.get("status"))
    if status == "running" and holder_is_gone(directory):
        status = "killed"
    sealed = status in ("done", "skipped")
    # A stage that has not ended owes no manifest, and evaluation writes no curves: only real losses are worth a note.
    found = files.read_json(directory / name / "manifest.json", gaps if sealed else [], f"{name}/manifest.json")
    owes_curves = name != EVALUATION and status in ("done", "skipped", "running", "killed", "interrupted", "failed")
    lines = files.read_jsonl(directory / name / "metrics.jsonl", gaps if owes_curves else [], f"{name}/metrics.jsonl")
    provenance = provenance_from(found) if found else None
    points = tuple(point for line in lines if (point := _point(line)))
    kind = files.text(row.get("kind")) or (provenance.kind if provenance else "")
    seconds = files.number(row.get("seconds"))
    return Stage(
        name=name,
        kind=kind,
        status=status or "unknown",
        reason=files.text(row.get("reason")),
        key=files.text(row.get("key")) or (provenance.key if provenance else ""),
        seconds=seconds if seconds is not None else files.number(result.get("seconds")),
        metrics=files.mapping(result.get("metrics")) or (provenance.metrics if provenance else {}),
        provenance=provenance,
        points=points,
        # Samples are written whenever metrics are.
        rollouts=rollouts_in(directory / name, gaps if sealed and points else [], name) if kind == "ppo" else (),
    )


def _point(line: Mapping[str, Any]) -> Point | None:
    step, name = files.number(line.get("step")), files.text(line.get("name"))
    if step is None or not name:
        return None
    return Point(
        split=files.text(line.get("split")) or "train", name=name, step=step, value=files.number(line.get("value"))
    )


def _families(measured: Mapping[str, Any]) -> Iterator[FamilyComparison]:
    for row in files.objects(measured.get("family_comparisons")):
        if found := _comparison(row):
            yield FamilyComparison(
                family=files.text(row.get("family")), before=found.before, after=found.after,
                difference=found.difference, bounds=found.bounds, n=found.n,
            )  # fmt: skip


def _comparison(row: Mapping[str, Any]) -> Comparison | None:
    difference = files.number(row.get("difference"))
    if difference is None:
        return None
    return Comparison(
        metric=files.text(row.get("metric")),
        before=files.text(row.get("from")),
        after=files.text(row.get("to")),
        difference=difference,
        bounds=files.bounds(row.get("ci95")),
        n=files.whole(row.get("n")),
    )
