"""Evaluation as a sealed node of a run: every policy side by side on the same held-out rows and prompts.

Takes: all policies and reward models of the run and the held-out part of its data. Gives: `answers.jsonl` (greedy),
`sampled.jsonl` and `perplexity.jsonl` (every figure prompt by prompt), and the figures of `results.json`. Each
measurement is kept as soon as it is made, so an interrupted evaluation goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.chat import ChatFormatter
from evaluation import sampled
from evaluation.best_of_n import best_of_lines, best_of_rows
from evaluation.compare import pairs
from evaluation.conduct import conduct, conduct_scores
from evaluation.judging.grades import grade_figures
from evaluation.judging.grading import grading_lines
from evaluation.measures import (
    answer_lines,
    rule_families,
)
from evaluation.measuring import Measurements
from evaluation.paired import by_family, comparisons
from pipeline.artefact import Artefact
from pipeline.context import (
    StageContext,
    StageResult,
    require_same_base,
    require_same_tokenizer,
)
from pipeline.models.load import describe_tokenizer, device, load_tokenizer
from pipeline.runtime import resolve_precision


def run(context: StageContext) -> StageResult:
    """Measure every policy and leave answers and figures in the context's folder."""
    recipe = context.recipe
    tokenizer = load_tokenizer(context.base_folder, recipe.data.chat_template)
    description = describe_tokenizer(tokenizer)
    require_same_base(context)
    require_same_tokenizer(context, description)
    artefacts: dict[str, Artefact] = dict(context.parents)
    precision = resolve_precision(next(reversed(recipe.stages.values())).precision)
    evaluation = Measurements(context, ChatFormatter(tokenizer), description.pad_id, precision, artefacts)
    rows = {name: evaluation.row(name) for name in evaluation.policies.names}
    scores = evaluation.all_scores()
    for figure, by_policy in scores.items():
        for name, found in by_policy.items():
            rows[name].update(sampled.score_row(found, figure))
    answers = evaluation.all_answers()
    samples, demonstrations = evaluation.sample_lines(scores), evaluation.perplexity_lines()
    drawn, ns = evaluation.reference_scores(scores.get("score", {})), recipe.evaluation.best_of_n
    if context.ranks.is_first:
        greedy = answer_lines(evaluation.prompts, answers)
        _write_lines(context.folder / "answers.jsonl", greedy)
        context.tracker.table("answers", greedy)
        _write_lines(context.folder / "sampled.jsonl", samples)
        _write_lines(context.folder / "perplexity.jsonl", demonstrations)
        if drawn:
            _write_lines(context.folder / "best_of_n.jsonl", best_of_lines(drawn, ns))
    judged = evaluation.judged(answers)
    questions, grades = evaluation.graded()
    if questions and context.ranks.is_first:
        _write_lines(context.folder / "questions.jsonl", grading_lines(questions, grades.by_policy))
    for name in rows:
        rows[name].update(judged.columns(name))
    compared, prompts = pairs(recipe), evaluation.prompts
    won = judged.shares(evaluation.reference)
    metrics = {
        "reference": evaluation.reference,
        "gaps": evaluation.gaps,
        "score_by": evaluation.judges.get("score") if scores else None,
        "score_heldout_by": evaluation.judges.get("score_heldout") if scores else None,
        "score_wins": evaluation.wins(scores),
        "policies": rows,
        "families": {name: rule_families(prompts, found) for name, found in answers.items()},
        "conduct": {name: conduct(prompts, found) for name, found in answers.items()},
        "conduct_scores": conduct_scores(evaluation.chosen, {**scores, "win_rate": won}),
        "best_of_n": best_of_rows(drawn, ns) if drawn else [],
        "judge": {
            "model": recipe.evaluation.judge.model,
            "policies": judged.figures,
            "usage": asdict(judged.usage + grades.usage),
            **({"questions": grade_figures(questions, grades.by_policy, evaluation.reference)} if questions else {}),
        }
        if recipe.evaluation.judge
        else None,
        "comparisons": comparisons(compared, prompts, answers, samples, demonstrations, won),
        "family_comparisons": by_family(compared, prompts, answers),
    }
    return StageResult(
        form="none", tokenizer=description, precision=precision, device=str(device()), data={}, metrics=metrics
    )


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
