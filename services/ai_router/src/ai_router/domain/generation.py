"""A request for text and the events of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ai_router.domain.tiers import Priority, Tier

__all__ = [
    "ChatMessage",
    "ChatRole",
    "FinishReason",
    "GenerationEnd",
    "GenerationEvent",
    "GenerationRequest",
    "RouteTaken",
    "TextDelta",
]


class ChatRole(Enum):
    """Who speaks, by the name the OpenAI API uses."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class FinishReason(Enum):
    """Why generation ended."""

    UNKNOWN = "unknown"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: ChatRole
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate and how it may be routed; None means that the caller did not say.

    Attributes:
        request_id: names it in logs and traces.
        messages: the conversation, at least one message.
        tier: the tier the caller chose.
        latency_budget_seconds: how long the caller waits for the whole answer.
        priority: how urgent it is.
        max_output_tokens: most tokens to generate, at least 1.
        temperature: sampling temperature.
        top_p: nucleus sampling mass.
        seed: makes sampling repeatable.
        stop: texts that end the generation.
        affinity_key: requests with the same key prefer the same server; empty means none.
        forbid_fallback: only the wanted tier may serve it.
        use_cache: the cache may be read and written.
        caller: identity of who asks; only the same caller is given the answer again.
    """

    request_id: str
    messages: tuple[ChatMessage, ...]
    tier: Tier | None = None
    latency_budget_seconds: float | None = None
    priority: Priority = Priority.NORMAL
    max_output_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    affinity_key: str = ""
    forbid_fallback: bool = False
    use_cache: bool = True
    caller: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTaken:
    """Where a request went; `server_id` is empty when the answer comes from the cache."""

    request_id: str
    tier: Tier
    wanted_tier: Tier
    server_id: str
    model: str
    cached: bool
    queue_seconds: float
    failed_attempts: int
    reason: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationEnd:
    """The end of the answer; times count from the request's arrival."""

    finish_reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    first_token_seconds: float
    total_seconds: float


GenerationEvent = RouteTaken | TextDelta | GenerationEnd
