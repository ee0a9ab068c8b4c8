"""What another seed changes: found from runs of one recipe, shown, and no verdict below it."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace

import pytest
import yaml
from rich.console import Console
from test_comparison import pairs, write_compared

from evaluation.comparison import compare_runs
from evaluation.comparison.exports import as_json
from evaluation.comparison.page import comparison_page
from evaluation.comparison.seeds import Spread, floors, student
from evaluation.comparison.terminal import print_comparison
from evaluation.comparison.words import verdict
from evaluation.report.measures import measure_named
from pipeline.recipe import loads_recipe


def seeded(folder, seed, method="dpo", slope=0.5, **changes):
    run = write_compared(folder, method, slope=slope, kl=4.0, seed=seed)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "seed": seed, "name": folder.name, **changes}))
    return run


def spread(*values, kind="dpo", metric="score"):
    runs = tuple(f"s{at}" for at in range(len(values)))
    return Spread(policy=kind, kind=kind, measure=measure_named(metric), runs=runs, values=values)


def test_two_seeds_of_one_recipe_get_no_verdict(tmp_path):
    """Their values differ, and the interval over prompts may well leave out zero: it is chance all the same."""
    found = compare_runs([seeded(tmp_path / "a", 1, slope=1.0), seeded(tmp_path / "b", 2, slope=0.2)])
    assert any(pair.difference.high < 0 or pair.difference.low > 0 for pair in pairs(found)), "shown, but for the seed"
    assert found.verdicts == () and [group.seeds for group in found.seeds] == [(1, 2)]
    assert "a, b are one recipe with seeds 1, 2: what differs between them is chance" in found.notes[0]
    assert not any("comparisons at equal KL" in note for note in found.notes), "none is shown"


def test_another_recipe_is_no_seed_of_it(tmp_path):
    """The control: one more key differs, and the same figures give a verdict."""
    other = seeded(tmp_path / "b", 2, slope=0.2, model={"dtype": "float32"})
    found = compare_runs([seeded(tmp_path / "a", 1, slope=1.0), other])
    assert found.seeds == () and found.spreads == () and found.noise == {}
    assert any(sentence.tone == "better" for sentence in found.verdicts)


RECIPE = """
name: x
data:
  sft: {sources: [{path: "builtin:alpaca_sample"}]}
  preference: {sources: [{path: "builtin:preference_sample"}]}
stages: {sft: {}, reward: {}, dpo: {beta: 0.2}}
"""


def test_a_key_that_came_later_is_no_difference(tmp_path):
    """A run from before a key was made resolved its recipe without it; saying its default changes nothing."""
    runs = [seeded(tmp_path / name, seed, slope=slope) for name, seed, slope in (("a", 1, 1.0), ("b", 2, 0.2))]
    recipes = [
        loads_recipe(RECIPE, overrides=[f"seed={seed}"]).recipe.model_dump(mode="json", by_alias=True)
        for seed in (1, 2)
    ]
    assert recipes[1]["stages"]["dpo"].pop("eval_every") and "watch" in recipes[0]["stages"]["dpo"]
    for run, recipe in zip(runs, recipes, strict=True):
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = compare_runs(runs)
    assert [group.seeds for group in found.seeds] == [(1, 2)] and found.verdicts == ()
    assert [one.key for one in found.differences] == ["seed"]
    recipes[1]["stages"]["dpo"]["eval_every"] = 3
    (runs[1] / "recipe.yaml").write_text(yaml.safe_dump(recipes[1]))
    assert compare_runs(runs).seeds == (), "the control: another value than the default"


def test_equal_seeds_are_no_group(tmp_path):
    found = compare_runs([seeded(tmp_path / "a", 1), seeded(tmp_path / "b", 1)])
    assert found.seeds == ()


def test_the_spread_is_shown_everywhere_and_is_that_of_the_figures(tmp_path):
    runs = [
        seeded(tmp_path / name, seed, slope=slope)
        for name, seed, slope in (("a", 1, 0.5), ("b", 2, 0.6), ("c", 3, 0.4))
    ]
    found = compare_runs(runs)
    values = [compared.run.policies["dpo"]["score"] for compared in found.runs]
    (score,) = (one for one in found.spreads if (one.policy, one.measure.name) == ("dpo", "score"))
    assert score.values == tuple(values) and score.mean == pytest.approx(sum(values) / 3)
    assert not any(one.policy == "base" for one in found.spreads), "one and the same model"
    assert not any(one.policy == "sft" for one in found.spreads), "shared, so trained by one seed"
    told = as_json(found)
    assert any(row["metric"] == "score" and row["deviation"] == pytest.approx(score.deviation) for row in told["seeds"])
    assert told["noise"]["score"] == pytest.approx(4.303 * 2**0.5 * score.deviation)
    assert "What another seed changes" in comparison_page(found)
    stream = io.StringIO()
    print_comparison(found, Console(file=stream, width=100))
    assert "dpo, by seed alone" in stream.getvalue()


def test_a_difference_below_the_noise_is_none_and_above_it_one(tmp_path):
    found = compare_runs([seeded(tmp_path / "a", 1, slope=1.0), seeded(tmp_path / "b", 2, "ppo", slope=0.2)])
    pair = max(pairs(found), key=lambda one: abs(one.difference.estimate))
    size = abs(pair.difference.estimate)
    assert verdict(pair).tone == "better"
    below = verdict(pair, noise=size * 1.01)
    assert (
        below.tone == "none" and "another seed alone changes it by up to" in below.text and "better" not in below.text
    )
    assert verdict(pair, noise=size * 0.99).tone == "better"
    certain = replace(pair, difference=replace(pair.difference, low=-0.1, high=0.1))
    assert verdict(certain, noise=0.0).tone == "none", "the interval over prompts must show it too"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_pure_chance_is_called_a_difference_in_one_case_of_twenty(seeds):
    """Two methods that are equally good, one of them known by several seeds. Without the floor each pair 'differs'."""
    draw, trials = random.Random(5), 4000
    false = 0
    for _ in range(trials):
        noise = floors([spread(*(draw.gauss(0.4, 0.1) for _ in range(seeds)))])["score"]
        false += abs(draw.gauss(0.4, 0.1) - draw.gauss(0.4, 0.1)) > noise
    assert 0.035 < false / trials < 0.065


def test_a_large_true_difference_is_still_found():
    draw = random.Random(6)
    noise = [floors([spread(*(draw.gauss(0.4, 0.1) for _ in range(4)))])["score"] for _ in range(1000)]
    found = sum(abs(draw.gauss(1.4, 0.1) - draw.gauss(0.4, 0.1)) > each for each in noise)
    assert found / 1000 > 0.95


def test_methods_are_pooled_and_sft_is_left_out():
    one, other = spread(0.1, 0.3), spread(0.2, 0.6, kind="ppo")
    pooled = ((0.02 + 0.08) / 2) ** 0.5
    assert floors([one, other])["score"] == pytest.approx(student(2) * pooled * 2**0.5)
    assert floors([spread(0.1, 0.9, kind="sft")]) == {}


def test_policies_that_two_groups_hold_are_counted_once():
    """Two recipes that end otherwise share what their seeds trained before: that makes no further seeds of it."""
    one = replace(spread(0.1, 0.3, 0.8), identities=("x", "y", "z"))
    again, own = replace(spread(0.1, 0.3), identities=("x", "y")), replace(spread(0.2, 0.6), identities=("v", "w"))
    assert floors([again, one]) == floors([one]) != floors([replace(again, identities=()), one])
    assert floors([one, own]) != floors([one]), "others count"


def seeds_and_another(tmp_path, *slopes):
    """PPO by as many seeds as there are slopes, and DPO that buys far more."""
    runs = [seeded(tmp_path / f"p{at}", at, "ppo", slope=slope) for at, slope in enumerate(slopes)]
    return runs, seeded(tmp_path / "other", 9, "dpo", slope=2.0)


def by_score(found):
    return [one for one in found.verdicts if "score by the reward model" in one.text]


@pytest.mark.parametrize("slopes", [(1.0, 0.2), (1.0, 0.2, 1.4)])
def test_what_is_less_than_seeds_change_is_shown_as_nothing_by_the_command(tmp_path, slopes):
    """From the folders to the sentence: the same lead is a finding beside one seed and none beside several."""
    runs, other = seeds_and_another(tmp_path, *slopes)
    (alone,) = by_score(compare_runs([runs[0], other]))
    assert alone.tone == "better" and "dpo (other) is better than ppo (p0)" in alone.text
    found = compare_runs([*runs, other])
    beside = by_score(found)
    assert len(beside) == len(slopes) and {one.tone for one in beside} == {"none"}
    assert all("another seed alone changes it by up to" in one.text for one in beside)
    (floor,) = [note for note in found.notes if "A difference in score by the reward model must exceed" in note]
    assert f"{found.noise['score']:.2f}"[:3] in floor


def test_a_lead_beyond_what_seeds_change_stays_one(tmp_path):
    """The control: seeds that hardly differ leave the same lead standing."""
    runs, other = seeds_and_another(tmp_path, 1.0, 1.0, 1.0)
    found = compare_runs([*runs, other])
    assert 0 < found.noise["score"] < 1.0 and {one.tone for one in by_score(found)} == {"better"}


# SFT -----------------------------------------------------------------------------------------------------------------


def tuned(folder, seed, gain, right=0.4, settings=None, key=None):
    """A run of SFT alone that lifts the base model's scores by `gain`, and answers a share `right` of prompts right."""
    run = seeded(folder, seed)
    draw = random.Random(seed)
    ledger = json.loads((run / "run.json").read_text())
    ledger["stages"] = [row for row in ledger["stages"] if row["kind"] != "dpo"]
    ledger["stages"][0]["key"] = key or folder.name * 9
    (run / "run.json").write_text(json.dumps(ledger))
    manifest = {"stage": "sft", "kind": "policy", "stage_kind": "sft", "key": key or folder.name * 9}
    manifest |= {"settings": {"seed": seed, "parents": {}, **settings}} if settings else {}
    (run / "sft" / "manifest.json").write_text(json.dumps(manifest))
    path, greedy = run / "evaluation" / "sampled.jsonl", run / "evaluation" / "answers.jsonl"
    rows = {
        name: [json.loads(line) for line in file.read_text().splitlines()]
        for name, file in (("s", path), ("g", greedy))
    }
    base = {row["prompt_id"]: row["score"] for row in rows["s"] if row["policy"] == "base"}
    for row in rows["s"]:
        if row["policy"] == "sft":
            row["score"] = base[row["prompt_id"]] + gain + draw.gauss(0, 0.2)
    for row in rows["g"]:
        row["correct"] = draw.random() < right if row["policy"] == "sft" else row["prompt_id"] % 5 == 0
    results = json.loads((run / "results.json").read_text())
    measured = results["evaluation"]["policies"]
    del measured["dpo"]
    scores = [row["score"] for row in rows["s"] if row["policy"] == "sft"]
    correct = [row["correct"] for row in rows["g"] if row["policy"] == "sft"]
    measured["sft"] |= {"score": sum(scores) / len(scores), "rule_accuracy": sum(correct) / len(correct)}
    (run / "results.json").write_text(json.dumps(results))
    for name, file in (("s", path), ("g", greedy)):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name] if row["policy"] != "dpo"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    del recipe["stages"]["dpo"]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run


def test_two_sft_runs_that_differ_by_seed_only_make_the_floor_and_get_no_verdict(tmp_path):
    found = compare_runs([tuned(tmp_path / "a", 1, 1.0), tuned(tmp_path / "b", 2, 0.6)])
    assert found.verdicts == () and found.seeds and found.noise == {}
    values = [compared.run.policies["sft"]["score"] for compared in found.runs]
    assert found.tuned_noise["score"] == pytest.approx(12.706 * abs(values[0] - values[1]))
    assert {(pair.a, pair.b) for pair in found.tuned} == {("base", "sft (mean of 2 seeds)")}, "not one seed and another"
    (lead,) = [pair.difference for pair in found.tuned if pair.metric == "score"]
    base = [compared.run.policies["base"]["score"] for compared in found.runs]
    assert lead.estimate == pytest.approx(sum(values) / 2 - sum(base) / 2) and lead.low > 0
    (said,) = [one for one in found.tuned_verdicts if "score" in one.text]
    assert said.tone == "none" and "another seed alone changes it by up to" in said.text, "5 where 0.8 was measured"
    assert any("between SFT policies in score by the reward model must exceed" in note for note in found.notes)


def test_another_sft_recipe_is_held_against_the_floor(tmp_path):
    """Three seeds of one recipe and one of another, whose manifests say so: beyond the floor a lead is one."""
    runs = [tuned(tmp_path / name, at, 0.9 + at / 10, settings={"rate": 1}) for at, name in enumerate("abc")]
    other = tuned(tmp_path / "d", 7, 2.5, settings={"rate": 2})
    found = compare_runs([*runs, other])
    said = [one.text for one in found.tuned_verdicts if one.tone == "better" and "score" in one.text]
    assert any("sft (d) is better than sft (a, b, c; mean of 3 seeds) by 1." in text for text in said)
    assert any("sft (a, b, c; mean of 3 seeds) is better than base by" in text for text in said)
    assert 0.4 < found.tuned_noise["score"] < 0.9
    near = tuned(tmp_path / "e", 8, 1.25, settings={"rate": 2})
    told = compare_runs([*runs, near])
    (pair,) = [one for one in told.tuned if one.metric == "score" and one.a != "base"]
    mine = [one for one in told.tuned_verdicts if "sft (e)" in one.text and "score" in one.text]
    (said,) = [one for one in mine if "base" not in one.text]
    assert pair.difference.low > 0 and said.tone == "none", "over prompts it is sure, over seeds it is not"
    assert "another seed alone changes it by up to" in said.text


def test_seeds_of_sft_are_found_in_runs_that_go_on_otherwise(tmp_path):
    """SFT by two seeds, each in two runs of different recipes: two seeds, not four, and no verdict between them."""
    runs = [
        tuned(tmp_path / name, seed, gain, settings={"rate": 1}, key=f"{seed}" * 64)
        for name, seed, gain in (("a", 1, 1.0), ("b", 1, 1.0), ("c", 2, 0.7), ("d", 2, 0.7))
    ]
    for run in runs[1:3]:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        recipe["stages"]["more"] = {"kind": "sft"}
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = compare_runs(runs)
    assert {pair.b for pair in found.tuned} == {"sft (mean of 2 seeds)"}
    values = [found.runs[at].run.policies["sft"]["score"] for at in (0, 2)]
    assert found.tuned_noise["score"] == pytest.approx(12.706 * abs(values[0] - values[1])), "one degree of freedom"
    # The control: other settings are another recipe.
    other = tuned(tmp_path / "e", 2, 0.7, settings={"rate": 2}, key="9" * 64)
    assert len({pair.b for pair in compare_runs([runs[0], other]).tuned}) == 2


def test_scores_of_sft_by_two_reward_models_are_not_averaged(tmp_path):
    runs = [tuned(tmp_path / name, at, 1.0, settings={"rate": 1}) for at, name in enumerate("ab")]
    for name in ("run.json", "reward/manifest.json"):
        (runs[1] / name).write_text((runs[1] / name).read_text().replace("judge-a", "judge-b"))
    found = compare_runs(runs)
    assert {pair.metric for pair in found.tuned} == {"rule_accuracy"} and "score" not in found.tuned_noise


def test_what_sft_did_stands_on_the_page_the_terminal_and_in_the_json(tmp_path):
    found = compare_runs([tuned(tmp_path / "a", 1, 1.0, right=0.9)])
    text = "sft is better than base by"
    assert any(text in one.text for one in found.tuned_verdicts)
    page, stream = comparison_page(found), io.StringIO()
    print_comparison(found, Console(file=stream, width=200))
    told = as_json(found)["sft"]
    assert "What SFT did" in page and text in page and text in stream.getvalue()
    assert [one["metric"] for one in told["pairs"]] == ["score", "rule_accuracy"] and any(
        text in one for one in told["verdicts"]
    )
    assert told["pairs"][0]["kl"] is None and "train several" in page


def test_students_quantile_beyond_the_table():
    assert [student(free) for free in (1, 10, 20)] == [12.706, 2.228, 2.086]
    assert student(30) == pytest.approx(2.042, abs=0.003) and student(1000) == pytest.approx(1.962, abs=0.002)
