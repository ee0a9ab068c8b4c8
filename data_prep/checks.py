"""Rules that tell a right answer from a wrong one without a model: a check is a small JSON object, all of it must hold.

| key | value | holds when |
|---|---|---|
| `exact` | text, or a list of them | the response is that text, up to case, spaces, quotes and the final full stop |
| `one_of` | list of texts | one of them is stated in a short phrase, not negated, not within a list of options |
| `label`, `labels` | text, list | of the labels exactly this one is named, and it is not negated |
| `contains_all` | list of texts, or of lists of alternatives | each is there, as a whole word or phrase |
| `contains_none` | list of texts | none of them is there |
| `number`, `given` | number, list | it is stated, and no other number but those given in the prompt |
| `date`, `given` | ISO date, list | the same for dates, in any usual spelling; the year may be left out |
| `json` | any JSON value | the response is this value as JSON, perhaps fenced, and nothing else |
| `items` | list of texts | these items in this order and no others, in any usual list form |
| `bullets` | list of texts | one line for each item, each with a bullet or a number |
| `max_words`, `min_words` | count | words between spaces |
| `max_chars`, `min_chars` | count | characters without spaces: the measure of length for Chinese |
| `max_sentences` | count | sentences |
| `language` | `"en"` or `"zh"` | the letters are mostly of that language |
| `case` | `"upper"` or `"lower"` | every letter is |
| `refuses` | true or false | declines the request (and does not go on to fulfil it), or does not decline |
| `admits_unknown` | true or false | says that it cannot be known, or does not say so |
| `agrees` | true or false | does not contradict the user, or does not give in to the user |
| `grounded` | text | no number and no capitalised name that is missing in this text |
| `regex` | pattern | found in the response |

Read by evaluation and by rule-scored PPO; the rows of `data_prep.samples` carry such checks. Layer 1, stdlib only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from data_prep import stances
from data_prep import text_forms as forms
from pipeline.errors import DataError

_SHORT_PHRASE_EXTRA = 8
"""How many words `one_of` allows around the answer: enough for "Sure, I think that the answer is ...", no more."""


def _exact(value: str | list[str], response: str) -> bool:
    accepted = [value] if isinstance(value, str) else value
    return forms.normal(response) in {forms.normal(text) for text in accepted}


def _one_of(value: list[str], response: str) -> bool:
    if _exact(value, response):
        return True
    if len(response.strip().splitlines()) > 1 or forms.lists_options(response):
        return False
    longest = max(forms.length(text) for text in value)
    return forms.length(response) <= longest + _SHORT_PHRASE_EXTRA and any(forms.states(response, t) for t in value)


def _label(label: str, labels: list[str], response: str) -> bool:
    named = {name for name in labels if forms.contains(response, name)}
    return named == {label} and forms.states(response, label)


def _contains_all(value: list[str | list[str]], response: str) -> bool:
    groups = [[group] if isinstance(group, str) else group for group in value]
    return all(any(forms.contains(response, text) for text in group) for group in groups)


def _stated(value: Any, given: list[Any], found: list[Any]) -> bool:
    """The value is there, and nothing else but what the prompt gave: no listing of options."""
    return value in found and all(item == value or item in given for item in found)


def _number(value: float, given: list[float], response: str) -> bool:
    return _stated(value, given, forms.numbers(response))


def _date(value: str, given: list[str], response: str) -> bool:
    wanted, *known = (forms.iso_date(text) for text in [value, *given])
    found = forms.dates(response, default_year=wanted[0])
    # "10 days after 28 December" names the given day without its year: then the month and the day decide.
    return _stated(wanted[1:], [day[1:] for day in known], [day[1:] for day in found]) and all(
        day[0] in {wanted[0], *(k[0] for k in known)} for day in found
    )


def _json(value: Any, response: str) -> bool:
    try:
        parsed = json.loads(forms.unfenced(response))
    except ValueError:
        return False
    return forms.same_json(parsed, value)


def _items(value: list[str], response: str) -> bool:
    return forms.list_items(response, len(value)) == [forms.normal(item) for item in value]


def _bullets(value: list[str], response: str) -> bool:
    return forms.bullet_items(response) == [forms.normal(item) for item in value]


def _grounded(source: str, response: str) -> bool:
    known = forms.claims(source)
    return all(claim in known or forms.contains(source, claim) for claim in forms.claims(response, skip_initial=True))


_Rule = Callable[[Mapping[str, Any], str], bool]
_RULES: dict[str, _Rule] = {
    "exact": lambda check, r: _exact(check["exact"], r),
    "one_of": lambda check, r: _one_of(check["one_of"], r),
    "label": lambda check, r: _label(check["label"], check["labels"], r),
    "contains_all": lambda check, r: _contains_all(check["contains_all"], r),
    "contains_none": lambda check, r: not any(forms.contains(r, text) for text in check["contains_none"]),
    "number": lambda check, r: _number(check["number"], check.get("given", []), r),
    "date": lambda check, r: _date(check["date"], check.get("given", []), r),
    "json": lambda check, r: _json(check["json"], r),
    "items": lambda check, r: _items(check["items"], r),
    "bullets": lambda check, r: _bullets(check["bullets"], r),
    "max_words": lambda check, r: len(r.split()) <= check["max_words"],
    "min_words": lambda check, r: len(r.split()) >= check["min_words"],
    "max_chars": lambda check, r: len("".join(r.split())) <= check["max_chars"],
    "min_chars": lambda check, r: len("".join(r.split())) >= check["min_chars"],
    "max_sentences": lambda check, r: forms.sentence_count(r) <= check["max_sentences"],
    "language": lambda check, r: forms.language(r) == check["language"],
    "case": lambda check, r: forms.letter_case(r) == check["case"],
    "refuses": lambda check, r: stances.refuses(r) == check["refuses"],
    "admits_unknown": lambda check, r: stances.admits_unknown(r) == check["admits_unknown"],
    "agrees": lambda check, r: not (stances.contradicts(r) if check["agrees"] else stances.gives_in(r)),
    "grounded": lambda check, r: _grounded(check["grounded"], r),
    "regex": lambda check, r: re.search(check["regex"], r) is not None,
}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) and t.strip() for t in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and forms.is_iso_date(value)


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (TypeError, re.error):
        return False
    return True


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "exact": (lambda v: (isinstance(v, str) and bool(v.strip())) or _is_texts(v), "a text or a list of texts"),
    "one_of": (_is_texts, "a list of texts"),
    "label": (lambda v: isinstance(v, str), "a text"),
    "labels": (_is_texts, "a list of texts"),
    "contains_all": (
        lambda v: isinstance(v, list) and bool(v) and all(_is_texts([t] if isinstance(t, str) else t) for t in v),
        "a list of texts or of lists of texts",
    ),
    "contains_none": (_is_texts, "a list of texts"),
    "number": (_is_number, "a number"),
    "given": (
        lambda v: isinstance(v, list) and (all(map(_is_number, v)) or all(map(_is_date, v))),
        "a list of numbers or of ISO dates",
    ),
    "date": (_is_date, "a date like 2024-03-05"),
    "json": (lambda v: True, "any JSON value"),
    "items": (_is_texts, "a list of texts"),
    "bullets": (_is_texts, "a list of texts"),
    "max_words": (_is_count, "a positive count"),
    "min_words": (_is_count, "a positive count"),
    "max_chars": (_is_count, "a positive count"),
    "min_chars": (_is_count, "a positive count"),
    "max_sentences": (_is_count, "a positive count"),
    "language": (lambda v: v in ("en", "zh"), '"en" or "zh"'),
    "case": (lambda v: v in ("upper", "lower"), '"upper" or "lower"'),
    "refuses": (_is_bool, "true or false"),
    "admits_unknown": (_is_bool, "true or false"),
    "agrees": (_is_bool, "true or false"),
    "grounded": (lambda v: isinstance(v, str) and bool(v.strip()), "a text"),
    "regex": (_is_pattern, "a regular expression"),
}


def validate(check: Mapping[str, Any]) -> None:
    """Raise `DataError` that names what is wrong with a check: no rule, an unknown one, a wrong value."""
    if not isinstance(check, Mapping):
        raise DataError(f"check: expected an object of rules, found {check!r}")
    for key, value in check.items():
        if key not in _SHAPES:
            raise DataError(f"check: unknown rule {key!r}; known are {', '.join(sorted(_SHAPES))}")
        fits, expected = _SHAPES[key]
        if not fits(value):
            raise DataError(f"check: {key} must be {expected}, found {value!r}")
    if not set(check) & set(_RULES):
        raise DataError(f"check: {dict(check)!r} holds no rule, so every answer would pass")
    if ("label" in check) != ("labels" in check) or check.get("label", "") not in check.get("labels", [""]):
        raise DataError(f"check: `label` and `labels` go together, and the label is one of them: {dict(check)!r}")
    needed = _is_number if "number" in check else _is_date if "date" in check else None
    if "given" in check and (needed is None or not all(map(needed, check["given"]))):
        raise DataError(f"check: `given` goes with a `number` or a `date` and is of its kind: {dict(check)!r}")


def passes(check: Mapping[str, Any], response: str) -> bool:
    """Whether the response holds to every rule of the check; an empty response holds to none."""
    validate(check)
    if not response.strip():
        return False
    return all(_RULES[key](check, response) for key in check if key in _RULES)
