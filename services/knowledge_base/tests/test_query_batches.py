"""Queries share the model's runs, and none waits for others to come."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from knowledge_base.adapters.query_batches import QueryBatches
from knowledge_base.ports import Vector
from servicekit.errors import Overloaded


class Model:
    """Runs that end when the test says so."""

    def __init__(self) -> None:
        self.runs: list[tuple[list[str], asyncio.Future[Vector]]] = []

    def submit(self, texts: Sequence[str]) -> "asyncio.Future[Vector]":
        run: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        self.runs.append((list(texts), run))
        return run

    def end_run(self) -> None:
        texts, run = self.runs[-1]
        run.set_result(np.array([[float(text)] for text in texts], dtype=np.float32))


def ask(batches: QueryBatches, group: asyncio.TaskGroup, *texts: str) -> list[asyncio.Task[Vector]]:
    return [group.create_task(batches.embed(text)) for text in texts]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_idle_model_runs_a_query_at_once_and_later_ones_together() -> None:
    model = Model()
    batches = QueryBatches(model.submit, largest=8, waiting=8)
    async with asyncio.TaskGroup() as group:
        tasks = ask(batches, group, "1", "2", "3", "2")
        await settle()
        assert [texts for texts, _ in model.runs] == [["1"]]
        model.end_run()
        await settle()
        assert model.runs[-1][0] == ["2", "3"]  # the equal text once
        model.end_run()
    assert [task.result().tolist() for task in tasks] == [[1.0], [2.0], [3.0], [2.0]]


async def test_a_batch_is_no_larger_than_allowed() -> None:
    model = Model()
    batches = QueryBatches(model.submit, largest=2, waiting=8)
    async with asyncio.TaskGroup() as group:
        ask(batches, group, "0", "1", "2", "3")
        for _ in range(3):
            await settle()
            model.end_run()
    assert [texts for texts, _ in model.runs] == [["0"], ["1", "2"], ["3"]]


async def test_no_more_queries_wait_than_allowed() -> None:
    model = Model()
    batches = QueryBatches(model.submit, largest=8, waiting=2)
    async with asyncio.TaskGroup() as group:
        ask(batches, group, "0", "1", "2")
        await settle()
        with pytest.raises(Overloaded):
            await batches.embed("3")
        model.end_run()
        await settle()
        model.end_run()


async def test_a_failed_run_fails_its_own_queries_only() -> None:
    model = Model()
    batches = QueryBatches(model.submit, largest=8, waiting=8)
    async with asyncio.TaskGroup() as group:
        first, second = (
            group.create_task(asyncio.wait([task]))
            for task in (asyncio.ensure_future(batches.embed(text)) for text in "01")
        )
        await settle()
        model.runs[-1][1].set_exception(OSError("broken"))
        await settle()
        model.end_run()
    (failed,), (answered,) = first.result()[0], second.result()[0]
    assert isinstance(failed.exception(), OSError)
    assert answered.result().tolist() == [1.0]


async def test_a_query_whose_caller_has_gone_is_not_run() -> None:
    model = Model()
    batches = QueryBatches(model.submit, largest=8, waiting=8)
    async with asyncio.TaskGroup() as group:
        _, gone, _ = ask(batches, group, "0", "1", "2")
        await settle()
        gone.cancel()
        await settle()
        model.end_run()
        await settle()
        model.end_run()
    assert [texts for texts, _ in model.runs] == [["0"], ["2"]]
    async with asyncio.TaskGroup() as group:
        ask(batches, group, "4")
        await settle()
        model.end_run()
