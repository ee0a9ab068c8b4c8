"""FSDP2's hooks and what is called past them, on a process group of one."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from pipeline.batches import scoring_batch
from pipeline.models.forward import trunk_of
from pipeline.models.fully_sharded import begin, computed_within, precision_policy, rest_together, shard
from pipeline.models.shards import is_spread_model, whole_state

ROWS = [([1, 5, 9, 4, 7], [False, True, True, True, True])]


@pytest.fixture
def group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def sharded(group, lively_model):
    shard(lively_model, MixedPrecisionPolicy(), reshard=True)
    return lively_model


def hidden(model):
    batch = scoring_batch(ROWS, 0)
    with torch.no_grad():
        return trunk_of(model)(input_ids=batch.ids_BT, use_cache=False).last_hidden_state


def test_parts_are_called_within_the_whole_models_pass(group, lively_model):
    expected = hidden(lively_model)
    shard(lively_model, MixedPrecisionPolicy(), reshard=True)
    assert any(isinstance(parameter, DTensor) for parameter in lively_model.parameters())
    begin(lively_model)
    for _ in range(2):
        assert torch.equal(computed_within(lively_model, lambda: hidden(lively_model)), expected)


def test_without_that_they_fail(sharded):
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        hidden(sharded)


def test_layers_have_shares_of_their_own_and_are_given_back(sharded):
    layers = trunk_of(sharded).layers
    assert [isinstance(module, FSDPModule) for module in (*layers, trunk_of(sharded))] == [True] * len(layers) + [False]
    inside = computed_within(
        sharded, lambda: [type(each) for each in (sharded.lm_head.weight, *layers[0].parameters())]
    )
    assert inside[0] is torch.nn.Parameter and set(inside[1:]) == {DTensor}
    assert is_spread_model(sharded)


def test_every_tensor_is_taken_home_as_it_was_even_after_a_pass_in_a_shorter_type(group, lively_model):
    expected = {name: parameter.detach().clone() for name, parameter in lively_model.named_parameters()}
    assert whole_state(lively_model, trained_only=False) is None, "nothing is spread yet"
    shard(lively_model, precision_policy(torch.bfloat16, whole=True), reshard=True)
    computed_within(lively_model, lambda: hidden(lively_model))
    found = whole_state(lively_model, trained_only=False)
    assert expected.items() and {name for name in found if name in expected} == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == torch.float32, name


def test_adapters_are_autocast_and_whole_models_gathered_in_the_short_type():
    assert precision_policy(torch.bfloat16, whole=False) == MixedPrecisionPolicy()
    assert precision_policy(torch.float32, whole=True) == MixedPrecisionPolicy()
    found = precision_policy(torch.bfloat16, whole=True)
    assert (found.param_dtype, found.reduce_dtype, found.output_dtype) == (torch.bfloat16, torch.float32, None)


def test_the_output_layer_is_hidden_from_accelerate_for_a_moment(lively_model):
    with rest_together(lively_model):
        assert lively_model.get_input_embeddings() is lively_model.get_output_embeddings() is None
    assert lively_model.get_output_embeddings() is lively_model.lm_head
    with pytest.raises(ValueError, match="within"), rest_together(lively_model):
        raise ValueError("within")
    assert lively_model.get_input_embeddings() is not None


def test_a_model_that_is_whole_is_left_alone(lively_model):
    assert computed_within(lively_model, lambda: 5) == 5 and not is_spread_model(lively_model)
