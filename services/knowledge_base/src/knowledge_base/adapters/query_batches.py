"""Queries that come while the model runs share its next run."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from knowledge_base.ports import Vector
from servicekit.errors import Overloaded

__all__ = ["QueryBatches"]

_Waiting = tuple[str, "asyncio.Future[Vector]"]


class QueryBatches:
    """Embeds queries in batches that form by themselves.

    With the model idle a query is run at once and alone; what comes meanwhile waits and is run
    together when the model is free. So nobody waits for a batch to fill, and under load the batches
    are as large as the load makes them. Equal texts in a batch are run once.

    Args:
        submit: starts a run; its future holds vectors, shape [len(texts), dimensions].
        largest: most queries in a run.
        waiting: most queries that wait for one.
    """

    def __init__(
        self,
        submit: Callable[[Sequence[str]], "asyncio.Future[Vector]"],
        *,
        largest: int,
        waiting: int,
    ) -> None:
        self._submit = submit
        self._largest = largest
        self._limit = waiting
        self._waiting: deque[_Waiting] = deque()
        self._running = False

    async def embed(self, text: str) -> Vector:
        """Returns the vector of one text, shape [dimensions].

        Raises Overloaded when too many queries wait.
        """
        if len(self._waiting) >= self._limit:
            raise Overloaded("too many queries wait for their embedding; try again shortly")
        answer: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, answer))
        if not self._running:
            self._run_next()
        return await answer

    def _run_next(self) -> None:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._largest:
            text, answer = self._waiting.popleft()
            if not answer.done():  # else its caller has gone
                batch.append((text, answer))
        self._running = bool(batch)
        if not batch:
            return
        rows = {text: row for row, text in enumerate(dict.fromkeys(text for text, _ in batch))}
        try:
            run = self._submit(list(rows))
        except RuntimeError as error:  # the model's threads have ended: the service stops
            self._running = False
            for _, answer in batch:
                answer.set_exception(error)
            return
        run.add_done_callback(lambda run: self._answer(batch, rows, run))

    def _answer(
        self, batch: list[_Waiting], rows: dict[str, int], run: "asyncio.Future[Vector]"
    ) -> None:
        error = None if run.cancelled() else run.exception()
        for text, answer in batch:
            if answer.done():
                continue
            if run.cancelled():
                answer.cancel()
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(run.result()[rows[text]])
        self._run_next()
