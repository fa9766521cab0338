"""What the game tells whoever runs it: one JSON object a line on standard output.

Each line holds `type`: `sample` every half second, `story` for a storyteller's turn, `note` for
something worth a line, and `finished` at the end, after the last request's fate is known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

__all__ = ["Feed", "GameSample", "StoryTurn", "TierSample", "parse_line"]


@dataclass(frozen=True, slots=True)
class TierSample:
    """The requests that wanted one tier, since the beginning; latencies over the last 10 s."""

    sent: int = 0
    completed: int = 0
    cached: int = 0
    fell_back: int = 0
    output_tokens: int = 0
    shed: Mapping[str, int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    first_token_p95_seconds: float | None = None
    seconds_per_token_p95: float | None = None

    @property
    def shed_total(self) -> int:
        """Requests turned away, for any reason."""
        return sum(self.shed.values())

    @property
    def failed_total(self) -> int:
        """Requests that ended in an error other than being turned away."""
        return sum(self.failed.values())

    @property
    def in_flight(self) -> int:
        """Requests whose end is not known."""
        return self.sent - self.completed - self.shed_total - self.failed_total


@dataclass(frozen=True, slots=True)
class GameSample:
    """The game at one moment of the evening; tiers by name (`gold`, `silver`, `bronze`)."""

    at_seconds: float
    players_online: int
    tiers: Mapping[str, TierSample]


@dataclass(frozen=True, slots=True)
class StoryTurn:
    """One turn of the storyteller: what the player did, what was remembered, what was told."""

    turn: int
    player: str
    recalled: tuple[str, ...]
    recalled_from_this_evening: int
    recalled_from_before: int
    citations: tuple[str, ...]
    told: str
    seconds: float
    error: str = ""


class Feed:
    """Writes the lines; a reader that went away ends the game with BrokenPipeError."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self._output = output

    def sample(self, sample: GameSample) -> None:
        """Writes the game's counters."""
        self._write("sample", asdict(sample))

    def story(self, turn: StoryTurn) -> None:
        """Writes a storyteller's turn."""
        self._write("story", asdict(turn))

    def note(self, text: str) -> None:
        """Writes a remark for people."""
        self._write("note", {"text": text})

    def finished(self, sample: GameSample) -> None:
        """Writes the final counters; nothing follows."""
        self._write("finished", asdict(sample))

    def _write(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._output.write(json.dumps({"type": kind, **fields}, separators=(",", ":")) + "\n")
        self._output.flush()


def parse_line(line: str) -> tuple[str, GameSample | StoryTurn | str]:
    """Returns a line's type and what it holds: a sample, a turn, or a remark's text.

    Raises ValueError when the line is not one of the game's.
    """
    try:
        fields = json.loads(line)
        kind = fields.pop("type")
        if kind in {"sample", "finished"}:
            tiers = {name: TierSample(**tier) for name, tier in fields.pop("tiers").items()}
            return kind, GameSample(tiers=tiers, **fields)
        if kind == "story":
            fields["recalled"] = tuple(fields["recalled"])
            fields["citations"] = tuple(fields["citations"])
            return kind, StoryTurn(**fields)
        if kind == "note":
            return kind, str(fields["text"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a line of the game: {line[:200]!r}") from error
    raise ValueError(f"a line of unknown type {kind!r}")
