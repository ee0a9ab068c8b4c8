"""Direct preference optimisation on streams, both answers of a pair behind one prompt.

Policy and reference see the same stream, so that while they are equal their log-probabilities are equal to the last
bit, in half precision too, and rounding that is common to both leaves the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data_prep.chat import EncodedPair
from pipeline.algorithms.dpo import LOSS_TYPES, SMOOTHED, dpo_loss
from pipeline.recipe.stage_settings import DpoSettings
from pipeline.stages.dpo_kept_reference import KeptReference
from pipeline.stages.stream_trainer import Call, Found
from pipeline.streams import Stream, stream_of

_OVER_A_BATCH = ("aot", "aot_unpaired")


def lacks(settings: DpoSettings) -> str | None:
    """Why the recipe's loss is left to TRL, or None."""
    if settings.loss_type in _OVER_A_BATCH:
        return f"{settings.loss_type} depends on how pairs fall into micro-batches"
    known = {*LOSS_TYPES, "sigmoid_norm", "rpo"}
    return None if settings.loss_type in known else f"{settings.loss_type} is TRL's alone"


class Preference:
    """What DPO learns from pairs.

    Args:
        settings: of the stage.
        reference: called under no gradient, with the stream that the policy is called with.
        kept: what the reference says of all rows; None where it is called in every step.
    """

    def __init__(self, settings: DpoSettings, reference: Call, kept: KeptReference | None = None):
        self._settings = settings
        self._reference = reference
        self._kept = kept
        kind = settings.loss_type
        self._kind = "sigmoid" if kind in ("rpo", "sigmoid_norm") else kind
        self._smoothing = settings.label_smoothing if self._kind in SMOOTHED and kind != "rpo" else 0.0

    def items(self, row: EncodedPair) -> int:
        """Pairs count alike."""
        return 1

    def tokens(self, row: EncodedPair) -> int:
        """Both answers, each behind its prompt."""
        return 2 * len(row.prompt_ids) + len(row.chosen_ids) + len(row.rejected_ids)

    def stream(self, rows: Sequence[EncodedPair]) -> Stream:
        """Sequences 2i and 2i + 1 are the chosen and the rejected answer of pair i."""
        return stream_of([answer for row in rows for answer in row.answers()])

    def compute(self, call: Call, rows: Sequence[EncodedPair], stream: Stream) -> Found:
        """Loss and what TRL's trainer would log of it."""
        reference_B2 = self._against(rows, stream)
        policy_B2 = self._by_pair(call(stream), stream)
        compared_B2, against_B2 = policy_B2, reference_B2
        if self._settings.loss_type in ("sigmoid_norm", "ipo"):
            lengths_B2 = stream.lengths_S().view(-1, 2)
            compared_B2, against_B2 = policy_B2 / lengths_B2, reference_B2 / lengths_B2
        found = dpo_loss(
            compared_B2[:, 0], compared_B2[:, 1], against_B2[:, 0], against_B2[:, 1],
            self._settings.beta, self._kind, self._smoothing,
        )  # fmt: skip
        loss = found.losses_B.sum()
        logps_B2 = policy_B2.detach()
        rewards_B2 = self._settings.beta * (logps_B2 - reference_B2)
        margins_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        metrics = {
            "rewards/chosen": rewards_B2[:, 0],
            "rewards/rejected": rewards_B2[:, 1],
            "rewards/margins": margins_B,
            "rewards/accuracies": (margins_B > 0).float(),
            "logps/chosen": logps_B2[:, 0],
            "logps/rejected": logps_B2[:, 1],
        }
        if self._settings.loss_type == "rpo":
            # The likelihood term of arXiv 2404.19733, eq. 1: per answer, averaged over its tokens.
            nll_B = -policy_B2[:, 0] / stream.lengths_S().view(-1, 2)[:, 0]
            loss = loss + self._settings.rpo_alpha * nll_B.sum()
            metrics["nll/chosen"] = nll_B.detach()
        return Found(loss, {name: float(values.sum()) for name, values in metrics.items()})

    @torch.no_grad()
    def _against(self, rows: Sequence[EncodedPair], stream: Stream) -> Tensor:
        if self._kept is not None:
            return self._kept.of(rows, stream.ids_N.device)
        return self._by_pair(self._reference(stream), stream)

    @staticmethod
    def _by_pair(logps_M: Tensor, stream: Stream) -> Tensor:
        return stream.per_sequence(logps_M).view(-1, 2)
