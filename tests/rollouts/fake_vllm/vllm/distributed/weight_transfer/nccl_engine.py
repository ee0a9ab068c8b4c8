"""The interface up to vLLM 0.27."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vllm.distributed.weight_transfer import nccl_common
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer


class NCCLTrainerSendWeightsArgs(NamedTuple):
    group: Any
    packed: bool


class NCCLWeightTransferEngine:
    trainer_init = staticmethod(nccl_common.trainer_init)

    @staticmethod
    def trainer_send_weights(iterator: Iterator[Any], trainer_args: NCCLTrainerSendWeightsArgs) -> None:
        assert trainer_args.packed
        packed_nccl_broadcast_producer(iterator, trainer_args.group, 0, lambda item: item[1])
