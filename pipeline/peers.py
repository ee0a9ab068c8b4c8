"""How the supervisors of a launch's ranks agree: the first decides and publishes, the others wait and acknowledge.

They meet at a store over TCP (the launcher's own where it has one), so no shared disk is needed to agree and none
decides by looking. With one process there is nobody to talk to.

Each counts its own beats there as long as it lives, and the first rank watches all counters, the others its. Who misses
several beats in a row is gone: nobody waits for it any longer. Beats are counted by beats and not by a clock, so that
ranks that are suspended together, or on machines whose clocks differ, are not taken for dead.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pipeline.errors import PreemptedError, TrivetError
from pipeline.runtime import Ranks
from pipeline.stopping import FLAG

_PATIENCE = timedelta(days=30)
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 10.0
"""How long a rank that was asked to stop between stages waits for the first to act on it."""
_FAREWELL_SECONDS = 5.0
"""How long the first rank, which serves the store, waits for the others to have read why it ends."""
_BEAT_SECONDS = 2.0
_MISSED_BEATS = 10
"""In a row, after which a rank is gone. Launchers kill what is left half a minute after a first death: before that the
first rank must have said whose it was."""
_GONE = "gone"


class PeerGone(TrivetError):
    """A rank's supervisor is gone without a word.

    Args:
        rank: which one.
    """

    def __init__(self, rank: int):
        super().__init__(f"rank {rank} {GONE_WITHOUT_A_WORD}")
        self.rank = rank


GONE_WITHOUT_A_WORD = (
    "is gone without a word: its process was killed (out of memory?), or its machine was lost; run the same command "
    "again to go on"
)


class Peers:
    """The other supervisors of this launch; `close` when there is nothing more to say to them.

    Raises:
        PeerGone: from every method, the first rank is gone, or whoever serves the store.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._turn = 0
        self._asked = False
        self._store: Any = None
        self._pulse: _Pulse | None = None
        self._serves = ranks.is_first and not _agent_serves()
        if ranks.world_size > 1:
            self._store = _Store(_connect(ranks, serve=ranks.is_first))
            others = range(1, ranks.world_size) if ranks.is_first else (0,)
            self._pulse = _Pulse(_Store(_connect(ranks, serve=False)), ranks.rank, others)

    def leave(self) -> None:
        """Say that this rank needs the store no more."""
        if self._store is not None:
            self._store.set(_left(self._ranks.rank), "1")

    def close(self) -> None:
        """Beat no longer; where the store goes down with this process, once nobody needs it, or after a while."""
        if self._pulse is None:
            return
        with suppress(PeerGone):
            self.leave()
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while self._serves and time.monotonic() < deadline and self._staying():
                time.sleep(_POLL_SECONDS)
        self._pulse.stop()

    def _staying(self) -> set[int]:
        """Ranks that live and may still ask the store."""
        ranks = range(1, self._ranks.world_size)
        return {rank for rank in ranks if not self._store.check([_left(rank)])} - self.gone()

    def agree(self, decision: dict[str, Any] | None) -> dict[str, Any]:
        """The next decision: given by the first rank, received by all.

        The first rank returns when every rank has it.

        Raises:
            PeerGone: a rank is gone that has not heard it.
        """
        if self._store is None:
            assert decision is not None
            return decision
        self._turn += 1
        name = f"decision/{self._turn}"
        if self._ranks.is_first:
            self._store.set(name, json.dumps(decision))
            self._await_all()
        else:
            self._await(name)
        found = dict(json.loads(self._store.get(name)))
        self._store.set(self._heard(self._ranks.rank), "1")
        return found

    def give_up(self, order: dict[str, Any]) -> None:
        """Publish a last order without waiting for anyone to hear it."""
        if self._store is not None:
            self._turn += 1
            self._store.set(f"decision/{self._turn}", json.dumps(order))

    def ask_to_stop(self) -> None:
        """Let every rank know that this one was asked to stop: all end, or none."""
        if not self._asked and self._store is not None:
            self._store.set("asked", "1")
        self._asked = True

    def asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop."""
        if not self._asked and self._store is not None:
            self._asked = bool(self._store.check(["asked"]))
        return self._asked

    def report(self, outcome: dict[str, Any]) -> None:
        """Say how this rank's worker ended; of faults also which one it was, counted as they were noticed."""
        if self._store is not None:
            order = self._store.add(f"faults/{self._turn}", 1) if outcome["code"] else 0
            self._store.set(f"ended/{self._turn}/{self._ranks.rank}", json.dumps({**outcome, "order": order}))
            if outcome["code"]:
                self._store.set(f"failed/{self._turn}", "1")

    def gone(self) -> frozenset[int]:
        """Ranks whose supervisor is gone, as the first rank has found out; the first itself raises `PeerGone`."""
        if self._pulse is None:
            return frozenset()
        if self._ranks.is_first:
            return self._pulse.silent
        if self._pulse.silent:
            raise PeerGone(0)
        return frozenset(json.loads(self._store.get(_GONE)) if self._store.check([_GONE]) else ())

    def any_failed(self) -> bool:
        """Whether some rank's worker has ended with a fault by now."""
        return self._store is not None and bool(self._store.check([f"failed/{self._turn}"]))

    def outcomes(self) -> dict[int, dict[str, Any]]:
        """How the workers ended that have ended by now, by rank."""
        if self._store is None:
            return {}
        names = {rank: f"ended/{self._turn}/{rank}" for rank in range(self._ranks.world_size)}
        return {rank: json.loads(self._store.get(name)) for rank, name in names.items() if self._store.check([name])}

    def _heard(self, rank: int) -> str:
        return f"heard/{self._turn}/{rank}"

    def _await_all(self) -> None:
        """Wait until every other rank has heard, awake to signals and deaths, which a blocking call would not be."""
        waiting = set(range(1, self._ranks.world_size))
        while waiting := {rank for rank in waiting if not self._store.check([self._heard(rank)])}:
            if lost := waiting & self.gone():
                raise PeerGone(min(lost))
            time.sleep(_POLL_SECONDS)

    def _await(self, name: str) -> None:
        """Wait for the first rank's word, as awake."""
        deadline: float | None = None
        while not self._store.check([name]):
            self.gone()
            time.sleep(_POLL_SECONDS)
            if FLAG.asked and deadline is None:
                self.ask_to_stop()
                deadline = time.monotonic() + _ANSWER_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                raise PreemptedError("asked to stop; run the same command again to go on")


class _Pulse:
    """This rank's beats, and whose beats it misses; over a connection of its own, in a thread of its own.

    Args:
        store: where beats are counted.
        rank: this one.
        watched: whose beats to listen for; one that was never heard has not begun and is not missed.
    """

    def __init__(self, store: _Store, rank: int, watched: Sequence[int]):
        self._store = store
        self._rank = rank
        self._beats = dict.fromkeys(watched, 0)
        self._missed = dict.fromkeys(watched, 0)
        self._stopped = threading.Event()
        self.silent: frozenset[int] = frozenset()
        """Who is gone."""
        self._thread = threading.Thread(target=self._run, name="trivet-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no longer."""
        self._stopped.set()
        self._thread.join(_BEAT_SECONDS)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._store.add(_beats_of(self._rank), 1)
                for rank in self._beats:
                    self._listen(rank)
                silent = frozenset(rank for rank, missed in self._missed.items() if missed >= _MISSED_BEATS)
                if silent != self.silent:
                    self.silent = silent
                    if self._rank == 0:
                        self._store.set(_GONE, json.dumps(sorted(silent)))
                self._stopped.wait(_BEAT_SECONDS)
        except PeerGone:
            # The store is gone, and with it whoever serves it.
            if self._rank:
                self.silent = frozenset({0})

    def _listen(self, rank: int) -> None:
        beats = self._store.add(_beats_of(rank), 0)
        self._missed[rank] = self._missed[rank] + 1 if beats and beats == self._beats[rank] else 0
        self._beats[rank] = beats


def _beats_of(rank: int) -> str:
    return f"beats/{rank}"


class _Store:
    """What is used here of torch's store; one that does not answer any more went down with the first rank's machine."""

    def __init__(self, store: Any):
        self._store = store

    def get(self, name: str) -> Any:
        return self._asked("get", name)

    def set(self, name: str, value: str) -> None:
        self._asked("set", name, value)

    def add(self, name: str, number: int) -> int:
        return int(self._asked("add", name, number))

    def check(self, names: list[str]) -> bool:
        return bool(self._asked("check", names))

    def _asked(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._store, method)(*arguments)
        except RuntimeError as error:
            raise PeerGone(0) from error


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _left(rank: int) -> str:
    return f"left/{rank}"


def _agent_serves() -> bool:
    """Whether the launcher serves the store, and not the first rank."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connect(ranks: Ranks, *, serve: bool) -> Any:
    from torch.distributed import PrefixStore, TCPStore

    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size=None,
        is_master=serve and not _agent_serves(),
        timeout=_PATIENCE,
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"trivet/{attempt}", store)
