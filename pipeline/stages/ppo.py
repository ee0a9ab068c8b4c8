"""Proximal policy optimisation with a KL penalty, all its roles on one frozen base.

Takes: `data.prompts`, an earlier policy (start and reference), and rewards: sealed reward models, rules, a function.
Gives: a policy. One rollout is the whole loop: sample answers, score them, take log-probabilities of policy and
reference, and values where there is a value model, turn scores less KL into whitened advantages, make a few passes over
them, look at held-out prompts now and then, save. What is handed on is the best policy on held-out prompts, the one
before the first step included.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any, NoReturn, cast

from data_prep.build import prompt_hashes
from data_prep.chat import ChatFormatter
from data_prep.cleaning import write_dropped
from pipeline import checkpoint
from pipeline.algorithms.kl import AdaptiveKL
from pipeline.context import TRAIN_PROMPTS, StageContext, StageResult, seen_prompts
from pipeline.durable import json_lines
from pipeline.errors import PreemptedError, TrivetError
from pipeline.faults import reach
from pipeline.models.load import device
from pipeline.models.seeing import require_text_model
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import SamplingStopped
from pipeline.rollouts.collect import Shaping, collect, lay_out
from pipeline.rollouts.rewards import Episode, Scores
from pipeline.runtime import barrier, resolve_precision, seed_everything
from pipeline.stages.held_out_rows import HELD_OUT, append_rows, leave_rows, rewind_rows
from pipeline.stages.policy import save_policy
from pipeline.stages.ppo_metrics import Times, rollout_metrics
from pipeline.stages.ppo_report import UpdateReport
from pipeline.stages.ppo_roles import make_roles
from pipeline.stages.ppo_selection import Examiner, Measurement, gains, is_better
from pipeline.stages.ppo_setup import (
    Bench,
    demonstrations_to_mix,
    make_bench,
    make_prompts,
    require_gate,
)
from pipeline.stages.ppo_spreading import Spreader
from pipeline.stages.ppo_state import Keeper, Progress, require_same_launch
from pipeline.stages.ppo_update import Learner, NotFiniteError
from pipeline.stages.ppo_watch import as_figures, not_finite, ratio_warnings, sentence, turn_so_far
from pipeline.stages.prompts import PromptRow
from pipeline.stages.round_trip import require_same_policy

SAMPLES = "rollouts.jsonl"
"""In the artefact: answers to some prompts of every logged rollout, with score and divergence."""
SAMPLES_PER_ROLLOUT = 4
PATIENCE = 5
"""Rollouts in a row in which no answer ends, or all are empty, before the stage gives up."""
EXPLODED = 5.0
"""Nats per token from the reference, on average: the policy shares nothing with it any more."""


def run(context: StageContext) -> StageResult:
    """Train and leave the policy in the context's folder."""
    settings = cast(PpoSettings, context.recipe.stages[context.stage])
    require_text_model(context.base_folder, context.stage, settings.kind)
    require_gate(context, settings)
    precision = resolve_precision(settings.precision)
    spreader = Spreader(context, settings)
    policy, roles = make_roles(context, settings, precision, spreader)
    formatter = ChatFormatter(policy.tokenizer)
    room = getattr(policy.model.config, "max_position_embeddings", None)
    prompts = make_prompts(context, settings, formatter, seen_prompts(context.parents), room)
    context.console.say(f"{len(prompts.train)} prompts to train on, {len(prompts.held_out)} held out")
    bench = make_bench(context, settings, roles, policy, formatter, precision)
    total = settings.episodes // settings.rollout_batch_size
    draw = demonstrations_to_mix(context.recipe, settings, formatter, context.ranks)
    learner = Learner(roles, settings, total, context.ranks, draw, bench.pad_id)
    spreader.train(roles, learner)
    keeper = Keeper(context, roles, learner)
    loop = _Loop(bench, learner, keeper, Examiner(bench, prompts.held_out))
    progress = loop.run(prompts.train, total)
    keeper.restore_selected()
    save_policy(policy, context)
    rows = [ids for _, ids in prompts.train]
    require_same_policy(policy.model, context.folder / policy.form, rows, context, roles.response_logps)
    if context.ranks.is_first:
        write_dropped(context.folder, prompts.dropped)
        trained = prompt_hashes([prompt for prompt, _ in prompts.train])
        seen = seen_prompts(context.parents) | set(trained)
        (context.folder / TRAIN_PROMPTS).write_text("\n".join(sorted(seen)) + "\n")
        leave_rows(context)
        samples = context.work / SAMPLES
        if samples.is_file():
            (context.folder / SAMPLES).write_bytes(samples.read_bytes())
            context.tracker.table("rollouts", [json.loads(line) for line in json_lines(samples)])
    return StageResult(
        form=cast(Any, policy.form),
        tokenizer=policy.description,
        precision=precision,
        device=str(device()),
        data={"prompts": prompts.report},
        metrics=_metrics(progress, learner),
    )


class _Loop:
    """Rollouts, one after another, from wherever the last complete checkpoint left off."""

    def __init__(self, bench: Bench, learner: Learner, keeper: Keeper, examiner: Examiner):
        self._bench = bench
        self._context = bench.context
        self._settings = bench.settings
        self._learner = learner
        self._keeper = keeper
        self._examiner = examiner
        self._saved: int | None = None
        """Rollouts in the newest checkpoint."""

    def run(self, prompts: list[PromptRow], total: int) -> Progress:
        """Train to the end, or until the KL budget is spent."""
        settings, context = self._settings, self._context
        progress = self._resume()
        if progress.rollouts == 0 and progress.before is None:
            self._consider(progress)
        context.console.progress("rollout", progress.rollouts, total)
        context.expect_steps(total)
        while progress.rollouts < total and not (progress.over_budget or progress.stopped):
            # Whatever a user's reward draws is so the same in a run that was interrupted.
            seed_everything(_seed(context.recipe.seed, progress.rollouts))
            headline = self._rollout(progress, prompts, total)
            if progress.over_budget:
                break
            last = progress.rollouts == total
            if last or progress.rollouts % settings.eval_every == 0:
                self._consider(progress)
            if last or progress.rollouts % settings.save_every == 0:
                self._save(progress)
            context.console.progress("rollout", progress.rollouts, total, headline)
            if not last:
                self._stop_if_asked(progress, total)
        if progress.over_budget:
            context.console.say(progress.over_budget)
        return progress

    def _stop_if_asked(self, progress: Progress, total: int) -> None:
        """Save and end the stage if any rank was asked to; between rollouts, or before one has changed anything."""
        if self._context.stop.agreed():
            self._stop(progress, total)

    def _stop(self, progress: Progress, total: int) -> NoReturn:
        context = self._context
        if self._saved != progress.rollouts:
            self._save(progress)
        raise PreemptedError(
            f"stage {context.stage} was asked to stop; rollout {progress.rollouts} of {total} is saved, run "
            "the same command again to go on"
        )

    def _save(self, progress: Progress) -> None:
        self._keeper.save(progress)
        self._saved = progress.rollouts

    def _resume(self) -> Progress:
        context = self._context
        found, passed_over = checkpoint.newest_complete(context.checkpoints)
        if found is not None:
            require_same_launch(found, context)
        progress = Progress(kl_coef=self._settings.kl_coef) if found is None else self._keeper.load(found)
        if context.ranks.is_first:
            for broken in passed_over:
                context.console.say(f"{broken.name} was not complete when the run ended; it is left out")
            context.tracker.rewind(progress.rollouts if found else -1, keep_held_out=True)
            for name in (SAMPLES, HELD_OUT):
                rewind_rows(context.work / name, "rollout", progress.rollouts if found else -1)
            if found:
                context.console.say(f"going on from rollout {progress.rollouts}")
        barrier()
        if context.ranks.is_first:
            checkpoint.keep_only(context.checkpoints, found)
        self._saved = progress.rollouts if found else None
        return progress

    def _rollout(self, progress: Progress, prompts: list[PromptRow], total: int) -> str:
        """One rollout, from prompts to a trained policy; returns what to show of it."""
        settings, number = self._settings, progress.rollouts
        run_seed = self._context.recipe.seed
        seed, times = _seed(run_seed, number), Times()
        reach("rollout.begun")
        with times("rollout"):
            picked = _picked(prompts, number, settings.rollout_batch_size, run_seed, settings.samples_per_prompt)
            # Until something is learnt from them, answers will be the same again.
            try:
                episodes = self._bench.answer(picked, seed, stop=self._context.stop)
            except SamplingStopped:
                self._stop(progress, total)
        reach("rollout.sampled")
        with times("score"):
            scores = self._bench.judge(episodes)
            layout = lay_out(
                [len(e.prompt_ids) + len(e.answer.ids) for e in episodes],
                settings.minibatches, settings.per_device_batch_size, self._context.ranks, seed,
                settings.tokens_per_device, settings.samples_per_prompt,
            )  # fmt: skip
            shaping = Shaping(
                temperature=settings.temperature, kl_coef=progress.kl_coef, gamma=settings.gamma,
                gae_lambda=settings.gae_lambda, whiten=settings.whiten_advantages,
                importance_cap=settings.vllm.importance_cap, samples_per_prompt=settings.samples_per_prompt,
            )  # fmt: skip
            minibatches = collect(self._bench.roles, episodes, scores.used, layout, shaping, self._bench.pad_id)
        reach("rollout.scored")
        self._stop_if_asked(progress, total)
        rates = self._learner.rates(number)
        metrics, divergences = rollout_metrics(
            episodes, scores, minibatches, progress.kl_coef, self._context.ranks, settings.samples_per_prompt
        )
        self._require_health(progress, episodes, metrics)
        if settings.kl_max is not None and metrics["objective/kl_seq"] > settings.kl_max:
            kept = progress.selected.rollout if progress.selected else number
            progress.over_budget = (
                f"rollout {number + 1} is {metrics['objective/kl_seq']:.2f} nats per answer away from the reference, "
                f"over kl_max {settings.kl_max:g}: training ends, the policy after rollout {kept} is kept"
            )
            return ""
        with times("train"):
            try:
                report = self._learner.learn(minibatches, number, value_only=number < settings.value_warmup)
            except NotFiniteError as error:
                raise not_finite(error, self._context, number + 1, episodes) from error
        reach("rollout.learned")
        self._watch_ratios(report, metrics["rollout/logp_diff_mean"], number + 1)
        progress.first_maxdev = max(progress.first_maxdev, report.first_maxdev)
        progress.rollouts += 1
        progress.scores.append(metrics["objective/score"])
        progress.episodes += len(episodes)
        tokens = sum(len(e.answer.ids) for e in episodes)
        metrics |= {
            **report.means(), "policy/ratio_max": report.ratio_max,
            "policy/ratio_first_minibatch_maxdev": report.first_maxdev,
            **{f"lr/{role}": rate for role, rate in rates.items()}, "episodes": progress.episodes,
            "opt_steps": self._learner.steps, "tok_per_s": tokens / times.total, **times.metrics(),
        }  # fmt: skip
        if settings.kl_target is not None:
            controller = AdaptiveKL(progress.kl_coef, settings.kl_target, settings.kl_horizon)
            progress.kl_coef = controller.update(metrics["objective/kl_seq"], len(episodes))
        if progress.rollouts % settings.log_every == 0 and self._context.ranks.is_first:
            self._context.tracker.log(progress.rollouts, "train", metrics)
            shown = range(0, len(episodes), settings.samples_per_prompt)[:SAMPLES_PER_ROLLOUT]
            _write_samples(self._context, progress.rollouts, episodes, scores, divergences, shown)
        return f"score {metrics['objective/score']:.3f}  KL {metrics['objective/kl_seq']:.2f}"

    def _watch_ratios(self, report: UpdateReport, sampler_apart: float, rollout: int) -> None:
        precision = resolve_precision(self._settings.precision)
        for told in ratio_warnings(report, sampler_apart, rollout, precision):
            self._context.console.say(told)

    def _consider(self, progress: Progress) -> None:
        """Measure the policy as it is, and select it if it is the best so far."""
        found = self._examiner.measure(progress.rollouts)
        if found is None:
            return
        if progress.before is None:
            progress.before = found
        if is_better(found, progress.selected, self._settings):
            progress.selected = found
            self._keeper.select()
        _log_measurement(self._context, progress, found)
        self._look_for_a_turn(progress)

    def _look_for_a_turn(self, progress: Progress) -> None:
        """Say when the score that is watched has turned, and end training where the recipe asks for that."""
        judge, ends = self._settings.watch, self._settings.stop_at_turn
        turn = turn_so_far(progress.measured, progress.scores) if judge and progress.turned is None else None
        if turn is None or judge is None:
            return
        progress.turned = as_figures(turn)
        told = sentence(progress.turned, judge, progress.rollouts, ends=ends)
        self._context.console.say(told)
        if ends:
            progress.stopped = told

    def _require_health(self, progress: Progress, episodes: list[Episode], metrics: dict[str, float]) -> None:
        """Stop at what more training would only make worse; the last complete checkpoint stays.

        Raises:
            TrivetError: naming what was seen and what to change.
        """
        kept, stage = "the last complete checkpoint is kept", self._context.stage
        if metrics["objective/kl_token"] > EXPLODED:
            raise TrivetError(
                f"stage {stage}: rollout {progress.rollouts + 1} is {metrics['objective/kl_token']:.1f} nats per token "
                f"away from the reference: the policy has broken down, {kept}. Lower learning_rate, raise "
                "kl_coef, or set kl_max to end at a budget"
            )
        never = not any(episode.answer.stopped for episode in episodes)
        progress.never_stopped = progress.never_stopped + 1 if never else 0
        if never and progress.never_stopped == 1:
            self._context.console.say(
                f"no answer of rollout {progress.rollouts + 1} ended by itself within "
                f"{self._settings.max_new_tokens} tokens"
            )
        if progress.never_stopped >= PATIENCE and self._settings.missing_eos_penalty > 0:
            raise TrivetError(
                f"stage {stage}: in {PATIENCE} rollouts no answer ended by itself within "
                f"{self._settings.max_new_tokens} tokens, {kept}. Raise max_new_tokens, train SFT longer, or set "
                "missing_eos_penalty: 0 to train on answers that are cut off"
            )
        empty = not any(episode.text for episode in episodes)
        progress.all_empty = progress.all_empty + 1 if empty else 0
        if progress.all_empty >= PATIENCE:
            raise TrivetError(
                f"stage {stage}: in {PATIENCE} rollouts every answer was empty, {kept}. Lower learning_rate, "
                "raise kl_coef, or look at what the reward gives for an empty answer"
            )


def _picked(prompts: list[PromptRow], rollout: int, size: int, seed: int, samples: int = 1) -> list[PromptRow]:
    """The prompt of each of a rollout's answers: pass after pass over all, each pass in an order of its own."""
    orders: dict[int, list[int]] = {}
    found = []
    for turn in range(rollout * size // samples, (rollout + 1) * size // samples):
        lap, place = divmod(turn, len(prompts))
        if lap not in orders:
            orders[lap] = random.Random(f"{seed}:{lap}").sample(range(len(prompts)), len(prompts))
        found += [prompts[orders[lap][place]]] * samples
    return found


def _seed(seed: int, rollout: int) -> int:
    return (seed * 1_000_003 + rollout + 1) % 2**31


def _log_measurement(context: StageContext, progress: Progress, found: Measurement) -> None:
    values = {
        "score": found.score, "kl_seq": found.kl, "objective": found.objective, "eos_rate": found.eos_rate,
        "len_mean": found.response_tokens,
    }  # fmt: skip
    further = {name: getattr(found, name) for name in ("rule_accuracy", "score_heldout", "repeat_ngram")}
    values |= {name: value for name, value in further.items() if value is not None}
    progress.measured.append({"rollout": found.rollout, **values})
    if context.ranks.is_first:
        context.tracker.log(found.rollout, "eval", values)
        append_rows(context, "rollout", found.rollout, found.rows())
    context.console.say(
        f"held-out prompts after rollout {found.rollout}: score {found.score:.3f}, KL {found.kl:.2f}, "
        f"{found.eos_rate:.0%} end"
    )


def _write_samples(
    context: StageContext, rollout: int, episodes: list[Episode], scores: Scores, divergences: list[float],
    shown: Sequence[int],
) -> None:  # fmt: skip
    path = context.work / SAMPLES
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "rollout": rollout,
            "prompt": [{"role": m.role, "content": m.content} for m in episodes[i].prompt.messages],
            "response": episodes[i].text,
            "score": scores.whole[i],
            "score_used": scores.used[i],
            **{f"score_{name}": part[i] for name, part in scores.parts.items() if len(scores.parts) > 1},
            "kl": divergences[i],
            "tokens": len(episodes[i].answer.ids),
            "eos": episodes[i].answer.stopped,
        }
        for i in shown
    ]
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _metrics(progress: Progress, learner: Learner) -> dict[str, Any]:
    return {
        **gains(progress.before, progress.selected),
        "episodes": progress.episodes,
        "rollouts": progress.rollouts,
        "selected_rollout": progress.selected.rollout if progress.selected else progress.rollouts,
        "steps": learner.steps,
        "kl_coef": progress.kl_coef,
        "ratio_first_minibatch_maxdev": progress.first_maxdev,
        "stopped": progress.over_budget or progress.stopped or None,
        "measured": progress.measured,
        **({"turned": progress.turned} if progress.turned else {}),
    }
