"""Which folders a run may write to: a recipe names its run directory, and may come from anywhere. Layer 5."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import RecipeError, TrivetError

_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr")
_SCRATCH = ("/dev/shm",)
_CODE = Path(__file__).resolve().parent.parent
_OURS = frozenset({"recipe.yaml", "run.json", "results.json", "report.html", "exit.json", "logs", "slurm"})
"""One of these is in every run directory, from its first moment on."""


def require_run_dir(folder: Path) -> None:
    """Refuse a run directory that would put files where they do not belong.

    Args:
        folder: as the recipe or the command line names it; may not exist yet.

    Raises:
        RecipeError: it belongs to the system, is a home folder, a hidden folder in one, or this program's own code, or
            holds other files and is no run directory.
    """
    real = folder.resolve()
    if why := _forbidden(real):
        named = str(folder) if real == folder.absolute() else f"{folder} (which is {real})"
        raise RecipeError(f"output_dir: {named} {why}; choose a folder of its own, such as runs/NAME")
    if real.is_dir() and (there := sorted(os.listdir(real))) and not is_run_dir(real):
        shown = ", ".join([*there[:3], *(["..."] if len(there) > 3 else [])])
        raise RecipeError(
            f"output_dir: {folder} holds other files ({shown}) and no run; choose a new or an empty folder"
        )


def is_run_dir(folder: Path) -> bool:
    """Whether a run has begun in a folder, or was submitted to it."""
    return folder.is_dir() and not _OURS.isdisjoint(os.listdir(folder))


def require_own_folder(folder: Path) -> None:
    """Refuse an artefact's folder that is a link: what it leads to would be cleared and written to.

    Raises:
        TrivetError: naming it and where it leads.
    """
    if folder.is_symlink():
        raise TrivetError(
            f"{folder} is a link to {os.readlink(folder)}, where an artefact's own folder should be; delete the link "
            "and run the same command again"
        )


def _forbidden(real: Path) -> str:
    home = Path.home().resolve()
    if real == Path(real.anchor):
        return "is the root of the file system"
    if real == home or real in home.parents:
        return "is the home folder, or holds it"
    if real == _CODE or real in _CODE.parents or any(_within(real, _CODE / name) for name in _code_folders()):
        return "holds this program's code"
    if any(_within(real, Path(real.anchor) / name) for name in _SYSTEM) and not any(map(real.is_relative_to, _SCRATCH)):
        return "belongs to the system"
    if real.is_relative_to(home) and real.relative_to(home).parts[0].startswith("."):
        return "is a hidden folder at home, where programs keep their settings"
    return ""


def _within(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def _code_folders() -> list[str]:
    return [path.parent.name for path in _CODE.glob("*/__init__.py")] + [".git"]
