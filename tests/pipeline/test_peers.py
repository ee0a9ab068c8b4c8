"""Supervisors of several ranks: what one learns, all know."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline import peers
from pipeline.errors import PreemptedError
from pipeline.peers import PeerGone, Peers, free_port
from pipeline.runtime import Ranks
from pipeline.stopping import FLAG


@pytest.fixture
def join(monkeypatch):
    """Lets ranks of a launch meet at one store, all in this process."""
    monkeypatch.setattr(peers, "_BEAT_SECONDS", 0.02)
    monkeypatch.setattr(peers, "_FAREWELL_SECONDS", 0.3)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(free_port()))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    made = []

    def joining(ranks, world_size):
        made.extend(Peers(Ranks(rank, rank, world_size)) for rank in range(ranks))
        return made

    yield joining
    FLAG.asked = False
    for each in reversed(made):
        each.close()


@pytest.fixture
def both(join):
    """Two ranks' ends of one store."""
    return join(2, 2)


def soon(condition, seconds=30.0):
    """The store answers who writes before all others can read it."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_who_is_asked_to_stop_asks_all(both):
    assert not any(each.asked_to_stop() for each in both)
    both[1].ask_to_stop()
    assert soon(lambda: all(each.asked_to_stop() for each in both))


def test_a_failure_is_known_and_a_success_is_not_one(both):
    first, second = both
    second.report({"rank": 1, "code": 0})
    assert soon(lambda: 1 in first.outcomes()) and not first.any_failed()
    second.report({"rank": 1, "code": 65})
    assert soon(first.any_failed) and first.outcomes() == {1: {"rank": 1, "code": 65, "order": 1}}
    first.report({"rank": 0, "code": 1})
    assert soon(lambda: 0 in first.outcomes()) and first.outcomes()[0]["order"] == 2, "by one counter, not by clocks"


def test_a_decision_reaches_who_was_asked_meanwhile(both):
    """It waits for the first rank's word, and tells it."""
    first, second = both
    FLAG.asked = True
    heard = []
    follower = threading.Thread(target=lambda: heard.append(second.agree(None)))
    follower.start()
    while not first.asked_to_stop():
        pass
    assert first.agree({"do": "end"}) == {"do": "end"}
    follower.join(10)
    assert heard == [{"do": "end"}]


def test_nobody_waits_for_ever_for_a_word(both, monkeypatch):
    monkeypatch.setattr(peers, "_ANSWER_SECONDS", 0.2)
    FLAG.asked = True
    with pytest.raises(PreemptedError, match="asked to stop"):
        both[1].agree(None)


def test_alone_one_agrees_with_oneself():
    alone = Peers(Ranks(0, 0, 1))
    assert alone.agree({"do": "end"}) == {"do": "end"} and not alone.any_failed()
    alone.ask_to_stop()
    assert alone.asked_to_stop()


def test_the_first_stays_until_the_others_have_read_why_it_ends(both, monkeypatch):
    """The store goes down with it."""
    first, second = both
    monkeypatch.setattr(peers, "_FAREWELL_SECONDS", 30.0)
    first.give_up({"do": "fail", "code": 75})
    leaving = threading.Thread(target=first.close)
    leaving.start()
    time.sleep(0.3)
    assert leaving.is_alive()
    assert second.agree(None) == {"do": "fail", "code": 75}
    second.leave()
    leaving.join(10)
    assert not leaving.is_alive()


# Who is gone


def test_nobody_is_gone_who_beats(both):
    time.sleep(2 * peers._MISSED_BEATS * peers._BEAT_SECONDS)
    assert [each.gone() for each in both] == [frozenset(), frozenset()]


def test_a_rank_that_beats_no_longer_is_gone(both):
    first, second = both
    assert soon(lambda: first._pulse._beats[1] > 0)
    second.close()
    assert soon(first.gone) and first.gone() == {1}
    with pytest.raises(PeerGone, match="rank 1 is gone without a word") as caught:
        first.agree({"do": "prepare"})
    assert caught.value.rank == 1


def test_the_others_learn_of_it_from_the_first(join):
    first, second, third = join(3, 3)
    assert soon(lambda: first._pulse._beats[2] > 0)
    third.close()
    assert soon(second.gone) and second.gone() == {2}


def test_a_rank_that_never_came_is_waited_for(join):
    first, second = join(2, 3)
    time.sleep(2 * peers._MISSED_BEATS * peers._BEAT_SECONDS)
    assert first.gone() == second.gone() == frozenset()


def test_without_the_first_rank_nothing_goes_on(both):
    first, second = both
    assert soon(lambda: second._pulse._beats[0] > 0)
    first.close()
    with pytest.raises(PeerGone, match="rank 0 is gone without a word"):
        second.agree(None)


def test_a_store_that_went_down_with_the_first_rank_is_the_same(both):
    def broken(*arguments):
        raise RuntimeError("failed to recv, got 0 bytes")

    both[1]._store._store = type("Broken", (), dict.fromkeys(("check", "add", "get", "set"), broken))
    with pytest.raises(PeerGone, match="rank 0 is gone"):
        both[1].any_failed()
