"""The script of a job: `job.sbatch.jinja` filled in, with every string of a user's quoted for whoever reads it.

The shell reads what went through `sh`; Slurm itself reads the `#SBATCH` lines, by rules of its own.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError
from pipeline.redaction import holds_secret
from pipeline.slurm.site_file import Site

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/+=:,@-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One script for sbatch."""

    name: str
    """As squeue shows it."""
    about: str
    """A sentence on what it does."""
    folder: Path
    """The run directory, absolute; of an array's element number i it is this with `-i` behind it."""
    start_folder: Path
    """Where relative paths of the recipe begin."""
    program: tuple[str, ...]
    options: tuple[tuple[str, ...], ...] = ()
    """Further options of `trivet run`, each with its value."""
    label: str = "all"
    """Names the script and the log."""
    elements: int = 0
    """Size of the array; 0 for a single job."""

    @property
    def script(self) -> Path:
        """Where the script lies; an array's beside the run directories of its elements."""
        folder = Path(f"{self.folder}-array") if self.elements else self.folder
        return folder / "slurm" / f"{self.label}.sbatch"

    @property
    def log(self) -> str:
        """Where the log goes, up to the pattern that Slurm fills in."""
        return str(self.folder) if self.elements else f"{self.folder}/logs/slurm-{self.label}"

    @property
    def log_pattern(self) -> str:
        """The rest of the log's path: job and element number."""
        return f"-%a/logs/slurm-{self.label}-%A_%a.log" if self.elements else "-%j.log"


def render(job: Job, site: Site) -> str:
    """The script.

    Raises:
        RecipeError: a path or an option holds a line break or another control character, or the script a secret.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline.slurm", "."), undefined=StrictUndefined, keep_trailing_newline=True
    )  # nosec: the output is a shell script, where HTML's escapes would be wrong
    environment.filters["sh"] = shell_word
    environment.filters["directive"] = directive_value
    values: dict[str, Any] = {"job": job, "site": site}
    text = environment.get_template("job.sbatch.jinja").render(values)
    if holds_secret(text):
        raise RecipeError(
            "the job script would hold a password or token: it is read by others and kept; export it where you type "
            "`trivet submit`, which Slurm hands on to its jobs, and take it out of the site file and the command line"
        )
    return text


def shell_word(text: object) -> str:
    """One word for bash, whatever is in it.

    Raises:
        RecipeError: it holds a control character: a script with one cannot be read.
    """
    return shlex.quote(_one_line(str(text)))


def directive_value(text: object, pattern: str = "") -> str:
    """One value for an `#SBATCH` line: quoted where needed, and none of its own signs taken for Slurm's patterns.

    Args:
        text: the value.
        pattern: what Slurm is to fill in, behind it.

    Raises:
        RecipeError: it holds a control character, or a backslash, which Slurm reads as a sign of its own.
    """
    value = _one_line(str(text))
    if "\\" in value:
        raise RecipeError(f"{value}: Slurm cannot write to a path with a backslash; choose another --output-dir")
    value = value.replace("%", "%%") + pattern
    if set(value) <= _BARE | {"%"}:
        return value
    return '"' + value.replace('"', '\\"') + '"'


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise RecipeError(f"{text!r}: a job script takes no line break or control character; choose another name")
    return text
