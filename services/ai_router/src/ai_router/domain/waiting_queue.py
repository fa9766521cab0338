"""Requests that wait for a server of one tier: bounded, the most urgent first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from ai_router.domain.ticket import Ticket

__all__ = ["WaitingQueue"]

_Key = tuple[int, float, int]


class WaitingQueue:
    """At most `limit` tickets, ordered by priority, then deadline, then arrival.

    A full queue takes a ticket of higher priority by pushing out the last one of lower priority.
    """

    __slots__ = ("_entries", "_limit", "_sequence", "_tokens")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: list[tuple[_Key, Ticket]] = []
        self._tokens = 0
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Ticket]:
        return iter([ticket for _, ticket in self._entries])

    @property
    def limit(self) -> int:
        """Most tickets that may wait."""
        return self._limit

    @property
    def tokens(self) -> int:
        """Estimated tokens of all tickets."""
        return self._tokens

    @property
    def head(self) -> Ticket | None:
        """The ticket whose turn is next."""
        return self._entries[0][1] if self._entries else None

    def ahead(self, ticket: Ticket) -> tuple[int, int]:
        """Returns how many tickets come before `ticket`, and their tokens."""
        position = bisect_left(self._entries, self._key(ticket), key=lambda entry: entry[0])
        # Who comes last, as most do, has everybody's tokens before it; add up the shorter side.
        if position <= len(self._entries) // 2:
            return position, sum(entry.tokens for _, entry in self._entries[:position])
        behind = sum(entry.tokens for _, entry in self._entries[position:])
        return position, self._tokens - behind

    def is_first(self, ticket: Ticket) -> bool:
        """Returns whether nobody is before `ticket`, whether it waits already or not."""
        head = self.head
        return head is None or head is ticket or self._key(ticket) < self._entries[0][0]

    def has_room(self, ticket: Ticket) -> bool:
        """Returns whether `add` would take the ticket."""
        if len(self._entries) < self._limit:
            return True
        return bool(self._entries) and self._entries[-1][1].priority < ticket.priority

    def add(self, ticket: Ticket) -> Ticket | None:
        """Adds the ticket and returns the one that was pushed out for it, if any.

        Raises:
            ValueError: there is no room; ask `has_room` before.
        """
        if not self.has_room(ticket):
            raise ValueError("the queue is full of tickets at least as urgent")
        pushed_out: Ticket | None = None
        if len(self._entries) >= self._limit:
            pushed_out = self._entries.pop()[1]
            self._tokens -= pushed_out.tokens
        self._sequence += 1
        ticket.sequence = ticket.sequence or self._sequence
        insort(self._entries, (self._key(ticket), ticket), key=lambda entry: entry[0])
        self._tokens += ticket.tokens
        return pushed_out

    def remove(self, ticket: Ticket) -> bool:
        """Takes the ticket out; returns whether it was there."""
        position = bisect_left(self._entries, self._key(ticket), key=lambda entry: entry[0])
        if position < len(self._entries) and self._entries[position][1] is ticket:
            del self._entries[position]
            self._tokens -= ticket.tokens
            return True
        return False

    def _key(self, ticket: Ticket) -> _Key:
        # A ticket that never waited comes after all that did, among its equals.
        return (-ticket.priority, ticket.deadline, ticket.sequence or self._sequence + 1)
