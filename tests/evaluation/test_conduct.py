"""What a policy does with harmful, harmless and unanswerable prompts: counted over those prompts alone."""

from __future__ import annotations

from data_prep.build import prompts
from data_prep.records import Message, Origin, Prompt
from evaluation.conduct import conduct
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
