"""Log-probabilities: by hand, against a float64 loop, the shift of logits against ids, and in chunks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn, tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.algorithms.logps import chunked_token_logps, seq_logps, token_entropies, token_logps


def slow_token_logps(logits: torch.Tensor, ids: torch.Tensor) -> list[list[float]]:
    """log softmax(logits_t)[id_(t+1)], one number at a time in double precision."""
    found = []
    for row, tokens in zip(logits.double().tolist(), ids.tolist(), strict=True):
        line = []
        for t in range(len(tokens) - 1):
            highest = max(row[t])
            total = sum(math.exp(value - highest) for value in row[t])
            line.append(row[t][tokens[t + 1]] - highest - math.log(total))
        found.append(line)
    return found


def random_case(seed: int = 0, B: int = 3, T: int = 5, V: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    return logits, torch.randint(V, (B, T), generator=generator)


def test_by_hand():
    """Vocabulary {0, 1}, ids 1 0 1.

    Logits [0, ln 3] give p(1) = 3/4, and id 1 stands at place 0: nothing predicts it. Position 0 predicts id 0 with
    p = 1/4: ln 1/4. Position 1, logits [ln 4, 0], predicts id 1 with p = 1/5: ln 1/5. Position 2 predicts nothing.
    """
    logits = tensor([[[0.0, math.log(3)], [math.log(4), 0.0], [7.0, -7.0]]], dtype=torch.float64)
    found = token_logps(logits, tensor([[1, 0, 1]]))
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([math.log(1 / 4), math.log(1 / 5)], abs=1e-12)
    assert seq_logps(found, tensor([[True, True]])).tolist() == pytest.approx([-math.log(20)], abs=1e-12)
    assert seq_logps(found, tensor([[False, True]])).tolist() == pytest.approx([-math.log(5)], abs=1e-12)


def test_against_the_loop():
    """Double precision to 1e-12; control: unshifted, or shifted the other way, is far off."""
    logits, ids = random_case()
    expected = tensor(slow_token_logps(logits, ids), dtype=torch.float64)
    assert torch.allclose(token_logps(logits, ids), expected, rtol=0, atol=1e-12)
    every = torch.log_softmax(logits, -1)
    unshifted = every.gather(-1, ids[..., None]).squeeze(-1)[:, 1:]
    backwards = every[:, 1:].gather(-1, ids[:, :-1, None]).squeeze(-1)
    assert (unshifted - expected).abs().max() > 0.5
    assert (backwards - expected).abs().max() > 0.5


def test_the_last_logits_and_the_first_id_do_not_matter():
    logits, ids = random_case()
    before = token_logps(logits, ids)
    logits[:, -1] = math.nan
    ids[:, 0] = (ids[:, 0] + 1) % 7
    assert torch.equal(token_logps(logits, ids), before)


def test_adding_to_all_logits_of_a_position_changes_nothing():
    """Softmax is blind to a shift, even one of 1e4 where exp overflows (1e-11 for the cancellation)."""
    logits, ids = random_case()
    for shift in (1e4, -1e4):
        assert torch.allclose(token_logps(logits + shift, ids), token_logps(logits, ids), rtol=0, atol=1e-11)


def test_probabilities_sum_to_one():
    logits, ids = random_case(T=2)
    total = sum(
        token_logps(logits, torch.stack([ids[:, 0], torch.full_like(ids[:, 0], token)], 1)).exp() for token in range(7)
    )
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_gradient_is_one_hot_minus_probabilities():
    logits, ids = random_case(B=1)
    logits.requires_grad_()
    token_logps(logits, ids).sum().backward()
    expected = torch.zeros_like(logits)
    expected[:, :-1] = torch.nn.functional.one_hot(ids[:, 1:], 7) - torch.softmax(logits[:, :-1], -1)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision_of_the_result(given_dtype, expected):
    """Computed on the numbers given: bfloat16 logits are taken as they are and normalised in float32 (1e-5)."""
    logits, ids = random_case(V=50)
    given_logits = logits.to(given_dtype)
    found = token_logps(given_logits, ids)
    exact = tensor(slow_token_logps(given_logits, ids), dtype=torch.float64)
    assert found.dtype == expected
    error = (found.double() - exact).abs().max().item()
    assert error < (1e-12 if given_dtype == torch.float64 else 1e-5)
    if given_dtype == torch.bfloat16:
        low = torch.log_softmax(given_logits, -1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
        assert (low.double() - exact).abs().max().item() > 1e-3, "control: in bfloat16 throughout"


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_padding_changes_neither_the_sum_nor_its_gradient(rubbish):
    """Rubbish in the logits of padded positions, the response mask false there."""
    logits, ids = random_case()
    mask = tensor([[True] * 4, [True, True, False, False], [False, True, True, False]])
    clean = logits.clone().requires_grad_()
    dirty = logits.clone()
    dirty[1, 2:] = rubbish
    dirty[2, 3:] = rubbish
    dirty.requires_grad_()
    results = [seq_logps(token_logps(x, ids), mask) for x in (clean, dirty)]
    assert torch.equal(results[0], results[1])
    for result in results:
        result.sum().backward()
    assert clean.grad is not None and dirty.grad is not None
    real = torch.isfinite(logits[..., 0])
    real[1, 2:] = False
    real[2, 3:] = False
    assert torch.equal(clean.grad[real], dirty.grad[real])
    assert clean.grad[~real].abs().max() == 0.0


def test_gradient_of_a_sum_is_exactly_zero_on_padding():
    """What the loss sees are token log-probabilities; a masked one gets gradient 0 even where it is NaN."""
    logps = tensor([[-1.0, math.nan, -2.0]], requires_grad=True)
    seq_logps(logps, tensor([[True, False, True]])).sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_shapes_that_do_not_fit_are_refused():
    logits, ids = random_case()
    for wrong in (ids[:, 1:], ids[:2], ids[0]):
        with pytest.raises(ValueError, match="do not fit ids"):
            token_logps(logits, wrong)
    logps = token_logps(logits, ids)
    with pytest.raises(ValueError, match="but its mask"):
        seq_logps(logps, torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be boolean"):
        seq_logps(logps, torch.ones(3, 4, dtype=torch.long))


# Temperature


def test_temperature_by_hand():
    """Logits 0 and ln 4 at T = 2 are 0 and ln 2: p = 1/3 and 2/3; at T = 1/2, 1/17 and 16/17."""
    logits, ids = tensor([[[0.0, math.log(4)], [0.0, 0.0]]], dtype=torch.float64), tensor([[0, 1]])
    for T, p in ((2.0, 2 / 3), (0.5, 16 / 17), (1.0, 4 / 5)):
        assert token_logps(logits, ids, T).item() == pytest.approx(math.log(p), abs=1e-12)


def test_temperature_against_the_loop():
    logits, ids = random_case()
    expected = tensor(slow_token_logps(logits / 0.7, ids), dtype=torch.float64)
    assert torch.allclose(token_logps(logits, ids, 0.7), expected, rtol=0, atol=1e-12)
    assert (token_logps(logits, ids) - expected).abs().max() > 0.1, "control: left out"
    assert (token_logps(logits, ids) / 0.7 - expected).abs().max() > 0.1, "control: on the log-probabilities instead"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_temperature_of_one_is_none_at_all(dtype):
    """To the bit what gather minus logsumexp gives."""
    logits, ids = random_case()
    given = logits.to(dtype)
    wide = given[:, :-1].to(torch.promote_types(dtype, torch.float32))
    expected = wide.gather(-1, ids[:, 1:, None]).squeeze(-1) - torch.logsumexp(wide, dim=-1)
    assert torch.equal(token_logps(given, ids), expected)
    assert torch.equal(token_logps(given, ids, temperature=1.0), expected)


# Entropy


def test_entropy_by_hand():
    """Uniform over 8: ln 8. 1/2, 1/4, 1/4: 1.5 ln 2. Certain: 0. At T = 2, 1/3 and 2/3: .6365142."""
    assert token_entropies(torch.zeros(3, 8, dtype=torch.float64)).tolist() == pytest.approx([math.log(8)] * 3)
    found = token_entropies(tensor([0.5, 0.25, 0.25], dtype=torch.float64).log())
    assert found.item() == pytest.approx(1.5 * math.log(2), abs=1e-12)
    assert token_entropies(tensor([0.0, -1e4])).item() == 0.0
    tempered = token_entropies(tensor([0.0, math.log(4)], dtype=torch.float64), temperature=2.0)
    assert tempered.item() == pytest.approx(0.6365141683, abs=1e-10)


def test_entropy_against_the_loop():
    logits, _ = random_case()
    for row, found in zip(logits.view(-1, 7).tolist(), token_entropies(logits).flatten().tolist(), strict=True):
        total = sum(map(math.exp, row))
        assert found == pytest.approx(-sum(math.exp(x) / total * math.log(math.exp(x) / total) for x in row), abs=1e-12)
    assert token_entropies(logits.bfloat16()).dtype == torch.float32


def test_a_forbidden_token_has_no_entropy_and_a_finite_gradient():
    logits = tensor([0.0, 0.0, -math.inf], requires_grad=True)
    entropy = token_entropies(logits)
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-6)
    assert logits.grad is not None and logits.grad.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


# In chunks

V, H = 13, 5


def states(B: int = 4, R: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Hidden states, a head with bias, targets and a mask of 6, 0, 1 and 4 tokens: 11 in all."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    hidden = torch.randn(B, R, H, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(V, (B, R), generator=generator)
    mask = torch.arange(R) < tensor([6, 0, 1, 4])[:, None]
    return hidden.requires_grad_(), nn.Linear(H, V).to(dtype), targets, mask


def dense(hidden: Tensor, head: nn.Linear, targets: Tensor, mask: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """log_softmax and gather over everything at once."""
    logps = torch.log_softmax(head(hidden) / T, -1)
    chosen = logps.gather(-1, targets[..., None]).squeeze(-1)
    return torch.where(mask, chosen, 0.0), torch.where(mask, -(logps.exp() * logps).sum(-1), 0.0)


@pytest.mark.parametrize("T", [1.0, 0.7])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 11, 24, 512])
def test_chunks_give_what_the_whole_gives(chunk, masked, T):
    """Values, and gradients of hidden states, weight and bias, of both outputs (1e-12); nothing shifted."""
    hidden, head, targets, mask = states()
    mask = mask if masked else torch.ones_like(mask)
    leaves = [hidden, *head.parameters()]
    weights = torch.randn(2, *mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = dense(hidden, head, targets, mask, T)
    found = chunked_token_logps(hidden, head, targets, T, chunk, entropy=True, mask_BR=mask if masked else None)
    gradients = []
    for logps, entropies in (expected, found):
        assert entropies is not None
        both = torch.stack([logps, entropies])
        gradients.append(torch.autograd.grad((both * weights).sum(), leaves))
        assert torch.allclose(both, torch.stack(expected), rtol=0, atol=1e-12)
    for theirs, ours in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert (gradients[1][0][~mask] == 0).all()


def test_chunks_agree_with_token_logps():
    """Hidden states of positions 0 to T - 2 predict ids 1 to T - 1."""
    hidden, head, ids, _ = states()
    expected = token_logps(head(hidden), ids, 0.7)
    found = chunked_token_logps(hidden[:, :-1], head, ids[:, 1:], 0.7, chunk=4)
    assert torch.allclose(found.logps_BR, expected, rtol=0, atol=1e-12)
    assert found.entropies_BR is None


@pytest.mark.parametrize("rubbish", [math.nan, math.inf])
def test_chunks_never_look_at_masked_positions(rubbish):
    """Neither at their states nor at their targets, which are no ids at all; and only the true ones cost."""
    hidden, head, targets, mask = states()
    clean = chunked_token_logps(hidden, head, targets, chunk=4, entropy=True, mask_BR=mask)
    dirty_hidden = hidden.detach().masked_fill(~mask[..., None], rubbish).requires_grad_()
    dirty_targets = targets.masked_fill(~mask, -100)
    seen: list[int] = []

    def counting(states_NH: Tensor) -> Tensor:
        seen.append(len(states_NH))
        return head(states_NH)

    dirty = chunked_token_logps(dirty_hidden, counting, dirty_targets, chunk=4, entropy=True, mask_BR=mask)
    assert seen == [4, 4, 3]
    gradients = []
    for found, leaf in ((clean, hidden), (dirty, dirty_hidden)):
        assert found.entropies_BR is not None
        gradients.append(torch.autograd.grad((found.logps_BR - found.entropies_BR).sum(), [leaf, head.weight]))
        assert (found.logps_BR[~mask] == 0).all() and (found.entropies_BR[~mask] == 0).all()
    assert torch.equal(clean.logps_BR, dirty.logps_BR)
    for theirs, ours in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_no_true_position_at_all():
    """Zeros, and zero gradients that exist: an empty rank must not break the others' step."""
    hidden, head, targets, mask = states()
    found = chunked_token_logps(hidden, head, targets, entropy=True, mask_BR=torch.zeros_like(mask))
    assert found.entropies_BR is not None
    (found.logps_BR.sum() + found.entropies_BR.sum()).backward()
    assert found.logps_BR.abs().max() == found.entropies_BR.abs().max() == 0.0
    assert hidden.grad is not None and hidden.grad.abs().max() == 0.0
    assert head.weight.grad is not None and head.weight.grad.abs().max() == 0.0


def test_without_gradients_the_head_runs_once():
    hidden, head, targets, mask = states()
    calls = 0

    def counting(states_NH: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return head(states_NH)

    with torch.no_grad():
        frozen = chunked_token_logps(hidden, counting, targets, chunk=4, mask_BR=mask)
    assert calls == 3 and not frozen.logps_BR.requires_grad
    trained = chunked_token_logps(hidden, counting, targets, chunk=4, mask_BR=mask)
    trained.logps_BR.sum().backward()
    assert calls == 3 + 3 + 3
    assert torch.equal(frozen.logps_BR, trained.logps_BR)


class LiveLogits(TorchDispatchMode):
    """The most numbers that were alive at once in tensors of the vocabulary's width."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.most = width, 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and x.dim() > 1 and x.shape[-1] == self.width and x.shape[0] != H:
                storage = x.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes() // x.element_size())
        self._alive = {key: item for key, item in self._alive.items() if not item[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out


def most_live_logits(B: int, chunk: int, entropy: bool, grad: bool) -> float:
    """In tokens' worth of logits, over forward and backward, as seen at every operation."""
    width = 97
    hidden = torch.randn(B, 10, H, requires_grad=True)
    head, targets = nn.Linear(H, width), torch.zeros(B, 10, dtype=torch.long)
    with LiveLogits(width) as live, torch.set_grad_enabled(grad):
        found = chunked_token_logps(hidden, head, targets, temperature=0.7, chunk=chunk, entropy=entropy)
        if grad:
            sum(x.sum() for x in found if x is not None).backward()  # type: ignore[union-attr]
    return live.most / width


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_memory_follows_the_chunk_and_not_the_batch(entropy, grad):
    """A handful of copies of one chunk's logits, the same for 100 tokens and for 400.

    Control: in one piece, 400 tokens hold 400 tokens' logits several times over.
    """
    small, large = (most_live_logits(B, 10, entropy, grad) for B in (10, 40))
    assert 10 <= small == large <= 10 * 8
    assert most_live_logits(40, 400, entropy, grad) >= 800


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision_of_chunks(given_dtype, expected):
    """The head's own bfloat16 logits, normalised in float32 (1e-5)."""
    hidden, head, targets, mask = states(dtype=given_dtype)
    found = chunked_token_logps(hidden, head, targets, 0.7, 7, entropy=True, mask_BR=mask)
    assert found.entropies_BR is not None and found.logps_BR.dtype == found.entropies_BR.dtype == expected
    logps = torch.log_softmax(head(hidden).double() / 0.7, -1).gather(-1, targets[..., None]).squeeze(-1)
    assert (found.logps_BR - logps)[mask].abs().max() < (1e-12 if given_dtype == torch.float64 else 1e-5)


def test_what_chunks_refuse():
    hidden, head, targets, mask = states()
    with pytest.raises(ValueError, match=r"hidden states \(4, 6, 5\) do not fit targets \(4, 5\)"):
        chunked_token_logps(hidden, head, targets[:, 1:])
    with pytest.raises(ValueError, match="do not fit targets"):
        chunked_token_logps(hidden[0], head, targets[0])
    with pytest.raises(ValueError, match=r"mask_BR, \(4, 1\), found targets_BR \(4, 6\)"):
        chunked_token_logps(hidden, head, targets, mask_BR=mask[:, :1])
    with pytest.raises(TypeError, match="mask must be boolean"):
        chunked_token_logps(hidden, head, targets, mask_BR=mask.long())
    with pytest.raises(ValueError, match="chunk must be at least 1, found 0"):
        chunked_token_logps(hidden, head, targets, chunk=0)
    for T in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            chunked_token_logps(hidden, head, targets, temperature=T)
        with pytest.raises(ValueError, match="temperature must be above 0"):
            token_logps(head(hidden), targets, temperature=T)
