"""Models and checkpoints that would run code, or break what reads them: nothing runs, and each ends in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from pipeline import checkpoint
from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.models.load import load_base, load_classifier, load_tokenizer
from pipeline.models.saved_state import state_being_read
from pipeline.models.source import identify
from pipeline.recipe.engines import NO_ENGINE, Engine
from pipeline.recipe.schema import ModelSettings
from pipeline.rollouts.foreign import foreign_reward
from pipeline.runtime import Ranks
from pipeline.stages.ppo_state import Keeper


class Payload:
    """Pickled, a call that leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self._trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self._trace),)


@pytest.fixture
def trace(tmp_path):
    """What code leaves behind that was run; checked after every test."""
    trace = tmp_path / "pwned"
    yield trace
    assert not trace.exists()
    assert "evil" not in sys.modules and not any("evil" in name for name in sys.modules)


@pytest.fixture
def model(tmp_path, tiny_folder):
    """A copy of the tiny model, to be tampered with."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_code(folder, trace):
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil: pass\n")


def load(folder):
    return load_base(folder, ModelSettings(base=str(folder)), frozen=True, precision="fp32")


def load_scorer(folder):
    return load_classifier(folder, ModelSettings(base=str(folder)), frozen=True, precision="fp32")


def test_the_payload_would_run(trace, tmp_path):
    """The control."""
    torch.save({"state": Payload(trace)}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert trace.exists()
    trace.rmdir()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt2", "weights.pkl"])
def test_a_model_of_pickled_weights_is_refused_before_anything_is_loaded(model, trace, name):
    (model / "model.safetensors").unlink()
    torch.save({"w": Payload(trace)}, model / name)
    with pytest.raises(SourceUnreachableError, match=f"only {name}, which can run code when loaded"):
        identify(str(model), None)
    with pytest.raises(OSError, match="safetensors"):
        load(model)


def test_pickled_weights_beside_others_are_left_alone(model, trace):
    torch.save({"w": Payload(trace)}, model / "pytorch_model.bin")
    (model / "adapter_model.bin").write_bytes((model / "pytorch_model.bin").read_bytes())
    load(model)


def tensors(**places: tuple[int, int, int]) -> bytes:
    """A file of weights whose header says of each tensor: so many numbers, from here to there."""
    entries = {
        name: {"dtype": "F32", "shape": [numbers], "data_offsets": [begin, end]}
        for name, (numbers, begin, end) in places.items()
    }
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + bytes(max(end for _, _, end in places.values()))


def test_a_header_that_tells_the_truth_is_read(tmp_path):
    """The control."""
    from safetensors.torch import load_file

    (tmp_path / "x.safetensors").write_bytes(tensors(a=(4, 0, 16), b=(4, 16, 32)))
    assert {name: len(tensor) for name, tensor in load_file(tmp_path / "x.safetensors").items()} == {"a": 4, "b": 4}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62),
        struct.pack("<Q", 2**31) + b"{" * 64,
        struct.pack("<Q", 8) + b"{}      ",
        struct.pack("<Q", 80) + b'{"w": {"dtype": "F32", "shape": [1048576], "data_offsets": [0, 4194304]}}'.ljust(80),
        tensors(a=(4, 0, 16), b=(4, 8, 24)),
        tensors(a=(4, 0, 16), b=(4, 0, 16)),
        tensors(a=(4, 0, 16), b=(4, 24, 40)),
        b"\x80\x04cposix\nsystem\n",
        b"",
    ],
    ids=["huge header", "header behind the end", "no tensors", "tensor behind the end", "tensors that overlap",
         "two tensors in one place", "a gap between tensors", "pickle", "empty"],
)  # fmt: skip
def test_weights_whose_header_lies(model, content):
    (model / "model.safetensors").write_bytes(content)
    identify(str(model), None)
    with pytest.raises((SourceUnreachableError, TrivetError)) as caught:
        load(model)
    assert str(model) in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "loader", [load, lambda folder: load_classifier(folder, ModelSettings(), frozen=True, precision="fp32")]
)
def test_a_model_that_brings_code_is_refused(model, trace, loader):
    with_code(model, trace)
    auto_map = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoModelForSequenceClassification": "evil.Evil",
    }
    edit(model / "config.json", model_type="evil", architectures=["Evil"], auto_map=auto_map)
    with pytest.raises(SourceUnreachableError, match="running the code that comes with it") as caught:
        loader(model)
    assert len(str(caught.value).splitlines()) == 1


def test_code_beside_a_known_architecture_is_left_alone(model, trace):
    with_code(model, trace)
    edit(model / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    assert type(load(model)).__name__ == "LlamaForCausalLM"


def test_a_tokenizer_that_brings_code(model, trace):
    with_code(model, trace)
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    edit(model / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)
    try:
        load_tokenizer(model, "auto")
    except SourceUnreachableError as error:
        assert len(str(error).splitlines()) == 1


def test_a_reward_model_that_brings_code(model, trace):
    with_code(model, trace)
    edit(model / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    with pytest.raises(SourceUnreachableError, match="running the code that comes with it"):
        foreign_reward(str(model), 1, Ranks(0, 0, 1))


def test_an_adapter_in_a_models_clothes_would_load_another_base(model, trace, network_attempts):
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "evil/model",
        "auto_mapping": None,
    }
    (model / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(SourceUnreachableError, match="holds an adapter"):
        identify(str(model), None)
    assert not network_attempts


def test_a_chat_template_reaches_nothing_outside(model, trace):
    """transformers renders templates in a sandbox; what it refuses makes a row unusable, nothing more."""
    from data_prep.chat import ChatFormatter, UnusableRow
    from data_prep.records import Demonstration, Message, Origin

    attack = f"{{{{ cycler.__init__.__globals__.os.mkdir({str(trace)!r}) }}}}"
    deeper = "{{ ().__class__.__base__.__subclasses__() }}{{ messages[0].__class__ }}"
    tokenizer = load_tokenizer(model, "auto")
    turns = (Message(role="user", content="a"), Message(role="assistant", content="b"))
    record = Demonstration(origin=Origin(source="x", row=1), messages=turns)
    ChatFormatter(tokenizer).demonstration(record, 512)
    for template in (attack, deeper):
        tokenizer.chat_template = template
        with pytest.raises(UnusableRow, match="template_refuses"):
            ChatFormatter(tokenizer).demonstration(record, 512)


def test_ppos_state_holds_numbers_only(tmp_path, trace):
    saved = tmp_path / "checkpoint-2"
    saved.mkdir()
    torch.save({"steps": 1, "policy": Payload(trace)}, saved / "optimisers.pt")
    checkpoint.commit(saved)
    assert checkpoint.is_complete(saved)

    class Nothing:
        learning = ("policy", "value")

        def trainable(self, role):
            return []

    for role in Nothing.learning:
        (saved / f"{role}.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    context = SimpleNamespace(
        checkpoints=tmp_path, ranks=Ranks(0, 0, 1), recipe=SimpleNamespace(stages={}), stage="ppo"
    )
    keeper = Keeper(context, Nothing(), None)
    with pytest.raises(TrivetError, match="holds more than numbers") as caught:
        keeper.load(saved)
    assert f"Delete {tmp_path}" in str(caught.value)


# DeepSpeed's files, which its own reader unpickles whatever they hold

ZERO = Engine("deepspeed", 2)


def as_deepspeed_reads(path):
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    return TorchCheckpointEngine().load(str(path), map_location="cpu")


@pytest.fixture
def shard(tmp_path):
    """A place for one of ZeRO's files in a checkpoint."""
    (tmp_path / "checkpoint-4" / "global_step4").mkdir(parents=True)
    return tmp_path / "checkpoint-4" / "global_step4" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def test_deepspeeds_reader_would_run_it(shard, trace):
    """The control."""
    torch.save({"optimizer_state_dict": Payload(trace)}, shard)
    as_deepspeed_reads(shard)
    assert trace.exists()
    trace.rmdir()


@pytest.mark.parametrize("new_form", [True, False], ids=["archive", "old form"])
def test_deepspeeds_state_holds_numbers_only(shard, trace, new_form, monkeypatch):
    torch.save({"optimizer_state_dict": Payload(trace)}, shard, _use_new_zipfile_serialization=new_form)
    # Whoever lets torch's loader be careless elsewhere does not so here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with (
        pytest.raises(TrivetError, match=r"holds more than numbers \(posix\.mkdir\)") as caught,
        state_being_read(shard.parents[1], ZERO),
    ):
        as_deepspeed_reads(shard)
    assert f"Delete {shard.parents[2]}" in str(caught.value)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1" and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_what_deepspeed_itself_saves_is_let_through_and_no_more(shard):
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    scaler = DynamicLossScaler(2.0**16, 1000, 1, 2, False)
    state = {
        "loss_scaler": LossScaler(scale=1.0),
        "fp16": scaler,
        "zero_stage": ZeroStageEnum.weights,
        "param_slice_mappings": [OrderedDict(w=fragment_address(numel=3, start=1))],
        "param_shapes": [OrderedDict(w=torch.Size([2, 2]))],
        "sparse_tensor_module_names": {"embedding"},
        "w": torch.arange(4.0),
    }
    torch.save(state, shard)
    with state_being_read(shard.parents[1], ZERO):
        found = as_deepspeed_reads(shard)
    assert vars(found["fp16"]) == vars(scaler) and found["zero_stage"] is ZeroStageEnum.weights
    assert found["param_slice_mappings"] == state["param_slice_mappings"] and torch.equal(found["w"], state["w"])
    with pytest.raises(TrivetError, match="holds more than numbers"), state_being_read(shard.parents[1], NO_ENGINE):
        as_deepspeed_reads(shard)
