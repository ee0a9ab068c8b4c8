"""An OpenAI-compatible endpoint, asked until it answers: `POST <url>/chat/completions`.

What may pass (too many requests, errors of the server, a broken connection, half a reply) is tried again with growing
pauses; what will not (no access, no such model) ends at once. The key comes from the environment and goes nowhere else.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.judging.usage import Meter, Reply
from pipeline.errors import RecipeError, SourceUnreachableError
from pipeline.recipe.schema import JudgeSettings

KEY = "TRIVET_JUDGE_KEY"
"""Environment variable with the endpoint's key; without it none is sent."""
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_PAUSE = 60.0
_SAID_ANEW = 15.0
"""Seconds after which a line that says the same is printed again."""
Say = Callable[[str], None]


class _Notices:
    """Says each line once for all who ask at the same time: they fail alike."""

    def __init__(self, say: Say):
        self._say = say
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        with self._lock:
            is_new = now - self._said.get(text, -_SAID_ANEW) >= _SAID_ANEW
            if is_new:
                self._said[text] = now
        if is_new:
            self._say(text)


def say_nothing(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to ask, and how patiently.

    Args:
        url: up to and without `/chat/completions`, as in `http://127.0.0.1:8000/v1`.
        model: as the server calls it.
        timeout: seconds for one reply, from the question to its last byte.
        attempts: so often a question is put before giving up.
        sleep: waits between attempts; unsaid, as long as somebody waits for the reply.
        notice: is told of every attempt that failed.
        meter: sums up what is used.
    """

    url: str
    model: str
    timeout: float
    attempts: int
    sleep: Callable[[float], object] | None = None
    notice: Say = field(default=say_nothing)
    meter: Meter = field(default_factory=Meter)
    _left: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, settings: JudgeSettings, say: Say = say_nothing) -> Endpoint:
        """The one of a recipe, which says what it waits for."""
        return cls(
            url=settings.url, model=settings.model, timeout=settings.timeout, attempts=settings.attempts,
            notice=_Notices(say),
        )  # fmt: skip

    def leave(self) -> None:
        """Put no question again: nobody waits for the reply any more."""
        self._left.set()

    def reply(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> Reply:
        """What the model answers with, at temperature 0.

        Raises:
            SourceUnreachableError: the endpoint kept failing; the sentence says how.
            RecipeError: it refuses, for a reason that no further attempt would change.
        """
        body = {"model": self.model, "messages": list(messages), "temperature": 0, "max_tokens": max_tokens}
        failed = ""
        for attempt in range(self.attempts):
            reply, failed, pause = self._once(body)
            if reply is not None:
                self.meter.asked(reply)
                return reply
            self.meter.failed()
            if attempt + 1 < self.attempts:
                self.notice(f"judge {self.url}: {failed}; asking again, attempt {attempt + 2} of {self.attempts}")
                (self.sleep or self._left.wait)(_pause(attempt) if pause is None else pause)
            if self._left.is_set():
                break
        raise SourceUnreachableError(
            f"evaluation.judge: {self.url} failed {self.attempts} times in a row ({failed}); everything judged so far "
            "is kept: run the same command again when it is back"
        )

    def _once(self, body: Mapping[str, Any]) -> tuple[Reply | None, str, float | None]:
        """The reply; else what went wrong, and how long the server asked to wait."""
        import httpx

        try:
            code, content, wait = self._post(body)
        except httpx.TimeoutException as error:
            return None, f"no reply within {self.timeout:g} s ({type(error).__name__})", None
        except httpx.HTTPError as error:
            return None, f"{type(error).__name__}: {error}", None
        except httpx.InvalidURL as error:
            raise RecipeError(f"evaluation.judge.url: {self.url} is no address ({error})") from error
        if code in _PASSING:
            return None, f"HTTP {code}", _asked_to_wait(wait)
        if code != 200:
            raise RecipeError(self._refusal(code, content.decode("utf-8", "replace")))
        try:
            found = json.loads(content)
            text = found["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            return None, "a reply that is not of the expected form", None
        if not isinstance(text, str):
            return None, "a reply without text", None
        return Reply.counted(text, found.get("usage")), "", None

    def _post(self, body: Mapping[str, Any]) -> tuple[int, bytes, str | None]:
        """Status, content and Retry-After of a reply that is whole in time.

        httpx bounds each read: a server that sends a byte now and then would be waited for without end.
        """
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
        address, content = f"{self.url.rstrip('/')}/chat/completions", bytearray()
        until = time.monotonic() + self.timeout
        with httpx.stream("POST", address, json=body, headers=headers, timeout=self.timeout) as found:
            for part in found.iter_bytes():
                content += part
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the reply did not end in time")
            return found.status_code, bytes(content), found.headers.get("retry-after")

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
