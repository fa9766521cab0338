"""In which container a process runs, by the path of its control group.

Formats: Linux `cgroups(7)` for `/proc/PID/cgroup`; paths as Docker (`/docker/ID`,
`docker-ID.scope`), containerd (`cri-containerd-ID.scope`, `…:cri-containerd:ID`), CRI-O
(`crio-ID.scope`), Podman (`libpod-ID.scope`) and the ECS agent (`/ecs/TASK/ID`,
`/ecs/CLUSTER/TASK/ID`, and under systemd `ecstasks-TASK.slice`; on Fargate the container's id is
the task's and a number) name them.
"""

import re
from dataclasses import dataclass

__all__ = ["ControlGroup", "parse_control_groups"]

_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64}|[0-9a-f]{32}-[0-9]{1,20})(?:\.scope)?(?=/|$)")
_TASK_ID = r"([0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_TASK = re.compile(rf"/ecs/(?:[^/]+/)?{_TASK_ID}(?=/|$)|/ecstasks-{_TASK_ID}\.slice(?=/|$)")
# Of these controllers every container runtime makes a group of its own.
_TELLING = ("devices", "memory", "pids", "cpu", "name=systemd")
_LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """Where a process was put; ids are empty where the path names none."""

    path: str
    container_id: str = ""
    ecs_task_id: str = ""


def parse_control_groups(text: str) -> ControlGroup | None:
    """Return the group that a `/proc/PID/cgroup` tells, None when it cannot be read.

    Of several hierarchies (version 1) the one that names a container counts, version 2's first.
    """
    paths: list[tuple[int, str]] = []
    for line in text.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if not colon or not hierarchy.isdigit() or not path.startswith("/"):
            continue
        paths.append((_rank(hierarchy, controllers), path[:_LONGEST_PATH]))
    if not paths:
        return None
    groups = [_group(path) for _, path in sorted(paths, key=lambda ranked: ranked[0])]
    return next((group for group in groups if group.container_id), groups[0])


def _rank(hierarchy: str, controllers: str) -> int:
    if hierarchy == "0":
        return 0
    names = controllers.split(",")
    ranks = [rank for rank, name in enumerate(_TELLING, 1) if name in names]
    return min(ranks, default=len(_TELLING) + 1)


def _group(path: str) -> ControlGroup:
    # The innermost: a container may run containers.
    containers = _CONTAINER.findall(path)
    task = _TASK.search(path)
    return ControlGroup(
        path=path,
        container_id=containers[-1] if containers else "",
        ecs_task_id=(task[1] or task[2]) if task else "",
    )
