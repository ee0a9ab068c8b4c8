"""Rows that both sides of a comparison train on, in TRL's conversational form, read as a recipe would read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_prep.clean import limit_records
from data_prep.readers import SourceSpec, read_demonstrations, read_pairs
from data_prep.records import Message
from pipeline.durable import json_lines

SAMPLES = {"sft": "builtin:alpaca_sample", "ppo": "builtin:preference_sample"}
"""What is read where no file is given; the other stages read the pairs too."""


def write_rows(stage: str, path: str | None, count: int, target: Path) -> None:
    """Write so many rows of a file, or of the bundled sample, drawn by content alone."""
    source = SourceSpec(path=path or SAMPLES.get(stage, SAMPLES["ppo"]))
    if stage == "sft":
        rows = [
            {"prompt": _turns(record.messages[:-1]), "completion": _turns(record.messages[-1:])}
            for record in limit_records(read_demonstrations(source).records, count, seed=0)
        ]
    else:
        rows = [
            {
                "prompt": _turns(record.prompt),
                "chosen": [{"role": "assistant", "content": record.chosen}],
                "rejected": [{"role": "assistant", "content": record.rejected}],
            }
            for record in limit_records(read_pairs(source).records, count, seed=0)
        ]
    if len(rows) < count:
        raise SystemExit(f"{path or 'the sample'} has {len(rows)} usable rows, asked for {count}; lower --steps")
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_prompts(path: str | None, base: Path, count: int, longest: int, target: Path, samples: int = 1) -> None:
    """Write the token ids of each of `count` answers' prompts, `samples` answers to a prompt next to one another.

    They come again where there are too few; long ones lose their beginning.
    """
    from data_prep.chat import ChatFormatter
    from pipeline.models.load import load_tokenizer

    formatter = ChatFormatter(load_tokenizer(base, "auto"))
    records = limit_records(read_pairs(SourceSpec(path=path or SAMPLES["ppo"])).records, count, seed=0)
    ids = [formatter.pair(record, 10**6).prompt_ids[-longest:] for record in records]
    target.write_text(json.dumps([ids[index // samples % len(ids)] for index in range(count)]), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote."""
    return [json.loads(line) for line in json_lines(path)]


def messages(turns: list[dict[str, str]]) -> tuple[Message, ...]:
    """Turns as records hold them."""
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)  # type: ignore[arg-type]


def _turns(found: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in found]
