"""The trainer's end of the wire, which here is a queue in the process."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import torch

WIRE: queue.Queue[torch.Tensor] = queue.Queue()


class Group:
    def __init__(self) -> None:
        self.group = SimpleNamespace(store=1, socket=1)

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        WIRE.put(tensor.clone())


def trainer_init(init_info: dict[str, Any]) -> Group:
    assert init_info["rank_offset"] == 1 and init_info["world_size"] == 2
    return Group()
