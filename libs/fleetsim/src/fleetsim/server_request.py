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
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


class ServerRequest:
    """One request at a model server, and its history there. Times are NaN until they happen.

    `output_tokens` is how many tokens will be generated (the model's answer, already cut at the
    caller's limit); `finish_reason` is what the server will say then. `context` is the caller's.
    The server alone writes the last four fields: its work clock where decoding began and will end,
    the KV memory held by this request alone, and the tokens generated before a preemption.
    """

    # Class-level defaults, not slots: creating a request is part of a simulated day's inner loop.
    state: RequestState = RequestState.NEW
    cached_tokens: int = 0
    arrival_time: float = math.nan
    scheduled_time: float = math.nan
    first_token_time: float = math.nan
    finish_time: float = math.nan
    clock_at_start: float = math.nan
    clock_at_end: float = math.nan
    own_tokens: int = 0
    resumed_tokens: int = 0

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


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """A model server's load at one moment, as its metrics would show it.

    `waiting_tokens` are the prompt tokens of waiting requests.
    """

    running: int
    waiting: int
    running_tokens: float
    waiting_tokens: int
    kv_cache_usage_ratio: float
    step_seconds: float
    is_prefilling: bool
