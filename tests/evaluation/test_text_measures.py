"""Figures of the answers themselves: by hand, and overlap against the libraries' own words."""

from __future__ import annotations

import builtins
import math

import numpy as np
import pytest

from evaluation.overlap import overlap_row
from evaluation.text_measures import distinct, entropy, refusal_rate, repetition, sampled_row
from pipeline.errors import TrivetError


def test_distinct_by_hand():
    """1 2 1 and 1 2: unigrams 1 2 1 1 2, two different; bigrams 12 21 12, two different."""
    answers = [[1, 2, 1], [1, 2]]
    assert distinct(answers, 1) == pytest.approx(2 / 5)
    assert distinct(answers, 2) == pytest.approx(2 / 3)
    assert distinct([[1], []], 2) is None and distinct([], 1) is None
    assert distinct([[1, 2], [3, 4]], 2) == 1.0, "no bigram crosses from one answer to the next"


def test_repetition_is_within_an_answer():
    """1 2 3 4 1 2 3 4 has five 4-grams, one of them twice; the same answer given twice repeats nothing in itself."""
    looped, plain = [1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 5]
    assert repetition([looped]) == pytest.approx(1 / 5)
    assert repetition([looped, plain]) == pytest.approx(1 / 10)
    assert repetition([[7] * 8]) == pytest.approx(4 / 5)
    assert repetition([plain, plain]) == 0.0 and repetition([[1, 2]]) == 0.0 and repetition([]) is None


def test_refusals_are_counted_in_both_languages():
    texts = ["I'm sorry, but I can't help with that.", "抱歉，我无法提供帮助。", "Paris.", "I can't wait to tell you!"]
    assert refusal_rate(texts) == pytest.approx(0.5) and refusal_rate([]) is None


def test_entropy_is_over_tokens_not_over_answers():
    assert entropy([-3.0, -1.0], [1, 3]) == pytest.approx(1.0)
    assert entropy([], []) is None and entropy([0.0], [4]) == 0.0


def test_a_row_has_the_columns_even_without_answers():
    assert sampled_row([]) == {"distinct_1": None, "distinct_2": None, "repetition": None}


pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")


ENGLISH = (
    ["It costs $5.50 &amp; lasts, well-made!", "the cat sat on a mat"],
    ["It costs $5.50 &amp; it is well-made.", "a cat sat on it"],
)
CHINESE = (["我喜欢吃苹果和梨", "今天 very 好"], ["我喜欢吃苹果和香蕉", "今天天气 very 好"])


@pytest.mark.parametrize(("texts", "tokens"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_is_the_librarys_own_in_one_language(texts, tokens):
    from sacrebleu.metrics.bleu import BLEU

    answers, good = texts
    theirs = BLEU(tokenize=tokens).corpus_score(answers, [good]).score / 100
    assert theirs > 0 and overlap_row(answers, good)["bleu"] == pytest.approx(theirs, abs=1e-12)


def test_a_chinese_reference_leaves_the_others_in_their_own_tokens():
    """Counts of n-grams add up over the two languages, each in its own tokens; by one tokenizer they would not."""
    from sacrebleu.metrics.bleu import BLEU

    answers, good = [one + other for one, other in zip(ENGLISH, CHINESE, strict=True)]
    parts = [BLEU(tokenize=t).corpus_score(a, [g]) for (a, g), t in ((ENGLISH, "13a"), (CHINESE, "zh"))]
    counts, totals = (np.sum([getattr(part, name) for part in parts], axis=0) for name in ("counts", "totals"))
    lengths = [sum(getattr(part, name) for part in parts) for name in ("sys_len", "ref_len")]
    brevity = min(1.0, math.exp(1 - lengths[1] / lengths[0]))
    expected = brevity * np.prod(counts / totals) ** 0.25
    assert overlap_row(answers, good)["bleu"] == pytest.approx(expected, abs=1e-9)
    whole = BLEU(tokenize="zh").corpus_score(answers, [good]).score / 100
    assert abs(whole - expected) > 1e-3, "the control: one tokenizer for all gives another figure"


def test_equal_answers_overlap_wholly_and_foreign_ones_not_at_all():
    good = ["the cat sat on the mat today", "北京是中国的首都，人口很多。"]
    same = overlap_row(good, good)
    assert [same[name] for name in ("bleu", "chrf", "rouge_l")] == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    other = overlap_row(["zzz qqq", "乙丙丁"], good)
    assert other["bleu"] == other["rouge_l"] == 0.0 and other["chrf"] < 0.01 and other["overlap_n"] == 2


def test_rouge_by_hand():
    """Longest common run of "a b c d" and "a c d e" is "a c d": precision and recall 3/4. Chinese counts too."""
    assert overlap_row(["A b, c d"], ["a c d e"])["rouge_l"] == pytest.approx(0.75)
    assert overlap_row(["甲乙丙丁"], ["甲丙丁戊"])["rouge_l"] == pytest.approx(0.75)


def test_prompts_without_a_good_answer_count_nowhere():
    assert overlap_row(["a", "b"], [None, None]) == {} and overlap_row(["a", "b"], ["a", None])["overlap_n"] == 1


def test_a_missing_library_is_named_with_what_to_type(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("sacrebleu"):
            raise ModuleNotFoundError("No module named 'sacrebleu'", name="sacrebleu")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TrivetError, match=r"needs sacrebleu.*pip install -e '\.\[eval\]'"):
        overlap_row(["a"], ["a"])
