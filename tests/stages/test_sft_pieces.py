"""Rows cut into pieces for processes that compute them together, and which rows a group of processes gets."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, MixtralConfig, Qwen3NextConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.batch_order import EpochSampler, ShuffledSampler
from pipeline.errors import RecipeError
from pipeline.recipe.stage_settings import SftSettings
from pipeline.runtime import Ranks
from pipeline.stages.sft_batches import IGNORED
from pipeline.stages.sft_pieces import GroupBatches, Sharing, cut
from pipeline.stages.sft_ulysses import Exchange, parallelism

PAD = 9


def sharing(size: int, groups: int = 1, group: int = 0, place: int = 0) -> Sharing:
    return Sharing(size, groups, group, place)


def row(length: int, answer: int) -> dict[str, list[int]]:
    """A row of ids 10, 11, ... whose last few are an answer."""
    ids = list(range(10, 10 + length))
    return {"input_ids": ids, "labels": [IGNORED] * (length - answer) + ids[length - answer :]}


def test_two_pieces_by_hand():
    rows = [row(5, 2), row(3, 1)]
    first, second = (cut(rows, 2, PAD, sharing(2, place=place)) for place in (0, 1))
    assert first.ids_BT.tolist() == [[10, 11, 12], [10, 11, 12]]
    assert second.ids_BT.tolist() == [[13, 14, PAD], [PAD] * 3]
    # A column's label is the token behind it, which may be the other piece's first.
    assert first.labels_BT.tolist() == [[IGNORED, IGNORED, 13], [IGNORED, 12, IGNORED]]
    assert second.labels_BT.tolist() == [[14, IGNORED, IGNORED], [IGNORED] * 3]
    assert first.positions_BT.tolist() == [[0, 1, 2]] * 2 and second.positions_BT.tolist() == [[3, 4, 5]] * 2
    assert (first.tokens, second.tokens) == (6, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_pieces_side_by_side_are_the_rows(size):
    draw = random.Random(size)
    for _ in range(50):
        rows = []
        for _ in range(draw.randint(0, 4)):
            length = draw.randint(2, 17)
            rows.append(row(length, draw.randint(1, length - 1)))
        pieces = [cut(rows, 4, PAD, sharing(size, place=place)) for place in range(size)]
        assert len({piece.ids_BT.shape for piece in pieces}) == 1, "as many columns on every process"
        ids, labels, positions = (
            torch.cat([getattr(piece, name) for piece in pieces], dim=1)
            for name in ("ids_BT", "labels_BT", "positions_BT")
        )
        assert ids.shape[0] == 4 and (positions == torch.arange(ids.shape[1])).all()
        for at, each in enumerate(rows):
            length = len(each["input_ids"])
            assert ids[at, :length].tolist() == each["input_ids"] and (ids[at, length:] == PAD).all()
            assert labels[at, : length - 1].tolist() == each["labels"][1:]
            assert (labels[at, length - 1 :] == IGNORED).all()
        assert (labels[len(rows) :] == IGNORED).all(), "nothing is learned on rows that are missing"
        assert sum(piece.tokens for piece in pieces) == sum(len(each["input_ids"]) for each in rows)
        assert sum(int(piece.learned_BT.sum()) for piece in pieces) == int((labels != IGNORED).sum())
        assert all(piece.rows == tuple(rows) for piece in pieces)


@pytest.mark.parametrize(("rows", "size", "groups"), [(8, 2, 2), (7, 3, 1), (9, 2, 3), (1, 2, 2), (13, 1, 4)])
def test_groups_get_every_row_once_in_the_order_of_one(rows, size, groups):
    order = EpochSampler(rows, lambda seed: random.Random(seed).sample(range(rows), rows), 3)
    order.set_epoch(1)
    dealt = [list(GroupBatches(order, 2, sharing(size, groups, group))) for group in range(groups)]
    assert {len(batches) for batches in dealt} == {len(GroupBatches(order, 2, sharing(size, groups)))}
    in_turn = [index for together in zip(*dealt, strict=True) for batch in together for index in batch]
    assert in_turn == random.Random(4).sample(range(rows), rows)


def test_the_order_is_the_librarys():
    """Accelerate's own sampler, as it draws rows for one process, pass after pass."""
    ours = ShuffledSampler(23, 17)
    theirs = SeedableRandomSampler(range(23), generator=torch.Generator(), data_seed=17)
    for epoch in range(3):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)


def test_neighbours_are_a_group():
    settings = SftSettings(sequence_parallel_size=2)
    found = [Sharing.of(settings, Ranks(rank, rank, 4), "stages.sft") for rank in range(4)]
    assert [(each.group, each.place) for each in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert Sharing.of(SftSettings(), Ranks(2, 2, 3), "stages.sft") == Sharing(1, 3, 2, 0)
    with pytest.raises(RecipeError, match="sequence_parallel_size 2 needs a multiple of so many processes, and this"):
        Sharing.of(settings, Ranks(0, 0, 3), "stages.sft")


def model(config: object, attention: str = "sdpa") -> SimpleNamespace:
    config._attn_implementation = attention  # type: ignore[attr-defined]
    return SimpleNamespace(config=config)


LLAMA = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}


@pytest.mark.parametrize("size", [2, 4, 8])
def test_accelerate_is_told_of_groups_and_of_the_models_attention(size):
    found = parallelism(sharing(size, groups=3), model(LlamaConfig(**LLAMA)), "sft")
    assert (found.sp_size, found.dp_shard_size, found.data_parallel_size) == (size, 3, 3)
    assert found.sp_backend == "deepspeed" and found.sp_handler.sp_attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("config", "attention", "size", "said"),
    [
        (LlamaConfig(**LLAMA), "sdpa", 3, "8 heads, of 4 for keys and values, cannot be dealt out to 3 processes; set"),
        (LlamaConfig(**LLAMA), "eager", 2, "eager looks at a mask of the whole row, which no process has; set model.a"),
        (GPT2Config(), "sdpa", 2, "a model of type gpt2 does not say both"),
        (Qwen3NextConfig(), "sdpa", 2, "layers of type linear_attention, which carry a state from piece to piece"),
    ],
)  # fmt: skip
def test_heads_that_cannot_be_dealt_out_are_refused(config, attention, size, said):
    with pytest.raises(RecipeError, match=r"^stages\.sft\.sequence_parallel_size: ") as refused:
        parallelism(sharing(size), model(config, attention), "sft")
    assert said in str(refused.value)
    if size == 3:
        assert str(refused.value).endswith("set it to one of 1, 2, 4, 8")


def test_what_is_the_models_own_is_back_outside_of_pieces():
    """Also behind an error: held-out rows have masks, which DeepSpeed's leaves out, and all heads on one process."""
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    whole = LlamaForCausalLM(LlamaConfig(**LLAMA, num_hidden_layers=2, intermediate_size=8, vocab_size=9))
    exchange = Exchange(whole)
    with exchange.noted():
        ALL_ATTENTION_FUNCTIONS["sdpa"] = len
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
    attentions = [layer.self_attn for layer in whole.model.layers]
    with pytest.raises(KeyError), exchange.used():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is len
        attentions[1].num_key_value_groups = 1
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own
    assert [each.num_key_value_groups for each in attentions] == [2, 2]


def test_a_size_of_heads_that_is_not_said_is_said_to_deepspeed_alone():
    config = MixtralConfig(**LLAMA, num_hidden_layers=1, intermediate_size=8, vocab_size=9, head_dim=None)
    config._attn_implementation = "sdpa"
    exchange = Exchange(SimpleNamespace(config=config, modules=list))
    with pytest.raises(KeyError), exchange.noted():
        assert config.head_dim == 8
        raise KeyError
    assert config.head_dim is None
