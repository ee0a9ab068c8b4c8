"""The records that raw rows become: one frozen type per kind of data, the same whatever file they came from.

Readers make them, `split` and `clean` select among them, `chat` turns them into token ids. Layer 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a record comes from: enough to find the row again, and what its author said about it."""

    source: str
    """Path, hub id or `builtin:` name, as the recipe writes it (for a folder: the file inside it)."""
    row: int
    """1-based: the line of a JSON Lines or CSV file (header = line 1), the element of a JSON array or table."""
    split: Split | None = None
    """Set when the row itself names its split; otherwise the hash of its prompt decides."""
    family: str | None = None
    """Task family, where the row names one: results are broken down by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A conversation to imitate. Ends with an assistant turn; every assistant turn is trained on."""

    messages: tuple[Message, ...]
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt, the first of them preferred. `prompt` ends with a user (or tool) turn."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    origin: Origin
    margin: float | None = None
    """By how much chosen is better, where annotators said so (same unit as a score)."""
    fault: str | None = None
    """What is wrong with the rejected answer, where the row says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt to sample answers for, with the rule that tells right from wrong where there is one."""

    messages: tuple[Message, ...]
    origin: Origin
    check: Mapping[str, Any] | None = field(default=None, hash=False)
    """A rule for `data_prep.checks.passes`, or None when only a person or a model can judge."""
    reference: str | None = None
    """A good answer, where the data has one."""


Record = Demonstration | PreferencePair | Prompt
