"""Pieces arranged for reading: runs of one turn, what each run is called, and an inspection as a whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from data_prep.chat import ChatFormatter, begins_with_bos
from data_prep.pieces import Piece
from data_prep.templates import template_text
from evaluation.inspection.sequences import ShownRow, ShownSequence, shown_rows
from evaluation.inspection.stage_rows import StageRows, formatter_of, stage_rows
from evaluation.inspection.told import ROLE_OF_ANSWERS, Finding, findings
from pipeline.errors import RecipeError
from pipeline.recipe.schema import Recipe

TEMPLATE = "template"
"""What stands for a role where the template writes before the first turn or after the last."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces of one turn in a row, all trained or none."""

    role: str
    trained: bool
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        """How many tokens they are."""
        return sum(len(piece.ids) for piece in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What there is to see of one stage's rows."""

    recipe: str
    base: str
    chat_template: str
    found: StageRows
    findings: tuple[Finding, ...]
    rows: tuple[ShownRow, ...]

    @property
    def total(self) -> int:
        """Rows that the stage trains on."""
        return len(self.found.rows)

    @property
    def answers_are(self) -> str:
        """What the answers' tokens are to this kind of stage."""
        return ROLE_OF_ANSWERS[self.found.kind]


def inspect(recipe: Recipe, stage: str, first: int, count: int) -> Inspection:
    """Look at rows of a stage.

    Args:
        recipe: validated.
        stage: one of its stages.
        first: number of the first row to show, from 1.
        count: at most so many rows.

    Raises:
        RecipeError: there is no row of that number.
        DataError, SourceUnreachableError: as the stage itself would end.
    """
    formatter = formatter_of(recipe)
    found = stage_rows(recipe, stage, formatter)
    if not 1 <= first <= len(found.rows):
        raise RecipeError(f"--row {first}: stage {stage} trains on {len(found.rows)} rows, numbered from 1")
    return Inspection(
        recipe=recipe.name,
        base=recipe.model.base,
        chat_template=_template(recipe, formatter),
        found=found,
        findings=tuple(findings(found, formatter)),
        rows=tuple(shown_rows(found, formatter, first, count)),
    )


def runs(sequence: ShownSequence) -> list[Run]:
    """The sequence's pieces in runs, in order."""
    grouped = groupby(sequence.pieces, key=lambda piece: (piece.turn, piece.role, piece.kind == "trained"))
    return [Run(role or TEMPLATE, trained, tuple(pieces)) for (_, role, trained), pieces in grouped]


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Everything of it as plain data; the ids of a sequence's pieces are its ids."""
    found = inspection.found
    return {
        "recipe": inspection.recipe,
        "stage": found.stage,
        "kind": found.kind,
        "data": found.data,
        "base": inspection.base,
        "chat_template": inspection.chat_template,
        "max_length": found.max_length,
        "train_rows": inspection.total,
        "rows_cut": [number for number, row in enumerate(found.rows, start=1) if row.prompt_cut],
        "findings": [finding.text for finding in inspection.findings],
        "report": found.report,
        "rows": [_row_json(row) for row in inspection.rows],
    }


def _row_json(row: ShownRow) -> dict[str, Any]:
    return {
        "row": row.number,
        "source": row.origin.source,
        "source_row": row.origin.row,
        **dict(row.notes),
        "tokens_cut": row.cut,
        "sequences": [
            {
                "name": sequence.name,
                "ids": list(sequence.ids),
                "response_mask": list(sequence.response_mask),
                "pieces": [asdict(piece) | {"ids": list(piece.ids)} for piece in sequence.pieces],
            }
            for sequence in row.sequences
        ],
    }


def _template(recipe: Recipe, formatter: ChatFormatter) -> str:
    """Which chat template it is, in words."""
    if recipe.data.chat_template != "auto":
        return recipe.data.chat_template
    plain = template_text("plain", None, behind_bos=begins_with_bos(formatter.tokenizer))
    is_plain = formatter.tokenizer.chat_template == plain
    return "plain, as the tokenizer has none" if is_plain else "the tokenizer's own"
