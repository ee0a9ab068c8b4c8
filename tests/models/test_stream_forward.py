"""Streams against the models' own padded passes: many architectures, gradients, adapters, and who is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
)

from pipeline.batches import pad_left, pad_right, positions
from pipeline.models import stream_forward
from pipeline.models.forward import (
    attends_in_streams,
    hidden_states,
    padded_hidden_states,
    stream_hidden_states,
    trunk_of,
)
from pipeline.models.stream_attention import STREAMS, Layout, stream_attention
from pipeline.models.stream_forward import attend_in_streams, take_streams
from pipeline.streams import Segment, pack, stream_of
from tests.models.small_models import attending, build, shape

ATTENDING = attending()
REFUSED: dict[str, tuple[Any, str]] = {
    "falcon_h1": (FalconH1Config(**shape()), "layers that carry a state"),
    "mamba": (MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2), "its attention is eager"),
    "gemma2": (Gemma2Config(**shape(), head_dim=8), "its attention is eager"),
}


FACTOR = 4.0
"""Of the weights: attention then matters."""


def random_rows(seed: int = 0) -> list[tuple[list[int], list[bool]]]:
    """Three prompts behind one system message, two answers each, one row twice, and one of no relation."""
    draw = random.Random(seed)
    ids = lambda count: [draw.randrange(3, 64) for _ in range(count)]  # noqa: E731
    system, rows = ids(10), []
    for length in (12, 2, 20):
        prompt = [*system, *ids(length)]
        for size in (1, draw.randint(2, 9)):
            rows.append(([*prompt, *ids(size)], [False] * len(prompt) + [True] * size))
    return [*rows, rows[1], ([5, 6, 7], [False, True, True])]


ROWS = random_rows()
IDS = [ids for ids, _ in ROWS]
WEIGHTS = torch.linspace(-1, 2, len(ROWS))


def one_by_one(model: Any) -> torch.Tensor:
    """Log-probability of each row's response, the row alone and whole logits."""
    found = []
    for ids, mask in ROWS:
        logps = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found.append(sum(logps[at - 1, ids[at]] for at, wanted in enumerate(mask) if wanted))
    return torch.stack(found)


@pytest.mark.parametrize("name", ATTENDING)
def test_hidden_states_are_those_of_padded_rows(name):
    model = build(ATTENDING[name], FACTOR)
    ids, mask = pad_left(IDS, 0)
    with torch.no_grad():
        expected = padded_hidden_states(trunk_of(model), ids, mask, positions(mask))
        assert attend_in_streams(model) is None and attends_in_streams(model)
        for padded, real in ((ids, mask), pad_right(IDS, 2)):
            found = hidden_states(trunk_of(model), padded, real, positions(real))
            for row, own in enumerate(mask):
                assert torch.allclose(found[row][real[row]], expected[row][own], rtol=1e-4, atol=1e-5)
        again = padded_hidden_states(trunk_of(model), ids, mask, positions(mask))
    assert torch.equal(again, expected), "what is not a stream stays what it was"
    assert len(pack(IDS).ids_N) < 0.5 * mask.sum()


@pytest.mark.parametrize("name", REFUSED)
def test_who_cannot_is_left_alone(name):
    config, why = REFUSED[name]
    model = build(config, FACTOR)
    before = model.config._attn_implementation
    assert why in (attend_in_streams(model) or "")
    assert model.config._attn_implementation == before and not attends_in_streams(model)
    assert "its attention is" in (take_streams(model) or "")


def test_the_probe_sees_a_wrong_context(monkeypatch):
    """Control: were answers to see one another, or forget their prompt, the probe would say so, in bf16 too."""
    for dtype in (torch.float32, torch.bfloat16):
        assert attend_in_streams(build(ATTENDING["llama"], FACTOR).to(dtype)) is None
        for wrong in (lambda s: ((0, s.start),) if s.start else (), lambda s: ()):
            with monkeypatch.context() as patch:

                def badly(sequences: Any, wrong: Any = wrong) -> Any:
                    packed = pack(sequences)
                    segments = tuple(Segment(each.start, each.stop, wrong(each)) for each in packed.segments)
                    return type(packed)(packed.ids_N, packed.positions_N, segments, packed.places)

                patch.setattr(stream_forward, "pack", badly)
                refusal = attend_in_streams(build(ATTENDING["llama"], FACTOR).to(dtype))
            assert "gives other numbers" in (refusal or ""), wrong


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_windows", "cohere"])
def test_log_probabilities_and_gradients(name, checkpointing):
    """Of an adapter, to 1e-5 of the largest entry, against rows one by one."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model: Any = get_peft_model(build(ATTENDING[name], FACTOR), config)
    (one_by_one(model) * WEIGHTS).sum().backward()
    expected = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    logps = one_by_one(model).detach()
    model.zero_grad()
    assert attend_in_streams(model) is None and take_streams(model) is None
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    stream = stream_of(ROWS)
    found = stream.per_sequence(model(stream=stream))
    assert torch.allclose(found, logps, rtol=1e-5, atol=1e-5)
    (found * WEIGHTS).sum().backward()
    assert len(expected) > 8
    for key, value in model.named_parameters():
        if key in expected:
            assert (value.grad - expected[key]).abs().max() <= 1e-5 * expected[key].abs().max(), key
    assert torch.allclose(one_by_one(model), logps, rtol=1e-6, atol=1e-6), "plain calls go on as before"


def test_a_trained_head_gets_its_gradient():
    """Full fine-tuning, embedding and head tied."""
    model = build(LlamaConfig(**shape(), tie_word_embeddings=True), FACTOR)
    (one_by_one(model) * WEIGHTS).sum().backward()
    expected = model.get_output_embeddings().weight.grad.clone()
    model.zero_grad()
    assert attend_in_streams(model) is None and take_streams(model) is None
    stream = stream_of(ROWS)
    (stream.per_sequence(model(stream=stream)) * WEIGHTS).sum().backward()
    assert torch.allclose(model.get_output_embeddings().weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_work_is_what_the_tokens_say():
    """The layers see every token once; the head sees the response tokens and no others."""
    model = build(ATTENDING["llama"], FACTOR)
    assert attend_in_streams(model) is None and take_streams(model) is None
    seen: list[int] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-2]))
    stream = stream_of(ROWS)
    found = model(stream=stream)
    assert seen == [len(stream.ids_N)] and len(stream.ids_N) == len(pack(IDS).ids_N) < 0.5 * sum(map(len, IDS))
    assert found.shape == (sum(sum(mask) for _, mask in ROWS),)


def test_saved_configurations_do_not_name_streams(tmp_path):
    model = build(ATTENDING["llama"], FACTOR)
    assert attend_in_streams(model) is None and model.config._attn_implementation == STREAMS
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


def test_what_attention_cannot_do_is_refused():
    packed = pack(IDS)
    layout = stream_forward_layout(packed)
    query = torch.randn(1, 4, len(packed.ids_N), 8)
    with pytest.raises(NotImplementedError, match="softcap"):
        stream_attention(None, query, query, query, None, layout=layout, softcap=5.0)


def attended(packed: Any, dtype: torch.dtype, in_float32: bool) -> torch.Tensor:
    """What a stream's attention gives, and the gradients of its inputs, which are the same for all types."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, 4, len(packed.ids_N), 8)
    inputs = [torch.randn(shape, generator=draw).bfloat16().to(dtype).requires_grad_() for _ in range(3)]
    layout = Layout(packed.segments, packed.positions_N, in_float32=in_float32)
    with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
        found = layout.attention(nn.Identity(), *inputs, window=None, scale=1.5, dropout=0.0)
    assert found.dtype == dtype
    found.float().square().sum().backward()
    return torch.cat([each.detach().float().flatten() for each in (found, *(given.grad for given in inputs))])


def test_attention_in_float32_under_autocast():
    """Of a model in bf16: nearer to float32, forward and backward; one in float32 is left as it is."""
    packed = pack(IDS)
    exact = attended(packed, torch.float32, False)
    assert torch.equal(attended(packed, torch.float32, True), exact)
    rough, fine = ((attended(packed, torch.bfloat16, each) - exact).abs().mean() for each in (False, True))
    assert 0 < fine < 0.8 * rough, (fine, rough)


def stream_forward_layout(packed: Any) -> Any:
    return Layout(packed.segments, packed.positions_N)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "mistral_window"])
def test_the_flash_kernel_gives_the_same(name):
    """In bf16 on a GPU the whole stream is one call: against float32, with what rounding alone does as measure."""
    model = build(ATTENDING[name], FACTOR)
    with torch.no_grad():
        assert attend_in_streams(model) is None
        exact = stream_hidden_states(trunk_of(model), pack(IDS))
        model = model.to("cuda", torch.bfloat16)
        found = stream_hidden_states(trunk_of(model), pack(IDS)).float().cpu()
    assert (found - exact).abs().mean() < 0.02 * exact.abs().mean()
