"""How the balance and the shortcut check cut a text: words between spaces, each Chinese character for itself."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\s\u3400-\u9fff]+")


def opening(text: str, count: int) -> list[str]:
    """The first tokens, casefolded; a text that is over before then shows it by an end mark."""
    found = _TOKEN.findall(text.casefold())[:count]
    return found + ["<end>"] * (count - len(found))


def masked(token: str) -> str:
    """The token with its digits made alike: which number it is tells nothing, that it is one may."""
    return re.sub(r"\d+", "0", token)


def sizes(text: str) -> tuple[int, int]:
    """Characters and words of a text."""
    return len(text), len(text.split())
