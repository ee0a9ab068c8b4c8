"""Both engines on the same rows: gradients of a step, and whole short trainings, step by step, with TRL's trainers.

Tiny model, float32, very uneven rows, a step of two micro-batches; streams spread its rows over them in their own way.
The slow ones go over the rows five times, 60 steps, in which rounding has time to grow.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, RewardConfig, SFTConfig

from pipeline.errors import RecipeError
from pipeline.models import adapters
from pipeline.models.forward import attends_in_streams
from pipeline.models.heads import new_head, with_head
from pipeline.models.load import load_base, load_classifier, load_tokenizer
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.recipe.stage_settings import DpoSettings, RewardSettings, SftSettings
from pipeline.runtime import Ranks
from pipeline.stages import dpo, reward_member, sft
from pipeline.stages.dpo import CommittedDPOTrainer
from pipeline.stages.dpo import _row as dpo_row
from pipeline.stages.dpo_loss import loss_arguments
from pipeline.stages.dpo_objective import Preference, lacks
from pipeline.stages.dpo_reference import add_reference, reference_call
from pipeline.stages.engine import choose_engine
from pipeline.stages.reward_objective import Comparison, MarginPair
from pipeline.stages.reward_trainer import CommittedRewardTrainer, trainer_rows
from pipeline.stages.sft import CommittedSFTTrainer
from pipeline.stages.sft_batches import _row as sft_row
from pipeline.stages.sft_objective import Imitation
from pipeline.stages.stream_trainer import StreamTrainer
from tests.rollouts.ppo_parts import lively_base
from tests.stages.short_runs import PER_STEP, STEPS, SYSTEM, demonstrations, pairs, trained


@pytest.fixture
def policy(tiny_folder) -> Callable[[], Any]:
    """A fresh policy with an adapter, the same one each time."""

    def make() -> Any:
        base = load_base(tiny_folder, ModelSettings(base="x"), frozen=True, precision="fp32")
        torch.manual_seed(0)
        model = adapters.attach_new(base, AdapterSettings(r=4, alpha=8), dropout=False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
        return model

    return make


@pytest.fixture
def config(tmp_path) -> Callable[..., Any]:
    def make(kind: type, **more: Any) -> Any:
        common: dict[str, Any] = {
            "output_dir": str(tmp_path), "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "bf16": False,
            "report_to": "none", "disable_tqdm": True, "max_length": None, "gradient_checkpointing": False,
            "lr_scheduler_type": "constant", "num_train_epochs": 1,
        }  # fmt: skip
        return kind(**(common | more))

    return make


def over(passes: int) -> dict[str, float]:
    """The trainers' arguments for so many passes; at a high rate rounding alone would lead elsewhere in many."""
    return {"num_train_epochs": passes, "learning_rate": 1e-3 if passes == 1 else 1e-4}


def require_equal(ours: Any, theirs: Any, names: tuple[str, ...], passes: int = 1) -> None:
    (our_steps, our_weights), (their_steps, their_weights) = ours, theirs
    assert len(our_steps) == len(their_steps) == STEPS * passes
    # Rounding grows from step to step.
    slack = 1 if passes == 1 else 5
    for step, (a, b) in enumerate(zip(our_steps, their_steps, strict=True)):
        assert a["num_tokens"] == b.get("num_tokens", a["num_tokens"])
        for name in ("loss", *names):
            assert a[name] == pytest.approx(b[name], rel=slack * 1e-4, abs=slack * 2e-5), (step, name)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5 if step == 0 else slack * 1e-3), step
    assert our_weights.keys() == their_weights.keys()
    for name, value in our_weights.items():
        assert torch.allclose(value, their_weights[name], rtol=slack * 1e-3, atol=slack * 1e-4), name
    assert our_steps[0]["loss"] != our_steps[-1]["loss"]


@pytest.mark.parametrize(
    ("pad", "passes"), [(None, 1), ("<|im_end|>", 1), pytest.param(None, 5, marks=pytest.mark.slow)]
)
def test_imitation(policy, config, tiny_folder, pad, passes):
    rows = demonstrations()
    tokenizer = tokenizer_of(tiny_folder, pad)
    options = {"packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}, **over(passes)}
    ours = StreamTrainer(model=streamed(policy()), args=config(SFTConfig, **options), rows=rows, objective=Imitation())
    theirs = CommittedSFTTrainer(
        model=policy(),
        args=config(SFTConfig, **options),
        train_dataset=Dataset.from_list([sft_row(row) for row in rows]),
        processing_class=tokenizer,
    )
    require_equal(trained(ours), trained(theirs), (), passes)


DPO = [
    DpoSettings(beta=0.3),
    DpoSettings(beta=0.3, label_smoothing=0.1),
    DpoSettings(beta=0.3, loss_type="ipo"),
    DpoSettings(beta=0.3, loss_type="sigmoid_norm"),
    DpoSettings(beta=0.3, loss_type="rpo", rpo_alpha=0.5),
    DpoSettings(beta=0.3, loss_type="exo_pair", label_smoothing=0.1),
    DpoSettings(beta=0.3, loss_type="sppo_hard"),
]
LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen")


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        *(pytest.param(each, 1, id=f"{each.loss_type}-{each.label_smoothing}") for each in DPO),
        pytest.param(DPO[0], 5, id="60 steps", marks=pytest.mark.slow),
    ],
)
def test_preference(policy, config, tiny_folder, settings, passes):
    rows = pairs()
    arguments = {"beta": settings.beta, **over(passes), **loss_arguments(settings)}
    model = streamed(policy())
    add_reference(model)
    objective = Preference(settings, reference_call(model, None, "fp32"))
    ours = StreamTrainer(model=model, args=config(DPOConfig, **arguments), rows=rows, objective=objective)
    theirs = CommittedDPOTrainer(
        model=policy(),
        args=config(DPOConfig, **arguments),
        train_dataset=Dataset.from_list([dpo_row(row) for row in rows]),
        processing_class=tokenizer_of(tiny_folder, None),
        rpo_alpha=settings.rpo_alpha if settings.loss_type == "rpo" else None,
    )
    found = trained(ours)
    require_equal(found, trained(theirs), LOGGED, passes)
    if settings == DPO[0]:
        assert found[0][0]["loss"] == pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize(
    ("center", "margin", "passes"),
    [(0.0, 0.0, 1), (0.3, 0.7, 1), pytest.param(0.0, 0.0, 5, id="60 steps", marks=pytest.mark.slow)],
)
def test_comparison(config, tiny_folder, center, margin, passes):
    rows = [MarginPair(row, margin * (index % 3)) for index, row in enumerate(pairs())]

    def model() -> Any:
        base: Any = load_classifier(tiny_folder, ModelSettings(base="x"), frozen=True, precision="fp32")
        with_head(base, new_head(48, 0))
        torch.manual_seed(0)
        return adapters.attach_for_scores(base, AdapterSettings(r=4), None)

    ours = StreamTrainer(
        model=streamed(model()),
        args=config(RewardConfig, center_rewards_coefficient=center or None, **over(passes)),
        rows=rows,
        objective=Comparison(use_margins=margin > 0, center_coefficient=center),
    )
    theirs = CommittedRewardTrainer(
        model=model(),
        args=config(RewardConfig, center_rewards_coefficient=center or None, **over(passes)),
        train_dataset=Dataset.from_list(trainer_rows(rows)),
        processing_class=tokenizer_of(tiny_folder, None),
    )
    require_equal(trained(ours), trained(theirs), ("accuracy", "margin", "mean_reward"), passes)


def test_work_is_counted(policy, config):
    """Tokens through the layers: every prompt and the common system message once, reference and policy alike."""
    rows = pairs()[:PER_STEP]
    model = streamed(policy())
    add_reference(model)
    seen: list[int] = []
    layer = model.get_base_model().model.layers[0].mlp
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-2]))
    objective = Preference(DPO[0], reference_call(model, None, "fp32"))
    trainer = StreamTrainer(model=model, args=config(DPOConfig), rows=rows, objective=objective)
    trainer.train()
    own = sum(len(row.prompt_ids) - len(SYSTEM) + len(row.chosen_ids) + len(row.rejected_ids) for row in rows)
    assert len(seen) == 4 and seen[0] == seen[1] and seen[2] == seen[3]
    micro_batches = 2
    # Answers that begin alike by chance share that too.
    assert own + micro_batches * len(SYSTEM) - 5 <= seen[0] + seen[2] <= own + micro_batches * len(SYSTEM)
    assert abs(seen[0] - seen[2]) <= 40, "about equal micro-batches"


@pytest.mark.parametrize("most", [1, 60, 10**6])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_passes_of_so_many_tokens_learn_what_passes_of_so_many_rows_do(policy, config, kind, most):
    """One pass a row, some, or one a step: the same losses and weights; and no pass has more tokens than it may."""
    seen: list[int] = []

    def trainer(most_tokens: int | None) -> Any:
        model = streamed(policy())
        model.get_base_model().model.layers[0].mlp.register_forward_hook(
            lambda _, inputs, __: seen.append(inputs[0].shape[-2])
        )
        more = {} if most_tokens is None else {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
        if kind == "sft":
            arguments, rows, objective = config(SFTConfig, **more), demonstrations(), Imitation()
        else:
            add_reference(model)
            objective = Preference(DPO[0], reference_call(model, None, "fp32"))
            arguments, rows = config(DPOConfig, beta=0.3, **more), pairs()
        return StreamTrainer(model=model, args=arguments, rows=rows, objective=objective, most_tokens=most_tokens)

    by_rows = trained(trainer(None))
    seen.clear()
    bounded = trainer(most)
    require_equal(trained(bounded), by_rows, ())
    longest = max(len(bounded._objective.stream([row]).ids_N) for row in bounded.train_dataset)
    assert max(seen) <= max(most, longest)
    calls = STEPS * (1 if kind == "sft" else 2)
    if most == 60:
        assert calls < len(seen) < PER_STEP * calls
    else:
        assert len(seen) == (PER_STEP * calls if most == 1 else calls)


# Which engine is chosen


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


@pytest.mark.parametrize("kind", ["dpo", "reward", "sft"])
def test_dropout_of_the_base_is_off_where_two_passes_are_compared(tiny_folder, tmp_path, kind):
    """As in TRL's trainers, which leave it on in SFT alone; a fresh model has it on."""
    folder, settings = lively_base(tmp_path / "gpt2", tiny_folder, "gpt2"), ModelSettings(base="x")
    data = SimpleNamespace(sft=SimpleNamespace(max_length=64))
    recipe = SimpleNamespace(model=settings, seed=1, data=data, stages={"x": SftSettings()})
    context: Any = SimpleNamespace(
        stage="x", console=Ear(), recipe=recipe, ranks=Ranks(0, 0, 1), checkpoints=tmp_path / "checkpoints"
    )
    model: Any
    if kind == "reward":
        model = load_classifier(folder, settings, frozen=True, precision="fp32")
        with_head(model, new_head(32, 0))
        model = adapters.attach_for_scores(model, AdapterSettings(r=4), None)
        training: Any = SimpleNamespace(settings=RewardSettings(precision="fp32"), rows=[], groups=[])
        make = partial(reward_member._trainer, "streams", model, training, context)
    else:
        model = adapters.attach_new(
            load_base(folder, settings, frozen=True, precision="fp32"), AdapterSettings(r=4), dropout=False
        )
        policy: Any = SimpleNamespace(model=model, tokenizer=None)
        if kind == "dpo":
            make = partial(dpo._trainer, "streams", policy, None, DpoSettings(precision="fp32"), context, [])
        else:
            make = partial(sft._trainer, "streams", policy, SftSettings(precision="fp32"), context, [], "fp32")
    assert dropped(model) > 0
    assert (dropped(make().model) > 0) == (kind == "sft")


def dropped(model: Any) -> float:
    return sum(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))


def choose(settings: Any, model: Any, lacking: str | None = None, attention: Any = "auto") -> tuple[str, list[str]]:
    ear = Ear()
    recipe = SimpleNamespace(model=ModelSettings(base="x", attention=attention))
    context: Any = SimpleNamespace(stage="dpo", console=ear, recipe=recipe)
    return choose_engine(context, settings, [model], lacking), ear.heard


def test_streams_are_the_default(policy):
    assert choose(SftSettings(), policy()) == ("streams", [])
    assert choose(SftSettings(engine="trl"), policy()) == ("trl", [])


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (DpoSettings(loss_type="aot"), "aot depends on how pairs fall into micro-batches"),
        (DpoSettings(trainer_args={"padding_free": True}), "trainer_args.padding_free is for TRL's trainer"),
        (
            DpoSettings(deepspeed="zero3", gradient_checkpointing=True),
            "recomputes activations in a way of TRL's",
        ),
    ],
)
def test_elsewhere_it_is_trl_and_says_why(policy, settings, why):
    engine, heard = choose(settings, policy(), lacks(settings))
    assert engine == "trl" and len(heard) == 1
    assert heard[0].startswith("TRL's trainer computes the steps: ") and heard[0].endswith(why)
    forced = settings.model_copy(update={"engine": "streams"})
    with pytest.raises(RecipeError, match=r"stages\.dpo\.engine: streams are not possible here: .*leave it at auto"):
        choose(forced, policy(), lacks(forced))
    counting = settings.model_copy(update={"tokens_per_device": 512, "deepspeed": "none", "loss_type": "aot"})
    with pytest.raises(RecipeError, match=r"stages\.dpo\.tokens_per_device: TRL's .*knows no such thing: .* leave"):
        choose(counting, policy(), lacks(counting))


def test_fields_of_the_trainer_itself_are_heeded_by_both(policy):
    assert choose(RewardSettings(trainer_args={"adam_beta1": 0.5}), policy())[0] == "streams"


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_streams_run_under_deepspeed_too(policy, engine):
    assert choose(SftSettings(deepspeed=engine), policy()) == ("streams", [])


@pytest.mark.parametrize(("engine", "chosen"), [("zero2", "streams"), ("zero3", "trl")])
def test_an_output_layer_that_is_trained_is_not_gathered_in_pieces(tiny_folder, engine, chosen):
    model = load_base(tiny_folder, ModelSettings(base="x"), frozen=False, precision="fp32")
    found, heard = choose(SftSettings(deepspeed=engine), model)
    assert found == chosen and ("spreads the output layer, which is trained" in "".join(heard)) == (chosen == "trl")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_the_recipe_names_pads_everywhere(tiny_folder, attention):
    """Loading, scoring and training alike: `sdpa` is what streams are made of, but not what was asked for."""
    base = load_base(tiny_folder, ModelSettings(base="x", attention=attention), frozen=True, precision="fp32")
    model = adapters.attach_new(base, AdapterSettings(r=4), dropout=False)
    engine, heard = choose(SftSettings(), model, attention=attention)
    assert engine == "trl" and f"model.attention is {attention}, which pads rows" in heard[0]
    assert base.config._attn_implementation == attention and not attends_in_streams(model)
    with pytest.raises(RecipeError, match=rf"streams are not possible here: model\.attention is {attention}"):
        choose(SftSettings(engine="streams"), model, attention=attention)


def test_attention_that_streams_cannot_use_is_trl(tiny_folder):
    base = load_base(tiny_folder, ModelSettings(base="x", attention="eager"), frozen=True, precision="fp32")
    engine, heard = choose(SftSettings(), adapters.attach_new(base, AdapterSettings(r=4), dropout=False))
    assert engine == "trl" and "its attention is eager" in heard[0]


def streamed(model: Any) -> Any:
    assert choose(SftSettings(), model)[0] == "streams"
    return model


def tokenizer_of(folder: Any, pad: str | None) -> Any:
    tokenizer = copy.deepcopy(load_tokenizer(folder, "auto"))
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer
