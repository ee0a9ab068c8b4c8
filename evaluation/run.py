"""Evaluation as a sealed node of a run: every policy side by side on the same held-out rows and prompts.

Takes: all policies and reward models of the run and the held-out part of its data. Gives: `answers.jsonl` and the
figures of `results.json`. Each measurement is kept as soon as it is made, so an interrupted evaluation goes on where it
was.
"""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import Any

from data_prep.build import encode, encode_demonstrations, prompts, without_seen
from data_prep.chat import ChatFormatter, EncodedDemonstration
from data_prep.clean import limit_records
from data_prep.records import Prompt
from evaluation import sampled
from evaluation.compare import differences, judge, pairs, reference_policy
from evaluation.likelihood import Row, Scorer
from evaluation.measures import (
    Answered,
    answer_all,
    answer_lines,
    base_row,
    perplexity_row,
    preference_row,
    rule_families,
    rule_row,
)
from evaluation.policies import Policies
from evaluation.scores import RewardScorer
from pipeline.artefact import Artefact
from pipeline.context import (
    StageContext,
    StageResult,
    once,
    require_same_base,
    require_same_tokenizer,
    seen_prompts,
)
from pipeline.errors import PreemptedError
from pipeline.models.load import describe_tokenizer, device, load_tokenizer
from pipeline.models.reward_model import read_spec
from pipeline.recipe.lineage import ASKING_TASKS
from pipeline.rollouts.answers import Progress
from pipeline.rollouts.generate import Generator
from pipeline.runtime import resolve_precision

READABLE_PROMPTS = 24
"""So many prompts are answered for reading when no prompt has a rule to score answers by."""
SEED = 0
"""Prompts are drawn alike in every run, so that runs which differ by seed are judged on the same ones."""


def run(context: StageContext) -> StageResult:
    """Measure every policy and leave answers and figures in the context's folder."""
    recipe = context.recipe
    tokenizer = load_tokenizer(context.base_folder, recipe.data.chat_template)
    description = describe_tokenizer(tokenizer)
    require_same_base(context)
    require_same_tokenizer(context, description)
    artefacts: dict[str, Artefact] = dict(context.parents)
    precision = resolve_precision(next(reversed(recipe.stages.values())).precision)
    evaluation = _Evaluation(context, ChatFormatter(tokenizer), description.pad_id, precision, artefacts)
    rows = {name: evaluation.row(name) for name in evaluation.policies.names}
    scores = evaluation.all_scores()
    for name, found in scores.items():
        rows[name].update(sampled.score_row(found))
    answers = evaluation.all_answers()
    if context.ranks.is_first:
        text = "".join(
            json.dumps(line, ensure_ascii=False) + "\n" for line in answer_lines(evaluation.prompts, answers)
        )
        (context.folder / "answers.jsonl").write_text(text, encoding="utf-8")
    right = {name: [answer.right for answer in found] for name, found in answers.items()}
    compared = pairs(recipe)
    metrics = {
        "reference": evaluation.reference,
        "score_by": evaluation.judge if scores else None,
        "policies": rows,
        "families": {name: rule_families(evaluation.prompts, found) for name, found in answers.items()},
        "comparisons": differences("rule_accuracy", compared, right) + differences("score", compared, scores),
    }
    return StageResult(
        form="none", tokenizer=description, precision=precision, device=str(device()), data={}, metrics=metrics
    )


class _Evaluation:
    """One run's measurements; every rank goes through the same ones in the same order."""

    def __init__(
        self,
        context: StageContext,
        formatter: ChatFormatter,
        pad_id: int,
        precision: str,
        artefacts: dict[str, Artefact],
    ):
        self._context = context
        self._recipe = context.recipe
        self._formatter = formatter
        self._pad_id = pad_id
        self._precision = precision
        self._artefacts = artefacts
        self._seen = seen_prompts(artefacts)
        self._tasks = set(context.recipe.evaluation.tasks)
        self.policies = Policies(artefacts, context.base_folder, context.recipe.model, precision)
        self.reference = reference_policy(context.recipe)
        self.judge = judge(context.recipe)
        self._chosen = self._choose_prompts()
        self._prompts = self._chosen[: self._greedy_count()]

    def row(self, name: str) -> dict[str, Any]:
        """The columns of one policy that need no reward model."""
        row = base_row()
        row.update(rule_row(self._answers(name)) if "rules" in self._tasks else {})
        if "perplexity" in self._tasks and self._recipe.data.sft is not None:
            row.update(self._kept(f"perplexity-{name}", name, self._perplexity))
        if "kl" in self._tasks and self._prompts and name != self.reference:
            row.update(self._kept(f"kl-{name}", name, self._kl))
        elif "kl" in self._tasks and self._prompts:
            row.update(kl_to_reference=0.0, kl_ci95=[0.0, 0.0])
        if "preference" in self._tasks and name in self._artefacts:
            row.update(preference_row(self._artefacts[name].path))
        return row

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that are answered, in order."""
        return [prompt for prompt, _ in self._prompts]

    def all_answers(self) -> dict[str, list[Answered]]:
        """Every policy's greedy answers, by policy."""
        return {name: self._answers(name) for name in self.policies.names} if "rules" in self._tasks else {}

    def all_scores(self) -> dict[str, list[float]]:
        """The judge's scores of every policy's sampled answers, by policy. Last, so that the judge is loaded once."""
        if "score" not in self._tasks or self.judge is None or not self._prompts:
            return {}
        rows = {name: self._sampled(name) for name in self.policies.names}
        return {name: self._kept(f"score-{name}", name, partial(self._scores, rows[name]))["scores"] for name in rows}

    def _choose_prompts(self) -> list[tuple[Prompt, list[int]]]:
        """Held-out prompts that no policy was trained on; those with a rule first, as only they can be scored."""
        if not self._tasks.intersection(ASKING_TASKS):
            return []
        found = prompts(self._recipe.data)
        unseen = without_seen(found.held_out, self._seen)
        with_rule = [prompt for prompt in unseen if prompt.check is not None]
        settings = self._recipe.evaluation
        chosen = limit_records(with_rule or unseen, max(settings.prompts, settings.kl_prompts), SEED)
        longest = self._recipe.data.prompts.max_prompt_length
        encoded = encode(chosen, lambda prompt: self._formatter.prompt(prompt, longest), found.report)
        return [(prompt, row.ids) for prompt, row in zip(encoded.records, encoded.rows, strict=True)]

    def _greedy_count(self) -> int:
        wanted = self._recipe.evaluation.prompts
        has_rule = any(prompt.check is not None for prompt, _ in self._chosen)
        return wanted if has_rule else min(wanted, READABLE_PROMPTS)

    def _answers(self, name: str) -> list[Answered]:
        if not self._prompts:
            return []

        def compute(policy: str) -> dict[str, Any]:
            with self.policies.use(policy) as model:
                found = answer_all(
                    self._generator(model),
                    self._prompts,
                    self._recipe.evaluation.max_new_tokens,
                    self._formatter,
                    self._progress(f"answers of {policy}"),
                )
            return {"answers": [answer.as_list() for answer in found]}

        kept = self._kept(f"answers-{name}", name, compute)
        return [Answered.from_list(values) for values in kept["answers"]]

    @cached_property
    def _held_out(self) -> list[EncodedDemonstration]:
        """Held-out demonstrations whose prompts no policy was trained on."""
        _, held_out, _ = encode_demonstrations(self._recipe.data, self._formatter, self._recipe.seed)
        unseen = {id(record) for record in without_seen(held_out.records, self._seen)}
        return [row for record, row in zip(held_out.records, held_out.rows, strict=True) if id(record) in unseen]

    def _perplexity(self, name: str) -> dict[str, Any]:
        if not self._held_out:
            return {}
        with self.policies.use(name) as model:
            return perplexity_row(self._scorer(model), self._held_out, self._progress(f"perplexity of {name}"))

    def _sampled(self, name: str) -> list[Row]:
        """A policy's sampled answers behind their prompts."""
        settings = self._recipe.evaluation
        prompts = [ids for _, ids in self._chosen[: settings.kl_prompts]]

        def compute(policy: str) -> dict[str, Any]:
            task = self._progress(f"sampled answers of {policy}")
            with self.policies.use(policy) as model:
                return {"answers": sampled.draw(self._generator(model), prompts, settings.max_new_tokens, task)}

        return sampled.answer_rows(prompts, self._kept(f"sampled-{name}", name, compute)["answers"])

    def _kl(self, name: str) -> dict[str, Any]:
        return sampled.kl_row(self.policies, name, self.reference, self._sampled(name), self._scorer)

    def _scores(self, rows: list[Row], name: str) -> dict[str, Any]:
        assert self.judge is not None
        members, spec = self.policies.members(self.judge), read_spec(self._artefacts[self.judge])
        size = self._recipe.evaluation.batch_size
        scorer = RewardScorer(members, spec, self._pad_id, size, self._precision, self._context.ranks)
        return {"scores": scorer.score([ids for ids, _ in rows], self._progress(f"score of {name} by {self.judge}"))}

    def _scorer(self, model: Any) -> Scorer:
        size = self._recipe.evaluation.batch_size
        return Scorer(model, self._pad_id, size, self._precision, self._context.ranks)

    def _generator(self, model: Any) -> Generator:
        size = self._recipe.evaluation.batch_size
        stop_ids = self._formatter.stop_ids
        return Generator(model, self._pad_id, stop_ids, size, self._precision, self._context.ranks)

    def _kept(self, task: str, name: str, compute: Any) -> dict[str, Any]:
        """A measurement made once, with a chance to stop before each."""
        if self._context.stop.agreed():
            raise PreemptedError("evaluation was asked to stop; run the same command again to go on")
        return once(self._context, task, lambda: compute(name))

    def _progress(self, task: str) -> Progress:
        return partial(self._context.console.progress, task)
