"""Our side of a comparison: the stage's own trainer on given rows. Called by `compare`.

python -m benchmarks.side_ours STAGE BASE_FOLDER ROWS.jsonl OPTIONS_JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOConfig, RewardConfig, SFTConfig

from benchmarks.meter import Measured, StepClock, count_streaming_head, count_work
from benchmarks.rows import messages, read_rows
from data_prep.chat import ChatFormatter
from data_prep.records import Demonstration, Origin, PreferencePair
from pipeline.models import adapters
from pipeline.models.heads import new_head, with_head
from pipeline.models.load import load_base, load_classifier, load_tokenizer
from pipeline.models.stream_forward import take_streams
from pipeline.recipe.schema import AdapterSettings, ModelSettings
from pipeline.recipe.stage_settings import DpoSettings, OfflineSettings
from pipeline.stages.dpo_objective import Preference
from pipeline.stages.dpo_reference import add_reference, reference_call
from pipeline.stages.reward_objective import Comparison, MarginPair
from pipeline.stages.sft_objective import Imitation
from pipeline.stages.shared_trunk import share_trunk
from pipeline.stages.stream_trainer import StreamTrainer

CONFIGS = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}
ORIGIN = Origin(source="benchmark", row=1)


def main() -> None:
    """Train and print what was measured."""
    stage, base, rows_file, options_json = sys.argv[1:5]
    options = json.loads(options_json)
    formatter = ChatFormatter(load_tokenizer(Path(base), "auto"))
    rows = _encoded(stage, read_rows(Path(rows_file)), formatter, options["max_length"])
    precision = "bf16" if options["bf16"] else "fp32"
    settings = ModelSettings(base=base, adapter=AdapterSettings(r=16, alpha=32, layers=options["adapter_layers"]))
    model = _model(stage, Path(base), settings, precision)
    measured = Measured(rows_per_step=options["batch_size"] * options["accumulation"])
    objective = _objective(stage, model, precision)
    recipe = SimpleNamespace(model=settings, stages={})
    context: Any = SimpleNamespace(recipe=recipe, stage="", console=SimpleNamespace(say=_to_stderr))
    per_step = options["batch_size"] * options["accumulation"]
    stage_settings = OfflineSettings(learning_rate=1e-4, max_steps=options["steps"], global_batch_size=per_step)
    trunk = share_trunk(context, stage_settings, model, rows, objective)
    trainer = StreamTrainer(model=model, args=_arguments(stage, options), rows=rows, objective=objective, trunk=trunk)
    count_work(model, measured)
    count_streaming_head(measured)
    trainer.add_callback(StepClock(measured))
    trainer.train()
    measured.print()


def _encoded(stage: str, rows: list[dict[str, Any]], formatter: ChatFormatter, limit: int) -> list[Any]:
    if stage == "sft":
        records = [
            Demonstration(messages=messages([*row["prompt"], *row["completion"]]), origin=ORIGIN) for row in rows
        ]
        return [formatter.demonstration(record, limit) for record in records]
    pairs = [
        PreferencePair(
            prompt=messages(row["prompt"]), chosen=row["chosen"][0]["content"],
            rejected=row["rejected"][0]["content"], origin=ORIGIN,
        )
        for row in rows
    ]  # fmt: skip
    encoded = [formatter.pair(pair, limit) for pair in pairs]
    return [MarginPair(pair, 0.0) for pair in encoded] if stage == "reward" else encoded


def _model(stage: str, base: Path, settings: ModelSettings, precision: str) -> Any:
    adapter = settings.adapter
    assert adapter != "none"
    if stage == "reward":
        model: Any = load_classifier(base, settings, frozen=True, precision=precision)
        with_head(model, new_head(model.config.hidden_size, 0))
        torch.manual_seed(0)
        found = adapters.attach_for_scores(model, adapter, None)
    else:
        model = load_base(base, settings, frozen=True, precision=precision)
        torch.manual_seed(0)
        found = adapters.attach_new(model, adapter, dropout=False)
    if why := take_streams(found):
        raise SystemExit(f"no streams: {why}")
    return found


def _objective(stage: str, model: Any, precision: str) -> Any:
    if stage == "sft":
        return Imitation()
    if stage == "reward":
        return Comparison(use_margins=False, center_coefficient=0.0)
    add_reference(model)
    return Preference(DpoSettings(beta=0.1), reference_call(model, None, precision))


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _arguments(stage: str, options: dict[str, Any]) -> Any:
    return CONFIGS[stage](
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=options["batch_size"],
        gradient_accumulation_steps=options["accumulation"], max_steps=options["steps"], logging_steps=1,
        learning_rate=1e-4, save_strategy="no", report_to="none", disable_tqdm=True, bf16=options["bf16"],
        use_cpu=not torch.cuda.is_available(), max_length=None, seed=0, gradient_checkpointing=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
