"""Changes the embedding model while the service answers: fills, finishes, tells how far it is."""

import asyncio
import uuid
from dataclasses import dataclass

import structlog

from knowledge_base.domain.embedding_models import (
    EmbeddingChangeNotReady,
    EmbeddingModel,
    EmbeddingTablesBusy,
    ModelState,
    NoEmbeddingChange,
)
from knowledge_base.domain.requests import Json, fingerprint
from knowledge_base.embedding_models import EmbeddingModels
from knowledge_base.ports import Embedder, RequestKey
from knowledge_base.ports_embedding import EmbeddingModelStore, FillSession
from servicekit.clock import Clock
from servicekit.errors import ServiceError

__all__ = ["EmbeddingChange", "EmbeddingStatus"]

log = structlog.get_logger(__name__)

_ROWS_PER_BATCH = 32
_POLL_SECONDS = 2.0
# What may be left when a change is finished: nobody stores vectors while it is embedded.
_LAST_ROWS = 64
_LAST_ROWS_SECONDS = 3.0
_TABLE_TRIES = 20
_TABLE_RETRY_SECONDS = 0.25
_PROBE = "ready"


@dataclass(frozen=True, slots=True)
class EmbeddingStatus:
    """The model that answers, the one that is changed to if any, and what this process offers."""

    active: EmbeddingModel | None
    change: EmbeddingModel | None
    offered: tuple[str, ...]


class EmbeddingChange:
    """Changes the embedding model.

    Every replica runs `fill`; one of them at a time works, a batch at a time, so a replica that
    dies leaves at most a batch to be done again.

    Args:
        rows_per_second: how fast rows are filled at most; queries share the machine with it.
    """

    def __init__(
        self,
        store: EmbeddingModelStore,
        models: EmbeddingModels,
        clock: Clock,
        *,
        rows_per_second: float,
    ) -> None:
        self._store = store
        self._models = models
        self._clock = clock
        self._rows_per_second = rows_per_second

    async def status(self) -> EmbeddingStatus:
        """Returns how things stand."""
        models = await self._store.models()
        active = (model for model in models if model.state is ModelState.ACTIVE)
        change = (m for m in models if m.state in (ModelState.FILLING, ModelState.PAUSED))
        return EmbeddingStatus(next(active, None), next(change, None), self._models.offered)

    async def start(self, request_id: uuid.UUID, model: str) -> EmbeddingStatus:
        """Starts a change to a model this process offers; the same request again does nothing.

        Raises UnknownEmbeddingModel, EmbeddingChangeInProgress, EmbeddingModelActive,
        EmbeddingUnavailable, EmbeddingRefused, EmbeddingTablesBusy, RequestIdReused.
        """
        offer = self._models.offer(model)
        key = self._key(request_id, "StartEmbeddingChange", {"model": model})
        # A model that cannot embed is found out now, not by the filling.
        await (await self._models.embedder(model)).embed_documents([_PROBE])
        for left in reversed(range(_TABLE_TRIES)):
            try:
                await self._store.start(key, model, offer.dimensions)
                break
            except EmbeddingTablesBusy:
                if not left:
                    raise
            await self._clock.sleep(_TABLE_RETRY_SECONDS)
        log.info("embedding_change_started", model=model, dimensions=offer.dimensions)
        return await self.status()

    async def pause(self, request_id: uuid.UUID) -> EmbeddingStatus:
        """Pauses the filling. Raises NoEmbeddingChange, RequestIdReused."""
        key = self._key(request_id, "PauseEmbeddingChange", {})
        await self._store.set_state(key, ModelState.PAUSED)
        return await self.status()

    async def resume(self, request_id: uuid.UUID) -> EmbeddingStatus:
        """Goes on with the filling. Raises NoEmbeddingChange, RequestIdReused."""
        key = self._key(request_id, "ResumeEmbeddingChange", {})
        await self._store.set_state(key, ModelState.FILLING)
        return await self.status()

    async def cancel(self, request_id: uuid.UUID) -> EmbeddingStatus:
        """Gives the change up; the active model stays.

        Raises NoEmbeddingChange, EmbeddingTablesBusy, RequestIdReused.
        """
        await self._store.cancel(self._key(request_id, "CancelEmbeddingChange", {}))
        log.info("embedding_change_cancelled")
        return await self.status()

    async def finish(self, request_id: uuid.UUID) -> EmbeddingStatus:
        """Makes the new model the active one and drops the old vectors.

        Raises NoEmbeddingChange, EmbeddingChangeNotReady, EmbeddingTablesBusy, RequestIdReused.
        """
        key = self._key(request_id, "FinishEmbeddingChange", {})
        change = (await self.status()).change
        if change is None:
            # A repeat of the request that finished it is answered as that was.
            async with self._store.finishing() as session:
                await session.finish(key, "")
            return await self.status()
        if not change.listed or change.remaining_rows > _LAST_ROWS:
            raise EmbeddingChangeNotReady(
                "Too many rows still lack the new model's vector; see GetEmbeddingChange.",
                metadata={"remaining_rows": str(change.remaining_rows)},
            )
        embedder = await self._models.embedder(change.name)
        for left in reversed(range(_TABLE_TRIES)):
            try:
                await self._switch(key, change.name, embedder)
                break
            except (EmbeddingTablesBusy, EmbeddingChangeNotReady):
                if not left:
                    raise
            await self._clock.sleep(_TABLE_RETRY_SECONDS)
        log.info("embedding_change_finished", model=change.name)
        await self._models.refresh()
        await self._settle()
        return await self.status()

    async def fill(self) -> None:
        """Fills vectors whenever there is a change to fill; runs until cancelled."""
        await self._settle()
        while True:
            began = self._clock.monotonic()
            filled = 0
            try:
                # So that a replica learns of a finished change before a query tells it.
                await self._models.refresh()
                filled = await self._fill_some()
            except NoEmbeddingChange:
                pass  # finished or cancelled under the batch
            except ServiceError as error:
                log.warning("embedding_change_waits", reason=error.reason)
            took = self._clock.monotonic() - began
            pause = filled / self._rows_per_second - took if filled else _POLL_SECONDS
            await self._clock.sleep(max(0.0, pause))

    async def _fill_some(self) -> int:
        change = await self._store.change_to_fill()
        if change is None or change.model not in self._models.offered:
            return 0
        embedder = await self._models.embedder(change.model)
        async with self._store.filling() as session:
            if session is None:
                return 0
            if not change.listed:
                await session.list_unfilled(change.model)
            return await _fill_batch(session, change.model, embedder)

    async def _switch(self, key: RequestKey, model: str, embedder: Embedder) -> None:
        """Embeds the last rows while nobody stores more, then makes the model the active one."""
        async with self._store.finishing() as session:
            try:
                async with asyncio.timeout(_LAST_ROWS_SECONDS):
                    while await _fill_batch(session, model, embedder):
                        pass
            except TimeoutError:
                raise EmbeddingChangeNotReady(
                    "The last rows take too long to embed; repeat the call."
                ) from None
            await session.finish(key, model)

    async def _settle(self) -> None:
        try:
            await self._store.settle()
        except ServiceError as error:  # done at the next start or change
            log.warning("embeddings_not_settled", reason=error.reason)

    def _key(self, request_id: uuid.UUID, method: str, content: dict[str, Json]) -> RequestKey:
        return RequestKey(request_id, fingerprint(method, content), self._clock.now())


async def _fill_batch(session: FillSession, model: str, embedder: Embedder) -> int:
    """Embeds and stores some rows, events first; returns how many, 0 when none is left."""
    events = await session.unfilled_events(_ROWS_PER_BATCH)
    if events:
        vectors = await embedder.embed_documents([event.text for event in events])
        await session.fill_events(model, events, vectors)
        return len(events)
    chunks = await session.unfilled_chunks(_ROWS_PER_BATCH)
    if chunks:
        vectors = await embedder.embed_documents([chunk.text for chunk in chunks])
        await session.fill_chunks(model, chunks, vectors)
    return len(chunks)
