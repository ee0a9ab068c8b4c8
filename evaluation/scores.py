"""Scores of given answers by reward models: raw ones of a model in training, comparable ones of a sealed artefact.

A sequence is read at its last token, which is the end of turn at which a sampled answer ends too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evaluation.sharing import Progress, over_ranks
from pipeline.artefact import Artefact
from pipeline.batches import pad_left
from pipeline.models import adapters
from pipeline.models.forward import attends_in_streams
from pipeline.models.fully_sharded import computed_within
from pipeline.models.heads import ScalarHead, sequence_scores
from pipeline.models.load import device, load_classifier
from pipeline.models.reward_model import RewardSpec, head_of, member_folders, normalise
from pipeline.models.shards import is_spread_model, scoring_mode
from pipeline.recipe.schema import ModelSettings
from pipeline.runtime import Ranks, autocast

Ids = Sequence[int]
"""A prompt and its answer, whole."""


@dataclass(frozen=True, slots=True)
class SequenceScorer:
    """Raw scores of one model, shared out over the ranks.

    Args:
        model: classifying or causal, the reward model's adapter active; in evaluation mode while scoring.
        head: the reward model's.
        pad_id: any id.
        batch_size: rows per forward pass.
        precision: bf16, fp16 or fp32; the head computes in float32 in any case.
        ranks: this process among its peers; every rank must make the same calls.
    """

    model: Any
    head: ScalarHead
    pad_id: int
    batch_size: int
    precision: str
    ranks: Ranks

    def score(self, rows: Sequence[Ids], progress: Progress | None = None) -> list[float]:
        """One number per row, in the rows' order."""
        was_training = self.model.training
        self.model.eval()
        with scoring_mode(self.model), autocast(self.precision):
            found = over_ranks(
                rows,
                self.batch_size,
                self.ranks,
                lambda batch: self._scores([rows[i] for i in batch]),
                progress,
                by_beginnings=attends_in_streams(self.model),
                together=is_spread_model(self.model),
            )
        self.model.train(was_training)
        return found

    def _scores(self, rows: Sequence[Ids]) -> list[float]:
        ids, mask = pad_left(rows, self.pad_id)
        scores = computed_within(self.model, lambda: sequence_scores(self.model, self.head, ids, mask))
        return [float(score) for score in scores.cpu()]


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a sealed reward model, ready to score."""

    model: Any
    head: nn.Linear
    adapter: str | None
    """To be switched on in the model while it scores; None where the model is the member's own."""


@dataclass(frozen=True, slots=True)
class RewardScorer:
    """Scores of a sealed reward model: mean 0 and deviation 1 on its reference answers, whatever its size.

    Args:
        members: by `attach_members` or `load_members`.
        spec: by `read_spec`.
        pad_id, batch_size, precision, ranks: as for `SequenceScorer`.
    """

    members: tuple[Member, ...]
    spec: RewardSpec
    pad_id: int
    batch_size: int
    precision: str
    ranks: Ranks

    def score(self, rows: Sequence[Ids], progress: Progress | None = None) -> list[float]:
        """One number per row, in the rows' order; which adapter was active before is active again afterwards."""
        raw_KB = [self._raw(member, rows, progress) for member in self.members]
        found: list[float] = normalise(torch.tensor(raw_KB, dtype=torch.float64), self.spec).tolist()
        return found

    def _raw(self, member: Member, rows: Sequence[Ids], progress: Progress | None) -> list[float]:
        scorer = SequenceScorer(member.model, member.head, self.pad_id, self.batch_size, self.precision, self.ranks)
        with _switched_on(member):
            return scorer.score(rows, progress)


def attach_members(model: Any, artefact: Artefact, name: str) -> tuple[Any, tuple[Member, ...]]:
    """Put a sealed reward model's adapters on a causal language model, frozen.

    Args:
        model: the reward model's base, with other adapters on it or without.
        artefact: of a reward model that is stored as adapters.
        name: for its adapters, which get numbers behind it.

    Returns:
        The model, wrapped if it was not, and the members to score with.
    """
    names = []
    for number, folder in enumerate(member_folders(artefact), start=1):
        names.append(f"{name}_{number}")
        model = adapters.attach_reward(model, folder, names[-1])
    heads = [head_of(folder).requires_grad_(False).to(device()) for folder in member_folders(artefact)]
    return model, tuple(Member(model, head, adapter) for head, adapter in zip(heads, names, strict=True))


def load_members(artefact: Artefact, settings: ModelSettings, precision: str) -> tuple[Member, ...]:
    """The models of a sealed reward model that is stored as full weights, frozen."""
    members = []
    for folder in member_folders(artefact):
        model: Any = load_classifier(folder, settings, frozen=True, precision=precision)
        head = head_of(folder).requires_grad_(False).to(device())
        members.append(Member(model.eval().requires_grad_(False), head, None))
    return tuple(members)


@contextmanager
def _switched_on(member: Member) -> Iterator[None]:
    """The member's adapter and no other, even where all were off; afterwards everything is as it was before."""
    if member.adapter is None:
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = member.model
    # Whoever switched before may have done so on the inner model alone, of which the wrapper then knows nothing.
    outer, inner = model.active_adapter, model.base_model.active_adapters
    needed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_off = any(layer.disable_adapters for layer in model.modules() if isinstance(layer, BaseTunerLayer))
    if was_off:
        model.base_model.enable_adapter_layers()
    try:
        with adapters.active(model, member.adapter):
            yield
    finally:
        model.set_adapter(outer, inference_mode=True)
        model.base_model.set_adapter(inner, inference_mode=True)
        if was_off:
            model.base_model.disable_adapter_layers()
        for parameter, gradient in needed:
            parameter.requires_grad_(gradient)
