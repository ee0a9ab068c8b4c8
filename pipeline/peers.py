"""How the supervisors of a launch's ranks agree: the first decides and publishes, the others wait and acknowledge.

They meet at a store over TCP (the launcher's own where it has one), so no shared disk is needed to agree and none
decides by looking. With one process there is nobody to talk to.
"""

from __future__ import annotations

import json
import os
import socket
from datetime import timedelta
from typing import Any

from pipeline.runtime import Ranks

_PATIENCE = timedelta(days=30)


class Peers:
    """The other supervisors of this launch."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._turn = 0
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
        found = dict(json.loads(self._store.get(name)))
        self._store.set(f"heard/{self._turn}/{self._ranks.rank}", "1")
        self._store.wait([f"heard/{self._turn}/{rank}" for rank in range(self._ranks.world_size)], _PATIENCE)
        return found

    def give_up(self, order: dict[str, Any]) -> None:
        """Publish a last order without waiting for anyone to hear it."""
        if self._store is not None:
            self._turn += 1
            self._store.set(f"decision/{self._turn}", json.dumps(order))

    def report(self, outcome: dict[str, Any]) -> None:
        """Say how this rank's worker ended."""
        if self._store is not None:
            self._store.set(f"ended/{self._turn}/{self._ranks.rank}", json.dumps(outcome))

    def outcomes(self) -> dict[int, dict[str, Any]]:
        """How the workers ended that have ended by now, by rank."""
        if self._store is None:
            return {}
        names = {rank: f"ended/{self._turn}/{rank}" for rank in range(self._ranks.world_size)}
        return {rank: json.loads(self._store.get(name)) for rank, name in names.items() if self._store.check([name])}


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
