"""The scaling activities of Auto Scaling groups: who launched or terminated what, and why."""

import itertools
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from fleetsim.scaling_group_state import ActivityStatus, ScalingActivity

__all__ = ["ActivityLog"]

_ACTIVITIES_KEPT_PER_GROUP = 1000


class ActivityLog:
    """Keeps the last 1000 activities of every group. Ids look like UUIDs and follow the seed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._numbers = itertools.count()
        self._activities: dict[str, ScalingActivity] = {}
        self._order: dict[str, deque[str]] = {}

    def get(self, activity_id: str) -> ScalingActivity:
        """Return one activity; KeyError when unknown or dropped."""
        return self._activities[activity_id]

    def newest_first(self, group_name: str) -> list[ScalingActivity]:
        """Return a group's activities."""
        return [self._activities[a] for a in reversed(self._order.get(group_name, ()))]

    def record(
        self,
        time: float,
        group_name: str,
        description: str,
        cause: str,
        *,
        status: ActivityStatus,
        instance_id: str | None = None,
    ) -> str:
        """Begin an activity and return its id."""
        order = self._order.setdefault(group_name, deque())
        if len(order) == _ACTIVITIES_KEPT_PER_GROUP:
            del self._activities[order.popleft()]
        high, low = (int(self._rng.integers(1 << 32)) for _ in range(2))
        number = next(self._numbers)
        activity_id = f"{high:08x}-{number & 0xFFFF:04x}-4000-8000-{number >> 16:04x}{low:08x}"
        order.append(activity_id)
        self._activities[activity_id] = ScalingActivity(
            activity_id,
            group_name,
            description,
            cause,
            time,
            status,
            progress=30 if status is ActivityStatus.PRE_IN_SERVICE else 0,
            instance_id=instance_id,
        )
        return activity_id

    def finish(self, time: float, activity_id: str) -> None:
        """Mark an activity successful."""
        self.change(activity_id, status=ActivityStatus.SUCCESSFUL, progress=100, end_time=time)

    def change(self, activity_id: str, **changes: Any) -> None:
        """Change fields of an activity; one already dropped is left alone."""
        activity = self._activities.get(activity_id)
        if activity is not None:
            self._activities[activity_id] = replace(activity, **changes)

    def forget_group(self, group_name: str) -> None:
        """Drop a deleted group's activities."""
        for activity_id in self._order.pop(group_name, ()):
            self._activities.pop(activity_id, None)
