"""What a query names besides its words: who took part, and when."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

__all__ = ["NamedTimes", "name_candidates", "named_participants", "named_times", "without_names"]

_WORD = re.compile(r"[^\W_]+(?:[-'\u2019][^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$|['\u2019]$")
_BLANKS = re.compile(r"\s+")
# Words that begin questions; they are never looked up as names.
_NEVER_NAMES = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "at",
        "be",
        "by",
        "can",
        "could",
        "describe",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "list",
        "me",
        "of",
        "on",
        "or",
        "tell",
        "the",
        "their",
        "there",
        "these",
        "they",
        "this",
        "to",
        "was",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
    ]
)
_MOST_CANDIDATES = 8

_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = "|".join(_MONTHS)
_YEAR = r"(?P<year>\d{4})"
_TIMES = (
    re.compile(r"\b(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})\b"),
    re.compile(
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month>{_MONTH})\b(?:,?\s+{_YEAR}\b)?"
    ),
    re.compile(rf"\b(?P<month>{_MONTH})\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+{_YEAR}\b)?"),
    re.compile(rf"\b(?P<month>{_MONTH})\b(?:,?\s+{_YEAR}\b)?"),
)
# "may" is a verb more often than a month unless it stands with a number or after a preposition.
_VERB_MAY = re.compile(r"(?<!in )(?<!of )(?<!during )\bmay\b(?!\s+\d)")
# What happened on a day is often told in the days that follow.
_TOLD_BEFORE, _TOLD_AFTER = timedelta(days=2), timedelta(days=8)


@dataclass(frozen=True, slots=True)
class NamedTimes:
    """Spans of story time that a query names, start inclusive, end exclusive, and bare months."""

    spans: tuple[tuple[datetime, datetime], ...] = ()
    months: tuple[int, ...] = ()


def name_candidates(query: str) -> tuple[str, ...]:
    """Returns the words that may be names: those with a capital, or all in a query without one."""
    words = [_POSSESSIVE.sub("", match[0]) for match in _WORD.finditer(query)]
    if any(word[:1].isupper() for word in words):
        words = [word for word in words if word[:1].isupper()]
    likely = (word for word in words if word.lower() not in _NEVER_NAMES)
    return tuple(dict.fromkeys(likely))[:_MOST_CANDIDATES]


def named_participants(query: str, names: Iterable[str]) -> tuple[str, ...]:
    """Returns which of the names the query means, in their order.

    A name is meant when the query has one of its words; of two names, the one of which the query
    has more: "Sabeth Onn" does not mean her brother "Dauro Onn".
    """
    candidates = set(name_candidates(query))
    folded = {word.casefold() for word in candidates}
    found = {name: frozenset(_folded_words(name)) & folded for name in names}
    return tuple(
        name
        for name, words in found.items()
        if words and not any(words < other for other in found.values())
    )


def without_names(query: str, names: Sequence[str]) -> str:
    """Returns the query without the words of the names; the query itself when nothing is left.

    An embedding of a question that names somebody is near to everything that this person said;
    without the name it is near to what is asked.
    """
    words = {word for name in names for word in _folded_words(name)} - _NEVER_NAMES
    if not words:
        return query

    def kept(match: re.Match[str]) -> str:
        return "" if _POSSESSIVE.sub("", match[0]).casefold() in words else match[0]

    rest = _BLANKS.sub(" ", _WORD.sub(kept, query)).strip()
    left = {match[0].lower() for match in _WORD.finditer(rest)}
    return rest if left - _NEVER_NAMES else query


def named_times(query: str) -> NamedTimes:
    """Returns the days and months that a query names in English or as ISO dates.

    A day counts from two days before it to eight after: what happened is told later. A month
    without a year is any year's. Dates that do not exist are passed over.
    """
    text = _VERB_MAY.sub(" ", query.lower())
    spans: list[tuple[datetime, datetime]] = []
    months: list[int] = []
    for pattern in _TIMES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            named = parts["month"]
            month = int(named) if named.isdigit() else _MONTHS.index(named) + 1
            if not parts["year"]:
                months.append(month)
                continue
            span = _span(int(parts["year"]), month, parts.get("day"))
            if span:
                spans.append(span)
        text = pattern.sub(" ", text)
    return NamedTimes(tuple(dict.fromkeys(spans)), tuple(dict.fromkeys(months)))


def _span(year: int, month: int, day: str | None) -> tuple[datetime, datetime] | None:
    try:
        if day is None:
            start = datetime(year, month, 1, tzinfo=UTC)
            following = start + timedelta(days=31)
            return start, following.replace(day=1)
        moment = datetime(year, month, int(day), tzinfo=UTC)
        return moment - _TOLD_BEFORE, moment + _TOLD_AFTER
    except (ValueError, OverflowError):
        return None


def _folded_words(name: str) -> list[str]:
    return [match[0].casefold() for match in _WORD.finditer(name)]
