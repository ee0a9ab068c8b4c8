"""The most memory that a stage's process took: the machine's by the kernel's count, the GPU's by torch's. Layer 2.

Linux counts a peak per program (`VmHWM`) and begins anew when asked, so a stage inside another's process
(`--in-process`) has its own. Elsewhere `getrusage` counts since the process began. On a GPU torch's counter is also
begun anew by whoever wants the peak of a phase; what it had reached by then is kept here.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Peak:
    """Of one process, in bytes."""

    process: int
    gpu: int | None
    """None without a GPU."""


class _BeforePhases:
    """What torch's counter had reached when it was last begun anew."""

    gpu = 0


def begin() -> None:
    """Forget what this process took so far: a stage begins."""
    # Not Linux, or a kernel without it: the peak is then that of the whole process, which is mostly one stage's.
    with suppress(OSError):
        _FORGET.write_text("5")
    begin_phase()
    _BeforePhases.gpu = 0


def begin_phase() -> None:
    """Let torch count anew, for a phase of its own within the stage; without a GPU there is nothing to do."""
    _BeforePhases.gpu = gpu_peak() or 0
    torch = sys.modules.get("torch")
    # Before torch has begun on the GPU there is nothing to forget, and asking it to is an error.
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak() -> Peak:
    """Since the last `begin`."""
    return Peak(process=_process_peak(), gpu=gpu_peak())


def gpu_peak() -> int | None:
    """Bytes that torch had taken of this process's GPU at most since the last `begin`; None without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return max(_BeforePhases.gpu, int(torch.cuda.max_memory_allocated()))


def _process_peak() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
