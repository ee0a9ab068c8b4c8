"""Where and how a scalar head reads: at the last real token, by the mask, in float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaForSequenceClassification

from pipeline.batches import pad_left, pad_right
from pipeline.models.forward import trunk_of
from pipeline.models.heads import new_head, scores_at_end, sequence_scores, values_at, with_head

EOS = 2
ROWS = [[1, 40, 41, EOS], [1, 43, 44, 45, 46, 47, 48, EOS], [1, 50, EOS, 51, 52, EOS]]
"""Sequences end with the end of turn; one holds it in its middle too."""


def llama(folder: Any) -> Any:
    return LlamaForSequenceClassification.from_pretrained(folder, num_labels=1).eval()


def gpt2() -> Any:
    """Absolute positions, with embeddings large enough that a wrong one shows."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=259, n_positions=64, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, num_labels=1,
        pad_token_id=0,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tiny_folder) -> Any:
    return llama(tiny_folder) if request.param == "llama" else gpt2()


@torch.no_grad()
def alone(model: Any, head: Any, row: list[int]) -> float:
    """The obvious way: no padding, no mask, last position."""
    hidden = trunk_of(model)(input_ids=torch.tensor([row])).last_hidden_state
    return float(hidden[0, -1].double() @ head.weight[0].double())


# The head


def test_a_new_head_depends_on_its_seed_alone():
    """And torch's own generator goes on as if nothing had happened."""
    torch.manual_seed(5)
    first = new_head(64, 3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(new_head(64, 3).weight, first.weight)
    assert not torch.equal(new_head(64, 4).weight, first.weight)
    assert first.bias is None and first.weight.dtype == torch.float32 and first.weight.shape == (1, 64)


def test_its_weights_have_the_stated_deviation():
    """N(0, 1 / (H + 1)): over 40 heads of 400 weights the deviation is within 2 % of 401 ** -0.5."""
    weights = torch.cat([new_head(400, seed).weight for seed in range(40)])
    assert weights.std().item() == pytest.approx(401**-0.5, rel=0.02)
    assert abs(weights.mean().item()) < 3 * 401**-0.5 / 16000**0.5


# Reading


def test_the_last_real_token_is_read_by_hand():
    """Hidden states count positions 0 1 2 3; the head doubles: right padding ends at 1, left at 3, none at 3."""
    hidden = torch.arange(4.0).expand(3, 4)[..., None]
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    head = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(head.weight, 2.0)
    assert scores_at_end(hidden, head, mask).tolist() == [2.0, 6.0, 6.0]
    assert scores_at_end(hidden, head, mask.long()).tolist() == [2.0, 6.0, 6.0]
    assert values_at(hidden, head)[0].tolist() == [0.0, 2.0, 4.0, 6.0]
    holes = torch.tensor([[1, 0, 1, 0]]).bool()
    assert scores_at_end(hidden[:1], head, holes).tolist() == [4.0], "what lies between does not matter"


def test_a_sequence_without_a_token_is_refused():
    hidden, head = torch.zeros(2, 3, 4), new_head(4, 0)
    with pytest.raises(ValueError, match="sequence 1 of the batch has no token"):
        scores_at_end(hidden, head, torch.tensor([[1, 1, 1], [0, 0, 0]]).bool())
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) but a mask of \(2, 4\)"):
        scores_at_end(hidden, head, torch.ones(2, 4).bool())


def test_masked_positions_get_no_gradient():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    scores_at_end(hidden, new_head(4, 0), mask).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().sum(-1).gt(0).tolist() == [[False, True, False], [False, False, True]]


def test_the_head_computes_in_float32_under_autocast():
    """Scores near 8 that differ by 0.001 stay apart. Control: bfloat16's own product cannot tell them apart."""
    head = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.001]]))
    hidden = torch.tensor([[[8.0, 0.0]], [[8.0, 1.0]]])
    mask = torch.ones(2, 1).bool()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, high = scores_at_end(hidden.bfloat16(), head, mask)
        blunt = head(hidden)
    assert low.dtype == torch.float32
    assert (high - low).item() == pytest.approx(0.001, abs=1e-6)
    assert blunt.dtype == torch.bfloat16 and blunt[0] == blunt[1]


# Whole models


@pytest.mark.parametrize("pad", [pad_left, pad_right])
@pytest.mark.parametrize("pad_id", [0, EOS, 77])
def test_padding_does_not_matter(model, pad, pad_id):
    """Either side, whatever stands there, the end-of-turn id included: the lone sequence's score to 1e-5."""
    head = new_head(48, 0)
    with torch.no_grad():
        found = sequence_scores(model, head, *pad(ROWS, pad_id)).tolist()
    expected = [alone(model, head, row) for row in ROWS]
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-2, "a slip by one sequence would show"


def test_batch_mates_do_not_matter(model):
    head = new_head(48, 0)
    with torch.no_grad():
        for row in ROWS:
            longer = [row, [1] + [99] * 50 + [EOS]]
            found = sequence_scores(model, head, *pad_left(longer, EOS))[0].item()
            assert found == pytest.approx(alone(model, head, row), abs=1e-5)


def test_transformers_own_pooling_is_wrong_where_pad_is_eos(model):
    """Control: the library reads the last token that is not padding, which is the one before the end of turn."""
    own = copy.deepcopy(model)
    own.config.pad_token_id = EOS
    ours = with_head(model, new_head(48, 0))
    own.score.load_state_dict(ours.score.state_dict())
    ids, mask = pad_right(ROWS, EOS)
    with torch.no_grad():
        theirs = own(input_ids=ids, attention_mask=mask.long()).logits[:, 0].tolist()
        mine = ours(input_ids=ids, attention_mask=mask.long()).logits[:, 0].tolist()
    assert mine == pytest.approx([alone(model, ours.score, row) for row in ROWS], abs=1e-5)
    early = [alone(model, ours.score, row[:-1]) for row in ROWS]
    assert theirs == pytest.approx(early, abs=1e-5)
    assert min(abs(a - b) for a, b in zip(mine, theirs, strict=True)) > 1e-3


def test_the_model_ignores_what_is_passed_along(model):
    """TRL hands the pairs' margins to the model too."""
    scored = with_head(model, new_head(48, 0))
    ids, mask = pad_right(ROWS, 0)
    with torch.no_grad():
        plain = scored(input_ids=ids, attention_mask=mask.long()).logits
        more = scored(input_ids=ids, attention_mask=mask.long(), margin=torch.ones(3), use_cache=False).logits
    assert torch.equal(plain, more) and plain.shape == (3, 1)


def test_values_are_the_head_at_every_position(model):
    head = new_head(48, 0)
    with torch.no_grad():
        hidden = trunk_of(model)(input_ids=torch.tensor([ROWS[1]])).last_hidden_state
        found = values_at(hidden, head)[0].tolist()
    assert found == pytest.approx([alone(model, head, ROWS[1][: end + 1]) for end in range(len(ROWS[1]))], abs=1e-5)


def test_a_head_whose_weights_an_engine_rounded_still_answers_in_float32():
    """Near 8 bfloat16 has steps of 1/32, in which scores tie; the plain layer is the control."""
    hidden = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * 0.01
    hidden[:, 0] += 8.0
    head = new_head(48, 0)
    with torch.no_grad():
        head.weight[0, 0] = 1.0
    exact = values_at(hidden, head)
    rounded = values_at(hidden, copy.deepcopy(head).to(torch.bfloat16))
    plain = torch.nn.Linear(48, 1, bias=False, dtype=torch.bfloat16)
    plain.load_state_dict(head.state_dict())
    assert rounded.dtype == torch.float32 and torch.allclose(rounded, exact, atol=0.02)
    assert len(set(rounded.tolist())) == 64 > 3 * len(set(plain(hidden.bfloat16())[:, 0].tolist()))
