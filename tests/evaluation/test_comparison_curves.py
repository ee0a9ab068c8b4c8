"""What several runs logged, drawn over each other: which charts, which lines, and the points behind them."""

from __future__ import annotations

import re

import lxml.html
import pytest
from synthetic_run import write, write_lines
from test_comparison import write_compared

from evaluation.comparison import compare_runs
from evaluation.comparison.curves import compared_curves
from evaluation.comparison.page import comparison_page
from pipeline.locks import hold


def log(run, stage, *rows):
    """`rows`: split, name, and values by step."""
    (run / stage).mkdir(parents=True, exist_ok=True)
    write_lines(run / stage / "metrics.jsonl", [
        {"stage": stage, "step": step, "split": split, "name": name, "value": value, "time": 1.0}
        for split, name, values in rows for step, value in values.items()
    ])  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """PPO to its end, and PPO that is half-way; they share their SFT."""
    done = write_compared(tmp_path / "done", "ppo", slope=1.0, kl=1.0)
    loss = ("train", "loss", {1: 2.0, 5: 1.5})
    log(done, "sft", loss, ("eval", "loss", {0: 2.2, 5: 1.6}))
    log(done, "reward", ("train", "loss", {1: 0.7, 9: 0.3}))
    score = {4: 0.1, 8: 0.3, 12: 0.6}
    log(
        done,
        "ppo",
        ("train", "objective/score", score),
        ("eval", "score", {0: 0.0, 12: 0.5}),
        ("train", "odd", {4: 7.0}),
    )
    going = tmp_path / "going"
    keys = {"sft": "s" * 64, "ppo": "p" * 64}
    write(going / "run.json", {"stages": [
        {"name": "sft", "kind": "sft", "key": keys["sft"], "status": "skipped", "seconds": 5.0},
        {"name": "ppo", "kind": "ppo", "key": keys["ppo"], "status": "running", "seconds": None},
    ]})  # fmt: skip
    log(going, "sft", loss, ("eval", "loss", {0: 2.2, 5: 1.6}))
    log(going, "ppo", ("train", "objective/score", {4: 0.2, 8: None}))
    return done, going


def drawn(runs):
    with hold(runs[1]):
        return {one.kind: one for one in compared_curves(compare_runs(runs).runs)}


def titled(kind, title):
    (chart,) = [chart for chart in (*kind.main, *kind.further) if chart.title == title]
    return chart


def test_a_chart_per_metric_and_split_with_a_line_per_run(runs):
    kinds = drawn(runs)
    assert list(kinds) == ["sft", "reward", "ppo"]
    assert [chart.title for chart in kinds["ppo"].main] == ["Score, in training", "Score, held-out"]
    assert [chart.title for chart in kinds["reward"].main] == ["Loss"], "one split, so no word of it"
    assert [chart.title for chart in kinds["ppo"].further] == ["odd"]
    score = titled(kinds["ppo"], "Score, in training")
    assert [(one.label, one.style, one.last) for one in score.legend] == [
        ("done", "path-1", "0.600"), ("going, running", "path-2", "0.200"),
    ]  # fmt: skip
    assert score.left_out == 1, "the value that was no number"
    held_out = titled(kinds["ppo"], "Score, held-out")
    assert [one.label for one in held_out.legend] == ["done"], "the other has measured nothing yet"


def test_what_runs_share_is_one_line_under_both_names(runs):
    kinds = drawn(runs)
    loss = titled(kinds["sft"], "Loss, in training")
    assert [one.label for one in loss.legend] == ["done, going"]
    # The control: other figures under the same key are another line.
    log(runs[1], "sft", ("train", "loss", {1: 2.0, 5: 1.4}))
    assert [one.label for one in titled(drawn(runs)["sft"], "Loss, in training").legend] == ["done", "going"]


def test_the_points_on_the_page_are_those_that_were_logged(runs):
    """Read back from the drawing: the axes by their ticks, then every dot."""
    page = comparison_page(compare_runs(runs))
    root = lxml.html.fromstring(page)
    (svg,) = root.xpath(
        '//section[@id="curves"]//*[name()="svg"][starts-with(@aria-label, "Score, in training of ppo")]'
    )
    assert "done from 0.100 to 0.600" in svg.get("aria-label")
    for style, logged in (("path-1", {4: 0.1, 8: 0.3, 12: 0.6}), ("path-2", {4: 0.2})):
        assert dots(svg, style) == pytest.approx(logged, abs=0.01)
    assert "Curves over each other" in page and "going, killed" in page, "nobody holds it any more"


def dots(svg, style):
    """x to y of the dots of a style, by the ticks of the axes."""
    ticks = {"x": [], "y": []}
    for text in svg.xpath('.//*[name()="text"][not(@class)]'):
        upright = text.get("text-anchor") == "end"
        place = float(text.get("y")) - 4 if upright else float(text.get("x"))
        ticks["y" if upright else "x"].append((place, float(text.text)))
    found = svg.xpath(f'.//*[name()="circle"][@class="dot {style}"]')
    return {round(read(ticks["x"], dot.get("cx"))): read(ticks["y"], dot.get("cy")) for dot in found}


def read(ticks, place):
    (a, low), (b, high) = ticks[0], ticks[-1]
    return low + (float(place) - a) / (b - a) * (high - low)


def test_several_stages_of_a_kind_are_lines_of_their_own(tmp_path):
    run = tmp_path / "one"
    entries = [{"name": f"dpo_{at}", "kind": "dpo", "key": at, "status": "done", "seconds": 1.0} for at in ("a", "b")]
    write(run / "run.json", {"stages": entries})
    for at, last in (("a", 0.5), ("b", 0.4)):
        log(run, f"dpo_{at}", ("train", "loss", {1: 0.7, 2: last}))
    (kind,) = compared_curves(compare_runs([run]).runs)
    legend = kind.main[0].legend
    assert [one.label for one in legend] == ["dpo_a (one)", "dpo_b (one)"] and len({one.style for one in legend}) == 2


def test_runs_that_logged_nothing_have_no_section(tmp_path):
    run = write_compared(tmp_path / "one", slope=1.0, kl=1.0)
    page = comparison_page(compare_runs([run]))
    assert 'id="curves"' not in page and not re.search("#curves", page)
