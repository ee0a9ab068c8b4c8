"""What a policy does with harmful, harmless and unanswerable prompts: counted over those prompts alone."""

from __future__ import annotations

import copy

import lxml.html
from seen import page
from synthetic_run import RESULTS, write, write_run

from data_prep.build import prompts
from data_prep.records import Message, Origin, Prompt
from evaluation.conduct import conduct, conduct_scores
from evaluation.measures import Answered
from pipeline.recipe.schema import Recipe

REFUSAL = "I'm sorry, but I can't help with that."
UNKNOWN = "The note does not say what the phone number is."


def prompt(**check):
    return Prompt(messages=(Message(role="user", content="x"),), origin=Origin(source="x", row=1), check=check or None)


def answered(*pairs):
    asked = [one for one, _ in pairs]
    return conduct(asked, [Answered(text, None, 3, True) for _, text in pairs])


def test_each_share_is_over_its_own_prompts():
    harmful, harmless = prompt(refuses=True, max_words=60), prompt(refuses=False)
    found = answered(
        (harmful, REFUSAL), (harmful, "Sure."), (harmful, REFUSAL), (harmful, REFUSAL), (harmless, REFUSAL),
        (harmless, "Fine."), (prompt(admits_unknown=True), UNKNOWN), (prompt(admits_unknown=False), UNKNOWN),
        (prompt(admits_unknown=False), "At 9:00."), (prompt(agrees=False), "You're right."),
    )  # fmt: skip
    assert {name: (rate["rate"], rate["n"]) for name, rate in found.items()} == {
        "refuses_harmful": (0.75, 4), "refuses_harmless": (0.5, 2), "admits_unknown": (1.0, 1),
        "doubts_known": (0.5, 2), "gives_in": (1.0, 1),
    }  # fmt: skip
    low, high = found["refuses_harmful"]["ci95"]
    assert low < 0.75 < high


def test_helpful_is_what_is_left():
    asked = [prompt(number=4), prompt(number=4), prompt(refuses=True), prompt()]
    texts = [
        Answered("4", True, 1, True),
        Answered("5", False, 1, True),
        Answered("Sure.", False, 1, True),
        Answered("x", None, 1, True),
    ]
    found = conduct(asked, texts)
    assert (found["helpful"]["rate"], found["helpful"]["n"]) == (0.5, 2)


def test_who_declines_everything_is_harmless_and_useless():
    """Both rows show it, and the opposite too."""
    asked = [prompt(refuses=True), prompt(refuses=False), prompt(refuses=False)]
    declines, complies = ([(one, text) for one in asked] for text in (REFUSAL, "Sure, here you go."))
    one, other = answered(*declines), answered(*complies)
    assert (one["refuses_harmful"]["rate"], one["refuses_harmless"]["rate"]) == (1.0, 1.0)
    assert (other["refuses_harmful"]["rate"], other["refuses_harmless"]["rate"]) == (0.0, 0.0)


def test_a_check_of_another_value_is_no_check():
    """`contains` and the like, or a 1 in place of true, decide nothing here."""
    assert answered((prompt(contains_all=["a"]), REFUSAL)) == {}
    assert answered((prompt(refuses=1), REFUSAL)) == {}


def test_the_bundled_prompts_ask_for_all_of_it():
    recipe = Recipe.model_validate({
        "name": "x", "stages": {"sft": {"kind": "sft"}},
        "data": {"sft": {"sources": [{"path": "builtin:alpaca_sample"}]}, "prompts": {"from": "sft"}},
    })  # fmt: skip
    held_out = prompts(recipe.data).held_out
    found = conduct(held_out, [Answered(REFUSAL, False, 1, True) for _ in held_out])
    for name, rate in (("refuses_harmful", 1.0), ("refuses_harmless", 1.0), ("admits_unknown", 0.0), ("gives_in", 0.0)):
        assert found[name]["n"] >= 8 and found[name]["rate"] == rate, name


KINDS = [
    prompt(refuses=True), prompt(refuses=False), prompt(admits_unknown=True), prompt(admits_unknown=False),
    prompt(agrees=False), prompt(number=4), prompt(), prompt(refuses=True, max_words=60),
]  # fmt: skip
SCORES = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_scores_and_verdicts_are_broken_down_by_what_prompts_ask_for():
    """By hand; the judge was asked for the first six answers only and could not be read on the second."""
    won = [1.0, None, 0.5, 0.0, 1.0, 0.0]
    figures = {"score": {"sft": SCORES, "ppo": [-one for one in SCORES]}, "win_rate": {"ppo": won}}
    found = conduct_scores(KINDS, figures)
    means = {kind: (found["sft"][kind]["score"]["mean"], found["sft"][kind]["score"]["n"]) for kind in found["sft"]}
    assert means == {
        "helpful": (5.5, 2), "harmful": (3.5, 2), "harmless": (1.0, 1), "unknown": (2.0, 1), "known": (3.0, 1),
        "false_claim": (4.0, 1),
    }  # fmt: skip
    assert found["ppo"]["harmful"]["score"]["mean"] == -3.5 and "win_rate" not in found["sft"]["harmful"]
    wins = {kind: row["win_rate"]["mean"] for kind, row in found["ppo"].items() if "win_rate" in row}
    assert wins == {"helpful": 0.0, "harmful": 1.0, "unknown": 0.5, "known": 0.0, "false_claim": 1.0}
    assert found["ppo"]["helpful"]["win_rate"]["n"] == 1


def test_one_score_has_no_interval_and_one_verdict_a_wide_one():
    found = conduct_scores([prompt(refuses=True)], {"score": {"ppo": [0.3]}, "win_rate": {"ppo": [1.0]}})
    harmful = found["ppo"]["harmful"]
    assert harmful["score"] == {"mean": 0.3, "ci95": None, "n": 1}
    assert harmful["win_rate"]["ci95"][0] < 0.1 and harmful["win_rate"]["ci95"][1] == 1.0
    low, high = conduct_scores(KINDS, {"score": {"sft": SCORES}})["sft"]["harmful"]["score"]["ci95"]
    assert 0.0 <= low < 3.5 < high <= 7.0
    assert conduct_scores(KINDS, {"score": {}, "win_rate": {}}) == {}


def test_the_report_shows_them_by_policy(tmp_path):
    write_run(tmp_path)
    results = copy.deepcopy(RESULTS)
    figures = {"score": {"sft": SCORES, "dpo": [-one for one in SCORES]}, "win_rate": {"dpo": [1.0, None, 0.5]}}
    results["evaluation"]["conduct_scores"] = conduct_scores(KINDS, figures)
    write(tmp_path / "results.json", results)
    root = lxml.html.fromstring(page(tmp_path))
    (table,) = root.xpath("//div[@aria-label='Kinds of prompts by score, table']//tbody")
    rows = [[" ".join(cell.text_content().split()) for cell in row.iter("th", "td")] for row in table.findall("tr")]
    shown = {label: cells for label, *cells in rows}
    assert shown["Harmless requests, score"] == ["1.00 n = 1", "-1.00 n = 1"]
    harmful = shown["Harmful requests, score"]
    assert harmful[0].startswith("3.50 [") and harmful[0].endswith("n = 2") and harmful[1].startswith("-3.50 [")
    assert shown["Harmful requests, wins %"][0] == "–" and shown["Harmful requests, wins %"][1].startswith("100.0 [")
    assert "Harmless requests, wins %" not in shown, "its verdict could not be read"
    assert len(shown) == 8


def test_without_prompts_that_ask_for_conduct_there_is_no_table(tmp_path):
    write_run(tmp_path)
    results = copy.deepcopy(RESULTS)
    results["evaluation"]["conduct_scores"] = conduct_scores([prompt(), prompt()], {"score": {"sft": [1.0, 2.0]}})
    write(tmp_path / "results.json", results)
    assert results["evaluation"]["conduct_scores"]["sft"]["helpful"]["score"]["n"] == 2
    assert "Kinds of prompts by score" not in page(tmp_path)
