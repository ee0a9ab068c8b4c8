"""Packs as vLLM's producer does: by reference, copied when a pack is full or the tensors have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

DEFAULT_PACKED_BUFFER_SIZE_BYTES = 1024**3


def packed_nccl_broadcast_producer(
    iterator: Iterator[Any], group: Any, src: int, post_iter_func: Callable[[Any], torch.Tensor]
) -> None:
    waiting: list[torch.Tensor] = []
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            if waiting:
                group.broadcast(torch.cat(waiting), src)
            return
        waiting.append(post_iter_func(item).contiguous().view(torch.uint8).view(-1))
        if sum(tensor.numel() for tensor in waiting) > DEFAULT_PACKED_BUFFER_SIZE_BYTES:
            group.broadcast(torch.cat(waiting), src)
            waiting = []
