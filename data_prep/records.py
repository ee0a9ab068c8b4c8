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
class ToolCall:
    """A function that an assistant asks to be called."""

    name: str
    arguments: str = "{}"
    """JSON text of an object, as the row writes it."""
    id: str = ""
    """What the result refers to, where the row says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant turn; its text may then be empty."""
    call_id: str = ""
    """Of a tool turn: the call that it answers; empty where results simply follow their calls in order."""
    tools: tuple[str, ...] = ()
    """On the first turn of a conversation: the functions on offer, each a JSON text {"type": "function", ...}."""


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
    """A conversation to imitate. Ends with an assistant turn; every assistant turn is trained on.

    A single assistant turn is plain text: no chat template touches it, and all of its tokens are trained.
    """

    messages: tuple[Message, ...]
    origin: Origin

    @property
    def is_text(self) -> bool:
        """Whether this is plain text rather than a conversation."""
        return len(self.messages) == 1


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
    label_noise: float | None = None
    """Share of the annotators who would not have chosen this way (a tie counts half), where their votes are known."""
    group: str | None = None
    """Pairs of one group compare answers to one prompt and come from one judgement: not independent of one another."""
    chosen_calls: tuple[ToolCall, ...] = ()
    """Calls that the chosen answer makes; its text may then be empty."""
    rejected_calls: tuple[ToolCall, ...] = ()

    @property
    def chosen_turn(self) -> Message:
        """The chosen answer as the turn that follows the prompt."""
        return Message(role="assistant", content=self.chosen, tool_calls=self.chosen_calls)

    @property
    def rejected_turn(self) -> Message:
        """The rejected answer as the turn that follows the prompt."""
        return Message(role="assistant", content=self.rejected, tool_calls=self.rejected_calls)


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
