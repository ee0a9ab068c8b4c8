"""Every key of a recipe is read by something: changing it changes what a run would do.

A key that nothing reads is the worst kind of bug here: a user believes it. For each key of the schema the table below
holds a change, and the test asserts that the change shows in what the pipeline would hand to the libraries and to the
file system: trainer arguments, adapter and model options, encoded rows, prompts and sampling of the evaluation, W&B's
options, the run directory. A new key without a line here fails.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.recipe import loads_recipe
from pipeline.recipe.vocabulary import is_block, members, schema_keys

RECIPE = """
name: every
model: {base: "builtin:tiny-llama", adapter: {r: 4}}
data:
  sft: {sources: [{path: builtin:alpaca_sample, limit: 12}, {path: builtin:alpaca_sample, limit: 6}], eval_limit: 6}
  preference: {sources: [{path: builtin:preference_sample, limit: 8}], eval_limit: 6}
stages:
  sft: {max_steps: 2}
  dpo: {max_steps: 2}
  more: {kind: sft, max_steps: 2}
  rpo: {kind: dpo, loss_type: rpo}
"""

PLAIN_ROWS = Path(__file__).parent / "data" / "plain_pairs.jsonl"
"""Pairs whose rows do not name their split, so that the hash of the prompt decides."""

CHANGES: dict[str, str | list[str]] = {
    "name": "name=other",
    "seed": "seed=18",
    "output_dir": "output_dir=elsewhere",
    "model.base": "model.base=builtin:smollm2-135m-instruct",
    "model.revision": ["model.base=owner/name", "model.revision=abc"],
    "model.dtype": "model.dtype=bfloat16",
    "model.quantization": "model.quantization=nf4",
    "model.attention": "model.attention=eager",
    "model.adapter": "model.adapter=none",
    "model.adapter.type": "model.adapter.type=dora",
    "model.adapter.r": "model.adapter.r=8",
    "model.adapter.alpha": "model.adapter.alpha=7",
    "model.adapter.dropout": "model.adapter.dropout=0.1",
    "model.adapter.target_modules": "model.adapter.target_modules=[q_proj]",
    "data.chat_template": "data.chat_template=alpaca",
    "data.prompts.from": "data.prompts.from=sft",
    "data.prompts.max_prompt_length": "data.prompts.max_prompt_length=20",
    "data.sft": "data.sft.eval_limit=7",
    "data.preference": "data.preference.eval_limit=7",
    "evaluation.tasks": "evaluation.tasks=[kl]",
    "evaluation.prompts": "evaluation.prompts=3",
    "evaluation.kl_prompts": "evaluation.kl_prompts=2",
    "evaluation.max_new_tokens": "evaluation.max_new_tokens=5",
    "evaluation.batch_size": "evaluation.batch_size=2",
    "tracking.wandb": "tracking.wandb={}",
    "tracking.wandb.project": "tracking.wandb={project: other}",
    "tracking.wandb.entity": "tracking.wandb={entity: team}",
    "stages": "stages.last={kind: sft}",
    "stages.sft.init": "stages.more.init=sft",
    "stages.dpo.policy": "stages.dpo.policy=base",
    "stages.dpo.beta": "stages.dpo.beta=0.3",
    "stages.dpo.loss_type": "stages.dpo.loss_type=hinge",
    "stages.dpo.label_smoothing": "stages.dpo.label_smoothing=0.1",
    "stages.dpo.rpo_alpha": "stages.rpo.rpo_alpha=0.5",
}
for data_set, source in (("sft", "alpaca_sample"), ("preference", "preference_sample")):
    CHANGES |= {
        f"data.{data_set}.sources": f"data.{data_set}.sources=[{{path: builtin:{source}, limit: 4}}]",
        f"data.{data_set}.max_length": f"data.{data_set}.max_length=150",
        f"data.{data_set}.eval_fraction": [
            f"data.{data_set}.sources=[{{path: {PLAIN_ROWS}}}]",
            f"data.{data_set}.eval_fraction=0.6",
        ],
        f"data.{data_set}.eval_limit": f"data.{data_set}.eval_limit=3",
        f"data.{data_set}.sources[].path": f"data.{data_set}.sources.0.path=builtin:missing",
        f"data.{data_set}.sources[].format": f"data.{data_set}.sources.0.format=hh",
        f"data.{data_set}.sources[].revision": [f"data.{data_set}.sources=[{{path: 'hub:a/b', revision: v1}}]"],
        f"data.{data_set}.sources[].split": [f"data.{data_set}.sources=[{{path: 'hub:a/b', split: test}}]"],
        f"data.{data_set}.sources[].limit": f"data.{data_set}.sources.0.limit=5",
    }
CHANGES["data.sft.sources[].weight"] = ["data.sft.sources.0.weight=1", "data.sft.sources.1.weight=5"]
CHANGES["data.preference.sources[].weight"] = [
    "data.preference.sources=[{path: builtin:preference_sample, limit: 8, weight: 1}, "
    "{path: builtin:preference_sample, limit: 4, weight: 4}]"
]
for stage in ("sft", "dpo"):
    CHANGES |= {
        f"stages.{stage}.kind": f"stages.again={{kind: {stage}}}",
        f"stages.{stage}.learning_rate": f"stages.{stage}.learning_rate=1e-6",
        f"stages.{stage}.epochs": f"stages.{stage}.epochs=3",
        f"stages.{stage}.max_steps": f"stages.{stage}.max_steps=9",
        f"stages.{stage}.global_batch_size": f"stages.{stage}.global_batch_size=8",
        f"stages.{stage}.per_device_batch_size": f"stages.{stage}.per_device_batch_size=2",
        f"stages.{stage}.precision": [f"stages.{stage}.precision=fp32", f"stages.{stage}.precision=bf16"],
        f"stages.{stage}.schedule": f"stages.{stage}.schedule=linear",
        f"stages.{stage}.warmup_ratio": f"stages.{stage}.warmup_ratio=0.5",
        f"stages.{stage}.max_grad_norm": f"stages.{stage}.max_grad_norm=0.5",
        f"stages.{stage}.weight_decay": f"stages.{stage}.weight_decay=0.1",
        f"stages.{stage}.gradient_checkpointing": f"stages.{stage}.gradient_checkpointing=true",
        f"stages.{stage}.log_every": f"stages.{stage}.log_every=1",
        f"stages.{stage}.save_every": f"stages.{stage}.save_every=1",
        f"stages.{stage}.deepspeed": f"stages.{stage}.deepspeed=zero2",
        f"stages.{stage}.trainer_args": f"stages.{stage}.trainer_args={{adam_beta1: 0.5}}",
    }
LEAVES = [key for key in schema_keys() if not all(is_block(part) for part in members(key.field.annotation))]


def test_every_key_has_a_change() -> None:
    assert {key.path for key in LEAVES} - set(CHANGES) == set()
    assert set(CHANGES) - {key.path for key in schema_keys()} == set()


@pytest.fixture(scope="module")
def seen_by_default(tiny_folder: Path) -> dict[str, Any]:
    return _effects([], tiny_folder)


@pytest.mark.parametrize("path", sorted(CHANGES))
def test_a_changed_key_changes_the_run(path: str, tiny_folder: Path, seen_by_default: dict[str, Any]) -> None:
    change = [CHANGES[path]] if isinstance(CHANGES[path], str) else [*CHANGES[path]]
    if path.endswith("precision"):
        first, second = (_effects([one], tiny_folder) for one in change)
    elif path.endswith(("revision", "split", "eval_fraction")):
        first, second = _effects(_without(path, change), tiny_folder), _effects(change, tiny_folder)
    else:
        first, second = seen_by_default, _effects(change, tiny_folder)
    assert first != second


def _without(path: str, change: list[str]) -> list[str]:
    """The same change without the key itself: what it has to differ from."""
    plain = [one.replace(", revision: v1", "").replace(", split: test", "") for one in change]
    return [one for one in plain if not one.startswith(f"{path}=")]


def test_an_equal_recipe_has_equal_effects(tiny_folder: Path, seen_by_default: dict[str, Any]) -> None:
    assert _effects([], tiny_folder) == seen_by_default


def _effects(overrides: list[str], tiny_folder: Path) -> dict[str, Any]:
    """What a run of the recipe would ask of libraries, data and file system, as comparable data."""
    loaded = loads_recipe(RECIPE, overrides=overrides)
    recipe = loaded.recipe
    parts = {
        "files": lambda: (str(loaded.output_dir), [*recipe.stages], recipe.name),
        "model": lambda: _model(recipe),
        "trainers": lambda: _trainers(recipe),
        "parents": lambda: _parents(recipe),
        "rows": lambda: _rows(recipe, tiny_folder),
        "evaluation": lambda: _evaluation(recipe, tiny_folder),
        "tracking": lambda: _tracking(recipe),
    }
    return {name: _outcome(part) for name, part in parts.items()}


def _outcome(part: Any) -> Any:
    """The value, or the sentence in which the pipeline refuses: both are effects."""
    from pipeline.errors import TrivetError

    try:
        return part()
    except TrivetError as error:
        return f"{type(error).__name__}: {error}"


def _model(recipe: Any) -> Any:
    """Which weights, loaded how, with which adapter."""
    from unittest import mock

    import peft
    import transformers

    from pipeline.models import adapters, load, source

    with mock.patch.object(source, "_hub_commit", lambda base, revision: f"commit-{revision}"):
        identity = source.identify(recipe.model.base, recipe.model.revision)
    model = mock.MagicMock()
    with (
        mock.patch.object(transformers.AutoModelForCausalLM, "from_pretrained", return_value=model) as loading,
        mock.patch.object(peft, "get_peft_model", lambda base, config: config),
    ):
        options = _outcome(lambda: load.load_base(Path("x"), recipe.model, frozen=True, precision="fp32") and None)
        model.is_quantized = False
        config = None
        if recipe.model.adapter != "none":
            config = str(
                sorted(adapters.attach_new(model, recipe.model.adapter, dropout=True).to_dict().items(), key=str)
            )
    return identity, options, str(loading.call_args), config


def _context(recipe: Any, stage: str, folder: Path = Path("folder")) -> Any:
    from pipeline.runtime import Ranks

    return SimpleNamespace(
        recipe=recipe, stage=stage, checkpoints=folder / "checkpoints", ranks=Ranks(0, 0, 1), parents={}
    )


def _trainers(recipe: Any) -> Any:
    from trl import DPOConfig, SFTConfig

    from pipeline.recipe import DpoSettings, ds_config_file
    from pipeline.stages.dpo_loss import loss_arguments
    from pipeline.stages.offline import training_arguments

    found = {}
    for name, settings in recipe.stages.items():
        is_dpo = isinstance(settings, DpoSettings)
        fixed = {"beta": settings.beta, **loss_arguments(settings)} if is_dpo else {}
        without_engine = settings.model_copy(update={"deepspeed": "none"})
        arguments = training_arguments(
            DPOConfig if is_dpo else SFTConfig, without_engine, _context(recipe, name), **fixed
        )
        kept = {key: str(value) for key, value in arguments.to_dict().items() if key != "logging_dir"}
        found[name] = kept, str(ds_config_file(settings.deepspeed)), getattr(settings, "rpo_alpha", None)
    return found


def _parents(recipe: Any) -> Any:
    from unittest import mock

    from pipeline import plan
    from pipeline.models.source import BaseIdentity

    with mock.patch.object(plan, "source_fingerprint", lambda source: source.path):
        nodes = plan.make_nodes(recipe, BaseIdentity("b", None, "f"), Path("store"))
    return [(node.name, node.kind, node.parents) for node in nodes]


def _rows(recipe: Any, tiny_folder: Path) -> Any:
    from unittest import mock

    from data_prep import build
    from data_prep.chat import ChatFormatter
    from pipeline.models.load import load_tokenizer

    asked = []

    def remember(read: Any) -> Any:
        def reading(spec: Any) -> Any:
            asked.append(spec)
            return read(spec)

        return reading

    with (
        mock.patch.object(build, "read_demonstrations", remember(build.read_demonstrations)),
        mock.patch.object(build, "read_pairs", remember(build.read_pairs)),
    ):
        formatter = ChatFormatter(load_tokenizer(tiny_folder, recipe.data.chat_template))
        sft = _outcome(lambda: _ids(build.encode_demonstrations(recipe.data, formatter, recipe.seed)))
        pairs = _outcome(lambda: _ids(build.encode_pairs(recipe.data, formatter, recipe.seed)))
    return sft, pairs, asked


def _ids(encoded: Any) -> Any:
    train, held_out, report = encoded
    return [str(row) for row in train.rows], [str(row) for row in held_out.rows], report


def _evaluation(recipe: Any, tiny_folder: Path) -> Any:
    """What evaluation asks of generator and scorer, with stand-ins for both and for the policies."""
    from contextlib import contextmanager
    from unittest import mock

    from data_prep.chat import ChatFormatter
    from evaluation import run
    from evaluation.generate import Answer
    from evaluation.likelihood import Likelihood
    from pipeline.models.load import load_tokenizer

    calls: list[Any] = []

    class Stub:
        names = ("base", "dpo")

        def __init__(self, *args: Any):
            pass

        @contextmanager
        def use(self, name: str) -> Any:
            yield name

    def answers(self: Any, prompts: Any, sampling: Any, progress: Any = None) -> Any:
        calls.append(("answers", self.batch_size, list(map(list, prompts)), sampling))
        return [Answer([2], True) for _ in prompts]

    def score(self: Any, rows: Any, progress: Any = None) -> Any:
        calls.append(("score", self.batch_size, len(rows)))
        return [Likelihood(-1.0, 1) for _ in rows]

    context = _context(recipe, "evaluation")
    context.base_folder = tiny_folder
    context.console = SimpleNamespace(progress=print)
    context.stop = SimpleNamespace(agreed=lambda: False)
    formatter = ChatFormatter(load_tokenizer(tiny_folder, recipe.data.chat_template))
    with (
        mock.patch.object(run, "Policies", Stub),
        mock.patch.object(run, "once", lambda context, name, compute: compute()),
        mock.patch.object(run.Generator, "answers", answers),
        mock.patch.object(run.Scorer, "score", score),
    ):
        evaluation = run._Evaluation(context, formatter, 0, "fp32", {})
        rows = {name: evaluation.row(name) for name in Stub.names}
    return rows, calls


def _tracking(recipe: Any) -> Any:
    from pipeline.console import Console
    from pipeline.tracking import WandbMirror

    if recipe.tracking.wandb is None:
        return None
    return WandbMirror(recipe.tracking.wandb, Path("run"), recipe.name, "sft", "key", Console(None))._options
