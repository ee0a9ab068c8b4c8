"""Whether this process was asked to stop: a flag that a signal sets, and that every long loop looks at. Layer 0.

Loops that change what must be saved agree on it over all ranks first (`runtime.StopRequest`); loops that change
nothing, such as reading rows or measuring, end right where they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import PreemptedError


@dataclass(slots=True)
class StopFlag:
    """One for a process, as signals are."""

    asked: bool = False


FLAG = StopFlag()


def stop_if_asked(doing: str) -> None:
    """End what changes nothing, if a signal asked for it.

    Args:
        doing: what is going on, such as `reading rows`.

    Raises:
        PreemptedError: asked to stop.
    """
    if FLAG.asked:
        raise PreemptedError(f"asked to stop while {doing}; run the same command again to go on")
