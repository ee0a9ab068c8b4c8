"""Personal data and secrets in a text: found by their form, confirmed by their check digits, and masked.

Numbers are confirmed by python-stdnum and phonenumbers, secrets by the patterns of detect-secrets. Addresses at the
domains and phone numbers that are reserved for examples are left alone.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}(?![\w@])", re.ASCII
)
_RESERVED = re.compile(r"(?:^|[@.])(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", re.IGNORECASE)
_DIGITS = re.compile(r"(?<![\w.])(?:\d[ -]?){12,18}\d(?![\w])", re.ASCII)
_CARD = re.compile(r"4\d{12}(?:\d{3})?|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|6(?:011|5\d\d)\d{12}|62\d{14,17}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CHINESE_ID = re.compile(r"(?<!\d)\d{17}[\dXx](?![\dA-Za-z])")
_SSN = re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")
_MAYBE_PHONE = re.compile(r"(?:\+|\(|\b)\d[\d\s().\-–]{5,18}\d")
_MOBILE_ZH = re.compile(r"(?<!\d)1[3-9]\d(?:[ -]?\d{4}){2}(?!\d)")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_NEWER_KEYS = re.compile(r"\b(?:hf_[A-Za-z]{34}|AIza[\w-]{35}|sk-(?:proj|ant|svcacct)-[\w-]{20,}|github_pat_\w{60,})")
_DETECTORS = {
    "aws": "AWSKeyDetector",
    "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector",
    "discord": "DiscordBotTokenDetector",
    "github_token": "GitHubTokenDetector",
    "gitlab_token": "GitLabTokenDetector",
    "jwt": "JwtTokenDetector",
    "mailchimp": "MailchimpDetector",
    "openai": "OpenAIDetector",
    "pypi_token": "PypiTokenDetector",
    "sendgrid": "SendGridDetector",
    "slack": "SlackDetector",
    "square_oauth": "SquareOAuthDetector",
    "stripe": "StripeDetector",
    "telegram_token": "TelegramBotTokenDetector",
    "twilio": "TwilioKeyDetector",
}
"""Those of detect-secrets whose patterns name one provider's format; guesses by entropy would mask ordinary text."""


class Hit(NamedTuple):
    """A stretch of text and what it is."""

    kind: str
    start: int
    end: int


def personal_data(text: str) -> list[Hit]:
    """E-mail addresses, phone, card and bank numbers, Chinese identity and US social security numbers, in order."""
    return _without_overlaps([*_emails(text), *_numbers(text), *_phones(text)])


def secrets(text: str) -> list[Hit]:
    """Private keys, tokens and API keys of common providers, passwords inside links, in order."""
    hits = [Hit("SECRET", *hit.span()) for hit in _PRIVATE_KEY.finditer(text)]
    hits += [Hit("SECRET", *hit.span()) for hit in _NEWER_KEYS.finditer(text)]
    for pattern in _secret_patterns():
        for hit in pattern.finditer(text):
            group = 1 if pattern.groups and hit.start(1) >= 0 and hit.end(1) - hit.start(1) > 8 else 0
            hits.append(Hit("SECRET", *hit.span(group)))
    return _without_overlaps(hits)


def masked(text: str, find: Callable[[str], list[Hit]]) -> tuple[str, list[str]]:
    """The text with every hit replaced by its kind, such as `<EMAIL>`, and the kinds that were replaced."""
    hits = find(text)
    pieces, at = [], 0
    for hit in hits:
        pieces += [text[at : hit.start], f"<{hit.kind}>"]
        at = hit.end
    return "".join([*pieces, text[at:]]) if hits else text, [hit.kind for hit in hits]


def _emails(text: str) -> Iterator[Hit]:
    if "@" in text:
        for hit in _EMAIL.finditer(text):
            if not _RESERVED.search(hit.group()):
                yield Hit("EMAIL", *hit.span())


def _numbers(text: str) -> Iterator[Hit]:
    from stdnum import iban, luhn
    from stdnum.cn import ric
    from stdnum.us import ssn

    for hit in _CHINESE_ID.finditer(text):
        if ric.is_valid(hit.group().upper()):
            yield Hit("ID", *hit.span())
    for hit in _DIGITS.finditer(text):
        digits = re.sub(r"\D", "", hit.group())
        if _CARD.fullmatch(digits) and luhn.is_valid(digits):
            yield Hit("CARD", *hit.span())
    for hit in _IBAN.finditer(text):
        if iban.is_valid(hit.group()):
            yield Hit("IBAN", *hit.span())
    for hit in _SSN.finditer(text):
        if ssn.is_valid(hit.group()):
            yield Hit("ID", *hit.span())


def _phones(text: str) -> Iterator[Hit]:
    for hit in _MOBILE_ZH.finditer(text):
        yield Hit("PHONE", *hit.span())
    if not _MAYBE_PHONE.search(text):
        return
    from phonenumbers import Leniency, PhoneNumberMatcher

    for match in PhoneNumberMatcher(text, "US", leniency=Leniency.STRICT_GROUPING):
        # Ten digits in one go are a number like any other; a phone number is written in groups, or with a plus.
        if match.raw_string.startswith("+") or len(re.findall(r"\d+", match.raw_string)) > 2:
            yield Hit("PHONE", match.start, match.end)


@cache
def _secret_patterns() -> tuple[re.Pattern[str], ...]:
    found: list[re.Pattern[str]] = []
    for module, name in _DETECTORS.items():
        found += getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name).denylist
    return tuple(found)


def _without_overlaps(hits: list[Hit]) -> list[Hit]:
    """In order; of two that overlap, the one that begins first or is longer."""
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: (hit.start, hit.start - hit.end)):
        if not kept or hit.start >= kept[-1].end:
            kept.append(hit)
    return kept
