"""Which language a text is in, with a probability: py3langid, whose model of a hundred languages is in its package."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from data_prep.cleaning.texts import without_code, word_count

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_FEWEST_WORDS = 5
"""Names, numbers and single words belong to no language."""


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def known_languages() -> frozenset[str]:
    """Codes that `language` can return."""
    return frozenset(map(str, _identifier().labels))


def language(text: str) -> tuple[str, float] | None:
    """Code and probability of the language most of a text is in; None where it has too few words to tell."""
    plain = re.sub(r"[\d_=+*/<>{}\[\]|#]+", " ", without_code(text))
    if word_count(plain) < _FEWEST_WORDS:
        return None
    code, probability = _identifier().classify(plain)
    return str(code), float(probability)
