"""The scripts: what bash makes of hostile strings, what is handed on, and when a job is requeued."""

from __future__ import annotations

import json
import random
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.errors import RecipeError
from pipeline.runtime import ROOT
from pipeline.slurm.script import Job, directive_value, render, shell_word
from pipeline.slurm.site_file import Site, load_site

PIECES = (
    "$(touch pwned)", "`touch pwned`", "'", '"', "\\", " ", "$HOME", ";touch pwned;", "&&", "|", ">", "#", "!", "*",
    "~", "${x:?}", "{a,b}", "%j", "ä", "--", "x", "'\"'\"'", "<(touch pwned)", "\\'",
)  # fmt: skip
HOSTILE = "a b'\"$(touch pwned)`touch pwned`;touch pwned #%j&|"
SRUN = """
import pathlib, signal, time
pathlib.Path(os.environ["STARTED"]).touch()
exit_file = pathlib.Path(os.environ["TRIVET_EXIT_FILE"])
def stop(number, frame):
    exit_file.write_text(json.dumps({"code": 75, "sentence": "saved"}) + "\\n")
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
if "CODE" in os.environ:
    code = int(os.environ["CODE"])
    if code >= 0: exit_file.write_text(json.dumps({"code": code, "sentence": ""}) + "\\n")
    sys.exit(abs(code))
time.sleep(20)
"""


def hostile_strings(count):
    draw = random.Random(5)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 8))) for _ in range(count)]


def test_a_thousand_hostile_strings_are_words_to_bash(tmp_path):
    strings = hostile_strings(1000)
    script = "printf '%s\\0' " + " ".join(map(shell_word, strings))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == strings
    assert [shlex.split(shell_word(text)) for text in strings] == [[text] for text in strings]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "a\x1b[2Jb", "a\u2028b", "a\udcffb"])
def test_line_breaks_and_control_characters_are_refused(bad):
    for reader in (shell_word, directive_value):
        with pytest.raises(RecipeError, match="takes no line break"):
            reader(bad)


def test_directives_are_quoted_for_slurm_and_keep_their_per_cents():
    assert directive_value("/runs/x-1/logs", "-%j.log") == "/runs/x-1/logs-%j.log"
    assert directive_value('a b"%j', "-%j.log") == '"a b\\"%%j-%j.log"'
    with pytest.raises(RecipeError, match="backslash"):
        directive_value("a\\b")


def test_the_script_in_the_documentation_is_what_is_made():
    made = Job(
        name="alpaca-dpo-dpo", about="Stage dpo of alpaca-dpo.", folder=Path("/shared/me/runs/alpaca-dpo"),
        start_folder=Path("/shared/me"), program=("trivet", "run"), options=(("--only", "dpo"),), label="dpo",
    )  # fmt: skip
    site = Site(
        nodes=2, gpus_per_node=1, cpus_per_task=8, time="4:00:00", partition="gpu", modules=("cuda/12.4",)
    )  # fmt: skip
    assert f"```bash\n{render(made, site)}```\n" in (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")


def test_the_site_file_in_the_documentation_can_be_read(tmp_path):
    """And it names every key there is."""
    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "site.yaml").write_text(block)
    found = load_site(tmp_path / "site.yaml", {})
    assert found.gpus_per_node == 4 and found.model_fields_set == set(Site.model_fields) - {"qos", "nodes"}


@pytest.fixture
def job(tmp_path, fakes, monkeypatch):
    """Runs a rendered script in bash as Slurm would, with srun and scontrol that write down their calls."""
    fakes.add("srun", SRUN)
    fakes.add("scontrol", "if sys.argv[1] == 'show': print('node1\\nnode2')")
    monkeypatch.setenv("SLURM_JOB_ID", "20007")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))

    def start(site=None, folder="run", **more):
        run = tmp_path / folder
        (run / "slurm").mkdir(parents=True, exist_ok=True)
        made = Job(name="tiny-sft", about="x", folder=run, start_folder=tmp_path, program=("python", "run.py"), **more)
        path = tmp_path / "job.sbatch"
        path.write_text(render(made, site or Site()))
        return subprocess.Popen(["bash", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def finish(process):
    out, _ = process.communicate(timeout=30)
    return process.returncode, out


def requeued(fakes):
    return [call for call in fakes.of("scontrol") if call[0] == "requeue"]


@pytest.mark.parametrize(
    ("left", "code", "again"), [(0, 0, 0), (2, 2, 0), (65, 65, 0), (75, 0, 1), (1, 1, 0), (-9, 9, 0)]
)
def test_a_job_is_requeued_on_75_alone_and_ends_with_the_runs_code(job, fakes, monkeypatch, left, code, again):
    """-9: killed outright, nothing left in writing."""
    monkeypatch.setenv("CODE", str(left))
    found, out = finish(job())
    assert (found, len(requeued(fakes))) == (code, again), out


def test_an_outcome_of_an_earlier_attempt_is_not_this_ones(job, fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("CODE", "-9")
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    (tmp_path / "run" / "slurm" / "exit-20007.json").write_text('{"code": 75, "sentence": ""}\n')
    assert finish(job())[0] == 9 and requeued(fakes) == []


def test_requeueing_ends_some_time(job, fakes, monkeypatch):
    monkeypatch.setenv("CODE", "75")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert finish(job(Site(max_requeues=3)))[0] == 75 and requeued(fakes) == []
    assert finish(job(Site(max_requeues=4)))[0] == 0 and requeued(fakes) == [["requeue", "20007"]]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_handed_on_waited_for_and_requeued(job, fakes, tmp_path, number):
    process = job()
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(number)
    code, out = finish(process)
    assert code == 0 and requeued(fakes) == [["requeue", "20007"]], out


def test_a_signal_before_anything_listens_is_not_a_failure(job, fakes, tmp_path):
    """The step dies of it without a word, as a Python that is still starting does."""
    fakes.add("srun", "import time\nopen(os.environ['STARTED'], 'w').close()\ntime.sleep(20)")
    process = job()
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    code, out = finish(process)
    assert code == 0 and len(requeued(fakes)) == 1, out
    for place in ("slurm/exit-20007.json", "exit.json"):
        assert json.loads((tmp_path / "run" / place).read_text())["code"] == 75, "the last word on the run"


def test_hostile_names_reach_the_command_as_they_are(job, fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("CODE", "0")
    fakes.add("module")
    site = Site(environment={"FREE": HOSTILE}, modules=(HOSTILE,), container=("exec", HOSTILE))
    assert finish(job(site, HOSTILE, options=(("--store", HOSTILE),)))[0] == 0
    run = str(tmp_path / HOSTILE)
    [call] = fakes.of("srun")
    assert call[-7:] == ["python", "run.py", f"{run}/slurm/recipe.yaml", "--output-dir", run, "--store", HOSTILE]
    assert fakes.of("module") == [["load", HOSTILE]]
    assert "pwned" not in [path.name for path in tmp_path.rglob("*")]


def test_an_element_of_an_array_has_its_own_run_directory(job, fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("CODE", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    (tmp_path / "a b-3" / "slurm").mkdir(parents=True)
    assert finish(job(folder="a b", elements=4))[0] == 0
    [call] = fakes.of("srun")
    assert call[call.index("--output-dir") + 1] == str(tmp_path / "a b-3")
    assert (tmp_path / "a b-3" / "slurm" / "exit-20007.json").is_file()


def test_one_process_needs_no_ranks_and_several_learn_theirs_from_srun(job, fakes, monkeypatch):
    monkeypatch.setenv("CODE", "0")
    finish(job())
    assert "bash" not in fakes.of("srun")[0] and fakes.of("scontrol") == []
    fourth = "{**os.environ, 'SLURM_PROCID': '3', 'SLURM_LOCALID': '1'}"
    fakes.add("srun", f"import subprocess; subprocess.run(sys.argv[sys.argv.index('bash'):], env={fourth})")
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    fakes.add("python", f"print([os.environ[name] for name in {names!r}.split()])")
    _, out = finish(job(Site(nodes=2, gpus_per_node=2, cpus_per_task=5)))
    assert out.strip() == "['3', '1', '4', '2', 'node1', '10007']"
    call = fakes.of("srun")[1]
    assert {"--kill-on-bad-exit=1", "--wait=60", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=5"} <= set(call)
