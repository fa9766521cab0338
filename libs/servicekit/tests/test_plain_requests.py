"""Requests that a service knows to be fit are spared the checks at length, and no others."""

from typing import Any

from servicekit.interceptors.plain_requests import PlainRequests

CALL: Any = None  # the checks here do not ask who calls


class Looked:
    """A check that notes what it is shown."""

    def __init__(self) -> None:
        self.at: list[object] = []

    def check(self, call: Any, request: object) -> None:
        self.at.append(request)


def looked_at_of(*requests: object) -> tuple[list[object], list[object]]:
    first, second = Looked(), Looked()
    plain = PlainRequests({str: str.isprintable}, [first, second])
    for request in requests:
        plain.check(CALL, request)
    return first.at, second.at


def test_what_is_plainly_fit_is_not_looked_at_again() -> None:
    assert looked_at_of("fit") == ([], [])


def test_what_is_not_plainly_fit_is_looked_at_by_every_check() -> None:
    assert looked_at_of("un\0fit") == (["un\0fit"], ["un\0fit"])


def test_requests_of_which_no_short_way_is_known_are_looked_at_by_every_check() -> None:
    assert looked_at_of(7) == ([7], [7])
