"""Page tokens: opaque to callers, bound to the list they come from and its filters.

A token holds the position of the last item of a page, so that items which come or go between two
pages move nothing. It is no secret and proves nothing: what it says is checked, not trusted.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from servicekit.errors import FieldViolation, InvalidRequest

__all__ = ["InvalidPageToken", "Page", "decode_page_token", "encode_page_token"]

T = TypeVar("T")

Position = Sequence[str | int]


class InvalidPageToken(InvalidRequest):
    """A page token does not come from the previous page of the same list."""

    reason = "INVALID_PAGE_TOKEN"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Part of a list; `next_page_token` is empty at its end."""

    items: tuple[T, ...]
    next_page_token: str


def encode_page_token(scope: Sequence[str], position: Position) -> str:
    """Returns a token for the page after `position` of the list that `scope` names.

    `scope` holds the list's name and its filters.
    """
    text = json.dumps([_scope_mark(scope), *position], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_page_token(
    token: str, scope: Sequence[str], kinds: tuple[type, ...]
) -> list[str | int] | None:
    """Returns the position within `token`, of the given kinds; None for an empty token.

    Raises:
        InvalidPageToken: the token is not one of this list with these filters.
    """
    if not token:
        return None
    try:
        decoded = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    except (ValueError, RecursionError):  # not base64, not UTF-8, not JSON, or nested without end
        decoded = None
    if (
        isinstance(decoded, list)
        and len(decoded) == len(kinds) + 1
        and decoded[0] == _scope_mark(scope)
        and all(type(value) is kind for value, kind in zip(decoded[1:], kinds, strict=True))
    ):
        return decoded[1:]
    message = (
        "must be the next_page_token of the previous page, asked for with the same filters; "
        "leave it empty to start again"
    )
    raise InvalidPageToken(
        f"page_token {message}.", field_violations=[FieldViolation("page_token", message)]
    )


def _scope_mark(scope: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(scope)).encode()).hexdigest()[:12]
