"""What a recipe may say of its stages: the settings of each kind, with defaults and descriptions.

Like `schema`, whose `stages` these are: pure pydantic, descriptions are the reference documentation.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from pipeline.recipe.settings import Fraction, PositiveFloat, PositiveInt, Settings, StageName

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm", "rpo",
]  # fmt: skip
DPO_LOSSES: tuple[str, ...] = get_args(DpoLoss)
STREAMS_ALONE = ("tokens_per_device", "precompute_reference")
"""Settings that TRL's trainers have no part for."""
RULES, FUNCTION = "rules", "function"
"""Words in `rewards` that are not names of stages or folders."""


class StageSettings(Settings):
    """What every training stage can say."""

    learning_rate: PositiveFloat
    per_device_batch_size: PositiveInt = Field(4, description="Rows per forward pass on one process.")
    tokens_per_device: PositiveInt | None = Field(
        None,
        description="In passes that train, instead of a number of rows: as many rows together as have at most so many "
        "tokens. One that is longer goes alone.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of the forward pass; auto: bf16 where the hardware is faster in it, else fp32."
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


class OfflineSettings(StageSettings):
    """What every stage can say that trains on given rows."""

    epochs: PositiveFloat = Field(1.0, description="Passes over the training rows.")
    max_steps: PositiveInt | None = Field(None, description="Stop after so many optimiser steps (overrides epochs).")
    global_batch_size: PositiveInt = Field(
        16, description="Rows per optimiser step over all processes; accumulation follows from it, exactly."
    )
    engine: Literal["auto", "streams", "trl"] = Field(
        "auto",
        description="What computes a step. streams: every prompt once, nothing padded, the head on answers only. trl: "
        "TRL's own trainer. auto: streams where they are exact for this model and loss, and says which and why.",
    )
    trainer_args: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of the library's own config class, checked by name."
    )


class SftSettings(OfflineSettings):
    """Supervised fine-tuning on demonstrations: loss on the answers' tokens only."""

    kind: Literal["sft"] = Field("sft", description="Kind of stage; unsaid, the stage's name.")
    learning_rate: PositiveFloat = Field(2.0e-4, description="Peak learning rate (use about 1e-5 without an adapter).")
    init: StageName | None = Field(
        None, description="Earlier stage, or `base`, to start from (default: the base model)."
    )
    packing: bool = Field(
        False,
        description="Lay rows end to end in sequences of up to max_length, kept apart by attention: no padding. Batch "
        "sizes then count packed sequences.",
    )
    group_by_length: bool = Field(
        False, description="Draw rows of like length into one batch: less padding, less chance in the order."
    )
    sequence_parallel_size: PositiveInt = Field(
        1,
        description="So many processes compute each row together, a piece each: for rows that one GPU cannot hold. "
        "Needs DeepSpeed; they count as one process for batch sizes.",
    )


class DpoSettings(OfflineSettings):
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
    precompute_reference: bool = Field(
        False,
        description="Ask the reference about all pairs once, before training, and keep its answers for later passes "
        "and runs; else in every step, which takes a third of the passes.",
    )
    watch: StageName | None = Field(
        None,
        description="Earlier reward stage that scores answers to held-out prompts while training goes on: shows when "
        "the policy gets worse although its loss still falls.",
    )
    eval_every: PositiveInt = Field(10, description="Optimiser steps between two measurements by `watch`.")
    eval_prompts: PositiveInt = Field(64, description="Held-out prompts of these measurements.")
    max_new_tokens: PositiveInt = Field(128, description="Longest answer in these measurements.")
    select: Literal["last", "heldout"] = Field(
        "last",
        description="Which policy is handed on: the last, or of those measured, the one it started from included, the "
        "best by the score of `watch`.",
    )
    stop_at_turn: bool = Field(
        False, description="End training once the score of `watch` has turned while the preference margin still rises."
    )


class RewardSettings(OfflineSettings):
    """A Bradley-Terry reward model: a scalar score for a prompt and its answer, trained on preference pairs."""

    kind: Literal["reward"] = Field("reward", description="Kind of stage; unsaid, the stage's name.")
    learning_rate: PositiveFloat = Field(1.0e-4, description="Peak learning rate (use about 1e-5 without an adapter).")
    init: StageName | None = Field(
        None, description="Earlier stage, or `base`, whose weights it starts from (default: last SFT, else the base)."
    )
    center_coefficient: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Weight of (r_chosen + r_rejected)^2, which keeps scores near zero (0.01 where wanted)."
    )
    use_margins: bool = Field(True, description="Ask for the margin that a pair states, where it states one.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None, description="Seeds its head and the order of its pairs (default: the recipe's seed)."
    )
    ensemble: PositiveInt = Field(1, description="Train so many models, which differ by seed, and score with all.")
    aggregate: Literal["mean", "min", "mean_minus_variance"] = Field(
        "mean", description="How an ensemble's scores become one."
    )
    variance_weight: PositiveFloat = Field(0.1, description="Weight of the variance in `mean_minus_variance`.")


class RewardSource(Settings):
    """One part of PPO's reward."""

    from_: str = Field(
        alias="from",
        description="An earlier reward stage; `rules`: the prompts' own checks, 1 or 0; `function`: the one given by "
        "--reward; or a folder or hub id of a sequence-classification model (text is tokenised anew for it).",
    )
    revision: str | None = Field(None, description="Commit or tag of a hub id; the score follows from that commit.")
    weight: float = Field(1.0, description="Its score is multiplied by this and added to the others.")


class GateSettings(Settings):
    """What a reward model must show before PPO optimises against it."""

    min_accuracy: Fraction = Field(
        0.5, description="The lower end of its held-out accuracy's 95 % interval must be above this; 0 asks nothing."
    )


class VllmSettings(Settings):
    """Where vLLM runs when it makes the rollouts."""

    url: str = Field("http://127.0.0.1:8000", description="Server started with `trl vllm-serve` (vllm_server).")
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.3, description="Share of each GPU that the colocated engine may take (vllm_colocate)."
    )
    importance_cap: PositiveFloat = Field(
        2.0, description="Importance weights between sampler and trainer are cut off here (paged too)."
    )


WITH_VALUE_MODEL = "gae"
"""The advantage estimator that stands on a value model's predictions."""
OF_VALUE_MODEL = (
    "gamma", "gae_lambda", "value_learning_rate", "value_clip", "value_init", "value_warmup", "value_trunk",
    "value_coef",
)  # fmt: skip
"""Settings of PPO's value model, and of advantages from one: without it they have no effect."""


class PpoSettings(StageSettings):
    """Proximal policy optimisation against a reward, held near a frozen copy of the policy it starts from."""

    kind: Literal["ppo"] = Field("ppo", description="Kind of stage; unsaid, the stage's name.")
    learning_rate: PositiveFloat = Field(
        1.0e-4, description="Peak learning rate of the policy (use about 1e-6 without an adapter)."
    )
    value_learning_rate: PositiveFloat | None = Field(None, description="The value model's (default: the policy's).")
    schedule: Literal["cosine", "linear", "constant"] = Field("linear", description="Learning rate after warm-up.")
    log_every: PositiveInt = Field(1, description="Rollouts between two lines of metrics.")
    save_every: PositiveInt = Field(5, description="Rollouts between two checkpoints (always one at the end).")
    policy: StageName | None = Field(
        None,
        description="Earlier stage, or `base`, to start from, and the reference (default: last SFT, else the base).",
    )
    reward_model: StageName | None = Field(
        None, description="Earlier reward stage to optimise against (default: the last one); or write `rewards`."
    )
    rewards: tuple[RewardSource, ...] | None = Field(
        None, description="Several rewards, or other ones than a reward stage: their weighted sum is optimised."
    )
    normalise_scores: bool = Field(
        True, description="Shift and scale a reward stage's scores to mean 0, deviation 1 on the demonstrations."
    )
    gate: GateSettings = Field(default_factory=GateSettings, description="Refuse a reward model worse than this.")
    episodes: PositiveInt = Field(
        10_240, description="Answers sampled and trained on in all, over all processes: whole rollouts."
    )
    rollout_batch_size: PositiveInt = Field(64, description="Answers per rollout, over all processes.")
    samples_per_prompt: PositiveInt = Field(
        1, description="Answers to each of a rollout's prompts, of which it has so many fewer."
    )
    generation_batch_size: PositiveInt = Field(64, description="Answers sampled together on one process.")
    epochs: PositiveInt = Field(2, description="Passes over each rollout.")
    minibatches: PositiveInt = Field(1, description="Optimiser steps per pass.")
    max_new_tokens: PositiveInt = Field(128, description="Longest answer.")
    temperature: PositiveFloat = Field(
        1.0, description="Sampling temperature; log-probabilities are those of the tempered policy throughout."
    )
    rollout_engine: Literal["auto", "streams", "generate", "paged", "vllm_server", "vllm_colocate"] = Field(
        "auto",
        description="What samples. streams: prompts read once and unpadded, ended answers dropped. generate, paged: "
        "transformers' generate, or its continuous batching. vllm_...: vLLM through TRL. auto: streams where they are "
        "exact for this model, else generate, and says why.",
    )
    vllm: VllmSettings = Field(default_factory=VllmSettings, description="For the vLLM engines.")
    kl_coef: Annotated[float, Field(ge=0.0)] = Field(
        0.05, description="Price of a nat of divergence from the reference, in units of the score."
    )
    kl_target: PositiveFloat | None = Field(
        None, description="Adapt kl_coef towards this divergence, in nats per answer (default: fixed)."
    )
    kl_horizon: PositiveInt = Field(10_000, description="Episodes over which the adaptive kl_coef moves.")
    kl_max: PositiveFloat | None = Field(
        None, description="Budget in nats per answer: training stops above it and keeps the best policy within it."
    )
    advantage_estimator: Literal["gae", "rloo"] = Field(
        "gae",
        description="What an answer is compared with. gae: what a value model predicts (generalised advantage "
        "estimation). rloo: the mean of its prompt's other answers (leave-one-out), without a value model.",
    )
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = Field(1.0, description="Discount; 1 optimises the score itself.")
    gae_lambda: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.95, description="Bias against variance in GAE.")
    whiten_advantages: bool = Field(True, description="Mean 0 and deviation 1 over the rollout's tokens on all ranks.")
    clip_range: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.2, description="The probability ratio is clipped at 1 -+ this."
    )
    clip_range_high: PositiveFloat | None = Field(None, description="Another bound above 1 (default: clip_range).")
    dual_clip: Annotated[float, Field(gt=1.0)] | None = Field(
        None, description="Bound the loss of tokens with a negative advantage at this ratio (such as 3)."
    )
    value_clip: PositiveFloat | None = Field(
        None, description="Clip the value's change per rollout to this, in units of the score."
    )
    loss_aggregation: Literal["token_mean", "sequence_mean", "sequence_sum", "constant"] = Field(
        "token_mean", description="How tokens' losses become one: the mean over the step's tokens, over sequences, ..."
    )
    entropy_coef: Annotated[float, Field(ge=0.0)] = Field(0.0, description="Weight of the entropy bonus.")
    stop_kl: PositiveFloat | None = Field(
        None, description="End a rollout's passes once the mean divergence from its sampler exceeds this, per token."
    )
    value_init: Literal["auto", "reward", "zero"] = Field(
        "auto",
        description="The value model starts from the reward model, or from the policy with a head of zeros; auto: "
        "from the reward model where there is one of a reward stage.",
    )
    value_warmup: Annotated[int, Field(ge=0)] = Field(0, description="First rollouts that train the value model alone.")
    value_trunk: Literal["own", "policy"] = Field(
        "own",
        description="What the value model's head stands on: layers of its own, or the policy's, "
        "where one pass serves both and the value's loss trains them too.",
    )
    value_coef: PositiveFloat = Field(
        0.1,
        description="Weight of the value's loss beside the policy's, in the layers they share (value_trunk: policy).",
    )
    missing_eos_penalty: Annotated[float, Field(ge=0.0)] = Field(
        1.0, description="Taken from the score of an answer that did not end by itself."
    )
    overlong_buffer: Annotated[int, Field(ge=0)] = Field(
        0, description="Over so many last tokens before max_new_tokens the overlong penalty grows from 0 to whole."
    )
    overlong_penalty: PositiveFloat = Field(1.0, description="The whole overlong penalty (with overlong_buffer).")
    score_clip: PositiveFloat | None = Field(None, description="Scores are clipped to +- this before the penalties.")
    ptx_coef: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Weight of the demonstrations' likelihood mixed into every step (PPO-ptx); needs data.sft."
    )
    eval_every: PositiveInt = Field(10, description="Rollouts between two measurements on held-out prompts.")
    eval_prompts: PositiveInt = Field(64, description="Held-out prompts of these measurements.")
    select: Literal["best", "last", "heldout"] = Field(
        "best",
        description="Which policy is handed on: the best on held-out prompts, the one it started from included, by "
        "score less kl_coef times divergence; the last; or the best by the score of `watch`, less the same.",
    )
    watch: StageName | None = Field(
        None,
        description="Earlier reward stage, none of the rewards, that scores the held-out answers too: shows when the "
        "reward is over-optimised.",
    )
    stop_at_turn: bool = Field(
        False, description="End training once the score of `watch` has turned while the training reward still rises."
    )

    @property
    def has_value_model(self) -> bool:
        """Whether a value model is the baseline, which is then trained beside the policy."""
        return self.advantage_estimator == WITH_VALUE_MODEL


AnyStage = Annotated[SftSettings | RewardSettings | PpoSettings | DpoSettings, Field(discriminator="kind")]
STAGE_KINDS: dict[str, type[StageSettings]] = {
    "sft": SftSettings, "reward": RewardSettings, "ppo": PpoSettings, "dpo": DpoSettings
}  # fmt: skip
