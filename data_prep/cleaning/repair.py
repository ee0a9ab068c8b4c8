"""Broken Unicode and control characters, repaired by ftfy. Quotes, ligatures and full-width signs stay as written."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftfy import TextFixerConfig


@cache
def _config() -> TextFixerConfig:
    from ftfy import TextFixerConfig

    # What is off would change texts that are in order: full-width punctuation is right in Chinese, entities in code.
    return TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        normalization=None,
        explain=False,
    )


def repaired(text: str) -> str:
    """The text with mojibake decoded, and terminal escapes, stray surrogates and control characters removed."""
    if text.isascii() and text.isprintable():
        return text
    from ftfy import fix_text

    return fix_text(text, _config())
