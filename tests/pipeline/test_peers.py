"""Supervisors of several ranks: what one learns, all know."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline import peers
from pipeline.errors import PreemptedError
from pipeline.peers import Peers, free_port
from pipeline.runtime import Ranks
from pipeline.stopping import FLAG


@pytest.fixture
def both(monkeypatch):
    """Two ranks' ends of one store."""
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(free_port()))):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    yield Peers(Ranks(0, 0, 2)), Peers(Ranks(1, 1, 2))
    FLAG.asked = False


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
    assert soon(first.any_failed) and first.outcomes() == {1: {"rank": 1, "code": 65}}


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
