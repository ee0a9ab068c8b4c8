"""A data set on the hub -> its rows, through the `datasets` library, with or without a network.

With a network `datasets` downloads what the split needs. Without one, two caches can serve: the library's own, which a
first load leaves behind, and the snapshot that `hf download` makes. The library falls back to its own cache without
looking at the revision, so a pinned revision is only ever served from a snapshot.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pipeline.errors import DataError, SourceUnreachableError


class HubSource(NamedTuple):
    """What to load: `name` is owner/name, `config` what stands after `#` in the path."""

    name: str
    config: str | None
    revision: str | None
    split: str

    @property
    def download_command(self) -> str:
        """The command that puts the data set into the cache."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.name} --repo-type dataset{revision}"


def parse_hub_path(path: str, revision: str | None, split: str) -> HubSource:
    """Take `hub:owner/name#config` apart; prefix and config are optional."""
    name, _, config = path.removeprefix("hub:").partition("#")
    return HubSource(name, config or None, revision, split)


def read_hub(source: HubSource) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of one split of a hub data set, numbered from 1."""
    dataset = _from_hub(source) if _online() else _from_cache(source, _why_offline())
    for number, fields in enumerate(dataset, start=1):
        yield number, dict(fields)


def resolve_commit(path: str, revision: str | None) -> str:
    """The commit that a hub data set stands at: asked of the hub, or as the local cache has it.

    Raises:
        SourceUnreachableError: neither the hub nor the cache knows it.
    """
    from huggingface_hub import HfApi, snapshot_download

    source = parse_hub_path(path, revision, "train")
    why = _why_offline()
    if _online():
        try:
            return str(HfApi().dataset_info(source.name, revision=revision, timeout=10).sha)
        except Exception as error:
            why = f"the hub did not answer ({_one_line(error)})"
    try:
        return Path(snapshot_download(source.name, repo_type="dataset", revision=revision, local_files_only=True)).name
    except (OSError, ValueError):
        raise SourceUnreachableError(
            f"data set {source.name}: not in the cache of this machine, and {why}; where there is a network, run "
            f"`{source.download_command}` (with the same HF_HOME), or put its files into a folder and name that as path"
        ) from None


def _from_hub(source: HubSource) -> Any:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(source.name, source.config, split=source.split, revision=source.revision)
    except DatasetNotFoundError as error:
        raise SourceUnreachableError(
            f"data set {source.name}: not found on the hub, or not open to you ({_one_line(error)}); check the name"
            f"{' and the revision' if source.revision else ''}, run `hf auth login` if it is private or gated, "
            f"then `{source.download_command}`"
        ) from None
    except ValueError as error:
        raise _wrong_choice(source, error) from None
    except RuntimeError as error:
        raise DataError(
            f"data set {source.name}: cannot be loaded ({_one_line(error)}); download its files and name the folder "
            "that holds them as path"
        ) from None
    except OSError as error:
        return _from_cache(source, f"the hub did not answer ({_one_line(error)})")


def _from_cache(source: HubSource, why: str) -> Any:
    """What an earlier load or `hf download` left on this machine."""
    import datasets
    from huggingface_hub import snapshot_download

    if source.revision is None:
        try:
            with _offline_mode():
                return datasets.load_dataset(source.name, source.config, split=source.split)
        except (OSError, ValueError):
            pass  # not in the library's own cache, or another config or split of it: the snapshot may have it
    try:
        folder = snapshot_download(source.name, repo_type="dataset", revision=source.revision, local_files_only=True)
        return datasets.load_dataset(folder, source.config, split=source.split)
    except ValueError as error:
        raise _wrong_choice(source, error) from None
    except OSError:
        at = f" at revision {source.revision}" if source.revision else ""
        raise SourceUnreachableError(
            f"data set {source.name}: not in the cache of this machine{at}, and {why}; where there is a network, run "
            f"`{source.download_command}` (with the same HF_HOME), or put its files into a folder and name that as path"
        ) from None


def _wrong_choice(source: HubSource, error: ValueError) -> DataError:
    """A split or config that the data set does not have; the library's message lists those it has."""
    config = f", config {source.config!r}" if source.config else ""
    return DataError(
        f"data set {source.name}: cannot load split {source.split!r}{config} ({_one_line(error)}); "
        "choose the config as owner/name#config"
    )


def _online() -> bool:
    """Whether the hub's name resolves: asking first spares half a minute of retries on a machine without a network."""
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # names are resolved by the proxy, not here
    try:
        socket.getaddrinfo(urlsplit(datasets.config.HF_ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _why_offline() -> str:
    import datasets

    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
    return "there is no network (the hub's name does not resolve)"


@contextmanager
def _offline_mode() -> Iterator[None]:
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
