"""The errors this library raises.

FleetSimError
├── TimeWentBackwardsError      a call carried an earlier time than one before it
└── CloudError                  AWS would have refused; `code` is AWS's error code
    ├── InsufficientCapacityError   no stock of that type, market and zone right now
    ├── InstanceNotFoundError
    └── ScalingGroupError           refused by Auto Scaling (validation, unknown group, in use)
"""

__all__ = [
    "CloudError",
    "FleetSimError",
    "InstanceNotFoundError",
    "InsufficientCapacityError",
    "ScalingGroupError",
    "TimeWentBackwardsError",
]


class FleetSimError(Exception):
    """Base of every error of this library."""


class TimeWentBackwardsError(FleetSimError, ValueError):
    """Time only moves forward: `now` was before the last time this state was advanced to."""

    def __init__(self, now: float, last: float) -> None:
        super().__init__(f"now={now!r} is before {last!r}")


class CloudError(FleetSimError):
    """AWS would have refused this call, with error code `code` and text `message`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class InsufficientCapacityError(CloudError):
    """The zone has no stock of this instance type in this market at this moment."""


class InstanceNotFoundError(CloudError):
    """No instance with this id is known (never existed, or terminated over an hour ago)."""

    def __init__(self, instance_id: str) -> None:
        super().__init__(
            "InvalidInstanceID.NotFound",
            f"The instance ID '{instance_id}' does not exist",
        )


class ScalingGroupError(CloudError):
    """Auto Scaling refused the call."""
