"""Rows that processes compute together, a piece each: what one process learns, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.cases import ALONE, FOUR, PIECES_OTHERS, TOGETHER_ON_ROWS
from tests.distributed.launching import launched

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
RUN = [each["name"] for each in TOGETHER_ON_ROWS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return launched(1, [each for each in ALONE if each["kind"] == "sft"], tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return launched(2, [*TOGETHER_ON_ROWS, *PIECES_OTHERS], tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return launched(4, FOUR, tmp_path_factory.mktemp("four"))


def require_same(alone: dict[str, dict[str, Any]], name: str, found: dict[str, Any], together: int = 2) -> None:
    """Steps, tokens, figures before and after, and every saved tensor's norm, are those of one process."""
    _, form, _, *more = name.split("-")
    words = [word for word in more if word in ("uneven", "grouped")]
    one = alone["-".join(["sft", form, "none", *words])]
    assert "error" not in found, found["error"]
    assert found["loss"] == pytest.approx(one["loss"], abs=TOLERANCE) and len(one["loss"]) >= 4
    assert max(one["loss"]) - min(one["loss"]) > 10 * TOLERANCE, "losses that could differ"
    assert found["grad_norm"] == pytest.approx(one["grad_norm"], rel=2e-3)
    assert found["num_tokens"] == one["num_tokens"]
    for key in ("eval_loss_before", "eval_loss"):
        assert found["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-5), key
    assert found["tensors"] == pytest.approx(one["tensors"], rel=1e-3, abs=1e-3) and one["tensors"]
    assert f"TRL's trainer computes the steps: {together} processes compute each row together" in found["said"]


@pytest.mark.parametrize("name", RUN)
def test_two_processes_on_each_row_learn_what_one_does(alone, pair, name):
    require_same(alone, name, pair[name])


@pytest.mark.parametrize("name", [each["name"] for each in FOUR if "stop_at" not in each])
def test_four_processes_learn_what_one_does(alone, four, name):
    """In two groups of two, and in one, for which heads of keys and values are repeated."""
    require_same(alone, name, four[name], together=4 if "quarters" in name else 2)


def test_a_stage_that_was_stopped_goes_on_bit_for_bit(pair, four):
    """In the first pass, and in the second, whose order is another one."""
    for ranks, name in ((pair, "sft-lora-zero2-pieces"), (four, "sft-full-zero3-uneven-pieces")):
        straight, resumed = ranks[name], ranks[f"{name}-resumed"]
        assert any("going on from" in said for said in resumed["said"]), resumed
        assert resumed["hash"] == straight["hash"] and resumed["loss"] == straight["loss"]
        assert resumed["num_tokens"] == straight["num_tokens"]


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_in_half_precision_losses_and_gradients_are_those_of_float32(alone, pair, engine):
    one, two = alone["sft-full-none"], pair[f"sft-full-{engine}-pieces-bf16"]
    assert "error" not in two, two["error"]
    assert two["loss"] == pytest.approx(one["loss"], abs=2e-3)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.02)


@pytest.mark.parametrize("what", ["qwen3", "unbalanced"])
def test_models_with_other_heads_and_with_experts_learn(pair, what):
    found = pair[f"sft-lora-zero2-pieces-{what}"]
    assert "error" not in found, found["error"]
    assert len(found["loss"]) == 4 and found["metrics"]["eval_loss"] < found["metrics"]["eval_loss_before"]


def test_a_model_that_calls_attention_otherwise_is_refused(pair):
    error = pair["sft-lora-zero2-pieces-seeing"]["error"]
    assert error.startswith("stages.sft.sequence_parallel_size: Qwen2VLModel does not call attention as DeepSpeed's Ul")


def test_a_window_that_pieces_would_lose_is_refused(pair):
    """DeepSpeed leaves its mask out without a word: the trial on the longest row sees that."""
    error = pair["sft-lora-zero2-pieces-window"]["error"]
    assert error.startswith("stages.sft.sequence_parallel_size: MistralModel gives something else for a row in pieces")


def test_experts_whose_load_is_balanced_are_refused(pair):
    error = pair["sft-lora-zero2-pieces-experts"]["error"]
    assert error.startswith("stages.sft.sequence_parallel_size: the load of a mixture's experts is balanced by whole")


def test_a_loss_that_the_library_does_not_take_in_pieces_is_no_traceback(pair):
    error = pair["sft-lora-zero2-pieces-dft"]["error"]
    assert error.startswith("stages.sft: TRL's trainer refuses these settings: `loss_type='dft'`, ")


def test_a_loss_that_is_no_number_on_one_piece_names_the_rows(pair):
    error = pair["sft-lora-zero2-pieces-nan"]["error"]
    assert error.startswith("the loss became nan at step 2; training stopped and nothing of this step is kept")
    assert "It was computed on rows builtin:alpaca_sample:" in error
