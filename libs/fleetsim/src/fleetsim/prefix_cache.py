"""The prefix cache of a model server: shared beginnings of prompts are computed once.

A prompt's cacheable beginning is a chain of segments `(key, tokens)`: a segment is a hit when it
and everything before it is cached (vLLM's automatic prefix caching works so, on blocks). Segments
in use by running requests hold KV memory once, however many requests share them; unused ones stay
until their memory is needed and leave least recently used first.
"""

from collections.abc import Hashable

__all__ = ["PrefixCache", "PrefixSegments"]

PrefixSegments = tuple[tuple[Hashable, int], ...]
"""A prompt's cacheable beginning: keys with their lengths in tokens, in order."""


class PrefixCache:
    """Segments in use and segments kept; all counts in tokens.

    `active_tokens` hold memory that cannot be given up, `evictable_tokens` memory that can.
    `queried_tokens_total` and `hit_tokens_total` count as vLLM's counters do.
    """

    __slots__ = (
        "_active",
        "_evictable",
        "active_tokens",
        "evictable_tokens",
        "hit_tokens_total",
        "queried_tokens_total",
    )

    def __init__(self) -> None:
        self._active: dict[Hashable, list[int]] = {}
        self._evictable: dict[Hashable, int] = {}
        self.active_tokens = 0
        self.evictable_tokens = 0
        self.queried_tokens_total = 0
        self.hit_tokens_total = 0

    def additional_tokens(self, segments: PrefixSegments) -> int:
        """Return the memory that using these segments would newly occupy."""
        active = self._active
        return sum(tokens for key, tokens in segments if key not in active)

    def acquire(self, segments: PrefixSegments, prompt_tokens: int) -> int:
        """Use the segments of a prompt of `prompt_tokens`; return how many tokens were cached."""
        self.queried_tokens_total += prompt_tokens
        hit_tokens = 0
        chain_unbroken = True
        active, evictable = self._active, self._evictable
        for key, tokens in segments:
            entry = active.get(key)
            if entry is not None:
                entry[1] += 1
                cached = True
            else:
                cached = evictable.pop(key, None) is not None
                if cached:
                    self.evictable_tokens -= tokens
                active[key] = [tokens, 1]
                self.active_tokens += tokens
            chain_unbroken = chain_unbroken and cached
            if chain_unbroken:
                hit_tokens += tokens
        self.hit_tokens_total += hit_tokens
        return hit_tokens

    def release(self, segments: PrefixSegments) -> None:
        """Stop using the segments; those nobody uses stay cached until evicted."""
        active = self._active
        for key, tokens in segments:
            entry = active[key]
            entry[1] -= 1
            if entry[1] == 0:
                del active[key]
                self.active_tokens -= tokens
                self._evictable[key] = tokens
                self.evictable_tokens += tokens

    def evict_to(self, tokens: float) -> None:
        """Drop unused segments, least recently used first, until at most `tokens` are kept."""
        evictable = self._evictable
        while self.evictable_tokens > tokens and evictable:
            key = next(iter(evictable))
            self.evictable_tokens -= evictable.pop(key)

    def clear(self) -> None:
        """Forget every segment, used or not (the server died); counters stay."""
        self._active.clear()
        self._evictable.clear()
        self.active_tokens = 0
        self.evictable_tokens = 0
