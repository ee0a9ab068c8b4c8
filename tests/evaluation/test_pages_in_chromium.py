"""Reports and comparisons in a real browser, where one is installed: on a phone, in the dark, on paper."""

from __future__ import annotations

import json

import pytest
from synthetic_ppo import write_ppo_run
from synthetic_run import write_run
from test_seeds import seeded

from benchmarks.chromium import find_chromium, open_tab
from benchmarks.pages import PAPER, WIDTHS, look, sticking_out
from evaluation.comparison import compare_runs
from evaluation.comparison.page import comparison_page
from evaluation.report import write_report

CHROMIUM = find_chromium()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")]


def fill_in_measures(results):
    """Give every policy the measures of a run with two reward models: no table of policies has more columns."""
    found = json.loads(results.read_text())
    for row in found["evaluation"]["policies"].values():
        row |= {"score_heldout": -0.274, "score_heldout_n": 48, "score_heldout_ci95": [-0.613, -0.152]}
        row |= dict.fromkeys(("entropy", "repetition", "distinct_1", "distinct_2", "refusal_rate"), 0.473)
    results.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "demo")
    write_ppo_run(folder / "ppo")
    runs = [seeded(folder / "runs" / name, seed) for name, seed in (("a", 1), ("b", 2))]
    (folder / "compare.html").write_text(comparison_page(compare_runs(runs)), encoding="utf-8")
    fill_in_measures(folder / "ppo" / "results.json")
    (folder / "wide.html").write_text(comparison_page(compare_runs([folder / "ppo"])), encoding="utf-8")
    return [write_report(folder / "demo"), write_report(folder / "ppo"), folder / "compare.html", folder / "wide.html"]


@pytest.fixture(scope="module")
def tab():
    with open_tab(CHROMIUM) as found:
        yield found


def test_nothing_sticks_out_on_a_phone_a_screen_or_paper(pages, tab):
    for page in pages:
        for width, media in (*((width, "screen") for width in WIDTHS), (320, "screen"), (PAPER, "print")):
            tab.show(page, width, media=media)
            assert sticking_out(tab) == [], (page.name, width, media)


def test_what_sticks_out_would_be_found(pages, tab, tmp_path):
    """The control: a table outside of what can be scrolled, and the style sheet without its rules for paper."""
    text = pages[1].read_text(encoding="utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(text.replace('class="wide"', ""), encoding="utf-8")
    tab.show(bare, 320)
    assert any(one.startswith("t") for one in sticking_out(tab))


def colour(tab, name, of="body"):
    return tab.value(f"getComputedStyle(document.querySelector('{of}')).getPropertyValue('{name}')")


def test_the_dark_page_is_dark(pages, tab):
    for scheme, ground, ink in (
        ("light", "rgb(255, 255, 255)", "rgb(28, 33, 38)"),
        ("dark", "rgb(20, 24, 28)", "rgb(228, 232, 236)"),
    ):
        tab.show(pages[0], 1280, scheme=scheme)
        assert (colour(tab, "background-color"), colour(tab, "color")) == (ground, ink)


def test_on_a_phone_rows_of_words_are_cards(pages, tab):
    for width, shown in ((390, "none"), (1280, "table-header-group")):
        tab.show(pages[0], width)
        assert colour(tab, "display", ".cards thead") == shown
    tab.show(pages[0], 390)
    assert tab.value("getComputedStyle(document.querySelector('.cards td'), '::before').content") != "none"


def test_paper_has_no_navigation_and_nothing_to_scroll(pages, tab):
    for page in pages:
        tab.show(page, PAPER, media="print")
        assert colour(tab, "display", "nav") == "none"
        assert tab.value("[...document.querySelectorAll('.wide')].every(e => e.scrollWidth <= e.clientWidth + 1)")
        tab.show(page, PAPER)
        assert colour(tab, "display", "nav") == "flex"


def test_no_page_asks_for_anything_outside_itself(pages, tab):
    for page in pages:
        tab.show(page, 1280)
        assert tab.value("performance.getEntriesByType('resource').length") == 0
        assert tab.value("document.scripts.length") == 0


def test_pictures_and_a_pdf_are_left_to_look_at(pages, tab, tmp_path):
    assert look(tab, pages[0], tmp_path / "seen") == []
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "seen").iterdir()}
    assert set(pictures) == {*(f"{w}-{s}.png" for w in WIDTHS for s in ("light", "dark")), "paper.pdf"}
    assert pictures.pop("paper.pdf").startswith(b"%PDF-")
    for name, picture in pictures.items():
        wide, tall = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
        assert wide == int(name.split("-")[0]) and tall > 900, "all of the page, not only what the window shows"
    assert pictures["390-light.png"] != pictures["390-dark.png"]
