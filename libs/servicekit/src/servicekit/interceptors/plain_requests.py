"""Spares requests that are plainly fit the checks that find out what is wrong with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from servicekit.interceptors.call import Call, RequestCheck

__all__ = ["PlainRequests", "PlainlyFit"]

PlainlyFit: TypeAlias = Callable[[Any], bool]
"""Says of a request whether it certainly passes all checks; False when it may not."""


class PlainRequests:
    """Passes what is plainly fit, and has `checks` look at everything else.

    The rules of a proto are checked by walking through its descriptors, which for a large message
    that comes a hundred times a second costs more than all that is done with it. A service may know
    a shorter way to see that such a message keeps them; to say what is wrong stays with the checks.

    Args:
        plainly_fit: by the type of a request, what tells whether it is.
        checks: what everything else is checked by.
    """

    def __init__(
        self, plainly_fit: Mapping[type, PlainlyFit], checks: Sequence[RequestCheck]
    ) -> None:
        self._plainly_fit = dict(plainly_fit)
        self._checks = tuple(checks)

    def check(self, call: Call, request: Any) -> None:
        """Returns when the request passes; raises what the checks do."""
        plainly_fit = self._plainly_fit.get(type(request))
        if plainly_fit is not None and plainly_fit(request):
            return
        for each in self._checks:
            each.check(call, request)
