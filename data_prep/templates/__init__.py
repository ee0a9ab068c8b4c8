"""Chat templates for models that bring none of their own, and the choice among them."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import RecipeError

NAMES = ("plain", "alpaca", "chatml")
_HERE = Path(__file__).parent


def template_text(choice: str, own: str | None, *, behind_bos: bool = False) -> str:
    """The Jinja text of a recipe's `data.chat_template`.

    Args:
        choice: `auto` (the tokenizer's own, else `plain`), one of `NAMES`, or a path to a .jinja file.
        own: the tokenizer's own template, if it has one.
        behind_bos: whether the model expects BOS in front; templates of `NAMES` then write it.

    Raises:
        RecipeError: neither a known name nor a file.
    """
    if choice == "auto":
        return own or template_text("plain", None, behind_bos=behind_bos)
    path = _HERE / f"{choice}.jinja" if choice in NAMES else Path(choice).expanduser()
    if not path.is_file():
        raise RecipeError(
            f"data.chat_template: {choice!r} is neither `auto`, one of {', '.join(f'`{n}`' for n in NAMES)}, "
            "nor a file that exists"
        )
    text = path.read_text(encoding="utf-8").rstrip("\n")
    return "{{- bos_token -}}\n" + text if behind_bos and choice in NAMES else text
