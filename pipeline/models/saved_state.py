"""State of optimisers and engines, read from a checkpoint as numbers: nothing that was put among them is run.

DeepSpeed saves a few objects of its own besides tensors and reads its files with an unpickler that runs what it is
told to. Here torch's careful one reads them, which is told those few by name. Layer 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint
from pipeline.recipe.engines import Engine


@contextmanager
def state_being_read(found: Path | None, engine: Engine) -> Iterator[None]:
    """While state is loaded from a checkpoint, by whichever library.

    Args:
        found: the checkpoint, or None where a stage begins.
        engine: that wrote it, and reads it.

    Raises:
        TrivetError: the checkpoint holds more than numbers; nothing of it has run.
    """
    with checkpoint.being_read(found):
        if engine.kind == "deepspeed":
            with torch.serialization.safe_globals(_of_deepspeed()):
                yield
        else:
            yield


def _of_deepspeed() -> list[Any]:
    """What ZeRO's files hold besides torch's types: plain records, whose making does nothing else."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
