"""lm-evaluation-harness asks a policy that is in memory already, and scores what it answers.

Everything that decides a figure (prompt, few-shot examples, filter, metric, seeds) is the harness's default for the
task, so that figures compare with those that others publish for the same version of a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.benchmarks.local import BENCHMARKS
from evaluation.benchmarks.sandbox import passes_tests
from evaluation.benchmarks.task_files import PREFIX
from pipeline.errors import SourceUnreachableError, TrivetError

_BOOTSTRAPS = 1000
"""For standard errors that have no formula."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a benchmark is put."""

    limit: int | None
    """So many questions of each task, the first ones; all of them without it."""
    chat_template: bool
    """Put questions and worked examples as a conversation."""
    batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """What one task of the harness gave."""

    task: str
    version: str
    few_shot: int
    n: int
    values: Mapping[str, float]
    """By metric, with its filter where there are several."""
    errors: Mapping[str, float]
    """Standard errors; missing where the harness gives none."""
    by_question: Mapping[str, Mapping[str, float]]
    """By metric: question's number to its own value."""


def require_harness() -> None:
    """Say early that the extra is missing.

    Raises:
        TrivetError: naming what to type.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise TrivetError(
            f"--tasks needs {error.name}, which is not installed; `pip install -e '.[eval]' -c constraints.txt` adds it"
        ) from error


def ask(model: Any, tokenizer: Any, names: Sequence[str], folder: Path | None, asked: Asked) -> list[TaskFigures]:
    """Put tasks to a model.

    Args:
        model: causal, in evaluation mode, on the device it is to run on.
        tokenizer: of the model.
        names: tasks of the harness, or groups of them.
        folder: of local task files, whose tasks `names` are without their prefix; None for data from the hub.
        asked: how.

    Raises:
        SourceUnreachableError: the hub cannot be reached.
        TrivetError: the harness lacks something of its own, or cannot answer.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # Local definitions name the harness's own ones by path, so that only they are looked at.
    manager = TaskManager() if folder is None else TaskManager(include_path=str(folder), include_defaults=False)
    prefix = "" if folder is None else PREFIX
    wanted = [_without_execution(manager, prefix) if name == "humaneval" else f"{prefix}{name}" for name in names]
    server = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=asked.batch_size)
    try:
        found = simple_evaluate(
            model=server,
            tasks=wanted,
            limit=asked.limit,
            bootstrap_iters=_BOOTSTRAPS,
            task_manager=manager,
            apply_chat_template=asked.chat_template,
            log_samples=True,
        )
    except LookupError as error:
        if "punkt" in str(error):
            raise TrivetError(
                "IFEval splits sentences with NLTK's data, which is not on this machine; "
                "`python -m nltk.downloader punkt_tab` fetches it once"
            ) from error
        raise
    except (ConnectionError, OSError) as error:
        if folder is not None:
            raise
        raise SourceUnreachableError(
            f"{', '.join(names)}: the data cannot be fetched ({_first_line(error)}); name a folder that holds it with "
            "--data"
        ) from error
    assert found is not None
    return [_figures(found, name) for name in found["samples"]]


def headline(benchmark: str, tasks: Sequence[TaskFigures]) -> dict[str, dict[str, Any]]:
    """A benchmark's own figures over all its tasks, each question counting alike, with their standard errors.

    Raises:
        TrivetError: the harness gave none of the metrics that are wanted.
    """
    from lm_eval.api.metrics import pooled_sample_stderr

    rows = {}
    for label, (metric, parts) in measured(benchmark, tasks).items():
        sizes = [task.n for task in parts]
        value = sum(task.values[metric] * task.n for task in parts) / sum(sizes)
        errors = [task.errors.get(metric) for task in parts]
        known = [error for error in errors if error is not None]
        error = None
        if len(known) == len(parts) and sum(sizes) > len(parts):
            error = known[0] if len(parts) == 1 else float(pooled_sample_stderr(known, sizes))
        rows[label] = {"value": value, "stderr": error, "n": sum(sizes)}
    if not rows:
        given = ", ".join(sorted({metric for task in tasks for metric in task.values})) or "none"
        raise TrivetError(
            f"{BENCHMARKS[benchmark].title}: lm-eval gave other metrics ({given}) than the pinned version does; "
            "`pip install -e '.[eval]' -c constraints.txt` brings that"
        )
    return rows


def measured(benchmark: str, tasks: Sequence[TaskFigures]) -> dict[str, tuple[str, list[TaskFigures]]]:
    """By a figure's name: the metric, and the tasks that it is taken over."""
    known = BENCHMARKS[benchmark]
    found: dict[str, tuple[str, list[TaskFigures]]] = {}
    for metric in known.metrics:
        for task in tasks:
            if metric in task.values:
                label = f"{task.task.removeprefix(f'{benchmark}_')} {metric}" if known.apart else metric
                found.setdefault(label, (metric, []))[1].append(task)
    return found


def _figures(found: Mapping[str, Any], name: str) -> TaskFigures:
    metrics = {
        metric.removesuffix(",none"): value
        for metric, value in found["results"][name].items()
        if "," in metric and isinstance(value, (int, float))
    }
    errors = {
        metric.replace("_stderr", ""): float(value)
        for metric, value in metrics.items()
        if "_stderr" in metric and math.isfinite(value)
    }
    values = {metric: float(value) for metric, value in metrics.items() if "_stderr" not in metric}
    samples = found["samples"][name]
    return TaskFigures(
        task=name.removeprefix(PREFIX),
        version=str(found["versions"].get(name)),
        few_shot=int(found["n-shot"].get(name) or 0),
        n=len({sample["doc_id"] for sample in samples}),
        values=values,
        errors=errors,
        by_question={metric: _by_question(samples, metric) for metric in values},
    )


def _by_question(samples: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    name, _, given = metric.partition(",")
    return {
        str(sample["doc_id"]): float(sample[name])
        for sample in samples
        if (not given or sample.get("filter") == given) and isinstance(sample.get(name), (int, float))
    }


def _without_execution(manager: Any, prefix: str) -> dict[str, Any]:
    """HumanEval as the harness asks it, with programs run in a process apart instead of the harness's threads.

    Its own definition fetches a metric from the hub as soon as it is read.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    name = f"{prefix}humaneval"
    definition = dict(load_yaml(manager.task_index[name].yaml_path, resolve_func=False))
    for key in ("unsafe_code", "filter_list", "metric_list"):
        definition.pop(key, None)
    metric = {"metric": "pass_at_1", "aggregation": "mean", "higher_is_better": True}
    return {**definition, "task": name, "process_results": _pass_at_1, "metric_list": [metric]}


def _pass_at_1(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    body = results[0][0] if isinstance(results[0], list) else results[0]
    program = f"{doc['prompt']}{body}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass_at_1": float(passes_tests(program))}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
