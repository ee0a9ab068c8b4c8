"""An OpenAI-compatible endpoint, asked until it answers: `POST <url>/chat/completions`.

What may pass (too many requests, errors of the server, a broken connection, half a reply) is tried again with growing
pauses; what will not (no access, no such model) ends at once. The key comes from the environment and goes nowhere else.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import RecipeError, SourceUnreachableError

KEY = "TRIVET_JUDGE_KEY"
"""Environment variable with the endpoint's key; without it none is sent."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to ask, and how patiently.

    Args:
        url: up to and without `/chat/completions`, as in `http://127.0.0.1:8000/v1`.
        model: as the server calls it.
        timeout: seconds for one reply.
        attempts: so often a question is put before giving up.
        sleep: waits between attempts.
    """

    url: str
    model: str
    timeout: float
    attempts: int
    sleep: Callable[[float], None] = field(default=time.sleep)

    def reply(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """The text that the model answers with, at temperature 0.

        Raises:
            SourceUnreachableError: the endpoint kept failing; the sentence says how.
            RecipeError: it refuses, for a reason that no further attempt would change.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        failed = ""
        for attempt in range(self.attempts):
            text, failed, pause = self._once(body)
            if text is not None:
                return text
            if attempt + 1 < self.attempts:
                self.sleep(pause if pause is not None else _pause(attempt))
        raise SourceUnreachableError(
            f"evaluation.judge: {self.url} failed {self.attempts} times in a row ({failed}); everything judged so far "
            "is kept: run the same command again when it is back"
        )

    def _once(self, body: Mapping[str, Any]) -> tuple[str | None, str, float | None]:
        """The reply; else what went wrong, and how long the server asked to wait."""
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
        try:
            found = httpx.post(
                f"{self.url.rstrip('/')}/chat/completions", json=body, headers=headers, timeout=self.timeout
            )
        except httpx.HTTPError as error:
            return None, f"{type(error).__name__}: {error}", None
        except httpx.InvalidURL as error:
            raise RecipeError(f"evaluation.judge.url: {self.url} is no address ({error})") from error
        if found.status_code in _PASSING:
            return None, f"HTTP {found.status_code}", _asked_to_wait(found.headers.get("retry-after"))
        if found.status_code != 200:
            raise RecipeError(self._refusal(found.status_code, found.text))
        try:
            text = found.json()["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            return None, "a reply that is not of the expected form", None
        return (text, "", None) if isinstance(text, str) else (None, "a reply without text", None)

    def _refusal(self, code: int, text: str) -> str:
        said = " ".join(text.split())[:200]
        hint = {
            401: f"set the environment variable {KEY} to a valid key",
            403: f"set the environment variable {KEY} to a key with access",
            404: "check evaluation.judge.url (it ends before /chat/completions) and evaluation.judge.model",
        }.get(code, "check evaluation.judge.url and evaluation.judge.model")
        return f"evaluation.judge: {self.url} refuses (HTTP {code}: {said}); {hint}"


def _pause(attempt: int) -> float:
    """1, 2, 4, ... seconds and up to a quarter more, so that many askers do not come back at once."""
    return min(_LONGEST_PAUSE, 2.0**attempt) * (1 + random.random() / 4)


def _asked_to_wait(header: str | None) -> float | None:
    """Seconds of a Retry-After header, bounded; a date, or nonsense, is no answer."""
    try:
        return None if header is None else min(_LONGEST_PAUSE, max(0.0, float(header)))
    except ValueError:
        return None
