"""Rows in several processes: in order, and not broken off by a signal that was meant for the parent."""

from __future__ import annotations

import os
import signal

from data_prep.workers import mapped


def signalled(item: int) -> int:
    """As when Slurm signals every process of a step."""
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    return -item


def test_workers_do_not_hear_requests_to_stop(monkeypatch):
    monkeypatch.setenv("TRIVET_DATA_WORKERS", "2")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert mapped(signalled, range(600), worth=1) == [-item for item in range(600)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before, "the parent still does"
