"""Which questions ask for a time, and which texts tell one, in English.

A question that begins with "when" has few words in common with its answer, which says "yesterday"
or "last week"; what else happened around it shares as many words and tells no time.
"""

import re

__all__ = ["asks_for_a_time", "tells_a_time"]

_NUMBER = (
    r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|a few|few|a couple of|several|many"
    r"|some|\d+)"
)
_SPAN = r"(?:moment|hour|day|night|week|weekend|month|year|season|while)s?"
_DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?"
# "May" and "march" are verbs as often as months; a year or a day beside them tells the time anyway.
_MONTH = (
    r"(?:january|february|april|june|july|august|september|october|november|december"
    r"|(?:in|of|since|until|last|next|this) (?:march|may))"
)
_PART = r"(?:morning|afternoon|evening|night|day|week|weekend|month|year|season)"
_SEASON = r"(?:spring|summer|autumn|fall|winter)"

# Of texts in small letters: to look for both sizes takes twice as long.
_ASKS = re.compile(
    r"^\s*(?:(?:since|until) )?when\b|\bhow long ago\b"
    r"|\b(?:what|which) (?:date|day|month|year|season|time of (?:the )?(?:day|year))\b"
)
_TELLS = re.compile(
    r"\b(?:yesterday|today|tonight|tomorrow|recently|lately"
    rf"|{_NUMBER} {_SPAN} (?:ago|before|earlier|later|from now)|{_SPAN} ago"
    rf"|(?:last|next|this|past|that|coming|previous|following) (?:{_PART}|{_SEASON})"
    rf"|{_DAY}|{_MONTH}|(?:1[89]|20)\d\d)\b"
)


def asks_for_a_time(question: str) -> bool:
    """Returns whether a question asks when something happened."""
    return _ASKS.search(question.lower()) is not None


def tells_a_time(text: str) -> bool:
    """Returns whether a text says when something happened, by the calendar or from its own day."""
    return _TELLS.search(text.lower()) is not None
