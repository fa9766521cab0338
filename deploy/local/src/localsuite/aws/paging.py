"""Pages, tokens and filters as AWS's list operations have them."""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from localsuite.aws.errors import ApiError

__all__ = ["matches_filters", "page_of", "pattern"]

_Item = TypeVar("_Item")


def page_of(
    items: Sequence[_Item],
    *,
    token: str | None,
    limit: int | None,
    error_code: str = "InvalidNextToken",
) -> tuple[Sequence[_Item], str | None]:
    """One page of `items` and the token of the next one; all of them without a limit.

    Raises ApiError with `error_code` when the token is not one of ours.
    """
    start = 0
    if token:
        try:
            start = int(base64.urlsafe_b64decode(token.encode()).decode())
        except (ValueError, binascii.Error, UnicodeDecodeError):
            raise ApiError(error_code, f"The token '{token}' is invalid.") from None
    end = len(items) if limit is None else start + limit
    following = base64.urlsafe_b64encode(str(end).encode()).decode() if end < len(items) else None
    return items[start:end], following


def pattern(text: str) -> re.Pattern[str]:
    r"""EC2's filter wildcards: `*` any text, `?` one character, a backslash makes them plain."""
    translated = []
    characters = iter(text)
    for character in characters:
        if character == "\\":
            translated.append(re.escape(next(characters, "\\")))
        elif character == "*":
            translated.append(".*")
        elif character == "?":
            translated.append(".")
        else:
            translated.append(re.escape(character))
    return re.compile("".join(translated), re.DOTALL)


def matches_filters(
    item: _Item,
    filters: Iterable[Mapping[str, Any]],
    values_of: Mapping[str, Callable[[_Item], Iterable[str]]],
    tags_of: Callable[[_Item], Mapping[str, str]],
) -> bool:
    """True when `item` passes every filter: any of a filter's values matches any of the item's.

    Raises ApiError for a filter the operation does not have.
    """
    for each in filters:
        name = each.get("Name", "")
        if name.startswith("tag:"):
            tag_value = tags_of(item).get(name.removeprefix("tag:"))
            found: Iterable[str] = () if tag_value is None else (tag_value,)
        elif name == "tag-key":
            found = tags_of(item).keys()
        elif name in values_of:
            found = values_of[name](item)
        else:
            raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid")
        wanted = [pattern(value) for value in each.get("Values") or ()]
        if not any(want.fullmatch(value) for value in found for want in wanted):
            return False
    return True
