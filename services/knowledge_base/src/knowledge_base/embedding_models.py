"""The model whose vectors answer now, and every operation held to one model."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import structlog

from knowledge_base.domain.embedding_models import (
    EmbeddingModelChanged,
    EmbeddingUnavailable,
    UnknownEmbeddingModel,
)
from knowledge_base.embedding_cache import EmbeddingCache
from knowledge_base.ports import Embedder, Vector
from knowledge_base.ports_embedding import EmbeddingModelStore
from servicekit.clock import Clock
from servicekit.errors import Unavailable

__all__ = ["EmbeddingModels", "OfferedModel"]

log = structlog.get_logger(__name__)

# A model may be changed under an operation once; twice within one would need a change of a moment.
_TRIES = 3
_QUERY_CACHE_SIZE = 2048

# The model that the operation in hand works with.
_PINNED: ContextVar[str | None] = ContextVar("embedding_model", default=None)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OfferedModel:
    """A model that this process can embed with; it is opened when it is first needed."""

    name: str
    dimensions: int
    open: Callable[[], AbstractAsyncContextManager[Embedder]]

    @classmethod
    def of(cls, embedder: Embedder) -> "OfferedModel":
        """Returns the offer of an embedder that is open already, and is not closed here."""

        @asynccontextmanager
        async def lend() -> AsyncIterator[Embedder]:
            yield embedder

        return cls(embedder.model, embedder.dimensions, lend)


class EmbeddingModels:
    """An `Embedder` that is always the active model's.

    Which model is active stands in the database, and every statement with a vector says which model
    made it. When the answer is that another one is active by now, `with_one_model` runs the
    operation again with that one; so nobody notices a change.

    Args:
        offered: what this process can embed with; the first is registered in a new database.
        query_cache_size: how many queries' vectors are remembered per model.
    """

    def __init__(
        self,
        offered: Sequence[OfferedModel],
        store: EmbeddingModelStore,
        clock: Clock,
        *,
        query_cache_size: int = _QUERY_CACHE_SIZE,
    ) -> None:
        self._offered = {model.name: model for model in offered}
        self._first = offered[0]
        self._current = self._first.name
        self._store = store
        self._clock = clock
        self._query_cache_size = query_cache_size
        self._opened: dict[str, Embedder] = {}
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    @property
    def offered(self) -> tuple[str, ...]:
        """The names of the models this process can embed with."""
        return tuple(self._offered)

    @property
    def model(self) -> str:
        """Names the model of the operation in hand, else the active one."""
        return _PINNED.get() or self._current

    @property
    def dimensions(self) -> int:
        """The length of that model's vectors."""
        return self.offer(self.model).dimensions

    async def embed_query(self, text: str) -> Vector:
        """Returns the vector of one text; it cannot be written to."""
        return await (await self.embedder(self.model)).embed_query(text)

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the vectors of the texts, shape [len(texts), dimensions]."""
        return await (await self.embedder(self.model)).embed_documents(texts)

    def offer(self, name: str) -> OfferedModel:
        """Returns a model this process can embed with. Raises UnknownEmbeddingModel."""
        if name not in self._offered:
            raise UnknownEmbeddingModel(
                "The knowledge base offers no embedding model of this name.",
                metadata={"offered": ", ".join(self._offered)},
            )
        return self._offered[name]

    async def embedder(self, name: str) -> Embedder:
        """Returns a model's embedder, opened if need be. Raises EmbeddingUnavailable."""
        known = self._opened.get(name)
        if known is not None:
            return known
        if name not in self._offered:
            raise EmbeddingUnavailable(
                "This server is not configured for the embedding model that is active."
            )
        async with self._opening:
            if name not in self._opened:
                inner = await self._stack.enter_async_context(self._offered[name].open())
                self._opened[name] = EmbeddingCache(inner, self._query_cache_size)
        return self._opened[name]

    def forget_texts(self) -> None:
        """Forgets the texts whose vectors were remembered."""
        for embedder in self._opened.values():
            if isinstance(embedder, EmbeddingCache):
                embedder.forget_texts()

    async def open(self) -> None:
        """Opens the active model; the first one offered while the database is away.

        Raises StoredVectorsDiffer, and what opening a model raises.
        """
        try:
            await self.refresh()
        except Unavailable as error:
            log.warning("active_embedding_model_unknown", reason=error.reason)
        await self.embedder(self._current)

    async def refresh(self) -> None:
        """Learns which model is active; registers the first one offered if none is.

        Raises StoredVectorsDiffer, Unavailable.
        """
        active = await self._store.active()
        if active is None:
            await self._store.register(self._first.name, self._first.dimensions, self._clock.now())
            active = await self._store.active() or self._first.name
        if active != self._current:
            log.info("embedding_model_active", model=active, before=self._current)
            self._current = active

    async def with_one_model(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Runs an operation with one model from beginning to end, the active one.

        The operation may run again from its beginning, when the model was changed under it.
        """
        for left in reversed(range(_TRIES)):
            token = _PINNED.set(self._current)
            try:
                return await operation()
            except EmbeddingModelChanged:
                if not left:
                    raise
            finally:
                _PINNED.reset(token)
            await self.refresh()
        raise AssertionError("the last try returns or raises")

    async def steps_with_one_model(
        self, steps: Callable[[Embedder], AsyncGenerator[T, None]]
    ) -> AsyncGenerator[T, None]:
        """Yields an operation's steps, taken with the active model's embedder.

        The steps begin again when the model was changed under them.
        """
        for left in reversed(range(_TRIES)):
            try:
                async with aclosing(steps(await self.embedder(self.model))) as taken:
                    async for step in taken:
                        yield step
            except EmbeddingModelChanged:
                if not left:
                    raise
            else:
                return
            await self.refresh()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.clear()
        await self._stack.aclose()
