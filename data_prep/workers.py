"""A function over many items in several processes, in order; in this process where that would take no longer.

Workers are fresh processes (no state of the parent's, its threads or GPU), are given the function once, and end with
their parent. Layer 1, stdlib only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

T = TypeVar("T")
S = TypeVar("S")

_CHUNK = 500
_function: Callable[[Any], Any] | None = None


def worker_count() -> int:
    """Cores of this machine divided by the processes that share it; `TRIVET_DATA_WORKERS` overrides."""
    if chosen := os.environ.get("TRIVET_DATA_WORKERS"):
        return max(1, int(chosen))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def mapped(function: Callable[[T], S], items: Sequence[T], worth: int) -> list[S]:
    """The function's results, in order.

    Args:
        function: can be pickled, needs nothing but its argument.
        items: that it is applied to.
        worth: number of items from which workers repay the time to start them.
    """
    workers = worker_count()
    if workers == 1 or len(items) < worth:
        return [function(item) for item in items]
    chunks = [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (function,)) as pool:
        return [result for results in pool.map(_apply, chunks) for result in results]


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, workers of a parent that was killed wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _apply(chunk: Sequence[Any]) -> list[Any]:
    assert _function is not None
    return [_function(item) for item in chunk]
