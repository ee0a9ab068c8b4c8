"""A user's own reward: a function named on the command line as `file.py:function` or `module:function`.

It never comes from a recipe, which must not run code. It is called with the prompts (lists of messages) and the
answers' texts, and returns one finite number for each. The hash of its file is part of the stage's key. Layer 2.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.durable import sha256_file
from pipeline.errors import RecipeError, TrivetError

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """Which function, in which file, with which content."""

    spec: str
    """As the command line writes it."""
    file: str
    sha256: str

    @property
    def name(self) -> str:
        """The function's name."""
        return self.spec.rpartition(":")[2]


def find(spec: str) -> RewardFunction:
    """Find the file of a function without running it.

    Raises:
        RecipeError: not of the form `file.py:function`, or no such file or module.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise RecipeError(f"--reward {spec}: expected file.py:function or module:function")
    path = Path(place) if place.endswith(".py") else _module_file(place, spec)
    if not path.is_file():
        raise RecipeError(f"--reward {spec}: {path} does not exist")
    return RewardFunction(spec, str(path.absolute()), sha256_file(path))


def load(found: RewardFunction) -> Callable[[Sequence[Messages], Sequence[str]], Any]:
    """Import the file and return its function.

    Raises:
        RecipeError: the file cannot be imported, has no such function, or changed since the run began.
    """
    path = Path(found.file)
    if sha256_file(path) != found.sha256:
        raise RecipeError(f"--reward {found.spec}: {path} changed while the run was going on; run the command again")
    spec = importlib.util.spec_from_file_location(f"trivet_reward_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its own neighbours may be imported, as they could when it was run as a script; dataclasses look their module up.
    sys.path.append(str(path.parent))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"--reward {found.spec}: importing {path} failed with {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, found.name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise RecipeError(
            f"--reward {found.spec}: {path} has no function {found.name!r}; it has {', '.join(names) or 'none'}"
        )
    return function


def call(
    function: Callable[[Sequence[Messages], Sequence[str]], Any],
    spec: str,
    prompts: Sequence[Messages],
    answers: Sequence[str],
) -> list[float]:
    """Scores of answers by a user's function.

    Raises:
        TrivetError: it raised, or did not give one finite number for each answer.
    """
    try:
        given = function(prompts, answers)
        scores = list(given) if isinstance(given, Iterable) else None
    except Exception as error:
        raise TrivetError(f"--reward {spec}: the function raised {type(error).__name__}: {error}") from error
    if scores is None:
        raise TrivetError(
            f"--reward {spec}: the function gave {given!r}; expected a list with a number for each answer"
        )
    if len(scores) != len(answers):
        raise TrivetError(f"--reward {spec}: the function gave {len(scores)} scores for {len(answers)} answers")
    for index, score in enumerate(scores):
        if not _is_finite_number(score):
            raise TrivetError(
                f"--reward {spec}: the function gave {score!r} for answer {answers[index][:80]!r}; expected a finite "
                "number"
            )
    return [float(score) for score in scores]


def _is_finite_number(score: Any) -> bool:
    if isinstance(score, (str, bytes)):
        return False
    try:
        return math.isfinite(float(score))
    except (TypeError, ValueError):
        return False


def _module_file(module: str, spec: str) -> Path:
    """The file of a module that lies in the working directory or is installed."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    finally:
        sys.path.pop(0)
    if found is None or not found.origin:
        raise RecipeError(
            f"--reward {spec}: there is no module {module!r} here or installed; or write file.py:function"
        )
    return Path(found.origin)
