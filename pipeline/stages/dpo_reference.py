"""DPO's reference: a frozen copy of the adapter that training starts from, on the same base, or a model of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.models import adapters
from pipeline.runtime import autocast
from pipeline.stages.stream_trainer import Call
from pipeline.streams import Stream

REFERENCE = "ref"
"""Name of the frozen copy: TRL's trainer gives it this one too."""


def add_reference(model: Any) -> None:
    """Put a frozen copy of the trained adapter beside it."""
    model.add_adapter(REFERENCE, model.peft_config[adapters.TRAINED])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapters.TRAINED}." in name:
                copy = model.get_parameter(name.replace(f".{adapters.TRAINED}.", f".{REFERENCE}."))
                copy.copy_(parameter)
                copy.requires_grad_(False)


def reference_call(model: Any, reference: Any, precision: str) -> Call:
    """How to ask the reference for a stream's log-probabilities (M,).

    Args:
        model: the policy, with the copy on it where there is no model of its own.
        reference: that model, or None.
        precision: of the forward pass.
    """

    def ask(stream: Stream) -> Tensor:
        with autocast(precision):
            if reference is not None:
                found: Tensor = reference(stream=stream)
                return found
            model.set_adapter(REFERENCE, inference_mode=True)
            try:
                found = model(stream=stream)
            finally:
                model.set_adapter(adapters.TRAINED)
        return found

    return ask
