"""What the report says of a judge: its table, cell by cell, and what of its word is not to be relied on."""

from __future__ import annotations

import copy

import lxml.html
import pytest
from seen import page
from synthetic_run import RESULTS, write, write_run

from evaluation.compare import differences
from evaluation.judging.judge import Match
from evaluation.judging.policies import Judged
from evaluation.judging.win_rate import Verdict, judged_figures
from evaluation.report.judge_section import judge_table
from evaluation.report.load import load_run
from evaluation.report.measures import measure_named
from evaluation.report.words import amount, brief, told


def verdicts(*orders):
    return [Verdict(a_first=a, b_first=b, a_length=3, b_length=4) for a, b in orders]


FAIR = verdicts(*[(1.0, 1.0)] * 24, *[(0.0, 0.0)] * 12, *[(0.5, 0.5)] * 4)
FIRST = verdicts(*[(1.0, 1.0)] * 18, *[(0.0, 0.0)] * 6, *[(0.0, 1.0)] * 16)
"""Goes by place in 16 of 40 pairs: A first, A wins; B first, B wins."""
SILENT = verdicts(*[(None, 1.0)] * 10)


def judged(tmp_path, by_policy, comparisons=(), **more):
    """The page of a run whose judge said this, and the run."""
    write_run(tmp_path / "demo")
    results = copy.deepcopy(RESULTS)
    figures = {name: judged_figures(found) for name, found in by_policy.items()}
    results["evaluation"]["judge"] = {"model": "strict", "policies": figures, **more}
    results["evaluation"]["comparisons"] += comparisons
    write(tmp_path / "demo" / "results.json", results)
    return lxml.html.fromstring(page(tmp_path / "demo")), load_run(tmp_path / "demo")


def text_of(element):
    return " ".join(element.text_content().split())


def table_of(root):
    """Row and column to what stands there."""
    (region,) = root.xpath("//div[@aria-label='Verdicts of the judge']")
    head = [text_of(cell) for cell in region.xpath(".//thead//th")]
    return {
        (text_of(row.find("th")), name): text_of(cell)
        for row in region.xpath(".//tbody/tr")
        for name, cell in zip(head[1:], row.findall("td"), strict=True)
    }


def test_every_cell_is_the_judges_figure(tmp_path):
    found = table_of(judged(tmp_path, {"base": FAIR, "dpo": FIRST})[0])
    fair, first = judged_figures(FAIR), judged_figures(FIRST)

    def shown(figures, name):
        low, high = figures[f"{name}_ci95"]
        return f"{100 * figures[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}] n = {figures[f'{name}_n']}"

    assert found["base", "Wins"] == shown(fair, "win_rate") and found["base", "Wins"].startswith("65.0 [")
    assert found["base", "Ties"] == "10.0" and found["base", "Orders agree"] == "100.0"
    assert found["base", "First wins"].startswith("50.0 [") and found["base", "First wins"].endswith("n = 36")
    assert found["dpo", "Wins"] == shown(first, "win_rate") and found["dpo", "Wins"].startswith("65.0 [")
    assert found["dpo", "Wins, agreed"] == shown(first, "win_rate_agreed")
    assert found["dpo", "Wins, agreed"].startswith("75.0 [") and found["dpo", "Wins, agreed"].endswith("n = 24")
    assert found["dpo", "Orders agree"] == "60.0" and found["dpo", "First wins"] == shown(first, "first_wins")
    assert found["dpo", "First wins"].startswith("70.0 [") and found["dpo", "Unread"] == "0"
    assert found["base", "Longer wins"] == shown(fair, "longer_wins")


def test_a_judge_that_could_not_be_read_is_said_to_be(tmp_path):
    root, _ = judged(tmp_path, {"base": [*FAIR, *SILENT], "dpo": SILENT})
    found, section = table_of(root), text_of(root.get_element_by_id("policies"))
    assert found["dpo", "Wins"] == found["dpo", "First wins"] == "–" and found["dpo", "Unread"] == "10"
    assert "strict's verdicts on base could be read in 40 of 50 pairs; the others do not count." in section
    assert "strict's verdicts on dpo could be read in 0 of 10 pairs; nothing is known from it." in section
    assert "could be read" not in text_of(judged(tmp_path / "fair", {"base": FAIR})[0])


def test_a_judge_that_goes_by_place_is_said_to_and_what_that_does_to_the_win_rate(tmp_path):
    root, _ = judged(tmp_path, {"base": FAIR, "dpo": FIRST})
    section = text_of(root.get_element_by_id("policies"))
    assert (
        "strict goes by place on dpo: it prefers what stands first, so that what stands first wins 70.0 % [" in section
    )
    assert (
        "draw the win rate of 65.0 % towards 50 %; of the pairs on which both orders agree dpo wins 75.0 % [" in section
    )
    assert "its win rate on these prompts lies between 45.0 and 85.0 %." in section
    assert "on base: it prefers" not in section


def test_a_judge_may_prefer_what_stands_second(tmp_path):
    found = verdicts(*[(1.0, 1.0)] * 24, *[(1.0, 0.0)] * 16)
    section = text_of(judged(tmp_path, {"dpo": found})[0].get_element_by_id("policies"))
    assert "it prefers what stands second, so that what stands first wins 30.0 % [" in section
    assert "lies between 60.0 and 100.0 %" in section


def told_of(tmp_path, found):
    """What a judge's word on dpo against sft comes to; the page's verdict has the figures."""
    won = Judged({"dpo": [(Match(prompt="p", a="a", b="b"), one) for one in found]}).shares("sft")
    rows = differences("win_rate", [("sft", "dpo")], won)
    root, run = judged(tmp_path, {"dpo": found}, comparisons=rows)
    (row,) = [row for row in run.comparisons if row.metric == "win_rate"]
    assert f"{brief(measure_named('win_rate'))} ({amount(row)})" in text_of(root.get_element_by_id("verdict"))
    return told(row)


def test_the_judges_word_is_in_the_verdict_with_its_uncertainty(tmp_path):
    found = verdicts(*[(1.0, 1.0)] * 34, *[(0.0, 0.0)] * 6)
    sentence = told_of(tmp_path / "better", found)
    assert sentence.tone == "better"
    assert sentence.text.startswith("dpo wins 35 points more of 40 comparisons with the reference than sft [")
    worse = told_of(tmp_path / "worse", verdicts(*[(0.0, 0.0)] * 34, *[(1.0, 1.0)] * 6))
    assert worse.tone == "worse" and worse.text.startswith("dpo wins 35 points fewer of 40 comparisons")
    even = told_of(tmp_path / "even", verdicts(*[(1.0, 1.0)] * 21, *[(0.0, 0.0)] * 19))
    assert even.tone == "none" and "no difference shown in wins against the reference" in even.text
    by_place = told_of(tmp_path / "place", verdicts(*[(0.0, 1.0)] * 40))
    assert by_place.tone == "none", "a judge that goes by place alone prefers nobody"


def test_what_asking_took_is_told(tmp_path):
    usage = {"asked": 1200, "prompt_tokens": 104000, "completion_tokens": 1207, "cached": 3, "uncounted": "x"}
    told = "Asking strict took 1,200 replies (104,000 + 1,207 tokens), 3 more kept from earlier (0 + 0 then)."
    assert told in text_of(judged(tmp_path / "one", {"base": FAIR}, usage=usage)[0].get_element_by_id("policies"))
    assert "Asking strict" not in text_of(judged(tmp_path / "other", {"base": FAIR})[0])


def test_without_a_judge_there_is_no_table(tmp_path):
    write_run(tmp_path / "demo")
    assert judge_table(load_run(tmp_path / "demo")) is None
    assert "Verdicts of the judge" not in page(tmp_path / "demo")


@pytest.mark.parametrize("damaged", [{"dpo": None}, {"dpo": {"win_rate": "x", "unreadable": "many"}}, []])
def test_damaged_figures_are_dashes(tmp_path, damaged):
    write_run(tmp_path / "demo")
    results = copy.deepcopy(RESULTS)
    results["evaluation"]["judge"] = {"model": "strict", "policies": damaged}
    write(tmp_path / "demo" / "results.json", results)
    assert "</html>" in page(tmp_path / "demo")
