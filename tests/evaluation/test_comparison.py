"""`trivet compare` on run folders made up for it: what is said, what is refused, what half-finished runs show."""

from __future__ import annotations

import csv
import io
import json
import math
import random

import pytest
from rich.console import Console
from synthetic_run import XSS, write, write_lines

from evaluation.best_of_n import kl_bound
from evaluation.comparison import compare_runs
from evaluation.comparison.equal_kl import Pair
from evaluation.comparison.exports import as_csv, as_json
from evaluation.comparison.page import comparison_page
from evaluation.comparison.recipes import flat
from evaluation.comparison.terminal import print_comparison
from evaluation.comparison.words import verdict
from evaluation.intervals import Interval
from evaluation.report.measures import plain
from pipeline.cli import main
from pipeline.errors import DataError, RecipeError
from pipeline.locks import hold

PROMPTS = 40


def recipe(stages, **evaluation):
    settings = {"prompts": PROMPTS, "kl_prompts": PROMPTS, "max_new_tokens": 16, **evaluation}
    return {"name": "x", "seed": 17, "stages": {name: {"kind": name} for name in stages}, "evaluation": settings}


def write_compared(
    run, method="ppo", *, slope, kl, judge="judge-a", seed=0, per_prompt=True, prompts=PROMPTS, heldout=None, **settings
):
    """A run of SFT, a reward model and one method that buys `slope` of score per root of a nat, on noisy prompts."""
    generator, keys = random.Random(seed), {"sft": "s" * 64, "reward": judge, method: f"{run.name}-{method}"}
    hard = [random.Random(at).gauss(0, 0.5) for at in range(prompts)]
    policies, sampled, answers = {}, [], []
    for name, distance in (("base", 9.0), ("sft", 0.0), (method, kl)):
        kls = [generator.gammavariate(4, distance / 4) if distance else 0.0 for _ in hard]
        mean = sum(kls) / len(kls)
        gain = slope * math.sqrt(mean) if name == method else 0.0
        scores = [at + gain + generator.gauss(0, 0.2) for at in hard]
        right = [generator.random() < 0.4 for _ in hard]
        policies[name] = {
            "rule_accuracy": sum(right) / prompts, "rule_n": prompts, "rule_ci95": [0.2, 0.6], "win_rate": None,
            "score": sum(scores) / prompts, "score_n": prompts, "score_ci95": [-0.2, 0.9],
            "kl_to_reference": mean, "kl_ci95": [mean * 0.8, mean * 1.2], "perplexity": math.nan,
        }  # fmt: skip
        for at in range(prompts):
            prompt = [{"role": "user", "content": f"question {at} {settings.get('asked', '')}"}]
            line = {"prompt_id": at, "policy": name, "prompt": prompt, "tokens": 3, "eos": True}
            text = XSS if name == method else f"{name} says {at}"
            answers.append({**line, "family": "sums", "response": text, "correct": right[at]})
            sampled.append({**line, "response": "y", "kl": kls[at], "score": scores[at]})
            if heldout:
                own = hard[at] + (heldout[1] * math.sqrt(mean) if name == method else 0.0)
                sampled[-1]["score_heldout"] = own + random.Random(f"{name}{at}{seed}").gauss(0, 0.2)
        if heldout:
            apart = [row["score_heldout"] for row in sampled if row["policy"] == name]
            policies[name]["score_heldout"] = sum(apart) / prompts
    settings.pop("asked", None)
    stages = ["sft", "reward", *(["apart"] if heldout else []), method, "evaluation"]
    keys["apart"] = heldout[0] if heldout else ""
    entries = [
        {
            "name": name, "kind": "reward" if name == "apart" else name, "key": keys.get(name, f"{run.name}-e"),
            "status": "done", "seconds": 10.5,
        }
        for name in stages
    ]  # fmt: skip
    write(run / "run.json", {"name": "x", "stages": entries})
    measured = {"status": "done", "reference": "sft", "score_by": "reward", "policies": policies}
    measured["score_heldout_by"] = "apart" if heldout else None
    write(run / "results.json", {"name": "x", "stages": {}, "evaluation": measured})
    (run / "recipe.yaml").write_text(json.dumps(recipe(stages[:-1], **settings)))
    for name in stages[:-1]:
        parents = [{"role": "reward_1", "stage": "reward", "key": judge}] if name == "ppo" else []
        parents += [{"role": "watched", "stage": "apart", "key": keys["apart"]}] if name == "ppo" and heldout else []
        write(run / name / "manifest.json", {"stage": name, "key": keys[name], "parents": parents})
        write_lines(run / name / "metrics.jsonl", [])
    (run / "evaluation").mkdir()
    write_lines(run / "evaluation" / "answers.jsonl", answers)
    if per_prompt:
        write_lines(run / "evaluation" / "sampled.jsonl", sampled)
    return run


def ppo_points(run, points):
    (run / "ppo").mkdir(parents=True, exist_ok=True)
    write_lines(run / "ppo" / "metrics.jsonl", [
        {"stage": "ppo", "step": step, "split": "eval", "name": name, "value": value}
        for step, score, kl in points for name, value in (("score", score), ("kl_seq", kl))
    ])  # fmt: skip


@pytest.fixture
def two(tmp_path):
    """PPO buys more per nat and stays near; DPO went further and has the higher score in the end."""
    ppo = write_compared(tmp_path / "near", "ppo", slope=1.0, kl=1.0, seed=1)
    dpo = write_compared(tmp_path / "far", "dpo", slope=0.5, kl=9.0, seed=2)
    return ppo, dpo


def pairs(found, metric="score"):
    return [pair for one in found.frontiers if one.metric == metric for pair in one.pairs]


def test_at_equal_kl_the_nearer_policy_is_ahead_although_its_score_is_lower(two):
    found = compare_runs(two)
    rows = {row.policy: row.figures["score"] for row in found.rows}
    assert rows["dpo"] > rows["ppo"] + 0.2, "without equal KL the verdict would be the other way round"
    (pair,) = pairs(found)
    assert (pair.a, pair.b) == ("ppo (near)", "dpo (far)") and pair.same_reference
    assert pair.kl == pytest.approx(1.0, abs=0.2)
    assert pair.difference.estimate == pytest.approx(-0.5, abs=0.15) and pair.difference.high < 0
    assert found.verdicts[0].tone == "better" and "ppo (near) is better than dpo (far) by 0." in found.verdicts[0].text


def test_a_path_that_is_read_far_from_its_policies_is_named(two, tmp_path):
    """DPO was measured at 9 nats alone and is read at 1; with a run that stands there nothing is to be said."""
    found = compare_runs(two)
    (note,) = [note for note in found.notes if "straight line between policies" in note]
    (pair,) = pairs(found)
    assert f": dpo (far) at {plain(pair.kl)} nats, measured at {plain(pair.near_b)}. Frontiers that flatten" in note
    assert pair.near_a == pytest.approx(pair.kl) and pair.near_b > 7
    told = as_json(found)["frontiers"][0]["at_equal_kl"][0]
    assert (told["nearest_measured_a"], told["nearest_measured_b"]) == (pair.near_a, pair.near_b)
    near = write_compared(tmp_path / "beside", "dpo", slope=0.5, kl=1.1, seed=4)
    assert not any("straight line between policies" in note for note in compare_runs([two[0], near]).notes)


def test_runs_that_speak_in_different_tokens_are_told_apart(two):
    """By the hash in their stages' manifests; stages of before there was one do not count."""

    def said(*digests):
        for run, digest in zip(two, digests, strict=True):
            for path in run.glob("*/manifest.json"):
                write(path, {**json.loads(path.read_text()), "tokenizer": {"sha256": digest}})
        return [note for note in compare_runs(two).notes if "tokenizers" in note]

    assert not [note for note in compare_runs(two).notes if "tokenizers" in note]
    assert said("a" * 64, "a" * 64) == []
    (note,) = said("a" * 64, "b" * 64)
    assert "tokens of 2 tokenizers (near: aaaaaaaaaaaa; far: bbbbbbbbbbbb)" in note and "perplexity, entropy" in note


def test_few_prompts_show_nothing_whatever_their_interval_says():
    assert verdict(made_up(0.5, 0.5, 0.5, n=9)).tone == "none" and verdict(made_up(0.5, 0.5, 0.5)).tone == "better"


def made_up(estimate, low, high, n=50):
    interval = Interval(estimate=estimate, low=low, high=high, n=n)
    return Pair(
        metric="score", a="A", b="B", kl=2.0, value_a=1.0, value_b=1.0 + estimate, difference=interval,
        same_reference=True,
    )  # fmt: skip


@pytest.mark.parametrize("interval", [(0.5, -0.001, 1.0), (0.5, 0.0, 1.0), (-0.5, -1.0, 0.0), (0.0, 0.0, 0.0)])
def test_no_verdict_says_better_while_the_interval_holds_zero(interval):
    said = verdict(made_up(*interval))
    assert said.tone == "none" and "better" not in said.text and "no difference shown" in said.text


def test_a_verdict_names_who_is_ahead_whichever_way_round():
    assert "B is better than A by 0.50 [0.10, 0.90]" in verdict(made_up(0.5, 0.1, 0.9)).text
    assert "A is better than B by 0.50 [0.10, 0.90]" in verdict(made_up(-0.5, -0.9, -0.1)).text


def test_two_runs_of_the_same_frontier_show_no_difference(tmp_path):
    one = write_compared(tmp_path / "one", slope=0.5, kl=2.0, seed=3)
    other = write_compared(tmp_path / "other", slope=0.5, kl=6.0, seed=4)
    assert {sentence.tone for sentence in compare_runs([one, other]).verdicts} == {"none"}


def test_scores_of_two_reward_models_are_never_compared(tmp_path):
    one = write_compared(tmp_path / "one", slope=0.5, kl=2.0)
    other = write_compared(tmp_path / "other", slope=2.0, kl=2.0, judge="judge-b", seed=5)
    found = compare_runs([one, other])
    assert pairs(found) == [] and len(pairs(found, "rule_accuracy")) == 1
    assert [frontier.group for frontier in found.frontiers if frontier.metric == "score"] == ["one", "other"]
    assert any("2 reward models" in note for note in found.notes)
    assert len([row for row in found.rows if row.policy == "sft"]) == 2, "one policy with two scores is two rows"


def exploiter(tmp_path, apart="apart-a", **other):
    """PPO that climbs its own reward model and not the other, beside DPO that climbs both a little."""
    ppo = write_compared(tmp_path / "hacked", "ppo", slope=1.0, kl=4.0, seed=1, heldout=(apart, 0.0))
    dpo = write_compared(
        tmp_path / "honest", "dpo", slope=0.5, kl=4.0, seed=2, heldout=(other.get("other", apart), 0.5)
    )
    return compare_runs([ppo, dpo])


def test_the_score_that_was_optimised_is_not_the_only_judge(tmp_path):
    found = exploiter(tmp_path)
    (trained_on,), (apart,) = pairs(found), pairs(found, "score_heldout")
    assert trained_on.difference.high < 0 < apart.difference.low, "DPO less PPO"
    said = [sentence.text for sentence in found.verdicts]
    assert any(
        "ppo (hacked) is better than dpo (honest)" in text and "score by the reward model." in text for text in said
    )
    assert any(
        "dpo (honest) is better than ppo (hacked)" in text and "that training did not use." in text for text in said
    )
    (note,) = [note for note in found.notes if "leads by" in note]
    assert note.startswith("ppo (hacked) leads by the score that training used, dpo (honest) by the one")
    (frontier,) = [one for one in found.frontiers if one.metric == "score_heldout"]
    assert frontier.group == "hacked, honest" and all(path.band for path in frontier.paths)
    assert "Score by a reward model that training did not use, of hacked, honest" in comparison_page(found)
    assert "score_heldout" in {one["metric"] for one in as_json(found)["frontiers"]}


def test_without_a_second_model_nothing_is_said_of_one(two):
    found = compare_runs(two)
    assert {one.metric for one in found.frontiers} == {"score", "rule_accuracy"}
    assert not any("did not use" in note or "Held-out scores" in note for note in found.notes)


def test_no_note_where_both_models_agree(tmp_path):
    runs = [
        write_compared(tmp_path / name, method, slope=slope, kl=4.0, seed=at, heldout=("apart-a", slope))
        for at, (name, method, slope) in enumerate((("one", "ppo", 1.0), ("other", "dpo", 0.2)))
    ]
    found = compare_runs(runs)
    assert {sentence.tone for sentence in found.verdicts[:2]} == {"better"}
    assert not any("leads by" in note for note in found.notes)


def test_held_out_scores_of_two_models_are_never_compared(tmp_path):
    found = exploiter(tmp_path, other="apart-b")
    assert pairs(found, "score_heldout") == [] and len(pairs(found)) == 1
    groups = [one.group for one in found.frontiers if one.metric == "score_heldout"]
    assert groups == ["hacked", "honest"] and any("Held-out scores come from 2 reward models" in n for n in found.notes)


def test_what_ppo_watched_stands_on_the_frontier_of_the_model_that_it_watched(tmp_path):
    run = write_compared(tmp_path / "one", "ppo", slope=1.0, kl=4.0, heldout=("apart-a", 0.1))
    ppo_points(run, [(0, 0.0, 0.0), (8, 1.0, 2.0)])
    lines = (run / "ppo" / "metrics.jsonl").read_text()
    watched = [
        {"stage": "ppo", "step": step, "split": "eval", "name": "score_heldout", "value": value}
        for step, value in ((0, 0.25), (8, 0.125))
    ]
    (run / "ppo" / "metrics.jsonl").write_text(lines + "".join(json.dumps(line) + "\n" for line in watched))
    found = compare_runs([run])
    by_metric = {one.metric: [point for way in one.passed for point in way.points] for one in found.frontiers}
    assert by_metric["score"] == [(0, 0.0, 0.0), (8, 2.0, 1.0)]
    assert by_metric["score_heldout"] == [(0, 0.0, 0.25), (8, 2.0, 0.125)]
    assert [one.metric for one in found.frontiers] == ["score", "score_heldout", "rule_accuracy"], "one group each"
    # Not finished: neither manifest nor evaluation; the recipe says which model is watched.
    (run / "ppo" / "manifest.json").unlink()
    (run / "results.json").unlink()
    written = json.loads((run / "recipe.yaml").read_text())
    written["stages"]["ppo"]["watch"] = "apart"
    (run / "recipe.yaml").write_text(json.dumps(written))
    other = write_compared(tmp_path / "other", "dpo", slope=0.5, kl=4.0, heldout=("apart-a", 0.1))
    groups = {one.metric: len(one.passed) for one in compare_runs([run, other]).frontiers if one.paths}
    assert groups == {"score": 1, "score_heldout": 1, "rule_accuracy": 0}, "each beside the paths of its own model"


def test_what_two_runs_share_stands_in_the_table_once(two):
    found = compare_runs(two)
    assert [row.name for row in found.rows] == ["base", "sft", "ppo (near)", "dpo (far)"]


def test_other_settings_of_the_evaluation_are_refused_with_the_command(tmp_path):
    one = write_compared(tmp_path / "one", slope=1, kl=1)
    other = write_compared(tmp_path / "other", slope=1, kl=1, prompts=30, max_new_tokens=32)
    with pytest.raises(DataError) as refused:
        compare_runs([one, other])
    said = str(refused.value)
    assert "evaluation.max_new_tokens is 16 and 32" in said
    assert f"`trivet eval {other} --set evaluation.max_new_tokens=16`" in said, "which trains nothing"


def test_other_prompts_are_refused_even_with_the_same_settings(tmp_path):
    one = write_compared(tmp_path / "one", slope=1, kl=1)
    other = write_compared(tmp_path / "other", slope=1, kl=1, asked="differently")
    with pytest.raises(DataError, match="different prompts"):
        compare_runs([one, other])


def measured_on(run, method, texts, pairs):
    """Give a run a perplexity over texts of these lengths, and its policy an accuracy over pairs at these places."""
    results = json.loads((run / "results.json").read_text())
    for name, row in results["evaluation"]["policies"].items():
        row |= {"perplexity": 7.25, "perplexity_n": len(texts)}
        if name == method:
            row |= {"preference_accuracy": 0.75, "preference_ci95": [0.5, 0.9], "preference_n": len(pairs)}
    write(run / "results.json", results)
    write_lines(run / "evaluation" / "perplexity.jsonl", [
        {"row_id": at, "policy": policy, "logp": -5.0, "tokens": tokens}
        for at, tokens in enumerate(texts) for policy in ("base", "sft", method)
    ])  # fmt: skip
    lines = [{"source": f"{run.name}/pairs.jsonl", "row": at, "margin": 0.5} for at in pairs]
    write_lines(run / method / "held_out_pairs.jsonl", lines)
    recipe = json.loads((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(json.dumps({**recipe, "data": {"sft": {"eval_limit": len(texts)}}}))
    return run


OUT = "Perplexity is left out"


@pytest.mark.parametrize(
    ("texts", "pairs_at", "left_out"),
    [
        ([5, 6, 7], [1, 2], ()),
        ([5, 6], [1, 2], ("perplexity",)),
        ([5, 6, 9], [1, 2], ("perplexity",)),
        ([5, 6, 7], [1], ("preference_accuracy",)),
        ([5, 6, 7], [1, 3], ("preference_accuracy",)),
        ([5], [4], ("perplexity", "preference_accuracy")),
    ],
)
def test_figures_over_other_held_out_rows_are_not_put_side_by_side(two, texts, pairs_at, left_out):
    """Fewer rows, or as many others; the same ones from a file that lies elsewhere are the same ones."""
    ppo, dpo = two
    measured_on(ppo, "ppo", [5, 6, 7], [1, 2])
    measured_on(dpo, "dpo", texts, pairs_at)
    found = compare_runs(two)
    page, told = comparison_page(found), as_json(found)
    for name, called in (("perplexity", "Perplexity"), ("preference_accuracy", "Preference accuracy")):
        gone = name in left_out
        assert any(name in row.figures for row in found.rows) is not gone
        assert any(name in row["figures"] for row in told["policies"]) is not gone
        assert any(f"{called} is left out" in note for note in found.notes) is gone
    assert ("7.25" in page) is ("perplexity" not in left_out)
    assert len(pairs(found)) == 1, "everything else is compared"


def test_what_makes_held_out_rows_differ_is_named_with_the_command(two):
    ppo, dpo = measured_on(two[0], "ppo", [5, 6, 7], [1]), measured_on(two[1], "dpo", [5, 6], [1])
    (note,) = [note for note in compare_runs([ppo, dpo]).notes if OUT in note]
    assert "(near: 3, far: 2; what differs: data.sft.eval_limit)" in note
    assert f"`trivet run {dpo}/recipe.yaml --output-dir {dpo} --set data.sft.eval_limit=3` makes far alike" in note
    assert "trains it anew" in note
    alone = compare_runs([dpo])
    assert not any(OUT in note for note in alone.notes) and alone.rows[0].figures["perplexity"] == 7.25


def test_a_run_that_left_no_rows_is_judged_by_their_number(two):
    ppo, dpo = measured_on(two[0], "ppo", [5, 6, 7], [1]), measured_on(two[1], "dpo", [5, 6, 7], [1])
    (dpo / "evaluation" / "perplexity.jsonl").unlink()
    assert not any(OUT in note for note in compare_runs([ppo, dpo]).notes)


def test_half_finished_runs_show_how_far_they_have_come(tmp_path, two):
    going = tmp_path / "going"
    write(going / "run.json", {"stages": [
        {"name": "sft", "kind": "sft", "key": "k" * 64, "status": "done", "seconds": 5.0},
        {"name": "ppo", "kind": "ppo", "key": "p" * 64, "status": "running", "seconds": None},
    ]})  # fmt: skip
    ppo_points(going, [(0, 0.1, 0.0), (4, 0.3, 1.5), (8, None, 2.0)])
    with hold(going):
        found = compare_runs([*two, going])
    assert "ppo is running" in found.states[2].text
    (passed,) = [one for frontier in found.frontiers for one in frontier.passed]
    assert passed.points == ((0, 0.0, 0.1), (4, 1.5, 0.3)), "a measurement that was no number is left out"
    assert any("going has not been evaluated yet" in note for note in found.notes)
    assert len(pairs(found)) == 1
    assert "going" in comparison_page(found)
    empty = tmp_path / "empty"
    write(empty / "run.json", {"stages": []})
    assert compare_runs([empty]).rows == ()


def test_an_evaluation_without_values_per_prompt_is_shown_and_said(tmp_path):
    old = write_compared(tmp_path / "old", slope=1, kl=1, per_prompt=False)
    found = compare_runs([old, write_compared(tmp_path / "new", slope=1, kl=4, seed=6)])
    (note,) = [note for note in found.notes if "old was evaluated without values per prompt" in note]
    assert found.verdicts == () and f"`trivet eval {old}` evaluates it again" in note
    assert [len(path.places) for path in found.frontiers[0].paths] == [2, 2]


def test_several_policies_of_one_kind_are_one_path(tmp_path):
    run = write_compared(tmp_path / "one", slope=1, kl=4)
    ledger = json.loads((run / "run.json").read_text())
    ledger["stages"].append({"name": "ppo_b", "kind": "ppo", "key": "b", "status": "done", "seconds": 1.0})
    results = json.loads((run / "results.json").read_text())
    results["evaluation"]["policies"]["ppo_b"] = {"kl_to_reference": 1.0, "score": 0.5}
    write(run / "run.json", ledger)
    write(run / "results.json", results)
    (path,) = compare_runs([run]).frontiers[0].paths
    assert path.policies == ("ppo_b", "ppo") and path.name == "ppo", "by divergence, the reference first"


def test_best_of_n_stands_beside_what_was_trained(tmp_path):
    """Planted: the best of 8 at its bound of 1.2 nats is far above a PPO policy that bought next to nothing."""
    run = write_compared(tmp_path / "one", slope=0.1, kl=4)
    results = json.loads((run / "results.json").read_text())
    best = {"n": 8, "kl_bound": kl_bound(8), "score": 2.0, "score_ci95": [1.8, 2.2], "score_n": PROMPTS}
    results["evaluation"]["best_of_n"] = [best]
    write(run / "results.json", results)
    lines = [{"prompt_id": at, "n": 8, "kl": kl_bound(8), "score": 2.0 + at % 2 / 10} for at in range(PROMPTS)]
    write_lines(run / "evaluation" / "best_of_n.jsonl", lines)
    found = compare_runs([run])
    (pair,) = pairs(found)
    assert (pair.a, pair.b) == ("ppo", "best of n") and pair.kl == pytest.approx(kl_bound(8))
    assert pair.value_b == pytest.approx(2.05) and "best of n is better than ppo" in found.verdicts[0].text
    assert any("upper bound of its KL" in note for note in found.notes)
    assert "best of n" in comparison_page(found)


def test_every_policy_is_on_the_frontier_or_said_to_be_beyond_it(two, tmp_path):
    found = compare_runs(two)
    score, rules = found.frontiers
    assert [place.name for place in score.others] == [place.name for place in rules.others] == ["base"]
    near = comparison_page(compare_runs([write_compared(tmp_path / "close", slope=0.1, kl=1.0, seed=8)]))
    assert "Beyond the right edge: base: " in near and 'class="dot apart"' not in near
    assert 'class="dot apart"' in comparison_page(found), "DPO went as far, so the base model is drawn"


def test_two_prompts_of_one_text_stay_two(tmp_path):
    """Held-out prompts may be alike word for word; they are told apart by their place."""
    run = write_compared(tmp_path / "one", slope=1, kl=4)
    for name in ("answers.jsonl", "sampled.jsonl"):
        path = run / "evaluation" / name
        path.write_text(path.read_text().replace("question 1 ", "question 0 "))
    assert compare_runs([run]).frontiers[0].paths[0].spots[0].kl_P.size == PROMPTS


def test_recipes_are_compared_key_by_key(tmp_path, two):
    differing = {one.key: one.values for one in compare_runs(two).differences}
    assert differing == {"stages.ppo.kind": ("ppo", "–"), "stages.dpo.kind": ("–", "dpo")}
    assert flat({"a": {"b": [1, 2], "c": [{"d": 3}]}, "e": None}) == {"a.b": [1, 2], "a.c.0.d": 3, "e": None}


def test_the_page_escapes_answers_and_needs_nothing_else(two):
    page = comparison_page(compare_runs(two))
    assert XSS not in page and "&lt;script&gt;" in page and "<script" not in page
    assert "http" not in page.replace("http-equiv", "") and page.count("<svg") == 2
    assert '<polygon class="band path-1"' in page
    assert page == comparison_page(compare_runs(two))


def test_json_and_csv_hold_the_figures_and_no_nan(two):
    found = compare_runs(two)
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    score = {row["name"]: row["figures"]["score"]["value"] for row in told["policies"]}
    assert score["ppo (near)"] == found.rows[2].figures["score"]
    assert "perplexity" not in told["policies"][0]["figures"], "NaN everywhere is not measured"
    (frontier,) = [one for one in told["frontiers"] if one["metric"] == "score"]
    assert frontier["at_equal_kl"][0]["ci95"][1] < 0
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [line["policy"] for line in lines] == ["base", "sft", "ppo", "dpo"]
    assert float(lines[2]["score"]) == score["ppo (near)"] and lines[2]["score_low"] == "-0.2"


def test_the_terminal_shows_recipes_policies_and_verdict(two):
    out = io.StringIO()
    print_comparison(compare_runs(two), Console(file=out, width=80, highlight=False))
    text = out.getvalue()
    for part in ("stages.dpo.kind", "ppo (near)", "is better than", "10.5 s"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80


def took(run, stage, **gib):
    manifest = json.loads((run / stage / "manifest.json").read_text())
    write(run / stage / "manifest.json", {**manifest, "memory": gib})


def test_peak_memory_stands_beside_the_time(two):
    """From the manifests; of PPO still under way from what it logged; a dash for what an older version made."""
    assert "an older version made" in comparison_page(compare_runs(two))
    ppo = two[0]
    took(ppo, "sft", process_gib=1.31, gpu_gib=None)
    took(ppo, "ppo", process_gib=2.52, gpu_gib=7.75)
    write_lines(ppo / "ppo" / "metrics.jsonl", [
        {"stage": "ppo", "step": 1, "split": "train", "name": f"mem/peak_{phase}", "value": value}
        for phase, value in (("rollout", 6.5), ("train", 7.0))
    ])  # fmt: skip
    found = compare_runs(two)
    costs = {cost.stage: cost for cost in found.costs}
    assert (costs["sft"].process_gib, costs["sft"].peak_gib) == ((1.31, None), (None, None))
    assert (costs["ppo"].process_gib, costs["ppo"].peak_gib) == ((2.52, None), (7.75, None))
    page, out = comparison_page(found), io.StringIO()
    print_comparison(found, Console(file=out, width=100, highlight=False))
    assert "2.52 GiB" in page and "7.75 GiB on the GPU" in page and "an older version made" not in page
    assert "Peak memory" in out.getvalue() and "2.52 (7.75)" in out.getvalue() and "1.31" in out.getvalue()
    (told,) = [cost for cost in as_json(found)["costs"] if cost["stage"] == "ppo"]
    assert told["process_gib"] == {"near": 2.52, "far": None} and told["peak_gib"] == {"near": 7.75, "far": None}
    (ppo / "ppo" / "manifest.json").unlink()
    (cost,) = [cost for cost in compare_runs(two).costs if cost.stage == "ppo"]
    assert cost.peak_gib == (7.0, None) and cost.process_gib == (None, None)


def voting(tmp_path, choices):
    """Votes between what DPO said (the same text everywhere) and what SFT said."""
    path = tmp_path / "votes.jsonl"
    lines = [
        {"prompt": f"question {at} ", "answer_a": f"sft says {at}", "answer_b": XSS, "choice": choice, "who": "kim"}
        for at, choice in enumerate(choices)
    ]
    lines.append({**lines[0], "answer_a": "nobody said this", "who": "lee"})
    write_lines(path, lines)
    return path


def test_votes_of_people_stand_beside_the_rest(two, tmp_path):
    found = compare_runs(two[1:], voting(tmp_path, ["b"] * 18 + ["a", "tie"]))
    (pair,) = found.voted
    assert (pair.a, pair.b) == ("sft", "dpo") and pair.figures["win_rate"] == pytest.approx(18.5 / 20)
    assert "Votes: dpo is preferred to sft" in found.verdicts[-1].text and found.verdicts[-1].tone == "better"
    assert "1 vote is on answers that none of these policies gave." in found.notes
    told = json.loads(json.dumps(as_json(found)))
    assert told["votes"][0]["win_rate_n"] == 20 and told["votes"][0]["voters"] == 1
    even = compare_runs(two[1:], voting(tmp_path, ["a", "b"] * 5))
    assert "no preference shown" in even.verdicts[-1].text and even.verdicts[-1].tone == "none"
    few = compare_runs(two[1:], voting(tmp_path, ["b"] * 3))
    assert few.verdicts[-1].tone == "none", "three votes that agree are an interval of one point, and no finding"


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, arguments)])
    return ended.value.code


def test_the_command_writes_what_it_is_asked_for(two, tmp_path, capsys):
    page, lines = tmp_path / "page.html", tmp_path / "lines.csv"
    assert command(*two, "--html", page, "--csv", lines) == 0
    said = capsys.readouterr().out
    assert f"wrote {page}" in said.replace("\n", "") and "is better than" in said.replace("\n", " ")
    assert page.read_text().startswith("<!doctype html>") and lines.read_text().startswith("policy,kind,runs,")
    assert command(*two, "--json") == 0
    assert json.loads(capsys.readouterr().out)["evaluation_set"]["prompts"] == PROMPTS


def test_the_command_says_what_is_wrong_in_one_sentence(two, tmp_path, capsys):
    assert command(tmp_path / "nowhere") == 65
    assert capsys.readouterr().err == f"{tmp_path / 'nowhere'}: there is no such run directory\n"
    assert command(*two, "--html", tmp_path / "no" / "page.html") == 2
    assert "there is no folder" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, two):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="holds no run"):
        compare_runs([tmp_path / "folder"])
    with pytest.raises(DataError, match="no such run directory"):
        compare_runs([tmp_path / "nowhere"])
    with pytest.raises(RecipeError, match="named twice"):
        compare_runs([two[0], two[0]])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    one = write_compared(tmp_path / "a" / "run", slope=1, kl=1)
    other = write_compared(tmp_path / "b" / "run", slope=1, kl=1)
    assert [compared.label for compared in compare_runs([one, other]).runs] == ["a/run", "b/run"]
