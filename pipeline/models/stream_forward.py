"""A model that takes a stream: log-probabilities of its response tokens, or the score of each of its sequences.

Whether a model can is not read off its name but tried, on random tokens, against what it gives for padded rows: models
that keep a state instead of attending, or change their attention in a way of their own, cannot. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.algorithms.linear_logps import linear_token_logps
from pipeline.algorithms.logps import chunked_token_logps
from pipeline.batches import pad_right, positions
from pipeline.models.forward import causal_model, evaluating, hidden_states, linear_head, trunk_of, vocabulary_head
from pipeline.models.heads import values_at
from pipeline.models.stream_attention import STREAMS, Layout, register
from pipeline.streams import Group, Stream, stream_of_groups, stream_of_rows

CHUNK = 512
"""Response tokens whose logits are in memory at a time."""
_AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUGH_AGREEMENT = 0.25
"""A stream may differ from padded rows by this share of what attending to another sequence's tokens changes."""
_ATTENDING = {"full_attention", "sliding_attention"}


def stream_hidden(trunk: Any, stream: Stream) -> Tensor:
    """Last hidden states (N, H) of a stream on the trunk's device; its attention must be that of streams."""
    out = trunk(
        input_ids=stream.ids_N[None],
        # Four dimensions keep transformers from making a mask; segments say what it would.
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=stream.ids_N.device),
        position_ids=stream.positions_N[None],
        use_cache=False,
        layout=Layout(stream.segments, stream.positions_N),
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


def take_streams(model: Any) -> str | None:
    """Teach a model, in PEFT's wrapper or not, to be called as `model(stream=...)`; why not, where that is impossible.

    A causal language model then gives log-probabilities of the stream's response tokens (M,), one with a scalar head
    its sequences' scores (S,), both float32. All its other calls stay what they were.
    """
    inner = causal_model(model)
    asked = inner.config._attn_implementation
    if asked not in ("sdpa", STREAMS):
        return f"its attention is {asked}"
    if _keeps_a_state(inner):
        return f"{type(inner).__name__} has layers that carry a state from token to token"
    register()
    try:
        inner.set_attn_implementation(STREAMS)
        refusal = _disagreement(inner)
    except (TypeError, ValueError, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        refusal = f"{type(inner).__name__} does not take them ({error})"
    if refusal is not None:
        inner.set_attn_implementation(asked)
        return refusal
    plain = inner.forward
    read = _scores if getattr(inner, "score", None) is not None else _token_logps(inner)

    def forward(self: Any, *args: Any, stream: Stream | None = None, **kwargs: Any) -> Any:
        if stream is None:
            return plain(*args, **kwargs)
        return read(self, stream_hidden(trunk_of(self), stream), stream)

    inner.forward = MethodType(forward, inner)
    return None


def _scores(inner: Any, hidden_NH: Tensor, stream: Stream) -> Tensor:
    return values_at(hidden_NH[stream.ends_S], inner.score)


def _token_logps(inner: Any) -> Callable[[Any, Tensor, Stream], Tensor]:
    """How a causal model reads log-probabilities: fused where its head is a frozen matrix, else by chunks."""
    head = vocabulary_head(inner)
    linear = linear_head(inner)

    def read(inner: Any, hidden_NH: Tensor, stream: Stream) -> Tensor:
        hidden_MH = hidden_NH[stream.predictors_M]
        if linear is not None and not linear.weight.requires_grad:
            return linear_token_logps(hidden_MH, linear.weight, stream.targets_M, linear.scale, CHUNK)
        found = chunked_token_logps(hidden_MH[None], head, stream.targets_M[None], chunk=CHUNK)
        return found.logps_BR[0]

    return read


def _keeps_a_state(inner: Any) -> bool:
    """State-space and linear attention, which convolve over time; a probe in half precision may miss what they do."""
    types = getattr(inner.config.get_text_config(), "layer_types", None) or ()
    convolves = any(isinstance(module, nn.Conv1d) for module in trunk_of(inner).modules())
    return convolves or not set(types) <= _ATTENDING


@torch.no_grad()
def _disagreement(inner: Any) -> str | None:
    """Whether answers that share a prompt see what they would see alone; compared with what a wrong mask would do."""
    trunk = trunk_of(inner)
    device = next(trunk.parameters()).device
    groups = _random_groups(inner.config.get_text_config().vocab_size)
    shared = stream_of_groups(groups).to(device)
    alone = [[*prompt, *answer] for prompt, answers in groups for answer in answers]
    in_one = [([*prompt, *(token for answer in answers for token in answer)], answers) for prompt, answers in groups]
    mixed = stream_of_rows([(ids, [False] * len(ids)) for ids, _ in in_one]).to(device)
    ids_BT, mask_BT = pad_right(alone, 0)
    computed_in = next(trunk.parameters()).dtype
    with evaluating(inner):
        padded = hidden_states(trunk, ids_BT, mask_BT, positions(mask_BT)).float()
        expected = torch.stack([padded[row, len(ids) - 1] for row, ids in enumerate(alone)])
        found = stream_hidden(trunk, shared).float()[shared.ends_S]
        wrong = stream_hidden(trunk, mixed).float()[shared.ends_S]
    off, control = (float((each - expected).abs().mean()) for each in (found, wrong))
    if off <= _AGREEMENT.get(computed_in, _ROUGH_AGREEMENT) * control:
        return None
    return f"{type(inner).__name__} gives other numbers for them (off by {off:.2g}, a wrong mask by {control:.2g})"


def _random_groups(vocabulary: int) -> Sequence[Group]:
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=draw).tolist()

    return [Group(ids(9), [ids(6), ids(4)]), Group(ids(5), [ids(3), ids(7)])]
