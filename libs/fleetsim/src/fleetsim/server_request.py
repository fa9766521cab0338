"""A request at a model server and the server's load: what `model_server` keeps and shows."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fleetsim.prefix_cache import PrefixSegments

__all__ = ["RequestState", "ServerLoad", "ServerRequest"]


class RequestState(Enum):
    """Where a request stands in its server."""

    NEW = "new"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
    ABORTED = "aborted"


class ServerRequest:
    """One request at a model server, and its history there. Times are NaN until they happen.

    `output_tokens` is how many tokens will be generated (the model's answer, already cut at the
    caller's limit); `finish_reason` is what the server will say then. `context` is the caller's.
    The server alone writes the last four fields: its work clock where decoding began and will end,
    the KV memory held by this request alone, and the tokens generated before a preemption.
    """

    __slots__ = (
        "arrival_time",
        "cached_tokens",
        "clock_at_end",
        "clock_at_start",
        "context",
        "finish_reason",
        "finish_time",
        "first_token_time",
        "output_tokens",
        "own_tokens",
        "prefix_segments",
        "prompt_tokens",
        "request_id",
        "resumed_tokens",
        "scheduled_time",
        "state",
    )

    def __init__(
        self,
        request_id: str | int,
        prompt_tokens: int,
        output_tokens: int,
        *,
        prefix_segments: PrefixSegments = (),
        finish_reason: str = "stop",
        context: Any = None,
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.prefix_segments = prefix_segments
        self.finish_reason = finish_reason
        self.context = context
        self.state = RequestState.NEW
        self.cached_tokens = 0
        self.arrival_time = self.scheduled_time = math.nan
        self.first_token_time = self.finish_time = math.nan
        self.clock_at_start = self.clock_at_end = math.nan
        self.own_tokens = 0
        self.resumed_tokens = 0


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """A model server's load at one moment, as its metrics would show it.

    `waiting_tokens` are the prompt tokens not yet prefilled, the one in progress included.
    """

    running: int
    waiting: int
    running_tokens: float
    waiting_tokens: int
    kv_cache_usage_ratio: float
    step_seconds: float
    is_prefilling: bool
