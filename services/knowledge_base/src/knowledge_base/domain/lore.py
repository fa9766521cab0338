"""Documents of lore and what a search for them returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from knowledge_base.domain.errors import InvalidDocument
from knowledge_base.domain.front_matter import FieldValue
from servicekit.errors import FieldViolation

__all__ = [
    "Citation",
    "ConceptPassage",
    "Document",
    "IngestProgress",
    "IngestState",
    "IngestSummary",
    "IngestedDocument",
    "RankingParameters",
    "SearchMode",
    "SearchQuery",
    "SearchResult",
    "check_path",
]


class IngestState(Enum):
    """What became of a document."""

    UNCHANGED = "unchanged"
    STORED = "stored"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class IngestedDocument:
    """One document of an ingest is done."""

    path: str
    state: IngestState
    chunks: int = 0
    embedded_chunks: int = 0


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far a document is: `embedded_chunks` of `changed_chunks` are embedded."""

    path: str
    chunks: int
    changed_chunks: int
    embedded_chunks: int


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """An ingest is done; `chunks` counts the whole collection."""

    stored_documents: int
    unchanged_documents: int
    removed_documents: int
    chunks: int
    embedded_chunks: int


@dataclass(frozen=True, slots=True)
class Document:
    """A document that is stored; `concepts` are those its passages speak of, where asked for."""

    collection: str
    path: str
    title: str
    chunks: int
    ingest_time: datetime
    content_sha256: bytes
    front_matter: Mapping[str, FieldValue] = field(default_factory=dict)
    concepts: tuple[str, ...] = ()


class SearchMode(Enum):
    """By what passages are found."""

    HYBRID = "hybrid"
    VECTOR = "vector"
    KEYWORD = "keyword"


@dataclass(frozen=True, slots=True)
class RankingParameters:
    """How meaning and words are weighed against each other.

    relevance = vector_weight * max(0, cosine) + (1 - vector_weight) * keyword_share, where
    keyword_share is BM25 over its least upper bound for the query, the sum of the query's idf. Both
    terms lie in 0..1 whatever else was found, so scores do not depend on the other candidates: a
    convex combination with theoretical bounds (Bruch, Gai & Ingber 2023, "An Analysis of Fusion
    Functions for Hybrid Retrieval", ACM TOIS 42).

    Attributes:
        vector_weight: 0..1.
        k1: saturation of term frequency in BM25 (Robertson & Zaragoza 2009).
        b: strength of BM25's length normalisation, 0..1. Both defaults are those that Anserini
            tuned for passages (Yang, Fang & Lin 2017).
        reranker_weight: 0..1, of a reranker's score, where there is one.
        reranked_vector_weight: 0..1, of max(0, cosine) beside a reranker's score; what is left to 1
            is the weight of keyword_share ** reranked_keyword_exponent.
        reranked_keyword_exponent: above 1, so that a third of a query's words counts less than a
            third of all of them: few words in common are often those that everyone uses, and the
            reranker knows more of such a passage.
        frequent_from: passages with a word from which it may be pruned; see migration 0011.
    """

    vector_weight: float = 0.5
    k1: float = 0.9
    b: float = 0.4
    frequent_from: int = 5000
    reranker_weight: float = 0.35
    reranked_vector_weight: float = 0.25
    reranked_keyword_exponent: float = 1.75


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What is looked for; no collections means all.

    Attributes:
        per_section: how many passages of one section come before those of others.
        neighbours: how many passages before and after each one come with it.
        minimum_probability: below it nothing is returned.
    """

    text: str
    mode: SearchMode = SearchMode.HYBRID
    limit: int = 10
    collections: tuple[str, ...] = ()
    per_section: int = 2
    neighbours: int = 0
    minimum_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Citation:
    """Where a passage stands; lines count from 1, both ends inclusive."""

    collection: str
    path: str
    heading_path: tuple[str, ...]
    start_line: int
    end_line: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A passage with its scores.

    `score` is relevance as `RankingParameters` has it, or the one leg's part in the other modes.
    `reranker_score` is None where no reranker took part; else it has its part in `score`.
    """

    text: str
    citation: Citation
    score: float
    vector_score: float | None
    keyword_score: float | None
    concepts: tuple[str, ...] = ()
    keyword_share: float = 0.0
    text_before: tuple[str, ...] = ()
    text_after: tuple[str, ...] = ()
    reranker_score: float | None = None


@dataclass(frozen=True, slots=True)
class ConceptPassage:
    """A passage that speaks of concepts; `ordinal` counts its document's passages from 1."""

    text: str
    citation: Citation
    ordinal: int
    concepts: tuple[str, ...]


def check_path(path: str) -> str:
    """Returns `path` when it is relative, normal and printable.

    Raises InvalidDocument otherwise.
    """
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts) or not path.isprintable() or "\\" in path:
        description = "must be relative, with / between names, without . and .. and control codes"
        raise InvalidDocument(
            f"path {description}; it is {path!r}.",
            metadata={"path": path},
            field_violations=[FieldViolation("document.path", description)],
        )
    return path
