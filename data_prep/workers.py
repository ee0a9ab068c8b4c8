"""A function over many items in several processes, in order; in this process where that would take no longer.

Workers are fresh processes (no state of the parent's, its threads or GPU), are given the function once, and end with
their parent. Layer 1, stdlib only.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from typing import Any, TypeVar

from pipeline.stopping import stop_if_asked

T = TypeVar("T")
S = TypeVar("S")

_CHUNK = 500
_REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
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

    Raises:
        PreemptedError: this process was asked to stop.
    """
    workers = worker_count()
    if workers == 1 or len(items) < worth:
        return [_unless_asked(function, item) for item in items]
    chunks = [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
    with ProcessPoolExecutor(workers, get_context("spawn"), _start, (function,)) as pool:
        with _deaf_children():
            parts = pool.map(_apply, chunks)
        results: list[S] = []
        try:
            for part in parts:
                stop_if_asked("preparing rows")
                results += part
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return results


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started in here hear no request to stop: one to the whole process group is the parent's to act on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    # Starting the tracker unblocks what it blocks for itself; it is started with the first process otherwise.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unless_asked(function: Callable[[T], S], item: T) -> S:
    stop_if_asked("preparing rows")
    return function(item)


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
