"""The measurements of an evaluation, one by one; each is kept as soon as it is made.

Every rank goes through the same ones in the same order. Greedy answers are for rules, judges and readers; sampled ones,
drawn once per policy with the same noise, are for the divergence, the scores and what the answers look like.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from data_prep.chat import ChatFormatter, EncodedDemonstration
from data_prep.records import Prompt
from evaluation import sampled
from evaluation.chosen import NO_DEMONSTRATIONS, choose_demonstrations, choose_prompts, greedy_count
from evaluation.compare import judges, measured_policies, reference_policy
from evaluation.finite import require_finite
from evaluation.judging.grading import Grades, grade_one_by_one
from evaluation.judging.policies import Judged, judge_one_by_one, write_judged
from evaluation.judging.questions import Question, read_questions
from evaluation.likelihood import Likelihood, Row, Scorer
from evaluation.measures import (
    Answered,
    answer_all,
    base_row,
    likelihoods,
    perplexity_lines,
    perplexity_of,
    preference_row,
    rule_row,
)
from evaluation.overlap import overlap_row, require_libraries
from evaluation.policies import Policies
from evaluation.score_wins import score_wins
from evaluation.scoring import RewardModels
from evaluation.text_measures import entropy, sampled_row
from evaluation.two_turns import conversations
from pipeline.artefact import Artefact
from pipeline.context import (
    StageContext,
    once,
    seen_prompts,
)
from pipeline.errors import PreemptedError
from pipeline.rollouts.answers import Progress
from pipeline.rollouts.generate import Generator

LOGP = "log-probability"


class Measurements:
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
        if "overlap" in self._tasks:
            require_libraries()
        measured = measured_policies(context.recipe)
        self.policies = Policies(artefacts, context.base_folder, context.recipe.model, precision, measured)
        self.reference = reference_policy(context.recipe)
        self.judges = judges(context.recipe)
        self._rewards = RewardModels(context, self.policies, artefacts, pad_id, precision, self._kept)
        choice = choose_prompts(self._recipe, formatter, self._seen)
        self._chosen = choice.prompts
        self.gaps: list[str] = []
        """What was asked for and could not be measured, one sentence each."""
        if choice.why_none:
            self._lacks(choice.why_none)
        self._prompts = self._chosen[: greedy_count(self._recipe, self._chosen)]
        self._sampled_prompts = self._chosen[: self._recipe.evaluation.kl_prompts]

    def row(self, name: str) -> dict[str, Any]:
        """The columns of one policy that need no reward model."""
        row = base_row()
        row.update(rule_row(self._answers(name)) if "rules" in self._tasks else {})
        if "overlap" in self._tasks:
            row.update(overlap_row([a.text for a in self._answers(name)], [p.reference for p in self.prompts]))
        if "perplexity" in self._tasks and self._recipe.data.sft is not None:
            row.update(perplexity_of(self._likelihoods(name)) if self._held_out else {})
        if "kl" in self._tasks and self._prompts:
            row.update(sampled.kl_row(self._divergences(name)))
            row["entropy"] = entropy(self._own(name)["logps"], self._own(name)["tokens"])
        if {"kl", "score"} & self._tasks and self._prompts:
            row.update(sampled_row(self._sampled_ids(name)))
        if "preference" in self._tasks and name in self._artefacts:
            row.update(preference_row(self._artefacts[name].path))
        return row

    @property
    def _answers_are_needed(self) -> bool:
        return bool({"rules", "overlap"} & self._tasks) or self._recipe.evaluation.judge is not None

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts that are answered, in order."""
        return [prompt for prompt, _ in self._prompts]

    @property
    def chosen(self) -> list[Prompt]:
        """All prompts that any policy answers: what is measured prompt by prompt is of the first so many of them."""
        return [prompt for prompt, _ in self._chosen]

    def all_answers(self) -> dict[str, list[Answered]]:
        """Every policy's greedy answers, by policy."""
        return {name: self._answers(name) for name in self.policies.names} if self._answers_are_needed else {}

    def all_scores(self) -> dict[str, dict[str, list[float]]]:
        """Every policy's sampled answers as each reward model scores them, by figure (`score`, `score_heldout`) and
        policy. Last, so that each model is loaded once.
        """
        if "score" not in self._tasks or not self._prompts:
            return {}
        rows = {name: self._sampled(name) for name in self.policies.names}
        return {figure: self._rewards.of_policies(figure, judge, rows) for figure, judge in self.judges.items()}

    def judged(self, answers: dict[str, list[Answered]]) -> Judged:
        """What the recipe's judge says of all policies, their answers and its verdicts written; empty without one."""
        settings = self._recipe.evaluation.judge
        if settings is None or not answers:
            return Judged({})
        texts = {name: [answer.text for answer in found] for name, found in answers.items()}
        found = judge_one_by_one(settings, self.prompts, texts, self.reference, self._kept, self._progress, self._say)
        if self._context.ranks.is_first:
            write_judged(self._context.folder, found, self.prompts, texts, self.reference, settings.model)
        return found

    def graded(self) -> tuple[list[Question], Grades]:
        """The recipe's questions, and every policy's answers to them with the judge's grades; empty without any."""
        settings = self._recipe.evaluation.judge
        if settings is None or settings.questions is None:
            return [], Grades({})
        questions = read_questions(Path(settings.questions))
        longest = settings.question_tokens
        answers = conversations(
            self.policies, self._generator, self._formatter, questions, longest, self._kept, self._progress
        )
        return questions, grade_one_by_one(settings, questions, answers, self._kept, self._progress, self._say)

    def sample_lines(self, scores: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
        """All sampled answers with what was measured of each; none where nothing was to be measured of them."""
        names = self.policies.names
        with_kl = names if "kl" in self._tasks and self._prompts else []
        if not with_kl and not scores:
            return []
        measured = {
            "kl": {name: self._divergences(name) for name in with_kl},
            "score": {},
            **scores,
            "logp": {name: self._own(name)["logps"] for name in with_kl},
        }
        answers = {name: self._sampled_ids(name) for name in names}
        asked = [prompt for prompt, _ in self._sampled_prompts]
        return sampled.sample_lines(asked, answers, measured, self._formatter)

    def wins(self, scores: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
        """How often each reward model scores a policy's answer above the reference's, by figure and policy."""
        tokens = {name: [len(ids) for ids in self._sampled_ids(name)] for name in self.policies.names} if scores else {}
        families = [prompt.origin.family for prompt, _ in self._sampled_prompts]
        return {figure: score_wins(found, tokens, families, self.reference) for figure, found in scores.items()}

    def perplexity_lines(self) -> list[dict[str, Any]]:
        """Every policy's log-probability of every held-out demonstration; none where that was not to be measured."""
        if "perplexity" not in self._tasks or self._recipe.data.sft is None:
            return []
        if not self._held_out:
            self._lacks(NO_DEMONSTRATIONS)
            return []
        return perplexity_lines({name: self._likelihoods(name) for name in self.policies.names})

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

    def reference_scores(self, scores: dict[str, list[float]]) -> list[list[float]]:
        """Scores (P, M) of M answers of the reference to each prompt, the sampled one first; none if not asked for."""
        most = max(self._recipe.evaluation.best_of_n, default=0)
        judge = self.judges.get("score")
        if not most or not scores or judge is None:
            return []
        prompts, numbers = [ids for _, ids in self._sampled_prompts], range(1, most)
        # First all answers, then all scores: policy and reward model may not both fit in memory.
        drawn = [self._kept(f"further-{n}", self.reference, partial(self._further, n))["answers"] for n in numbers]
        further = [
            self._rewards.kept(f"further-score-{n}", self.reference, judge, sampled.answer_rows(prompts, found))
            for n, found in zip(numbers, drawn, strict=True)
        ]
        columns = [scores[self.reference], *further]
        return [list(found) for found in zip(*columns, strict=True)]

    def _further(self, number: int, name: str) -> dict[str, Any]:
        """Another answer of a policy to every prompt."""
        prompts, longest = [ids for _, ids in self._sampled_prompts], self._recipe.evaluation.max_new_tokens
        task = self._progress(f"answers {number + 1} of {name}")
        with self.policies.use(name) as model:
            return {"answers": sampled.draw(self._generator(model), prompts, longest, task, seed=number)}

    @cached_property
    def _held_out(self) -> list[EncodedDemonstration]:
        """Held-out demonstrations whose prompts no policy was trained on."""
        return choose_demonstrations(self._recipe, self._formatter, self._seen)

    def _likelihoods(self, name: str) -> list[Likelihood]:
        """What a policy gives the held-out demonstrations."""

        def compute(policy: str) -> dict[str, Any]:
            task = self._progress(f"perplexity of {policy}")
            with self.policies.use(policy) as model:
                found = likelihoods(self._scorer(model), self._held_out, task)
            logps = [row.logp for row in found]
            require_finite(logps, by=policy, figure=LOGP, of="held-out demonstration", task="perplexity")
            return {"rows": [[row.logp, row.tokens] for row in found]}

        return [Likelihood(*row) for row in self._kept(f"perplexity-{name}", name, compute)["rows"]]

    def _sampled(self, name: str) -> list[Row]:
        """A policy's sampled answers behind their prompts."""
        return sampled.answer_rows([ids for _, ids in self._sampled_prompts], self._sampled_ids(name))

    def _sampled_ids(self, name: str) -> list[list[int]]:
        prompts, longest = [ids for _, ids in self._sampled_prompts], self._recipe.evaluation.max_new_tokens

        def compute(policy: str) -> dict[str, Any]:
            task = self._progress(f"sampled answers of {policy}")
            with self.policies.use(policy) as model:
                return {"answers": sampled.draw(self._generator(model), prompts, longest, task)}

        found: list[list[int]] = self._kept(f"sampled-{name}", name, compute)["answers"]
        return found

    def _divergences(self, name: str) -> list[float]:
        """From the reference, prompt by prompt."""
        if name == self.reference:
            return [0.0] * len(self._sampled_prompts)
        found: list[float] = self._kept(f"kl-{name}", name, self._kl)["divergences"]
        return found

    def _kl(self, name: str) -> dict[str, Any]:
        return {
            "divergences": sampled.divergences(self._own(name)["logps"], self._logps(name, self.reference)["logps"])
        }

    def _own(self, name: str) -> dict[str, Any]:
        """What a policy itself thinks of its sampled answers."""
        return self._kept(f"own-{name}", name, lambda policy: self._logps(policy, policy))

    def _logps(self, name: str, judge: str) -> dict[str, Any]:
        """log pi(y|x) of one policy's sampled answers under another, and how many tokens each has."""
        rows = self._sampled(name)
        with self.policies.use(judge) as model:
            found = self._scorer(model).score(rows)
        logps = [row.logp for row in found]
        require_finite(logps, by=judge, figure=LOGP, of=f"{name}'s sampled answer", task="kl")
        return {"logps": logps, "tokens": [row.tokens for row in found]}

    def _lacks(self, gap: str) -> None:
        """Say now, and leave for the report, what cannot be measured."""
        self.gaps.append(gap)
        self._context.console.say(gap)

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
        return self._context.progress(task)

    def _say(self, text: str) -> None:
        self._context.console.say(text)
