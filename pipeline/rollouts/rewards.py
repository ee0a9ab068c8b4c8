"""What scores answers: sealed reward models, the prompts' own rules, a user's function, or a foreign classifier.

Each gives one finite number per episode, on every rank; their weighted sum is what PPO optimises. A sealed reward
model sees the same tokens that the policy produced; everything else sees text. Layer 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from data_prep.checks import passes
from data_prep.records import Prompt
from pipeline import reward_function
from pipeline.algorithms.penalties import missing_eos, soft_overlong
from pipeline.batches import longest_first, response_batch, same_prompt
from pipeline.errors import TrivetError
from pipeline.models.reward_model import RewardSpec, combine, normalise
from pipeline.models.roles import Roles
from pipeline.reward_function import RewardFunction
from pipeline.rollouts.answers import Answer
from pipeline.runtime import Ranks, equally_many, from_first_rank, gather_lists, gather_rows


class Episode(NamedTuple):
    """One prompt and the answer sampled for it."""

    prompt: Prompt
    prompt_ids: list[int]
    answer: Answer
    text: str
    """Of the answer, without its end-of-turn token."""


class Reward(Protocol):
    """Scores episodes; every rank makes the same call with all of them and gets all scores."""

    @property
    def name(self) -> str:
        """For metrics."""
        ...

    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        """One number per episode."""
        ...


@dataclass(frozen=True, slots=True)
class RuleReward:
    """1 where the answer passes its prompt's check, else 0."""

    name: str = "rules"

    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores by rule.

        Raises:
            TrivetError: a prompt without a check.
        """
        for episode in episodes:
            if episode.prompt.check is None:
                origin = episode.prompt.origin
                raise TrivetError(f"reward `rules`: row {origin.row} of {origin.source} has no check to score by")
        return [float(passes(episode.prompt.check or {}, episode.text)) for episode in episodes]


class FunctionReward:
    """A user's function, called on the first rank alone with all answers of a rollout at once."""

    name = "function"

    def __init__(self, found: RewardFunction):
        self._found = found
        self._function = reward_function.load(found)

    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores by the function; what it raises or gives wrongly becomes one sentence on every rank."""
        prompts = [[{"role": m.role, "content": m.content} for m in e.prompt.messages] for e in episodes]
        texts = [episode.text for episode in episodes]
        return from_first_rank(lambda: reward_function.call(self._function, self._found.spec, prompts, texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReward:
    """A reward stage's model, run as roles on the shared base.

    Attributes:
        name: the stage's.
        roles: runs the forward passes.
        members: role of each member of the ensemble.
        spec: of the sealed artefact: each member's offset and scale, and how they become one score.
        normalised: shift and scale the scores, or leave a single model's as they are.
        pad_id: any id.
        batch_size: episodes per forward pass.
        ranks: this process among its peers.
    """

    name: str
    roles: Roles
    members: tuple[str, ...]
    spec: RewardSpec
    normalised: bool
    pad_id: int
    batch_size: int
    ranks: Ranks

    @torch.no_grad()
    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores read at each answer's last token."""
        # A prompt's answers stay together, on a rank and in a pass.
        groups = same_prompt([episode.prompt_ids for episode in episodes])[self.ranks.rank :: self.ranks.world_size]
        lengths = [len(episode.prompt_ids) + len(episode.answer.ids) for episode in episodes]
        mine = [row for group in longest_first(groups, lengths) for row in group]
        found: dict[int, float] = {}
        batches = [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]
        if self.roles.spread:
            batches = equally_many(batches, [0])
        # Member by member, so that adapters are switched once each.
        picked = [[episodes[i] for i in batch] for batch in batches]
        columns = [[self._batch_scores(role, batch) for batch in picked] for role in self.members]
        for number, batch in enumerate(batches):
            scores_KB = torch.stack([column[number] for column in columns])
            whole = (normalise if self.normalised else combine)(scores_KB, self.spec)
            found.update(zip(batch, whole.tolist(), strict=True))
        return gather_rows({row: found[row] for row in mine})

    def _batch_scores(self, role: str, episodes: Sequence[Episode]) -> Tensor:
        batch = response_batch([e.prompt_ids for e in episodes], [e.answer.ids for e in episodes], self.pad_id)
        return self.roles.scores(role, batch).cpu()


class ForeignReward:
    """A sequence-classification model with a tokenizer of its own: answers are written out and tokenised anew.

    Args:
        name: as the recipe writes it.
        score_texts: conversations (lists of messages, the answer last) to scores.
    """

    def __init__(self, name: str, score_texts: Callable[[Sequence[list[dict[str, str]]]], list[float]], ranks: Ranks):
        self.name = name
        self._score_texts = score_texts
        self._ranks = ranks

    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        """Scores of the conversations, shared out over the ranks."""
        mine = list(range(self._ranks.rank, len(episodes), self._ranks.world_size))
        conversations = [
            [
                *({"role": m.role, "content": m.content} for m in episodes[i].prompt.messages),
                {"role": "assistant", "content": episodes[i].text},
            ]
            for i in mine
        ]
        return gather_lists(self._score_texts(conversations))


@dataclass(frozen=True, slots=True)
class Penalties:
    """What an answer loses for its ending, and how far scores may go."""

    max_new_tokens: int
    missing_eos: float
    overlong_buffer: int
    overlong: float
    score_clip: float | None

    def apply(self, scores: Sequence[float], episodes: Sequence[Episode]) -> list[float]:
        """Scores as PPO uses them: clipped, then lowered."""
        used = torch.tensor(scores, dtype=torch.float64)
        if self.score_clip is not None:
            used = used.clamp(-self.score_clip, self.score_clip)
        stopped = torch.tensor([episode.answer.stopped for episode in episodes])
        used = missing_eos(used, stopped, self.missing_eos)
        if self.overlong_buffer:
            lengths = torch.tensor([len(episode.answer.ids) for episode in episodes])
            used = used + soft_overlong(lengths, self.max_new_tokens, self.overlong_buffer, self.overlong)
        return [float(score) for score in used]


class Scores(NamedTuple):
    """Scores of a rollout's episodes."""

    whole: list[float]
    """The weighted sum of all rewards."""
    used: list[float]
    """After clipping and penalties."""
    parts: dict[str, list[float]]
    """Each reward's own, before its weight."""


def score(episodes: Sequence[Episode], rewards: Sequence[tuple[Reward, float]], penalties: Penalties) -> Scores:
    """Score episodes by all rewards.

    Args:
        episodes: of all ranks.
        rewards: each with its weight.
        penalties: applied to the sum.

    Raises:
        TrivetError: a score that is not finite.
    """
    parts: dict[str, list[float]] = {}
    whole = [0.0] * len(episodes)
    for reward, weight in rewards:
        found = reward.scores(episodes)
        for index, value in enumerate(found):
            if not math.isfinite(value):
                raise TrivetError(f"reward {reward.name} scored {value} for the answer {episodes[index].text[:80]!r}")
        parts[reward.name] = found
        whole = [total + weight * value for total, value in zip(whole, found, strict=True)]
    return Scores(whole, penalties.apply(whole, episodes), parts)
