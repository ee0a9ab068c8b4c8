"""Runs over values of recipe keys: found from their recipes, one path for each method, one table, an honest choice."""

from __future__ import annotations

import csv
import io
import json
import random

import numpy as np
import pytest
import yaml
from rich.console import Console
from test_comparison import pairs, write_compared

from evaluation.comparison import compare_runs
from evaluation.comparison.exports import as_csv, as_json
from evaluation.comparison.page import comparison_page
from evaluation.comparison.sweeps import find_sweeps
from evaluation.comparison.terminal import print_comparison
from evaluation.selection import best_of


def swept(folder, seed=17, method="dpo", slope=0.5, kl=4.0, sft=None, **values):
    """A run of one value of each key, by name: `beta=0.1` is `stages.dpo.beta`; `sft` is the key of its reference."""
    run = write_compared(folder, method, slope=slope, kl=kl, seed=sum(f"{folder.name} {seed}".encode()))
    path = run / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["stages"][method] |= values
    path.write_text(yaml.safe_dump({**recipe, "seed": seed, "name": folder.name, "output_dir": str(folder)}))
    if sft is not None:
        for file in (run / "run.json", run / "sft" / "manifest.json"):
            file.write_text(file.read_text().replace("s" * 64, sft * 64))
    return run


def over(tmp_path, betas=(0.5, 0.05, 0.1), **more):
    """DPO over beta: the smaller, the further away and the higher the score."""
    return [swept(tmp_path / f"x-{at}", kl=0.5 / beta, beta=beta, **more) for at, beta in enumerate(betas)]


def said(found):
    stream = io.StringIO()
    print_comparison(found, Console(file=stream, width=100))
    return stream.getvalue()


# Found ---------------------------------------------------------------------------------------------------------------


def test_runs_that_differ_in_one_key_are_a_sweep_by_value(tmp_path):
    (found,) = compare_runs(over(tmp_path)).sweeps
    assert found.keys == ("stages.dpo.beta",) and found.short_keys == ("beta",)
    assert [(point.values, point.runs) for point in found.points] == [
        ((0.05,), ("x-1",)), ((0.1,), ("x-2",)), ((0.5,), ("x-0",)),
    ]  # fmt: skip


def test_a_grid_with_a_hole_is_one_and_two_recipes_are_none(tmp_path):
    grid = [
        swept(tmp_path / f"{beta}-{rate}", beta=beta, learning_rate=rate)
        for beta, rate in ((0.1, 1e-5), (0.1, 1e-4), (0.2, 1e-5))
    ]
    (found,) = compare_runs(grid).sweeps
    assert len(found.points) == 3 and found.short_keys == ("beta", "learning_rate")
    assert found.label(found.points[0]) == "beta 0.1, learning_rate 1e-05"
    two = compare_runs([grid[1], grid[2]])
    assert two.sweeps == () and two.by_value == () and len(two.frontiers[0].paths) == 2


def test_a_stranger_beside_a_sweep_stays_out_of_it(tmp_path):
    runs = [*over(tmp_path), swept(tmp_path / "other", beta=0.05, learning_rate=1.0, epochs=9, schedule="x")]
    found = compare_runs(runs)
    assert [set(sweep.runs) for sweep in found.sweeps] == [{"x-0", "x-1", "x-2"}]
    names = {path.name for path in found.frontiers[0].paths}
    assert names == {"dpo over beta (x-1, x-2, x-0)", "dpo (other)"}


def test_a_value_may_be_a_list(tmp_path):
    runs = [swept(tmp_path / f"x-{at}", target=["a"] * at) for at in (1, 2)]
    found = compare_runs(runs)
    assert found.sweeps[0].keys == ("stages.dpo.target",) and len(found.by_value[0].rows) == 2
    assert "stages.dpo.target" in as_csv(found) and as_json(found)["sweeps"]


def test_other_evaluations_or_stages_are_no_values(tmp_path):
    runs = [swept(tmp_path / "a", beta=0.1), swept(tmp_path / "b", method="ppo", beta=0.2)]
    assert compare_runs(runs).sweeps == ()
    assert find_sweeps([]) == []


# The frontier --------------------------------------------------------------------------------------------------------


def test_a_method_is_one_path_through_its_values_in_the_order_of_their_kl(tmp_path):
    found = compare_runs(over(tmp_path))
    (path,) = found.frontiers[0].paths
    assert path.name == "dpo over beta" and path.runs == ("x-1", "x-2", "x-0")
    assert [place.label for place in path.places] == ["", "0.5", "0.1", "0.05"]
    assert [place.kl for place in path.places] == sorted(place.kl for place in path.places)
    figures = {one.label: one.run.policies["dpo"] for one in found.runs}
    assert path.places[1].value == figures["x-0"]["score"] and path.places[3].kl == figures["x-1"]["kl_to_reference"]
    assert len(path.spots) == 4 and path.band and pairs(found) == []
    assert "all values of one method are one path" in said(found)
    chart = comparison_page(found)
    assert all(f">{value}</text>" in chart for value in ("0.5", "0.1", "0.05"))


def test_two_methods_are_compared_over_their_whole_sweeps(tmp_path):
    """PPO buys twice as much a nat: over six runs one verdict, at a KL that both reached."""
    ppo = [
        swept(tmp_path / f"p-{at}", method="ppo", slope=1.0, kl=kl, kl_coef=0.1 / kl)
        for at, kl in enumerate((1.0, 2.0, 5.0))
    ]
    found = compare_runs([*over(tmp_path), *ppo])
    (pair,) = pairs(found)
    assert (pair.a, pair.b) == ("dpo over beta", "ppo over kl_coef")
    assert pair.same_reference and pair.difference.low > 0 and 3.0 < pair.kl < 7.0
    # What the paths have at that divergence is the planted slope times its root, wherever the values lie.
    assert pair.difference.estimate == pytest.approx(0.5 * pair.kl**0.5, abs=0.3)


def test_another_reference_is_another_path(tmp_path):
    """The control for `one path`: the same runs, but every value stands on an SFT artefact of its own."""
    runs = [
        swept(tmp_path / f"x-{at}", kl=0.5 / beta, beta=beta, sft="abc"[at]) for at, beta in enumerate((0.5, 0.05, 0.1))
    ]
    found = compare_runs(runs)
    names = [path.name for path in found.frontiers[0].paths]
    assert names == ["dpo (beta 0.05)", "dpo (beta 0.1)", "dpo (beta 0.5)"]
    assert not any(pair.same_reference for pair in pairs(found)) and len(pairs(found)) == 3
    assert any("3 different references" in note for note in found.notes)
    assert all(table.reference is None for table in found.by_value if table.policy == "dpo")


def test_words_make_methods_of_their_own(tmp_path):
    """Numbers move a method along its path; another loss is another method, at equal KL with the first."""
    runs = [
        swept(tmp_path / f"{loss}-{beta}", beta=beta, loss_type=loss, kl=0.5 / beta, slope=slope)
        for loss, slope in (("sigmoid", 1.0), ("ipo", 0.3))
        for beta in (0.05, 0.2)
    ]
    (pair,) = pairs(compare_runs(runs))
    assert (pair.a, pair.b) == ("dpo over beta (loss_type sigmoid)", "dpo over beta (loss_type ipo)")
    assert pair.difference.high < 0


# Seeds ---------------------------------------------------------------------------------------------------------------


def test_seeds_of_a_value_are_one_point_where_they_share_their_reference(tmp_path):
    runs = [
        swept(tmp_path / f"{beta}-{seed}", seed=seed, beta=beta, kl=0.5 / beta)
        for beta in (0.05, 0.5)
        for seed in (1, 2, 3)
    ]
    found = compare_runs(runs)
    (path,) = found.frontiers[0].paths
    own = [one.run.policies["dpo"] for one in found.runs if one.label.startswith("0.05")]
    assert len(path.places) == 3 and path.places[2].value == pytest.approx(np.mean([row["score"] for row in own]))
    assert path.spots[2].value == pytest.approx(path.places[2].value)
    (table,) = found.by_value
    at = [measure.name for measure in table.measures].index("score")
    cell = table.rows[0].cells[at]
    assert table.rows[0].seeds == 3 and cell.value == pytest.approx(np.mean([row["score"] for row in own]))
    assert cell.bounds == (min(row["score"] for row in own), max(row["score"] for row in own))
    assert "prompts and seeds" in found.notes[1] and "half their range" in said(found)


def test_seeds_with_references_of_their_own_are_paths_without_a_verdict_between_them(tmp_path):
    runs = [
        swept(tmp_path / f"{beta}-{seed}", seed=seed, beta=beta, kl=0.5 / beta, slope=seed, sft="abc"[seed])
        for seed in (1, 2)
        for beta in (0.05, 0.5)
    ]
    found = compare_runs(runs)
    assert [path.name for path in found.frontiers[0].paths] == ["dpo over beta (seed 1)", "dpo over beta (seed 2)"]
    assert pairs(found)[0].difference.low > 0, "shown, but for the seed"
    assert found.verdicts == ()


# Tables --------------------------------------------------------------------------------------------------------------


def test_the_table_has_every_values_own_figures_and_the_start(tmp_path):
    found = compare_runs(over(tmp_path))
    (table,) = found.by_value
    assert table.policy == "dpo" and [row.values for row in table.rows] == [("0.05",), ("0.1",), ("0.5",)]
    figures = {one.label: one.run.policies["dpo"] for one in found.runs}
    for row in table.rows:
        for measure, cell in zip(table.measures, row.cells, strict=True):
            assert cell.value == figures[row.runs[0]][measure.name]
    assert table.reference_name == "sft" and table.reference is not None
    assert {"score", "rule_accuracy", "kl_to_reference"} <= {measure.name for measure in table.measures}
    shown = said(found)
    assert "dpo over beta" in shown and "sft, where all start" in shown
    page = comparison_page(found)
    assert "Value by value" in page and "<code>stages.dpo.beta</code>" in page and "sft, where all start" in page


def test_scores_of_several_reward_models_are_no_series(tmp_path):
    runs = over(tmp_path)
    for file in (runs[0] / "run.json", runs[0] / "reward" / "manifest.json"):
        file.write_text(file.read_text().replace("judge-a", "judge-b"))
    found = compare_runs(runs)
    (table,) = found.by_value
    names = {measure.name for measure in table.measures}
    assert "score" not in names and "rule_accuracy" in names
    paths = {one.metric: [path.name for path in one.paths] for one in reversed(found.frontiers)}
    assert paths["rule_accuracy"] == ["dpo over beta"], "rules are the same for all"
    by_judge = [path.name for one in found.frontiers for path in one.paths if one.metric == "score"]
    assert by_judge == ["dpo over beta (x-1, x-2)", "dpo (x-0)"]


def test_csv_and_json_have_the_values_by_key(tmp_path):
    found = compare_runs(over(tmp_path))
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert {row["runs"]: row["stages.dpo.beta"] for row in rows if row["policy"] == "dpo"} == {
        "x-0": "0.5", "x-1": "0.05", "x-2": "0.1",
    }  # fmt: skip
    assert {row["stages.dpo.beta"] for row in rows if row["policy"] == "sft"} == {""}, "shared by all values"
    (told,) = json.loads(json.dumps(as_json(found)))["sweeps"]
    assert [point["values"] for point in told["points"]] == [{"stages.dpo.beta": beta} for beta in (0.05, 0.1, 0.5)]
    (policy,) = told["policies"]
    assert policy["rows"][0]["figures"]["score"]["ci95"] == [-0.2, 0.9]
    assert policy["highest"]["tried"] == 3 and policy["highest"]["metric"] == "rule_accuracy"


def test_without_a_sweep_nothing_is_said_of_one(tmp_path):
    found = compare_runs([swept(tmp_path / "a", beta=0.1), swept(tmp_path / "b", method="ppo")])
    assert as_json(found)["sweeps"] == [] and "Value by value" not in comparison_page(found)
    assert "stages." not in as_csv(found).splitlines()[0]


# The choice ----------------------------------------------------------------------------------------------------------


def columns(means, prompts=60, seed=0, noise=0.5):
    """Values of several policies on prompts that are hard for all alike."""
    draw = np.random.default_rng(seed)
    hard = draw.normal(0, 1, prompts)
    return [hard + mean + draw.normal(0, noise, prompts) for mean in means]


def test_the_best_of_several_is_named_with_those_that_cannot_be_told_from_it():
    found = best_of(columns([0.0, 1.0, 0.95]))
    assert (found.best, found.behind, found.level_with, found.n) == (1, (0,), (2,), 60)
    assert best_of(columns([0.0, 1.0]), least=5.0).behind == (), "another seed makes as much"


def test_prompts_that_some_policy_lacks_are_left_out():
    found = columns([0.0, 1.0])
    found[0][:20] = np.nan
    assert best_of(found).n == 40 and best_of(found[:1]) is None and best_of([]) is None


def test_equal_policies_are_all_the_same_to_it():
    same = columns([0.0])[0]
    found = best_of([same, same.copy(), same.copy()])
    assert found.ties == found.level_with == (1, 2)


def test_among_equal_policies_a_lead_over_any_is_claimed_in_one_case_of_twenty():
    """Eight values that do nothing. Pairwise intervals, after choosing, would claim a lead in half of cases."""
    trials, false, naive = 300, 0, 0
    for seed in range(trials):
        found = columns([0.0] * 8, prompts=50, seed=seed)
        false += bool(best_of(found, resamples=600).behind)
        best = max(found, key=np.mean)
        apart = [best - other for other in found if other is not best]
        naive += any(each.mean() > 1.96 * each.std(ddof=1) / 50**0.5 for each in apart)
    assert false / trials < 0.09
    assert naive / trials > 0.3, "the control: what the correction is for"


def test_the_note_says_how_many_were_tried_and_on_what(tmp_path):
    notes = compare_runs(over(tmp_path)).notes
    assert notes[0] == "x-1, x-2, x-0 are one recipe over stages.dpo.beta: 0.05; 0.1; 0.5."
    assert "of 3 values tried, picked on these same 40 prompts, so part of its lead is chance" in notes[1]


def answered(run, share, seed=3):
    """The same run, its policy right on about this share of prompts."""
    draw, path = random.Random(seed), run / "evaluation" / "answers.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["correct"] = draw.random() < share if row["policy"] == "dpo" else row["correct"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_where_no_value_is_higher_by_rule_another_measure_speaks(tmp_path):
    """A model that gets nothing right: 0 % is nobody's lead."""
    runs = over(tmp_path)
    for run in runs:
        answered(run, 0.0)
    assert compare_runs(runs).notes[1].startswith("dpo: beta 0.05 has the highest score by the reward model")
    answered(runs[0], 1.0)
    answered(runs[2], 1.0)
    assert "beta 0.1 and beta 0.5 have the highest share of prompts" in compare_runs(runs).notes[1]


def test_a_clear_best_value_is_called_one(tmp_path):
    runs = over(tmp_path)
    for run, share in zip(runs, (0.1, 0.95, 0.2), strict=True):
        answered(run, share)
    note = compare_runs(runs).notes[1]
    assert note.startswith("dpo: beta 0.05 has the highest share of prompts answered right")
    assert "every other is behind by intervals that hold for all differences together" in note
