"""A judge's reply with the tokens that its server counted, and what all replies together have cost."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model answered with; tokens are None where the server did not count them."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @classmethod
    def counted(cls, text: str, usage: object) -> Reply:
        """A reply with the `usage` that came with it, or that was kept beside it; nonsense counts as not told."""
        told: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
        return cls(
            text=text,
            prompt_tokens=_tokens(told.get("prompt_tokens")),
            completion_tokens=_tokens(told.get("completion_tokens")),
        )

    @property
    def usage(self) -> dict[str, int | None]:
        """What `counted` reads."""
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Sums over replies. What was asked for in an attempt that was interrupted counts as kept in the next."""

    asked: int = 0
    """Replies that the endpoint gave."""
    prompt_tokens: int = 0
    """Of these, as the server counts."""
    completion_tokens: int = 0
    cached: int = 0
    """Replies that were kept from earlier and cost nothing now."""
    cached_prompt_tokens: int = 0
    """What these cost when they were asked for."""
    cached_completion_tokens: int = 0
    uncounted: int = 0
    """Replies, of both kinds, whose tokens the server did not tell: the sums are without them."""
    failed: int = 0
    """Attempts that gave no reply and were made again."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Usage)})

    @property
    def told(self) -> str:
        """In words: `40 replies (5,200 + 40 tokens), 8 more kept from earlier`."""
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens"
        parts = [f"{self.asked:,} {'reply' if self.asked == 1 else 'replies'} ({tokens})"]
        if self.cached:
            earlier = f"{self.cached_prompt_tokens:,} + {self.cached_completion_tokens:,} then"
            parts.append(f"{self.cached:,} more kept from earlier ({earlier})")
        if self.failed:
            parts.append(f"{self.failed:,} failed {'attempt' if self.failed == 1 else 'attempts'}")
        if self.uncounted:
            parts.append(f"tokens of {self.uncounted:,} not told by the server")
        return ", ".join(parts)


class Meter:
    """Sums up what threads that ask at the same time use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = Usage()

    def asked(self, reply: Reply) -> None:
        """Count a reply of the endpoint."""
        prompt, completion = reply.prompt_tokens or 0, reply.completion_tokens or 0
        self._add(Usage(asked=1, prompt_tokens=prompt, completion_tokens=completion, uncounted=_uncounted(reply)))

    def cached(self, reply: Reply) -> None:
        """Count a reply that was kept."""
        prompt, completion = reply.prompt_tokens or 0, reply.completion_tokens or 0
        self._add(
            Usage(
                cached=1, cached_prompt_tokens=prompt, cached_completion_tokens=completion, uncounted=_uncounted(reply)
            )
        )

    def failed(self) -> None:
        """Count an attempt that gave no reply."""
        self._add(Usage(failed=1))

    @property
    def usage(self) -> Usage:
        """Of all so far."""
        return self._sum

    def _add(self, one: Usage) -> None:
        with self._lock:
            self._sum += one


def _uncounted(reply: Reply) -> int:
    return int(reply.prompt_tokens is None or reply.completion_tokens is None)


def _tokens(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value >= 0 else None
