"""What the router needs from outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ai_router.domain.fleet import FleetView
from ai_router.domain.generation import FinishReason, GenerationRequest

__all__ = [
    "AnswerEnd",
    "AnswerPiece",
    "FailureKind",
    "FleetSource",
    "ModelServerClient",
    "ModelServerFailure",
]


class FleetSource(Protocol):
    """Where the router learns which model servers exist."""

    def views(self) -> AsyncIterator[FleetView | None]:
        """Yields the whole fleet at each change, None while it is unchanged; never ends."""
        ...


class FailureKind(Enum):
    """How a model server failed a request."""

    UNREACHABLE = "unreachable"
    """No connection could be made."""
    OVERLOADED = "overloaded"
    """It says that it has too much to do."""
    REJECTED = "rejected"
    """It says that the request is wrong; another server would too."""
    FAILED = "failed"
    """Anything else: an error answer, a broken or silent connection, an answer cut short."""


class ModelServerFailure(Exception):
    """A model server did not answer; `detail` is for logs, never for callers."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(f"{kind.value}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEnd:
    """How an answer ended; token counts are the server's, 0 when it did not tell."""

    finish_reason: FinishReason
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """Text that came in together, and the end if it came with it."""

    text: str
    end: AnswerEnd | None = None


class ModelServerClient(Protocol):
    """Speaks to model servers."""

    def stream(
        self,
        endpoint_url: str,
        model: str,
        request: GenerationRequest,
        first_token_timeout_seconds: float,
    ) -> AsyncGenerator[AnswerPiece, None]:
        """Yields the answer as it is generated; the last piece, and no other, has an end.

        The first piece has text unless the whole answer is empty; one that does not come within
        `first_token_timeout_seconds` is a failure. Closing the iterator early, or
        cancelling the task that reads it, closes the connection, which ends the work on the server.

        Raises:
            ModelServerFailure: whatever goes wrong, before or after the first piece.
        """
        ...
