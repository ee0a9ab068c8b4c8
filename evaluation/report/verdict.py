"""The verdict on one run: a lead sentence, and a few plain ones behind it.

Which policy is better, by how much, at what cost in KL, against what is free, and whether anything got worse. Page and
terminal say the same because both take it from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.report.differences import Pair, pairs_of, starts
from evaluation.report.files import number
from evaluation.report.frontier_section import against_best_of_n, at_equal_kl, clause, trained_pair
from evaluation.report.load import Comparison, Run
from evaluation.report.measures import known_order, measure_named, plain
from evaluation.report.words import Sentence, amount, brief, tone_of
from evaluation.report.worse_section import WorseSection, in_short

if TYPE_CHECKING:
    from evaluation.comparison.equal_kl import Frontier

NOTHING = "The policies have not been compared, so nothing is shown about which of them is better."
_OWN = "score"
"""By the reward model that PPO is trained against, so never the only judge where there is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came out."""

    lead: Sentence
    plain: tuple[Sentence, ...]


def verdict(run: Run, found: Sequence[Frontier], worse: WorseSection) -> Verdict:
    """The verdict on a run whose frontiers and losses are known."""
    short = in_short(worse)
    losses = [Sentence(text=short, tone="worse" if worse.losses else "plain")] if short else []
    sentences = [said for pair in _untold(run) if (said := against(run, pair))]
    first = headline(run)
    equal = at_equal_kl(found, told=None if first is None else trained_pair(found, *first))
    return Verdict(lead=_lead(run, found), plain=(*sentences, *equal, *against_best_of_n(found), *losses))


def headline(run: Run) -> Pair | None:
    """The two policies that a run is about; None where nothing was compared, or where there are more than two to rank.

    Two policies trained from preferences where these were compared with each other; otherwise the last one trained,
    and what it started from.
    """
    pairs = pairs_of(run.comparisons)
    rivals = _rivals(run)
    if len(rivals) > 1:
        among = [pair for pair in pairs if set(pair) <= set(rivals)]
        return among[0] if len(rivals) == 2 and among else None
    own = [pair for pair in pairs if not rivals or pair[1] == rivals[0]]
    return own[-1] if own else None


def against(run: Run, pair: Pair) -> Sentence | None:
    """One policy against another in every outcome that was measured; None where none was."""
    rows = _outcomes(run, pair)
    if not rows:
        return None
    parts = []
    for tone, said in (
        ("better", "better in"), ("worse", "worse in"), ("none", "no difference shown in"),
        ("unsure", "uncertainty not measured of"),
    ):  # fmt: skip
        told = [_told(row) for row in rows if tone_of(row) == tone]
        if told:
            parts.append(f"{said} {_listed(told)}")
    return Sentence(text=f"{pair[1]} against {pair[0]}: {'; '.join(parts)}.", tone=_tone(rows))


def _untold(run: Run) -> list[Pair]:
    """The headline first, unless the lead says all of it; what was trained from preferences before what was not."""
    first = headline(run)
    pairs = pairs_of(run.comparisons)
    if first is None:
        return pairs
    rows, rivals = _outcomes(run, first), _rivals(run)
    others = sorted((pair for pair in pairs if pair != first), key=lambda pair: pair[1] not in rivals)
    return [*([] if rows == _judging(rows) else [first]), *others]


def _judging(rows: Sequence[Comparison]) -> list[Comparison]:
    """Outcomes by what training was not after; the run's own score where there is nothing else."""
    return [row for row in rows if row.metric != _OWN] or [*rows]


def _rivals(run: Run) -> list[str]:
    """The policies that were trained from preferences, and that no other one of them started from."""
    kinds = {stage.name: stage.kind for stage in run.stages}
    begun = starts(run)
    named = dict.fromkeys([*run.policies, *(row.after for row in run.comparisons)])
    trained = [name for name in named if kinds.get(name) in ("dpo", "ppo")]
    gone_on_from = {begun[name] for name in trained if name in begun}
    siblings = {row.before for row in run.comparisons if begun[row.after] != row.before}
    return [name for name in trained if name not in gone_on_from or name in siblings]


def _outcomes(run: Run, pair: Pair) -> list[Comparison]:
    rows = {row.metric: row for row in run.comparisons if (row.before, row.after) == pair}
    return [rows[name] for name in known_order(rows) if measure_named(name).outcome]


def _tone(rows: Sequence[Comparison]) -> str:
    tones = {tone_of(row) for row in rows}
    if {"better", "worse"} <= tones:
        return "mixed"
    return next((tone for tone in ("better", "worse", "none") if tone in tones), "unsure")


def _told(row: Comparison) -> str:
    return f"{brief(measure_named(row.metric))} ({amount(row)})"


def _listed(parts: Sequence[str], word: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def _lead(run: Run, found: Sequence[Frontier]) -> Sentence:
    pair = headline(run)
    if pair is None:
        return _ranked(run)
    before, after = pair
    rows = _outcomes(run, pair)
    judging = _judging(rows)
    if not judging:
        return Sentence(text=NOTHING, tone="plain")
    claim, tone = _claim(judging, before, after, rivals=starts(run).get(after) != before)
    alone = [row for row in rows if row not in judging and tone_of(row) in ("better", "worse")]
    if tone == "none" and alone:
        ahead = after if tone_of(alone[0]) == "better" else before
        claim += f", and {ahead} is ahead in {_told(alone[0])} alone"
    equal = trained_pair(found, before, after)
    parts = [claim, *_cost(run, before, after), *([clause(equal)] if equal else [])]
    return Sentence(text=f"{'; '.join(parts)}.", tone=tone)


def _claim(rows: Sequence[Comparison], before: str, after: str, *, rivals: bool) -> tuple[str, str]:
    """Who is better in what, and the tone of it; of rivals the better one is named first."""
    better, worse = ([_told(row) for row in rows if tone_of(row) == tone] for tone in ("better", "worse"))
    if better and worse:
        return f"{after} is better than {before} in {_listed(better)}, but worse in {_listed(worse)}", "mixed"
    if better:
        return f"{after} is better than {before} in {_listed(better)}", "better"
    if worse and rivals:
        turned = [_told(_turned(row)) for row in rows if tone_of(row) == "worse"]
        return f"{before} is better than {after} in {_listed(turned)}", "better"
    if worse:
        return f"{after} is worse than {before} in {_listed(worse)}", "worse"
    told = _listed([_told(row) for row in rows], "or")
    if all(tone_of(row) == "unsure" for row in rows):
        return f"Whether {after} is better than {before} is not shown: uncertainty not measured in {told}", "unsure"
    return f"No difference is shown between {before} and {after} in {told}", "none"


def _turned(row: Comparison) -> Comparison:
    """The same seen from the other side."""
    low, high = row.bounds or (0.0, 0.0)
    bounds = None if row.bounds is None else (-high, -low)
    return Comparison(
        metric=row.metric, before=row.after, after=row.before, difference=-row.difference, bounds=bounds, n=row.n
    )


def _cost(run: Run, before: str, after: str) -> list[str]:
    """How far both stand from the reference; none where that was not measured."""
    apart = {
        name: kl
        for name in (after, before)
        if name != run.reference and (kl := number(run.policies.get(name, {}).get("kl_to_reference"))) is not None
    }
    if after not in apart:
        return []
    others = "".join(f", {name} {plain(kl)}" for name, kl in apart.items() if name != after)
    return [f"{after} stands {plain(apart[after])} nats of KL from {run.reference or 'its reference'}{others}"]


def _ranked(run: Run) -> Sentence:
    """Several policies at once, each against what it started from, by what training was not after."""
    begun, groups = starts(run), dict[str, list[str]]()
    for name in _rivals(run):
        judging = _judging(_outcomes(run, (begun[name], name))) if name in begun else []
        if judging:
            groups.setdefault(_tone(judging), []).append(name)
    if not groups:
        return Sentence(text=NOTHING, tone="plain")
    words = {
        "better": "shown to be better than what it started from", "worse": "shown to be worse",
        "mixed": "better in one respect and worse in another", "none": "no difference shown",
        "unsure": "uncertainty not measured",
    }  # fmt: skip
    parts = [f"{told}: {_listed(groups[tone])}" for tone, told in words.items() if tone in groups]
    text = "; ".join(parts)
    tone = next(tone for tone in words if tone in groups)
    return Sentence(text=f"{text[:1].upper()}{text[1:]}.", tone=tone)
