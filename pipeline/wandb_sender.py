"""One thing after another in a thread of its own, so that training waits for no service. Layer 2, stdlib only."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

MOST_WAITING = 10_000
"""What may wait before the service is given up: a service that takes nothing must not fill the memory."""


class Sender:
    """Does what it is given in order; the first thing that fails is the last that is tried."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._failure: Exception | None = None
        self._closed = False
        # A daemon: the process ends without waiting for what never comes back.
        threading.Thread(target=self._work, name="sender", daemon=True).start()

    def put(self, action: Callable[[], object]) -> None:
        """Have something done after all that was put before; returns at once.

        Raises:
            Exception: what an earlier action failed with.
            TimeoutError: too much is waiting already.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            if len(self._waiting) >= MOST_WAITING:
                raise TimeoutError(
                    f"it has taken nothing for {MOST_WAITING} lines; `trivet push` sends what is missing"
                )
            self._waiting.append(action)
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait until all that was put is done, for so long at most.

        Raises:
            Exception: what an action failed with.
            TimeoutError: something is still going on.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._failure is not None or not self._waiting, seconds):
                raise TimeoutError(f"no answer within {seconds:.0f} s; `trivet push` sends what is missing")
            if self._failure is not None:
                raise self._failure

    def close(self) -> None:
        """Let the thread end once nothing waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (action := self._next()) is not None:
            failure: Exception | None = None
            try:
                action()
            except Exception as error:
                failure = error
            with self._changed:
                # It counts as waiting until it is done.
                self._waiting.popleft()
                self._failure = failure
                self._changed.notify_all()
            if failure is not None:
                return

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting[0] if self._waiting else None
