"""How the supervisors of a launch's ranks agree: the first decides and publishes, the others wait and acknowledge.

They meet at a store over TCP (the launcher's own where it has one), so no shared disk is needed to agree and none
decides by looking. With one process there is nobody to talk to.
"""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import timedelta
from typing import Any

from pipeline.errors import PreemptedError
from pipeline.runtime import Ranks
from pipeline.stopping import FLAG

_PATIENCE = timedelta(days=30)
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 10.0
"""How long a rank that was asked to stop between stages waits for the first to act on it."""


class Peers:
    """The other supervisors of this launch."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._turn = 0
        self._asked = False
        self._store: Any = None
        if ranks.world_size > 1:
            self._store = _connect(ranks)

    def agree(self, decision: dict[str, Any] | None) -> dict[str, Any]:
        """The next decision: given by the first rank, received by all; returns when every rank has it."""
        if self._store is None:
            assert decision is not None
            return decision
        self._turn += 1
        name = f"decision/{self._turn}"
        if self._ranks.is_first:
            self._store.set(name, json.dumps(decision))
        else:
            self._await(name)
        found = dict(json.loads(self._store.get(name)))
        self._store.set(f"heard/{self._turn}/{self._ranks.rank}", "1")
        self._store.wait([f"heard/{self._turn}/{rank}" for rank in range(self._ranks.world_size)], _PATIENCE)
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
        """Say how this rank's worker ended."""
        if self._store is not None:
            self._store.set(f"ended/{self._turn}/{self._ranks.rank}", json.dumps(outcome))
            if outcome["code"]:
                self._store.set(f"failed/{self._turn}", "1")

    def any_failed(self) -> bool:
        """Whether some rank's worker has ended with a fault by now."""
        return self._store is not None and bool(self._store.check([f"failed/{self._turn}"]))

    def outcomes(self) -> dict[int, dict[str, Any]]:
        """How the workers ended that have ended by now, by rank."""
        if self._store is None:
            return {}
        names = {rank: f"ended/{self._turn}/{rank}" for rank in range(self._ranks.world_size)}
        return {rank: json.loads(self._store.get(name)) for rank, name in names.items() if self._store.check([name])}

    def _await(self, name: str) -> None:
        """Wait for the first rank's word, awake to signals, which a blocking call would not be."""
        deadline: float | None = None
        while not self._store.check([name]):
            time.sleep(_POLL_SECONDS)
            if FLAG.asked and deadline is None:
                self.ask_to_stop()
                deadline = time.monotonic() + _ANSWER_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                raise PreemptedError("asked to stop; run the same command again to go on")


def free_port() -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _connect(ranks: Ranks) -> Any:
    from torch.distributed import PrefixStore, TCPStore

    agent_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size=None,
        is_master=ranks.is_first and not agent_serves,
        timeout=_PATIENCE,
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"trivet/{attempt}", store)
