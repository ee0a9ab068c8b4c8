"""What a cluster wants to be told: resources, modules, environment, container. A YAML file, the command line over it.

Read by the recipe's own reader and validated as strictly, with messages of the same form. A site file is trusted like
any shell script of its owner: its `setup` lines are run as they stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from pipeline.recipe.explain import explain
from pipeline.recipe.foreign import NO_SECRETS, secrets_in
from pipeline.recipe.places import Places, Problem
from pipeline.recipe.settings import PositiveInt, Settings
from pipeline.recipe.source import Source, read_source

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,:@+/-]*$")]
"""What Slurm calls partitions, accounts, times and sizes: no space, quote or sign that a shell or Slurm would read."""
Duration = Annotated[str, Field(pattern=r"^([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Directive = Annotated[str, Field(pattern=r"^--[a-z][a-z-]*(=[A-Za-z0-9._,:@+/&|()\[\]*-]+)?$")]


class Site(Settings):
    """One cluster's ways; every key may stay away."""

    partition: Word | None = Field(None, description="Partition, else the cluster's default.")
    account: Word | None = Field(None, description="Account to charge.")
    qos: Word | None = Field(None, description="Quality of service.")
    time: Duration | None = Field(None, description="Time limit of each job, such as '12:00:00' (quoted) or 2-00.")
    mem: Word | None = Field(None, description="Memory per node, such as 64G.")
    nodes: PositiveInt = Field(1, description="Nodes per job.")
    gpus_per_node: Annotated[int, Field(ge=0)] = Field(
        0, description="GPUs on each node; each gets a process of its own. Without any, a node runs one process."
    )
    cpus_per_task: PositiveInt | None = Field(None, description="Cores of each process.")
    directives: tuple[Directive, ...] = Field((), description="Further sbatch options, such as --constraint=a100.")
    modules: tuple[Line, ...] = Field((), description="Environment modules to load.")
    environment: dict[Variable, Line] = Field(default_factory=dict, description="Variables to export.")
    setup: tuple[Line, ...] = Field((), description="Lines of shell to run as they stand, such as `source venv/...`.")
    container: tuple[Line, ...] = Field((), description="Words before the command, such as [apptainer, exec, x.sif].")
    program: tuple[Line, ...] | None = Field(
        None, description="Words that start a run. Default: this Python and this checkout's pipeline/run.py."
    )
    signal_seconds: PositiveInt = Field(
        300, description="How long before the time limit a job is asked to stop: the longest step and its save."
    )
    max_requeues: PositiveInt = Field(
        100, description="A job that was requeued so often is not requeued again: its time limit may be too short."
    )

    @property
    def tasks_per_node(self) -> int:
        """Processes on each node."""
        return max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """Processes of a job."""
        return self.nodes * self.tasks_per_node


def load_site(path: Path | str | None, said: Mapping[str, Any]) -> Site:
    """The site's settings with the command line's over them.

    Args:
        path: the site file, or None without one.
        said: what the command line says, by key; None where it says nothing.

    Raises:
        RecipeError: something is wrong; one line per finding with its place and what to write instead.
    """
    source = Source({}, Places("the command line"), ()) if path is None else read_source(path, "a site file")
    data, places = source.data, source.places
    for key, value in said.items():
        if value is not None:
            data[key] = value
            places.change((key,), f"--{key.replace('_', '-')} {value}")
    problems = list(source.problems)
    secrets = secrets_in(data.get("environment"), ("environment",))
    problems += [Problem(path, NO_SECRETS, at_key=True) for path in secrets]
    site = None
    try:
        site = Site.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems += explain(error.errors(include_url=False), data, places, Site)
    if site is not None and site.time is not None and seconds_of(site.time) < 2 * site.signal_seconds:
        # Slurm would signal such a job soon after its start, and it would be requeued again and again.
        asks = f"with signal_seconds {site.signal_seconds} a job needs at least twice that"
        problems.append(Problem(("time",), f"{site.time} is {seconds_of(site.time)} s; {asks}, or lower that key"))
    places.refuse(problems)
    assert site is not None
    return site


def seconds_of(time: str) -> int:
    """Seconds of a time limit as sbatch reads it: minutes, m:s, h:m:s, days-h, days-h:m, days-h:m:s."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *[*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
