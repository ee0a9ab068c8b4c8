"""What a recipe may say: every key, its type, its default and what it does.

The field descriptions are the reference documentation (`trivet schema` prints them for editors). A default is the
vetted setting; a recipe states only differences. Pure pydantic: relations between fields are checked in `checks`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.cleaning_settings import CleanSettings, DecontaminateSettings, PairCleanSettings
from pipeline.recipe.settings import Fraction, PositiveFloat, PositiveInt, Settings, StageName
from pipeline.recipe.stage_settings import AnyStage

DataFormat = Literal[
    "auto", "alpaca", "self_instruct", "messages", "sharegpt", "glaive", "prompt_completion", "text", "questions",
    "preference", "hh", "kto", "ranked", "votes", "ultrafeedback", "tldr", "alpaca_eval",
]  # fmt: skip
LAYERS = r"^(all|top-[1-9][0-9]{0,3})$"
EvaluationTask = Literal["perplexity", "preference", "kl", "rules", "score", "overlap"]


class AdapterSettings(Settings):
    """The trainable low-rank adapter that is carried from stage to stage."""

    type: Literal["lora", "dora"] = Field("lora", description="Kind of adapter.")
    r: PositiveInt = Field(16, description="Rank.")
    alpha: PositiveFloat = Field(32.0, description="Scale: the update is multiplied by alpha / r.")
    dropout: Fraction = Field(0.0, description="Dropout on the adapter's input during SFT (DPO trains without).")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Which linear layers get an adapter: all but the output head, or names."
    )
    layers: Annotated[str, Field(pattern=LAYERS)] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        "all",
        description="Which decoder layers get one: all, top-N (the N nearest the output), or indices from 0. What lies "
        "below the lowest of them is computed once for policy, reference, value and reward model.",
    )
    trunk_cache_gib: Annotated[float, Field(ge=0.0)] = Field(
        1.0,
        description="Memory per process for what the layers below the adapter give, kept from pass to pass over the "
        "same rows; 0 computes it anew in each.",
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
        "none", description="Quantise the frozen base with bitsandbytes (needs an adapter; slower on a CPU)."
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto",
        description="Attention implementation. auto: sdpa without padding and with common beginnings computed once, "
        "where that is exact for the model, else what transformers chooses. A name: that one, on padded rows.",
    )
    adapter: AdapterSettings | Literal["none"] = Field(
        default_factory=AdapterSettings, description="The adapter, or `none` for full fine-tuning."
    )


class SourceSettings(Settings):
    """One file, folder or hub data set."""

    path: str = Field(description="File, folder, hub id (`owner/name`) or `builtin:` name.")
    format: DataFormat = Field(
        "auto", description="How its rows are written; auto recognises it by the first row and reports by what."
    )
    map: dict[str, str] = Field(
        default_factory=dict,
        description="Fields of other names: {prompt: question, chosen: answers.best}; dots reach into objects.",
    )
    on_bad_row: Literal["fail", "quarantine"] = Field(
        "fail",
        description="fail: stop at a row that cannot be read, and where rows are of another format. quarantine: set "
        "every faulty row aside in quarantine.jsonl and go on; more bad rows than good ones stop it all the same.",
    )
    revision: str | None = Field(None, description="Commit or tag of a hub data set.")
    split: str = Field("train", description="Split of a hub data set.")
    limit: PositiveInt | None = Field(None, description="At most so many training rows, drawn with the recipe's seed.")
    count: PositiveInt | None = Field(
        None, description="Exactly so many training rows, drawn with the recipe's seed; too few are an error."
    )
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
    shuffle: bool = Field(
        False,
        description="List training rows in an order drawn with the seed, not source by source; trainers draw their "
        "batches at random in any case.",
    )
    clean: CleanSettings = Field(default_factory=CleanSettings, description="Rules that training rows must pass.")


class PreferenceSetSettings(DataSetSettings):
    """Training and held-out preference pairs."""

    clean: PairCleanSettings = Field(
        default_factory=PairCleanSettings, description="Rules that training pairs must pass."
    )


class PromptSettings(Settings):
    """Prompts that policies answer: PPO its training part, evaluation the held-out part."""

    from_: Literal["sft", "preference"] | None = Field(
        None, alias="from", description="Take the prompts of this data set (default: preference, else sft)."
    )
    max_prompt_length: PositiveInt = Field(512, description="Longer prompts lose their beginning.")


class DataSettings(Settings):
    """All data of the run."""

    sft: DataSetSettings | None = Field(None, description="Demonstrations for supervised fine-tuning.")
    preference: PreferenceSetSettings | None = Field(None, description="Pairs of a chosen and a rejected answer.")
    prompts: PromptSettings = Field(default_factory=PromptSettings, description="Prompts to answer.")
    decontaminate: DecontaminateSettings | None = Field(
        None, description="Keep evaluation sets out of the training rows; off unless written."
    )
    chat_template: str = Field(
        "auto",
        description="auto: the tokenizer's own, else `plain`. Or `plain`, `alpaca`, `chatml`, or a .jinja file.",
    )
    split: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="Divides training prompts among stages: {sft: 0.2, reward: 0.4, ppo: 0.4}, by stage name or kind. "
        "No prompt is in two parts; a stage that is not named takes all.",
    )


class JudgeSettings(Settings):
    """A language model that compares every policy's answers with the reference's, in both orders.

    Its key is never written here: it is read from the environment variable TRIVET_JUDGE_KEY.
    """

    url: str = Field(
        pattern=r"^https?://",
        description="OpenAI-compatible endpoint without its `/chat/completions`, such as http://127.0.0.1:8000/v1.",
    )
    model: str = Field(min_length=1, description="The model, as the endpoint calls it.")
    prompts: PositiveInt = Field(100, description="Judge the answers to so many of evaluation.prompts, in both orders.")
    timeout: PositiveFloat = Field(60.0, description="Seconds to wait for a reply.")
    attempts: PositiveInt = Field(6, description="So often a question is put before giving up, with growing pauses.")
    parallel: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Questions put at the same time.")
    questions: str | None = Field(
        None,
        description="File of questions of one or two turns in MT-bench's form, to which every policy's answers are "
        "graded from 1 to 10. Off unless written.",
    )
    question_tokens: PositiveInt = Field(512, description="Longest answer to one of these questions.")


class EvaluationSettings(Settings):
    """What is measured at the end, on held-out rows, for the base model and every stage's policy."""

    tasks: tuple[EvaluationTask, ...] = Field(
        ("perplexity", "preference", "kl", "rules", "score"),
        description="What to measure; an empty list skips evaluation. score: by the recipe's last reward model. "
        "overlap: BLEU, chrF and ROUGE-L where the data has good answers; needs the extra `eval`.",
    )
    policies: tuple[StageName, ...] = Field(
        (),
        description="Measure these alone, `base` or stages, beside the reference, which all are measured against. "
        "Unsaid: every policy of the run.",
    )
    prompts: PositiveInt = Field(150, description="Held-out prompts answered greedily and scored by rule.")
    kl_prompts: PositiveInt = Field(48, description="Held-out prompts answered by sampling, for the KL estimate.")
    max_new_tokens: PositiveInt = Field(64, description="Longest answer.")
    batch_size: PositiveInt = Field(16, description="Prompts per generated batch and rows per scored batch.")
    best_of_n: tuple[Annotated[int, Field(ge=2, le=256)], ...] = Field(
        (),
        description="Score the best of so many answers of the reference too, such as [2, 4, 8]. Off unless written.",
    )
    judge: JudgeSettings | None = Field(None, description="A language model as judge; off unless written.")
    heldout_reward: StageName | None = Field(
        None,
        description="Reward stage that no policy was trained against, whose score stands beside the reward model's "
        "(default: what a PPO or DPO stage watches, if one does).",
    )


class WandbSettings(Settings):
    """Weights & Biases. Offline mode (WANDB_MODE=offline) is honoured; its failure never stops a run."""

    project: str = Field("trivet", description="Project name.")
    entity: str | None = Field(None, description="Team or user; default: the logged-in user's.")
    log_weights: bool = Field(False, description="Send adapters and models too, not only their manifests.")


class TrackingSettings(Settings):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: WandbSettings | None = Field(None, description="Off unless written.")


class Recipe(Settings):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", description="Name of the run.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(17, description="Seeds everything that is random.")
    output_dir: str | None = Field(None, description="Run directory (default: runs/<name>).")
    rank_timeout: PositiveInt | None = Field(
        None,
        description="Seconds that a rank waits for another before it takes it for hung, and the run ends; longer than "
        "any rank works alone, such as your reward function on the first. Default: torch's, 600 on GPUs, 1800 on CPUs.",
    )
    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings
    stages: dict[StageName, AnyStage] = Field(min_length=1, description="Stages in the order they run.")
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
