"""PPO's four roles - policy, reference, value, reward - as adapters and heads on one frozen base, or as full models.

One role is active at a time. PEFT switches silently: an adapter turned on becomes trainable, others lose their
gradients, and a switch between forward and backward gives zero or wrong gradients without a word. So switching
happens here alone, and a role that has gone forward with gradients must go backward before any other is used. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from pipeline.algorithms.logps import TokenScores
from pipeline.batches import ResponseBatch, ScoringBatch
from pipeline.models.forward import VocabularyHead, evaluating, hidden_states
from pipeline.models.heads import scores_at_end, values_at
from pipeline.models.role_engine import RoleEngine, SpreadModel
from pipeline.models.shards import is_spread_model, whole_model
from pipeline.models.trunk_cache import TrunkCache
from pipeline.runtime import autocast

T = TypeVar("T")
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
        trunks: by role; `policy` and `reference` always, `value` if anything learns it, and any number of reward roles.
        head: from the policy's hidden states to logits.
        reference_head: from the reference's; the same one where both stand on one base.
        heads: scalar heads by role, of the value and reward roles; they compute in float32.
        generator: the policy as something that can `generate`.
        precision: bf16, fp16 or fp32.
        below: what the layers under all adapters give, which every role on one base shares; None where there are none.
        base: the base that the roles share, where ZeRO-3 has spread it.
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
        base: SpreadModel | None = None,
    ):
        self._trunks = dict(trunks)
        self._vocabulary = {POLICY: head, REFERENCE: reference_head}
        self._heads = dict(heads)
        self._generator = generator
        self._precision = precision
        self._below = below
        self._base = base
        self._engines: dict[str, RoleEngine] = {}
        self.spread = any(is_spread_model(trunk.module) for trunk in self._trunks.values())
        """Whether every rank must make equally many calls, as it holds a share of the weights."""
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

    @property
    def learning(self) -> tuple[str, ...]:
        """The roles that are trained: the policy, and the value model where there is one."""
        return tuple(role for role in (POLICY, VALUE) if role in self._trunks)

    @property
    def value_reads_policy(self) -> bool:
        """Whether the value head stands on the policy's trunk, so that one pass gives what both say."""
        mine, value = self._trunks[POLICY], self._trunks.get(VALUE)
        return value is not None and value.module is mine.module and value.adapter == mine.adapter

    def train_through(self, role: str, engine: RoleEngine) -> None:
        """Send a role's passes through the engine that trains it."""
        self._engines[role] = engine
        self.spread = self.spread or is_spread_model(self._trunks[role].module)

    def engine(self, role: str) -> RoleEngine | None:
        """What trains a role, where that is not an optimiser over whole parameters."""
        return self._engines.get(role)

    def module(self, role: str) -> tuple[Any, ...]:
        """A role's modules as an engine spreads them: the whole policy, or a trunk with its head."""
        if role == POLICY:
            return (self._generator,)
        head = self._heads.get(role)
        return (self._trunks[role].module, *([head] if head is not None else []))

    def logps(self, role: str, batch: ResponseBatch, temperature: float, *, entropy: bool = False) -> TokenScores:
        """log pi(y_r | x, y_<r) of the tempered policy or reference at every response token (B, R), 0 on padding."""

        def work() -> TokenScores:
            states = batch.before_responses(self._hidden(role, batch))
            return self._token_scores(role, states, batch, temperature, entropy=entropy)

        return self._through(role, work)

    def logps_and_values(
        self, batch: ResponseBatch, temperature: float, *, entropy: bool = False
    ) -> tuple[TokenScores, Tensor]:
        """What `logps` of the policy and `values` give, from one pass, where the value head stands on its trunk."""

        def work() -> tuple[TokenScores, Tensor]:
            states = batch.before_responses(self._hidden(POLICY, batch))
            found = self._token_scores(POLICY, states, batch, temperature, entropy=entropy)
            return found, values_at(states, self._heads[VALUE])

        return self._through(POLICY, work)

    def _token_scores(
        self, role: str, states: Tensor, batch: ResponseBatch, temperature: float, *, entropy: bool
    ) -> TokenScores:
        with self._autocast():
            return self._vocabulary[role].scores(
                states,
                batch.response_ids_BR.to(states.device),
                temperature=temperature,
                entropy=entropy,
                mask_BR=batch.response_mask_BR.to(states.device),
            )

    def demonstration_logps(self, batch: ScoringBatch) -> Tensor:
        """log pi of every response token of demonstrations (B, T - 1), 0 elsewhere, at temperature 1."""

        def work() -> Tensor:
            states = self._hidden(POLICY, batch)[:, :-1]
            targets, mask = (each[:, 1:].to(states.device) for each in (batch.ids_BT, batch.response_mask_BT))
            with self._autocast():
                return self._vocabulary[POLICY].scores(states, targets, mask_BR=mask).logps_BR

        return self._through(POLICY, work)

    @torch.no_grad()
    def response_logps(self, batch: ScoringBatch) -> Tensor:
        """log pi of each row's response (B,), of the policy at temperature 1."""
        return self.demonstration_logps(batch).sum(-1)

    def values(self, batch: ResponseBatch) -> Tensor:
        """V(x, y_<r) before every response token (B, R), in float32; of the policy's trunk only the head learns."""

        def work() -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.value_reads_policy):
                hidden = self._hidden(VALUE, batch)
            return values_at(batch.before_responses(hidden), self._heads[VALUE])

        return self._through(VALUE, work)

    def scores(self, role: str, batch: ResponseBatch) -> Tensor:
        """A reward role's raw score of each prompt with its response (B,), read at the response's last token."""
        hidden = self._hidden(role, batch)
        return scores_at_end(hidden, self._heads[role], batch.mask_BT.to(hidden.device))

    def forget(self) -> None:
        """Drop what is kept of batches that will not come again."""
        if self._below is not None:
            self._below.forget()

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Go backward through the role that went forward last.

        Args:
            loss: to go backward from.
            last: whether it is the last one before a step, which some engines must know.
        """
        engine = self._engines.get(self._forward or "")
        if engine is None:
            torch.autograd.backward(loss)
        else:
            engine.backward(loss, last=last)
        if self._base is not None:
            self._base.after_backward()
        self._forward = None

    @contextmanager
    def sampling(self) -> Iterator[Any]:
        """The policy as a model that generates, whole on every rank, for the length of the block."""
        self._switch(POLICY)
        with whole_model(self._generator), evaluating(self._generator):
            yield self._generator

    def _through(self, role: str, work: Callable[[], T]) -> T:
        engine = self._engines.get(role)
        # Only spread weights need an engine where nothing is learnt.
        return engine.forward(work) if engine is not None and (self.spread or torch.is_grad_enabled()) else work()

    def _autocast(self) -> Any:
        # A spread weight is not kept in the shorter type until the pass is over: all of them together are the model.
        return autocast(self._precision, cache=not self.spread)

    def _hidden(self, role: str, batch: ResponseBatch | ScoringBatch) -> Tensor:
        self._switch(role)
        trunk = self._trunks[role]
        below = None if self._below is None else self._below.below
        with self._autocast():
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
