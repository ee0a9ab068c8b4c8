"""What another seed changes: found from runs of one recipe, shown, and no verdict below it."""

from __future__ import annotations

import io
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


def test_students_quantile_beyond_the_table():
    assert [student(free) for free in (1, 10, 20)] == [12.706, 2.228, 2.086]
    assert student(30) == pytest.approx(2.042, abs=0.003) and student(1000) == pytest.approx(1.962, abs=0.002)
