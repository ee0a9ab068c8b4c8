"""Questions put to a judge in parallel, each reply kept, each asked once more where it cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from evaluation.judging.cache import ReplyCache
from evaluation.judging.endpoint import Endpoint

Item = TypeVar("Item")
Found = TypeVar("Found")
_READINGS = 2
"""A reply that cannot be read is asked for so often in all."""


def in_parallel(
    items: Sequence[Item],
    act: Callable[[Item], Found],
    parallel: int,
    progress: Callable[[int, int], None],
) -> list[Found]:
    """Act on every item, so many at a time; what comes of each, in their order. The first error ends it."""
    found: list[Found] = []
    with ThreadPoolExecutor(parallel) as pool:
        try:
            for one in pool.map(act, items):
                found.append(one)
                progress(len(found), len(items))
        except BaseException:
            # Those still waiting would only fail likewise, each after all its pauses.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def ask(
    endpoint: Endpoint,
    cache: ReplyCache,
    messages: Sequence[Mapping[str, str]],
    *,
    version: int,
    max_tokens: int,
    read: Callable[[str], Found | None],
) -> Found | None:
    """What can be read from the reply to a question; None where no reply could be read.

    Args:
        endpoint: is asked where the cache has no reply.
        cache: keeps every reply by everything that was asked.
        messages: the question.
        version: of its words: another wording is another judge.
        max_tokens: longest reply.
        read: gives None for a reply that makes no sense.

    Raises:
        SourceUnreachableError, RecipeError: the endpoint failed for good.
    """
    for reading in range(_READINGS):
        asked = {"version": version, "model": endpoint.model, "messages": list(messages), "reading": reading}
        reply = cache.get(asked)
        if reply is None:
            reply = endpoint.reply(messages, max_tokens)
            cache.put(asked, reply)
        found = read(reply)
        if found is not None:
            return found
    return None
