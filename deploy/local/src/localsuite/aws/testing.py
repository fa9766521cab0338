"""What tests of the local AWS use: a server on the test's clock, and what it told the hosts."""

import contextlib
import json
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import ClientError

from fleetsim.cloud_state import CloudSettings, Instance
from localsuite.aws.account import boto_client
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.tiers import TierCapacity

__all__ = [
    "COMPRESSION",
    "START",
    "ZONES",
    "LocalAws",
    "ManualClock",
    "RecordingHosts",
    "a_tier",
    "local_aws",
    "refusal",
    "spot_tier",
]

START = 1_900_000_000.0
"""The Unix time at which a `ManualClock` starts."""

COMPRESSION = 20.0
"""How many production seconds pass in one second of the test's clock."""

ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")


@dataclass
class ManualClock:
    """A clock that moves only when a test sets it."""

    now: float = START

    def __call__(self) -> float:
        """Returns the Unix time in seconds."""
        return self.now


@dataclass
class RecordingHosts:
    """What the simulated fleet would have been told.

    Attributes:
        calls: kind of event and instance, in order.
        notices: when each noticed instance will be taken, as Unix time.
        on_running: called as well when an instance runs.
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    notices: dict[str, float] = field(default_factory=dict)
    on_running: Callable[[Instance], None] = lambda instance: None

    def on_instance_running(self, instance: Instance) -> None:
        """Records that the instance runs."""
        self.calls.append(("running", instance.instance_id))
        self.on_running(instance)

    def on_interruption_notice(self, instance: Instance, at: float) -> None:
        """Records the notice and its time."""
        self.calls.append(("notice", instance.instance_id))
        self.notices[instance.instance_id] = at

    def on_instance_terminated(self, instance: Instance) -> None:
        """Records that the instance is gone."""
        self.calls.append(("terminated", instance.instance_id))


class LocalAws:
    """A server with everything a test looks at."""

    def __init__(self, clock: ManualClock, region: Region, hosts: RecordingHosts) -> None:
        self.clock = clock
        self.region = region
        self.hosts = hosts
        self.server = LocalAwsServer(region, moving=False)
        self.stack = contextlib.ExitStack()

    @property
    def endpoint(self) -> str:
        """The address to give to clients of AWS."""
        return self.server.endpoint

    def client(self, service: str) -> Any:
        """Returns a boto3 client of the service, closed with the server."""
        client = boto_client(service, self.endpoint)
        self.stack.callback(client.close)
        return client

    def pass_time(self, production_seconds: float) -> None:
        """Moves the region on by that time."""
        self.clock.now += production_seconds / COMPRESSION
        self.region.advance()

    def local(self, method: str, path: str, document: object = None) -> Any:
        """Returns the answer of the control interface to `document` at `/_local/{path}`."""
        request = urllib.request.Request(  # noqa: S310 - the endpoint is ours
            f"{self.endpoint}/_local/{path}",
            data=None if document is None else json.dumps(document).encode(),
            method=method,
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
            return json.load(response)

    def group(self, name: str) -> Any:
        """Returns the scaling group as AWS describes it."""
        described = self.client("autoscaling").describe_auto_scaling_groups(
            AutoScalingGroupNames=[name]
        )
        return described["AutoScalingGroups"][0]

    def instances(self, *states: str) -> list[Any]:
        """Returns the instances in these states (default: in any) as AWS describes them."""
        filters = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        described = self.client("ec2").describe_instances(Filters=filters)
        return [i for r in described["Reservations"] for i in r["Instances"]]


@contextlib.contextmanager
def local_aws(settings: CloudSettings | None = None, seed: int = 7) -> Iterator[LocalAws]:
    """Serves a local AWS whose time passes only by `LocalAws.pass_time`."""
    clock = ManualClock()
    hosts = RecordingHosts()
    region = Region(
        seed=seed, time_compression=COMPRESSION, settings=settings, clock=clock, hosts=hosts
    )
    aws = LocalAws(clock, region, hosts)
    with aws.stack, aws.server:
        yield aws


def a_tier(desired: int = 0, **changes: Any) -> TierCapacity:
    """Returns a tier of its own: launch templates outlive a test, they are moto's."""
    values: dict[str, Any] = {
        "tier": f"t{uuid.uuid4().hex[:8]}",
        "instance_types": ("g5.xlarge",),
        "min_size": 0,
        "max_size": 10,
        "desired_capacity": desired,
        **changes,
    }
    return TierCapacity(**values)


def spot_tier(desired: int) -> TierCapacity:
    """Returns a tier of its own that buys Spot instances only."""
    return a_tier(desired, on_demand_percentage_above_base=0)


def refusal(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, str]:
    """Returns the code and the message with which AWS refused."""
    described = error.value.response["Error"]
    return described["Code"], described["Message"]
