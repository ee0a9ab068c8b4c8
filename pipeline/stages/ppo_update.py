"""PPO's learning from one rollout: passes over its minibatches, one optimiser step of policy and value each.

A step divides by the token count of all ranks and micro-batches, known before its first backward pass, so that it is
the same however its rows are spread. Gradients are summed over ranks here, or by the engine that trains a role.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from pipeline.algorithms.logps import TokenScores
from pipeline.algorithms.masked import masked_mean, masked_sum
from pipeline.algorithms.ppo import policy_loss, value_loss
from pipeline.batches import ResponseBatch, ScoringBatch, scoring_batch
from pipeline.errors import TrivetError
from pipeline.faults import reach, spoil
from pipeline.models.roles import POLICY, VALUE, Roles
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.collect import MicroBatch
from pipeline.runtime import Ranks, gather_lists
from pipeline.stages.ppo_optimiser import adamw, share_of_peak, sum_gradients
from pipeline.stages.ppo_report import Seen, UpdateReport, seen_in, token_mean

RATIO_EXPLODED = 10.0
"""Mean ratio of a minibatch beyond which nothing is learnt from it, as in TRL's PPO (`ratio_threshold`)."""

Row = tuple[Sequence[int], Sequence[bool]]
Draw = Callable[[int], Sequence[Row]]
"""Gives demonstrations to mix into a step: this rank's rows of them, for the number of the step."""


class NotFiniteError(TrivetError):
    """A loss or gradient that is not finite; no parameter has taken it in.

    Args:
        message: what became what, and when.
        minibatch: which one of the rollout, from 0.
        rows: episodes of the rollout that it was computed on, on all ranks.
    """

    def __init__(self, message: str, minibatch: int, rows: Sequence[int]):
        super().__init__(message)
        self.minibatch = minibatch
        self.rows = tuple(rows)


class Learner:
    """Optimisers of policy and value, and the steps they take.

    Args:
        roles: whose trainable parameters they own.
        settings: of the stage.
        rollouts: how many there will be; the learning rate falls from one to the next.
        ranks: this process among its peers.
        draw: demonstrations for PPO-ptx, or None.
        pad_id: any id.
    """

    def __init__(
        self, roles: Roles, settings: PpoSettings, rollouts: int, ranks: Ranks, draw: Draw | None, pad_id: int
    ):
        self._roles = roles
        self._settings = settings
        self._ranks = ranks
        self._draw = draw
        self._pad_id = pad_id
        self.steps = 0
        self._minibatch = 0
        self._rollouts = rollouts
        peaks = {POLICY: settings.learning_rate, VALUE: settings.value_learning_rate or settings.learning_rate}
        self._peaks = {role: peaks[role] for role in roles.learning}
        self.optimisers = {role: adamw(roles.trainable(role), rate, settings) for role, rate in self._peaks.items()}

    def rates(self, rollout: int) -> dict[str, float]:
        """Learning rate of each role in a rollout, the first being 0; the policy's schedule begins when it does."""
        idle = {POLICY: self._settings.value_warmup, VALUE: 0}
        return {
            role: peak * share_of_peak(self._settings, rollout - idle[role], self._rollouts - idle[role])
            for role, peak in self._peaks.items()
        }

    def learn(self, minibatches: Sequence[Sequence[MicroBatch]], rollout: int, *, value_only: bool) -> UpdateReport:
        """All passes over one rollout.

        Args:
            minibatches: this rank's micro-batches, by minibatch.
            rollout: its number, from 0; decides the learning rate and the order of minibatches in each pass.
            value_only: leave the policy as it is (critic warm-up).

        Raises:
            NotFiniteError: a loss or gradient is not finite; no parameter has taken it in.
            TrivetError: ratios exploded where an engine cannot take gradients back.
        """
        for role, rate in self.rates(rollout).items():
            for group in self.optimisers[role].param_groups:
                group["lr"] = rate
        report = UpdateReport()
        order = random.Random(rollout)
        for _ in range(self._settings.epochs):
            for index in order.sample(range(len(minibatches)), len(minibatches)):
                self._minibatch = index
                if not self._step(minibatches[index], report, value_only):
                    report.stopped_early = True
                    return report
        return report

    def _step(self, minibatch: Sequence[MicroBatch], report: UpdateReport, value_only: bool) -> bool:
        """One optimiser step of each role; whether it was taken, which stop_kl may forbid on all ranks alike."""
        count = _over_ranks([float(micro.batch.response_mask_BR.sum()) for micro in minibatch])
        if not value_only and not self._policy_step(minibatch, count, report):
            return False
        if VALUE in self._roles.learning and (value_only or not self._roles.value_reads_policy):
            self._value_step(minibatch, count, report)
        self.steps += 1
        report.steps += 1
        reach("step.taken")
        return True

    def _policy_step(self, minibatch: Sequence[MicroBatch], tokens: float, report: UpdateReport) -> bool:
        reach("step.begun")
        settings = self._settings
        rows = _over_ranks([float(len(micro.rows)) for micro in minibatch])
        demonstrations = [] if self._draw is None else self._demonstrations(self._draw(self.steps))
        seen: list[Seen] = []
        seen_of_value: list[Seen] = []
        for number, micro in enumerate(minibatch, start=1):
            found, values = self._forward(micro.batch)
            loss, diagnostics = policy_loss(
                found.logps_BR,
                micro.old_logps_BR,
                micro.advantages_BR,
                micro.mask_BR,
                clip_low=settings.clip_range,
                clip_high=settings.clip_range_high or settings.clip_range,
                dual_clip=settings.dual_clip,
                denominator=self._denominator(tokens, rows),
                weights_BR=micro.weights_BR,
                aggregation=settings.loss_aggregation,
            )
            total = loss = spoil("ppo.loss", loss)
            if found.entropies_BR is not None and settings.entropy_coef > 0:
                total = loss - settings.entropy_coef * masked_mean(found.entropies_BR, micro.mask_BR, tokens)
            if values is not None:
                distance, of_value = self._value_loss(values, micro, tokens)
                total = total + settings.value_coef * distance
                seen_of_value.append(seen_in(micro, distance, of_value))
            self._roles.backward(total, last=number == len(minibatch) and not demonstrations)
            # The loss is this micro-batch's part of the step's; all else is a mean over its tokens.
            seen.append(seen_in(micro, loss, diagnostics))
        if self._draw is not None:
            report.add("policy/ptx_loss", self._learn_demonstrations(demonstrations))
        everywhere, of_value_everywhere = gather_lists(seen), gather_lists(seen_of_value)
        ratio = token_mean(everywhere, "ratio_mean")
        if report.steps == 0:
            report.first_mean = ratio
        if settings.stop_kl is not None and token_mean(everywhere, "approx_kl_k3") > settings.stop_kl:
            self._forget_gradients()
            return False
        if self._has_exploded(ratio, report):
            return False
        if of_value_everywhere:
            self._require_finite(VALUE, of_value_everywhere)
        self._apply(POLICY, everywhere, report)
        if of_value_everywhere:
            self._apply_value(of_value_everywhere, report)
        if report.steps == 0:
            report.first_maxdev = max(each["ratio_maxdev"] for each in everywhere)
        report.ratio_max = max(report.ratio_max, *(each["ratio_max"] for each in everywhere))
        for name in ("clipfrac_high", "clipfrac_low", "clipfrac_dual", "approx_kl_k2", "approx_kl_k3", "ratio_mean"):
            report.add(f"policy/{name}", token_mean(everywhere, name))
        variance = token_mean(everywhere, "ratio_msd") - (token_mean(everywhere, "ratio_mean") - 1) ** 2
        report.add("policy/ratio_var", max(variance, 0.0))
        return True

    def _value_step(self, minibatch: Sequence[MicroBatch], tokens: float, report: UpdateReport) -> None:
        seen = []
        for number, micro in enumerate(minibatch, start=1):
            loss, diagnostics = self._value_loss(self._roles.values(micro.batch), micro, tokens)
            self._roles.backward(loss, last=number == len(minibatch))
            seen.append(seen_in(micro, loss, diagnostics))
        self._apply_value(gather_lists(seen), report)

    def _forward(self, batch: ResponseBatch) -> tuple[TokenScores, Tensor | None]:
        """One pass of the policy; with it what the value model predicts, where it stands on the policy's layers."""
        temperature, entropy = self._settings.temperature, self._settings.entropy_coef > 0
        if self._roles.value_reads_policy:
            return self._roles.logps_and_values(batch, temperature, entropy=entropy)
        return self._roles.logps(POLICY, batch, temperature, entropy=entropy), None

    def _value_loss(self, values: Tensor, micro: MicroBatch, tokens: float) -> tuple[Tensor, Any]:
        return value_loss(values, micro.values_BR, micro.returns_BR, micro.mask_BR, self._settings.value_clip, tokens)

    def _apply_value(self, everywhere: Sequence[Seen], report: UpdateReport) -> None:
        self._apply(VALUE, everywhere, report)
        report.add("value/clipfrac", token_mean(everywhere, "clipfrac"))

    def _forget_gradients(self) -> None:
        """Nothing is learnt from what went backward; of a value model with its own layers nothing has yet."""
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def _demonstrations(self, rows: Sequence[Row]) -> list[ScoringBatch]:
        size = self._settings.per_device_batch_size
        return [scoring_batch(rows[start : start + size], self._pad_id) for start in range(0, len(rows), size)]

    def _learn_demonstrations(self, batches: Sequence[ScoringBatch]) -> float:
        """Add the gradient of ptx_coef times the demonstrations' loss per token; return that loss."""
        tokens = _over_ranks([float(batch.response_mask_BT.sum()) for batch in batches])
        parts = []
        for number, batch in enumerate(batches, start=1):
            logps = self._roles.demonstration_logps(batch)
            loss = -masked_sum(logps, batch.response_mask_BT[:, 1:].to(logps.device)) / tokens
            self._roles.backward(self._settings.ptx_coef * loss, last=number == len(batches))
            parts.append(loss.item())
        return sum(gather_lists(parts))

    def _has_exploded(self, ratio: float, report: UpdateReport) -> bool:
        """Whether a minibatch's ratios are beyond all bounds, on all ranks alike; its gradients are gone then.

        Raises:
            TrivetError: they are, and an engine cannot take gradients back.
        """
        # One that is no number is the loss's business.
        if not ratio > RATIO_EXPLODED:
            return False
        if self._roles.engine(POLICY) is not None:
            raise TrivetError(
                f"the mean importance ratio became {ratio:.3g} at optimiser step {self.steps + 1} (bound "
                f"{RATIO_EXPLODED:g}); it did not reach the weights. Lower learning_rate or epochs"
            )
        self._forget_gradients()
        report.exploded = ratio
        return True

    def _apply(self, role: str, everywhere: Sequence[Seen], report: UpdateReport) -> None:
        """Sum gradients over ranks, clip them, and step, unless something is not finite."""
        loss = sum(each["loss"] for each in everywhere)
        engine = self._roles.engine(role)
        if engine is None:
            parameters = self._roles.trainable(role)
            sum_gradients(parameters)
            norm = spoil("ppo.gradient", float(clip_grad_norm_(parameters, self._settings.max_grad_norm)))
            self._require_finite(role, everywhere, norm)
            self.optimisers[role].step()
            self.optimisers[role].zero_grad(set_to_none=True)
        else:
            self._require_finite(role, everywhere)
            norm = spoil("ppo.gradient", engine.step())
            # It takes no step for such a gradient.
            self._require_finite(role, everywhere, norm)
        report.add(f"{role}/loss", loss)
        report.add(f"{role}/grad_norm", norm)

    def _require_finite(self, role: str, everywhere: Sequence[Seen], norm: float = 0.0) -> None:
        for what, value in (("loss", sum(each["loss"] for each in everywhere)), ("gradient norm", norm)):
            if not math.isfinite(value):
                guilty = [each for each in everywhere if not math.isfinite(each["loss"])] or everywhere
                raise NotFiniteError(
                    f"the {role}'s {what} became {value} at optimiser step {self.steps + 1}; it did not reach the "
                    "weights",
                    self._minibatch,
                    sorted({row for each in guilty for row in each["rows"]}),
                )

    def _denominator(self, tokens: float, rows: float) -> float:
        match self._settings.loss_aggregation:
            case "token_mean":
                return tokens
            case "constant":
                return rows * self._settings.max_new_tokens
        return rows


def _over_ranks(mine: Sequence[float]) -> float:
    return sum(gather_lists(list(mine)))
