"""From the members' raw scores to the reward model's scale and to everything that is known of its quality."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from evaluation.intervals import preference_accuracy
from evaluation.reward_quality import ScoredPair, pair_loss, pair_quality, shift
from pipeline.errors import TrivetError
from pipeline.models.reward_model import MemberScale, RewardSpec, combine, normalise
from pipeline.recipe.stage_settings import RewardSettings
from pipeline.stages.pairs import Pairs, pair_line
from pipeline.stages.reward_member import MemberScores
from pipeline.stages.reward_questions import Questions

_LEAST_SCALE = 1e-6
"""A deviation below this is no deviation."""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """The held-out pairs under the whole model, and their gaps before training, in log-odds both."""

    pairs: list[ScoredPair]
    gaps_before: list[float]


def spec_of(members: list[MemberScores], settings: RewardSettings, asked: Questions, stage: str) -> RewardSpec:
    """The scale that gives the reference answers mean 0 and deviation 1: first each member's, then the whole's.

    Raises:
        TrivetError: a member scores them all alike.
    """
    scales = [_scale(member.reference, stage) for member in members]
    raw = RewardSpec(
        offset=0.0, scale=1.0, members=tuple(scales), aggregate=settings.aggregate,
        variance_weight=settings.variance_weight, n=len(asked.reference), source=asked.source,
    )  # fmt: skip
    whole = _scale(combine(_stack(members, "reference"), raw).tolist(), stage)
    return raw.model_copy(update={"offset": whole.offset, "scale": whole.scale})


def _scale(scores: list[float], stage: str) -> MemberScale:
    deviation = pstdev(scores)
    if deviation < _LEAST_SCALE:
        raise TrivetError(
            f"stage {stage}: the trained model scores all {len(scores)} reference answers alike (deviation "
            f"{deviation:.1e}), so nothing could be optimised against it; give it more steps, a higher learning_rate, "
            "or more demonstrations than one"
        )
    return MemberScale(offset=fmean(scores), scale=deviation)


def _stack(members: list[MemberScores], name: str) -> Tensor:
    """Raw scores (K, B) of the members' field of that name."""
    return torch.tensor([getattr(member, name) for member in members], dtype=torch.float64)


def scored_pairs(members: list[MemberScores], spec: RewardSpec, held_out: Pairs) -> ScoredPairs:
    """The held-out pairs with their scores and gaps."""
    chosen, rejected = (_stack(members, name) for name in ("chosen", "rejected"))
    gaps = (combine(chosen, spec) - combine(rejected, spec)) * _log_odds(spec)
    before = (_stack(members, "chosen_before") - _stack(members, "rejected_before")).mean(0)
    columns = zip(
        held_out.records, held_out.rows, normalise(chosen, spec).tolist(), normalise(rejected, spec).tolist(),
        gaps.tolist(), strict=True,
    )  # fmt: skip
    pairs = [
        ScoredPair(
            source=record.origin.source,
            family=record.origin.family,
            fault=record.fault,
            chosen_tokens=len(row.chosen_ids),
            rejected_tokens=len(row.rejected_ids),
            score_chosen=score_chosen,
            score_rejected=score_rejected,
            gap=gap,
        )
        for record, row, score_chosen, score_rejected, gap in columns
    ]
    return ScoredPairs(pairs, before.tolist())


def _log_odds(spec: RewardSpec) -> float:
    """What a unit of the combined score is in log-odds: of several members, centred and scaled, their mean scale."""
    return 1.0 if len(spec.members) == 1 else fmean(member.scale for member in spec.members)


def measured(members: list[MemberScores], spec: RewardSpec, scored: ScoredPairs, asked: Questions) -> dict[str, Any]:
    """Every figure of the reward model, under the names that results carry."""
    before, _ = preference_accuracy(scored.gaps_before)
    residuals = [member.padding_residual for member in members if member.padding_residual is not None]
    return {
        **pair_quality(scored.pairs),
        "eval_accuracy_before": before,
        "eval_loss_before": pair_loss(scored.gaps_before) if scored.gaps_before else None,
        "eval_margin_before": fmean(scored.gaps_before) if scored.gaps_before else None,
        "pad_invariance_residual": max(residuals, default=None),
        "stress": _stress(members, spec, asked),
        "members": len(members),
        "member_accuracy": [_accuracy(member) for member in members],
        "score_offset": spec.offset,
        "score_scale": spec.scale,
        "score_n": spec.n,
        "score_source": spec.source,
    }


def _accuracy(member: MemberScores) -> float | None:
    return preference_accuracy([a - b for a, b in zip(member.chosen, member.rejected, strict=True)])[0]


def _stress(members: list[MemberScores], spec: RewardSpec, asked: Questions) -> dict[str, Any]:
    """By how much each change of an answer moves its score, in deviations of the reference answers."""
    original, changed = (
        normalise(_stack(members, name), spec).tolist() for name in ("stress_original", "stress_changed")
    )
    places: dict[str, list[int]] = {}
    for place, row in enumerate(asked.stress):
        places.setdefault(row.change, []).append(place)
    return {name: shift([original[i] for i in at], [changed[i] for i in at]) for name, at in places.items()}


def pair_lines(held_out: Pairs, scored: ScoredPairs) -> list[dict[str, Any]]:
    """One line per held-out pair: what it is, its scores, the margin between them in units of the score, and the gap in
    log-odds after training and before.
    """
    return [
        {
            **pair_line(record),
            "score_chosen": pair.score_chosen,
            "score_rejected": pair.score_rejected,
            "margin": pair.score_chosen - pair.score_rejected,
            "gap": pair.gap,
            "gap_before": before,
            "chosen_tokens": pair.chosen_tokens,
            "rejected_tokens": pair.rejected_tokens,
        }
        for record, pair, before in zip(held_out.records, scored.pairs, scored.gaps_before, strict=True)
    ]


def scored_lines(members: list[MemberScores], spec: RewardSpec, asked: Questions) -> list[dict[str, Any]]:
    """The other answers that were scored: the reference answers, raw, the good ones before and after a change, and what
    each member says of some, raw, alone and beside longer ones.
    """
    combined = combine(_stack(members, "reference"), spec).tolist()
    original, changed = (
        normalise(_stack(members, name), spec).tolist() for name in ("stress_original", "stress_changed")
    )
    references = [{"answer": "reference", "raw": raw} for raw in combined]
    rows = zip(asked.stress, original, changed, strict=True)
    changes = [
        {"answer": "changed", "change": row.change, "score_before": before, "score": after}
        for row, before, after in rows
    ]
    padding = [
        {"answer": "padding", "member": number, "alone": alone, "beside_longer": beside}
        for number, member in enumerate(members, start=1)
        for alone, beside in zip(member.alone, member.beside_longer, strict=True)
    ]
    return references + changes + padding
