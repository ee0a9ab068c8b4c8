"""The judge against a server that fails, its figures against planted biases, and people's votes by hand."""

from __future__ import annotations

import json
import os
import random
import time
from functools import partial
from pathlib import Path

import pytest
from fake_endpoint import endpoint

from evaluation.compare import differences
from evaluation.intervals import bootstrap_mean_ci
from evaluation.judging import asking, win_rate
from evaluation.judging import endpoint as endpoint_module
from evaluation.judging.alpaca_eval import write_alpaca_eval
from evaluation.judging.cache import ReplyCache
from evaluation.judging.endpoint import KEY, Endpoint
from evaluation.judging.judge import Match, judge_all, read_letter
from evaluation.judging.policies import Judged, as_plain, conversations, from_plain, judge_policies, write_judged
from evaluation.judging.usage import Usage
from evaluation.judging.votes import read_votes, voted_pairs
from evaluation.judging.win_rate import Verdict, judged_figures
from pipeline.errors import DataError, PreemptedError, RecipeError, SourceUnreachableError
from pipeline.recipe.schema import JudgeSettings
from pipeline.runtime import ROOT

pytestmark = pytest.mark.usefixtures("no_key")
MATCH = Match(prompt="say", a="short", b="a longer answer")


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def longer(first, second):
    return "A" if len(first) > len(second) else "B"


class Asked:
    """An endpoint with its pauses written down instead of waited for."""

    def __init__(self, url, attempts=4, timeout=5.0, **more):
        self.pauses = []
        self.endpoint = Endpoint(
            url=url, model="m", timeout=timeout, attempts=attempts, sleep=self.pauses.append, **more
        )  # fmt: skip


def test_both_orders_are_asked_and_agree(tmp_path):
    with endpoint(longer) as (judge, url):
        (verdict,) = judge_all([MATCH], Asked(url).endpoint, ReplyCache(tmp_path))
    assert (verdict.a_first, verdict.b_first, verdict.value) == (1.0, 1.0, 1.0)
    shown = [body["messages"][1]["content"] for body in judge.asked]
    assert len(shown) == 2 and shown[0].index("short") < shown[0].index("a longer") and shown[0] != shown[1]
    assert all(body["temperature"] == 0 and body["model"] == "m" for body in judge.asked)
    assert judge.keys == [None, None], "without a key none is sent"


def test_a_judge_that_goes_by_position_alone_gives_ties(tmp_path):
    with endpoint(lambda first, second: "A") as (_, url):
        verdicts = judge_all([MATCH, Match(prompt="p", a="x", b="y")], Asked(url).endpoint, ReplyCache(tmp_path))
    figures = judged_figures(verdicts)
    assert figures["win_rate"] == 0.5 and figures["ties"] == 1.0
    assert figures["first_wins"] == 1.0 and figures["orders_agree"] == 0.0 and figures["win_rate_agreed"] is None


def test_equal_answers_are_a_tie_and_cost_nothing(tmp_path):
    with endpoint(longer) as (judge, url):
        (verdict,) = judge_all([Match(prompt="p", a="same", b=" same\n")], Asked(url).endpoint, ReplyCache(tmp_path))
    assert verdict.value == 0.5 and judge.asked == []


@pytest.mark.parametrize("fault", [(429, [], "slow down"), (500, [], "oops"), (503, [], ""), "cut", "no json"], ids=str)
def test_what_passes_is_tried_again_with_growing_pauses(tmp_path, fault):
    with endpoint(longer) as (judge, url):
        judge.faults = [fault, fault]
        asked = Asked(url)
        (verdict,) = judge_all([MATCH], asked.endpoint, ReplyCache(tmp_path), parallel=1)
    assert verdict.value == 1.0 and len(judge.asked) == 4
    assert 1.0 <= asked.pauses[0] <= 1.25 and 2.0 <= asked.pauses[1] <= 2.5


def test_the_server_says_how_long_to_wait_within_reason(tmp_path):
    with endpoint(longer) as (judge, url):
        judge.faults = [(429, [("Retry-After", "7")], ""), (429, [("Retry-After", "86400")], "")]
        asked = Asked(url)
        judge_all([MATCH], asked.endpoint, ReplyCache(tmp_path), parallel=1)
    assert asked.pauses == [7.0, 60.0]


def test_a_server_that_stays_away_ends_it_and_everything_judged_is_kept(tmp_path):
    cache, matches = ReplyCache(tmp_path), [MATCH, Match(prompt="other", a="one", b="three")]
    with endpoint(longer) as (judge, url):
        judge_all(matches[:1], Asked(url).endpoint, cache)
        judge.faults = [(500, [], "")] * 50
        with pytest.raises(SourceUnreachableError, match=r"failed 4 times in a row \(HTTP 500\).*run the same command"):
            judge_all(matches, Asked(url).endpoint, cache, parallel=1)
        judge.faults, judge.asked = [], []
        verdicts = judge_all(matches, Asked(url).endpoint, cache)
        assert [verdict.value for verdict in verdicts] == [1.0, 1.0]
        assert len(judge.asked) == 2, "the pair that was judged before is not asked for again"
    with pytest.raises(SourceUnreachableError, match="ConnectError"):
        judge_all([Match(prompt="new", a="b", b="cc")], Asked(url, attempts=2).endpoint, cache)
    assert judge_all(matches, Asked(url).endpoint, cache) == verdicts, "all from the cache, without a server"


@pytest.mark.parametrize("fault", ["silent", "drip"])
def test_a_server_that_takes_the_question_and_never_answers_ends_it_in_a_sentence(tmp_path, fault):
    cache, said = ReplyCache(tmp_path), []
    with endpoint(longer) as (judge, url):
        judge.faults = [fault] * 3
        asked = Asked(url, attempts=3, timeout=0.2, notice=said.append)
        message = r"failed 3 times in a row \(no reply within 0\.2 s \(ReadTimeout\)\).*run the same command again"
        with pytest.raises(SourceUnreachableError, match=message) as error:
            judge_all([MATCH], asked.endpoint, cache, parallel=1)
        assert error.value.exit_code == 69 and len(judge.asked) == 3 and len(asked.pauses) == 2
        assert [line.rpartition("; ")[2] for line in said] == [
            "asking again, attempt 2 of 3", "asking again, attempt 3 of 3",
        ]  # fmt: skip
        assert all(url in line and "no reply within 0.2 s" in line for line in said)
        judge.faults = []
        assert judge_all([MATCH], Asked(url).endpoint, cache)[0].value == 1.0


def test_who_is_asked_to_stop_does_not_wait_for_a_reply(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "_LOOK_UP", 0.05)
    looked = []

    def stop(done, total):
        looked.append((done, total))
        if len(looked) == 3:
            raise PreemptedError("asked to stop")

    with endpoint(longer) as (judge, url):
        judge.faults = ["silent"] * 8
        started = time.monotonic()
        with pytest.raises(PreemptedError):
            judge_all([MATCH] * 3, Asked(url, timeout=20.0).endpoint, ReplyCache(tmp_path), parallel=1, progress=stop)
        assert time.monotonic() - started < 10 and looked == [(0, 3)] * 3


def test_an_endpoint_that_was_left_puts_no_question_again():
    with endpoint(longer) as (judge, url):
        judge.faults = [(500, [], "")] * 4
        left = Endpoint(url=url, model="m", timeout=5.0, attempts=4, sleep=lambda seconds: left.leave())
        with pytest.raises(SourceUnreachableError):
            left.reply([], 1)
        assert len(judge.asked) == 1


def test_askers_that_fail_alike_are_told_of_once(monkeypatch):
    said = []
    notice = Endpoint.of(JudgeSettings(url="http://x", model="m"), said.append).notice
    for text in ("attempt 2", "attempt 2", "attempt 3", "attempt 2"):
        notice(text)
    assert said == ["attempt 2", "attempt 3"]
    monkeypatch.setattr(endpoint_module, "_SAID_ANEW", 0.0)
    notice("attempt 2")
    assert said[2:] == ["attempt 2"], "much later it is news"


def test_a_judge_that_replies_nonsense_is_told_of(tmp_path, monkeypatch):
    """Of two pairs one is a tie without asking; the control says nothing."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    prompts = [Asking(Turn("user", "one")), Asking(Turn("user", "two"))]
    answers, said = {"sft": ["a", "same"], "ppo": ["bb", "same"]}, []

    def judge(model, prefer):
        with endpoint(prefer) as (_, url):
            settings = JudgeSettings(url=url, model=model)
            return judge_policies(settings, prompts, answers, "sft", lambda task: lambda done, total: None, said.append)

    assert judge("babbler", lambda first, second: "As a language model").figures["ppo"]["unreadable"] == 1
    told = "judge babbler: its verdicts on ppo could be read in 1 of 2 pairs; the others do not count"
    assert said.pop(0) == told and not any("could be read" in line for line in said)
    judge("strict", longer)
    assert not any("could be read" in line for line in said)


@pytest.mark.parametrize(("code", "said"), [(401, KEY), (404, "evaluation.judge.url"), (400, "evaluation.judge.model")])
def test_what_will_not_pass_ends_at_once_with_what_to_do(tmp_path, code, said):
    with endpoint(longer) as (judge, url):
        judge.faults = [(code, [], "no")]
        asked = Asked(url)
        with pytest.raises(RecipeError, match=f"HTTP {code}: no.*{said}"):
            judge_all([MATCH], asked.endpoint, ReplyCache(tmp_path), parallel=1)
    assert asked.pauses == []


def test_nonsense_is_asked_for_once_more_and_then_counts_as_unread(tmp_path):
    with endpoint(longer) as (judge, url):
        judge.faults = ["As a language model", "Both are fine in their way", "I prefer neither"]
        once, twice = judge_all(
            [MATCH, Match(prompt="p", a="x", b="yy")], Asked(url).endpoint, ReplyCache(tmp_path), parallel=1
        )
    assert once.a_first is None and once.value is None and twice.value == 1.0
    figures = judged_figures([once, twice])
    assert figures["unreadable"] == 1 and figures["win_rate_n"] == 1 and figures["win_rate"] == 1.0


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("A", "A"), (" b.", "B"), ("**B**", "B"), ("Answer A is better", "A"), ("tie", "T"), ("T", "T"),
     ("A great answer", None), ("A. It is right", "A"), ("answer_B is", "B"), ("", None),
     ("Both", None), ("The first", None), ("Banana", None)],
)  # fmt: skip
def test_only_the_letter_that_a_reply_begins_with_is_read(reply, letter):
    assert read_letter(reply) == letter


def test_the_key_comes_from_the_environment_and_is_kept_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, "very-secret")
    with endpoint(longer) as (judge, url):
        judge_all([MATCH], Asked(url).endpoint, ReplyCache(tmp_path))
    assert judge.keys == ["Bearer very-secret"] * 2
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(kept) == 2 and not any("very-secret" in text for text in kept)


def test_a_damaged_cache_is_asked_around(tmp_path):
    with endpoint(longer) as (judge, url):
        judge_all([MATCH], Asked(url).endpoint, ReplyCache(tmp_path))
        for path in tmp_path.rglob("*.json"):
            path.write_text("{")
        assert judge_all([MATCH], Asked(url).endpoint, ReplyCache(tmp_path))[0].value == 1.0
    assert len(judge.asked) == 4


COUNTED = {"prompt_tokens": 90, "completion_tokens": 2, "total_tokens": 92}


def test_replies_and_tokens_are_counted_and_kept_ones_apart(tmp_path):
    """Two questions a pair: one pair is kept, one meets a failure and nonsense, of one the server counts no tokens."""
    cache, pairs = ReplyCache(tmp_path), [MATCH, Match(prompt="p", a="x", b="yy"), Match(prompt="q", a="x", b="yy")]
    with endpoint(longer) as (judge, url):
        judge.usage = COUNTED
        first = Asked(url).endpoint
        judge_all(pairs[:1], first, cache)
        assert first.meter.usage == Usage(asked=2, prompt_tokens=180, completion_tokens=4)
        second = Asked(url).endpoint
        judge.faults = [(500, [], ""), "As a language model"]
        judge_all(pairs[:2], second, cache, parallel=1)
        again = Usage(
            asked=3, prompt_tokens=270, completion_tokens=6, cached=2, cached_prompt_tokens=180,
            cached_completion_tokens=4, failed=1,
        )  # fmt: skip
        assert second.meter.usage == again
        third, judge.usage = Asked(url).endpoint, {"prompt_tokens": "many", "completion_tokens": True}
        judge_all(pairs[2:], third, cache)
        assert third.meter.usage == Usage(asked=2, uncounted=2)
    assert (third.meter.usage + again).told == (
        "5 replies (270 + 6 tokens), 2 more kept from earlier (180 + 4 then), 1 failed attempt, "
        "tokens of 2 not told by the server"
    )


def test_a_reply_that_was_kept_without_its_tokens_is_used(tmp_path):
    with endpoint(longer) as (judge, url):
        judge_all([MATCH], Asked(url).endpoint, ReplyCache(tmp_path))
        for path in tmp_path.rglob("*.json"):
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "usage"}))
        later = Asked(url).endpoint
        assert judge_all([MATCH], later, ReplyCache(tmp_path))[0].value == 1.0
    assert len(judge.asked) == 2 and later.meter.usage == Usage(cached=2, uncounted=2)


def biased(prompts=1000, true_rate=0.7, pull=0.8, seed=0):
    """Pairs whose better answer wins unless the other stands first and is not worse by more than `pull`."""
    generator, verdicts, truth, single = random.Random(seed), [], [], []
    for _ in range(prompts):
        gap = abs(generator.gauss(0, 1)) * (1 if generator.random() < true_rate else -1)
        truth.append(gap > 0)
        a_first, b_first = float(gap > pull), float(gap > -pull)
        if abs(gap) < pull and generator.random() < 0.5:
            a_first = b_first = float(gap > 0)
        single.append(a_first)
        verdicts.append(Verdict(a_first=a_first, b_first=b_first, a_length=5, b_length=5))
    return verdicts, sum(truth) / prompts, sum(single) / prompts


def test_a_planted_win_rate_is_recovered_under_position_bias():
    """A judge that picks what stands first in half of all close pairs, and in no pair judges by anything else."""
    verdicts, truth, single = biased()
    figures = judged_figures(verdicts)
    assert figures["win_rate_agreed"] == pytest.approx(truth, abs=0.02)
    assert abs(single - truth) > 0.1, "the control: one order alone is far off"
    assert figures["first_wins_ci95"][0] > 0.5 and 0.5 < figures["orders_agree"] < 0.9
    low, high = figures["win_rate_ci95"]
    assert low < figures["win_rate"] < high and figures["win_rate_n"] == 1000


@pytest.fixture
def few_resamples(monkeypatch):
    """Where intervals are not looked at."""
    monkeypatch.setattr(win_rate, "bootstrap_mean_ci", partial(bootstrap_mean_ci, resamples=20))


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("true_rate", [0.3, 0.7])
def test_a_planted_win_rate_is_recovered_from_every_seed(seed, true_rate):
    verdicts, truth, single = biased(prompts=4000, true_rate=true_rate, seed=seed)
    figures = judged_figures(verdicts)
    assert figures["win_rate_agreed"] == pytest.approx(truth, abs=0.02)
    assert abs(figures["win_rate"] - 0.5) < abs(truth - 0.5) - 0.02, "contradictions draw it towards one half"
    assert (figures["win_rate"] > 0.5) == (truth > 0.5), "but never over it"
    assert figures["win_rate_least"] <= truth <= figures["win_rate_most"] and abs(single - truth) > 0.02


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("seed", range(10))
def test_whatever_the_pairs_are_like_that_are_decided_by_place_the_truth_lies_between(seed):
    """B is clearly better in half of all pairs, and a little worse in all others: its wins are what the judge can tell.

    The control: the agreed rate is far off here, as the pairs it leaves out are unlike the others.
    """
    generator, verdicts, truth = random.Random(seed), [], []
    for _ in range(1000):
        clear, by_place = generator.random() < 0.5, generator.random() < 0.5
        truth.append(clear)
        a_first, b_first = (1.0, 1.0) if clear else (0.0, 1.0) if by_place else (0.0, 0.0)
        verdicts.append(Verdict(a_first=a_first, b_first=b_first, a_length=5, b_length=5))
    figures, share = judged_figures(verdicts), sum(truth) / 1000
    assert figures["win_rate_least"] <= share <= figures["win_rate_most"]
    assert figures["win_rate_agreed"] > share + 0.1
    assert figures["win_rate_most"] - figures["win_rate_least"] == pytest.approx(1 - figures["orders_agree"])


def test_half_a_contradiction_leaves_half_a_doubt():
    """A tie in one order and a win in the other: between one half and one."""
    figures = judged_figures([Verdict(a_first=0.5, b_first=1.0, a_length=5, b_length=5)])
    assert (figures["win_rate_least"], figures["win_rate"], figures["win_rate_most"]) == (0.5, 0.75, 1.0)


def test_an_even_win_rate_stays_even_under_position_bias():
    verdicts, truth, single = biased(true_rate=0.5, seed=1)
    assert judged_figures(verdicts)["win_rate"] == pytest.approx(truth, abs=0.02) and abs(single - truth) > 0.1


def test_length_bias_shows():
    by_length = [Verdict(a_first=1.0, b_first=1.0, a_length=3, b_length=9)] * 30
    against = [Verdict(a_first=1.0, b_first=1.0, a_length=9, b_length=3)] * 10
    tied = [Verdict(a_first=0.5, b_first=0.5, a_length=3, b_length=9)] * 5
    figures = judged_figures(by_length + against + tied)
    assert figures["longer_wins"] == pytest.approx(0.75) and figures["longer_wins_n"] == 40
    assert figures["win_rate"] == pytest.approx(42.5 / 45) and figures["ties"] == pytest.approx(5 / 45)


def test_nothing_judged_gives_none_everywhere():
    figures = judged_figures([])
    assert figures["win_rate"] is figures["win_rate_ci95"] is figures["orders_agree"] is figures["longer_wins"] is None


class Turn:
    def __init__(self, role, content):
        self.role, self.content = role, content


class Asking:
    def __init__(self, *turns):
        self.messages = turns


def test_all_policies_are_held_against_the_reference_and_written_for_alpaca_eval(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    prompts = [Asking(Turn("user", "one")), Asking(Turn("user", "two"), Turn("assistant", "x"), Turn("user", "y"))]
    prompts.append(Asking(Turn("user", "not judged")))
    answers = {"base": ["aaaa", "b", "z"], "sft": ["aa", "bb", "z"], "ppo": ["a", "bbb", "z"]}
    with endpoint(longer) as (judge, url):
        judge.usage, said = COUNTED, []
        settings = JudgeSettings(url=url, model="strict", prompts=2)
        judged = judge_policies(settings, prompts, answers, "sft", lambda task: lambda done, total: None, said.append)
    assert judged.usage == Usage(asked=8, prompt_tokens=720, completion_tokens=16)
    assert said == ["judge strict: 8 replies (720 + 16 tokens) for its verdicts on base and ppo"]
    assert from_plain(json.loads(json.dumps(as_plain(judged)))) == judged
    assert list(judged.figures) == ["base", "ppo"] and judged.columns("sft") == {}
    assert judged.columns("ppo")["win_rate"] == 0.5 and judged.columns("ppo")["win_rate_n"] == 2
    assert judged.columns("ppo")["win_rate_agreed"] == 0.5 and judged.columns("ppo")["win_rate_agreed_n"] == 2
    write_judged(tmp_path, judged, prompts, answers, "sft", "strict")
    outputs = json.loads((tmp_path / "alpaca_eval" / "ppo.json").read_text())
    assert outputs[0] == {"instruction": "one", "output": "a", "generator": "ppo", "dataset": "trivet_held_out"}
    rows = json.loads((tmp_path / "alpaca_eval" / "annotations.json").read_text())
    first = next(row for row in rows if row["generator_2"] == "ppo")
    assert (first["output_1"], first["output_2"], first["preference"], first["annotator"]) == ("aa", "a", 1.0, "strict")
    assert {row["preference"] for row in rows} == {1.0, 2.0} and {row["generator_1"] for row in rows} == {"sft"}
    assert conversations(prompts)[1] == "user: two\n\nassistant: x\n\nuser: y"


def test_shares_are_by_prompt_and_the_reference_stands_at_one_half():
    def pairs(*orders):
        return [(MATCH, Verdict(a_first=a, b_first=b, a_length=1, b_length=1)) for a, b in orders]

    judged = Judged({"base": pairs((1.0, 1.0), (0.0, None)), "dpo": pairs((0.0, 1.0), (0.0, 0.0))})
    shares = judged.shares("sft")
    assert shares == {"sft": [0.5, 0.5], "base": [1.0, None], "dpo": [0.5, 0.0]}
    rows = differences("win_rate", [("base", "sft"), ("sft", "dpo")], shares)
    assert [(row["from"], row["to"], row["difference"], row["n"]) for row in rows] == [
        ("base", "sft", -0.5, 1), ("sft", "dpo", -0.25, 2),
    ]  # fmt: skip
    assert Judged({}).shares("sft") == {} and differences("win_rate", [("base", "sft")], {}) == []


ALPACA_EVAL = Path(os.environ.get("TRIVET_REAL_DATA") or ROOT.parent / "shared" / "data") / "alpaca_eval"


@pytest.mark.skipif(not ALPACA_EVAL.is_dir(), reason="the public files are not here")
def test_files_are_shaped_as_those_that_alpaca_eval_publishes(tmp_path):
    """The same keys, types and sides; annotations without what only their own annotators know: price, time, reply."""
    match, verdict = Match(prompt="one", a="aa", b="b"), Verdict(a_first=1.0, b_first=1.0, a_length=2, b_length=1)
    answers = {"sft": ["aa"], "ppo": ["b"]}
    write_alpaca_eval(tmp_path, ["one"], answers, "sft", {"ppo": [(match, verdict)]}, "strict")

    def shape(rows):
        (found,) = {tuple(sorted((name, type(value).__name__) for name, value in row.items())) for row in rows}
        return set(found)

    def published(name):
        return json.loads((ALPACA_EVAL / name).read_text(encoding="utf-8"))

    ours = json.loads((tmp_path / "ppo.json").read_text())
    for file in sorted(ALPACA_EVAL.glob("*_model_outputs.json")):
        assert shape(ours) == shape(published(file.name))
    theirs = published("Mixtral-8x7B-Instruct-v0.1_alpaca_eval_gpt4_turbo_fn_annotations.json")
    own = {("price_per_example", "float"), ("time_per_example", "float"), ("raw_completion", "dict")}
    mine = json.loads((tmp_path / "annotations.json").read_text())
    assert shape(mine) == shape(theirs) - own
    assert {row["generator_2"] for row in theirs} == {"Mixtral-8x7B-Instruct-v0.1"} and mine[0]["generator_2"] == "ppo"
    preferences = [row["preference"] for row in theirs]
    assert min(preferences) == 1.0 and max(preferences) == mine[0]["preference"] == 2.0, "2: the second wins"


def vote(prompt, a, b, choice, who="kim", when="2026-11-22"):
    return {"prompt": prompt, "answer_a": a, "answer_b": b, "choice": choice, "who": who, "when": when}


def written(tmp_path, *votes):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in votes) + "\n")
    return path


ANSWERS = {"sft": {"p": ["s1"], "q": ["s2"]}, "ppo": {"p": ["p1"], "q": ["p2"]}}


def test_votes_by_hand(tmp_path):
    """On p two people say ppo and one sft, on q one says tie; over prompts (2/3 + 1/2) / 2. Shown either way round."""
    path = written(
        tmp_path, vote("p", "s1", "p1", "b"), vote("p", "p1", "s1", "a", "lee"), vote("p", "s1", "p1", "a", "max"),
        vote("q", "s2", "p2", "tie"), vote("q", "s2", "not an answer", "a", "zoe"),
    )  # fmt: skip
    (pair,), unknown = voted_pairs(read_votes(path), ANSWERS)
    assert (pair.a, pair.b, pair.votes, pair.voters, unknown) == ("sft", "ppo", 4, 3, 1)
    assert pair.figures["win_rate"] == pytest.approx((2 / 3 + 1 / 2) / 2) and pair.figures["win_rate_n"] == 2


def test_votes_on_answers_with_a_line_separator_in_them(tmp_path):
    """A browser writes it as it is."""
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(vote("p", "s\u20281", "p1", "b"), ensure_ascii=False) + "\n", encoding="utf-8")
    (found,) = read_votes(path)
    assert found.answer_a == "s\u20281"


def test_who_votes_again_has_changed_their_mind(tmp_path):
    path = written(tmp_path, vote("p", "s1", "p1", "a"), vote("p", "p1", "s1", "a"), vote("q", "s2", "p2", "b"))
    votes = read_votes(path)
    assert len(votes) == 2
    (pair,), _ = voted_pairs(votes, ANSWERS)
    assert pair.figures["win_rate"] == 1.0


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("2026-11-22", "2026-11-22", 1), ("2026-11-22T10:00:00Z", "2026-11-22T09:00:00Z", 0),
        ("2026-11-22T10:00:00+02:00", "2026-11-22T09:00:00Z", 1), ("2026-11-22T10:00:00", "2026-11-21T12:00:00Z", 0),
        ("2026-11-22", "", 1), ("", "2026-11-22", 1),
    ],
)  # fmt: skip
def test_the_later_vote_counts_by_when_it_was_cast(tmp_path, first, second, kept):
    """Files of several pages are put together in any order; one line that does not say when leaves it to the order."""
    path = written(tmp_path, vote("p", "s1", "p1", "a", when=first), vote("p", "s1", "p1", "b", when=second))
    (found,) = read_votes(path)
    assert found.choice == "ab"[kept]


def test_prompts_of_one_text_are_voted_on_apart(tmp_path):
    """Two prompts that differ in their tools alone: on one ppo wins, on the other sft; as one it would be a third."""
    answers = {"sft": {"p": ["s1", "a longer s2"]}, "ppo": {"p": ["p1", "p2"]}}
    path = written(
        tmp_path, vote("p", "s1", "p1", "b"), vote("p", "a longer s2", "p2", "a"),
        vote("p", "a longer s2", "p2", "a", "lee"), vote("p", "s1", "p2", "b"),
    )  # fmt: skip
    (pair,), unknown = voted_pairs(read_votes(path), answers)
    assert unknown == 1 and pair.votes == 3
    assert pair.figures["win_rate"] == 0.5 and pair.figures["win_rate_n"] == 2
    assert pair.figures["longer_wins"] == 1.0 and pair.figures["longer_wins_n"] == 1, "each by its own answers' lengths"


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "votes.jsonl:1: is not JSON"), ("[]", "lacks prompt"),
     ('{"prompt": "p"}', "lacks answer_a, answer_b, choice"),
     (json.dumps(vote("p", "a", "b", "c")), "choice is 'c'; expected one of a, b, tie"),
     (json.dumps(vote("p", "a", "b", "a", when="yesterday")), "when is 'yesterday'; expected a date or a time such")],
)  # fmt: skip
def test_a_line_that_is_no_vote_is_named(tmp_path, line, said):
    path = tmp_path / "votes.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=said.replace("(", r"\(")):
        read_votes(path)
    with pytest.raises(DataError, match="no such file of votes"):
        read_votes(tmp_path / "none.jsonl")
