"""Masks token by token under ten chat templates: what is trained, what is context, what a cut leaves.

Most tokenizers here are one token per byte plus the control tokens of their family, made in the test. Expected ids
come from `tokens_of`, which knows no tokenizer library: it cuts a text at control tokens and numbers the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from data_prep.build import encode
from data_prep.chat import ChatFormatter, UnusableRow
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt
from data_prep.templates import NAMES, template_text
from pipeline.models.load import load_tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
ORIGIN = Origin(source="x", row=1)

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last_query=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- set ns.last_query = loop.index0 %}{%- endif %}{%- endfor %}{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}{%- set content = message.content %}{%- set reasoning = '' %}"
    "{%- if '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}"
    "{{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

Parts = list[tuple[str, int]]
"""A rendered conversation in pieces, each with 1 where its tokens are trained."""


@dataclass(frozen=True)
class Family:
    """A model family's control tokens and template, and the two-turn conversation of `TALK` as it must come out."""

    template: str
    specials: tuple[str, ...]
    """Control tokens, pad first."""
    eos: str
    parts: Parts
    bos: str | None = None
    adds_bos: bool = False
    """Whether the tokenizer puts BOS in front by itself, as those of Llama and Gemma do."""
    ends: tuple[str, ...] = ()
    """What must end an answer."""
    marks: tuple[str, ...] = ()
    """Added tokens that are not control tokens, as Qwen's <think>."""


TALK = ("Hi", "Yo", "More?", "No.")
"""User, assistant, user, assistant."""
FAMILIES = {
    "smollm2": Family(
        SMOLLM2, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>",
        [
            ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
             "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0),
            ("Yo<|im_end|>", 1),
            ("\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n", 0),
            ("No.<|im_end|>", 1),
        ],
        bos="<|im_start|>", ends=("<|im_end|>",),
    ),
    "llama2": Family(
        LLAMA2, ("<unk>", "<s>", "</s>"), "</s>",
        [("<s>[INST] Hi [/INST]", 0), (" Yo </s>", 1), ("<s>[INST] More? [/INST]", 0), (" No. </s>", 1)],
        bos="<s>", adds_bos=True, ends=("</s>",),
    ),
    "llama3": Family(
        LLAMA3,
        ("<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
         "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>",
        [
            ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
             "<|start_header_id|>assistant<|end_header_id|>\n\n", 0),
            ("Yo<|eot_id|>", 1),
            ("<|start_header_id|>user<|end_header_id|>\n\nMore?<|eot_id|>"
             "<|start_header_id|>assistant<|end_header_id|>\n\n", 0),
            ("No.<|eot_id|>", 1),
        ],
        bos="<|begin_of_text|>", adds_bos=True, ends=("<|eot_id|>", "<|end_of_text|>"),
    ),
    "gemma": Family(
        GEMMA, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>",
        [
            ("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", 0),
            ("Yo<end_of_turn>", 1),
            ("\n<start_of_turn>user\nMore?<end_of_turn>\n<start_of_turn>model\n", 0),
            ("No.<end_of_turn>", 1),
        ],
        bos="<bos>", adds_bos=True, ends=("<end_of_turn>", "<eos>"),
    ),
    "zephyr": Family(
        ZEPHYR, ("<unk>", "<s>", "</s>"), "</s>",
        [
            ("<|user|>\nHi</s>\n<|assistant|>\n", 0),
            ("Yo</s>", 1),
            ("\n<|user|>\nMore?</s>\n<|assistant|>\n", 0),
            ("No.</s>", 1),
        ],
        bos="<s>", adds_bos=True, ends=("</s>",),
    ),
    "phi3": Family(
        PHI3, ("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"), "<|endoftext|>",
        [
            ("<|user|>\nHi<|end|>\n<|assistant|>\n", 0),
            ("Yo<|end|>", 1),
            ("\n<|user|>\nMore?<|end|>\n<|assistant|>\n", 0),
            ("No.<|end|>", 1),
        ],
        bos="<s>", ends=("<|end|>", "<|endoftext|>"),
    ),
    "qwen3": Family(
        QWEN3, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>",
        [
            # The first answer was rendered with its (empty) reasoning when it was given, and is without it now.
            ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
             "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n", 0),
            ("<think>\n\n</think>\n\nNo.<|im_end|>", 1),
        ],
        ends=("<|im_end|>",), marks=("<think>", "</think>"),
    ),
    "plain": Family(
        template_text("plain", None), ("<pad>", "</s>"), "</s>",
        [("User: Hi\n\nAssistant:", 0), (" Yo</s>", 1), ("\n\nUser: More?\n\nAssistant:", 0), (" No.</s>", 1)],
        ends=("</s>",),
    ),
    "alpaca": Family(
        template_text("alpaca", None), ("<pad>", "</s>"), "</s>",
        [
            ("Below is an instruction that describes a task. Write a response that appropriately completes the "
             "request.\n\n### Instruction:\nHi\n\n### Response:\n", 0),
            ("Yo</s>", 1),
            ("\n\n### Instruction:\nMore?\n\n### Response:\n", 0),
            ("No.</s>", 1),
        ],
        ends=("</s>",),
    ),
    "chatml": Family(
        template_text("chatml", None), ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>",
        [
            ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0),
            ("Yo<|im_end|>", 1),
            ("\n<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n", 0),
            ("No.<|im_end|>", 1),
        ],
        ends=("<|im_end|>",),
    ),
}  # fmt: skip
PADS = ("own", "eos")
both_pads = pytest.mark.parametrize("pad", PADS)
every_family = pytest.mark.parametrize("name", FAMILIES)


def tokenizer_of(family: Family, pad: str = "own") -> PreTrainedTokenizerFast:
    """One token per byte after the family's control tokens."""
    names = [*family.specials, *family.marks, *ALPHABET]
    inner = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.specials])
    inner.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.marks])
    if family.adds_bos:
        assert family.bos is not None
        number = names.index(family.bos)
        inner.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, number)]
        )
    pad_token = family.eos if pad == "eos" else family.specials[0]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad_token, bos_token=family.bos, eos_token=family.eos
    )
    tokenizer.chat_template = family.template
    assert (tokenizer.pad_token_id == tokenizer.eos_token_id) == (pad == "eos")
    return tokenizer


def tokens_of(text: str, family: Family) -> list[int]:
    """Ids of a text, by hand: control tokens by their place in the list, other bytes by their letter."""
    known = [*family.specials, *family.marks]
    letters = _byte_letters()
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, known))})", text):
        if piece in known:
            ids.append(known.index(piece))
        else:
            ids += [len(known) + ALPHABET.index(letters[byte]) for byte in piece.encode()]
    return ids


def _byte_letters() -> dict[int, str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for 256, 257, ... in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in shown}
    for number, byte in enumerate(byte for byte in range(256) if byte not in shown):
        letters[byte] = chr(256 + number)
    return letters


def expected(parts: Parts, family: Family) -> tuple[list[int], list[bool]]:
    ids = [tokens_of(text, family) for text, _ in parts]
    mask = [[bool(trained)] * len(piece) for piece, (_, trained) in zip(ids, parts, strict=True)]
    return list(chain.from_iterable(ids)), list(chain.from_iterable(mask))


def turns(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    roles = ("user", "assistant") * len(texts)
    opening = (Message(role="system", content=system),) if system is not None else ()
    return opening + tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]


def demonstration(*texts: str, system: str | None = None) -> Demonstration:
    return Demonstration(messages=turns(*texts, system=system), origin=ORIGIN)


def pair(prompt: Sequence[str], chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt=turns(*prompt), chosen=chosen, rejected=rejected, origin=ORIGIN)


def reason(call: Any, *args: Any) -> str:
    with pytest.raises(UnusableRow) as caught:
        call(*args)
    return str(caught.value)


# Whole conversations


@both_pads
@every_family
def test_only_answers_and_their_end_are_trained(name, pad):
    family = FAMILIES[name]
    row = ChatFormatter(tokenizer_of(family, pad)).demonstration(demonstration(*TALK), 1000)
    ids, mask = expected(family.parts, family)
    assert row.input_ids == ids
    assert row.response_mask == mask
    assert not row.prompt_cut
    assert row.response_mask[-1], "the end of the last answer is what teaches a model to stop"


SYSTEM: dict[str, Parts] = {
    "smollm2": [("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0),
                ("Yo<|im_end|>", 1)],
    "llama2": [("<s>[INST] <<SYS>>\nBe brief\n<</SYS>>\n\nHi [/INST]", 0), (" Yo </s>", 1)],
    "llama3": [("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n", 0), ("Yo<|eot_id|>", 1)],
    "zephyr": [("<|system|>\nBe brief</s>\n<|user|>\nHi</s>\n<|assistant|>\n", 0), ("Yo</s>", 1)],
    "phi3": [("<|system|>\nBe brief<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n", 0), ("Yo<|end|>", 1)],
    "qwen3": [("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0),
              ("<think>\n\n</think>\n\nYo<|im_end|>", 1)],
    "plain": [("Be brief\n\nUser: Hi\n\nAssistant:", 0), (" Yo</s>", 1)],
    "alpaca": [("Be brief\n\n### Instruction:\nHi\n\n### Response:\n", 0), ("Yo</s>", 1)],
    "chatml": [("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0),
               ("Yo<|im_end|>", 1)],
}  # fmt: skip


@both_pads
@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_prompt_is_context(name, pad):
    family = FAMILIES[name]
    formatter = ChatFormatter(tokenizer_of(family, pad))
    row = formatter.demonstration(demonstration("Hi", "Yo", system="Be brief"), 1000)
    assert (row.input_ids, row.response_mask) == expected(SYSTEM[name], family)


def test_literal_ids_of_a_chatml_conversation():
    """Words as tokens, numbered by hand.

    <|im_start|> user \\n hi <|im_end|> \\n <|im_start|> assistant \\n | yo <|im_end|> | \\n <|im_start|> user \\n bye
         1         4   3  6      2       3       1          5       3 |  7     2      |  3       1         4   3  8
    <|im_end|> \\n <|im_start|> assistant \\n | ok <|im_end|>
         2      3       1          5       3 |  9     2
    """
    words = ["<pad>", "<|im_start|>", "<|im_end|>", "\n", "user", "assistant", "hi", "yo", "bye", "ok", "<unk>"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+"), "isolated")
    inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.chat_template = template_text("chatml", None)
    row = ChatFormatter(tokenizer).demonstration(demonstration("hi", "yo", "bye", "ok"), 100)
    assert row.input_ids == [1, 4, 3, 6, 2, 3, 1, 5, 3, 7, 2, 3, 1, 4, 3, 8, 2, 3, 1, 5, 3, 9, 2]
    assert [number for number, trained in enumerate(row.response_mask) if trained] == [9, 10, 21, 22]


def test_reasoning_that_the_template_drops_later_is_trained_only_where_it_stays():
    """Of two answers with reasoning the first is shown without it and is context; the last is trained with it."""
    family = FAMILIES["qwen3"]
    row = ChatFormatter(tokenizer_of(family)).demonstration(
        demonstration("Hi", "<think>\nhm\n</think>\n\nYo", "More?", "<think>\nno\n</think>\n\nNo."), 1000
    )
    parts = [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
         "<|im_start|>user\nMore?<|im_end|>\n<|im_start|>assistant\n", 0),
        ("<think>\nno\n</think>\n\nNo.<|im_end|>", 1),
    ]  # fmt: skip
    assert (row.input_ids, row.response_mask) == expected(parts, family)


@both_pads
@every_family
def test_beginning_of_sequence_comes_once(name, pad):
    """Never doubled by the tokenizer's own; Llama 2's template writes one more for every exchange."""
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, pad)
    formatter = ChatFormatter(tokenizer)
    for ids in (
        formatter.demonstration(demonstration("Hi", "Yo"), 1000).input_ids,
        formatter.pair(pair(["Hi"], "Yo", "No"), 1000).prompt_ids,
        formatter.prompt(Prompt(messages=turns("Hi"), origin=ORIGIN), 1000).ids,
    ):
        if name in ("llama2", "llama3", "gemma"):
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(tokenizer.bos_token_id) == 1
            text = formatter._render(turns("Hi"), generation=True)
            assert tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2, "the careless way doubles it"
        elif name == "zephyr":
            assert tokenizer.bos_token_id not in ids, "a template that writes none has none, as in generation"


@pytest.mark.parametrize("choice", [*NAMES, "auto"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_templates_of_ours_begin_as_the_tokenizer_does(tmp_path, choice, adds_bos):
    """A base model without a template that was trained behind BOS gets it from ours, once; others get none."""
    family = Family(
        "", ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"), "</s>", [], bos="<s>", adds_bos=adds_bos
    )
    tokenizer = tokenizer_of(family)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, choice)
    row = ChatFormatter(loaded).demonstration(demonstration(*TALK), 1000)
    assert row.input_ids.count(loaded.bos_token_id) == adds_bos
    assert (row.input_ids[0] == loaded.bos_token_id) == adds_bos
    whole = loaded.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns(*TALK)], tokenize=True, return_dict=False
    )
    assert whole[: len(row.input_ids)] == row.input_ids


# Prompts and pairs


@both_pads
@every_family
@pytest.mark.parametrize("length", [1, 3])
def test_prompts_are_what_generation_sees(name, pad, length):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, pad)
    messages = turns(*TALK[:length])
    seen = tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in messages],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    formatter = ChatFormatter(tokenizer)
    assert formatter.prompt_ids(messages) == seen
    assert formatter.prompt(Prompt(messages=messages, origin=ORIGIN), 1000).ids == seen
    if length == 3:
        context = family.parts[:-1]
        assert seen == expected(context, family)[0]


@both_pads
@every_family
def test_a_pair_shares_its_prompt_and_both_answers_end(name, pad):
    family = FAMILIES[name]
    formatter = ChatFormatter(tokenizer_of(family, pad))
    row = formatter.pair(pair(TALK[:3], "No.", "Yes, a lot"), 1000)
    ids, _ = expected(family.parts, family)
    answer = len(tokens_of(family.parts[-1][0], family))
    assert row.prompt_ids + row.chosen_ids == ids
    assert row.chosen_ids == ids[-answer:]
    other = family.parts[-1][0].replace("No.", "Yes, a lot")
    assert row.rejected_ids == tokens_of(other, family)
    assert row.prompt_ids == formatter.prompt_ids(turns(*TALK[:3]))
    assert {row.chosen_ids[-1], row.rejected_ids[-1]} == {formatter.stop_ids[0]}
    assert row.chosen_ids.count(row.chosen_ids[-1]) == 1


@both_pads
@every_family
def test_a_pair_and_a_demonstration_agree(name, pad):
    """What DPO scores as the chosen answer is, token for token, what SFT trains on."""
    formatter = ChatFormatter(tokenizer_of(FAMILIES[name], pad))
    demo = formatter.demonstration(demonstration(*TALK), 1000)
    both = formatter.pair(pair(TALK[:3], TALK[3], "other"), 1000)
    assert both.prompt_ids + both.chosen_ids == demo.input_ids


def test_merges_across_the_boundary_leave_the_prompt_a_prefix():
    """An answer that begins with a newline: BPE has learnt \\n\\n, and would join it to the template's newline.

    Control: the conversation tokenised in one piece does not begin with the prompt's tokens.
    """
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=ALPHABET)
    inner.train_from_iterator(["a\n\nb\n\n\nc\n\n" * 50, "assistant\n\nuser\n\n" * 50], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=specials[0], eos_token=specials[2])
    tokenizer.chat_template = template_text("chatml", None)
    formatter = ChatFormatter(tokenizer)
    row = formatter.pair(pair(["Hi"], "\nYo", "\n\nNo"), 1000)
    prompt = tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    whole = tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\nYo<|im_end|>", add_special_tokens=False)
    assert row.prompt_ids == prompt
    assert whole["input_ids"][: len(prompt)] != prompt
    assert tokenizer.decode(row.prompt_ids + row.chosen_ids) == tokenizer.decode(whole["input_ids"])


# Where answers end


@both_pads
@every_family
def test_stop_ids_are_the_turns_end_and_eos(name, pad):
    family = FAMILIES[name]
    formatter = ChatFormatter(tokenizer_of(family, pad))
    assert formatter.stop_ids == tuple(family.specials.index(token) for token in family.ends)


def test_a_template_that_ends_no_turn_gets_eos():
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    family = Family(template, ("<pad>", "</s>"), "</s>", [])
    formatter = ChatFormatter(tokenizer_of(family))
    row = formatter.demonstration(demonstration("Hi", "Yo"), 100)
    assert (row.input_ids, row.response_mask) == expected([("user: Hiassistant: ", 0), ("Yo</s>", 1)], family)
    assert formatter.stop_ids == (1,)


@every_family
def test_text_of_an_answer_has_no_markup(name):
    family = FAMILIES[name]
    formatter = ChatFormatter(tokenizer_of(family))
    ids = formatter.pair(pair(["Hi"], "Yo there", "No"), 100).chosen_ids
    assert formatter.response_text(ids).endswith("Yo there")
    assert family.ends[0] not in formatter.response_text(ids)


# Cuts


def _cut_by_hand(parts: Parts, family: Family, length: int) -> tuple[list[int], list[bool]] | str:
    """What is left of a conversation of `length` tokens, position by position."""
    ids, _ = expected(parts, family)
    owner = [number for number, (text, _) in enumerate(parts) for _ in tokens_of(text, family)]
    whole = {number for number, (_, trained) in enumerate(parts) if trained}
    if len(ids) <= length:
        return ids, [number in whole for number in owner]
    if owner.count(len(parts) - 1) >= length:
        return "answer_too_long"
    keeps_bos = family.bos is not None and ids[0] == family.specials.index(family.bos) and family.adds_bos
    first = len(ids) - length + keeps_bos
    kept = [0] * keeps_bos + list(range(first, len(ids)))
    whole -= {owner[first - 1]} if owner[first - 1] == owner[first] else set()
    return [ids[at] for at in kept], [owner[at] in whole for at in kept]


@both_pads
@every_family
def test_every_cut_from_the_left(name, pad):
    """At every length: BOS stays, the last answer is whole or the row goes, an answer cut into is not trained."""
    family = FAMILIES[name]
    formatter = ChatFormatter(tokenizer_of(family, pad))
    total = len(expected(family.parts, family)[0])
    refused = 0
    for length in (*range(1, min(total, 90)), *range(max(total - 40, 90), total + 2)):
        by_hand = _cut_by_hand(family.parts, family, length)
        if isinstance(by_hand, str):
            refused += 1
            assert reason(formatter.demonstration, demonstration(*TALK), length) == by_hand
            continue
        row = formatter.demonstration(demonstration(*TALK), length)
        assert (row.input_ids, row.response_mask) == by_hand, length
        assert len(row.input_ids) == min(length, total)
        assert row.prompt_cut == (length < total)
    assert refused == len(tokens_of(family.parts[-1][0], family))


@both_pads
@every_family
def test_every_cut_of_a_pair_leaves_both_answers_whole(name, pad):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, pad)
    formatter = ChatFormatter(tokenizer)
    record = pair(TALK[:3], "No.", "Yes, a lot")
    full = formatter.pair(record, 1000)
    longest = len(full.rejected_ids)
    for length in range(1, len(full.prompt_ids) + longest + 2):
        if length <= longest + 1:
            assert reason(formatter.pair, record, length) == "answer_too_long"
            continue
        row = formatter.pair(record, length)
        room = min(length - longest, len(full.prompt_ids))
        assert (row.chosen_ids, row.rejected_ids) == (full.chosen_ids, full.rejected_ids)
        assert len(row.prompt_ids) == room
        assert row.prompt_cut == (room < len(full.prompt_ids))
        if family.bos and family.adds_bos and name != "zephyr":
            assert row.prompt_ids == [tokenizer.bos_token_id, *full.prompt_ids[len(full.prompt_ids) - room + 1 :]]
        else:
            assert row.prompt_ids == full.prompt_ids[len(full.prompt_ids) - room :]
        assert formatter.prompt(Prompt(messages=record.prompt, origin=ORIGIN), room).ids == row.prompt_ids


# Rows that are left out


@every_family
def test_control_tokens_in_the_text_are_refused(name):
    family = FAMILIES[name]
    formatter = ChatFormatter(tokenizer_of(family))
    for token in family.specials:
        forged = f"well{token}you"
        assert reason(formatter.demonstration, demonstration(forged, "Yo"), 1000) == "control_token"
        assert reason(formatter.demonstration, demonstration("Hi", forged), 1000) == "control_token"
        assert reason(formatter.demonstration, demonstration("Hi", forged, "a", "b"), 1000) == "control_token"
        assert reason(formatter.pair, pair(["Hi"], "Yo", forged), 1000) == "control_token"
        assert reason(formatter.pair, pair([forged], "Yo", "No"), 1000) == "control_token"
        assert reason(formatter.prompt, Prompt(messages=turns(forged), origin=ORIGIN), 1000) == "control_token"


@every_family
@pytest.mark.parametrize("nothing", ["", " ", "\n\n"])
def test_empty_answers_are_refused(name, nothing):
    """ChatML writes a newline after the end of turn; it must not pass for the answer."""
    formatter = ChatFormatter(tokenizer_of(FAMILIES[name]))
    assert reason(formatter.demonstration, demonstration("Hi", nothing), 1000) == "empty_answer"
    assert reason(formatter.demonstration, demonstration("Hi", nothing, "More?", "No."), 1000) == "empty_answer"
    assert reason(formatter.pair, pair(["Hi"], "Yo", nothing), 1000) == "empty_answer"


def test_answers_that_differ_only_in_what_the_template_strips_are_refused():
    record = pair(["Hi"], "Yo", "  Yo\n")
    assert reason(ChatFormatter(tokenizer_of(FAMILIES["llama3"])).pair, record, 1000) == "identical_tokens"
    kept = ChatFormatter(tokenizer_of(FAMILIES["chatml"])).pair(record, 1000)
    assert kept.chosen_ids != kept.rejected_ids


def test_what_a_template_refuses_is_counted():
    """Gemma refuses a system prompt, and roles that do not alternate."""
    formatter = ChatFormatter(tokenizer_of(FAMILIES["gemma"]))
    twice = (*turns("Hi"), *turns("Hello?", "Yo"))
    records = [
        demonstration("Hi", "Yo"),
        demonstration("Hi", "Yo", system="Be brief"),
        Demonstration(messages=twice, origin=ORIGIN),
        demonstration("<end_of_turn>", "Yo"),
        demonstration("Hi", "x" * 50),
    ]
    report: dict[str, Any] = {"dropped": {"duplicate": 2}}
    found = encode(records, lambda record: formatter.demonstration(record, 50), report)
    assert found.records == records[:1]
    assert report["dropped"] == {"duplicate": 2, "template_refuses": 2, "control_token": 1, "answer_too_long": 1}
    assert report["prompts_truncated"] == 0
    refused = PreferencePair(prompt=turns("Hi", system="Be brief"), chosen="Yo", rejected="No", origin=ORIGIN)
    assert reason(formatter.pair, refused, 1000) == "template_refuses"


def test_a_template_that_forgets_its_prompt_is_refused():
    """One that shows only the last turn cannot be split into a prompt and its continuation."""
    family = Family("{{ messages[-1]['content'] + eos_token }}", ("<pad>", "</s>"), "</s>", [])
    formatter = ChatFormatter(tokenizer_of(family))
    assert reason(formatter.pair, pair(["Hi"], "Yo", "No"), 1000) == "template_refuses"
    assert reason(formatter.demonstration, demonstration("Hi", "Yo"), 1000) == "template_refuses"


def test_template_choice_names_what_there_is(tmp_path: Path):
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages }}\n")
    assert template_text("auto", "mine") == "mine"
    assert template_text("auto", None) == template_text("plain", None)
    assert template_text(str(own), "mine") == "{{ messages }}"
    with pytest.raises(Exception, match=r"'alpaka' is neither `auto`, one of `plain`, `alpaca`, `chatml`"):
        template_text("alpaka", None)


# Random conversations

ANSWERS = {
    "smollm2": "{}<|im_end|>", "llama2": " {} </s>", "llama3": "{}<|eot_id|>", "gemma": "{}<end_of_turn>",
    "zephyr": "{}</s>", "phi3": "{}<|end|>", "plain": " {}</s>", "alpaca": "{}</s>", "chatml": "{}<|im_end|>",
}  # fmt: skip
STRIPPED = ("llama2", "llama3", "gemma")
FORMATTERS = {(name, pad): ChatFormatter(tokenizer_of(FAMILIES[name], pad)) for name in ANSWERS for pad in PADS}
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(
    name=st.sampled_from(sorted(ANSWERS)),
    pad=st.sampled_from(PADS),
    talk=st.lists(st.tuples(words, words), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_trained_tokens_spell_the_answers(name, pad, talk):
    """Decoded run by run, what is trained is each answer as the template writes it, and its end, in order."""
    assume(all(answer.strip() for _, answer in talk))
    family, formatter = FAMILIES[name], FORMATTERS[name, pad]
    row = formatter.demonstration(demonstration(*(text for exchange in talk for text in exchange)), 10_000)
    runs: list[list[int]] = []
    for at, trained in enumerate(row.response_mask):
        if trained and (at == 0 or not row.response_mask[at - 1]):
            runs.append([])
        if trained:
            runs[-1].append(row.input_ids[at])
    shown = [answer.strip() if name in STRIPPED else answer for _, answer in talk]
    assert [formatter.tokenizer.decode(run) for run in runs] == [ANSWERS[name].format(text) for text in shown]
    whole = tokens_of(formatter._render(demonstration(*(t for e in talk for t in e)).messages), family)
    assert whole[: len(row.input_ids)] == row.input_ids
