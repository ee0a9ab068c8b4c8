"""How far answers share their words with given good ones: BLEU and chrF by sacrebleu, ROUGE-L by rouge-score.

Cheap and weak: a right answer in other words scores low. Only for prompts whose data has a good answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pipeline.errors import TrivetError

_CJK = "㐀-䶿一-鿿豈-﫿"
_TOKENS = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def overlap_row(answers: Sequence[str], references: Sequence[str | None]) -> dict[str, Any]:
    """`bleu` and `chrf` of all answers together and the mean `rouge_l`, each from 0 to 1; empty without references.

    Args:
        answers: greedy ones.
        references: a good answer to each prompt, None where the data has none.

    Raises:
        TrivetError: the extra `eval` is not installed.
    """
    known = [(answer, reference) for answer, reference in zip(answers, references, strict=True) if reference]
    if not known:
        return {}
    found, good = [answer for answer, _ in known], [reference for _, reference in known]
    require_libraries()
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    rouge = [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in known]
    return {
        "bleu": BLEU(tokenize="none", force=True).corpus_score(*_divided(found, good)).score / 100,
        "chrf": CHRF().corpus_score(found, [good]).score / 100,
        "rouge_l": sum(rouge) / len(rouge),
        "overlap_n": len(known),
    }


def _divided(answers: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Both in tokens with spaces between them, each pair as its reference wants it.

    Chinese has no spaces: where the reference has any, characters count one by one, and everywhere else the usual 13a.
    One Chinese reference so leaves the others' figures as they are.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    usual, chinese = Tokenizer13a(), TokenizerZh()
    by = [chinese if re.search(f"[{_CJK}]", reference) else usual for reference in references]
    # Both leave white space at the end to whoever calls them.
    divided = [
        [tokens(text.rstrip()) for tokens, text in zip(by, texts, strict=True)] for texts in (answers, references)
    ]
    return divided[0], [divided[1]]


def require_libraries() -> None:
    """Say early that the extra is missing, before any answer has been generated.

    Raises:
        TrivetError: naming what is not installed and what to type.
    """
    try:
        import rouge_score  # noqa: F401
        import sacrebleu  # noqa: F401
    except ImportError as error:
        raise TrivetError(
            f"evaluation.tasks: overlap needs {error.name}, which is not installed; `pip install -e '.[eval]' -c "
            "constraints.txt` brings it, or take overlap out of the list"
        ) from error


class _Words:
    """Words in lower case, Chinese character by character: the library's own splitting drops all but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        """The tokens in order."""
        return _TOKENS.findall(text.lower())
