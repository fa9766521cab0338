"""What the events of a streamed chat completion say, whatever a server may send in them."""

from __future__ import annotations

import json
from typing import Any

from ai_router.adapters.event_stream import EventStreamDecoder, EventTooLarge
from ai_router.domain.generation import FinishReason
from ai_router.ports import AnswerEnd, FailureKind, ModelServerFailure

__all__ = ["AnswerDecoder"]

_decode_json = json.JSONDecoder().decode
_DONE = b"[DONE]"
_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_MOST_TOKENS = 2**31 - 1


class AnswerDecoder:
    """Turns the bytes of one answer's event stream into its text and its end.

    Attributes:
        complete: the stream's own end mark has come; what follows it is not looked at.
    """

    __slots__ = ("_events", "_finish_reason", "_output_tokens", "_prompt_tokens", "complete")

    def __init__(self) -> None:
        self.complete = False
        self._events = EventStreamDecoder()
        self._finish_reason: FinishReason | None = None
        self._prompt_tokens = 0
        self._output_tokens = 0

    def feed(self, chunk: bytes) -> str:
        """Returns the text that is whole with `chunk`, all Unicode; empty when there is none.

        Raises:
            ModelServerFailure: the server tells of an error, or what it sends is not understood.
        """
        try:
            payloads = self._events.feed(chunk)
        except EventTooLarge:
            raise ModelServerFailure(FailureKind.FAILED, "an event over 1 MiB") from None
        texts: list[str] = []
        for payload in payloads:
            if payload == _DONE:
                self.complete = True
                break
            text = self._take(payload)
            if text:
                texts.append(text)
        return "".join(texts)

    def end(self) -> AnswerEnd:
        """Returns how the answer ended.

        Raises:
            ModelServerFailure: the server did not say so: the answer broke off.
        """
        if self._finish_reason is None:
            raise ModelServerFailure(FailureKind.FAILED, "the answer broke off")
        return AnswerEnd(
            finish_reason=self._finish_reason,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )

    def _take(self, payload: bytes) -> str:
        try:
            event = _decode_json(payload.decode())
            if "error" in event:
                raise ModelServerFailure(FailureKind.FAILED, "an error within the answer")
            usage = event.get("usage")
            if usage:
                self._prompt_tokens = _count(usage.get("prompt_tokens"))
                self._output_tokens = _count(usage.get("completion_tokens"))
            choices = event.get("choices")
            if not choices:
                return ""
            choice = choices[0]
            finish = choice.get("finish_reason")
            if finish is not None:
                self._finish(finish)
            return _text(choice.get("delta", {}).get("content"))
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            detail = f"an event that is not understood ({type(error).__name__})"
            raise ModelServerFailure(FailureKind.FAILED, detail) from error

    def _finish(self, finish: str) -> None:
        if finish == "abort":
            # vLLM's word for an answer that the server itself gave up.
            raise ModelServerFailure(FailureKind.FAILED, "the server aborted the answer")
        self._finish_reason = _FINISH_REASONS.get(finish, FinishReason.UNKNOWN)


def _count(value: Any) -> int:
    """Returns a count of tokens; one that makes no sense counts as not told."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else 0


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("content")
    if value.isascii():
        return value
    # JSON can spell half a character, which no caller's message could carry.
    return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
