"""What a recipe may say: every key, its type, its default and what it does.

The field descriptions are the reference documentation (`trivet schema` prints them for editors). A default is the
vetted setting; a recipe states only differences. Pure pydantic: relations between fields are checked in `checks`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
StageName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm", "rpo",
]  # fmt: skip
DPO_LOSSES: tuple[str, ...] = get_args(DpoLoss)
EvaluationTask = Literal["perplexity", "preference", "kl", "rules"]


class Settings(BaseModel):
    """Base of all recipe blocks: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, populate_by_name=True, allow_inf_nan=False)


class AdapterSettings(Settings):
    """The trainable low-rank adapter that is carried from stage to stage."""

    type: Literal["lora", "dora"] = Field("lora", description="Kind of adapter.")
    r: PositiveInt = Field(16, description="Rank.")
    alpha: PositiveFloat = Field(32.0, description="Scale: the update is multiplied by alpha / r.")
    dropout: Fraction = Field(0.0, description="Dropout on the adapter's input during SFT (DPO trains without).")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Which linear layers get an adapter: all but the output head, or names."
    )


class ModelSettings(Settings):
    """The base model and how it is held in memory."""

    base: str = Field(
        "builtin:smollm2-135m-instruct", description="`builtin:` name, hub id (`owner/name`), or a local folder."
    )
    revision: str | None = Field(None, description="Commit or tag of a hub id; resolved to a commit and recorded.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of the base weights. auto: bfloat16 for a frozen base in a bf16 stage, else float32.",
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none", description="Quantise the frozen base with bitsandbytes (needs an adapter and a GPU)."
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="Attention implementation; auto leaves the choice to transformers."
    )
    adapter: AdapterSettings | Literal["none"] = Field(
        default_factory=AdapterSettings, description="The adapter, or `none` for full fine-tuning."
    )


class SourceSettings(Settings):
    """One file, folder or hub data set."""

    path: str = Field(description="File, folder, hub id (`owner/name`) or `builtin:` name.")
    format: Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "preference", "hh"] = Field(
        "auto", description="How its rows are written; auto recognises it and prints what it recognised."
    )
    revision: str | None = Field(None, description="Commit or tag of a hub data set.")
    split: str = Field("train", description="Split of a hub data set.")
    limit: PositiveInt | None = Field(None, description="At most so many training rows, drawn with the recipe's seed.")
    weight: PositiveFloat | None = Field(
        None, description="Share of this source in the mixture, relative to the other sources' weights."
    )


class DataSetSettings(Settings):
    """Training and held-out rows of one kind."""

    sources: tuple[SourceSettings, ...] = Field(min_length=1, description="Where the rows come from.")
    max_length: PositiveInt = Field(
        1024, description="Tokens per sequence. Longer prompts lose their beginning; answers are never cut."
    )
    eval_fraction: Fraction = Field(
        0.05, description="Share of prompts held out, chosen by a hash of the prompt (rows may name their own split)."
    )
    eval_limit: PositiveInt = Field(256, description="At most so many held-out rows are evaluated.")


class PromptSettings(Settings):
    """Prompts that policies answer: for sampling in evaluation."""

    from_: Literal["sft", "preference"] | None = Field(
        None, alias="from", description="Take the prompts of this data set (default: preference, else sft)."
    )
    max_prompt_length: PositiveInt = Field(512, description="Longer prompts lose their beginning.")


class DataSettings(Settings):
    """All data of the run."""

    sft: DataSetSettings | None = Field(None, description="Demonstrations for supervised fine-tuning.")
    preference: DataSetSettings | None = Field(None, description="Pairs of a chosen and a rejected answer.")
    prompts: PromptSettings = Field(default_factory=PromptSettings, description="Prompts to answer.")
    chat_template: str = Field(
        "auto",
        description="auto: the tokenizer's own, else `plain`. Or `plain`, `alpaca`, `chatml`, or a .jinja file.",
    )


class StageSettings(Settings):
    """What every training stage can say."""

    learning_rate: PositiveFloat
    epochs: PositiveFloat = Field(1.0, description="Passes over the training rows.")
    max_steps: PositiveInt | None = Field(None, description="Stop after so many optimiser steps (overrides epochs).")
    global_batch_size: PositiveInt = Field(
        16, description="Rows per optimiser step over all processes; accumulation follows from it, exactly."
    )
    per_device_batch_size: PositiveInt = Field(4, description="Rows per forward pass on one process.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of the forward pass; auto: bf16 where the hardware has it, else fp32."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate after warm-up.")
    warmup_ratio: Fraction = Field(0.05, description="Share of the steps with a rising learning rate.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this global norm.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.0, description="AdamW's decoupled weight decay.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, a third more time.")
    log_every: PositiveInt = Field(5, description="Optimiser steps between two lines of metrics.")
    save_every: PositiveInt = Field(50, description="Optimiser steps between two checkpoints (always one at the end).")
    deepspeed: str = Field(
        "inherit", description="inherit: what the launch configured. none. Or a file of ds_configs/: zero1, zero2, ..."
    )
    trainer_args: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of the library's own config class, checked by name."
    )


class SftSettings(StageSettings):
    """Supervised fine-tuning on demonstrations: loss on the answers' tokens only."""

    kind: Literal["sft"] = Field("sft", description="Kind of stage; unsaid, the stage's name.")
    learning_rate: PositiveFloat = Field(2.0e-4, description="Peak learning rate (use about 1e-5 without an adapter).")
    init: StageName | None = Field(
        None, description="Earlier stage, or `base`, to start from (default: the base model)."
    )


class DpoSettings(StageSettings):
    """Direct preference optimisation against a frozen copy of the policy it starts from."""

    kind: Literal["dpo"] = Field("dpo", description="Kind of stage; unsaid, the stage's name.")
    learning_rate: PositiveFloat = Field(5.0e-5, description="Peak learning rate (use about 5e-7 without an adapter).")
    policy: StageName | None = Field(
        None,
        description="Earlier stage, or `base`, to start from, and the reference (default: last SFT, else the base).",
    )
    beta: PositiveFloat = Field(0.1, description="Strength of the pull towards the reference.")
    loss_type: DpoLoss = Field("sigmoid", description="Loss; `rpo` adds the chosen answer's negative log-likelihood.")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = Field(
        0.0, description="Assumed share of swapped pairs: conservative DPO with `sigmoid`, also robust, exo_pair, aot."
    )
    rpo_alpha: PositiveFloat = Field(1.0, description="Weight of the likelihood term of `rpo`.")


AnyStage = Annotated[SftSettings | DpoSettings, Field(discriminator="kind")]
STAGE_KINDS: dict[str, type[StageSettings]] = {"sft": SftSettings, "dpo": DpoSettings}


class EvaluationSettings(Settings):
    """What is measured at the end, on held-out rows, for the base model and every stage's policy."""

    tasks: tuple[EvaluationTask, ...] = Field(
        ("perplexity", "preference", "kl", "rules"), description="What to measure; an empty list skips evaluation."
    )
    prompts: PositiveInt = Field(150, description="Held-out prompts answered greedily and scored by rule.")
    kl_prompts: PositiveInt = Field(48, description="Held-out prompts answered by sampling, for the KL estimate.")
    max_new_tokens: PositiveInt = Field(64, description="Longest answer.")
    batch_size: PositiveInt = Field(16, description="Prompts per generated batch and rows per scored batch.")


class WandbSettings(Settings):
    """Weights & Biases. Offline mode (WANDB_MODE=offline) is honoured; its failure never stops a run."""

    project: str = Field("trivet", description="Project name.")
    entity: str | None = Field(None, description="Team or user; default: the logged-in user's.")


class TrackingSettings(Settings):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: WandbSettings | None = Field(None, description="Off unless written.")


class Recipe(Settings):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="Name of the run.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(17, description="Seeds everything that is random.")
    output_dir: str | None = Field(None, description="Run directory (default: runs/<name>).")
    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings
    stages: dict[StageName, AnyStage] = Field(min_length=1, description="Stages in the order they run.")
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
