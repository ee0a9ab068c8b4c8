"""What one side of a comparison measures of itself: step times, losses, peak memory, tokens through the layers."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback


@dataclass
class Measured:
    """One run of one side."""

    seconds: list[float] = field(default_factory=list)
    """Of each optimiser step."""
    losses: list[float] = field(default_factory=list)
    rows_per_step: int = 0
    peak_gib: float = 0.0
    tokens_computed: int = 0
    """Through the first layer, forward passes without gradient included."""

    def print(self) -> None:
        """One line of JSON, the last that is printed."""
        self.peak_gib = peak_gib()
        print(json.dumps(asdict(self)))


class StepClock(TrainerCallback):
    """Times the steps of transformers' Trainer and notes their losses."""

    def __init__(self, measured: Measured):
        self.measured = measured
        self._last = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start of a step."""
        self._last = self._last or time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """End of a step; fetching the next one's rows counts as part of that."""
        synchronise()
        now = time.perf_counter()
        self.measured.seconds.append(now - self._last)
        self._last = now

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self.measured.losses.append(float(logs["loss"]))


def count_tokens(model: Any, measured: Measured) -> None:
    """Count what goes through the first transformer layer."""
    layers = next(module for name, module in model.named_modules() if name.endswith("layers"))

    def note(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else options["hidden_states"]
        measured.tokens_computed += hidden.shape[0] * hidden.shape[1]

    layers[0].register_forward_pre_hook(note, with_kwargs=True)


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    """Most memory of this process so far: the GPU's where there is one, else the host's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def matmul_peak(bf16: bool) -> float:
    """Floating-point operations per second of a large matrix product on this machine, best of ten."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 1536
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = float("inf")
    for _ in range(10):
        synchronise()
        start = time.perf_counter()
        a @ a
        synchronise()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
