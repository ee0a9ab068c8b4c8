"""A sealed artefact's `manifest.json` as frozen records: what it was made from, by what, on which data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.report.data_section import DataFigures, figures_of
from evaluation.report.files import mapping, number, objects, text, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """An artefact that went into this one, and as what."""

    role: str
    stage: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """One source of a data set: rows read = rows kept + rows dropped by reason + rows set aside by reason."""

    path: str
    format: str
    rows_read: int | None
    dropped: Mapping[str, int]
    quarantined: Mapping[str, int]
    kept: int | None
    train: int | None
    """Records that it gives to train on, of what is left once cleaned, divided and drawn."""
    held_out: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One named data set as the stage used it, after the sources were joined."""

    name: str
    sources: tuple[DataSource, ...]
    train_rows: int | None
    eval_rows: int | None
    dropped: Mapping[str, int]
    tokens: tuple[tuple[str, float], ...]
    """Statistic of the length of a row (`mean`, `p95`, `max`), in tokens."""
    prompts_truncated: int | None
    figures: DataFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What the report shows of a manifest; unlike the strict record of the artefact it bears gaps."""

    kind: str
    key: str
    settings: Mapping[str, Any]
    """As resolved, together with all else that its key was made of."""
    created: str
    parents: tuple[Parent, ...]
    base: str
    tokenizer: str
    """Hash of what turns text into tokens and back; the chat template is not part of it."""
    seed: int | None
    world_size: int | None
    precision: str
    device: str
    commit: str
    dirty: bool
    libraries: Mapping[str, Any]
    metrics: Mapping[str, Any]
    data: tuple[DataSet, ...]
    process_gib: float | None
    """The most memory that any rank's process took."""
    gpu_gib: float | None


def provenance_from(raw: Mapping[str, Any]) -> Provenance:
    """The records of one manifest; whatever it lacks stays empty."""
    code, memory = mapping(raw.get("code")), mapping(raw.get("memory"))
    return Provenance(
        kind=text(raw.get("stage_kind") or raw.get("kind")),
        key=text(raw.get("key")),
        settings=mapping(raw.get("settings")),
        created=text(raw.get("created")),
        parents=tuple(
            Parent(role=text(row.get("role")), stage=text(row.get("stage")), key=text(row.get("key")))
            for row in objects(raw.get("parents"))
        ),
        base=_base(mapping(raw.get("base"))),
        tokenizer=text(mapping(raw.get("tokenizer")).get("sha256")),
        seed=whole(raw.get("seed")),
        world_size=whole(raw.get("world_size")),
        precision=text(raw.get("precision")),
        device=text(raw.get("device")),
        commit=text(code.get("commit")),
        dirty=code.get("dirty") is True,
        libraries=mapping(raw.get("libraries")),
        metrics=mapping(raw.get("metrics")),
        data=tuple(data_set_from(name, mapping(row)) for name, row in mapping(raw.get("data")).items()),
        process_gib=number(memory.get("process_gib")),
        gpu_gib=number(memory.get("gpu_gib")),
    )


def _base(raw: Mapping[str, Any]) -> str:
    """One line that tells two base models apart: name, revision, start of the fingerprint."""
    name, revision, fingerprint = (text(raw.get(key)) for key in ("name", "revision", "fingerprint"))
    parts = [name, f"revision {revision}" if revision else "", f"fingerprint {fingerprint[:12]}" if fingerprint else ""]
    return ", ".join(part for part in parts if part)


def data_set_from(name: str, raw: Mapping[str, Any]) -> DataSet:
    """A stage's data report as a record; whatever it lacks stays empty."""
    tokens = mapping(raw.get("tokens"))
    return DataSet(
        name=name,
        sources=tuple(_source(row) for row in objects(raw.get("sources"))),
        train_rows=whole(raw.get("train_rows")),
        eval_rows=whole(raw.get("eval_rows")),
        dropped=_counts(raw.get("dropped")),
        tokens=tuple((key, value) for key in tokens if (value := number(tokens[key])) is not None),
        prompts_truncated=whole(raw.get("prompts_truncated")),
        figures=figures_of(raw),
    )


def _source(raw: Mapping[str, Any]) -> DataSource:
    return DataSource(
        path=text(raw.get("path")),
        format=text(raw.get("format")),
        rows_read=whole(raw.get("rows_read")),
        dropped=_counts(raw.get("dropped")),
        quarantined=_counts(raw.get("quarantined")),
        kept=whole(raw.get("kept")),
        train=whole(raw.get("train")),
        held_out=whole(raw.get("held_out")),
    )


def _counts(raw: object) -> Mapping[str, int]:
    """Rows dropped per reason; reasons that dropped nothing are no news."""
    return {reason: count for reason, value in mapping(raw).items() if (count := whole(value))}
