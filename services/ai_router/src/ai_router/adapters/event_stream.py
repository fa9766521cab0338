"""Server-sent events, as far as model servers use them: one `data:` line per event."""

from __future__ import annotations

__all__ = ["EventStreamDecoder", "EventTooLarge"]

_LARGEST_LINE_BYTES = 1024 * 1024


class EventTooLarge(Exception):
    """A line is longer than any chunk of an answer can be."""


class EventStreamDecoder:
    """Cuts a byte stream into the payloads of its `data:` lines, wherever the chunks break.

    Comments, other fields and blank lines are dropped. At most one unfinished line is kept.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Returns the payloads that are complete with `chunk`.

        Raises:
            EventTooLarge: a line exceeds 1 MiB.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LARGEST_LINE_BYTES:
            raise EventTooLarge
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
