"""What one side of a comparison measures of itself: step times, losses, peak memory, and the work that it did."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

_PROBE = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=2).returncode; "
    "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
"""Runs a command and says its exit code and the largest resident set of any process in it, in KiB."""


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
    tokens_real: int = 0
    """Those of all passes that were no padding."""
    head_rows: int = 0
    """Tokens whose logits were computed."""
    flops: float = 0.0
    """Of products with the base model's matrices, counted: attention, adapters and optimiser are left out."""
    flops_by_step: list[float] = field(default_factory=list)
    """Of each optimiser step."""

    counts: list[Any] = field(default_factory=list)
    """Of real tokens, still on the device: to ask for them while training runs would make a GPU wait."""

    def settle(self) -> None:
        """Add up what is still on the device."""
        self.tokens_real += sum(int(count) for count in self.counts)
        self.counts.clear()

    def print(self) -> None:
        """One line of JSON, the last that is printed."""
        self.settle()
        self.peak_gib = peak_gib()
        print(json.dumps(asdict(self)))


def run_measured(commands: list[list[str]]) -> tuple[float, float]:
    """Seconds of commands, one after the other, and the largest resident set of any process in them in GiB."""
    start, largest = time.perf_counter(), 0.0
    # LLaMA-Factory's: no launcher on its side either.
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "FORCE_TORCHRUN": "0"}
    for command in commands:
        done = subprocess.run([sys.executable, "-c", _PROBE, *command], capture_output=True, text=True, env=environment)
        code, kib = done.stdout.split()
        if code != "0":
            raise SystemExit(f"{' '.join(command)} ended with {code}:\n{done.stderr[-3000:]}")
        largest = max(largest, int(kib) / 2**20)
    return time.perf_counter() - start, largest


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
        self.measured.flops_by_step.append(self.measured.flops - sum(self.measured.flops_by_step))
        self._last = now

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self.measured.losses.append(float(logs["loss"]))


def count_work(model: Any, measured: Measured) -> None:
    """Count what goes through a causal or classifying model's layers, and through its head where that is called."""
    path, layers = next(
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("layers", "h") and isinstance(module, nn.ModuleList)
    )
    model.get_submodule(path.rpartition(".")[0]).register_forward_pre_hook(
        partial(_note_real, measured), with_kwargs=True
    )
    for index, layer in enumerate(layers):
        layer.register_forward_hook(partial(_note_layer, measured, index == 0, _weights(layer)), with_kwargs=True)
    head = next((each for name, each in model.named_modules() if name.rpartition(".")[2] == "lm_head"), None)
    if isinstance(head, nn.Linear):
        head.register_forward_hook(partial(_note_head, measured, head.weight))


def count_streaming_head(measured: Measured) -> None:
    """Count the rows of our own heads, which read the weight instead of calling the layer."""
    from pipeline.models.forward import VocabularyHead

    scores = VocabularyHead.scores

    def counted(self: Any, hidden_BRH: Any, targets_BR: Any, **options: Any) -> Any:
        mask = options.get("mask_BR")
        rows = targets_BR.numel() if mask is None else int(mask.sum())
        if self._frozen_matrix() is not None:
            count_head_rows(measured, rows, self.linear.weight, gradient=hidden_BRH.requires_grad)
        return scores(self, hidden_BRH, targets_BR, **options)

    VocabularyHead.scores = counted  # type: ignore[method-assign]


def count_head_rows(measured: Measured, rows: int, weight: Any, *, gradient: bool) -> None:
    """Note logits that were computed without a call of the head."""
    measured.head_rows += rows
    measured.flops += _flops(rows, weight.numel(), gradient=gradient, trained=weight.requires_grad)


def _note_real(measured: Measured, trunk: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Tokens of a pass that are no padding."""
    ids = options.get("input_ids", inputs[0] if inputs else options.get("inputs_embeds"))
    mask = options.get("attention_mask")
    rows, tokens = ids.shape[:2]
    # A mask of four dimensions is no list of real tokens; with a cache the last columns are the pass's own.
    has_list = isinstance(mask, torch.Tensor) and mask.dim() == 2
    measured.counts.append(mask[:, -tokens:].sum() if has_list else rows * tokens)


def _note_layer(
    measured: Measured, is_first: bool, weights: list[Any], layer: Any, inputs: Any, options: Any, output: Any
) -> None:
    # Another forward stands in for a layer that is skipped.
    if "forward" in vars(layer):
        return
    hidden = output[0] if isinstance(output, tuple) else output
    tokens = hidden.shape[:-1].numel()
    measured.tokens_computed += tokens * is_first
    trained = any(weight.requires_grad for weight in weights)
    size = sum(weight.numel() for weight in weights)
    measured.flops += _flops(tokens, size, gradient=hidden.requires_grad, trained=trained)


def _note_head(measured: Measured, weight: Any, head: Any, inputs: Any, output: Any) -> None:
    count_head_rows(measured, output.shape[:-1].numel(), weight, gradient=output.requires_grad)


def _weights(layer: Any) -> list[Any]:
    """A layer's own matrices, without adapters."""
    return [each for name, each in layer.named_parameters() if each.dim() == 2 and ".lora_" not in name]


def _flops(rows: int, size: int, *, gradient: bool, trained: bool) -> float:
    """Forward; backward to what goes in; backward to the weights."""
    return 2.0 * rows * size * (1 + gradient + (gradient and trained))


def machine() -> str:
    """Processor and versions, for the head of a report; with the GPU where there is one."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl", "peft"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{gpu}, Python {platform.python_version()}, {versions}"


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
