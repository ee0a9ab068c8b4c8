"""The judge against a server that fails, its figures against planted biases, and people's votes by hand."""

from __future__ import annotations

import json
import random

import pytest
from fake_endpoint import endpoint

from evaluation.judging.cache import ReplyCache
from evaluation.judging.endpoint import KEY, Endpoint
from evaluation.judging.judge import Match, judge_all, read_letter
from evaluation.judging.policies import as_plain, conversations, from_plain, judge_policies, write_judged
from evaluation.judging.votes import read_votes, voted_pairs
from evaluation.judging.win_rate import Verdict, judged_figures
from pipeline.errors import DataError, RecipeError, SourceUnreachableError
from pipeline.recipe.schema import JudgeSettings

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

    def __init__(self, url, attempts=4, **more):
        self.pauses = []
        self.endpoint = Endpoint(
            url=url, model="m", timeout=5.0, attempts=attempts, sleep=self.pauses.append, **more
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
    with endpoint(longer) as (_, url):
        settings = JudgeSettings(url=url, model="strict", prompts=2)
        judged = judge_policies(settings, prompts, answers, "sft", lambda task: lambda done, total: None)
    assert from_plain(json.loads(json.dumps(as_plain(judged)))).figures == judged.figures
    assert list(judged.figures) == ["base", "ppo"] and judged.columns("sft") == {}
    assert judged.columns("ppo")["win_rate"] == 0.5 and judged.columns("ppo")["win_rate_n"] == 2
    write_judged(tmp_path, judged, prompts, answers, "sft", "strict")
    outputs = json.loads((tmp_path / "alpaca_eval" / "ppo.json").read_text())
    assert outputs[0] == {"instruction": "one", "output": "a", "generator": "ppo", "dataset": "trivet_held_out"}
    rows = json.loads((tmp_path / "alpaca_eval" / "annotations.json").read_text())
    first = next(row for row in rows if row["generator_2"] == "ppo")
    assert (first["output_1"], first["output_2"], first["preference"], first["annotator"]) == ("aa", "a", 1.0, "strict")
    assert {row["preference"] for row in rows} == {1.0, 2.0} and {row["generator_1"] for row in rows} == {"sft"}
    assert conversations(prompts)[1] == "user: two\n\nassistant: x\n\nuser: y"


def vote(prompt, a, b, choice, who="kim"):
    return {"prompt": prompt, "answer_a": a, "answer_b": b, "choice": choice, "who": who, "when": "2026-11-22"}


def written(tmp_path, *votes):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in votes) + "\n")
    return path


ANSWERS = {"sft": {"p": "s1", "q": "s2"}, "ppo": {"p": "p1", "q": "p2"}}


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
    ("line", "said"),
    [("{", "votes.jsonl:1: is not JSON"), ("[]", "lacks prompt"),
     ('{"prompt": "p"}', "lacks answer_a, answer_b, choice"),
     (json.dumps(vote("p", "a", "b", "c")), "choice is 'c'; expected one of a, b, tie")],
)  # fmt: skip
def test_a_line_that_is_no_vote_is_named(tmp_path, line, said):
    path = tmp_path / "votes.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=said.replace("(", r"\(")):
        read_votes(path)
    with pytest.raises(DataError, match="no such file of votes"):
        read_votes(tmp_path / "none.jsonl")
