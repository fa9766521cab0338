"""What the narrator is told of the past: the right memories first, once each, within a budget.

Three sources are joined: the latest events (so that a story goes on where it stopped, also after a
restart), events recalled for what the player says, and passages of lore. Each gets a share of the
token budget; what one leaves unused goes to the others in that order. Whatever is included has a
label, and the label's citation says where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from gamekeeper.story_ports import LorePassage, StoryEvent

__all__ = [
    "Citation",
    "CitationKind",
    "ContextShares",
    "StoryContext",
    "estimate_tokens",
    "gather_context",
]

# Four bytes of UTF-8 per token: the usual rule of thumb for byte-pair vocabularies.
_BYTES_PER_TOKEN = 4
# Label, line break and list mark of one entry.
_ENTRY_TOKENS = 6


class CitationKind(Enum):
    """Where a piece of context comes from."""

    MEMORY = "memory"
    LORE = "lore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """One piece of context: its label in the prompt, its text, and its source for people.

    The source of a memory is its event id; that of lore is `path > heading > line`.
    """

    label: str
    kind: CitationKind
    text: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextShares:
    """How the token budget is shared out at first; the shares add up to 1."""

    recent: float = 0.3
    recalled: float = 0.35
    lore: float = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryContext:
    """What the narrator is told: latest events in the order they happened, memories, lore."""

    recent: tuple[Citation, ...] = ()
    recalled: tuple[Citation, ...] = ()
    lore: tuple[Citation, ...] = ()
    tokens: int = 0

    @property
    def citations(self) -> tuple[Citation, ...]:
        """Everything the narrator is told, in the order of the prompt."""
        return self.lore + self.recalled + self.recent


def estimate_tokens(text: str) -> int:
    """Returns the estimated tokens of `text`, rounded up."""
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def gather_context(
    *,
    recent: Sequence[StoryEvent],
    recalled: Sequence[StoryEvent],
    lore: Sequence[LorePassage],
    token_budget: int,
    shares: ContextShares,
) -> StoryContext:
    """Returns what fits into `token_budget`, each thing once.

    `recent` comes newest first, the others best first; what does not fit whole is left out, and
    something shorter after it may still fit.
    """
    rooms = [round(token_budget * part) for part in (shares.recent, shares.recalled, shares.lore)]
    picks = [_Pick(_event_entries(recent)), _Pick(_event_entries(recalled)), _Pick(_entries(lore))]
    seen = _Seen()
    left = token_budget
    for pick, room in zip(picks, rooms, strict=True):
        left -= pick.take(min(room, left), seen)
    for pick in picks:
        left -= pick.take(left, seen)
    # The latest events are told in the order in which they happened.
    return StoryContext(
        recent=_cite(reversed(picks[0].chosen), "R", CitationKind.MEMORY),
        recalled=_cite(picks[1].chosen, "M", CitationKind.MEMORY),
        lore=_cite(picks[2].chosen, "L", CitationKind.LORE),
        tokens=token_budget - left,
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    text: str
    source: str
    event_id: str = ""
    path: str = ""
    lines: range = range(0)

    @property
    def tokens(self) -> int:
        return estimate_tokens(self.text) + _ENTRY_TOKENS


class _Pick:
    """What of one source is included so far; its order is that of the source."""

    def __init__(self, offered: Sequence[_Entry]) -> None:
        self._offered = offered
        self._taken: set[int] = set()

    @property
    def chosen(self) -> list[_Entry]:
        return [self._offered[index] for index in sorted(self._taken)]

    def take(self, room: int, seen: _Seen) -> int:
        """Includes what fits and was not seen yet; returns the tokens it takes."""
        used = 0
        for index, entry in enumerate(self._offered):
            if index not in self._taken and used + entry.tokens <= room and seen.add(entry):
                self._taken.add(index)
                used += entry.tokens
        return used


class _Seen:
    """Knows what is included, by event, by text and by lines of a document."""

    def __init__(self) -> None:
        self._event_ids: set[str] = set()
        self._texts: set[str] = set()
        self._lines: dict[str, list[range]] = {}

    def add(self, entry: _Entry) -> bool:
        """Returns whether the entry is new, and remembers it."""
        text = " ".join(entry.text.split()).casefold()
        lines = self._lines.setdefault(entry.path, [])
        if (
            not text
            or text in self._texts
            or (entry.event_id and entry.event_id in self._event_ids)
            or any(_overlap(entry.lines, other) for other in lines)
        ):
            return False
        self._texts.add(text)
        self._event_ids.add(entry.event_id)
        if entry.lines:
            lines.append(entry.lines)
        return True


def _overlap(one: range, other: range) -> bool:
    return bool(one) and one.start < other.stop and other.start < one.stop


def _event_entries(events: Iterable[StoryEvent]) -> list[_Entry]:
    return [
        _Entry(text=event.text, source=event.event_id, event_id=event.event_id) for event in events
    ]


def _entries(passages: Iterable[LorePassage]) -> list[_Entry]:
    return [
        _Entry(
            text=passage.text,
            source=" > ".join((passage.path, *passage.heading_path, str(passage.start_line))),
            path=passage.path,
            lines=range(passage.start_line, passage.end_line + 1),
        )
        for passage in passages
    ]


def _cite(entries: Iterable[_Entry], letter: str, kind: CitationKind) -> tuple[Citation, ...]:
    return tuple(
        Citation(label=f"{letter}{number}", kind=kind, text=entry.text, source=entry.source)
        for number, entry in enumerate(entries, start=1)
    )
