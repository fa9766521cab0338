"""How far an ingest is, and how long the rest will take."""

from __future__ import annotations

from collections.abc import Mapping

from gaming.knowledge_base.v1 import lore_pb2

__all__ = ["IngestProgress"]

# Before this share is done, what has been measured says little about the rest.
_LEAST_SHARE = 0.02
_SECONDS_A_MINUTE = 60


class IngestProgress:
    """Counts documents, passages and bytes as an ingest tells of them.

    The time left is that of the bytes still to come, at the mean speed of those that are done. So
    documents that did not change, which cost nothing, make the estimate shorter as far as they are
    spread over the directory.

    Args:
        sizes: bytes of each document that is sent, by its path.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._total_bytes = sum(sizes.values())
        self._done: set[str] = set()
        self._done_bytes = 0.0
        self._part_bytes = 0.0
        self._embedded = 0
        self._part_embedded = 0

    def hear(self, update: lore_pb2.IngestDocumentsResponse) -> None:
        """Takes in a step of the ingest."""
        self._part_bytes, self._part_embedded = 0.0, 0
        if update.HasField("progress"):
            progress = update.progress
            share = progress.embedded_chunks / max(progress.changed_chunks, 1)
            self._part_bytes = share * self._sizes.get(progress.path, 0)
            self._part_embedded = progress.embedded_chunks
        elif update.HasField("document") and update.document.path in self._sizes:
            self._done.add(update.document.path)
            self._done_bytes += self._sizes[update.document.path]
            self._embedded += update.document.embedded_chunks

    @property
    def count(self) -> str:
        """`3/13`: documents that are done, and all that are sent."""
        return f"{len(self._done):>{len(str(len(self._sizes)))}}/{len(self._sizes)}"

    @property
    def embedded(self) -> int:
        """Passages that were embedded so far."""
        return self._embedded + self._part_embedded

    def seconds_left(self, elapsed_seconds: float) -> float | None:
        """Returns how long the rest will take; None as long as nobody can tell."""
        done = self._done_bytes + self._part_bytes
        if not self._total_bytes or done < _LEAST_SHARE * self._total_bytes:
            return None
        return elapsed_seconds * (self._total_bytes - done) / done

    def words(self, elapsed_seconds: float) -> str:
        """Returns `about 40 s left`; nothing when nobody can tell or all is done."""
        left = self.seconds_left(elapsed_seconds)
        if left is None or len(self._done) == len(self._sizes):
            return ""
        if left < _SECONDS_A_MINUTE:
            return f"about {max(1, round(left))} s left"
        return f"about {round(left / _SECONDS_A_MINUTE)} min left"
