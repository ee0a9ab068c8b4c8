"""Every number of a report is computed once more, by other code, from the rows that the run's stages left.

TRIVET_RUN names a run of `recipes/alpaca_ppo_vs_dpo.yaml` to check, instead of a small one that is made here.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
from page_numbers import Page, agrees, numbers
from recompute import Run
from recompute import rows as lines

from data_prep import stances
from evaluation.report import write_report

pytestmark = pytest.mark.slow
RECIPE = """\
name: numbers
model: {base: "builtin:tiny-llama", adapter: {type: lora, r: 4, alpha: 8}}
data:
  sft:        {sources: [{path: builtin:alpaca_sample, limit: 32}], max_length: 512, eval_limit: 12}
  preference: {sources: [{path: builtin:preference_sample, limit: 32}], max_length: 512, eval_limit: 40}
  split: {reward: 0.5, judge: 0.5}
stages:
  sft: {learning_rate: 1.0e-2, global_batch_size: 8, precision: fp32, max_steps: 3}
  reward: {learning_rate: 1.0e-2, global_batch_size: 8, precision: fp32, max_steps: 3}
  judge: {kind: reward, seed: 18, learning_rate: 1.0e-2, global_batch_size: 8, precision: fp32, max_steps: 3}
  dpo:
    learning_rate: 1.0e-2
    global_batch_size: 8
    precision: fp32
    max_steps: 3
    watch: judge
    eval_every: 1
    eval_prompts: 12
    max_new_tokens: 8
  ppo:
    learning_rate: 3.0e-2
    episodes: 24
    rollout_batch_size: 8
    max_new_tokens: 8
    missing_eos_penalty: 0
    eval_every: 1
    eval_prompts: 12
    gate: {min_accuracy: 0}
    precision: fp32
    watch: judge
evaluation: {prompts: 40, kl_prompts: 12, max_new_tokens: 8, batch_size: 8, best_of_n: [2, 3]}
"""
NOT_RECOMPUTED = {("Reward model", "padding changes a score by"), ("Reward model judge", "padding changes a score by")}
"""The largest difference between two passes of a model, which leave no rows."""
BY_CHANCE = 0.6
"""Units of the last digit by which the end of an interval may be off: its tail is taken from a series there."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_in):
    if named := os.environ.get("TRIVET_RUN"):
        return Path(named).resolve()
    where = tmp_path_factory.mktemp("numbers")
    (where / "recipe.yaml").write_text(RECIPE)
    run = run_in(where / "runs" / "numbers", recipe=where / "recipe.yaml")
    run.go("--in-process")
    return run.folder


@pytest.fixture(scope="module")
def rows(folder):
    return Run(folder, stances)


def differing(found, expected):
    """Places where the page says something else than the rows."""
    return [
        (place, found.get(place), expected.get(place))
        for place in {**found, **expected}
        if place[1:3] not in NOT_RECOMPUTED and not _same(found.get(place, []), expected.get(place, []))
    ]


def _same(shown, values):
    return len(shown) == len(values) and all(map(agrees, shown, values, [BY_CHANCE] * len(values)))


def test_every_number_in_the_tables_comes_from_the_rows(folder, rows):
    found, expected = Page((folder / "report.html").read_text()).entries(), rows.entries()
    assert len(found) > 300
    assert differing(found, expected) == []


def test_every_curve_ends_where_its_metrics_end(folder, rows):
    legends = list(Page((folder / "report.html").read_text()).legends())
    assert len(legends) > 50
    for (stage, title), shown in legends:
        assert _same(shown, rows.last_values(stage, title)), (stage, title)


def test_every_sampled_answer_has_its_own_score(folder, rows):
    drawn = lines(folder / "ppo" / "rollouts.jsonl")
    shown = list(Page((folder / "report.html").read_text()).samples())
    assert shown
    for rollout, score, nats in shown:
        pairs = [(row["score"], row["kl"]) for row in drawn if row["rollout"] == rollout]
        assert any(abs(score - one) < 6e-3 and abs(nats - other) < 6e-3 for one, other in pairs), (rollout, score, nats)


def test_the_verdict_says_what_the_rows_say_and_no_more(folder, rows):
    """One sentence per comparison; none is better or worse while the interval holds zero."""
    said = list(Page((folder / "report.html").read_text()).findings())
    expected = dict(rows.comparisons())
    assert len(said) == len(expected)
    for (metric, before, after), (difference, low, high, n) in expected.items():
        ((tone, text),) = ((t, text) for t, text in said if _is_about(text, metric, before, after))
        shown = numbers(text)
        if low <= 0 <= high:
            assert tone == "none" and _same(shown, [difference, low, high, n]), text
        else:
            assert tone == ("better" if difference > 0 else "worse")
            assert _same(shown, [abs(difference), n, *sorted(map(abs, (low, high)))]), text


def _is_about(text, metric, before, after):
    if "training did not use" in text:
        found = "score_heldout"
    else:
        found = "score" if "reward model" in text else "rule_accuracy"
    return found == metric and text.startswith(f"{after} ") and f" {before}" in text


CHANGED = [
    ("evaluation", "policies", "ppo", "score"), ("evaluation", "policies", "sft", "perplexity"),
    ("evaluation", "policies", "dpo", "distinct_2"), ("evaluation", "policies", "base", "score_heldout_ci95", 1),
    ("evaluation", "score_wins", "score_heldout", "ppo", "win_rate"), ("evaluation", "best_of_n", 1, "score"),
    ("stages", "reward", "metrics", "ece"), ("stages", "judge", "metrics", "brier"),
    ("stages", "ppo", "metrics", "score_gain_ci95", 0), ("stages", "sft", "metrics", "eval_loss"),
    ("stages", "dpo", "metrics", "eval_accuracy"),
]  # fmt: skip


def test_a_wrong_number_would_be_found(folder, rows, tmp_path):
    """The control: each of these, changed a little in the results, no longer agrees with the rows."""
    expected, results = rows.entries(), json.loads((folder / "results.json").read_text())
    for name in ("run.json", "recipe.yaml", *(path.name for path in folder.iterdir() if path.is_symlink())):
        (tmp_path / name).symlink_to((folder / name).resolve())
    for path in CHANGED:
        wrong = copy.deepcopy(results)
        inner = wrong
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] += 0.1 * abs(inner[path[-1]]) + 0.05
        (tmp_path / "results.json").write_text(json.dumps(wrong))
        found = Page(write_report(tmp_path).read_text()).entries()
        assert differing(found, expected), path
