"""What the library trainers are kept from: committing what is not finite, going on from what others wrote."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import SFTConfig

from data_prep.chat import EncodedDemonstration
from pipeline import checkpoint
from pipeline.errors import RecipeError, TrivetError
from pipeline.models import adapters
from pipeline.models.forward import has_dropout
from pipeline.models.load import load_base
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.recipe.stage_settings import SftSettings
from pipeline.runtime import Ranks
from pipeline.stages import fully_sharded, spreading
from pipeline.stages.engine import choose_engine
from pipeline.stages.sft_objective import Imitation
from pipeline.stages.spreading import Before, require_engine, require_resumable
from pipeline.stages.stream_trainer import StreamTrainer

ROW = EncodedDemonstration([1, 40, 41, 42, 43, 2], [False] * 3 + [True] * 3, False)


def context_of(ranks: int = 1, deepspeed: str = "none", **more: Any) -> Any:
    stages = {"sft": SftSettings(deepspeed=deepspeed, precision="fp32")}
    recipe = SimpleNamespace(stages=stages, model=ModelSettings(base="x"))
    console = SimpleNamespace(say=lambda text: None)
    return SimpleNamespace(stage="sft", recipe=recipe, ranks=Ranks(0, 0, ranks), console=console, **more)


@pytest.fixture
def trainer(tiny_folder, tmp_path) -> Any:
    base = load_base(tiny_folder, ModelSettings(base="x"), frozen=True, precision="fp32")
    model = adapters.attach_new(base, AdapterSettings(r=4, alpha=8), dropout=False)
    assert choose_engine(context_of(), SftSettings(), [model]) == "streams"
    args = SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1, save_steps=1,
        max_steps=2, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, gradient_checkpointing=False,
        logging_nan_inf_filter=False,
    )  # fmt: skip
    return StreamTrainer(model=model, args=args, rows=[ROW] * 4, objective=Imitation())


def test_a_checkpoint_says_who_made_it(trainer, tmp_path):
    trainer.made_by = {"ranks": 1, "engine": "no engine"}
    trainer.train()
    found, _ = checkpoint.newest_complete(tmp_path)
    assert checkpoint.step_of(found) == 2 and checkpoint.made_by(found) == trainer.made_by


def test_weights_that_are_not_finite_are_never_committed(trainer, tmp_path):
    """They come from an update, not from a loss, so that only the weights themselves show it."""
    step = trainer.create_optimizer().step

    def spoilt(*arguments: Any, **more: Any) -> Any:
        found = step(*arguments, **more)
        with torch.no_grad():
            next(each for name, each in trainer.model.named_parameters() if "lora_B" in name).fill_(torch.inf)
        return found

    trainer.optimizer.step = spoilt
    with pytest.raises(TrivetError, match=r"lora_B.* holds values that are not finite"):
        trainer.train()
    assert checkpoint.newest_complete(tmp_path)[0] is None and checkpoint.all_checkpoints(tmp_path)


def test_a_loss_that_is_not_finite_reaches_no_gradient(trainer, monkeypatch):
    compute = Imitation.compute
    monkeypatch.setattr(
        Imitation, "compute", lambda *each: SimpleNamespace(loss=compute(*each).loss * torch.nan, metrics={})
    )
    said = "the loss became nan at step 1; training stopped and nothing of this step is kept; no checkpoint is complete"
    with pytest.raises(TrivetError, match=said):
        trainer.train()
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("made_by", "said"),
    [
        ({"ranks": 2, "engine": "no engine"}, "was written by 2 ranks with no engine, this launch has 1 rank with no"),
        ({"ranks": 1, "engine": "DeepSpeed ZeRO-2"}, "1 rank with DeepSpeed ZeRO-2, this launch has 1 rank with no"),
    ],
)
def test_what_others_wrote_is_refused_with_the_way_out(tmp_path, made_by, said):
    path = tmp_path / "checkpoint-4"
    path.mkdir()
    checkpoint.commit(path, made_by)
    with pytest.raises(TrivetError, match=said) as caught:
        require_resumable(path, context_of())

    assert "launch as before to go on from it, or begin the stage again with `--force sft`" in str(caught.value)
    checkpoint.commit(path, {"ranks": 1, "engine": "no engine"})
    require_resumable(path, context_of())


def test_a_checkpoint_that_was_offloaded_to_a_disk_is_not_gone_on_with(tmp_path):
    path = tmp_path / "checkpoint-4"
    path.mkdir()
    for place, engine in (("cpu", "the host's memory"), ("nvme", "a disk")):
        checkpoint.commit(path, {"ranks": 1, "engine": f"DeepSpeed ZeRO-3 offloaded to {engine}"})
        if place == "cpu":
            require_resumable(path, context_of(deepspeed="zero3_offload_cpu"))
    with pytest.raises(TrivetError, match=r"step 4 is of DeepSpeed ZeRO-3 offloaded to a disk, .*`--force sft`"):
        require_resumable(path, context_of(deepspeed="zero3_offload_nvme"))


def test_without_an_engine_any_number_of_ranks_may_go_on_where_nothing_hangs_on_it(tmp_path):
    """Control: under DeepSpeed, or where chance or the order of rows would differ, they may not."""
    path = tmp_path / "checkpoint-4"
    path.mkdir()
    checkpoint.commit(path, {"ranks": 2, "engine": "no engine"})
    require_resumable(path, context_of(1), on_any_ranks=True)
    require_resumable(path, context_of(8), on_any_ranks=True)
    for context, any_ranks in ((context_of(1), False), (context_of(1, "zero2"), True)):
        with pytest.raises(TrivetError, match="was written by 2 ranks with no engine, this launch has 1 rank"):
            require_resumable(path, context, on_any_ranks=any_ranks)


def test_dropout_is_seen(trainer):
    assert not has_dropout(trainer.model)
    assert has_dropout(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1)))
    trainer.model.get_base_model().model.layers[1].self_attn.attention_dropout = 0.1
    assert has_dropout(trainer.model), "a number that attention is called with"


@pytest.mark.parametrize(("asked", "got"), [("zero2", None), ("none", 2), ("zero3", 2)])
def test_an_engine_that_is_not_the_one_asked_for_is_refused(asked, got):
    """Accelerate leaves one away without a word where it cannot be had."""
    plugin = None if got is None else SimpleNamespace(zero_stage=got)
    state = SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=None, distributed_type="MULTI_CPU")
    stands: Any = SimpleNamespace(accelerator=SimpleNamespace(state=state))
    with pytest.raises(RecipeError, match=r"stage sft: .* was asked for, "):
        require_engine(stands, context_of(deepspeed=asked))
    require_engine(stands, context_of(deepspeed=f"zero{got}" if got else "none"))


def test_fsdp_that_accelerate_left_away_is_refused(monkeypatch):
    """It does without a GPU, or with one process, and would train with plain data parallelism."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    state = SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=None, distributed_type="MULTI_CPU")
    stands: Any = SimpleNamespace(accelerator=SimpleNamespace(state=state))
    with pytest.raises(RecipeError, match="stage sft: FSDP was asked for, but accelerate would train with plain data"):
        require_engine(stands, context_of(deepspeed="inherit"))
    state.fsdp_plugin = SimpleNamespace(fsdp_version=2)
    require_engine(stands, context_of(deepspeed="inherit"))
    with pytest.raises(RecipeError, match="stage sft: no engine was asked for, but accelerate would train with FSDP"):
        require_engine(stands, context_of(deepspeed="none"))


def test_fp16_is_refused_under_fsdp_wherever_it_comes_from(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(fully_sharded, "resolve_precision", lambda asked: "fp16")
    stands: Any = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace())))
    with pytest.raises(RecipeError, match=r"fp16 scales gradients.*--set stages.sft.precision=bf16"):
        fully_sharded.take_fsdp(stands, context_of(deepspeed="inherit"))


def test_what_is_measured_before_training_waits_for_the_engine(monkeypatch):
    """And moves no generator: a resumed run measures nothing, and must draw the same."""

    def measure() -> dict[str, Any]:
        return {"drawn": float(torch.rand(()))}

    at_once = Before(context_of(), measure)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    later = Before(context_of(deepspeed="zero2"), measure)
    with pytest.raises(AssertionError):
        assert later.found
    later.take()
    found = later.found
    later.take()
    assert later.found == found and set(at_once.found) == {"drawn"}
    assert torch.equal(torch.rand(3), expected)


def test_deepspeeds_kernel_for_shared_memory_is_not_compiled():
    import deepspeed.ops

    spreading.without_compiling()
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
