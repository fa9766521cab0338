"""Finds passages of lore and lists documents; answers known searches while the database is away."""

from collections import OrderedDict
from dataclasses import dataclass

import structlog

from knowledge_base.domain.answerability import answer_probability
from knowledge_base.domain.errors import DocumentNotFound
from knowledge_base.domain.lore import (
    ConceptPassage,
    Document,
    RankingParameters,
    SearchMode,
    SearchQuery,
    SearchResult,
)
from knowledge_base.domain.reranking import rerank, reranked_candidates
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.ports import Embedder, LoreStore, Vector
from knowledge_base.ports_reranker import Reranker
from servicekit.clock import Clock
from servicekit.errors import Unavailable
from servicekit.paging import Page, decode_page_token, encode_page_token

__all__ = ["LoreSearch", "SearchAnswer"]

log = structlog.get_logger(__name__)

_REMEMBERED_SEARCHES = 256


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """What was found.

    Attributes:
        age_seconds: 0 unless the database was away and this is an old answer.
        probability: that the results answer the query; None but in mode hybrid.
    """

    results: tuple[SearchResult, ...]
    age_seconds: float = 0.0
    probability: float | None = None


class LoreSearch:
    """Answers searches in the lore that all worlds share."""

    def __init__(
        self,
        store: LoreStore,
        embedder: Embedder,
        clock: Clock,
        parameters: RankingParameters,
        *,
        stale_answer_seconds: float,
        reranker: Reranker | None = None,
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._clock = clock
        self._parameters = parameters
        self._reranker = reranker
        self._stale_answer_seconds = stale_answer_seconds
        self._recent: OrderedDict[SearchQuery, tuple[float, SearchAnswer]] = OrderedDict()

    async def search(self, query: SearchQuery) -> SearchAnswer:
        """Returns passages, best first.

        While the database is away, the last answer to the same search is given again if it is young
        enough; lore changes seldom, and a storyteller without it is worse off.

        Raises:
            InvalidText: the query cannot be a text of the database.
            Unavailable: the database is away and the answer is not known.
        """
        check_text("query", query.text)
        for index, collection in enumerate(query.collections):
            check_text(f"collections[{index}]", collection)
        embedding = None
        if query.mode is not SearchMode.KEYWORD:
            embedding = await self._embedder.embed_query(query.text)
        try:
            results = await self._found(query, embedding)
        except Unavailable:
            known = self._known(query)
            if known is None:
                raise
            log.warning("old_search_answer_given", age_seconds=round(known.age_seconds, 1))
            return known
        probability = None
        if query.mode is SearchMode.HYBRID:
            probability = answer_probability([result.vector_score or 0.0 for result in results])
            if probability < query.minimum_probability:
                results = []
        answer = SearchAnswer(tuple(results), probability=probability)
        self._recent[query] = (self._clock.monotonic(), answer)
        self._recent.move_to_end(query)
        if len(self._recent) > _REMEMBERED_SEARCHES:
            self._recent.popitem(last=False)
        return answer

    async def list_documents(
        self, collection: str, page_size: int, page_token: str
    ) -> Page[Document]:
        """Returns documents ordered by path; an empty collection means all.

        Raises InvalidPageToken.
        """
        scope = ("documents", check_text("collection", collection))
        position = decode_page_token(page_token, scope, (str, str)) or ["", ""]
        found = await self._store.list_documents(
            collection or None, (str(position[0]), str(position[1])), page_size + 1
        )
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            token = encode_page_token(scope, (items[-1].path, items[-1].collection))
        return Page(items, token)

    async def get_document(self, collection: str, path: str) -> Document:
        """Returns a document with the concepts it speaks of. Raises DocumentNotFound."""
        document = await self._store.get_document(
            check_text("collection", collection), check_text("path", path)
        )
        if document is None:
            raise DocumentNotFound("There is no document of this path; see ListDocuments.")
        return document

    async def list_concept_passages(
        self, concept: str, collection: str, page_size: int, page_token: str
    ) -> Page[ConceptPassage]:
        """Returns the passages that speak of a concept, ordered by path and line.

        Raises InvalidPageToken, InvalidText.
        """
        concept = normalise_name("concept", concept)
        scope = ("concept-passages", concept, check_text("collection", collection))
        position = decode_page_token(page_token, scope, (str, str, int)) or ["", "", 0]
        found = await self._store.concept_passages(
            concept,
            collection or None,
            (str(position[0]), str(position[1]), int(position[2])),
            page_size + 1,
        )
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            last = items[-1]
            token = encode_page_token(
                scope, (last.citation.path, last.citation.collection, last.ordinal)
            )
        return Page(items, token)

    def forget_texts(self) -> None:
        """Forgets the searches answered lately."""
        self._recent.clear()
        if self._reranker is not None:
            self._reranker.forget_texts()

    async def _found(self, query: SearchQuery, embedding: Vector | None) -> list[SearchResult]:
        """Returns passages, best first, reranked where all that come into question can be."""
        model = self._embedder.model
        if self._reranker is None or query.mode is not SearchMode.HYBRID:
            return await self._store.search(query, embedding, self._parameters, model=model)
        found = await self._store.search_with_codes(
            reranked_candidates(query),
            embedding,
            self._parameters,
            model=model,
            reranker=self._reranker.name,
        )
        codes = [each for _, each in found if each is not None]
        if len(codes) < len(found):
            # Ingested without codes; scores of two kinds cannot be compared.
            return await self._store.search(query, embedding, self._parameters, model=model)
        scores = await self._reranker.score(query.text, codes)
        return rerank([result for result, _ in found], scores, query, self._parameters)

    def _known(self, query: SearchQuery) -> SearchAnswer | None:
        time, answer = self._recent.get(query, (0.0, None))
        age_seconds = self._clock.monotonic() - time
        if answer is None or age_seconds > self._stale_answer_seconds:
            return None
        return SearchAnswer(answer.results, age_seconds, answer.probability)
