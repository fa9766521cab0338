"""The ECS tasks of a host, from its ECS agent and from the agent's own task.

The ECS agent's introspection endpoint (`/v1/tasks`, AWS: "Amazon ECS container agent
introspection") tells the tasks of an EC2 host with their containers, but no services; task metadata
version 4 (`ECS_CONTAINER_METADATA_URI_V4` and `/task`) tells the task that the agent itself is part
of.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import structlog

from gpu_metrics.adapters.http_page import fetch_page
from gpu_metrics.domain.plain_text import plain_text
from gpu_metrics.domain.readings import MissingReason
from servicekit.clock import Clock

__all__ = ["EcsContainer", "EcsTasks"]

log = structlog.get_logger(__name__)

_MOST_CONTAINERS = 4096


@dataclass(frozen=True, slots=True)
class EcsContainer:
    """A container of a task; `service` is the task's family when it is of no service.

    `name` is empty where the task is known and the container is not.
    """

    task_arn: str
    service: str
    name: str


class EcsTasks:
    """Looks containers up by id; what was asked is remembered for `lifetime_seconds`.

    An id that is not known is asked for again after `retry_seconds` at the earliest, since its task
    may have begun meanwhile.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        clock: Clock,
        agent_url: str,
        task_url: str | None = None,
        timeout_seconds: float = 1.0,
        lifetime_seconds: float = 60.0,
        retry_seconds: float = 5.0,
    ) -> None:
        self._session = session
        self._clock = clock
        self._agent_url = agent_url
        self._task_url = task_url
        self._limits = aiohttp.ClientTimeout(total=timeout_seconds)
        self._lifetime_seconds = lifetime_seconds
        self._retry_seconds = retry_seconds
        self._containers: dict[str, EcsContainer] = {}
        self._asked_at: float | None = None
        self._available: bool | None = None
        self.cluster = ""

    @property
    def available(self) -> bool:
        """Return whether ECS answered when it was asked last."""
        return bool(self._available)

    async def refresh(self, wanted: set[str]) -> None:
        """Bring what is known up to date where it is old or lacks one of these containers."""
        now = self._clock.monotonic()
        if self._asked_at is not None:
            age = now - self._asked_at
            complete = wanted <= self._containers.keys()
            if age < (self._lifetime_seconds if complete else self._retry_seconds):
                return
        self._asked_at = now
        tasks = await self._document(f"{self._agent_url}/v1/tasks")
        own = await self._document(f"{self._task_url}/task") if self._task_url else None
        self._note(tasks is not None or own is not None)
        if tasks is None and own is None:
            return
        found = dict(_introspected(tasks))
        found.update(_own_task(own))
        self._containers = dict(list(found.items())[:_MOST_CONTAINERS])

    async def find_cluster(self) -> str:
        """Return the name of the cluster that this host is part of, empty while nobody tells."""
        if not self.cluster:
            own = await self._document(f"{self._task_url}/task") if self._task_url else None
            cluster = _text(own, "Cluster")
            if not cluster:
                cluster = _text(await self._document(f"{self._agent_url}/v1/metadata"), "Cluster")
            # A task is told the cluster's ARN, the host its name.
            self.cluster = cluster.rpartition("/")[2]
        return self.cluster

    def find(self, container_id: str, task_id: str = "") -> EcsContainer | None:
        """Return what ECS says of a container, or of its task, None when it knows neither."""
        container = self._containers.get(container_id)
        if container is not None or not task_id:
            return container
        for other in self._containers.values():
            if other.task_arn.rpartition("/")[2] == task_id:
                return replace(other, name="")
        return None

    async def _document(self, url: str) -> Any:
        """Return a JSON document, None when there is none."""
        page = await fetch_page(self._session, url, self._limits)
        if isinstance(page, MissingReason):
            return None
        try:
            return json.loads(page)
        except (ValueError, RecursionError):
            return None

    def _note(self, available: bool) -> None:
        if available != self._available and (available or self._available is not None):
            log.info("ecs_available" if available else "ecs_unavailable")
        self._available = available


def _introspected(document: Any) -> Iterator[tuple[str, EcsContainer]]:
    for task in _rows(document, "Tasks"):
        for container in _rows(task, "Containers"):
            yield (
                _text(container, "DockerId"),
                EcsContainer(_text(task, "Arn"), _text(task, "Family"), _text(container, "Name")),
            )


def _own_task(task: Any) -> Iterator[tuple[str, EcsContainer]]:
    service = _text(task, "ServiceName") or _text(task, "Family")
    for container in _rows(task, "Containers"):
        yield (
            _text(container, "DockerId"),
            EcsContainer(_text(task, "TaskARN"), service, _text(container, "Name")),
        )


def _rows(document: Any, name: str) -> list[Any]:
    rows = document.get(name) if isinstance(document, dict) else None
    return rows if isinstance(rows, list) else []


def _text(document: Any, name: str) -> str:
    value = document.get(name) if isinstance(document, dict) else None
    return plain_text(value, 255) if isinstance(value, str) else ""
