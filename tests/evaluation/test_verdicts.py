"""No sentence claims a difference that its interval does not show, whatever was measured."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.compare import differences
from evaluation.comparison import words as comparison_words
from evaluation.intervals import bootstrap_mean_ci
from evaluation.report import load, words
from evaluation.report.measures import LEAST_PROMPTS, measure_named

METRICS = ("rule_accuracy", "score", "score_heldout", "win_rate", "perplexity", "kl_to_reference", "response_tokens")
CLAIMS = {"better", "worse", "changed"}
WORDS = (" more ", " fewer ", " higher ", " lower ")
figures = st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 3))


def sentence(metric, difference, bounds, n=40):
    row = {"metric": metric, "from": "before", "to": "after", "difference": difference, "ci95": bounds, "n": n}
    return words.told(load._comparison(row))


@settings(max_examples=300, deadline=None)
@given(metric=st.sampled_from(METRICS), ends=st.tuples(figures, figures), share=st.floats(0, 1))
def test_a_claim_needs_an_interval_without_zero(metric, ends, share):
    low, high = sorted(ends)
    found = sentence(metric, low + share * (high - low), [low, high])
    if low <= 0 <= high:
        assert found.tone == "none" and "no difference shown" in found.text
        assert not any(word in found.text for word in WORDS)
    else:
        assert found.tone in CLAIMS and "no difference" not in found.text
        better = measure_named(metric).better
        assert found.tone == ("changed" if better == 0 else "better" if (low > 0) == (better > 0) else "worse")
        assert any(word in found.text for word in WORDS)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), gap=st.floats(-1, 1), n=st.integers(2, 40))
def test_from_the_prompts_to_the_sentence(seed, gap, n):
    """Two policies' own scores go in; the sentence is decided by the interval of their differences, by its sign, and
    by whether there are prompts enough.
    """
    draw = np.random.default_rng(seed)
    before = draw.normal(0, 1, n)
    after = before + gap + draw.normal(0, 1, n)
    (row,) = differences("score", [("a", "b")], {"a": before.tolist(), "b": after.tolist()})
    found = sentence("score", row["difference"], row["ci95"], row["n"])
    own = bootstrap_mean_ci(after - before)
    shown = n >= LEAST_PROMPTS and (own.low > 0 or own.high < 0)
    assert (found.tone in ("better", "worse")) == shown
    if shown:
        assert (found.tone == "better") == ((after - before).mean() > 0)


def test_fewer_prompts_than_the_least_show_nothing():
    """Report and comparison share the number; at it, the same interval is a claim."""
    assert comparison_words.LEAST_PROMPTS == LEAST_PROMPTS
    few, enough = (sentence("score", 0.5, [0.4, 0.6], n) for n in (LEAST_PROMPTS - 1, LEAST_PROMPTS))
    assert few.tone == "none" and "over 9 prompts; fewer than 10 show nothing" in few.text
    assert not any(word in few.text.partition("(")[0] for word in WORDS)
    assert enough.tone == "better" and " higher " in enough.text


def test_without_an_interval_the_sentence_says_so():
    found = sentence("score", 0.5, None)
    assert found.tone == "unsure" and "uncertainty not measured" in found.text
