"""No prompt on both sides of the line, in any stage: the hash of the prompt decides."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt
from data_prep.split import eval_hashes, position_of, prompt_hash, prompt_messages, prompt_position, split_records


def turn(role: str, content: str) -> Message:
    return Message(role=role, content=content)  # type: ignore[arg-type]


def origin(split: str | None = None) -> Origin:
    return Origin(source="x", row=1, split=split)  # type: ignore[arg-type]


def demonstration(question: str, split: str | None = None, answer: str = "a") -> Demonstration:
    return Demonstration(messages=(turn("user", question), turn("assistant", answer)), origin=origin(split))


def pair(question: str, split: str | None = None) -> PreferencePair:
    return PreferencePair(prompt=(turn("user", question),), chosen="a", rejected="b", origin=origin(split))


def prompt(question: str, split: str | None = None) -> Prompt:
    return Prompt(messages=(turn("user", question),), origin=origin(split))


KINDS = (demonstration, pair, prompt)


def test_the_hash_is_fixed() -> None:
    # Another value would move prompts between training and evaluation of data sets split before.
    expected = hashlib.sha256(b'[["user", "hi?"]]').hexdigest()
    assert prompt_hash((turn("user", "Hi?"),)) == expected
    assert prompt_position((turn("user", "Hi?"),)) == int(expected[:13], 16) / 2**52


def test_all_kinds_of_record_agree_on_one_prompt() -> None:
    assert len({prompt_hash(prompt_messages(kind("Why?"))) for kind in KINDS}) == 1


def test_only_what_comes_before_the_first_answer_counts() -> None:
    start = (turn("system", "Be brief."), turn("user", "Why?"))
    long = (*start, turn("assistant", "So."), turn("user", "And?"), turn("assistant", "No."))
    assert prompt_hash(long) == prompt_hash(start) == prompt_hash((*start, turn("assistant", "Other.")))
    assert prompt_hash(start) != prompt_hash(start[1:])
    assert prompt_hash((turn("user", "a"), turn("user", "b"))) != prompt_hash((turn("user", "a b"),))
    assert prompt_hash((turn("user", "a"), turn("tool", "b"))) != prompt_hash((turn("user", "a"), turn("user", "b")))


def test_plain_text_has_its_place_by_the_whole_of_it() -> None:
    assert prompt_hash((turn("assistant", "Hello."),)) == prompt_hash((turn("assistant", " hello. "),))
    assert prompt_hash((turn("assistant", "Hello."),)) != prompt_hash((turn("assistant", "Bye."),))
    assert prompt_hash((turn("assistant", "Hello."),)) != prompt_hash((turn("user", "Hello."),))
    with pytest.raises(ValueError, match="needs a turn"):
        prompt_hash(())


@pytest.mark.parametrize("variant", ["why IS it so?", "  Why is\tit\n\nso?  ", "Why\u3000is it\u00a0so?"])
def test_case_and_white_space_make_no_difference(variant: str) -> None:
    assert prompt_hash((turn("user", variant),)) == prompt_hash((turn("user", "Why is it so?"),))
    assert prompt_hash((turn("user", "Why isit so?"),)) != prompt_hash((turn("user", "Why is it so?"),))


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert prompt_hash((turn("user", "cafe\u0301"),)) == prompt_hash((turn("user", "caf\u00e9"),))


def test_positions_fill_the_interval_evenly() -> None:
    positions = [prompt_position((turn("user", f"question {n}"),)) for n in range(4000)]
    for tenth in range(10):
        # binomial(4000, 0.1): standard deviation 19, so 5 of them
        assert abs(sum(tenth <= 10 * u < tenth + 1 for u in positions) - 400) < 95
    assert position_of("f" * 64) < 1 and position_of("0" * 64) == 0


def test_the_four_places() -> None:
    records = [prompt(f"q{n}") for n in range(300)]
    split = split_records(records, 0.1, 0.3)
    by_position = {"train": [], "eval": [], "held_elsewhere": []}
    for record in records:
        u = prompt_position(record.messages)
        by_position["eval" if u < 0.1 else "held_elsewhere" if u < 0.3 else "train"].append(record)
    assert (split.train, split.eval, split.held_elsewhere, split.forbidden) == (*by_position.values(), [])
    assert all(by_position.values())


def test_rows_that_name_their_split_go_there() -> None:
    records = [pair(f"t{n}", "train") for n in range(50)] + [pair(f"e{n}", "eval") for n in range(50)]
    split = split_records(records, 0.2, 0.4)
    assert (split.train, split.eval, split.held_elsewhere) == (records[:50], records[50:], [])


def test_a_prompt_evaluated_on_elsewhere_leaves_training_and_is_counted() -> None:
    records = [demonstration(f"q{n}", "train") for n in range(10)]
    other = [pair("Q3 ", "eval"), pair("q7", "train")]
    split = split_records(records, 0.0, 0.0, eval_hashes(other, 0.0))
    assert (split.forbidden, split.train) == ([records[3]], records[:3] + records[4:])


def test_a_prompt_named_for_both_splits_is_only_evaluated_on() -> None:
    records = [demonstration("same", "train"), demonstration("SAME", "eval")]
    split = split_records(records, 0.0, 0.0)
    assert (split.eval, split.forbidden, split.train) == ([records[1]], [records[0]], [])


@pytest.mark.parametrize(("own", "widest"), [(-0.1, 0.1), (0.2, 0.1), (0.1, 1.0)])
def test_impossible_fractions_are_refused(own: float, widest: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= eval"):
        split_records([prompt("q")], own, widest)


questions = st.sampled_from([f"Question {n}" for n in range(40)])
spelling = st.sampled_from([str.upper, str.lower, lambda text: f" {text}\n", lambda text: text.replace(" ", "  ")])
records_strategy = st.lists(
    st.builds(
        lambda kind, question, spell, split, answer: (
            kind(spell(question), split, answer) if kind is demonstration else kind(spell(question), split)
        ),
        st.sampled_from(KINDS),
        questions,
        spelling,
        st.sampled_from([None, None, None, "train", "eval"]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=25,
)
data_sets_strategy = st.lists(st.tuples(records_strategy, st.floats(0, 0.9)), min_size=1, max_size=4)


def sides(data_sets, forbid: bool = True) -> tuple[set[str], set[str]]:
    """Hashes trained on and hashes evaluated on, over all data sets of a recipe."""
    widest = max(fraction for _, fraction in data_sets)
    forbidden = frozenset().union(*(eval_hashes(records, fraction) for records, fraction in data_sets))
    trained: set[str] = set()
    evaluated: set[str] = set()
    for records, fraction in data_sets:
        split = split_records(records, fraction, widest, forbidden if forbid else frozenset())
        places = (split.train, split.eval, split.held_elsewhere, split.forbidden)
        assert sum(map(len, places)) == len(records)
        trained |= {prompt_hash(prompt_messages(record)) for record in split.train}
        evaluated |= {prompt_hash(prompt_messages(record)) for record in split.eval}
    return trained, evaluated


@settings(max_examples=500, deadline=None)
@given(data_sets_strategy)
def test_no_prompt_trains_and_evaluates_over_all_data_sets(data_sets) -> None:
    trained, evaluated = sides(data_sets)
    assert not trained & evaluated


def test_the_property_above_needs_what_is_forbidden() -> None:
    trained, evaluated = sides([([prompt("q", "train")], 0.0), ([pair("q", "eval")], 0.0)], forbid=False)
    assert trained & evaluated


def test_without_named_splits_the_hash_alone_keeps_them_apart() -> None:
    rng = random.Random(5)
    for _ in range(50):
        sets = [([prompt(f"q{rng.randrange(200)}") for _ in range(60)], rng.random() * 0.6) for _ in range(3)]
        trained, evaluated = sides(sets, forbid=False)
        assert trained and not trained & evaluated


@settings(max_examples=100, deadline=None)
@given(records_strategy, st.floats(0, 0.5), st.randoms(use_true_random=False))
def test_order_makes_no_difference(records, fraction, rng) -> None:
    shuffled = list(records)
    rng.shuffle(shuffled)
    first, second = split_records(records, fraction, 0.5), split_records(shuffled, fraction, 0.5)
    for place in ("train", "eval", "held_elsewhere", "forbidden"):
        assert sorted(map(repr, getattr(first, place))) == sorted(map(repr, getattr(second, place)))
