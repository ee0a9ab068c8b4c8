"""Every policy's greedy answers held against the reference's by the judge of the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from data_prep.records import Prompt
from evaluation.judging.alpaca_eval import write_alpaca_eval
from evaluation.judging.asking import unread_sentence
from evaluation.judging.cache import ReplyCache
from evaluation.judging.endpoint import Endpoint, Say, say_nothing
from evaluation.judging.judge import Match, judge_all
from evaluation.judging.usage import Usage
from evaluation.judging.win_rate import Verdict, judged_figures
from pipeline.recipe.schema import JudgeSettings
from pipeline.runtime import from_first_rank

Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge said of every policy but the reference."""

    matches: Mapping[str, Sequence[tuple[Match, Verdict]]]
    usage: Usage = field(default_factory=Usage)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """By policy: win rate against the reference with its interval, ties, and the judge's own biases."""
        return {name: judged_figures([verdict for _, verdict in pairs]) for name, pairs in self.matches.items()}

    def shares(self, reference: str) -> dict[str, list[float | None]]:
        """By policy: its share of every pair, prompt by prompt; None where no verdict could be read.

        The reference stands at one half on every prompt, as it would against itself; nothing where nobody was judged.
        """
        found: dict[str, list[float | None]] = {
            name: [verdict.value for _, verdict in pairs] for name, pairs in self.matches.items()
        }
        even: list[float | None] = [0.5 for _ in range(max(map(len, found.values()), default=0))]
        return {reference: even, **found} if found else {}

    def columns(self, policy: str) -> dict[str, Any]:
        """The columns of a policy's row; none for the reference itself."""
        found = self.figures.get(policy, {})
        names = (f"{figure}{part}" for figure in ("win_rate", "win_rate_agreed") for part in ("", "_ci95", "_n"))
        return {name: found[name] for name in names if name in found}


def judge_policies(
    settings: JudgeSettings,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[str]],
    reference: str,
    progress: Progress,
    say: Say = say_nothing,
) -> Judged:
    """Judge the first so many answers of every policy against the reference's; a shared cache keeps all replies.

    Raises:
        SourceUnreachableError, RecipeError: the endpoint failed for good.
    """
    endpoint = Endpoint.of(settings, say)
    texts = conversations(prompts[: settings.prompts])
    matches = {
        name: [
            Match(prompt=prompt, a=a, b=b) for prompt, a, b in zip(texts, answers[reference], given, strict=False)
        ]
        for name, given in answers.items()
        if name != reference
    }  # fmt: skip
    judged = {}
    for name, pairs in matches.items():
        found = judge_all(
            pairs, endpoint, ReplyCache.shared(), parallel=settings.parallel, progress=progress(f"verdicts on {name}")
        )
        judged[name] = list(zip(pairs, found, strict=True))
        if unread := sum(verdict.value is None for verdict in found):
            say(unread_sentence(f"judge {settings.model}: its verdicts on {name}", unread, len(found), "pairs"))
    if endpoint.meter.usage != Usage():
        say(f"judge {settings.model}: {endpoint.meter.usage.told} for its verdicts on {' and '.join(judged)}")
    return Judged(judged, endpoint.meter.usage)


def judge_one_by_one(
    settings: JudgeSettings,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[str]],
    reference: str,
    keep: Callable[[str, str, Callable[[str], dict[str, Any]]], dict[str, Any]],
    progress: Progress,
    say: Say = say_nothing,
) -> Judged:
    """Judge every policy on the first rank, each kept as soon as it is through.

    Args:
        settings, prompts, answers, reference, progress: as for `judge_policies`.
        keep: keeps a measurement: its name, the policy, and what makes it.
        say: tells of attempts that fail, and of replies that cannot be read.
    """

    def compute(name: str) -> dict[str, Any]:
        # One policy at a time: the other ranks wait, and must not wait too long at once.
        pair = {reference: answers[reference], name: answers[name]}
        return from_first_rank(lambda: as_plain(judge_policies(settings, prompts, pair, reference, progress, say)))

    kept = [keep(f"judged-{name}", name, compute) for name in answers if name != reference]
    parts = [from_plain(part) for part in kept]
    matches = {name: pairs for part in parts for name, pairs in part.matches.items()}
    return Judged(matches, reduce(Usage.__add__, (part.usage for part in parts), Usage()))


def write_judged(
    folder: Path,
    judged: Judged,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Sequence[str]],
    reference: str,
    annotator: str,
) -> None:
    """AlpacaEval's files, answers and verdicts, into `alpaca_eval` below the evaluation's folder."""
    write_alpaca_eval(folder / "alpaca_eval", conversations(prompts), answers, reference, judged.matches, annotator)


def conversations(prompts: Sequence[Prompt]) -> list[str]:
    """Prompts as text: one turn as it is, several with their roles."""
    return [
        prompt.messages[0].content
        if len(prompt.messages) == 1
        else "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt.messages)
        for prompt in prompts
    ]


def as_plain(judged: Judged) -> dict[str, Any]:
    """For handing on to other processes as JSON."""
    matches = {
        name: [[asdict(match), asdict(verdict)] for match, verdict in pairs] for name, pairs in judged.matches.items()
    }
    return {"matches": matches, "usage": asdict(judged.usage)}


def from_plain(value: Mapping[str, Any]) -> Judged:
    """What `as_plain` gave."""
    matches = {
        name: [(Match(**match), Verdict(**verdict)) for match, verdict in pairs]
        for name, pairs in value["matches"].items()
    }
    return Judged(matches, Usage(**value["usage"]))
