"""SFT, DPO and evaluation end to end: what a run leaves, what the next one does anew, and how it ends when it must."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

from pipeline.artefact import open_artefact
from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow
STAGES = ["sft", "dpo", "evaluation"]
TRAINED = [f"stages.{stage}.max_steps=2" for stage in ("sft", "dpo")]


def settings(*changes: str) -> tuple[str, ...]:
    return tuple(part for change in changes for part in ("--set", change))


@pytest.fixture
def finished(chain, new_run):
    """A copy of the finished run, store and all, to be changed; also a test that both can be moved together."""
    run = new_run("tiny-dpo")
    shutil.copytree(chain.folder.parent, run.folder.parent, symlinks=True)
    return run


def test_every_stage_is_done_and_its_artefact_whole(chain):
    assert chain.statuses() == dict.fromkeys(STAGES, "done")
    assert chain.outcome() == {"code": 0, "sentence": ""}
    for stage in STAGES:
        assert (chain.folder / stage).is_symlink()
        open_artefact(chain.folder / stage)
        left = {path.name for path in (chain.folder / stage).iterdir()}
        assert not left & {"checkpoints", "work"}


def test_manifests_name_their_parents_by_key(chain):
    sft, dpo, evaluation = (open_artefact(chain.folder / stage).manifest for stage in STAGES)
    assert sft.parents == ()
    assert [(parent.role, parent.stage, parent.key) for parent in dpo.parents] == [("policy", "sft", sft.key)]
    assert [(parent.stage, parent.key) for parent in evaluation.parents] == [("sft", sft.key), ("dpo", dpo.key)]
    assert sft.tokenizer == dpo.tokenizer == evaluation.tokenizer
    assert sft.base == dpo.base and sft.base.name == "builtin:tiny-llama"
    assert (sft.form, dpo.form, evaluation.form) == ("adapter", "adapter", "none")
    assert sft.world_size == 1 and sft.seed == 17 and sft.precision == "fp32"
    assert sft.data["sft"]["train_rows"] == sft.metrics["train_rows"] == 64


def test_results_have_every_promised_figure(chain):
    results = chain.json("results.json")
    for stage in ("sft", "dpo"):
        assert results["stages"][stage]["status"] == "done" and results["stages"][stage]["seconds"] > 0
    sft, dpo = (results["stages"][stage]["metrics"] for stage in ("sft", "dpo"))
    assert {"eval_loss_before", "eval_loss"} <= set(sft)
    assert {
        "eval_accuracy_before", "eval_accuracy", "eval_accuracy_ci95", "eval_n", "eval_margin", "kl_to_reference",
    } <= set(dpo)  # fmt: skip
    assert sft["eval_loss"] < sft["eval_loss_before"]
    assert dpo["eval_accuracy_before"] == 0.5 and dpo["eval_margin_before"] == 0.0
    assert 0 <= dpo["eval_accuracy_ci95"][0] <= dpo["eval_accuracy"] <= dpo["eval_accuracy_ci95"][1] <= 1
    policies = results["evaluation"]["policies"]
    assert list(policies) == ["base", "sft", "dpo"]
    columns = {
        "rule_accuracy", "rule_n", "rule_ci95", "score", "score_heldout", "kl_to_reference", "response_tokens",
        "eos_rate", "perplexity", "win_rate",
    }  # fmt: skip
    assert len({frozenset(row) for row in policies.values()}) == 1 and columns <= set(policies["base"])
    assert policies["sft"]["kl_to_reference"] == 0.0 and results["evaluation"]["reference"] == "sft"
    assert policies["dpo"]["kl_to_reference"] == dpo["kl_to_reference"] != 0.0


def test_training_moved_the_weights_and_only_the_adapters(chain):
    assert chain.weights("sft") != chain.weights("dpo")
    names = {path.name for stage in ("sft", "dpo") for path in (chain.folder / stage).rglob("*.safetensors")}
    assert names == {"adapter_model.safetensors"}


def test_metrics_have_each_step_once(chain):
    assert chain.train_steps("sft") == [2, 4, 6, 8]
    assert chain.train_steps("dpo") == [2, 4, 6]
    for stage in ("sft", "dpo"):
        for name in ("loss", "learning_rate", "grad_norm"):
            assert chain.train_steps(stage, name) == chain.train_steps(stage)
    assert [line["step"] for line in chain.lines("sft", "loss", "eval")] == [0, 8]
    assert [line["step"] for line in chain.lines("dpo", "accuracy", "eval")] == [0, 6]


def test_the_page_the_recipe_and_the_log_are_there(chain):
    page = (chain.folder / "report.html").read_text()
    assert "tiny-dpo" in page and "<svg" in page
    assert "beta: 0.1" in (chain.folder / "recipe.yaml").read_text()
    assert "Traceback" not in chain.log() and "Traceback" not in chain.said()
    assert not list(chain.folder.glob(".*.tmp"))


def test_again_trains_nothing_and_says_why(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.inside("*/*")}
    log = finished.log()
    said = finished.go()
    assert [said.count(f"{stage}: finished earlier, taken from") for stage in STAGES] == [1, 1, 1]
    assert "starts" not in said
    assert finished.log() == log, "no worker ran"
    assert {path: path.stat().st_mtime_ns for path in finished.inside("*/*")} == before
    assert finished.statuses() == dict.fromkeys(STAGES, "skipped")


def test_the_resolved_recipe_is_the_same_run(finished):
    finished.recipe = finished.folder / "recipe.yaml"
    said = finished.go("--plan")
    assert said.count("is done") == 3


def test_an_edited_beta_trains_dpo_and_evaluates_anew(finished, chain):
    said = finished.go(*settings("stages.dpo.beta=0.5"))
    assert "sft: finished earlier" in said
    assert "dpo: starts (its settings or data changed)" in said and "evaluation: starts (dpo changed)" in said
    assert finished.weights("sft") == chain.weights("sft")
    assert finished.weights("dpo") != chain.weights("dpo")
    assert len(finished.inside("dpo-*")) == 2, "the old result stays where it is"
    said = finished.go()
    assert said.count("taken from") == 3, "and going back costs nothing"
    assert finished.weights("dpo") == chain.weights("dpo")


def test_a_second_recipe_takes_over_the_first_ones_sft(finished, new_run, tmp_path):
    text = (ROOT / "recipes" / "tiny_dpo.yaml").read_text().replace("name: tiny-dpo", "name: other")
    text = text.replace("dpo: {", "dpo: {beta: 0.5, ")
    recipe = tmp_path / "other.yaml"
    recipe.write_text(text + "# another comment\n")
    other = new_run("other", recipe)
    said = other.go("--until", "sft")
    assert "sft: made by another run with the same settings and data" in said and "starts" not in said
    assert (other.folder / "sft").resolve() == (finished.folder / "sft").resolve()
    assert other.statuses() == {"sft": "skipped", "dpo": "pending", "evaluation": "pending"}
    said = other.go("--plan", "--no-reuse")
    assert said.count("will run") == 3


def test_force_trains_anew_and_gets_the_same_bits(finished, chain):
    created = open_artefact(finished.folder / "sft").manifest.created
    said = finished.go("--force", "sft", "--until", "sft")
    assert "sft: starts (forced)" in said
    assert open_artefact(finished.folder / "sft").manifest.created > created
    assert finished.weights("sft") == chain.weights("sft")


def test_a_damaged_artefact_is_refused_with_a_remedy_that_works(finished, chain):
    weights = (finished.folder / "sft").resolve() / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = finished.go(code=1)
    folder = weights.parents[1]
    assert f"{weights} is not the file that was sealed" in said and f"delete the folder {folder}" in said
    assert "Traceback" not in said and finished.outcome()["code"] == 1
    shutil.rmtree(folder)
    said = finished.go()
    assert "sft: starts (not made yet)" in said and "dpo: finished earlier" in said
    assert finished.weights("sft") == chain.weights("sft")


def test_stage_by_stage_is_the_same_as_all_at_once(new_run, chain):
    run = new_run()
    run.go("--until", "sft")
    assert run.statuses() == {"sft": "done", "dpo": "pending", "evaluation": "pending"}
    assert run.json("results.json")["stages"]["dpo"]["status"] == "pending"
    said = run.go("--only", "dpo")
    assert "sft: starts" not in said and "dpo: starts (not made yet)" in said
    assert run.statuses() == {"sft": "skipped", "dpo": "done", "evaluation": "pending"}
    for stage in ("sft", "dpo"):
        assert run.weights(stage) == chain.weights(stage)
    rows = run.go("--plan").splitlines()
    assert ["is done" in row for row in rows] == [True, True, False]


def test_bad_rows_stop_the_stage_that_reads_them_and_keep_what_is_done(finished, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"\n')
    said = finished.go(*settings(f"data.preference.sources=[{{path: {path}}}]"), code=65)
    assert "sft: finished earlier" in said
    assert f"dpo: {path}:2" in said and "Traceback" not in said
    assert finished.outcome()["code"] == 65
    assert finished.statuses() == {"sft": "skipped", "dpo": "failed", "evaluation": "pending"}
    results = finished.json("results.json")["stages"]
    assert results["sft"]["status"] == "skipped" and results["sft"]["metrics"]["eval_loss"] is not None
    assert results["dpo"]["status"] == "failed", "the last run's figures do not stand for this one"
    assert not {"eval_accuracy", "eval_margin"} & set(results["dpo"]["metrics"])


def test_full_fine_tuning_runs_the_chain(new_run):
    rates = [f"stages.{stage}.learning_rate=1.0e-3" for stage in ("sft", "dpo")]
    run = new_run(options=settings("model.adapter=none", *TRAINED, *rates))
    run.go()
    manifests = [open_artefact(run.folder / stage).manifest for stage in STAGES]
    assert [manifest.form for manifest in manifests] == ["model", "model", "none"]
    assert run.weights("sft") != run.weights("dpo")
    assert run.json("results.json")["stages"]["dpo"]["metrics"]["eval_accuracy_before"] == 0.5


def test_bfloat16_runs_the_chain(new_run, chain):
    precisions = [f"stages.{stage}.precision=bf16" for stage in ("sft", "dpo")]
    run = new_run(options=settings(*precisions, *TRAINED))
    run.go()
    assert {open_artefact(run.folder / stage).manifest.precision for stage in STAGES} == {"bf16"}
    metrics = run.json("results.json")["stages"]
    expected = chain.json("results.json")["stages"]["sft"]["metrics"]["eval_loss_before"]
    assert metrics["sft"]["metrics"]["eval_loss_before"] == pytest.approx(expected, rel=0.02)
    assert metrics["dpo"]["metrics"]["eval_accuracy_before"] == 0.5


def test_two_runs_that_start_together_share_one_sft_stage(new_run, chain):
    """Both find it missing; one makes it, the other waits for it and takes it over instead of spoiling it."""
    options = settings("evaluation.tasks=[]")
    runs = [new_run(f"beta-{beta}", options=(*options, *settings(f"stages.dpo.beta={beta}"))) for beta in (0.1, 0.5)]
    processes = [run.start("python") for run in runs]
    codes = [process.wait(420) for process in processes]
    assert codes == [0, 0], "\n".join(run.said() for run in runs)
    said = "".join(run.said() for run in runs)
    assert said.count("sft: starts (not made yet)") == 2
    assert said.count("sft: made by another run in the meantime") == 1
    assert len(runs[0].inside("sft-*")) == 1
    assert runs[0].weights("sft") == runs[1].weights("sft") == chain.weights("sft")
    assert runs[0].weights("dpo") == chain.weights("dpo") != runs[1].weights("dpo")


def test_asked_to_stop_it_saves_ends_with_75_and_goes_on_bit_by_bit(new_run, chain):
    """SIGTERM as a worker starts, in the middle of SFT, as DPO starts, in the middle of DPO; then left alone."""
    run = new_run(options=settings("evaluation.tasks=[]"))
    moments = {
        "sft starts": lambda: "sft: starts" in run.said(),
        "sft saved a step": lambda: run.inside("sft-*/checkpoints/checkpoint-2/COMPLETE.json"),
        "dpo starts": lambda: "dpo: starts" in run.said(),
        "dpo saved a step": lambda: run.inside("dpo-*/checkpoints/checkpoint-2/COMPLETE.json"),
    }
    for name, condition in moments.items():
        process = run.start("python")
        assert run.wait_for(condition, process), f"{name}: {run.said()}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, f"{name}: {run.said()}"
        outcome = run.outcome()
        assert outcome["code"] == 75 and "run the same command again" in outcome["sentence"], name
        assert "Traceback" not in run.said()
        stage = name.split()[0]
        assert run.statuses()[stage] in ("interrupted", "done")
        assert run.left_behind() == {}
    run.go()
    assert "dpo: going on from step" in run.said()
    for stage in ("sft", "dpo"):
        assert run.weights(stage) == chain.weights(stage)
        assert run.train_steps(stage, "learning_rate") == sorted(set(run.train_steps(stage, "learning_rate")))
        assert run.train_steps(stage)[-1] == chain.train_steps(stage)[-1]


def test_the_figures_are_the_same_json_for_every_reader(chain):
    """No NaN anywhere: strict JSON in all files that a machine reads."""

    def refuse(constant):
        raise ValueError(constant)

    for path in [*chain.folder.glob("*.json"), *(chain.folder / stage / "manifest.json" for stage in STAGES)]:
        json.loads(path.read_text(), parse_constant=refuse)
