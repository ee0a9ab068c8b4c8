"""What runs again after an edit and what does not; forced, left out, shared and interrupted stages."""

from __future__ import annotations

import json
import shutil

import pytest

from pipeline.artefact import MANIFEST
from pipeline.console import Console
from pipeline.errors import DataError, RecipeError
from pipeline.ledger import Ledger, previous_keys, run_orders
from pipeline.models.source import identify
from pipeline.plan import Decision, Node, decide, make_nodes
from pipeline.recipe import loads_recipe
from pipeline.runtime import Ranks
from pipeline.supervisor import RunOptions, Supervisor

TEXT = """\
name: plan-test
seed: 17
output_dir: OUT/run
model:
  base: builtin:tiny-llama
  adapter: {type: lora, r: 4, alpha: 8}
data:
  sft:        {sources: [{path: DATA/sft.jsonl}], max_length: 256}
  preference: {sources: [{path: DATA/pairs.jsonl, limit: 8}], max_length: 256}
  chat_template: auto
stages:
  sft: {learning_rate: 1.0e-2, global_batch_size: 8}
  dpo: {beta: 0.1, learning_rate: 1.0e-2, global_batch_size: 8}
evaluation: {prompts: 8, max_new_tokens: 8}
"""
ALL = {"sft", "dpo", "evaluation"}
LATER = {"dpo", "evaluation"}
LAST = {"evaluation"}


@pytest.fixture
def here(tmp_path):
    """Data files and room for runs."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"instruction": f"say {n}", "output": f"{n}"} for n in range(20)]
    (data / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(20)]
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return tmp_path


def load(here, text=TEXT, *overrides):
    return loads_recipe(text.replace("DATA", f"{here}/data").replace("OUT", str(here)), "plan.yaml", overrides)


def nodes_of(here, text=TEXT, *overrides, store=None) -> list[Node]:
    recipe = load(here, text, *overrides).recipe
    base = identify(recipe.model.base, recipe.model.revision)
    return make_nodes(recipe, base, store or here / ".store")


def keys(here, text=TEXT, *overrides) -> dict[str, str]:
    return {node.name: node.key for node in nodes_of(here, text, *overrides)}


def seal(*nodes) -> None:
    """Stand in for a finished stage: what the planner looks for is the manifest."""
    for node in nodes:
        node.folder.mkdir(parents=True, exist_ok=True)
        (node.folder / MANIFEST).write_text("{}")


def said(decisions: list[Decision]) -> dict[str, tuple[str, str]]:
    return {decision.node.name: (decision.action, decision.reason) for decision in decisions}


def replace(old: str, new: str):
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


EDITS = {
    "comment": (replace("seed: 17", "seed: 17   # lucky\n# more"), set()),
    "white space": (replace("seed: 17", "\n\nseed:    17  "), set()),
    "keys in another order": (replace("{beta: 0.1, learning_rate: 1.0e-2", "{learning_rate: 1.0e-2, beta: 0.1"), set()),
    "blocks in another order": (lambda text: text.replace("seed: 17\n", "") + "seed: 17\n", set()),
    "another spelling of a number": (replace("learning_rate: 1.0e-2", "learning_rate: 0.01"), set()),
    "a default written out": (replace("{beta: 0.1,", "{beta: 0.1, loss_type: sigmoid, label_smoothing: 0.0,"), set()),
    "the default start written out": (replace("{beta: 0.1,", "{beta: 0.1, policy: sft,"), set()),
    "name": (replace("name: plan-test", "name: renamed"), set()),
    "output_dir": (replace("OUT/run", "OUT/elsewhere"), set()),
    "tracking": (lambda text: text + "tracking: {wandb: {project: x}}\n", set()),
    "dpo.beta": (replace("beta: 0.1", "beta: 0.2"), LATER),
    "dpo.loss_type": (replace("{beta: 0.1,", "{beta: 0.1, loss_type: ipo,"), LATER),
    "dpo from the base": (replace("{beta: 0.1,", "{beta: 0.1, policy: base,"), LATER),
    "sft.learning_rate": (replace("sft: {learning_rate: 1.0e-2", "sft: {learning_rate: 1.0e-3"), ALL),
    "sft.epochs": (replace("sft: {", "sft: {epochs: 2, "), ALL),
    "sft.trainer_args": (replace("sft: {", "sft: {trainer_args: {adam_beta2: 0.9}, "), ALL),
    "seed": (replace("seed: 17", "seed: 18"), ALL),
    "adapter rank": (replace("r: 4", "r: 8"), ALL),
    "full fine-tuning": (replace("{type: lora, r: 4, alpha: 8}", "none"), ALL),
    "dtype": (replace("model:\n", "model:\n  dtype: bfloat16\n"), ALL),
    "chat_template": (replace("chat_template: auto", "chat_template: alpaca"), ALL),
    "sft max_length": (replace("sft.jsonl}], max_length: 256", "sft.jsonl}], max_length: 200"), ALL),
    "preference limit": (replace("limit: 8", "limit: 9"), LATER),
    "preference max_length": (replace("limit: 8}], max_length: 256", "limit: 8}], max_length: 200"), LATER),
    "preference format": (replace("limit: 8", "format: preference, limit: 8"), LATER),
    "held out of both sets": (replace("limit: 8}], ", "limit: 8}], eval_fraction: 0.2, "), ALL),
    "evaluation.prompts": (replace("prompts: 8", "prompts: 9"), LAST),
    "evaluation.max_new_tokens": (replace("max_new_tokens: 8", "max_new_tokens: 9"), LAST),
    "evaluation.judge": (replace("{prompts: 8", "{judge: {url: http://a, model: m}, prompts: 8"), LAST),
    "prompts of evaluation": (replace("  chat_template", "  prompts: {from: sft}\n  chat_template"), LAST),
    "length of evaluation's prompts": (
        replace("  chat_template", "  prompts: {max_prompt_length: 9}\n  chat_template"),
        LAST,
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_exactly_what_it_touches(here, edit):
    change, expected = EDITS[edit]
    seal(*nodes_of(here))
    decisions = decide(nodes_of(here, change(TEXT)), keys(here), ())
    assert {decision.node.name for decision in decisions if decision.action == "run"} == expected
    for decision in decisions:
        assert decision.reason in {
            "finished earlier", "its settings or data changed", "sft changed", "dpo changed", "sft, dpo changed",
        }  # fmt: skip


def test_where_a_judge_is_asked_is_no_part_of_what_it_says(here):
    def judged(**changes):
        judge = {"url": "http://a", "model": "m", "timeout": 5, "attempts": 2, "parallel": 1, **changes}
        return keys(here, TEXT, f"evaluation.judge={json.dumps(judge)}")["evaluation"]

    for change in ({"url": "http://b"}, {"timeout": 9}, {"attempts": 3}, {"parallel": 2}):
        assert judged(**change) == judged()
    assert judged(model="n") != judged() and judged(prompts=7) != judged()


def test_a_judges_questions_count_with_their_content(here):
    def judged(**changes):
        judge = {"url": "http://a", "model": "m", **changes}
        return keys(here, TEXT, f"evaluation.judge={json.dumps(judge)}")

    for name, turn in (("one", "a"), ("same", "a"), ("other", "b")):
        (here / name).write_text(json.dumps({"question_id": 1, "turns": [turn]}))
    one, same, other = (judged(questions=str(here / name)) for name in ("one", "same", "other"))
    assert one == same and one["evaluation"] != other["evaluation"] != judged()["evaluation"]
    assert judged(questions=str(here / "one"), question_tokens=5)["evaluation"] != one["evaluation"]
    assert judged(question_tokens=5) == judged(), "without questions nothing is answered so far"
    assert {name: key for name, key in one.items() if name != "evaluation"} == {
        name: key for name, key in judged().items() if name != "evaluation"
    }
    with pytest.raises(DataError, match="cannot be read"):
        judged(questions=str(here / "missing"))


def test_a_command_line_change_is_an_edit_like_any_other(here):
    assert keys(here, TEXT, "stages.dpo.beta=0.2") == keys(here, TEXT.replace("beta: 0.1", "beta: 0.2"))
    assert keys(here, TEXT, "stages.dpo.beta=0.1") == keys(here)


@pytest.mark.parametrize(("name", "expected"), [("sft.jsonl", ALL), ("pairs.jsonl", LATER)])
def test_one_byte_in_a_data_file_reruns_its_stages(here, name, expected):
    before = keys(here)
    path = here / "data" / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"say 7", b"say 8", 1))
    after = keys(here)
    assert {stage for stage in after if after[stage] != before[stage]} == expected
    path.write_bytes(content)
    assert keys(here) == before


def test_data_that_moves_or_is_renamed_or_touched_reruns_nothing(here):
    before = keys(here)
    (here / "moved").mkdir()
    for old, new in (("sft.jsonl", "demonstrations.jsonl"), ("pairs.jsonl", "pairs.jsonl")):
        shutil.copy(here / "data" / old, here / "moved" / new)
    shutil.rmtree(here / "data")
    assert keys(here, TEXT.replace("DATA", f"{here}/moved").replace("sft.jsonl", "demonstrations.jsonl")) == before


def test_a_chat_template_file_counts_by_its_content(here):
    for name, text in (("a", "{{ messages }}"), ("b", "{{ messages }}"), ("c", "{{ messages }}.")):
        (here / f"{name}.jinja").write_text(text)
    found = [keys(here, TEXT.replace("template: auto", f"template: {here}/{name}.jinja")) for name in "abc"]
    assert found[0] == found[1]
    assert not set(found[0].values()) & set(found[2].values())


def test_a_data_file_that_is_missing_is_said_before_anything_runs(here):
    (here / "data" / "pairs.jsonl").rename(here / "data" / "pars.jsonl")
    with pytest.raises(DataError, match=r"did you mean .*pars.jsonl"):
        nodes_of(here)


def test_other_weights_under_the_same_name_rerun_everything(here):
    """The base counts by its content: a folder whose weights were replaced is another model."""
    folder = here / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    text = TEXT.replace("builtin:tiny-llama", str(folder))
    before = keys(here, text)
    (folder / "README.md").write_text("no weight")
    assert keys(here, text) == before
    (folder / "model.safetensors").write_text("{ }")
    assert not set(keys(here, text).values()) & set(before.values())


def test_recipes_with_one_sft_stage_share_its_artefact(here):
    """Other name, other folder, other later stages: one key, one place in the store."""
    other = TEXT.replace("plan-test", "other").replace("OUT/run", "OUT/other").replace("beta: 0.1", "beta: 0.5")
    one, two = nodes_of(here), nodes_of(here, other)
    assert one[0].folder == two[0].folder and one[0].key == two[0].key
    assert one[1].key != two[1].key and one[2].key != two[2].key
    seal(one[0])
    assert said(decide(two, {}, ()))["sft"] == ("skip", "made by another run with the same settings and data")


def test_a_stage_under_another_name_is_the_same_stage(here):
    named = TEXT.replace("  dpo: {", "  dpo_b01: {kind: dpo, ")
    assert keys(here, named)["dpo_b01"] == keys(here)["dpo"]


def test_stages_that_differ_in_one_setting_have_folders_of_their_own(here):
    text = TEXT.replace("  dpo: {beta: 0.1", "  dpo_b05: {kind: dpo, beta: 0.5}\n  dpo: {beta: 0.1")
    nodes = {node.name: node for node in nodes_of(here, text)}
    assert list(nodes) == ["sft", "dpo_b05", "dpo", "evaluation"]
    assert len({node.folder for node in nodes.values()}) == 4
    assert nodes["dpo"].parents == nodes["dpo_b05"].parents == {"policy": "sft"}
    assert nodes["dpo"].key == keys(here)["dpo"]


def test_processes_and_places_play_no_part_in_a_key(here, monkeypatch):
    before = keys(here)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.chdir(here)
    assert keys(here) == before
    assert {node.name: node.key for node in nodes_of(here, store=here / "elsewhere")} == before


def test_an_adapter_on_all_layers_has_the_key_it_always_had(here):
    """Older artefacts stay valid; how much of what lower layers give is kept changes no result."""
    assert "layers" not in json.dumps(nodes_of(here)[0].settings["model"])
    assert keys(here) == keys(here, TEXT, "model.adapter.layers=all", "model.adapter.trunk_cache_gib=3")
    changed = keys(here, TEXT, "model.adapter.layers=top-1")
    assert all(changed[name] != key for name, key in keys(here).items())


def test_an_evaluation_of_all_policies_has_the_key_it_always_had(here):
    assert "policies" not in nodes_of(here)[-1].settings["evaluation"]
    assert keys(here, TEXT, "evaluation.policies=[]") == keys(here)
    part = keys(here, TEXT, "evaluation.policies=[dpo]")
    assert {name for name, key in part.items() if key != keys(here)[name]} == {"evaluation"}


def test_no_evaluation_asked_for_is_no_node(here):
    assert [node.name for node in nodes_of(here, TEXT, "evaluation.tasks=[]")] == ["sft", "dpo"]


def test_reasons_follow_what_happened(here):
    sft, dpo, evaluation = nodes_of(here)
    assert said(decide([sft, dpo, evaluation], {}, ())) == {name: ("run", "not made yet") for name in ALL}
    seal(sft)
    (dpo.folder / "checkpoints").mkdir(parents=True)
    (evaluation.folder / "work").mkdir(parents=True)
    assert said(decide([sft, dpo, evaluation], keys(here), ())) == {
        "sft": ("skip", "finished earlier"),
        "dpo": ("run", "was interrupted"),
        "evaluation": ("run", "was interrupted"),
    }


def test_an_edit_upstream_names_the_stage_that_changed(here):
    seal(*nodes_of(here))
    changed = nodes_of(here, TEXT, "seed=18")
    assert said(decide(changed, keys(here), ())) == {
        "sft": ("run", "its settings or data changed"),
        "dpo": ("run", "sft changed"),
        "evaluation": ("run", "sft, dpo changed"),
    }


def test_forcing_a_stage_remakes_all_that_stands_on_it(here):
    nodes = nodes_of(here)
    seal(*nodes)
    assert said(decide(nodes, keys(here), ["sft"])) == {
        "sft": ("run", "forced"),
        "dpo": ("run", "sft is made anew"),
        "evaluation": ("run", "sft, dpo are made anew"),
    }
    assert said(decide(nodes, keys(here), ["dpo"])) == {
        "sft": ("skip", "finished earlier"),
        "dpo": ("run", "forced"),
        "evaluation": ("run", "dpo is made anew"),
    }


def test_force_reaches_through_a_chain_of_stages(here):
    text = TEXT.replace("evaluation:", "  dpo_2: {kind: dpo, policy: dpo}\nevaluation:")
    text = text.replace("{prompts: 8,", "{tasks: [], prompts: 8,")
    nodes = nodes_of(here, text)
    seal(*nodes)
    assert said(decide(nodes, keys(here, text), ["sft"]))["dpo_2"] == ("run", "dpo is made anew")


def supervisor(here, text=TEXT, **options) -> Supervisor:
    return Supervisor(load(here, text), RunOptions(**options), Ranks(0, 0, 1), Console(None))


def test_planning_makes_and_changes_nothing(here):
    before = sorted(here.rglob("*"))
    assert [decision.action for decision in supervisor(here).plan()] == ["run"] * 3
    assert sorted(here.rglob("*")) == before


def test_until_leaves_the_rest(here):
    plan = said(supervisor(here, until="dpo").plan())
    assert {name: action for name, (action, _) in plan.items()} == {"sft": "run", "dpo": "run", "evaluation": "leave"}
    assert plan["evaluation"] == ("leave", "left out by --until dpo")


def test_only_needs_what_it_stands_on(here):
    with pytest.raises(RecipeError, match=r"--only dpo needs stage sft, which is not finished.*--until sft"):
        supervisor(here, only="dpo").plan()
    assert said(supervisor(here, only="sft").plan())["dpo"] == ("leave", "left out by --only sft")
    seal(nodes_of(here)[0])
    plan = said(supervisor(here, only="dpo").plan())
    assert {name: action for name, (action, _) in plan.items()} == {"sft": "leave", "dpo": "run", "evaluation": "leave"}


@pytest.mark.parametrize("options", [{"only": "sff"}, {"until": "sff"}, {"force": ("sff",)}])
def test_a_stage_that_is_not_there_is_named_with_those_that_are(here, options):
    with pytest.raises(RecipeError, match="no stage 'sff' in this recipe; there are sft, dpo, evaluation"):
        supervisor(here, **options).plan()


@pytest.mark.parametrize("options", [{"only": "dpo", "force": ("sft",)}, {"until": "sft", "force": ("dpo",)}])
def test_force_of_a_stage_that_is_left_out_is_refused(here, options):
    seal(*nodes_of(here))
    with pytest.raises(RecipeError, match="leaves out"):
        supervisor(here, **options).plan()


def test_store_beside_the_run_inside_it_or_where_it_is_told(here):
    def folder(**options):
        return supervisor(here, **options).plan()[0].node.folder.parent

    assert folder() == here / ".store"
    assert folder(reuse=False) == here / "run" / ".store"
    assert folder(store=str(here / "s")) == here / "s"


def test_the_ledger_keeps_what_was_left_out(here):
    """A run of one stage must not forget the others: their keys tell the next run what has changed."""
    seal(nodes_of(here)[0])
    decisions = supervisor(here, only="dpo").plan()
    ledger = Ledger(here, "plan-test", ["trivet"], {})
    ledger.plan(decisions)
    ledger.update("dpo", status="done")
    assert [(entry["name"], entry["status"]) for entry in ledger.stages] == [
        ("sft", "skipped"),
        ("dpo", "done"),
        ("evaluation", "pending"),
    ]
    assert previous_keys(here) == keys(here)


def test_runs_are_counted_as_they_begin(tmp_path):
    for name in ("b", "a", "c", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        Ledger(tmp_path / name, name, [], {}).plan([])
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    assert {path.name: order for path, order in run_orders(tmp_path).items()} == {"a": 2, "b": 4, "c": 3, "torn": 0}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stages": 1}', '{"stages": [{}]}', "null"])
def test_a_torn_ledger_counts_as_none(here, text):
    (here / "run.json").write_text(text)
    assert previous_keys(here) == {}
