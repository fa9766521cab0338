"""Gives every call a deadline: the caller's, or the longest its method allows."""

from __future__ import annotations

import asyncio
from typing import Any

from servicekit.errors import DeadlineExceeded, Unavailable
from servicekit.interceptors.call import Call, Proceed
from servicekit.method_policies import DeadlineClass

__all__ = ["DeadlineInterceptor", "StreamExpired"]

_EXPIRED_BELOW_SECONDS = 0.002
"""gRPC sends a deadline that has passed as one nanosecond, and counts in milliseconds, rounded up
on both ends: the call arrives with up to two left, in which a mutation may well be carried out."""


class StreamExpired(Unavailable):
    """A subscription reached its greatest age; the client resumes where it was."""

    reason = "STREAM_EXPIRED"
    default_retry_after_seconds = 0.0


class DeadlineInterceptor:
    """Refuses expired calls and ends those that outlast their deadline class."""

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Runs the call within its deadline."""
        if call.declaration is None:
            return await proceed(call)
        remaining = call.context.time_remaining()
        if remaining is not None and remaining < _EXPIRED_BELOW_SECONDS:
            raise DeadlineExceeded("The deadline had passed before the call arrived.")
        longest = call.declaration.deadline_seconds
        if remaining is not None and remaining <= longest:
            # gRPC itself cancels the handler at the caller's own deadline.
            return await proceed(call)
        try:
            async with asyncio.timeout(longest) as limit:
                return await proceed(call)
        except TimeoutError:
            if not limit.expired():
                raise  # a timeout inside the handler, not ours
            if call.declaration.deadline_class is DeadlineClass.STREAM:
                raise StreamExpired(
                    f"The stream reached its greatest age of {longest:.0f} s; resume it."
                ) from None
            raise DeadlineExceeded(
                f"The call took longer than the {longest:.0f} s its method allows; set a deadline."
            ) from None
