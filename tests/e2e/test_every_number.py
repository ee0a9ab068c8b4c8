"""Every number of a report is computed once more, by other code, from the rows that the run's stages left.

TRIVET_RUN names a run of `recipes/alpaca_ppo_vs_dpo.yaml` to check, instead of a small one that is made here.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import pytest
from page_numbers import Page, agrees, numbers
from recompute import Run
from recompute_data import DataSection
from recompute_pairs import CONDUCT
from recompute_statistics import rows as lines

from data_prep import stances
from evaluation.report import write_report

pytestmark = pytest.mark.slow
RECIPE = """\
name: numbers
model: {base: "builtin:tiny-llama", adapter: {type: lora, r: 4, alpha: 8}}
data:
  sft:        {sources: [{path: builtin:alpaca_sample}], max_length: 512, eval_limit: 12}
  preference: {sources: [{path: builtin:preference_sample}], max_length: 512, eval_limit: 40}
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
        if not _same(found.get(place, []), expected.get(place, []))
    ]


def _same(shown, values):
    return len(shown) == len(values) and all(map(agrees, shown, values, [BY_CHANCE] * len(values)))


def test_every_number_in_the_tables_comes_from_the_rows(folder, rows):
    found, expected = Page((folder / "report.html").read_text()).entries(), rows.entries()
    assert len(found) > 300
    assert differing(found, expected) == []


def test_the_first_line_adds_up_the_stages_times(folder, rows):
    assert _same(Page((folder / "report.html").read_text()).through(), rows.through())


def test_every_curve_ends_where_its_metrics_end(folder, rows):
    legends = list(Page((folder / "report.html").read_text()).legends())
    assert len(legends) > 50
    for (stage, title), shown in legends:
        assert _same(shown, [line[-1][1] for line in rows.lines(stage, title)]), (stage, title)


def misplaced(html, rows):
    """Points of curves that stand, or say that they stand, where nothing was logged."""
    found = []
    for (stage, title), drawing in Page(html).charts():
        lines, expected = drawing.lines(), rows.lines(stage, title)
        found += [(stage, title)] if list(map(len, lines)) != list(map(len, expected)) else []
        for shown, logged in zip(lines, expected, strict=False):
            for (place, told), point in zip(shown, logged, strict=False):
                if not drawing.shows(place, *point) or (told and not _same(numbers(told), point)):
                    found.append((stage, title, point, place, told))
    return found


def test_every_point_of_every_curve_stands_where_its_metric_is(folder, rows):
    html = (folder / "report.html").read_text()
    points = [point for _, drawing in Page(html).charts() for line in drawing.lines() for point in line]
    assert len(points) > 150 and sum(bool(told) for _, told in points) > 100
    assert misplaced(html, rows) == []


def test_a_wrong_point_in_the_middle_of_a_curve_would_be_found(folder, rows, tmp_path):
    """The control: the reward's training score after the second rollout, changed where the report reads it."""
    (tmp_path / "ppo").mkdir()
    for name in ("run.json", "recipe.yaml", "results.json", *stage_folders(folder)):
        if name != "ppo":
            (tmp_path / name).symlink_to((folder / name).resolve())
    for path in (folder / "ppo").iterdir():
        if path.name != "metrics.jsonl":
            (tmp_path / "ppo" / path.name).symlink_to(path.resolve())
    changed = lines(folder / "ppo" / "metrics.jsonl")
    (one,) = (line for line in changed if (line["name"], line["step"]) == ("objective/score", 2))
    one["value"] += 0.1 * abs(one["value"]) + 0.02
    (tmp_path / "ppo" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    assert {place[:2] for place in misplaced(write_report(tmp_path).read_text(), rows)} == {("ppo", "Score")}


def stage_folders(folder):
    return [path.name for path in folder.iterdir() if path.is_symlink()]


@pytest.mark.parametrize(("section", "stage"), [("reward-1", "reward"), ("reward-2", "judge")])
def test_the_reliability_diagram_shows_the_pairs(folder, rows, section, stage):
    drawing = Page((folder / "report.html").read_text()).unnamed_chart(section)
    ideal, model = drawing.lines()
    assert all(drawing.shows(place, x, x) for (place, _), x in zip(ideal[:1], (0.5,), strict=True))
    bins = list(rows.bins(rows.pairs(stage)[1]))
    for (place, told), (says, true, n) in zip(model, bins, strict=True):
        assert drawing.shows(place, says, true) and _same(numbers(told), [100 * says, 100 * true, n])


def test_ppos_way_on_the_frontier_shows_its_measurements(folder, rows):
    drawing = Page((folder / "report.html").read_text()).unnamed_chart("ppo-1")
    scores, watched = drawing.lines()
    measured = list(rows.way_of_ppo())
    for line, at in ((scores, 2), (watched, 3)):
        for (place, told), row in zip(line, measured, strict=True):
            assert drawing.shows(place, max(row[1], 0.0) ** 0.5, row[at])
            assert not told or _same(numbers(told), [row[0], row[2], row[1]])


def test_histograms_of_lengths_add_up(folder):
    shown = list(Page((folder / "report.html").read_text()).bars())
    expected = list(DataSection(folder).bars())
    assert len(shown) == len(expected) > 3
    assert all(_same(one, other) for mine, theirs in zip(shown, expected, strict=True)
               for one, other in zip(mine, theirs, strict=True))  # fmt: skip


def test_every_sampled_answer_has_its_own_score(folder, rows):
    drawn = lines(folder / "ppo" / "rollouts.jsonl")
    shown = list(Page((folder / "report.html").read_text()).samples())
    assert shown
    for rollout, score, nats in shown:
        pairs = [(row["score"], row["kl"]) for row in drawn if row["rollout"] == rollout]
        assert any(abs(score - one) < 6e-3 and abs(nats - other) < 6e-3 for one, other in pairs), (rollout, score, nats)


NAMES = {"right answers": "rule_accuracy", "held-out score": "score_heldout", "score": "score"}
TONES = {"better in": 1, "worse in": -1, "no difference shown in": 0}
PAIRS = [("dpo", "ppo"), ("sft", "dpo"), ("sft", "ppo"), ("base", "sft")]
"""The two that the run is about first, what came before preferences last."""


def shows(values):
    """The sign that an interval over enough prompts shows."""
    _, low, high, n = values
    return 0 if low <= 0 <= high or n < 10 else 1 if low > 0 else -1


def claimed(text):
    """Outcome to the sign that is claimed of it and the numbers that stand behind it."""
    for clause in text.partition(": ")[2].split("; "):
        sign = next(sign for words, sign in TONES.items() if clause.startswith(words))
        for name, figures in re.findall(rf"({'|'.join(NAMES)}) \(([^)]*)\)", clause):
            yield NAMES[name], sign, numbers(figures)


def test_the_verdict_says_what_the_rows_say_and_no_more(folder, rows):
    """A sentence for every two policies; each outcome stands behind the words that its interval allows."""
    found, expected = list(Page((folder / "report.html").read_text()).findings()), dict(rows.comparisons())
    pairs = [(tone, text) for tone, text in found if " against " in text.partition(":")[0]]
    assert [text.partition(":")[0] for _, text in pairs] == [f"{after} against {before}" for before, after in PAIRS]
    for (before, after), (tone, text) in zip(PAIRS, pairs, strict=True):
        outcomes = list(claimed(text))
        assert sorted(name for name, _, _ in outcomes) == sorted(NAMES.values())
        for metric, sign, shown in outcomes:
            values = expected[metric, before, after]
            assert sign == shows(values) and _same(shown, values), text
        signs = {sign for _, sign, _ in outcomes} - {0}
        assert tone == {(): "none", (1,): "better", (-1,): "worse"}.get(tuple(signs), "mixed")


def test_equal_kl_sentences_and_the_lead_say_what_the_rows_say(folder, rows):
    page = Page((folder / "report.html").read_text())
    equal, expected = dict(rows.at_equal_kl()), dict(rows.comparisons())
    said = [text for _, text in page.findings() if text.startswith("At equal KL")]
    for text in said:
        value = "score" if "reward model" in text else "rule_accuracy"
        value = "score_heldout" if "did not use" in text else value
        (key,) = [key for key in equal if key[0] == value and key[1] in text and key[2] in text]
        kl, _, _, *gap, n = equal[key]
        gap = [100 * each for each in gap] if value == "rule_accuracy" else gap
        sure = shows((*gap, n)) != 0
        assert ("better" in text) == sure
        gap = [-gap[0], -gap[2], -gap[1]] if sure and gap[0] < 0 else gap
        assert _same(numbers(text), [kl, *gap, n]), text
    tone, lead = page.lead()
    judged = [expected[metric, "dpo", "ppo"] for metric in ("rule_accuracy", "score_heldout")]
    signs = {shows(values) for values in judged} - {0}
    assert tone == ("none" if not signs else "better" if len(signs) == 1 else "mixed")
    for name, figures in re.findall(rf"({'|'.join(NAMES)}) \(([^)]*)\)", lead):
        difference, low, high, n = expected[NAMES[name], "dpo", "ppo"]
        turned = [-difference, -high, -low, n]
        assert _same(numbers(figures), [difference, low, high, n]) or _same(numbers(figures), turned), lead
    if ended := re.search(rf"at equal KL \(([\d.]+) nats\) (.*?) in ({'|'.join(NAMES)})\.", lead):
        kl, _, _, gap, low, high, n = equal[NAMES[ended.group(3)], "dpo", "ppo"]
        assert agrees(ended.group(1), kl) and ("better" in ended.group(2)) == (shows((gap, low, high, n)) != 0)
        if numbers(ended.group(2)):
            assert ended.group(2).startswith("ppo" if gap > 0 else "dpo")
            scale = 100 if ended.group(3) == "right answers" else 1
            figures = [gap, low, high] if gap > 0 else [-gap, -high, -low]
            assert _same(numbers(ended.group(2)), [scale * each for each in figures]), lead
    assert bool(ended) == any(key[1:] == ("dpo", "ppo") for key in equal)
    for policy in ("ppo", "dpo"):
        (nats,) = numbers(
            re.search(rf"{policy} (?:stands )?([\d.,e+-]+)(?: nats of KL|;|\.)", lead).group(1).rstrip(".")
        )
        assert agrees(nats, sum(row["kl"] for row in rows.sampled[policy]) / len(rows.sampled[policy])), lead


def test_what_got_worse_is_what_the_rows_show_to_be_worse(folder, rows):
    """As many sentences as there are intervals on the worse side, each policy against what it started from."""
    better = {
        "rule_accuracy": 1, "score": 1, "score_heldout": 1, "eos_rate": 1, "repetition": -1, "perplexity": -1,
        **{label: 1 if "more is better" in label else -1 for label in CONDUCT},
    }  # fmt: skip
    lost = [
        key for key, values in rows.comparisons()
        if key[1:] != ("dpo", "ppo") and shows(values) * better.get(key[0], 0) < 0
    ]  # fmt: skip
    families = [values for (*_, column), values in rows.family_differences() if column < 3 and shows(values) < 0]
    said = list(Page((folder / "report.html").read_text()).losses())
    assert len(said) == len(lost) + len(families)


CHANGED = [
    ("evaluation", "policies", "ppo", "score"), ("evaluation", "policies", "sft", "perplexity"),
    ("evaluation", "policies", "dpo", "distinct_2"), ("evaluation", "policies", "base", "score_heldout_ci95", 1),
    ("evaluation", "score_wins", "score_heldout", "ppo", "win_rate"), ("evaluation", "best_of_n", 1, "score"),
    ("stages", "reward", "metrics", "ece"), ("stages", "judge", "metrics", "brier"),
    ("stages", "ppo", "metrics", "score_gain_ci95", 0), ("stages", "sft", "metrics", "eval_loss"),
    ("stages", "dpo", "metrics", "eval_accuracy"), ("evaluation", "comparisons", 5, "difference"),
    ("evaluation", "comparisons", -1, "ci95", 1), ("evaluation", "family_comparisons", 3, "ci95", 0),
]  # fmt: skip


def test_a_wrong_number_would_be_found(folder, rows, tmp_path):
    """The control: each of these, changed a little in the results, no longer agrees with the rows."""
    expected, results = rows.entries(), json.loads((folder / "results.json").read_text())
    for name in ("run.json", "recipe.yaml", *stage_folders(folder)):
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
