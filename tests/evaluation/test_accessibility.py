"""Rules that readers with a screen reader, a keyboard or weak eyes depend on, checked on whole pages and on colours."""

from __future__ import annotations

import re
from pathlib import Path

import lxml.html
import pytest
from seen import page
from synthetic_ppo import write_ppo_run
from synthetic_run import write_run
from test_comparison_curves import log
from test_seeds import seeded

import evaluation.report
from evaluation.comparison import compare_runs
from evaluation.comparison.page import comparison_page

TEMPLATES = Path(evaluation.report.__file__).parent / "templates"
READABLE, VISIBLE = 4.5, 3.0
"""WCAG 2.2: contrast of text (1.4.3) and of what carries meaning without being text (1.4.11)."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "demo")
    write_ppo_run(folder / "ppo")
    runs = [seeded(folder / "runs" / name, seed) for name, seed in (("a", 1), ("b", 2))]
    for run in runs:
        log(run, "dpo", ("train", "loss", {1: 0.7, 2: 0.6}), ("train", "odd", {1: 7.0}))
    texts = [page(folder / "demo"), page(folder / "ppo"), comparison_page(compare_runs(runs))]
    return [lxml.html.fromstring(text) for text in texts]


def faults(root):
    """What is wrong with a page, by the rules below."""
    found = []
    if not root.get("lang"):
        found.append("the page names no language")
    levels = [int(element.tag[1]) for element in root.iter("h1", "h2", "h3", "h4", "h5")]
    found += [f"h{b} follows h{a}" for a, b in zip([0, *levels], levels, strict=False) if b > a + 1]
    if levels.count(1) != 1:
        found.append(f"{levels.count(1)} headings of the first level")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    found += [f"id {name} twice" for name in set(ids) if ids.count(name) > 1]
    found += [
        f"{name} points to nothing: {value}"
        for name in ("aria-labelledby", "aria-describedby", "href")
        for element in root.iter()
        if isinstance(element.tag, str) and (value := element.get(name))
        if value.removeprefix("#") not in ids and (name != "href" or value.startswith("#"))
    ]
    found += [f"an {e.tag} without a name" for e in root.iter("svg", "nav") if not e.get("aria-label")]
    found += ["a table head without scope" for head in root.iter("th") if head.get("scope") not in ("col", "row")]
    for element in root.iter():
        if isinstance(element.tag, str) and element.get("tabindex") == "0":
            named = element.get("aria-label") or element.get("aria-labelledby")
            if element.get("role") != "region" or not named:
                found.append("something takes the keyboard's focus without saying what it is")
    regions = [e for e in root.iter("section", "nav", "div") if e.tag != "div" or e.get("role") == "region"]
    names = [_name(root, element) for element in regions]
    found += [f"two regions of one name: {name}" for name in sorted(set(names)) if names.count(name) > 1]
    found += ["a link without words" for link in root.iter("a") if not link.text_content().strip()]
    return found


def _name(root, element):
    """What a screen reader calls it."""
    heads = [e for e in root.iter() if e.get("id") and e.get("id") == element.get("aria-labelledby")]
    return element.get("aria-label") or " ".join(head.text_content().strip() for head in heads)


def test_pages_are_without_faults(pages):
    for root in pages:
        assert faults(root) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: root.attrib.pop("lang"), "no language"),
        (lambda root: setattr(next(root.iter("h2")), "tag", "h4"), "h4 follows h1"),
        (lambda root: next(root.iter("svg")).attrib.pop("aria-label"), "svg without a name"),
        (lambda root: next(root.iter("th")).attrib.pop("scope"), "without scope"),
        (lambda root: next(root.iter("section")).set("aria-labelledby", "nowhere"), "points to nothing"),
        (lambda root: next(root.iter("section")).set("id", "samples"), "twice"),
        (
            lambda root: [e.set("aria-label", "same") for e in root.iter("nav", "section")],
            "two regions of one name: same",
        ),
    ],
)
def test_a_fault_would_be_found(tmp_path, change, said):
    """The control, for each rule."""
    write_run(tmp_path / "demo")
    root = lxml.html.fromstring(page(tmp_path / "demo"))
    change(root)
    assert any(said in fault for fault in faults(root)), faults(root)


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG's ratio, from 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def palettes():
    """The colours of the light page and of the dark one."""
    text = (TEMPLATES / "style.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    return [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in blocks]


TEXT = [
    *((ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "panel")),
    *((ink, ground) for ink in ("good", "bad", "mild") for ground in ("paper", "panel", f"{ink}-back")),
    *(("ink", f"{ground}-back") for ground in ("good", "bad", "mild")),
]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(scheme):
    colours = palettes()[scheme]
    weak = {pair: contrast(*(colours[name] for name in pair)) for pair in TEXT}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < READABLE} == {}
    lines = {name: contrast(colours[name], colours["paper"]) for name in ("train", "eval", "other")}
    assert {name: ratio for name, ratio in lines.items() if ratio < VISIBLE} == {}


def test_contrast_by_hand():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
