"""What is asked of whatever generates, and what it gives back. Layer 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.errors import TrivetError
from pipeline.runtime import StopRequest

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated response."""

    ids: list[int]
    """Response tokens, the stop token included where there is one."""
    stopped: bool
    """Whether it ended by itself, rather than at the length limit."""
    logps: list[float] | None = None
    """Log-probability of each token as the sampler saw it, where it says so."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    `temperature` None is greedy; otherwise plain sampling from the whole distribution, divided by the temperature.
    """

    max_new_tokens: int
    temperature: float | None = None
    seed: int = 0


class SamplingStopped(TrivetError):
    """Answers were not sampled to the end, as some rank was asked to stop; raised on all of them."""


class Engine(Protocol):
    """Something that answers prompts with the policy as it is now."""

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
    ) -> list[Answer]:
        """One answer per prompt, in the prompts' order, on every rank; every rank must make the same call.

        With `stop`, who is asked goes no further than the batch in hand, and at the end all agree on it, once.

        Raises:
            SamplingStopped: some rank was asked to stop.
        """
        ...


def asked(stop: StopRequest | None) -> bool:
    """Whether this rank is to sample no further; the others are asked too, but perhaps a moment later."""
    return stop is not None and stop.asked


def agree_to_go_on(stop: StopRequest | None) -> None:
    """Agree over the ranks, each done with its answers or asked to stop.

    Raises:
        SamplingStopped: some rank was asked to stop.
    """
    if stop is not None and stop.agreed():
        raise SamplingStopped("asked to stop while answers were sampled")


def cut_at_stop(ids: Sequence[int], stop_ids: Sequence[int], logps: Sequence[float] | None = None) -> Answer:
    """Everything up to and including the first stop token; what follows is padding."""
    end = next((index + 1 for index, token in enumerate(ids) if token in stop_ids), None)
    kept = len(ids) if end is None else end
    return Answer(list(ids[:kept]), end is not None, None if logps is None else list(logps[:kept]))
