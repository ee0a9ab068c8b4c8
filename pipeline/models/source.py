"""Where a base model comes from: `builtin:` name, local folder or hub id, resolved to an identity and to a folder.

Nothing falls back silently: the identity is printed, recorded in every manifest and part of every stage's key.
Importing this module loads neither torch nor the hub library.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from pipeline.durable import sha256_file
from pipeline.errors import SourceUnreachableError
from pipeline.models import builtin

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
_TOKENIZER_PATTERNS = ("*.json", "*.model", "*.txt", "*.jinja")
_WEIGHT_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """Which weights exactly: two equal fingerprints are the same model."""

    name: str
    """As the recipe writes it."""
    revision: str | None
    """The hub commit, where there is one."""
    fingerprint: str
    """SHA-256 over the files, or over the hub id and commit that fix them."""


def identify(base: str, revision: str | None, where: str = "model.base") -> BaseIdentity:
    """Find out which model a recipe's `model.base`, or another key of it, means, without loading it.

    Raises:
        SourceUnreachableError: no such builtin, folder or reachable hub model; the message says what to type.
    """
    if base.startswith("builtin:"):
        return BaseIdentity(base, None, builtin.fingerprint(base))
    folder = Path(base).expanduser()
    if folder.is_dir():
        _require_model_files(folder, where)
        return BaseIdentity(base, None, _folder_fingerprint(folder))
    if _looks_like_path(base):
        raise SourceUnreachableError(f"{where}: folder {base} does not exist{_near(folder)}")
    commit = _hub_commit(base, revision, where)
    return BaseIdentity(base, commit, hashlib.sha256(f"{base}@{commit}".encode()).hexdigest())


def ready_folder(identity: BaseIdentity) -> Path | None:
    """The local folder that holds the model, if it is here already."""
    if identity.name.startswith("builtin:"):
        return builtin.ready_folder(identity.name)
    folder = Path(identity.name).expanduser()
    return folder if folder.is_dir() else None


def materialise(identity: BaseIdentity) -> Path:
    """The local folder that holds the model, fetched or built first if need be.

    Raises:
        SourceUnreachableError: it is neither here nor reachable.
    """
    if identity.name.startswith("builtin:"):
        return builtin.materialise(identity.name)
    if folder := ready_folder(identity):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(identity.name, revision=identity.revision, allow_patterns=list(_WEIGHT_PATTERNS)))
    except Exception as error:
        raise _hub_error(identity.name, identity.revision, error) from error


def tokenizer_folder(base: str, revision: str | None) -> Path:
    """A local folder with a base model's tokenizer, without looking at its weights or fetching them.

    Raises:
        SourceUnreachableError: no such builtin, folder or reachable hub model; the message says what to type.
    """
    if base.startswith("builtin:"):
        return builtin.tokenizer_folder(base)
    folder = Path(base).expanduser()
    if folder.is_dir():
        _require_tokenizer(folder, "model.base")
        return folder
    if _looks_like_path(base):
        raise SourceUnreachableError(f"model.base: folder {base} does not exist{_near(folder)}")
    commit = _hub_commit(base, revision, "model.base")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, revision=commit, allow_patterns=list(_TOKENIZER_PATTERNS)))
    except Exception as error:
        raise _hub_error(base, revision, error) from error


def _require_model_files(folder: Path, where: str) -> None:
    if not (folder / "config.json").is_file():
        raise SourceUnreachableError(f"{where}: folder {folder} has no config.json; is it a transformers model?")
    if (folder / "adapter_config.json").is_file():
        raise SourceUnreachableError(
            f"{where}: folder {folder} holds an adapter (adapter_config.json), whose own base would be loaded in its "
            "place; merge the two with PEFT's `merge_and_unload` and save the result, or name the base"
        )
    _require_tokenizer(folder, where)
    if not list(folder.glob("*.safetensors")):
        found = sorted(
            path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pt2", ".pth", ".ckpt", ".pkl"}
        )
        what = f"only {', '.join(found)}, which can run code when loaded" if found else "no weights"
        raise SourceUnreachableError(
            f"{where}: folder {folder} has no .safetensors file ({what}); convert it with "
            "`AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)` on a machine you trust"
        )


def _require_tokenizer(folder: Path, where: str) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SourceUnreachableError(
            f"{where}: folder {folder} has no tokenizer (looked for {', '.join(TOKENIZER_FILES)}); save it there "
            "with `AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained(FOLDER)`"
        )


def _folder_fingerprint(folder: Path) -> str:
    """Hash of the names and contents of everything that loading reads."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _WEIGHT_PATTERNS for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _looks_like_path(base: str) -> bool:
    return base.startswith((".", "/", "~")) or base.count("/") != 1


def _near(folder: Path) -> str:
    parent = folder.parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(folder.name, names, n=1)
    return f"; did you mean {parent / close[0]}?" if close else "; a hub id has the form owner/name"


def _hub_commit(base: str, revision: str | None, where: str) -> str:
    """The commit a hub id stands for: asked of the hub, or read from the local cache when offline."""
    import huggingface_hub
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        try:
            return str(huggingface_hub.HfApi().model_info(base, revision=revision, timeout=10).sha)
        except Exception as error:
            cached = _cached_commit(base, revision)
            if cached is None:
                raise _hub_error(base, revision, error, where) from error
            return cached
    cached = _cached_commit(base, revision)
    if cached is None:
        raise _hub_error(base, revision, None, where)
    return cached


def _cached_commit(base: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _hub_error(
    base: str, revision: str | None, error: Exception | None, where: str = "model.base"
) -> SourceUnreachableError:
    """Say which of gated, not found, offline or no network it is, and the command that would cure it."""
    kind = type(error).__name__ if error is not None else ""
    command = f"hf download {base}" + (f" --revision {revision}" if revision else "")
    if kind == "GatedRepoError":
        why = "it is gated: accept its licence on the hub, log in with `hf auth login`"
    elif kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError"):
        why = "the hub does not know this id or revision: check its spelling, or log in with `hf auth login` if private"
    elif error is None:
        why = "HF_HUB_OFFLINE is set and it is not in the local cache"
    else:
        why = f"the hub cannot be reached from here ({kind}) and it is not in the local cache"
    return SourceUnreachableError(
        f"{where}: {base} is not available: {why}. With a network, `{command}` fetches it; a folder copied from "
        "another machine works too"
    )
