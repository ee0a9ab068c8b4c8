"""A reward model from elsewhere, with words of its own: answers are written out and tokenised anew for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from data_prep.records import Message, Origin, Prompt
from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.rollouts import foreign
from pipeline.rollouts.answers import Answer
from pipeline.rollouts.foreign import foreign_reward
from pipeline.rollouts.rewards import Episode
from pipeline.runtime import Ranks

ALONE = Ranks(0, 0, 1)
WORDS = ["<pad>", "<end>", "<user>", "<bot>", "yes", "no", "well", "two", "and", "is", "four", "?", ".", "\n", "<unk>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m['role'] == 'user' else '<bot> ' }}{{ m['content'] }} <end>\n{% endfor %}"
)
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TEMPLATE
SHAPE: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
ANSWERS = ["yes", "two and two is four .", "no", "well well well well well no"]


def write(folder: Path, model: Any, template: str | None = TEMPLATE) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        extra_special_tokens={"user": "<user>", "bot": "<bot>"},
    )  # fmt: skip
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    return write(tmp_path / "theirs", LlamaForSequenceClassification(LlamaConfig(num_labels=1, **SHAPE)))


def episodes(*messages: Message) -> list[Episode]:
    asked = messages or (Message(role="user", content="two and two ?"),)
    prompt = Prompt(messages=asked, origin=Origin(source="x", row=1))
    # Ids of the policy's own vocabulary, which mean nothing here.
    return [Episode(prompt, [200, 201], Answer([250, 2], True), text) for text in ANSWERS]


def direct(folder: Path, behind: tuple[str, ...] = ()) -> list[float]:
    """Words looked up one by one, a row at a time, read at the end of turn."""
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for text in ANSWERS:
        words = ["<user>", "two", "and", "two", "?", "<end>", "\n", "<bot>", *text.split(), "<end>", *behind]
        ids = torch.tensor([[WORDS.index(word) for word in words]])
        with torch.no_grad():
            found.append(float(model.score(model.model(input_ids=ids).last_hidden_state[0, -1])))
    return found


@pytest.mark.parametrize("size", [1, 3, 4])
def test_scores_are_those_of_the_model_on_its_own_tokens(folder, size):
    """Up to the end of turn, whatever its template writes after it."""
    reward = foreign_reward(str(folder), size, ALONE)
    found = reward.scores(episodes())
    assert found == pytest.approx(direct(folder), abs=1e-5)
    assert max(found) - min(found) > 0.1 and reward.name == str(folder)


def test_control_what_stands_behind_the_end_would_change_them(folder):
    wrong = direct(folder, ("\n",))
    assert max(abs(a - b) for a, b in zip(wrong, direct(folder), strict=True)) > 0.05


def test_ranks_share_them(folder):
    whole = foreign_reward(str(folder), 2, ALONE).scores(episodes())
    for rank in (0, 1):
        share = foreign_reward(str(folder), 2, Ranks(rank, rank, 2)).scores(episodes())
        assert share == pytest.approx(whole[rank::2], abs=1e-5)


def test_earlier_turns_count(folder):
    reward = foreign_reward(str(folder), 2, ALONE)
    turns = (Message(role="user", content="well ?"), Message(role="assistant", content="no"))
    longer = reward.scores(episodes(*turns, Message(role="user", content="two and two ?")))
    assert max(abs(a - b) for a, b in zip(longer, reward.scores(episodes()), strict=True)) > 0.01


def test_it_is_frozen_and_without_dropout(tmp_path):
    config = LlamaConfig(num_labels=1, attention_dropout=0.5, **SHAPE)
    reward = foreign_reward(str(write(tmp_path / "x", LlamaForSequenceClassification(config))), 2, ALONE)
    assert reward.scores(episodes()) == reward.scores(episodes())


# What cannot score


def test_a_model_with_several_outputs_is_refused(tmp_path):
    write(tmp_path / "x", LlamaForSequenceClassification(LlamaConfig(num_labels=3, **SHAPE)))
    with pytest.raises(SourceUnreachableError, match=r"a LlamaForSequenceClassification without a head .*--reward"):
        foreign_reward(str(tmp_path / "x"), 2, ALONE)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_language_model_is_refused(tmp_path, labels):
    """Its head would be made up, and score at random."""
    write(tmp_path / "x", LlamaForCausalLM(LlamaConfig(num_labels=labels, **SHAPE)))
    with pytest.raises(SourceUnreachableError, match="without a head `score` of one output"):
        foreign_reward(str(tmp_path / "x"), 2, ALONE)


def test_a_head_of_another_name_is_refused(tmp_path):
    shape = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    write(tmp_path / "x", BertForSequenceClassification(BertConfig(num_labels=1, num_hidden_layers=1, **shape)))
    with pytest.raises(SourceUnreachableError, match="BertForSequenceClassification without a head `score`"):
        foreign_reward(str(tmp_path / "x"), 2, ALONE)


def test_a_tokenizer_without_a_template_is_refused(tmp_path):
    write(tmp_path / "x", LlamaForSequenceClassification(LlamaConfig(num_labels=1, **SHAPE)), template=None)
    with pytest.raises(SourceUnreachableError, match="lacks a chat template; set one") as raised:
        foreign_reward(str(tmp_path / "x"), 2, ALONE)
    assert raised.value.exit_code == 69


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(SourceUnreachableError, match=r"a reward's `from`: folder .*nowhere does not exist"):
        foreign_reward(str(tmp_path / "nowhere"), 2, ALONE)


def test_a_template_that_refuses_a_prompt_is_a_sentence(tmp_path):
    model = LlamaForSequenceClassification(LlamaConfig(num_labels=1, **SHAPE))
    reward = foreign_reward(str(write(tmp_path / "x", model, STRICT)), 2, ALONE)
    turns = (Message(role="system", content="well"), Message(role="user", content="two ?"))
    with pytest.raises(TrivetError, match="its chat template refuses turns of system, user, assistant: no system"):
        reward.scores(episodes(*turns))


def test_the_commit_that_is_asked_for_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    folder = write(tmp_path / "x", LlamaForSequenceClassification(LlamaConfig(num_labels=1, **SHAPE)))
    asked: list[tuple[str, str | None]] = []

    def identified(base: str, revision: str | None, where: str) -> str:
        asked.append((base, revision))
        return str(folder)

    monkeypatch.setattr(foreign, "identify", identified)
    monkeypatch.setattr(foreign, "materialise", Path)
    foreign_reward("owner/name", 2, ALONE, "v1")
    assert asked == [("owner/name", "v1")]
