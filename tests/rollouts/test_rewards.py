"""What an answer is worth: each kind of reward, their weighted sum, and what it loses for its ending."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from data_prep.records import Message, Origin, Prompt
from pipeline import reward_function
from pipeline.errors import TrivetError
from pipeline.models.reward_model import combine, normalise, read_spec
from pipeline.rollouts.answers import Answer
from pipeline.rollouts.rewards import Episode, FunctionReward, Penalties, RuleReward, StageReward, score
from pipeline.runtime import Ranks
from tests.rollouts.ppo_parts import ALONE, EOS, PAD, lively_base, make_parts, some_episodes

FREE = Penalties(max_new_tokens=12, missing_eos=0.0, overlong_buffer=0, overlong=1.0, score_clip=None)


def episode(text: str, check: Any = None, length: int = 3, stopped: bool = True, asked: str = "2 + 2?") -> Episode:
    prompt = Prompt(
        messages=(Message(role="system", content="Be brief."), Message(role="user", content=asked)),
        origin=Origin(source="rows.jsonl", row=7), check=check,
    )  # fmt: skip
    return Episode(prompt, [1, 40], Answer([50] * length, stopped), text)


class Fixed:
    """A reward with the scores that a test wants."""

    def __init__(self, name: str, scores: Sequence[float]):
        self.name = name
        self._scores = list(scores)

    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        return self._scores


# Rules


def test_rules_score_by_the_prompts_own_check():
    check = {"contains_all": ["4"]}
    found = RuleReward().scores([episode("It is 4.", check), episode("It is 5.", check), episode("", check)])
    assert found == [1.0, 0.0, 0.0]


def test_a_prompt_without_a_check_is_a_sentence():
    with pytest.raises(TrivetError, match=r"reward `rules`: row 7 of rows\.jsonl has no check to score by"):
        RuleReward().scores([episode("4", {"contains_all": ["4"]}), episode("4")])


# A user's function


def function(folder: Path, body: str) -> FunctionReward:
    path = folder / "mine.py"
    path.write_text(f"import math\n\n\ndef worth(prompts, answers):\n    {body}\n")
    return FunctionReward(reward_function.find(f"{path}:worth"))


def test_a_function_sees_messages_and_texts(tmp_path):
    """All answers of a rollout in one call."""
    body = "return [len(a) + 10 * len(prompts) + (p[1]['content'] == 'x') for p, a in zip(prompts, answers)]"
    given = function(tmp_path, body)
    assert given.scores([episode("four"), episode("five!", asked="x")]) == [24.0, 26.0]
    assert given.name == "function"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('x')", r"the function raised KeyError: 'x'"),
        ("return [math.nan] * len(answers)", r"the function gave nan for answer 'four'; expected a finite number"),
        ("return [math.inf] * len(answers)", r"the function gave inf for answer 'four'"),
        ("return [0.5]", r"the function gave 1 scores for 2 answers"),
        ("return [None] * len(answers)", r"the function gave None for answer 'four'"),
        ("return None", r"the function gave None; expected a list with a number for each answer"),
        ("return ['1', '2']", r"the function gave '1' for answer"),
    ],
)
def test_a_function_that_fails_is_one_sentence(tmp_path, body, said):
    with pytest.raises(TrivetError, match=said) as raised:
        function(tmp_path, body).scores([episode("four"), episode("five")])
    assert str(raised.value).startswith(f"--reward {tmp_path}/mine.py:worth: ") and raised.value.exit_code == 1


# A sealed reward model


@pytest.fixture(scope="module", params=[1, 3])
def judged(request, tiny_folder, tmp_path_factory) -> Any:
    """Roles with a reward model of one or three members, and its own classifiers as the library loads them."""
    folder = tmp_path_factory.mktemp("judged")
    base = lively_base(folder / "base", tiny_folder)
    parts = make_parts(folder, base, members=request.param)
    artefact = parts.context.parents["reward_1"]
    names = ["adapter", *(f"adapter_{k + 1}" for k in range(1, request.param))]
    alone = [
        PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), artefact.path / name
        ).eval()
        for name in names
    ]
    members = tuple(f"reward_1_{k + 1}" for k in range(request.param))
    return parts, read_spec(artefact), members, alone


@pytest.mark.parametrize("normalised", [True, False])
def test_a_reward_models_score_is_its_own(judged, normalised):
    """Of the very tokens of prompt and answer, member by member; normalised as its artefact says."""
    parts, spec, members, alone = judged
    episodes = some_episodes(9)
    reward = _stage_reward(parts, members, spec, normalised)
    with torch.no_grad():
        raw = torch.tensor([
            [float(model(input_ids=torch.tensor([e.prompt_ids + e.answer.ids])).logits) for e in episodes]
            for model in alone
        ])  # fmt: skip
    expected = (normalise if normalised else combine)(raw, spec)
    assert reward.scores(episodes) == pytest.approx(expected.tolist(), abs=1e-4)
    assert max(expected) - min(expected) > 0.1
    assert reward.name == "judge"


def _stage_reward(parts: Any, members: Any, spec: Any, normalised: bool, size: int = 4, ranks: Ranks = ALONE) -> Any:
    return StageReward(
        name="judge", roles=parts.roles, members=members, spec=spec, normalised=normalised, pad_id=PAD,
        batch_size=size, ranks=ranks,
    )  # fmt: skip


def test_batches_and_ranks_do_not_matter(judged):
    parts, spec, members, _ = judged
    episodes = some_episodes(9)
    expected = _stage_reward(parts, members, spec, True, size=1).scores(episodes)
    assert _stage_reward(parts, members, spec, True, size=9).scores(episodes) == pytest.approx(expected, abs=1e-5)
    for rank in (0, 1):
        share = _stage_reward(parts, members, spec, True, ranks=Ranks(rank, rank, 2)).scores(episodes)
        assert share == pytest.approx(expected[rank::2], abs=1e-5)


def test_a_prompts_answers_are_scored_in_one_pass(judged, monkeypatch):
    """However uneven they are; and each scores what it does by itself."""
    parts, spec, members, _ = judged
    episodes = some_episodes(9)
    grouped = [one._replace(prompt_ids=episodes[at // 3].prompt_ids) for at, one in enumerate(episodes)]
    expected = _stage_reward(parts, members, spec, True, size=1).scores(grouped)
    prompts: list[int] = []
    scores = parts.roles.scores

    def counted(role: str, batch: Any) -> Any:
        lengths = (batch.mask_BT.sum(-1) - batch.response_mask_BR.sum(-1)).tolist()
        rows = zip(batch.ids_BT, batch.mask_BT, lengths, strict=True)
        prompts.append(len({tuple(ids[mask][:length].tolist()) for ids, mask, length in rows}))
        return scores(role, batch)

    monkeypatch.setattr(parts.roles, "scores", counted)
    found = _stage_reward(parts, members, spec, True, size=3).scores(grouped)
    assert found == pytest.approx(expected, abs=1e-5)
    assert prompts == [1] * 3 * len(members)


def test_scoring_leaves_no_graph(judged):
    """And the policy can be trained right after."""
    parts, spec, members, _ = judged
    _stage_reward(parts, members, spec, True).scores(some_episodes(3))
    assert parts.roles._forward is None


# Their sum


def test_the_sum_is_weighted_and_the_parts_are_kept():
    episodes = [episode("a"), episode("b")]
    found = score(episodes, [(Fixed("one", [1.0, 2.0]), 2.0), (Fixed("two", [0.5, -1.0]), -0.5)], FREE)
    assert found.whole == [1.75, 4.5] == found.used
    assert found.parts == {"one": [1.0, 2.0], "two": [0.5, -1.0]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_a_sentence(value):
    with pytest.raises(TrivetError, match=rf"reward two scored {value} for the answer 'b'"):
        score([episode("a"), episode("b")], [(Fixed("one", [1, 1]), 1.0), (Fixed("two", [0.5, value]), 1.0)], FREE)


# What is taken off


def used(scores: Sequence[float], episodes: Sequence[Episode], **penalties: Any) -> list[float]:
    fields = {"missing_eos": 0.0, "overlong_buffer": 0, "overlong": 1.0, "score_clip": None, **penalties}
    return Penalties(max_new_tokens=12, **fields).apply(scores, episodes)


def test_an_answer_without_an_end_loses_a_constant():
    """The end as the very last token that fits counts as one."""
    episodes = [episode("a", length=12, stopped=False), episode("b", length=12), episode("c", length=1)]
    assert used([2.0, 2.0, 2.0], episodes, missing_eos=0.75) == [1.25, 2.0, 2.0]
    assert used([2.0, 2.0, 2.0], episodes) == [2.0, 2.0, 2.0]


def test_overlong_answers_lose_the_more_the_longer():
    """Nothing up to max_new_tokens - buffer, all of it at max_new_tokens, half of it half way."""
    episodes = [episode("a", length=length) for length in (1, 8, 9, 10, 11, 12)]
    found = used([1.0] * 6, episodes, overlong_buffer=4, overlong=2.0)
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.0, -0.5, -1.0])
    assert used([1.0] * 6, episodes, overlong=2.0) == [1.0] * 6
    assert used([1.0] * 6, episodes, overlong_buffer=12, overlong=12.0) == pytest.approx([0, -7, -8, -9, -10, -11])


def test_scores_are_clipped_before_the_penalties():
    episodes = [episode("a", length=12, stopped=False), episode("b"), episode("c")]
    found = used([9.0, -9.0, 0.25], episodes, score_clip=0.5, missing_eos=2.0)
    assert found == [-1.5, -0.5, 0.25]


def test_penalties_leave_the_score_itself_alone():
    found = score([episode("a", stopped=False)], [(Fixed("one", [3.0]), 1.0)], Penalties(12, 1.0, 0, 1.0, 2.0))
    assert (found.whole, found.used, found.parts["one"]) == ([3.0], [1.0], [3.0])


def test_an_end_token_is_no_part_of_the_text_but_of_the_tokens(tiny_tokenizer):
    """What rules and functions read against what a reward model reads."""
    from data_prep.chat import ChatFormatter

    formatter = ChatFormatter(tiny_tokenizer)
    ids = [*tiny_tokenizer("so").input_ids, EOS]
    assert formatter.response_text(ids) == "so" and EOS in formatter.stop_ids
