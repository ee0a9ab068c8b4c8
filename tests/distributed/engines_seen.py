"""What every engine that DeepSpeed makes has on the host: on ranks without a GPU its tensors would not tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def engines_seen(deepspeed: str, seen: list[list[str]]) -> Iterator[None]:
    """Within the block each engine tells where its parameters lie, whether it offloads its optimiser, and who steps.

    Args:
        deepspeed: of the recipe; nothing is looked at below ZeRO-3.
        seen: takes what each one tells.
    """
    if not deepspeed.startswith("zero3"):
        yield
        return
    import deepspeed as library

    initialise = library.initialize

    def seeing(*args: Any, **kwargs: Any) -> Any:
        made = initialise(*args, **kwargs)
        seen.append(_told(made[0].optimizer))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "initialize", seeing)
        yield


def _told(outer: Any) -> list[str]:
    device = getattr(outer, "parameter_offload", outer).offload_device
    where = [f"parameters={device}", f"optimiser={getattr(outer, 'offload_optimizer', None)}"]
    stepping = getattr(outer, "optimizer", None)
    groups = [] if stepping is None else stepping.param_groups
    return where + sorted({f"{type(stepping).__name__}, fused={group.get('fused')}" for group in groups})
