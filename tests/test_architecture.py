"""The shape of the project, read from its source: layers, names, light imports, and what is never written.

Every module has its layer in `LAYERS`; imports point to the same layer or below, those inside functions included.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data_prep", "evaluation", "pipeline")
LAYERS: dict[str, int] = {
    # L0: standard library, pydantic, yaml
    "pipeline": 0, "pipeline.errors": 0, "pipeline.durable": 0, "pipeline.artefact": 0, "pipeline.checkpoint": 0,
    "pipeline.console": 0, "pipeline.stopping": 0, "pipeline.recipe.*": 0, "data_prep.records": 0,
    "pipeline.faults": 0, "pipeline.redaction": 0, "pipeline.holders": 0,
    # L1: the mathematics | the data
    "pipeline.algorithms.*": 1, "data_prep.*": 1,
    # L2: tensors, models, where a process stands
    "pipeline.batches": 2, "pipeline.streams": 2, "pipeline.models.*": 2, "pipeline.tracking": 2, "pipeline.runtime": 2,
    "pipeline.wandb_runs": 2, "pipeline.wandb_mirror": 2, "pipeline.wandb_push": 2, "pipeline.wandb_artefacts": 2,
    "pipeline.wandb_workspace": 2, "pipeline.wandb_sender": 2, "pipeline.event_files": 2, "pipeline.trackio_runs": 2,
    "pipeline.batch_order": 2, "pipeline.context": 2, "pipeline.assignment": 2, "pipeline.reward_function": 2,
    "pipeline.out_of_memory": 2, "pipeline.peak_memory": 2,
    # L3: answers sampled from policies, and their rewards
    "pipeline.rollouts.*": 3,
    # L4: stages | evaluation
    "pipeline.stages.*": 4, "evaluation.*": 4,
    # L5: the chain and the command line
    "pipeline.run_dir": 5,
    "pipeline.plan": 5, "pipeline.ledger": 5, "pipeline.results": 5, "pipeline.locks": 5, "pipeline.peers": 5,
    "pipeline.processes": 5, "pipeline.supervisor": 5, "pipeline.worker": 5, "pipeline.cli": 5, "pipeline.run": 5,
    "pipeline.data_commands": 5, "pipeline.data_inspection": 5, "pipeline.data_pipeline": 5, "pipeline.preflight": 5,
    "pipeline.slurm.*": 5, "pipeline.status": 5, "pipeline.comparing": 5, "pipeline.pushing": 5,
    "pipeline.evaluating": 5,
    "pipeline.finished_runs": 5, "pipeline.sweeping": 5, "pipeline.combinations": 5, "pipeline.starting": 5,
}  # fmt: skip
SHARED_BY_STAGES = {
    f"pipeline.stages.{name}"
    for name in (
        "offline", "pairs", "policy", "engine", "stream_trainer", "shared_trunk", "spreading", "round_trip",
        "fully_sharded", "held_out_rows", "prompts", "offloading", "batch_rows",
    )
}  # fmt: skip
LIGHT = (
    "pipeline", "pipeline.cli", "pipeline.recipe", "pipeline.supervisor", "pipeline.slurm.submit", "evaluation.report",
    "evaluation.comparison",
)  # fmt: skip
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "wandb", "deepspeed", "bitsandbytes", "vllm")


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"), filename=str(modules()[name]))


def layer(name: str) -> int | None:
    """By the entry itself, else by the nearest package with a star."""
    if name in LAYERS:
        return LAYERS[name]
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        starred = LAYERS.get(".".join(parts[:length]) + ".*")
        if starred is not None:
            return starred
    return None


def imports(name: str, *, at_import_only: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; `from package import module` counts as the module.

    With `at_import_only`, functions and blocks under `TYPE_CHECKING` are left out.
    """
    nodes: list[ast.AST] = [tree(name)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: relative import on line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules() else node.module
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)


def ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def top(name: str) -> str:
    return name.split(".")[0]


def third_party(name: str) -> set[str]:
    return {top(target) for target in imports(name) if not ours(target)} - set(sys.stdlib_module_names)


every_module = pytest.mark.parametrize("name", modules())


def test_the_modules_were_found():
    """The checks below run over nothing if this is wrong."""
    assert len(modules()) > 80
    assert {"pipeline.recipe", "pipeline.stages.dpo", "data_prep.chat", "evaluation.run", "pipeline.run"} <= {
        *modules()
    }
    assert "pipeline.models.adapters" in set(imports("pipeline.stages.dpo")), "from pipeline.models import adapters"
    assert "transformers" in set(imports("data_prep.chat"))
    assert "transformers" not in set(imports("data_prep.chat", at_import_only=True))


# Layers


@every_module
def test_every_module_has_a_layer(name):
    assert layer(name) is not None, f"{name} is new: give it a layer in {Path(__file__).name}"


def test_the_table_names_what_exists():
    for entry in LAYERS:
        assert entry.removesuffix(".*") in modules(), entry


@every_module
def test_the_docstring_says_the_same_layer(name):
    text = ast.get_docstring(tree(name)) or ""
    for said in re.findall(r"\bLayer (\d)", text):
        assert int(said) == layer(name)


@every_module
def test_imports_point_down(name):
    mine = layer(name)
    assert mine is not None
    for target in imports(name):
        if ours(target) and target != "pipeline":
            theirs = layer(target)
            assert theirs is not None and theirs <= mine, f"{name} (layer {mine}) imports {target} (layer {theirs})"


@every_module
def test_libraries_belong_to_their_layer(name):
    if layer(name) == 0:
        assert third_party(name) <= {"pydantic", "pydantic_core", "yaml"}
    if name.startswith("pipeline.algorithms"):
        assert third_party(name) <= {"torch"}
        assert all(target.startswith("pipeline.algorithms") for target in imports(name) if ours(target))
    if name.startswith("data_prep"):
        assert not third_party(name) & {"torch", "trl", "peft", "accelerate"}
        assert not any(target.startswith("pipeline.algorithms") for target in imports(name))


@every_module
def test_stages_never_import_one_another(name):
    """They share `offline`, `pairs` and `policy`, which know no stage; a stage's own parts are named after it."""
    if name.startswith("pipeline.stages."):
        found = {target for target in imports(name) if target.startswith("pipeline.stages.")}
        assert {target for target in found - SHARED_BY_STAGES if _stage(target) != _stage(name)} == set()


def _stage(name: str) -> str:
    """The stage that a module is part of: `ppo` of pipeline.stages.ppo_update."""
    return name.rsplit(".", 1)[1].partition("_")[0]


@every_module
def test_evaluation_knows_no_stage(name):
    if top(name) == "evaluation":
        assert not [target for target in imports(name) if target.startswith("pipeline.stages")]


@every_module
def test_heavy_libraries_stay_where_they_are_used(name):
    """trl in stages, wandb in two modules; bitsandbytes, deepspeed and vllm nowhere when a module is imported."""
    used = {top(target) for target in imports(name)}
    at_import = {top(target) for target in imports(name, at_import_only=True)}
    assert "trl" not in used or name.startswith("pipeline.stages.")
    assert "wandb" not in used or name in ("pipeline.wandb_runs", "pipeline.wandb_artefacts")
    assert not at_import & {"wandb", "bitsandbytes", "deepspeed", "vllm"}


def test_the_worker_starts_stages_that_exist():
    """It names them in a table, which no import shows."""
    texts = [node.value for node in ast.walk(tree("pipeline.worker")) if isinstance(node, ast.Constant)]
    named = {
        text for text in texts if isinstance(text, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text) and ours(text)
    }
    assert {"pipeline.stages.sft", "pipeline.stages.dpo", "evaluation.run"} <= named
    for name in named:
        if name.startswith(("pipeline.stages", "evaluation")):
            assert any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree(name).body), name


# Light imports


@pytest.mark.parametrize("name", LIGHT)
def test_importing_what_runs_first_is_light(name):
    code = f"import sys, {name}; print(*[x for x in {HEAVY!r} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_recipe_module_is_light():
    """Layer 0 as a whole, in one process."""
    names = [name for name in modules() if layer(name) == 0]
    code = f"import sys, {', '.join(names)}; print(*[x for x in {HEAVY!r} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Names


def _dependency_names() -> set[str]:
    """Import names of the declared dependencies, and of a few that come with them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    wanted = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in declared}
    names = {name.replace("-", "_") for name in wanted}
    names |= {"numpy", "tokenizers", "safetensors", "huggingface_hub", "vllm"}
    for module, distributions in importlib.metadata.packages_distributions().items():
        if any(distribution.lower().replace("_", "-") in wanted for distribution in distributions):
            names.add(module)
    return names


@every_module
def test_no_module_shadows_a_library(name):
    """A script's folder comes first on the path, where `queue.py` would be everybody's `queue`."""
    forbidden = _names()
    assert {"queue", "statistics", "torch", "yaml", "datasets", "trl"} <= forbidden
    path = modules()[name]
    last = path.parent.name if path.name == "__init__.py" else path.stem
    assert last not in forbidden, f"{path.relative_to(ROOT)} is named like a library"


@cache
def _names() -> frozenset[str]:
    return frozenset(sys.stdlib_module_names | _dependency_names())


def test_running_the_script_replaces_its_folder_on_the_path():
    """`sys.path[0] = ...` stands before any import of ours."""
    body = tree("pipeline.run").body
    replaced = next(at for at, node in enumerate(body) if "sys.path[0] =" in ast.unparse(node))
    first = next(
        at for at, node in enumerate(body) if isinstance(node, ast.ImportFrom) and node.module == "pipeline.cli"
    )
    assert replaced < first
    assert ast.unparse(body[replaced]) == "sys.path[0] = str(Path(__file__).resolve().parent.parent)"


# Habits


@every_module
def test_every_module_says_what_it_is(name):
    text = ast.get_docstring(tree(name))
    assert text and text.strip(), f"{name} has no docstring"


def _calls(source: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(source):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@every_module
def test_nothing_that_is_loaded_can_run_code(name):
    used = {top(target) for target in imports(name)}
    assert not used & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for function, call in _calls(tree(name)):
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if function in ("torch.load", "load") and "torch" in function:
            assert keywords.get("weights_only") == "True", f"{name}:{call.lineno}"
        assert keywords.get("trust_remote_code", "False") == "False", f"{name}:{call.lineno}"
        assert not function.startswith("pickle."), f"{name}:{call.lineno}"
        assert function not in ("eval", "exec", "yaml.unsafe_load", "yaml.full_load"), f"{name}:{call.lineno}"


def _tolerances(source: ast.Module) -> Iterator[tuple[int, str, float]]:
    """Numbers written as a relative tolerance, wherever a call has one."""
    for _, call in _calls(source):
        for word in call.keywords:
            if word.arg in ("rtol", "rel"):
                for node in ast.walk(word.value):
                    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
                        yield call.lineno, word.arg, float(node.value)


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.stem)
def test_tests_can_fail(path):
    """No `rtol` above 1e-2: a test with 1e6 passes whatever happens. `rel` may reach 0.2 where chance is involved."""
    for line, word, value in _tolerances(ast.parse(path.read_text(encoding="utf-8"))):
        assert value <= (1e-2 if word == "rtol" else 0.2), f"{path.name}:{line}: {word}={value}"


def test_the_tolerance_check_can_fail():
    source = ast.parse("allclose(a, b, " + "rt" + "ol=1e6, atol=0)\napprox(c, rel=0.5 if x else 1e-3)")
    assert [(word, value) for _, word, value in _tolerances(source)] == [("rtol", 1e6), ("rel", 0.5), ("rel", 1e-3)]


def test_no_test_reaches_a_network(network_attempts):
    """The guard refuses addresses and names beyond this machine, and lets its own through."""
    with pytest.raises(OSError, match="a test tried to reach"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match=r"a test tried to reach huggingface\.co"):
        socket.getaddrinfo("huggingface.co", 443)
    with socket.socket() as listener, socket.socket() as other:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        other.connect(listener.getsockname())
    assert len(network_attempts) == 2
    network_attempts.clear()
