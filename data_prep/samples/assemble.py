"""From families to rows: draw distinct tasks, split them by what they are about, pair them, shuffle."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from data_prep.checks import passes
from data_prep.samples.balance import Candidate, Open, choose
from data_prep.samples.families import FAMILIES
from data_prep.samples.faults import with_common_faults
from data_prep.samples.tasks import Family, Task, Template

SEED = 20240611
_EVAL_SHARE = 0.17
"""Of the tasks whose template is not held out; the held-out templates come on top."""
_TRIES = 400


@dataclass(frozen=True, slots=True)
class Drawn:
    """A task with its place: family, template and split."""

    family: Family
    template: Template
    task: Task
    split: str


def normalised_prompt(turns: Iterable[str]) -> str:
    """A prompt up to letter case and spaces: what must not occur twice."""
    return " ".join(" ".join(turns).casefold().split())


def _split(family: Family, template: Template, task: Task) -> str:
    digest = hashlib.sha256(f"{family.name}/{task.key}".encode()).digest()
    drawn = int.from_bytes(digest[:4], "big") / 2**32
    return "eval" if template.held_out or drawn < _EVAL_SHARE else "train"


def draw_all() -> tuple[list[Drawn], list[Drawn]]:
    """The tasks of the demonstrations and those of the pairs: other prompts, the same kinds and the same splits."""
    files: tuple[list[Drawn], list[Drawn]] = ([], [])
    seen: set[str] = set()
    for family in FAMILIES:
        for place, template in enumerate(family.templates):
            rng = Random(f"{SEED}/{template.id}")
            turn = {"train": place % 2, "eval": (place + 1) % 2}
            for task in _distinct(template, rng, seen):
                split = _split(family, template, task)
                files[turn[split] % 2].append(Drawn(family, template, task, split))
                turn[split] += 1
    return files


def _distinct(template: Template, rng: Random, seen: set[str]) -> Iterable[Task]:
    found = 0
    for _ in range(_TRIES * template.rows):
        task = template.draw(rng)
        prompt = normalised_prompt([*(text for turn in task.history for text in turn), task.text])
        if prompt in seen:
            continue
        if not passes(task.check, task.answer):
            raise ValueError(
                f"{template.id}: the answer fails its check: {task.text!r} -> {task.answer!r} {task.check}"
            )
        seen.add(prompt)
        found += 1
        yield task
        if found == 2 * template.rows:
            return
    raise ValueError(f"{template.id}: only {found} distinct prompts, {2 * template.rows} wanted")


def demonstrations(drawn: list[Drawn]) -> list[dict[str, Any]]:
    """Alpaca rows."""
    rows = []
    for item in drawn:
        row: dict[str, Any] = {"instruction": item.task.prompt, "input": item.task.context, "output": item.task.answer}
        if item.task.history:
            row["history"] = [list(turn) for turn in item.task.history]
        rows.append(row | _labels(item))
    return _mixed(rows, Random(f"{SEED}/demonstrations"))


def preferences(drawn: list[Drawn]) -> list[dict[str, Any]]:
    """Pairs, balanced within each split."""
    rows = []
    for split in ("train", "eval"):
        part = [item for item in drawn if item.split == split]
        rng = Random(f"{SEED}/preferences/{split}")
        unpaired = [Open(item.family.name, item.task.answer, _candidates(item, part, rng)) for item in part]
        rows += [_pair(item, rejected) for item, rejected in zip(part, choose(unpaired, rng), strict=True)]
    return _mixed(rows, Random(f"{SEED}/preferences"))


def _candidates(item: Drawn, others: list[Drawn], rng: Random) -> list[Candidate]:
    strangers = [other.task.answer for other in rng.sample(others, 16) if other.family is not item.family]
    faults = with_common_faults(item.task, item.template, item.family, strangers, rng)
    return [Candidate(fault, text) for fault, texts in faults.items() for text in dict.fromkeys(texts)]


def _pair(item: Drawn, rejected: Candidate) -> dict[str, Any]:
    turns = [(role, text) for turn in item.task.history for role, text in zip(("user", "assistant"), turn, strict=True)]
    labels = _labels(item)
    return {
        "prompt": [{"role": role, "content": text} for role, text in [*turns, ("user", item.task.text)]],
        "chosen": [{"role": "assistant", "content": item.task.answer}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "family": labels.pop("family"),
        "language": labels.pop("language"),
        "fault": rejected.fault,
        **labels,
    }


def _labels(item: Drawn) -> dict[str, Any]:
    return {
        "family": item.family.name,
        "language": item.template.language,
        "split": item.split,
        "template": item.template.id,
        "check": dict(item.task.check),
    }


def _mixed(rows: list[dict[str, Any]], rng: Random) -> list[dict[str, Any]]:
    """Shuffled so that any stretch of the file holds about the same mix of families."""
    place: dict[int, float] = {}
    by_family: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_family[row["family"]].append(index)
    for members in by_family.values():
        rng.shuffle(members)
        for rank, index in enumerate(members):
            place[index] = (rank + rng.random()) / len(members)
    return [rows[index] for index in sorted(place, key=place.__getitem__)]
