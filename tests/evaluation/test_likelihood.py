"""Scores of given answers: what they are, and everything they must not depend on (float32, 1e-5)."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from data_prep.chat import EncodedDemonstration, EncodedPair
from evaluation.likelihood import (
    Likelihood,
    Row,
    Scorer,
    demonstration_rows,
    mean_loss,
    pair_rows,
    response_logps,
)
from pipeline.batches import by_length, pad_left, positions, scoring_batch
from pipeline.models import adapters
from pipeline.recipe.schema import AdapterSettings
from pipeline.runtime import Ranks

ALONE = Ranks(0, 0, 1)
TOLERANCE = 1e-5


def random_rows(count: int = 9, seed: int = 0) -> list[Row]:
    """Conversations of 2 to 40 tokens, one to three answers in each, somewhere behind the first token."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for index in range(count):
        length = draw.choice([2, 3, 7, 15, 40]) if index else 40
        mask = [False] + [draw.random() < 0.4 for _ in range(length - 1)]
        mask[-1] = True
        rows.append(([draw.randrange(3, 259) for _ in range(length)], mask))
    return rows


ROWS = random_rows()


def slow_scores(model: Any, rows: list[Row]) -> list[float]:
    """One row at a time, no padding, no mask, no cut-off head: log softmax in double precision, token by token."""
    found = []
    for ids, mask in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([list(ids)])).logits[0].double()
        logps = torch.log_softmax(logits, -1)
        found.append(sum(logps[at - 1, ids[at]].item() for at in range(1, len(ids)) if mask[at]))
    return found


def scores(model: Any, rows: list[Row], batch_size: int = 4, pad_id: int = 0) -> list[float]:
    return [found.logp for found in Scorer(model, pad_id, batch_size, "fp32", ALONE).score(rows)]


def tiny_gpt2() -> Any:
    """Absolute positions, with embeddings large enough that a wrong one shows."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


@pytest.fixture(params=["llama", "gpt2"])
def model(request) -> Any:
    return request.getfixturevalue("lively_model") if request.param == "llama" else tiny_gpt2()


# What a score is


def test_equal_to_a_plain_loop(model):
    """Row by row to 1e-5 per token; the scores differ by nats, so a slip by one token could not hide."""
    expected = slow_scores(model, ROWS)
    found = Scorer(model, 0, 4, "fp32", ALONE).score(ROWS)
    for one, logp, (_, mask) in zip(found, expected, ROWS, strict=True):
        assert one.tokens == sum(mask)
        assert one.logp == pytest.approx(logp, abs=TOLERANCE * max(one.tokens, 1))
    assert max(expected) - min(expected) > 50
    shifted = slow_scores(model, [(ids, [*mask[1:], False]) for ids, mask in ROWS])
    assert min(abs(a - b) for a, b in zip(shifted, expected, strict=True)) > 1e-2


@pytest.mark.parametrize("batch_size", [1, 2, 3, 9, 100])
def test_batch_size_does_not_matter(model, batch_size):
    assert scores(model, ROWS, batch_size) == pytest.approx(slow_scores(model, ROWS), abs=4e-4, rel=TOLERANCE)


@pytest.mark.parametrize("pad_id", [1, 2, 100, 258])
def test_the_pad_id_does_not_matter(model, pad_id):
    """Exactly: what padding holds is masked, be it EOS or a letter."""
    assert scores(model, ROWS, pad_id=pad_id) == scores(model, ROWS, pad_id=0)


def test_order_and_batch_mates_do_not_matter(model):
    together = scores(model, ROWS, 9)
    order = list(range(len(ROWS)))
    random.Random(1).shuffle(order)
    shuffled = scores(model, [ROWS[index] for index in order], 3)
    assert shuffled == pytest.approx([together[index] for index in order], abs=4e-4, rel=TOLERANCE)
    for index in (0, 4, 8):
        longer = ([7] * 60, [False] * 59 + [True])
        assert scores(model, [longer, ROWS[index]], 2)[1] == pytest.approx(together[index], abs=4e-4, rel=TOLERANCE)


def test_positions_are_counted_from_the_mask():
    """GPT-2 knows where a token stands. Control: left padding without position ids is nats away."""
    model = tiny_gpt2()
    short = ([5, 6, 7, 8], [False, False, True, True])
    batch = scoring_batch([([9] * 30, [False] * 29 + [True]), short], 0)
    assert batch.positions_BT[1, -4:].tolist() == [0, 1, 2, 3]
    expected = slow_scores(model, [short])[0]
    with torch.no_grad():
        assert response_logps(model, batch)[1].item() == pytest.approx(expected, abs=1e-5)
        wrong = response_logps(model, batch._replace(positions_BT=torch.arange(30).expand(2, -1)))
    assert abs(wrong[1].item() - expected) > 0.1


def test_attention_is_masked(model):
    """Control: the same batch with padding attended to is nats away."""
    short = ([5, 6, 7, 8], [False, False, True, True])
    batch = scoring_batch([([9] * 30, [False] * 29 + [True]), short], 3)
    expected = slow_scores(model, [short])[0]
    with torch.no_grad():
        assert response_logps(model, batch)[1].item() == pytest.approx(expected, abs=1e-5)
        wrong = response_logps(model, batch._replace(mask_BT=torch.ones_like(batch.mask_BT)))
    assert abs(wrong[1].item() - expected) > 0.1


def test_only_what_comes_before_counts(model):
    """Changing a token behind the last answer changes nothing; one before it does."""
    ids, mask = [5, 6, 7, 8, 9, 10], [False, False, True, True, False, False]
    base = scores(model, [(ids, mask)])[0]
    assert scores(model, [([5, 6, 7, 8, 200, 201], mask)])[0] == base
    assert abs(scores(model, [([5, 200, 7, 8, 9, 10], mask)])[0] - base) > 1e-3


# Equal policies


def test_equal_policies_get_bitwise_equal_scores(lively_model):
    """A copy, and the model under an adapter that changes nothing yet. Control: a stirred adapter differs."""
    torch.manual_seed(0)
    expected = scores(lively_model, ROWS)
    assert scores(copy.deepcopy(lively_model), ROWS) == expected
    wrapped = adapters.attach_new(copy.deepcopy(lively_model), AdapterSettings(r=4), dropout=False)
    assert scores(wrapped, ROWS) == expected
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-3)
    assert scores(wrapped, ROWS) != expected
    with wrapped.disable_adapter():
        assert scores(wrapped, ROWS) == expected


def test_scoring_is_without_dropout_and_puts_the_mode_back():
    config = GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, embd_pdrop=0.5)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).train()
    first = scores(model, ROWS)
    assert model.training
    assert scores(model, ROWS) == first
    assert first == pytest.approx(slow_scores(model.eval(), ROWS), abs=4e-4, rel=TOLERANCE)
    assert not model.training
    scores(model, ROWS)
    assert not model.training


def test_low_precision_is_used_when_asked(lively_model):
    """bf16 is near float32 but not equal to it; weights stay as they are."""
    full = scores(lively_model, ROWS)
    low = [found.logp for found in Scorer(lively_model, 0, 4, "bf16", ALONE).score(ROWS)]
    assert low != full
    tokens = [sum(mask) for _, mask in ROWS]
    assert max(abs(a - b) / n for a, b, n in zip(low, full, tokens, strict=True)) < 0.5, "nats per token"
    assert next(lively_model.parameters()).dtype == torch.float32


def test_progress_counts_rows(lively_model):
    seen: list[tuple[int, int]] = []
    Scorer(lively_model, 0, 4, "fp32", ALONE).score(ROWS, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 9), (4, 9), (8, 9), (9, 9)]
    assert Scorer(lively_model, 0, 4, "fp32", ALONE).score([]) == []


def test_ranks_share_the_rows(lively_model):
    """Each of two scores every second row; together they give what one alone gives."""
    whole = scores(lively_model, ROWS, 1)
    shares = [
        [found.logp for found in Scorer(lively_model, 0, 1, "fp32", Ranks(rank, rank, 2)).score(ROWS)]
        for rank in (0, 1)
    ]
    assert shares == [whole[0::2], whole[1::2]]


def test_a_row_without_answer_tokens_scores_nothing(lively_model):
    """Among others, and in a batch of its own."""
    silent: Row = ([5, 6, 7], [False, False, False])
    found = Scorer(lively_model, 0, 4, "fp32", ALONE).score([silent, ROWS[0]])
    assert found[0] == Likelihood(0.0, 0)
    assert found[1].logp == pytest.approx(scores(lively_model, [ROWS[0]])[0], abs=4e-4)
    assert Scorer(lively_model, 0, 4, "fp32", ALONE).score([silent]) == [Likelihood(0.0, 0)]


# Batches and rows


def test_padding_by_hand():
    """Rows end together; positions count real tokens; R reaches back to the earliest answer token.

    Row 0: 5 6 7 with its answer at 7; row 1: 8 9 with its answer at 9; three columns, R = 1.
    """
    batch = scoring_batch([([5, 6, 7], [False, False, True]), ([8, 9], [False, True])], 99)
    assert batch.ids_BT.tolist() == [[5, 6, 7], [99, 8, 9]]
    assert batch.mask_BT.tolist() == [[True] * 3, [False, True, True]]
    assert batch.positions_BT.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert batch.response_mask_BT.tolist() == [[False, False, True], [False, False, True]]
    assert batch.responses_within == 1
    early = scoring_batch([([5, 6, 7, 8], [False, True, False, True]), ([8, 9], [False, True])], 99)
    assert early.responses_within == 3
    assert positions(torch.tensor([[False, True, True], [True, True, True]])).tolist() == [[0, 0, 1], [0, 1, 2]]
    assert pad_left([[1], [2, 3]], 2)[1].tolist() == [[False, True], [True, True]]


def test_rows_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="3 ids but a response mask of 2"):
        scoring_batch([([1, 2, 3], [False, True])], 0)
    with pytest.raises(ValueError, match="the first token cannot be a response"):
        scoring_batch([([1, 2], [True, True])], 0)


def test_batches_are_longest_first_and_stable():
    """Lengths 3 5 1 5 2 in twos: the fives in their order, then 3 and 2, then 1."""
    assert list(by_length([3, 5, 1, 5, 2], 2)) == [[1, 3], [0, 4], [2]]
    assert list(by_length([], 2)) == []


def test_rows_of_pairs_and_demonstrations():
    pair = EncodedPair([1, 2], [3, 4], [5], False)
    other = EncodedPair([6], [7], [8, 9], False)
    assert pair_rows([pair, other]) == [
        ([1, 2, 3, 4], [False, False, True, True]),
        ([6, 7], [False, True]),
        ([1, 2, 5], [False, False, True]),
        ([6, 8, 9], [False, True, True]),
    ]
    assert demonstration_rows([EncodedDemonstration([1, 2], [False, True], False)]) == [([1, 2], [False, True])]


def test_mean_loss_is_per_token():
    """-(-2 - 6) / (1 + 3) = 2; the mean of the rows' means would be 2 too, so a third row of -12 in 4: 20 / 8 = 2.5."""
    found = [Likelihood(-2.0, 1), Likelihood(-6.0, 3), Likelihood(-12.0, 4)]
    assert mean_loss(found[:2]) == 2.0
    assert mean_loss(found) == 2.5
    assert mean_loss([]) == 0.0
    assert math.exp(mean_loss([Likelihood(-math.log(8), 3)])) == pytest.approx(2.0)
