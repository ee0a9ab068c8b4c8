"""Evaluation sets that training data is kept apart from: their names, where they come from, what of them counts.

None of them is bundled. A known set is used when it is on this machine, in the recipe's `decontaminate.folder` or in
the hub's cache; one that a recipe names and that is missing is an error which says how to get it.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.readers.containers import READERS, data_suffix, local_files, read_raw
from data_prep.readers.hub import resolve_commit
from pipeline.durable import sha256_file
from pipeline.errors import DataError, SourceUnreachableError
from pipeline.recipe.cleaning_settings import DecontaminateSettings

STANDARD = "standard"


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A published evaluation set."""

    hub: str
    """Its id on the hub."""
    split: str
    fields: tuple[str, ...]
    """What of a row is asked or answered; options of a multiple choice are too short to recognise anything by."""


KNOWN: dict[str, KnownSet] = {
    "gsm8k": KnownSet("openai/gsm8k", "test", ("question", "answer")),
    "math500": KnownSet("HuggingFaceH4/MATH-500", "test", ("problem", "solution")),
    "mmlu": KnownSet("cais/mmlu", "test", ("question",)),
    "cmmlu": KnownSet("haonan-li/cmmlu", "test", ("Question",)),
    "hellaswag": KnownSet("Rowan/hellaswag", "validation", ("ctx", "endings")),
    "truthfulqa": KnownSet("truthfulqa/truthful_qa", "validation", ("question", "Question", "best_answer")),
    "arc": KnownSet("allenai/ai2_arc", "test", ("question",)),
    "winogrande": KnownSet("allenai/winogrande", "validation", ("sentence",)),
    "human_eval": KnownSet("openai/openai_humaneval", "test", ("prompt", "canonical_solution")),
    "mbpp": KnownSet("google-research-datasets/mbpp", "test", ("text", "code")),
    "ifeval": KnownSet("google/IFEval", "train", ("prompt",)),
    "mt_bench": KnownSet("HuggingFaceH4/mt_bench_prompts", "train", ("prompt", "turns")),
    "alpaca_eval": KnownSet("tatsu-lab/alpaca_eval", "eval", ("instruction",)),
    "bbh": KnownSet("lukaemon/bbh", "test", ("input",)),
}
QUESTION_FIELDS = (
    "question", "prompt", "instruction", "problem", "query", "ctx", "context", "text", "input", "turns", "messages",
    "conversations", "sentence", "goal",
)  # fmt: skip
"""Where a file of another kind has its questions."""
_EVALUATION_FILES = ("test", "val", "eval", "dev")


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """A set that is here: its files (none for one on the hub), and the fields that count."""

    name: str
    files: tuple[Path, ...]
    fields: tuple[str, ...] | None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its content: what is dropped depends on it."""
        if not self.files:
            return hashlib.sha256(f"{self.name}@{resolve_commit(self.name, None)}".encode()).hexdigest()
        content = "\n".join(sha256_file(path) for path in self.files)
        return hashlib.sha256(content.encode()).hexdigest()

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text of some length with where it stands."""
        if not self.files:
            for raw in read_raw(self.name, split="test"):
                yield from ((f"{self.name} row {raw.row}", text) for text in _texts(raw.fields, self.fields))
        for path in self.files:
            suffix = data_suffix(path)
            assert suffix is not None
            rows = _table(path, self.fields or QUESTION_FIELDS) if suffix == ".csv" else READERS[suffix](path, None)
            for row, fields in rows:
                for text in _texts(fields, self.fields):
                    yield f"{self.name} {path.name} row {row}", text


def resolve(settings: DecontaminateSettings) -> tuple[list[EvaluationSet], list[str]]:
    """The sets that a recipe asks for and that are here, and the names of known ones that are not.

    Raises:
        DataError: a file or folder is missing, or a name is neither known nor a path.
        SourceUnreachableError: a known set was named and is not on this machine.
    """
    found: dict[str, EvaluationSet] = {}
    absent: list[str] = []
    for wanted in settings.against:
        for name in KNOWN if wanted == STANDARD else (wanted,):
            resolved = _known(name, settings) if name in KNOWN else _own(name)
            if resolved is not None:
                found[name] = resolved
            elif wanted == STANDARD:
                absent.append(name)
            else:
                raise SourceUnreachableError(
                    f"data.decontaminate.against: {name} is not on this machine; where there is a network, run "
                    f"`hf download {KNOWN[name].hub} --repo-type dataset` (with the same HF_HOME), or put its files "
                    f"into a folder named {name} and name the folder above it as data.decontaminate.folder"
                )
    return list(found.values()), sorted(set(absent) - found.keys())


def _known(name: str, settings: DecontaminateSettings) -> EvaluationSet | None:
    known = KNOWN[name]
    if settings.folder is not None:
        folder = Path(settings.folder).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.decontaminate.folder: {settings.folder} is no folder; name one that holds the sets")
        files = _evaluation_files(folder / name)
        if files:
            return EvaluationSet(name, files, known.fields)
    files = tuple(path for path in _cached(known) if known.split in path.name)
    return EvaluationSet(name, files, known.fields) if files else None


def _own(name: str) -> EvaluationSet:
    if name.startswith("hub:"):
        return EvaluationSet(name, (), None)
    if "/" not in name and "." not in name and not Path(name).exists():
        raise DataError(
            f"data.decontaminate.against: {name} is neither a file nor a known set; known are {STANDARD}, "
            f"{', '.join(KNOWN)}"
        )
    return EvaluationSet(name, tuple(local_files(name) or ()), None)


def _evaluation_files(folder: Path) -> tuple[Path, ...]:
    """Data files below a folder; where some are named after a test split, those alone."""
    if not folder.is_dir():
        return ()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and data_suffix(path))
    named = [path for path in files if any(word in str(path.relative_to(folder)).lower() for word in _EVALUATION_FILES)]
    return tuple(named or files)


def _cached(known: KnownSet) -> list[Path]:
    """Data files of a set in the hub's cache on this machine."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(known.hub, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return []
    return sorted(path for path in folder.rglob("*") if path.is_file() and data_suffix(path))


def _table(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file as sets are published: with nameless columns, or without a header, the question first."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        first = next(reader, [])
        named = first if set(first) & set(fields) else None
        if named is None and first:
            yield 1, {fields[0]: first[0]}
        for cells in reader:
            yield reader.line_num, dict(zip(named or fields[:1], cells, strict=False))


def _texts(fields: Mapping[str, Any], wanted: tuple[str, ...] | None) -> Iterator[str]:
    """The strings of the wanted fields, whatever they are nested in; of all fields where none is known."""
    names = wanted if wanted is not None else tuple(name for name in QUESTION_FIELDS if name in fields) or tuple(fields)
    for name in names:
        yield from _strings(fields.get(name))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
