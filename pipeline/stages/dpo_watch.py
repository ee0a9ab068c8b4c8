"""What a DPO policy's own answers are worth while it trains, by a reward model that the loss does not see.

The preference margin can go on rising while the policy's answers get worse. So held-out prompts are answered every few
steps, the same ones with the same sampling noise, and a sealed reward model scores them. Nothing of training depends on
it, unless the recipe hands on the best policy or ends at the turn. Layer 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.chat import ChatFormatter
from data_prep.checks import passes
from data_prep.prompt_rows import encode_prompts
from evaluation.intervals import bootstrap_mean_ci, paired_bootstrap_ci
from evaluation.likelihood import Likelihood, Row
from evaluation.overoptimisation import Turn, mean_since, watch
from evaluation.sampled import SAMPLING_SEED, answer_rows, divergences
from evaluation.scores import RewardScorer, attach_members, load_members
from evaluation.text_measures import repetition
from pipeline.artefact import Artefact
from pipeline.context import StageContext, seen_prompts
from pipeline.durable import read_json, write_json_atomically
from pipeline.errors import DataError
from pipeline.models.reward_model import read_spec
from pipeline.models.shards import fill, whole_copies
from pipeline.recipe.lineage import WATCHED
from pipeline.recipe.stage_settings import DpoSettings
from pipeline.rollouts.answers import Answer, Sampling
from pipeline.rollouts.generate import Generator
from pipeline.stages.held_out_rows import HELD_OUT, append_rows, leave_rows, rewind_rows
from pipeline.stages.policy import Policy
from pipeline.stages.prompts import PromptRow, require_room

FIGURES = ("score_heldout", "kl_seq", "eos_rate", "len_mean", "repeat_ngram", "rule_accuracy")
"""Names of what is logged of a measurement."""
MARGIN = "rewards/margins"
"""What DPO trains: the trainer's name for how far chosen answers stand above rejected ones."""
_AT_A_TIME = 32
"""Prompts that are answered together on one process."""
_STATE, _SELECTED = "watch.json", "selected.safetensors"
Score = Callable[[Sequence[Row]], list[Likelihood]]
"""Log-probabilities of rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One policy on the held-out prompts."""

    step: int
    scores: list[float]
    """By the reward model that is watched, prompt by prompt."""
    divergences: list[float]
    """log pi(y|x) - log ref(y|x), prompt by prompt."""
    tokens: list[int]
    """Of each answer."""
    ends: list[bool]
    """Whether each answer ended by itself."""
    repeat_ngram: float
    """Share of an answer's token 4-grams that occurred in it before."""
    rule_accuracy: float | None
    """Share of answers that pass their prompts' rules; None where no prompt has one."""

    @property
    def score(self) -> float:
        """Mean score."""
        return sum(self.scores) / len(self.scores)

    @property
    def kl(self) -> float:
        """Estimated divergence from the reference, in nats per answer."""
        return sum(self.divergences) / len(self.divergences)

    @property
    def eos_rate(self) -> float:
        """Share of answers that ended by themselves."""
        return sum(self.ends) / len(self.ends)

    def rows(self) -> list[dict[str, float | None]]:
        """What each prompt gave, in order."""
        columns = zip(self.scores, self.divergences, self.tokens, self.ends, strict=True)
        return [{"score_heldout": score, "kl": kl, "tokens": count, "eos": eos} for score, kl, count, eos in columns]

    def figures(self) -> dict[str, float]:
        """What is logged of it."""
        length = sum(self.tokens) / len(self.tokens)
        values = (self.score, self.kl, self.eos_rate, length, self.repeat_ngram, self.rule_accuracy)
        return {name: value for name, value in zip(FIGURES, values, strict=True) if value is not None}


@dataclass(slots=True)
class _State:
    """Where the watch stands; in every checkpoint."""

    looks: list[Look] = field(default_factory=list)
    selected: int | None = None
    """Step of the policy that was best so far."""
    turned: dict[str, Any] | None = None
    stopped: str = ""
    """Why training ended early, if it did."""


class Watch:
    """Measures a DPO policy on a schedule; every rank makes the same calls.

    Args:
        context: of the stage.
        settings: of the stage; `watch` names the reward stage.
        policy: in training, the reference beside it. A reward model stored as adapters is put on its base, frozen.
        own, reference: log-probabilities under the policy as it is, and under its reference.
        precision: of the forward passes.

    Raises:
        DataError: there are no held-out prompts.
        RecipeError: prompts and answers do not fit in the model's context.
    """

    def __init__(
        self, context: StageContext, settings: DpoSettings, policy: Policy, own: Score, reference: Score, precision: str
    ):
        self._context = context
        self._settings = settings
        self._own, self._reference = own, reference
        self._formatter = ChatFormatter(policy.tokenizer)
        room = getattr(policy.model.config, "max_position_embeddings", None)
        self._prompts = _held_out_prompts(context, settings, self._formatter, room)
        size, pad_id = 2 * settings.per_device_batch_size, policy.description.pad_id
        self._generator = Generator(
            policy.model, pad_id, self._formatter.stop_ids, _AT_A_TIME, precision, context.ranks
        )
        judge = context.parents[WATCHED]
        _warn_of_a_blind_judge(context, settings, judge)
        self._trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
        if judge.manifest.form == "adapter":
            _, members = attach_members(policy.model, judge, WATCHED)
        else:
            members = load_members(judge, context.recipe.model, precision)
        self._reward = RewardScorer(members, read_spec(judge), pad_id, size, precision, context.ranks)
        self._state = _State()
        self._selected: dict[str, Tensor] = {}
        self._last = 0

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what it logs on held-out data."""
        return FIGURES

    @property
    def stopped(self) -> str:
        """Why training ended before its last step; empty if it did not."""
        return self._state.stopped

    def due(self, step: int, last: int) -> bool:
        """Whether a measurement belongs after this step."""
        self._last = last
        return step % self._settings.eval_every == 0 or step >= last

    def look(self, step: int, logged: Sequence[Mapping[str, Any]]) -> None:
        """Measure the policy as it is.

        Args:
            step: that was taken last, 0 before the first.
            logged: the trainer's averages so far, each with its `step`.
        """
        found = self._measure(step)
        self._state.looks.append(found)
        if self._settings.select == "heldout":
            self._select(found)
        if self._context.ranks.is_first:
            self._context.tracker.log(step, "eval", found.figures())
            append_rows(self._context, "step", step, found.rows())
        self._context.console.say(
            f"held-out prompts after step {step}: score by {self._settings.watch} {found.score:.3f}, "
            f"KL {found.kl:.2f}, {found.eos_rate:.0%} end"
        )
        self._look_for_a_turn(logged)

    def rewind(self, checkpoint: Path | None) -> None:
        """Go on from a complete checkpoint, or begin without one."""
        self._state, self._selected = _State(), {}
        if checkpoint is not None:
            found = read_json(checkpoint / _STATE)
            self._state = _State(**{**found, "looks": [Look(**look) for look in found["looks"]]})
            if (checkpoint / _SELECTED).is_file():
                self._selected = load_file(checkpoint / _SELECTED)
        if self._context.ranks.is_first:
            reached = self._state.looks[-1].step if self._state.looks else -1
            rewind_rows(self._context.work / HELD_OUT, "step", reached)

    def save(self, checkpoint: Path) -> None:
        """Put all of it into a checkpoint that is being written (first rank only)."""
        if self._selected:
            save_file(self._selected, checkpoint / _SELECTED)
        write_json_atomically(checkpoint / _STATE, asdict(self._state))

    def hand_over(self) -> None:
        """Make the policy the one that was selected, and leave the rows in the artefact; training has ended."""
        if self._selected:
            fill(self._trained, [self._selected[f"{index:05d}"] for index in range(len(self._trained))])
        if self._context.ranks.is_first:
            leave_rows(self._context)

    def metrics(self) -> dict[str, Any]:
        """For the manifest: every measurement, and what the score gained from the start to what is handed on."""
        looks = self._state.looks
        kept = next((look for look in looks if look.step == self._state.selected), looks[-1])
        gain, divergence = paired_bootstrap_ci(looks[0].scores, kept.scores), bootstrap_mean_ci(kept.divergences)
        return {
            "score_heldout_before": looks[0].score,
            "score_heldout": kept.score,
            "score_heldout_gain": gain.estimate,
            "score_heldout_gain_ci95": gain.bounds,
            "kl_to_reference": divergence.estimate,
            "kl_ci95": divergence.bounds,
            "heldout_n": len(kept.scores),
            "selected_step": kept.step,
            "stopped": self.stopped or None,
            "measured": [{"step": look.step, **look.figures()} for look in looks],
            **({"turned": self._state.turned} if self._state.turned else {}),
        }

    def _measure(self, step: int) -> Look:
        sampling = Sampling(self._settings.max_new_tokens, temperature=1.0, seed=SAMPLING_SEED)
        task = partial(self._context.console.progress, "held-out answers")
        ids = [ids for _, ids in self._prompts]
        answers = self._generator.answers(ids, sampling, task)
        rows = answer_rows(ids, [answer.ids for answer in answers])
        own, reference = ([row.logp for row in score(rows)] for score in (self._own, self._reference))
        return Look(
            step=step,
            scores=self._reward.score([row for row, _ in rows]),
            divergences=divergences(own, reference),
            tokens=[len(answer.ids) for answer in answers],
            ends=[answer.stopped for answer in answers],
            repeat_ngram=repetition([answer.ids for answer in answers]) or 0.0,
            rule_accuracy=self._rule_accuracy(answers),
        )

    def _rule_accuracy(self, answers: Sequence[Answer]) -> float | None:
        right = [
            passes(prompt.check, self._formatter.response_text(answer.ids))
            for (prompt, _), answer in zip(self._prompts, answers, strict=True)
            if prompt.check is not None
        ]
        return sum(right) / len(right) if right else None

    def _select(self, found: Look) -> None:
        best = next((look for look in self._state.looks if look.step == self._state.selected), None)
        if best is None or found.score > best.score:
            self._state.selected = found.step
            self._selected = {f"{index:05d}": each for index, each in enumerate(whole_copies(self._trained))}

    def _look_for_a_turn(self, logged: Sequence[Mapping[str, Any]]) -> None:
        turn = turn_so_far(self._state.looks, logged) if self._state.turned is None else None
        if turn is None:
            return
        ends = self._settings.stop_at_turn and self._state.looks[-1].step < self._last
        self._state.turned = {"step": turn.step, "kl": turn.kl, "best": turn.best, "last": turn.last}
        consequence = "training ends" if ends else "later policies are worse for it"
        told = (
            f"step {self._state.looks[-1].step}: the preference margin still rises, but the score by "
            f"{self._settings.watch} turned near step {turn.step:.0f} and fell from {turn.best:.2f} to "
            f"{turn.last:.2f}: {consequence}"
        )
        self._context.console.say(told)
        if ends:
            self._state.stopped = told


def turn_so_far(looks: Sequence[Look], logged: Sequence[Mapping[str, Any]]) -> Turn | None:
    """The turn that the measurements up to now show, if any.

    Args:
        looks: in order.
        logged: the trainer's averages, of which the preference margin is what training raises.
    """
    margins = {float(row["step"]): float(row[MARGIN]) for row in logged if MARGIN in row}
    steps = [float(look.step) for look in looks]
    training = [mean_since(margins, before, step) for before, step in zip([-1.0, *steps], steps, strict=False)]
    return watch(steps, training, [look.score for look in looks], [look.kl for look in looks])


def _held_out_prompts(
    context: StageContext, settings: DpoSettings, formatter: ChatFormatter, positions: int | None
) -> list[PromptRow]:
    _, held_out, _ = encode_prompts(
        context.recipe.data,
        formatter,
        context.recipe.seed,
        with_rule=False,
        held_out=settings.eval_prompts,
        seen=seen_prompts(context.parents),
        part=context.data_part,
        aside=None,
    )
    if not held_out.rows:
        raise DataError(
            f"stages.{context.stage}.watch: answers to held-out prompts are scored, and there are none; raise the data "
            "set's eval_fraction, or remove watch"
        )
    require_room(context, settings.max_new_tokens, max(len(row.ids) for row in held_out.rows), positions)
    return [(prompt, row.ids) for prompt, row in zip(held_out.records, held_out.rows, strict=True)]


def _warn_of_a_blind_judge(context: StageContext, settings: DpoSettings, judge: Artefact) -> None:
    accuracy, interval = (judge.manifest.metrics.get(name) for name in ("eval_accuracy", "eval_accuracy_ci95"))
    if accuracy is None or interval is None:
        context.console.say(
            f"{settings.watch} was measured on no held-out pairs: nothing says that its scores mean much"
        )
    elif interval[0] <= 0.5:
        context.console.say(
            f"{settings.watch} prefers the better answer in {accuracy:.0%} of held-out pairs [{interval[0]:.2f}, "
            f"{interval[1]:.2f}], which may be chance: its scores may say nothing"
        )
