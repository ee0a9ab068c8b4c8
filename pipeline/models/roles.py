"""PPO's four roles - policy, reference, value, reward - as adapters and heads on one frozen base, or as full models.

One role is active at a time. PEFT switches silently: an adapter turned on becomes trainable, others lose their
gradients, and a switch between forward and backward gives zero or wrong gradients without a word. So switching
happens here alone, and a role that has gone forward with gradients must go backward before any other is used. Layer 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from pipeline.algorithms.logps import TokenScores
from pipeline.batches import ResponseBatch, ScoringBatch
from pipeline.models.forward import VocabularyHead, evaluating, hidden_states
from pipeline.models.heads import scores_at_end, values_at
from pipeline.models.trunk_cache import TrunkCache
from pipeline.runtime import autocast

POLICY, REFERENCE, VALUE = "policy", "reference", "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """One role's transformer: a module, and which adapter to switch on where several roles share it."""

    module: Any
    shared: Any = None
    """The PeftModel in which adapters are switched; None for a model of the role's own."""
    adapter: str | None = None
    """None with `shared`: all adapters off, the base itself."""
    trainable: tuple[Parameter, ...] = ()


class Roles:
    """Runs each role's forward and backward passes.

    Args:
        trunks: by role; `policy` and `reference` always, `value`, and any number of reward roles.
        head: from the policy's hidden states to logits.
        reference_head: from the reference's; the same one where both stand on one base.
        heads: scalar heads by role, of the value and reward roles; they compute in float32.
        generator: the policy as something that can `generate`.
        precision: bf16, fp16 or fp32.
        below: what the layers under all adapters give, which every role on one base shares; None where there are none.
    """

    def __init__(
        self,
        trunks: Mapping[str, Trunk],
        head: VocabularyHead,
        reference_head: VocabularyHead,
        heads: Mapping[str, Linear],
        generator: Any,
        precision: str,
        below: TrunkCache | None = None,
    ):
        self._trunks = dict(trunks)
        self._vocabulary = {POLICY: head, REFERENCE: reference_head}
        self._heads = dict(heads)
        self._generator = generator
        self._precision = precision
        self._below = below
        self._active: str | None = None
        self._forward: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the roles' inputs go."""
        found: torch.device = next(self._trunks[POLICY].module.parameters()).device
        return found

    def trainable(self, role: str) -> tuple[Parameter, ...]:
        """The parameters that a role's optimiser owns: the same ones whatever is active, head included."""
        head = self._heads.get(role)
        return (*self._trunks[role].trainable, *(head.parameters() if head is not None else ()))

    def logps(self, role: str, batch: ResponseBatch, temperature: float, *, entropy: bool = False) -> TokenScores:
        """log pi(y_r | x, y_<r) of the tempered policy or reference at every response token (B, R), 0 on padding."""
        states = batch.before_responses(self._hidden(role, batch))
        with autocast(self._precision):
            return self._vocabulary[role].scores(
                states,
                batch.response_ids_BR.to(states.device),
                temperature=temperature,
                entropy=entropy,
                mask_BR=batch.response_mask_BR.to(states.device),
            )

    def demonstration_logps(self, batch: ScoringBatch) -> Tensor:
        """log pi of every response token of demonstrations (B, T - 1), 0 elsewhere, at temperature 1."""
        states = self._hidden(POLICY, batch)[:, :-1]
        with autocast(self._precision):
            found = self._vocabulary[POLICY].scores(
                states, batch.ids_BT[:, 1:].to(states.device), mask_BR=batch.response_mask_BT[:, 1:].to(states.device)
            )
        return found.logps_BR

    def values(self, batch: ResponseBatch) -> Tensor:
        """V(x, y_<r) before every response token (B, R), in float32."""
        return values_at(batch.before_responses(self._hidden(VALUE, batch)), self._heads[VALUE])

    def scores(self, role: str, batch: ResponseBatch) -> Tensor:
        """A reward role's raw score of each prompt with its response (B,), read at the response's last token."""
        hidden = self._hidden(role, batch)
        return scores_at_end(hidden, self._heads[role], batch.mask_BT.to(hidden.device))

    def forget(self) -> None:
        """Drop what is kept of batches that will not come again."""
        if self._below is not None:
            self._below.forget()

    def backward(self, loss: Tensor) -> None:
        """Go backward through the role that went forward last."""
        torch.autograd.backward(loss)
        self._forward = None

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """The policy as a model that generates, for the length of the block."""
        self._switch(POLICY)
        with evaluating(self._generator):
            yield self._generator

    def _hidden(self, role: str, batch: ResponseBatch | ScoringBatch) -> Tensor:
        self._switch(role)
        trunk = self._trunks[role]
        below = None if self._below is None else self._below.below
        with autocast(self._precision):
            hidden = hidden_states(
                trunk.module, batch.ids_BT, batch.mask_BT, batch.positions_BT, below, in_float32=True
            )
        if torch.is_grad_enabled() and hidden.requires_grad:
            self._forward = role
        return hidden

    def _switch(self, role: str) -> None:
        if self._forward not in (None, role):
            raise RuntimeError(f"{self._forward} went forward and must go backward before {role} is used")
        trunk = self._trunks[role]
        if trunk.shared is not None and role != self._active:
            _turn_on(trunk)
        self._active = role


def _turn_on(trunk: Trunk) -> None:
    """Make a role's adapter the active one, and its parameters alone trainable."""
    tuner = trunk.shared.base_model
    if trunk.adapter is None:
        tuner.disable_adapter_layers()
        return
    tuner.enable_adapter_layers()
    tuner.set_adapter(trunk.adapter, inference_mode=True)
    for parameter in trunk.trainable:
        parameter.requires_grad_(True)
