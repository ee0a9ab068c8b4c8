"""Four roles on one base: each says what it would say alone, learns alone, and leaves the others untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.batches import ResponseBatch, positions, response_batch, scoring_batch
from pipeline.models.forward import without_dropout
from pipeline.models.reward_model import head_of
from pipeline.models.roles import POLICY, REFERENCE, VALUE, Roles
from pipeline.rollouts.answers import Sampling
from pipeline.rollouts.generate import Generator
from tests.rollouts.ppo_parts import ALONE, EOS, LORA, PAD, REWARD, Parts, lively_base, make_parts, some_episodes

DORA = {"r": 4, "type": "dora"}
EPISODES = some_episodes(7)
PROMPTS = [episode.prompt_ids for episode in EPISODES]
RESPONSES = [episode.answer.ids for episode in EPISODES]
BATCH = response_batch(PROMPTS, RESPONSES, PAD)
TEMPERATURE = 0.7


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp(request.param), tiny_folder, request.param)


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


@pytest.fixture(scope="module")
def read_only(base, tmp_path_factory) -> Parts:
    """For tests that train nothing."""
    parts = make_parts(tmp_path_factory.mktemp("parts"), base)
    stir_value(parts)
    return parts


def stir_value(parts: Parts) -> None:
    """A value model that differs from the reward model that it started from."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in parts.roles.trainable(VALUE):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def say(roles: Roles, batch: ResponseBatch) -> dict[str, torch.Tensor]:
    """Everything the roles say of a batch: per token (B, R), and one score each (B,)."""
    return {
        POLICY: roles.logps(POLICY, batch, TEMPERATURE).logps_BR,
        REFERENCE: roles.logps(REFERENCE, batch, TEMPERATURE).logps_BR,
        VALUE: torch.where(batch.response_mask_BR, roles.values(batch), 0.0),
        REWARD: roles.scores(REWARD, batch),
    }


def alone(roles: Roles, rows: list[int]) -> dict[str, list[torch.Tensor]]:
    """The same, one row at a time without any padding."""
    found = [say(roles, response_batch([PROMPTS[row]], [RESPONSES[row]], PAD)) for row in rows]
    return {name: [each[name][0] for each in found] for name in found[0]}


def largest_difference(found: dict[str, torch.Tensor], rows: dict[str, list[torch.Tensor]], left: int = 0) -> float:
    """Between a batch and its rows alone; `left` columns of a batch's responses are extra."""
    apart = [0.0]
    for name, each in rows.items():
        for index, expected in enumerate(each):
            row = found[name][index]
            row = row[left : left + len(expected)] if row.dim() else row
            apart.append(float((row - expected).abs().max()))
    return max(apart)


def widened(batch: ResponseBatch, left: int, right: int, pad_id: int) -> ResponseBatch:
    """The same rows with more padding before and behind."""

    def wide(x: torch.Tensor, left: int, value: int) -> torch.Tensor:
        return torch.nn.functional.pad(x.long(), (left, right), value=value)

    mask = wide(batch.mask_BT, left, 0).bool()
    responses, response_mask = wide(batch.response_ids_BR, 0, pad_id), wide(batch.response_mask_BR, 0, 0).bool()
    return ResponseBatch(wide(batch.ids_BT, left, pad_id), mask, positions(mask), responses, response_mask)


# What a role says does not depend on what stands beside it


@pytest.fixture
def padded(monkeypatch):
    """As for models that cannot attend in streams."""
    monkeypatch.setattr("pipeline.models.forward.attends_in_streams", lambda _: False)


@pytest.mark.parametrize("way", ["streams", "padded"])
def test_padding_and_batch_mates_change_nothing(read_only, way, request):
    """Log-probabilities, values and scores to 1e-5, however rows are padded, mixed and ordered."""
    if way == "padded":
        request.getfixturevalue("padded")
    rows = alone(read_only.roles, list(range(len(PROMPTS))))
    assert largest_difference(say(read_only.roles, BATCH), rows) < 1e-5
    for left, right, pad_id in ((5, 0, PAD), (0, 6, PAD), (3, 4, EOS), (1, 1, 77)):
        found = say(read_only.roles, widened(BATCH, left, right, pad_id))
        assert largest_difference(found, rows) < 1e-5, (left, right, pad_id)
        assert all(not found[name][:, found[name].shape[1] - right :].any() for name in (POLICY, VALUE) if right)
    order = [4, 2, 0, 6, 1, 3, 5]
    permuted = response_batch([PROMPTS[i] for i in order], [RESPONSES[i] for i in order], EOS)
    found = say(read_only.roles, permuted)
    assert largest_difference(found, {name: [each[i] for i in order] for name, each in rows.items()}) < 1e-5
    mates = response_batch([PROMPTS[3], [1] * 20], [RESPONSES[3], [9] * 20], PAD)
    assert largest_difference(say(read_only.roles, mates), {name: [each[3]] for name, each in rows.items()}) < 1e-5
    assert min(float(each.std()) for each in say(read_only.roles, BATCH).values()) > 0.01, "all of it varies"


def test_without_positions_absolute_ones_are_grossly_off(tiny_folder, tmp_path, padded):
    """Control: counting positions from the padding's beginning changes log-probabilities by tenths of a nat."""
    parts = make_parts(tmp_path, lively_base(tmp_path / "base", tiny_folder, "gpt2"))
    rows = alone(parts.roles, list(range(len(PROMPTS))))
    counted = BATCH._replace(positions_BT=torch.arange(BATCH.ids_BT.shape[1]).expand_as(BATCH.ids_BT))
    assert largest_difference(say(parts.roles, BATCH), rows) < 1e-5
    found = say(parts.roles, counted)
    assert all(largest_difference(found, {name: rows[name]}) > 0.1 for name in rows)


@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_log_probabilities_are_those_of_the_library(read_only, base, temperature):
    """Policy and reference against the parent's adapter on a fresh base: whole logits, log-softmax, row by row."""
    plain = AutoModelForCausalLM.from_pretrained(base)
    judge = PeftModel.from_pretrained(plain, read_only.context.parents["policy"].weights).eval()
    with torch.no_grad():
        found = {role: read_only.roles.logps(role, BATCH, temperature, entropy=True) for role in (POLICY, REFERENCE)}
    wrong = 0.0
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        with torch.no_grad():
            logits = judge(input_ids=torch.tensor([prompt + response])).logits[0].double() / temperature
        logps = torch.log_softmax(logits, dim=-1)
        expected = torch.stack([logps[len(prompt) - 1 + r, token] for r, token in enumerate(response)])
        entropies = -(logps.exp() * logps).sum(-1)[len(prompt) - 1 : -1]
        for each in found.values():
            assert (each.logps_BR[row, : len(response)] - expected).abs().max() < 1e-4
        assert (found[POLICY].entropies_BR[row, : len(response)] - entropies).abs().max() < 1e-4
        shifted = torch.stack([logps[len(prompt) + r - (r == len(response) - 1), t] for r, t in enumerate(response)])
        wrong = max(wrong, float((shifted - expected).abs().max()))
    assert wrong > 1.0, "one place off would show"


def test_scores_are_those_of_the_library(read_only, base):
    """The reward model as an ordinary PEFT classifier on rows of their own."""
    folder = read_only.context.parents["reward_1"].path / "adapter"
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    judge = PeftModel.from_pretrained(plain, folder).eval()
    with torch.no_grad():
        expected = [
            judge(input_ids=torch.tensor([prompt + response])).logits.item()
            for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
        ]
        found = read_only.roles.scores(REWARD, BATCH).tolist()
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.1


def test_the_value_model_starts_as_the_reward_models_score(base, tmp_path):
    """At its last token it predicts the normalised score; with value_init zero it says 0 everywhere."""
    parts = make_parts(tmp_path / "reward", base)
    with torch.no_grad():
        values = parts.roles.values(widened(BATCH, 0, 1, PAD))
        scores = parts.roles.scores(REWARD, BATCH)
    # The value before token r saw what the score at token r - 1 saw.
    at_end = values[torch.arange(len(RESPONSES)), BATCH.lengths_B]
    assert torch.allclose(at_end, (scores - 0.25) / 1.5, atol=1e-5)
    zero = make_parts(tmp_path / "zero", base, value_init="zero")
    with torch.no_grad():
        assert not zero.roles.values(BATCH).any()


@pytest.mark.parametrize("adapter", [LORA, "none"])
def test_a_head_on_the_policys_layers_says_the_same_from_one_pass(base, tmp_path, adapter):
    """To the bit what two passes give; and it starts at 0, whatever rewards."""
    roles = make_parts(tmp_path / "stage", base, adapter, value_trunk="policy").roles
    assert roles.value_reads_policy and len(roles.trainable(VALUE)) == 2
    assert not roles.values(BATCH).any()
    stir_head(roles)
    with torch.no_grad():
        found, values = roles.logps_and_values(BATCH, TEMPERATURE, entropy=True)
        alone = roles.logps(POLICY, BATCH, TEMPERATURE, entropy=True)
        assert torch.equal(values, roles.values(BATCH))
    assert torch.equal(found.logps_BR, alone.logps_BR)
    assert found.entropies_BR is not None and alone.entropies_BR is not None
    assert torch.equal(found.entropies_BR, alone.entropies_BR)
    assert float(values.std()) > 0.01


@pytest.mark.parametrize("adapter", [LORA, "none"])
def test_by_itself_a_head_on_the_policys_layers_leaves_them_alone(llama, tmp_path, adapter):
    """Its loss reaches them only together with the policy's."""
    roles = make_parts(tmp_path / "stage", llama, adapter, value_trunk="policy").roles
    stir_head(roles)
    roles.backward(roles.values(BATCH).square().sum())
    assert all(parameter.grad is not None for parameter in roles.trainable(VALUE))
    assert all(parameter.grad is None for parameter in roles.trainable(POLICY))
    _, values = roles.logps_and_values(BATCH, TEMPERATURE)
    roles.backward(values.square().sum())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in roles.trainable(POLICY))


def test_control_layers_of_its_own_are_not_the_policys(read_only):
    assert not read_only.roles.value_reads_policy


def stir_head(roles: Roles) -> None:
    torch.manual_seed(5)
    for parameter in roles.trainable(VALUE):
        torch.nn.init.normal_(parameter, std=0.1)


def test_demonstrations_are_scored_where_the_response_is(read_only, base):
    """At temperature 1, several responses in a row of context, 0 elsewhere."""
    rows = [([1, 40, 50, 2, 41, 51, 2], [bool(x) for x in (0, 0, 1, 1, 0, 1, 1)]), ([1, 7, 2], [False, True, True])]
    judge = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), read_only.context.parents["policy"].weights
    ).eval()
    with torch.no_grad():
        found = read_only.roles.demonstration_logps(scoring_batch(rows, PAD))
        for row, (ids, mask) in enumerate(rows):
            logps = torch.log_softmax(judge(input_ids=torch.tensor([ids])).logits[0], -1)
            expected = [float(logps[t - 1, ids[t]]) if mask[t] else 0.0 for t in range(1, len(ids))]
            assert found[row, -len(expected) :].tolist() == pytest.approx(expected, abs=1e-4)
            assert not found[row, : -len(expected)].any()


# Where it starts


@pytest.mark.parametrize(
    ("adapter", "policy"), [(LORA, True), (LORA, False), (DORA, True), (DORA, False), ("none", True), ("none", False)]
)
def test_policy_and_reference_start_as_one_bit_for_bit(base, tmp_path, adapter, policy):
    """As copies of the parent, or as the base with an adapter that changes nothing yet; and both are the parent."""
    parts = make_parts(tmp_path, base, adapter, policy=policy)
    found = say(parts.roles, BATCH)
    assert torch.equal(found[POLICY], found[REFERENCE])
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        row = torch.tensor([PROMPTS[0] + RESPONSES[0]])
        logps = torch.log_softmax(plain(input_ids=row).logits[0] / TEMPERATURE, -1)
    expected = torch.stack([logps[len(PROMPTS[0]) - 1 + r, token] for r, token in enumerate(RESPONSES[0])])
    apart = (found[REFERENCE][0, : len(expected)] - expected).abs().max()
    assert apart > 0.05 if policy else apart < 1e-4


def test_nothing_starts_with_dropout(llama, tmp_path):
    """An adapter saved with dropout brings none, in training mode either; nor does a model with dropout of its own."""
    parts = make_parts(tmp_path, llama, {"r": 4, "dropout": 0.5})
    before = say(parts.roles, BATCH)
    parts.policy.model.train()
    assert all(torch.equal(before[name], value) for name, value in say(parts.roles, BATCH).items())


def test_control_dropout_would_show(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stages.ppo_roles.without_dropout", lambda model: model)
    parts = make_parts(tmp_path, llama, {"r": 4, "dropout": 0.5})
    before = say(parts.roles, BATCH)
    parts.policy.model.train()
    assert (say(parts.roles, BATCH)[REFERENCE] - before[REFERENCE]).abs().max() > 0.01


def test_dropout_inside_attention_is_turned_off_too():
    """It is a number that attention is called with, not a module."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    llama_config = LlamaConfig(vocab_size=64, attention_dropout=0.5, **shape)
    gpt2_config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, attn_pdrop=0.5, resid_pdrop=0.5)
    for model in (LlamaForCausalLM(llama_config), GPT2LMHeadModel(gpt2_config)):
        ids = torch.arange(1, 9)[None]
        model.train()
        assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        without_dropout(model)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


# What learns, and what does not


def policy_loss(parts: Parts) -> torch.Tensor:
    logps = parts.roles.logps(POLICY, BATCH, TEMPERATURE).logps_BR
    return -(logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum()


def value_loss(parts: Parts) -> torch.Tensor:
    return torch.where(BATCH.response_mask_BR, parts.roles.values(BATCH) - 1.0, 0.0).square().sum()


LOSSES = {POLICY: policy_loss, VALUE: value_loss}


def gradients(parts: Parts, roles: tuple[str, ...]) -> dict[str, list[torch.Tensor]]:
    """Each role forward and backward in turn; gradients of both in the end."""
    for role in (POLICY, VALUE):
        for parameter in parts.roles.trainable(role):
            parameter.grad = None
    for role in roles:
        parts.roles.backward(LOSSES[role](parts))
    return {
        role: [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in parts.roles.trainable(role)]
        for role in (POLICY, VALUE)
    }


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [LORA, DORA, "none"])
def test_the_order_of_roles_does_not_matter(llama, tmp_path, adapter, checkpointing):
    """Gradients bit for bit those of the role alone; nobody else gets any."""
    parts = make_parts(tmp_path, llama, adapter, gradient_checkpointing=checkpointing)
    stir_value(parts)
    of_policy, of_value = gradients(parts, (POLICY,)), gradients(parts, (VALUE,))
    assert all(float(g.abs().max()) > 0 for g in of_policy[POLICY][:-1]) and not any(g.any() for g in of_policy[VALUE])
    assert sum(bool(g.any()) for g in of_value[VALUE]) > len(of_value[VALUE]) / 2
    assert not any(g.any() for g in of_value[POLICY])
    for order in ((POLICY, VALUE), (VALUE, POLICY), (POLICY, VALUE, POLICY), (VALUE, REFERENCE, REWARD, POLICY)):
        found = gradients(parts, tuple(role for role in order if role in LOSSES))
        if order.count(POLICY) == 1:
            assert same(found[POLICY], of_policy[POLICY]) and same(found[VALUE], of_value[VALUE]), order
    everyone = [*parts.roles.trainable(POLICY), *parts.roles.trainable(VALUE)]
    learns = {id(parameter) for parameter in everyone}
    assert len(learns) == len(everyone)
    others = [p for trunk in parts.roles._trunks.values() for p in trunk.module.parameters() if id(p) not in learns]
    others += [p for role, head in parts.roles._heads.items() if role != VALUE for p in head.parameters()]
    assert others and all(parameter.grad is None for parameter in others)


def test_looking_in_between_changes_no_gradient(llama, tmp_path):
    """Scoring, sampling and the reference before each forward pass: adapters are switched to and fro."""
    parts = make_parts(tmp_path, llama)
    expected = gradients(parts, (POLICY, VALUE))

    def look() -> None:
        say(parts.roles, BATCH)
        with parts.roles.sampling() as model, torch.inference_mode():
            model.generate(torch.tensor([[1, 40]]), max_new_tokens=2, do_sample=False, pad_token_id=0)

    gradients(parts, ())
    for role in (POLICY, VALUE):
        look()
        parts.roles.backward(LOSSES[role](parts))
    look()
    for role in (POLICY, VALUE):
        assert same([p.grad for p in parts.roles.trainable(role)], expected[role])


@pytest.mark.parametrize("adapter", [LORA, "none"])
def test_checkpointing_changes_no_gradient(llama, tmp_path, adapter):
    plain = make_parts(tmp_path / "plain", llama, adapter)
    again = make_parts(tmp_path / "again", llama, adapter, gradient_checkpointing=True)
    assert torch.equal(policy_loss(plain), policy_loss(again))
    again.roles._forward = None
    expected, found = gradients_of_fresh(plain), gradients_of_fresh(again)
    for role in (POLICY, VALUE):
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-8) for a, b in zip(expected[role], found[role], strict=True))


def gradients_of_fresh(parts: Parts) -> dict[str, list[torch.Tensor]]:
    parts.roles._forward = None
    return gradients(parts, (POLICY, VALUE))


@pytest.mark.parametrize("adapter", [LORA, "none"])
def test_checkpointing_happens_and_goes_on_after_sampling(llama, tmp_path, adapter):
    """Layers run a second time in the backward pass, before and after the policy has generated; not without it."""
    plain = make_parts(tmp_path / "plain", llama, adapter)
    parts = make_parts(tmp_path / "again", llama, adapter, gradient_checkpointing=True)
    assert [passes(plain, role) for role in (POLICY, VALUE)] == [1, 1]
    assert [passes(parts, role) for role in (POLICY, VALUE)] == [2, 2]
    with parts.roles.sampling() as model:
        assert not any(module.training for module in model.modules())
        Generator(model, PAD, (EOS,), 2, "fp32", ALONE).answers(PROMPTS[:2], Sampling(3, 1.0))
    assert [passes(parts, role) for role in (POLICY, VALUE)] == [2, 2]


def passes(parts: Parts, role: str) -> int:
    """How often a layer of a role's trunk runs for one gradient."""
    seen: list[int] = []
    layer = parts.roles._trunks[role].module.layers[0].self_attn
    handle = layer.register_forward_pre_hook(lambda *_: seen.append(1))
    gradients(parts, (role,))
    handle.remove()
    return len(seen)


@pytest.mark.parametrize("adapter", [LORA, DORA, "none"])
def test_what_is_frozen_stays_bit_for_bit(llama, tmp_path, adapter):
    """Base, reference, reward model: in weights and in what they say. And a step of one role moves no other."""
    parts = make_parts(tmp_path, llama, adapter)
    said, kept = say(parts.roles, BATCH), everything(parts)
    moved: dict[str, set[int]] = {}
    for role, loss in LOSSES.items():
        optimiser = torch.optim.AdamW(parts.roles.trainable(role), lr=1e-2)
        before = everything(parts)
        parts.roles.backward(loss(parts))
        optimiser.step()
        optimiser.zero_grad()
        moved[role] = {key for key, value in everything(parts).items() if not torch.equal(value, before[key])}
        mine = {id(parameter) for parameter in parts.roles.trainable(role)}
        assert moved[role] <= mine and len(moved[role]) > 0.5 * len(mine)
    now, learnt = say(parts.roles, BATCH), moved[POLICY] | moved[VALUE]
    assert all(torch.equal(value, kept[key]) for key, value in everything(parts).items() if key not in learnt)
    assert torch.equal(now[REFERENCE], said[REFERENCE]) and torch.equal(now[REWARD], said[REWARD])
    assert (now[POLICY] - said[POLICY]).abs().max() > 0.01 and (now[VALUE] - said[VALUE]).abs().max() > 0.01


def everything(parts: Parts) -> dict[int, torch.Tensor]:
    """Copies of all parameters of all roles, by identity."""
    modules = [parts.policy.model, *(trunk.module for trunk in parts.roles._trunks.values())]
    modules += list(parts.roles._heads.values())
    return {id(p): p.detach().clone() for module in modules for p in module.parameters()}


def test_the_reference_is_the_base_where_there_is_no_earlier_policy(llama, tmp_path):
    """All adapters off: training the new one does not move it."""
    parts = make_parts(tmp_path, llama, policy=False, members=0)
    before = parts.roles.logps(REFERENCE, BATCH, 1.0).logps_BR.detach()
    with torch.no_grad():
        for parameter in parts.roles.trainable(POLICY):
            parameter.add_(0.1)
        assert torch.equal(parts.roles.logps(REFERENCE, BATCH, 1.0).logps_BR, before)
        assert (parts.roles.logps(POLICY, BATCH, 1.0).logps_BR - before).abs().max() > 0.1
        assert torch.equal(parts.roles.logps(REFERENCE, BATCH, 1.0).logps_BR, before)


def test_every_member_of_an_ensemble_is_a_role(llama, tmp_path):
    parts = make_parts(tmp_path, llama, members=2)
    with torch.no_grad():
        first, second = (parts.roles.scores(f"reward_1_{k}", BATCH) for k in (1, 2))
        assert not torch.allclose(first, second, atol=0.01)
        assert torch.equal(parts.roles.scores("reward_1_1", BATCH), first)
    folders = [parts.context.parents["reward_1"].path / name for name in ("adapter", "adapter_2")]
    assert not torch.equal(head_of(folders[0]).weight, head_of(folders[1]).weight)


# The trap


def test_a_role_that_went_forward_must_go_backward_first(read_only):
    """Whatever the other role would do; the role itself may be used again, and afterwards everyone."""
    roles = read_only.roles
    loss = policy_loss(read_only)
    with pytest.raises(RuntimeError, match="policy went forward and must go backward before value is used"):
        roles.values(BATCH)
    with torch.no_grad(), pytest.raises(RuntimeError, match="before reference is used"):
        roles.logps(REFERENCE, BATCH, 1.0)
    with pytest.raises(RuntimeError, match=f"before {REWARD} is used"):
        roles.scores(REWARD, BATCH)
    with torch.no_grad():
        roles.logps(POLICY, BATCH, 1.0)
    roles.backward(loss)
    loss = value_loss(read_only)
    with pytest.raises(RuntimeError, match="value went forward"), roles.sampling():
        pass
    roles.backward(loss)
    say(roles, BATCH)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trap_is_real(llama, tmp_path, checkpointing):
    """Control, PEFT by itself: a switch between forward and backward gives no gradient, or with checkpointing and the
    switch undone a wrong one, without a word."""
    parts = make_parts(tmp_path, llama, gradient_checkpointing=checkpointing)
    stir_value(parts)
    expected = gradients(parts, (POLICY,))[POLICY]
    model = parts.policy.model
    mine = parts.roles.trainable(POLICY)
    for parameter in mine:
        parameter.grad = None
    parts.roles._switch(POLICY)
    loss = policy_loss(parts)
    model.set_adapter(VALUE)
    if checkpointing:
        for parameter in mine:
            parameter.requires_grad_(True)
    loss.backward()
    found = [parameter.grad for parameter in mine]
    if checkpointing:
        assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) > 0.1
    else:
        assert all(gradient is None for gradient in found)


# Switching


def test_only_the_active_roles_parameters_are_trainable(llama, tmp_path):
    parts = make_parts(tmp_path, llama)
    roles = parts.roles
    named = dict(parts.policy.model.named_parameters())
    with torch.no_grad():
        for role, use in {
            POLICY: lambda: roles.logps(POLICY, BATCH, 1.0),
            VALUE: lambda: roles.values(BATCH),
            REFERENCE: lambda: roles.logps(REFERENCE, BATCH, 1.0),
            REWARD: lambda: roles.scores(REWARD, BATCH),
        }.items():
            use()
            on = {name for name, parameter in named.items() if parameter.requires_grad}
            part = {POLICY: ".default.", VALUE: ".value."}.get(role)
            assert on == {name for name in named if part is not None and part in name}, role


def test_optimisers_own_the_same_parameters_whatever_is_active(llama, tmp_path):
    parts = make_parts(tmp_path, llama)
    before = {role: [id(p) for p in parts.roles.trainable(role)] for role in (POLICY, VALUE)}
    say(parts.roles, BATCH)
    assert {role: [id(p) for p in parts.roles.trainable(role)] for role in (POLICY, VALUE)} == before
    assert not set(before[POLICY]) & set(before[VALUE])
    assert parts.roles.trainable(REFERENCE) == ()
    names = {id(p): name for name, p in parts.policy.model.named_parameters()}
    assert all(".default." in names[each] for each in before[POLICY])
    assert all(".value." in names[each] for each in before[VALUE][:-2])
    assert before[VALUE][-2:] == [id(p) for p in parts.roles._heads[VALUE].parameters()]


def test_in_bfloat16_heads_and_results_are_float32(llama, tmp_path):
    parts = make_parts(tmp_path, llama)
    low = Roles(
        parts.roles._trunks, parts.roles._vocabulary[POLICY], parts.roles._vocabulary[REFERENCE], parts.roles._heads,
        parts.policy.model, "bf16",
    )  # fmt: skip
    found, exact = say(low, BATCH), say(parts.roles, BATCH)
    assert {each.dtype for each in found.values()} == {torch.float32}
    assert torch.equal(found[POLICY], found[REFERENCE])
    apart = max(float((found[name] - exact[name]).abs().max()) for name in found)
    assert 1e-4 < apart < 1.0, "it computed in bfloat16"
    assert parts.roles._heads[VALUE].weight.dtype == torch.float32
