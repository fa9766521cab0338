"""Made-up memories of many worlds, the same for the same seed.

Texts are sentences of the lore with characters and places of the world set before them, so that
words are as frequent and as long as in real ones. Vectors are those that the model gives the
sentences, each moved a little: near ones exist, as they do among real memories, and a million
texts need not be embedded. A world is told in sessions of up to 20 events, and the sessions of
all worlds come mixed, so that a world's rows lie as scattered in the table as in a running game.
"""

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from knowledge_base.adapters.late_interaction import LateInteraction
from knowledge_base.adapters.onnx_embedder import OnnxEmbedder
from knowledge_base.domain.late_interaction import COARSE, met_share, rarity_weights
from knowledge_base.domain.memory import NewEvent
from knowledge_base.ports import Embedder, TextCodes, Vector

__all__ = ["GROWTH_SIZES", "Corpus", "Session", "WorldPlan", "plan_worlds"]

_LORE = Path(__file__).resolve().parents[2] / "services" / "knowledge_base" / "lore"
_SENTENCE = re.compile(r"[A-Z][^.!?|#\n]{40,180}[.!?]")
_SEED = 20_260_101
_SESSION_EVENTS = 20
# Cosine of a memory to the sentence it was made from is about 1 / sqrt(1 + this squared).
_NOISE = 0.5
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)

_NAMES = (
    "Mira", "Tobin", "Oda", "Wenna", "Corvin", "Hale", "Iselt", "Bram", "Nessa", "Rook", "Anwen",
    "Perrin", "Sable", "Garrick", "Linnet", "Dunstan", "Yara", "Fenwick", "Maud", "Osric", "Tamsin",
    "Eldred", "Quill", "Hesper",
)  # fmt: skip
_PLACES = (
    "mill", "ferry", "old bridge", "quarry", "well", "chapel", "north gate", "orchard", "salt road",
    "lighthouse", "market", "burnt farm",
)  # fmt: skip
_DEEDS = (
    "quarrelled with", "followed", "made peace with", "stole from", "warned",
    "hid the lantern from", "carried a letter to", "asked the way of", "lied to", "saved",
)  # fmt: skip
_KINDS = ("event", "quest", "talk", "combat", "discovery")
_QUESTIONS = (
    "What did {0} do at the {2}?",
    "Who {3} {1}?",
    "Why did {0} come to the {2} that night?",
    "What does {1} know about the lantern?",
    "When was {0} last seen near the {2}?",
)

#: Worlds beside the usual ones that show how cost grows with a world's events.
GROWTH_SIZES = (10, 30, 300, 1_000, 2_000, 10_000, 20_000, 50_000)


@dataclass(frozen=True, slots=True)
class WorldPlan:
    """A world that will have `events` events."""

    number: int
    world_id: uuid.UUID
    events: int


@dataclass(frozen=True, slots=True)
class Session:
    """Events that one world records at once, with their vectors, shape [events, dimensions]."""

    world: WorldPlan
    events: tuple[NewEvent, ...]
    vectors: Vector
    codes: TextCodes


@dataclass(frozen=True, slots=True)
class Readings:
    """What the model makes of the corpus's texts beside vectors.

    Attributes:
        reranker: names what `codes` are of.
        codes: of the sentences, in their order.
        deed: codes of what is set before a sentence.
        questions: token vectors and weights of each question.
    """

    reranker: str
    codes: tuple[bytes, ...]
    deed: bytes
    questions: tuple[tuple[Vector, Vector], ...]

    @classmethod
    async def of(
        cls, model: OnnxEmbedder, sentences: Sequence[str], questions: Sequence[str]
    ) -> "Readings":
        """Returns what the model makes of these."""
        reranker = LateInteraction(model, COARSE)
        deed = f"{_NAMES[0]} {_DEEDS[0]} {_NAMES[1]} at the {_PLACES[0]}."
        (deed_codes,) = (await reranker.prepare([deed])).codes
        asked = [await model.read_query(question) for question in questions]
        return cls(
            reranker.name,
            (await reranker.prepare(sentences)).codes,
            deed_codes,
            tuple((reading.tokens, rarity_weights(reading.ranks)) for reading in asked),
        )


def plan_worlds(
    worlds: int, events: int, *, large: int, hundreds: int, growth: Sequence[int] = GROWTH_SIZES
) -> list[WorldPlan]:
    """Returns worlds of very different sizes with `events` events in all.

    `large` of them have 5,000 events and `hundreds` have exactly 100, `growth` names single ones;
    the sizes of the rest are log-normal, so most are about as large as their median.
    """
    rng = np.random.default_rng(_SEED)
    sizes = [5_000] * large + [100] * hundreds + list(growth)
    rest = worlds - len(sizes)
    shares = rng.lognormal(0.0, 0.6, rest)
    left = events - sum(sizes)
    usual = np.maximum(1, np.round(shares / shares.sum() * left)).astype(int)
    sizes += [int(size) for size in usual]
    return [
        WorldPlan(number, uuid.UUID(bytes=rng.bytes(16), version=4), size)
        for number, size in enumerate(sizes)
    ]


class Corpus:
    """Makes sessions and questions.

    Args:
        sentences: what memories are about.
        vectors: of the sentences, shape [sentences, dimensions].
        questions: what is asked.
        question_vectors: of the questions.
        readings: of both.
        model: made all these vectors.
    """

    def __init__(
        self,
        sentences: Sequence[str],
        vectors: Vector,
        questions: Sequence[str],
        question_vectors: Vector,
        *,
        readings: Readings,
        model: str,
    ) -> None:
        self.model = model
        self.readings = readings
        self.questions = list(questions)
        self.question_vectors = question_vectors
        self._sentences = list(sentences)
        self._vectors = vectors

    @classmethod
    async def made_with(
        cls, embedder: Embedder, model: OnnxEmbedder, *, questions: int = 200
    ) -> "Corpus":
        """Returns the corpus with the model's vectors, which `embedder` keeps."""
        text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(_LORE.glob("*.md")))
        sentences = list(dict.fromkeys(_SENTENCE.findall(text)))
        rng = np.random.default_rng(_SEED + 1)
        asked = []
        for number in range(questions):
            first, second = rng.choice(_NAMES, 2, replace=False)
            asked.append(
                _QUESTIONS[number % len(_QUESTIONS)].format(
                    first, second, rng.choice(_PLACES), rng.choice(_DEEDS)
                )
            )
        return cls(
            sentences,
            await embedder.embed_documents(sentences),
            asked,
            await embedder.embed_documents(asked),
            readings=await Readings.of(model, sentences, asked),
            model=embedder.model,
        )

    def met(self, question: int, codes: Sequence[bytes]) -> list[float]:
        """Returns the reranker's scores of a question."""
        return met_share(*self.readings.questions[question], codes, COARSE)

    def sessions(self, worlds: Sequence[WorldPlan]) -> Iterator[Session]:
        """Yields the sessions of all worlds, mixed; those of one world in their order."""
        order = np.repeat(
            np.arange(len(worlds)), [-(-world.events // _SESSION_EVENTS) for world in worlds]
        )
        rng = np.random.default_rng(_SEED + 2)
        rng.shuffle(order)
        told = [0] * len(worlds)
        for index in order.tolist():
            world = worlds[index]
            count = min(_SESSION_EVENTS, world.events - told[index])
            yield self._session(world, told[index], count, rng)
            told[index] += count

    def _session(
        self, world: WorldPlan, first: int, count: int, rng: np.random.Generator
    ) -> Session:
        about = rng.integers(len(self._sentences), size=count)
        names = rng.integers(len(_NAMES), size=(count, 2))
        others = rng.integers(1 << 16, size=(count, 4))
        noise = rng.standard_normal((count, self._vectors.shape[1]), dtype=np.float32)
        vectors = self._vectors[about] + noise * np.float32(_NOISE / self._vectors.shape[1] ** 0.5)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        events = []
        for row in range(count):
            deed, place, kind, importance = (int(number) for number in others[row])
            actor, other = _NAMES[names[row, 0]], _NAMES[names[row, 1]]
            events.append(
                NewEvent(
                    f"{actor} {_DEEDS[deed % len(_DEEDS)]} {other} at the "
                    f"{_PLACES[place % len(_PLACES)]}. {self._sentences[about[row]]}",
                    _KINDS[kind % len(_KINDS)],
                    tuple(dict.fromkeys((actor, other))),
                    _BEGINNING + timedelta(minutes=17 * (first + row), seconds=world.number % 60),
                    importance / (1 << 16),
                )
            )
        codes = tuple(self.readings.deed + self.readings.codes[index] for index in about)
        return Session(world, tuple(events), vectors, TextCodes(self.readings.reranker, codes))
