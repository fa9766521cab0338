"""Answers to requests that were asked before, word for word.

Only deterministic requests are kept: temperature 0, or a seed. The key is a hash over everything
that decides the text: the model, every message with its role, and all sampling parameters. The
caller is in it as well: whether an answer came from the cache tells that somebody asked the same
before, which is nobody else's business.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256

from ai_router.domain.generation import FinishReason, GenerationRequest
from ai_router.domain.token_estimate import utf8_size

__all__ = ["AnswerCache", "CachedAnswer", "answer_key", "is_deterministic"]

# Key, entry object, links and numbers of one entry, measured roughly; text comes on top.
_ENTRY_OVERHEAD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedAnswer:
    """A whole answer and what is told of it."""

    text: str
    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    output_tokens: int


def is_deterministic(request: GenerationRequest) -> bool:
    """Returns whether the same request must give the same text."""
    return request.temperature == 0.0 or request.seed is not None


def answer_key(model: str, request: GenerationRequest) -> bytes:
    """Returns the key of the request's answer by `model`; every part is length-prefixed."""
    digest = sha256()
    parts = [request.caller, model]
    for message in request.messages:
        parts.append(message.role.value)
        parts.append(message.content)
    parts.append(
        f"{request.max_output_tokens}|{request.temperature}|{request.top_p}|{request.seed}"
    )
    parts.extend(request.stop)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.digest()


class AnswerCache:
    """Keeps answers within `maximum_bytes` for `ttl_seconds`; the least recently used go first.

    `maximum_bytes` of 0 keeps nothing.
    """

    __slots__ = ("_bytes", "_entries", "_maximum_bytes", "_ttl_seconds", "hits", "misses")

    def __init__(self, maximum_bytes: int, ttl_seconds: float) -> None:
        self._maximum_bytes = maximum_bytes
        self._ttl_seconds = ttl_seconds
        self._entries: OrderedDict[bytes, tuple[float, int, CachedAnswer]] = OrderedDict()
        self._bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def stored_bytes(self) -> int:
        """Bytes the answers take, by the cache's own reckoning."""
        return self._bytes

    def peek(self, key: bytes, now: float) -> CachedAnswer | None:
        """Returns the answer without counting or changing anything."""
        entry = self._entries.get(key)
        return entry[2] if entry is not None and now < entry[0] else None

    def get(self, key: bytes, now: float) -> CachedAnswer | None:
        """Returns the answer and marks it used; None when there is none or its time is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry[0]:
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return entry[2]

    def put(self, key: bytes, answer: CachedAnswer, now: float) -> None:
        """Keeps the answer, unless it alone takes more than a tenth of the room."""
        size = _ENTRY_OVERHEAD_BYTES + utf8_size(answer.text)
        if size * 10 > self._maximum_bytes:
            return
        if key in self._entries:
            self._remove(key)
        self._entries[key] = (now + self._ttl_seconds, size, answer)
        self._bytes += size
        while self._bytes > self._maximum_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: bytes) -> None:
        _, size, _ = self._entries.pop(key)
        self._bytes -= size
