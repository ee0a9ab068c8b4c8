"""`trivet submit`: what is checked, which jobs there are and what each waits for, and what is written where."""

from __future__ import annotations

import json

import pytest

from pipeline.recipe import load_recipe
from pipeline.slurm import scheduler
from pipeline.slurm.site_file import seconds_of


def test_a_job_for_each_stage_after_the_one_before(here, trivet, slurm):
    code, out, err = trivet("submit", "recipe.yaml", "--partition", "gpu")
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "sft            job 101", "dpo            job 102, after 101", "evaluation     job 103, after 102",
    ]  # fmt: skip
    run = here / "runs" / "tiny"
    asked = slurm.of("sbatch")
    assert [call[-1] for call in asked] == [str(run / "slurm" / f"{s}.sbatch") for s in ("sft", "dpo", "evaluation")]
    dependencies = [[word for word in call if "dep" in word] for call in asked]
    cancelled = "--kill-on-invalid-dep=yes"
    assert dependencies == [[], ["--dependency=afterok:101", cancelled], ["--dependency=afterok:102", cancelled]]
    assert all(f"--chdir={here}" in call and "--parsable" in call for call in asked)
    script = (run / "slurm" / "dpo.sbatch").read_text()
    assert "--only dpo\n" in script and "#SBATCH --partition=gpu\n" in script and f"run={run}\n" in script
    assert (run / "logs").is_dir(), "Slurm makes no folder for a log"
    rows = json.loads((run / "slurm" / "jobs.json").read_text())["jobs"]
    assert [(row["name"], row["job_id"]) for row in rows] == [("sft", "101"), ("dpo", "102"), ("evaluation", "103")]


def test_jobs_run_the_recipe_as_it_was(here, trivet, slurm):
    """Frozen with its overrides: an edit while jobs wait is not theirs."""
    trivet("submit", "recipe.yaml", "--set", "seed=5")
    frozen = load_recipe(here / "runs" / "tiny" / "slurm" / "recipe.yaml")
    assert frozen.recipe == load_recipe(here / "recipe.yaml", ["seed=5"]).recipe
    (here / "recipe.yaml").write_text("name: other")
    assert load_recipe(here / "runs" / "tiny" / "slurm" / "recipe.yaml").recipe.seed == 5


def test_one_job_for_everything(here, trivet, slurm):
    code, _, _ = trivet("submit", "recipe.yaml", "--one-job")
    assert code == 0 and len(slurm.of("sbatch")) == 1
    script = (here / "runs" / "tiny" / "slurm" / "all.sbatch").read_text()
    assert "--only" not in script and "# Made by `trivet submit`. Of tiny: sft, dpo, evaluation." in script


def test_what_is_finished_gets_no_job(here, trivet, slurm, monkeypatch):
    from pipeline import artefact

    monkeypatch.setattr(artefact, "is_sealed", lambda folder: folder.name.startswith("sft"))
    trivet("submit", "recipe.yaml")
    assert [call[-1].rsplit("/", 1)[1] for call in slurm.of("sbatch")] == ["dpo.sbatch", "evaluation.sbatch"]
    assert not any("dep" in word for word in slurm.of("sbatch")[0])
    monkeypatch.setattr(artefact, "is_sealed", lambda folder: True)
    code, out, _ = trivet("submit", "recipe.yaml", "--output-dir", "other")
    assert (code, out) == (0, "nothing to submit: all stages are done\n")
    assert len(slurm.of("sbatch")) == 2
    trivet("submit", "recipe.yaml")
    assert "dpo" in (here / "runs" / "tiny" / "slurm" / "jobs.json").read_text(), "what was submitted stays on record"


def test_an_array_over_two_keys_makes_shared_stages_once(here, trivet, slurm):
    """Four runs, two seeds; each seed's SFT belongs to two of them, and two at work on it would collide."""
    options = ("--array-over", "seed=1,2", "--array-over", "stages.dpo.beta=0.1,2e-1")
    code, out, _ = trivet("submit", "recipe.yaml", *options, "--json")
    assert code == 0
    found = json.loads(out)
    runs = here / "runs"
    assert [(run["output_dir"], run["changes"]) for run in found["runs"]] == [
        (f"{runs}/tiny-0", ["seed=1", "stages.dpo.beta=0.1"]), (f"{runs}/tiny-1", ["seed=1", "stages.dpo.beta=0.2"]),
        (f"{runs}/tiny-2", ["seed=2", "stages.dpo.beta=0.1"]), (f"{runs}/tiny-3", ["seed=2", "stages.dpo.beta=0.2"]),
    ]  # fmt: skip
    assert [(job["name"], job["job_id"], job["after"]) for job in found["jobs"]] == [
        ("tiny-sft", "101", []), ("tiny-sft", "102", []), ("tiny", "103", ["101", "102"]),
    ]  # fmt: skip
    assert [job["script"] for job in found["jobs"]] == [
        f"{runs}/tiny-0/slurm/sft.sbatch", f"{runs}/tiny-2/slurm/sft.sbatch", f"{runs}/tiny-array/slurm/all.sbatch",
    ]  # fmt: skip
    whole = found["jobs"][2]["text"]
    assert "#SBATCH --array=0-3\n" in whole and f'run={runs}/tiny-"$SLURM_ARRAY_TASK_ID"\n' in whole
    assert f"--output={runs}/tiny-%a/logs/slurm-all-%A_%a.log" in whole
    for index, (seed, beta) in enumerate([(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]):
        frozen = load_recipe(runs / f"tiny-{index}" / "slurm" / "recipe.yaml").recipe
        assert (frozen.seed, frozen.stages["dpo"].beta) == (seed, beta)
    jobs = json.loads((runs / "tiny-2" / "slurm" / "jobs.json").read_text())["jobs"]
    assert jobs == [{"name": "sft", "job_id": "102"}, {"name": "all", "job_id": "103_2"}]


def test_a_dry_run_prints_the_scripts_and_touches_nothing(here, trivet, monkeypatch):
    """Not even sbatch is needed."""
    monkeypatch.setattr(scheduler.shutil, "which", lambda name: None)
    before = sorted(here.rglob("*"))
    code, out, err = trivet("submit", "recipe.yaml", "--dry-run")
    assert (code, err) == (0, "")
    assert out.count("#!/bin/bash") == 3 and "dpo.sbatch, after sft" in out
    assert sorted(here.rglob("*")) == before


def test_without_sbatch_there_is_a_sentence(here, trivet, monkeypatch):
    monkeypatch.setattr(scheduler.shutil, "which", lambda name: None)
    code, _, err = trivet("submit", "recipe.yaml")
    assert code == 69 and len(err.splitlines()) == 1
    assert "sbatch is not on this machine's PATH" in err and "--dry-run" in err
    assert not (here / "runs").exists()


def test_a_run_with_living_jobs_is_not_submitted_again(here, trivet, slurm):
    trivet("submit", "recipe.yaml", "--one-job")
    slurm.add("squeue", "print('101 RUNNING')")
    code, _, err = trivet("submit", "recipe.yaml", "--one-job")
    assert code == 73 and "101 (RUNNING)" in err and "`scancel 101`" in err
    slurm.add("squeue", "print('101 COMPLETED')")
    assert trivet("submit", "recipe.yaml", "--one-job")[0] == 0


def test_a_refused_job_takes_back_those_before_it(here, trivet, slurm):
    refusal = "sbatch: error: Batch job submission failed: Invalid partition name specified"
    slurm.add("sbatch", f"if 'dpo' in sys.argv[-1]: print({refusal!r}, file=sys.stderr); sys.exit(1)\nprint(7)")
    code, _, err = trivet("submit", "recipe.yaml")
    assert code == 2
    assert "dpo.sbatch: Batch job submission failed: Invalid partition name specified; correct" in err
    assert slurm.of("scancel") == [["7"]]
    assert not (here / "runs" / "tiny" / "slurm" / "jobs.json").exists()


def test_a_scheduler_that_does_not_answer_is_69(here, trivet, slurm):
    slurm.add("sbatch", "print('sbatch: error: Unable to contact slurm controller (x)', file=sys.stderr); sys.exit(1)")
    code, _, err = trivet("submit", "recipe.yaml")
    assert code == 69 and "is Slurm up?" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--set", "stages.dpo.betta=1"], 2, "did you mean 'beta'?"),
        (["--gpus-per-node", "3"], 2, "global_batch_size 8 is not a multiple of per_device_batch_size 4 x 3"),
        (["--set", "data.sft.sources.0.path=nowhere.jsonl"], 65, "nowhere.jsonl"),
        (["--set", "model.base=builtin:tiny-lama"], 69, "builtin:tiny-llama"),
        (["--partition", "a b"], 2, "--partition a b: partition: expected a word of letters"),
        (["--account", "a\nb"], 2, "--account a\\nb: account: expected a word"),
        (["--time", "soon"], 2, "--time soon: time: expected a time limit such as 90 (minutes)"),
        (["--time", "9:59"], 2, "--time 9:59: time: 9:59 is 599 s; with signal_seconds 300 a job needs at least twice"),
        (["--nodes", "0"], 2, "--nodes 0: nodes: expected a whole number above 0"),
        (["--nodes", "two"], 2, "invalid int value"),
        (["--site", "sit.yaml"], 2, "sit.yaml: no such file"),
        (["--output-dir", "a\nb"], 2, "takes no line break"),
        (["--output-dir", "a\\b"], 2, "path with a backslash"),
        (["--array-over", "seed"], 2, "--array-over seed: expected values"),
        (["--array-over", "seed="], 2, "expected values"),
        (["--array-over", "seed=1,2", "--array-over", "seed=3"], 2, "--array-over seed: is given twice"),
        (["--array-over", "sead=1,2"], 2, "did you mean 'seed'?"),
        (["--array-over", "seed=1,x"], 2, "seed"),
        (["--array-over", f"seed={','.join(map(str, range(1001)))}"], 2, "1001 combinations, at most 1000"),
    ],
)
def test_mistakes_are_found_before_anything_is_queued(here, trivet, slurm, arguments, code, said):
    found, out, err = trivet("submit", "recipe.yaml", *arguments)
    assert (found, out) == (code, "") and said in err
    assert slurm.of("sbatch") == [] and not (here / "runs").exists()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:02:03", 3723), ("2-03", 183600), ("1-00:30", 88200), ("1-02:03:04", 93784)],
)
def test_time_limits_are_read_as_sbatch_reads_them(time, seconds):
    assert seconds_of(time) == seconds


SITE = """\
partition: gpu
time: 12:00:00
moduels: [cuda]
setup: source venv/bin/activate
environment: {A-B: x, HF_HOME: "a\\nb"}
directives: ["--constraint=a b"]
"""


def test_mistakes_in_a_site_file_are_shown_all_at_once(here, trivet, slurm):
    (here / "site.yaml").write_text(SITE)
    code, _, err = trivet("submit", "recipe.yaml", "--site", "site.yaml")
    assert code == 2
    assert err.splitlines() == [
        "site.yaml:2: time: expected a time limit such as 90 (minutes), 12:00:00 or 2-00 (days-hours), found 12:00:00; "
        "quote it if it is text: '12:00:00'",
        "site.yaml:3: moduels: unknown key, did you mean 'modules'?",
        "site.yaml:4: setup: expected a list, found 'source venv/bin/activate'; write a list: "
        "[source venv/bin/activate]",
        "site.yaml:5: environment.A-B: expected a variable's name (letters, digits and _), found 'A-B'",
        "site.yaml:5: environment.HF_HOME: expected one line of text, found 'a\\nb'",
        "site.yaml:6: directives.0: expected an sbatch option such as --constraint=a100, without spaces, found "
        "'--constraint=a b'",
    ]


def test_store_and_reward_are_the_jobs_too(here, trivet, slurm):
    (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text().replace("  dpo: {", "  ppo: {PPO}\n  dpo: {"))
    ppo = "rewards: [{from: function}], rollout_batch_size: 8, episodes: 8"
    (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text().replace("PPO", ppo))
    (here / "my reward.py").write_text("def f(prompts, answers): ...\n")
    code, _, err = trivet("submit", "recipe.yaml", "--reward", "my reward.py:f", "--store", "s", "--one-job")
    assert (code, err) == (0, "")
    lines = (here / "runs" / "tiny" / "slurm" / "all.sbatch").read_text().splitlines()
    assert "    --reward 'my reward.py:f'" in lines and f"    --store {here}/s" in lines


def test_the_command_line_goes_before_the_site_file(here, trivet, slurm):
    site = "partition: cpu\nqos: low\nnodes: 2\nmem: 8G\ncpus_per_task: 4\ngpus_per_node: 1\ntime: '1:00:00'\n"
    more = "directives: [--exclusive, '--constraint=a100&nvme']\nsignal_seconds: 60\nprogram: [trivet, run]\n"
    (here / "site.yaml").write_text(site + more + "container: [apptainer, exec, my image.sif]\n")
    trivet("submit", "recipe.yaml", "--site", "site.yaml", "--partition", "gpu", "--one-job")
    lines = (here / "runs" / "tiny" / "slurm" / "all.sbatch").read_text().splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {
        "--partition=gpu", "--qos=low", "--nodes=2", "--mem=8G", "--cpus-per-task=4", "--gpus-per-node=1",
        "--time=1:00:00", "--exclusive", "--constraint=a100&nvme", "--signal=B:USR1@60", "--ntasks-per-node=1",
    } <= set(directives)  # fmt: skip
    assert len(directives) == len(set(directives))
    assert "    apptainer exec 'my image.sif' trivet run \"$run/slurm/recipe.yaml\"" in lines
