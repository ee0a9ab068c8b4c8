"""The drawn lineage: every box and every line there should be, each below what it was made from, none over another."""

from __future__ import annotations

import random
import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from synthetic_run import KEYS, write_run

from evaluation.report import lineage_graph as module
from evaluation.report.lineage_graph import lineage_graph
from evaluation.report.load import Stage, load_run
from evaluation.report.page import render
from evaluation.report.provenance import provenance_from

BASE = "builtin:smollm2-135m-instruct"


def stage(name, kind="sft", parents=(), data=(), key=None):
    """One sealed stage; parents as `(role, stage, key)`."""
    raw = {
        "key": name if key is None else key, "base": {"name": BASE},
        "parents": [{"role": role, "stage": parent, "key": its} for role, parent, its in parents],
        "data": {one: {"sources": [{"path": f"builtin:{one}"}]} for one in data},
    }  # fmt: skip
    return Stage(
        name=name, kind=kind, status="done", reason="", key=raw["key"], seconds=1.0, metrics={},
        provenance=provenance_from(raw), points=(), rollouts=(),
    )  # fmt: skip


def made_from(name, *parents, kind="dpo", data=()):
    return stage(name, kind, [("policy", parent, parent) for parent in parents], data)


WHOLE = [
    stage("sft", data=["sft"]),
    made_from("reward", "sft", kind="reward", data=["preference"]),
    made_from("judge", "sft", kind="reward", data=["preference"]),
    made_from("dpo", "sft", "judge", data=["preference"]),
    stage("ppo", "ppo", [("policy", "sft", "sft"), ("reward_1", "reward", "reward"), ("watched", "judge", "judge")],
          ["prompts"]),
    made_from("evaluation", "sft", "reward", "judge", "dpo", "ppo", kind="evaluation"),
]  # fmt: skip


class Drawn:
    """The boxes and lines of a graph, by their places."""

    def __init__(self, markup):
        self.root = ElementTree.fromstring(str(markup))
        self.width, self.height = (float(part) for part in self.root.get("viewBox").split()[2:])
        self.boxes = {}
        for group in self.root.findall("g"):
            box = group.find("rect")
            left, top, wide, tall = (float(box.get(name)) for name in ("x", "y", "width", "height"))
            label, kind = (text.text for text in group.findall("text"))
            assert (label, kind) not in self.boxes
            self.boxes[label, kind] = (left, top, left + wide, top + tall)
        self.lines = {path.find("title").text: path.get("d") for path in self.root.findall("path")}

    def ends(self, told):
        """Where a line begins and ends."""
        places = re.findall(r"([-\d.]+),([-\d.]+)", self.lines[told])
        return tuple(map(float, places[0])), tuple(map(float, places[-1]))

    def crossings(self):
        """Pairs of straight ends, from the same row to the same row, that change sides."""
        ends = [self.ends(told) for told in self.lines]
        return sum(
            a[0][1] == b[0][1] and a[1][1] == b[1][1] and (a[0][0] - b[0][0]) * (a[1][0] - b[1][0]) < 0
            for a, b in combinations(ends, 2)
        )


def require_order(drawn):
    """All boxes on the page, none over another."""
    for left, top, right, bottom in drawn.boxes.values():
        assert left >= 0 and top >= 0 and right <= drawn.width and bottom <= drawn.height
    for a, b in combinations(drawn.boxes.values(), 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_every_artefact_and_all_that_went_into_it_is_drawn():
    drawn = Drawn(lineage_graph(WHOLE))
    given = {("smollm2-135m-i…", "base model"), *((name, "data") for name in ("sft", "preference", "prompts"))}
    made = {("sft", "policy"), ("reward", "reward model"), ("judge", "reward model"), ("dpo", "policy"),
            ("ppo", "policy"), ("evaluation", "evaluation")}  # fmt: skip
    assert drawn.boxes.keys() == given | made
    assert drawn.lines.keys() == {
        "smollm2-135m-instruct → sft, as base model", "sft → sft, as data",
        *(f"preference → {name}, as data" for name in ("reward", "judge", "dpo")), "prompts → ppo, as data",
        *(f"sft → {name}, as policy" for name in ("reward", "judge", "dpo", "ppo", "evaluation")),
        "judge → dpo, as policy", "reward → ppo, as reward 1", "judge → ppo, as watched",
        *(f"{name} → evaluation, as policy" for name in ("reward", "judge", "dpo", "ppo")),
    }  # fmt: skip
    require_order(drawn)
    assert "dpo from preference, sft, judge" in drawn.root.get("aria-label")


def test_every_line_leads_down_from_foot_to_head():
    drawn = Drawn(lineage_graph(WHOLE))
    for told in drawn.lines:
        (x, y), (to_x, to_y) = drawn.ends(told)
        feet = [((a + c) / 2, d) for a, _, c, d in drawn.boxes.values()]
        heads = [((a + c) / 2, b - 4) for a, b, c, _ in drawn.boxes.values()]
        assert (x, y) in feet and (to_x, to_y) in heads and to_y > y


def test_what_was_given_stands_just_above_what_took_it_first():
    boxes = Drawn(lineage_graph(WHOLE)).boxes
    rows = sorted({box[1] for box in boxes.values()})
    row = {name: rows.index(box[1]) for name, box in boxes.items()}
    assert row["prompts", "data"] == row["ppo", "policy"] - 1 > row["sft", "data"] == 0
    assert row["preference", "data"] == row["reward", "reward model"] - 1


def test_rows_are_ordered_so_that_lines_do_not_cross(monkeypatch):
    """Three pairs of stages whose second halves were made in the wrong order; without sweeps, all of them cross."""
    stages = [
        *(stage(f"sft_{name}") for name in "abc"),
        *(made_from(f"dpo_{name}", f"sft_{name}") for name in "cba"),
    ]
    assert Drawn(lineage_graph(stages)).crossings() == 0
    monkeypatch.setattr(module, "_SWEEPS", 0)
    assert Drawn(lineage_graph(stages)).crossings() > 0


@pytest.mark.parametrize("seed", range(20))
def test_any_lineage_is_drawn_in_order(seed):
    """Up to fifteen stages with parents by chance, some of them of other runs."""
    chance = random.Random(seed)
    names = [f"stage{number}" for number in range(chance.randint(1, 15))]
    stages = []
    for at, name in enumerate(names):
        parents = chance.sample(names[:at], min(at, chance.randint(0, 3)))
        foreign = [("policy", "sft", f"foreign{at}")] if chance.random() < 0.2 else []
        stages.append(stage(name, "dpo", [*(("policy", one, one) for one in parents), *foreign], ["rows"]))
    markup = str(lineage_graph(stages))
    assert len(re.findall('class="node', markup)) >= len(names)
    positions = re.findall(r'<rect x="([-\d.]+)" y="(\d+)"', markup)
    assert len(set(positions)) == len(positions), "no box on another"
    for one in re.findall(r'class="edge" d="M[-\d.]+,(\d+) .*?,(\d+)">', markup):
        assert int(one[0]) < int(one[1])


def test_what_another_run_made_is_said_to_be_so():
    stages = [stage("sft"), stage("dpo", "dpo", [("policy", "sft", "another key")])]
    drawn = Drawn(lineage_graph(stages))
    assert ("sft", "of another run") in drawn.boxes and ("sft", "policy") in drawn.boxes
    (group,) = (each for each in drawn.root.findall("g") if "elsewhere" in each.get("class"))
    assert "not the one of this run" in group.find("title").text


@pytest.mark.parametrize(
    "stages",
    [
        [stage("a", parents=[("policy", "a", "a")])],
        [stage("a", parents=[("policy", "b", "b")]), stage("b", parents=[("policy", "a", "a")])],
        [stage("a", key=""), stage("b", key="", parents=[("policy", "a", "")])],
        [stage("a", parents=[("", "", "")])],
    ],
    ids=["its own parent", "a circle", "no keys", "nothing said"],
)
def test_damaged_manifests_are_drawn_as_far_as_they_go(stages):
    require_order(Drawn(lineage_graph(stages)))


def test_names_are_escaped():
    hostile = "<script>x</script>"
    markup = str(lineage_graph([stage(hostile, data=[hostile])]))
    assert "<script" not in markup and ElementTree.fromstring(markup) is not None


def test_the_page_has_the_graph_and_the_list(tmp_path):
    write_run(tmp_path / "demo")
    run = load_run(tmp_path / "demo")
    text = render(run)
    assert str(lineage_graph(run.stages)) in text and "The same as a list, with keys" in text
    assert f'<code title="{KEYS["sft"]}">{KEYS["sft"][:12]}</code>' in text
    assert lineage_graph([]) == ""
