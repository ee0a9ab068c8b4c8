"""Slips that people make in recipes, and what the answer to each must contain: place, key, what to write instead."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipe.load import loads_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.stage_settings import STAGE_KINDS
from pipeline.recipe.vocabulary import keys_of, schema_keys, unknown_key

GOOD = """\
name: demo
seed: 17
model:
  base: builtin:smollm2-135m-instruct
  adapter: {type: lora, r: 16, alpha: 32}
data:
  sft: {sources: [{path: builtin:alpaca_sample}], max_length: 512}
  preference:
    sources:
      - path: builtin:preference_sample
        limit: 100
  prompts: {from: preference}
stages:
  sft: {learning_rate: 2.0e-4, epochs: 1}
  dpo:
    beta: 0.1
    learning_rate: 5.0e-5
evaluation:
  tasks: [perplexity, kl]
tracking:
"""

SFT_LINE = "sft: {learning_rate: 2.0e-4, epochs: 1}"
# text in GOOD -> its replacement, and fragments of the answer
MISTAKES: dict[str, tuple[str, str, list[str]]] = {
    "typo in a stage": ("beta: 0.1", "betta: 0.1", ["r.yaml:16: stages.dpo.betta: unknown key", "'beta'"]),
    "typo at the top": ("seed: 17", "sed: 17", ["r.yaml:2: sed: unknown key", "'seed'"]),
    "typo in a flow block": ("alpha: 32", "alhpa: 32", ["r.yaml:5: model.adapter.alhpa: ", "'alpha'"]),
    "typo in a list entry": ("limit: 100", "limt: 100", ["r.yaml:11: data.preference.sources.0.limt", "'limit'"]),
    "typo of a block": ("evaluation:", "evalution:", ["r.yaml:18: evalution: ", "'evaluation'"]),
    "dash for underscore": (
        "learning_rate: 5",
        "learning-rate: 5",
        [":17: stages.dpo.", "'learning_rate'"],
    ),
    "capital letters": ("seed: 17", "Seed: 17", ["r.yaml:2: Seed", "'seed'"]),
    "dpo key in an sft block": ("epochs: 1", "beta: 0.1", ["r.yaml:14: stages.sft.beta", "belongs to a dpo stage"]),
    "stage key at the top": ("seed: 17", "learning_rate: 1", ["r.yaml:2: learning_rate", "a stage's block"]),
    "data key in a stage": ("beta: 0.1", "eval_fraction: 0.1", [":16: stages.dpo.eval_fraction", "`data.sft`"]),
    "model key at the top": ("seed: 17", "dtype: auto", ["r.yaml:2: dtype", "it belongs to `model`"]),
    "typo of another block's key": ("seed: 17", "quantisation: nf4", ["r.yaml:2: ", "'quantization'", "`model`"]),
    "library's word for epochs": ("epochs: 1", "num_train_epochs: 1", [":14: stages.sft.num_train_epochs", "'epochs'"]),
    "library's word elsewhere": ("seed: 17", "lora_r: 8", ["r.yaml:2: lora_r", "'model.adapter.r'"]),
    "lr": ("learning_rate: 5", "lr: 5", ["r.yaml:17: stages.dpo.lr", "'learning_rate'"]),
    "tokens of a trainer that counts rows": (
        "beta: 0.1",
        "engine: trl\n    tokens_per_device: 512",
        [":17: stages.dpo.tokens_per_device", "knows no such thing"],
    ),
    "kept by a trainer that keeps nothing": (
        "beta: 0.1",
        "engine: trl\n    precompute_reference: true",
        [":17: stages.dpo.precompute_reference", "remove it, or engine: trl"],
    ),
    "library's word for a kept reference": (
        "beta: 0.1",
        "precompute_ref_log_probs: true",
        [":16: stages.dpo.precompute_ref_log_probs", "'precompute_reference'"],
    ),
    "accumulation": ("beta: 0.1", "gradient_accumulation_steps: 4", [":16: ", "follows from global_batch_size"]),
    "remote code": ("seed: 17", "trust_remote_code: true", ["r.yaml:2: ", "never runs code"]),
    "key with a line break": ("limit: 100", '"a\\nb": 1', [":11: data.preference.sources.0.a\\nb: unknown key"]),
    "value on its own line": ("beta: 0.1", "beta:\n      x", ["r.yaml:17: stages.dpo.beta: ", "found 'x'"]),
    "typo that looks like a secret": ("tasks: [perplexity, kl]", "max_new_token: 3", [":19: ", "'max_new_tokens'"]),
    "nonsense key": (
        "limit: 100",
        "zzz: 1",
        [":11: ", "keys here are path, format, map, on_bad_row, revision, split, limit, "],
    ),
    "hub token": ("limit: 100", "hub_token: hf_abc", [":11: data.preference.sources.0.hub_token", "environment"]),
    "api key": ("tracking:", "tracking: {wandb: {api_key: abc}}", [":20: tracking.wandb.api_key", "environment"]),
    "password": ("seed: 17", "password: x", ["r.yaml:2: password", "environment"]),
    "secret in trainer_args": (
        "beta: 0.1",
        "trainer_args: {hub_token: abc}",
        ["trainer_args.hub_token", "environment"],
    ),
    "word for a number": ("limit: 100", "limit: abc", [":11: ", "a whole number above 0, found 'abc'"]),
    "quoted number": ("beta: 0.1", "beta: '1e-1'", [":16: ", "a number above 0", "'1e-1'", "remove the quotes"]),
    "number with a comma": ("beta: 0.1", "beta: 0,1", [":16: stages.dpo.beta: expected a number above 0, found '0,1'"]),
    "zero rows": ("limit: 100", "limit: 0", [":11: data.preference.sources.0.limit", "above 0, found 0"]),
    "negative rate": ("5.0e-5", "-5.0e-5", [":17: stages.dpo.learning_rate", "above 0, found -5.0e-5"]),
    "infinite rate": ("5.0e-5", ".inf", [":17: stages.dpo.learning_rate", "found .inf"]),
    "half a row": ("limit: 100", "limit: 1.5", [":11: ", "a whole number above 0, found 1.5"]),
    "whole number with a dot": ("limit: 100", "limit: 1e2", [":11: ", "found 1e2; write 100"]),
    "truth value for a number": (
        "epochs: 1",
        "epochs: true",
        [":14: stages.sft.epochs", "found true"],
    ),
    "seed too large": ("seed: 17", "seed: 99999999999", ["r.yaml:2: seed", "from 0 to below 2147483648"]),
    "fraction above one": ("max_length: 512", "eval_fraction: 5", [":7: data.sft.eval_fraction", "from 0 to below 1"]),
    "unknown literal": ("type: lora", "type: lorra", [":5: model.adapter.type", "one of lora, dora", "'lora'"]),
    "torch's word for a type": ("base: b", "dtype: bf16 #", [":4: model.dtype", "one of auto, float32", "'bfloat16'"]),
    "off as text": ("base: b", "quantization: off #", [":4: model.quantization", "YAML reads off as false", "'none'"]),
    "no adapter": ("adapter: {type: lora, r: 16, alpha: 32}", "adapter: no", [":5: model.adapter", "'none'"]),
    "empty adapter": ("adapter: {type: lora, r: 16, alpha: 32}", "adapter:", [":5: model.adapter", "'none'"]),
    "name that is a truth value": ("name: demo", "name: on", ["r.yaml:1: name", "YAML reads on as true", "quote it"]),
    "revision that is a number": ("base: b", "revision: 1234567 #", [":4: model.revision", "quote it", "'1234567'"]),
    "revision in the form of a float": (
        "base: b",
        "revision: 12345e6 #",
        [":4: model.revision", "quote it", "'12345e6'"],
    ),
    "name that is a date": ("name: demo", "name: 2026-01-31", ["r.yaml:1: name", "as a date; quote it"]),
    "text for a list": ("[perplexity, kl]", "kl", [":19: evaluation.tasks", "a list", "[kl]"]),
    "unknown task": ("[perplexity, kl]", "[perplexity, kll]", [":19: evaluation.tasks.1", "'kl'"]),
    "value for a block": (SFT_LINE, "sft: 3", [":14: stages.sft", "a block of keys"]),
    "list for stages": (
        "sft: {learning_rate: 2.0e-4, epochs: 1}\n  dpo:",
        "- sft\n  - dpo:",
        ["stages", "a block of keys"],
    ),
    "no name": ("name: demo", "", ["name: is missing"]),
    "no sources": ("sources: [{path: builtin:alpaca_sample}], ", "", [":7: data.sft.sources: is missing"]),
    "empty sources": (
        "[{path: builtin:alpaca_sample}]",
        "[]",
        [":7: data.sft.sources", "at least one entry", "empty list"],
    ),
    "source without a path": (
        "- path: builtin:preference_sample\n        limit",
        "- limit",
        [":10: ", ".path: is missing"],
    ),
    "name with a slash": ("name: demo", "name: a/b", ["r.yaml:1: name", "a name of letters", "'a/b'"]),
    "stage name in capitals": ("  dpo:", "  DPO-1:", [":15: stages.DPO-1", "dpo"]),
    "own stage name without a kind": (
        "  dpo:",
        "  second:",
        [":15: stages.second", "sft, reward, ppo, dpo", "`kind:`"],
    ),
    "unknown kind": (
        "beta: 0.1",
        "kind: dpoo",
        [":16: stages.dpo.kind", "the kinds are sft, reward, ppo, dpo", "'dpo'"],
    ),
    "name of our own code": ("{from: preference}", "{from_: sft}", [":12: data.prompts.from_", "'from'"]),
    "method that there is not": ("  dpo:", "  ppo2:", [":15: stages.ppo2", "sft, reward, ppo, dpo", "'ppo'"]),
    "kind that there is not": (
        "  dpo:",
        "  rm: {kind: rm}\n  dpo:",
        [":15: stages.rm.kind: there is no stage kind 'rm'", "sft, reward, ppo, dpo"],
    ),
    "ppo without a reward": ("  dpo:", "  ppo:\n  dpo:", [":15: stages.ppo: has nothing to optimise"]),
    "ppo key in a dpo block": (
        "beta: 0.1",
        "clip_range: 0.1",
        [":16: stages.dpo.clip_range", "belongs to a ppo stage"],
    ),
    "ppo's word in a dpo block": ("beta: 0.1", "kl_coef: 0.1", [":16: stages.dpo.kl_coef", "'beta'"]),
    "reward given as a word": (
        "  dpo:",
        "  ppo: {rewards: rules}\n  dpo:",
        [":15: stages.ppo.rewards: expected a list, found 'rules'; write a list: [{from: rules}]"],
    ),
    "rewards given as words": (
        "  dpo:",
        "  ppo: {rewards: [rules]}\n  dpo:",
        [":15: stages.ppo.rewards.0: expected a block of keys, found 'rules'; write {from: rules}"],
    ),
    "reward given as a block": (
        "  dpo:",
        "  ppo: {rewards: {from: rules}}\n  dpo:",
        [":15: stages.ppo.rewards: expected a list", "[{...}]"],
    ),
    "typo in a reward": (
        "  dpo:",
        "  ppo: {rewards: [{from: rules, wieght: 2}]}\n  dpo:",
        [":15: stages.ppo.rewards.0.wieght", "'weight'"],
    ),
    "discount above one": (
        "  dpo:",
        "  ppo: {gamma: 1.5, rewards: [{from: rules}]}\n  dpo:",
        [":15: stages.ppo.gamma: expected a number above 0 and at most 1, found 1.5"],
    ),
    "lambda above one": (
        "  dpo:",
        "  ppo: {gae_lambda: 2, rewards: [{from: rules}]}\n  dpo:",
        [":15: stages.ppo.gae_lambda: expected a number from 0 to 1, found 2"],
    ),
    "whole of the memory": (
        "  dpo:",
        "  ppo: {vllm: {gpu_memory_utilization: 1}, rewards: [{from: rules}]}\n  dpo:",
        [":15: stages.ppo.vllm.gpu_memory_utilization: expected a number above 0 and below 1, found 1"],
    ),
    "key of a block in a stage": ("beta: 0.1", "min_accuracy: 1", [":16: stages.dpo.min_acc", "`gate` of a ppo stage"]),
    "duplicate key": ("beta: 0.1", "beta: 0.1\n    beta: 0.2", [":17: stages.dpo.beta", "already given on line 16"]),
    "duplicate on one line": ("r: 16", "r: 16, r: 8", [":5: model.adapter.r", "already given on the same line"]),
    "wandb left empty": ("tracking:", "tracking:\n  wandb:", [":21: tracking.wandb: is empty", "write {}", "null"]),
    "library type": ("[perplexity, kl]", "!!python/name:os.system", ["r.yaml:19:10: ", "tags are not allowed"]),
    "anchor": ("[perplexity, kl]", "&x [kl]", ["r.yaml:19:10: ", "anchors and aliases"]),
    "merge key": ("beta: 0.1", "<<: {beta: 0.1}", [":16: stages.dpo", "merge keys"]),
    "key that is a truth value": ("beta: 0.1", "on: 0.1", [":16: stages.dpo", "a key must be text", "`on`"]),
    "tab": ("    beta: 0.1", "\tbeta: 0.1", ["r.yaml:16:1: ", "spaces, not tabs"]),
    "colon in a value": ("name: demo", "name: a: b", ["r.yaml:1:8: ", "quote a value"]),
    "open bracket": ("[perplexity, kl]", "[perplexity, kl", ["r.yaml:2", "line 19"]),
    "two documents": ("seed: 17", "seed: 17\n---", ["r.yaml:3:1: ", "one document"]),
}


def answer(text: str, *overrides: str) -> str:
    """Return the message with which a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        loads_recipe(text, "r.yaml", overrides)
    return str(caught.value)


def test_the_recipe_before_the_mistakes_is_good():
    assert list(loads_recipe(GOOD).recipe.stages) == ["sft", "dpo"]
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_placed_and_explained(mistake):
    old, new, fragments = MISTAKES[mistake]
    assert GOOD.count(old) >= 1
    message = answer(GOOD.replace(old, new, 1))
    lines = message.splitlines()
    assert len(lines) == 1, message
    assert lines[0].startswith("r.yaml:")
    assert [fragment for fragment in fragments if fragment not in lines[0]] == [], message
    for secret in ("hf_abc", "abc}"):
        assert secret not in message or mistake == "word for a number"


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_lines():
    text = GOOD.replace("beta: 0.1", "betta: 0.1").replace("seed: 17", "seed: x").replace("limit: 100", "limit: -1")
    message = answer(text.replace("r: 16", "r: 16, r: 8"), "evaluation.batch_size=0", "data.sft.max_length=no")
    places = [line.split(": ")[0] for line in message.splitlines()]
    assert places == [
        "r.yaml:2", "r.yaml:5", "r.yaml:11", "r.yaml:16",
        "--set evaluation.batch_size=0", "--set data.sft.max_length=no",
    ]  # fmt: skip


def test_a_stage_that_is_refused_leaves_no_second_problem():
    text = GOOD[: GOOD.index("  sft: {l")] + "  ppo2: {kl_coef: 1}\n"
    assert answer(text) == (
        "r.yaml:14: stages.ppo2: is not named after a stage kind (sft, reward, ppo, dpo); did you mean 'ppo'? "
        "Otherwise write `kind:` in it"
    )


def edits(word: str) -> set[str]:
    """Return all words one slip away: a letter lost, doubled, changed to a neighbour, inserted, or two swapped."""
    letters = string.ascii_lowercase + "_"
    splits = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    lost = {a + b[1:] for a, b in splits if b}
    swapped = {a + b[1] + b[0] + b[2:] for a, b in splits if len(b) > 1}
    changed = {a + letter + b[1:] for a, b in splits if b for letter in letters}
    inserted = {a + letter + b for a, b in splits for letter in letters}
    return (lost | swapped | changed | inserted) - {word, ""}


def test_the_suggestion_for_a_typo_is_right():
    """At least nine of ten one-letter typos over all keys, and of every key longer than three letters."""
    blocks = {key.block: [other.name for other in schema_keys() if other.block == key.block] for key in schema_keys()}
    right = total = 0
    for key in schema_keys():
        typos = sorted(edits(key.name) - set(blocks[key.block]))
        hits = sum(f"did you mean '{key.name}'?" in unknown_key(typo, blocks[key.block]) for typo in typos[::7])
        tried = len(typos[::7])
        right, total = right + hits, total + tried
        assert len(key.name) <= 3 or hits >= 0.9 * tried, key.path
    assert total > 2000
    assert right >= 0.9 * total


def test_all_keys_of_all_blocks_are_known():
    names = {key.path for key in schema_keys()}
    assert set(keys_of(Recipe)) <= names
    for kind, block in STAGE_KINDS.items():
        assert {f"stages.{kind}.{name}" for name in keys_of(block)} <= names
    assert {"model.adapter.r", "data.sft.sources[].path", "data.prompts.from", "tracking.wandb.entity"} <= names
    assert {"stages.ppo.rewards[].from", "stages.ppo.gate.min_accuracy", "stages.ppo.vllm.url"} <= names


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("stages.dpo.betta=0.2", ["--set stages.dpo.betta=0.2: unknown key, did you mean 'beta'?"]),
        ("stages.dpo.beta", ["--set stages.dpo.beta: has no value", "--set stages.dpo.beta=0.05"]),
        ("=3", ["--set =...: ", "not a key path", "--set stages.dpo.beta=0.05"]),
        ("stages..beta=3", ["not a key path"]),
        ("seed.x=3", ["--set seed.x=3: `seed` is 17, not a block"]),
        ("data.preference.sources.4.limit=3", ["a list with entries 0 to 0", "'4'"]),
        ("data.preference.sources.x.limit=3", ["a list with entries 0 to 0", "'x'"]),
        ("data.sft.max_length=[1,", ["--set data.sft.max_length=...:1:", "expected"]),
        ("data.sft.max_length=many", ["found 'many'", "a whole number above 0"]),
        ("stages.sft2.epochs=1", ["--set stages.sft2.epochs=1: stages.sft2: ", "`kind:`"]),
        ("tracking.wandb.api_key=hunter2", ["--set tracking.wandb.api_key=...: no secrets"]),
        ("tracking.wandb={api_key: hunter2}", ["--set tracking.wandb=...: tracking.wandb.api_key: no secrets"]),
        ("tracking.wandb=", ["is empty", "write {}"]),
        ("stages.dpo={beta: 1, beta: 2}", ["stages.dpo.beta: this key was already given"]),
        ("name=2026-01-31", ["as a date; quote it"]),
        ("stages.dpo.policy=!!python/name:os.system", ["tags are not allowed"]),
        (".".join("a" * 64) + "=1", ["not a key path"]),
    ],
)
def test_a_mistaken_override_is_placed_on_the_command_line(override, fragments):
    message = answer(GOOD, override)
    assert len(message.splitlines()) == 1, message
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "hunter2" not in message
    assert message.startswith("--set ")


@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 12),
    st.text(st.sampled_from("abr019.:-,#'\"[]{}&*!|>%@` \t\n\x07\x85\u2028\u00e9"), max_size=6)
    | st.sampled_from(["null", "!!int x", "<<: ", "? ", "- ", "{}", "[]", ".nan", "-.inf", "0x_", "1:30"]),
)
@settings(max_examples=200, deadline=None)
def test_no_slip_of_the_keyboard_ends_in_a_traceback(at, lost, typed):
    try:
        loads_recipe(GOOD[:at] + typed + GOOD[at + lost :], "r.yaml")
    except RecipeError as error:
        assert all(line.startswith("r.yaml") for line in str(error).splitlines())
        assert "Input should be" not in str(error)


@given(
    st.lists(st.sampled_from([*GOOD.replace(":", "").split(), "0", "1", "x", ""]), min_size=1, max_size=5),
    st.text(max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_no_override_ends_in_a_traceback(keys, value):
    try:
        loads_recipe(GOOD, "r.yaml", [f"{'.'.join(keys)}={value}"])
    except RecipeError as error:
        assert "Input should be" not in str(error)
        assert all(line.startswith(("--set ", "<recipe>", "r.yaml")) for line in str(error).splitlines())
