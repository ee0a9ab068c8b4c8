"""Questions put to a judge in parallel, each reply kept, each asked once more where it cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from evaluation.judging.cache import ReplyCache
from evaluation.judging.endpoint import Endpoint

Item = TypeVar("Item")
Found = TypeVar("Found")
_READINGS = 2
"""A reply that cannot be read is asked for so often in all."""
_LOOK_UP = 1.0
"""Seconds after which progress is told though no reply came: it shows that the run waits, and ends it if asked to."""


def in_parallel(
    items: Sequence[Item],
    act: Callable[[Item], Found],
    endpoint: Endpoint,
    parallel: int,
    progress: Callable[[int, int], None],
) -> list[Found]:
    """Act on every item, so many at a time; what comes of each, in their order. The first error ends it.

    Args:
        items: one question or more each.
        act: puts them.
        endpoint: that is asked; left where an error ends it all.
        parallel: items at a time.
        progress: is told how many are through, at least every second.
    """
    pool = ThreadPoolExecutor(parallel)
    asked = [pool.submit(act, item) for item in items]
    try:
        _wait_for(asked, progress)
    except BaseException:
        # Those still waiting would only fail likewise, each after all its pauses.
        endpoint.leave()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return [one.result() for one in asked]


def _wait_for(asked: Sequence[Future[Found]], progress: Callable[[int, int], None]) -> None:
    waiting = set(asked)
    while waiting:
        ended, waiting = wait(waiting, timeout=_LOOK_UP, return_when=FIRST_COMPLETED)
        for one in (one for one in asked if one in ended):
            one.result()
        progress(len(asked) - len(waiting), len(asked))


def unread_sentence(subject: str, unread: int, of: int, what: str) -> str:
    """How many replies made sense, where some did not.

    Args:
        subject: `m's verdicts on ppo`.
        unread: how many made none.
        of: all.
        what: they were on, in the plural.
    """
    end = "the others do not count" if unread < of else "nothing is known from it"
    return f"{subject} could be read in {of - unread:,} of {of:,} {what}; {end}"


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
        else:
            endpoint.meter.cached(reply)
        found = read(reply.text)
        if found is not None:
            return found
    return None
