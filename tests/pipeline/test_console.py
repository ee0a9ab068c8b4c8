"""What a person sees: sentences always, a live line on a terminal, quiet lines elsewhere, silence on other ranks."""

from __future__ import annotations

import io
import os
import re

import pytest

from pipeline import console as module
from pipeline.console import QUIET_SECONDS, Console, inherited_console


class Clock:
    """Time that passes when told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_a_sentence_is_a_line_with_its_prefix(clock):
    stream = io.StringIO()
    Console(stream, "sft: ").say("64 rows")
    assert stream.getvalue() == "sft: 64 rows\n"


def test_without_a_terminal_progress_is_a_line_an_interval_and_the_last_one(clock):
    stream = io.StringIO()
    console = Console(stream)
    for done in range(1, 101):
        clock.now += 1.0
        console.progress("step", done, 100, f"loss {done}")
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    assert len(lines) <= 100 / QUIET_SECONDS + 2
    assert lines[-1] == "step 100/100  loss 100  in 2 min"


def test_time_left_is_by_what_it_took_so_far(clock):
    """30 units in 60 s: 10 more take 20 s."""
    stream = io.StringIO()
    console = Console(stream)
    console.progress("step", 0, 40)
    clock.now += 60
    console.progress("step", 30, 40)
    assert stream.getvalue().splitlines()[-1] == "step 30/40  20 s left"


def test_the_first_report_promises_no_time_and_the_next_counts_from_there(clock):
    """2 of 8 done at the first look, 4 of 8 after 20 s: 10 s each, so 40 s to go."""
    stream = io.StringIO()
    console = Console(stream)
    console.progress("step", 2, 8, "loss 5.5")
    clock.now += 20
    console.progress("step", 4, 8, "loss 5.4")
    assert "0 s left" not in stream.getvalue().replace("40 s left", "")
    assert stream.getvalue().splitlines()[-1] == "step 4/8  loss 5.4  40 s left"


def test_nothing_done_yet_is_no_division_by_zero(clock):
    console = Console(io.StringIO())
    console.progress("step", 0, 10)
    console.progress("none", 0, 0)


def test_a_task_done_twice_is_timed_anew(clock):
    stream = io.StringIO()
    console = Console(stream)
    for _ in range(2):
        console.progress("rows", 0, 2)
        clock.now += 20
        console.progress("rows", 2, 2)
        clock.now += 500
    assert [line for line in stream.getvalue().splitlines() if "2/2" in line] == ["rows 2/2  in 20 s"] * 2


def test_on_a_terminal_one_line_lives_and_sentences_do_not_break_into_it(clock):
    stream = Terminal()
    console = Console(stream)
    console.progress("step", 1, 3)
    console.progress("step", 2, 3)
    console.say("a sentence")
    console.progress("step", 3, 3)
    shown = stream.getvalue()
    assert shown.count("\n") == 2
    # A terminal erases at \r\x1b[2K: what is left of each line is what a person reads in the end.
    lines = shown.removesuffix("\n").split("\n")
    assert [re.split(r"\r\x1b\[2K", line)[-1] for line in lines] == ["a sentence", "step 3/3  in 0 s"]


def test_a_live_line_is_never_wider_than_the_terminal(clock, monkeypatch):
    monkeypatch.setattr(module, "_columns", lambda stream: 20)
    stream = Terminal()
    Console(stream).progress("a very long name of a task", 1, 3, "and details")
    assert len(stream.getvalue().removeprefix("\r\x1b[2K")) < 20


def test_a_rank_without_a_stream_is_silent(capfd):
    console = Console(None)
    console.say("x")
    console.progress("step", 1, 2)
    inherited_console(None, "p").say("x")
    assert capfd.readouterr() == ("", "")


def test_a_pipe_whose_reader_has_gone_stops_nothing():
    reader, writer = os.pipe()
    console = inherited_console(writer, "sft: ")
    os.close(reader)
    for _ in range(3):
        console.say("still here")
        console.progress("step", 1, 1)


def test_an_inherited_descriptor_is_written_at_once_in_utf8():
    reader, writer = os.pipe()
    console = inherited_console(writer, "dpo: ")
    console.say("größer")
    assert os.read(reader, 100).decode() == "dpo: größer\n"
    console._stream.close()
    os.close(reader)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (89 * 60, "89 min"), (5400, "1.5 h"), (90000, "25.0 h")],
)
def test_durations_in_the_unit_a_person_would_use(seconds, said):
    assert module.duration(seconds) == said
