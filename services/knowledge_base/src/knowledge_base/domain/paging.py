"""Page tokens: opaque to callers, bound to the list they come from."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from knowledge_base.domain.errors import InvalidPageToken

__all__ = ["Page", "decode_page_token", "encode_page_token"]

T = TypeVar("T")

Position = Sequence[str | int]


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

    Raises InvalidPageToken when the token is not one of this list with these filters.
    """
    if not token:
        return None
    try:
        decoded = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    except (ValueError, binascii.Error):
        decoded = None
    if (
        isinstance(decoded, list)
        and len(decoded) == len(kinds) + 1
        and decoded[0] == _scope_mark(scope)
        and all(type(value) is kind for value, kind in zip(decoded[1:], kinds, strict=True))
    ):
        return decoded[1:]
    raise InvalidPageToken(
        "page_token must be the next_page_token of the previous page, asked for with the same "
        "filters; leave it empty to start again."
    )


def _scope_mark(scope: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(scope)).encode()).hexdigest()[:12]
