"""This process among its peers: ranks, stop requests, arithmetic precision, what it ran on. Layer 2."""

from __future__ import annotations

import os
import platform
import random
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

from pipeline.errors import TrivetError
from pipeline.stopping import FLAG

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: the folder that holds `pipeline`, `recipes` and `ds_configs`."""

PARENT = "TRIVET_PARENT"
"""Environment variable by which a supervisor tells its worker its own process id."""
_RECORDED_LIBRARIES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "deepspeed",
    "bitsandbytes", "wandb",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where this process stands among those of the launch."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> Ranks:
        """As torchrun and accelerate announce it; one process without a launcher."""
        rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
        return cls(rank, local_rank, int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def is_first(self) -> bool:
        """Whether this process speaks, writes and decides for all."""
        return self.rank == 0


class StopRequest:
    """A signal that asks to stop sets a flag; loops look at it between steps, where state can be saved whole."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Take over SIGTERM, SIGINT and SIGUSR1; a second Ctrl-C ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = FLAG.asked = True

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop; every rank calls this at the same point and gets one answer."""
        if not _is_distributed():
            return self.asked
        import torch

        flag = torch.tensor([float(self.asked)], device=_collective_device())
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


def resolve_precision(setting: str) -> str:
    """`auto` becomes bf16 where the hardware computes faster in it, else fp32; anything else stands.

    Raises nothing: bf16 on hardware without it is slow, not wrong.
    """
    if setting != "auto":
        return setting
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    maker, flags = _cpu()
    # Intel's processors without AMX know bf16's products too, and take twice as long for them as for float32's.
    knows = {"amx_bf16"} if maker == "GenuineIntel" else {"amx_bf16", "avx512_bf16"}
    return "bf16" if knows & flags else "fp32"


def autocast(precision: str, *, cache: bool = True) -> Any:
    """Context in which a forward pass computes in the given precision.

    Args:
        precision: bf16, fp16 or fp32.
        cache: keep a trained weight in the shorter type until the context ends, instead of casting it for each use.
    """
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes.get(precision, torch.bfloat16)
    return torch.autocast(kind, dtype=dtype, enabled=precision in dtypes, cache_enabled=cache)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch, so that what follows does not depend on what ran before."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def barrier() -> None:
    """Wait for every rank."""
    if _is_distributed():
        import torch

        torch.distributed.barrier()


def gather_lists(mine: list[T]) -> list[T]:
    """Concatenate the ranks' lists on every rank; element i of the whole must be element i // W of rank i % W."""
    if not _is_distributed():
        return mine
    import torch

    parts: list[list[T]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, mine)
    longest = max(map(len, parts))
    return [part[index] for index in range(longest) for part in parts if index < len(part)]


def gather_rows(mine: Mapping[int, T]) -> list[T]:
    """What each rank found by row, in the order of rows, on every rank."""
    everywhere = dict(gather_lists(list(mine.items())))
    return [everywhere[row] for row in sorted(everywhere)]


def equally_many(batches: list[T], filler: T) -> list[T]:
    """This rank's batches and its last one again, until every rank has as many, as a model spread over them needs.

    Args:
        batches: of this rank; every rank must make the same call.
        filler: for a rank without any.
    """
    most = max(gather_lists([len(batches)]))
    return batches + [batches[-1] if batches else filler] * (most - len(batches))


def sum_over_ranks(tensor: Any) -> Any:
    """The tensor summed elementwise over all ranks, in place and returned; every rank must make the same call."""
    if _is_distributed():
        import torch

        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.SUM)
    return tensor


def from_first_rank(compute: Callable[[], T]) -> T:
    """What the first rank computes, on every rank; a `TrivetError` of its is raised on all of them."""
    if not _is_distributed():
        return compute()
    import torch

    box: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            box = [compute()]
        except TrivetError as error:
            box = [error]
    torch.distributed.broadcast_object_list(box, src=0)
    if isinstance(box[0], TrivetError):
        raise box[0]
    return cast(T, box[0])


def library_versions() -> dict[str, str]:
    """Versions of what results depend on, Python and the processor's kind included."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _RECORDED_LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_state() -> dict[str, Any]:
    """Commit of the checkout and whether it was changed since; empty outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _is_distributed() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _collective_device() -> Any:
    import torch

    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@cache
def _cpu() -> tuple[str, frozenset[str]]:
    """Who made the processor, and what it can do; empty where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", frozenset()
    maker, flags = (
        next((line.partition(":")[2] for line in lines if line.startswith(key)), "") for key in ("vendor_id", "flags")
    )
    return maker.strip(), frozenset(flags.split())
