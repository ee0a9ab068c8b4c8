"""Secrets taken out of whatever is printed, logged or recorded. Layer 0, stdlib only.

What counts: the values of environment variables that are named like a secret, tokens of the forms that common services
give out, and passwords in addresses. A recipe that holds one is refused, as it is copied into every run; sentences that
quote something from outside go through here on their way out.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO

MASK = "[secret]"
_NAMED = re.compile(r"(^|_)(TOKEN|(API)?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$", re.IGNORECASE)
_LEAST = 6
"""Shorter values are words and numbers that stand in many a text."""
_FORMS = re.compile(
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{16,}"  # OpenAI and those that took over its form
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}|\bglpat-[A-Za-z0-9_-]{16,}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bAIza[A-Za-z0-9_-]{30,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?!-----END)[\s\S])*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
)
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_BEHIND_NAME = re.compile(
    r"(?i)(?<=[?&])((?:access_|api_?|auth_?)?(?:token|key|secret|password|signature|sig)|X-Amz-Signature)=[^&\s'\"]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic) [A-Za-z0-9._~+/=-]{12,}")


def redacted(text: str) -> str:
    """The text with `[secret]` in the place of each secret."""
    for value in _values():
        text = text.replace(value, MASK)
    text = _FORMS.sub(MASK, text)
    text = _IN_ADDRESS.sub(MASK, text)
    text = _BEHIND_NAME.sub(rf"\1={MASK}", text)
    return _BEARER.sub(rf"\1 {MASK}", text)


def holds_secret(text: str) -> bool:
    """Whether there is a secret in a text."""
    return redacted(text) != text


def redacted_in(value: Any) -> Any:
    """Plain data with every text in it redacted, keys aside."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_in(inner) for key, inner in value.items()}
    return [redacted_in(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def guard_streams() -> None:
    """Let nothing that this process prints through Python pass unredacted, tracebacks and libraries' words included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Redacting):
            setattr(sys, name, _Redacting(stream))


class _Redacting:
    """A text stream that redacts what is written; everything else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)


def _values() -> list[str]:
    """Of the environment's secrets, the longest first, so that none leaves the rest of another behind."""
    found = {
        value
        for name, value in os.environ.items()
        if _NAMED.search(name) and len(value) >= _LEAST and not value.isalpha() and not os.path.exists(value)
    }
    return sorted(found, key=len, reverse=True)
