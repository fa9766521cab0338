"""The local AWS as its clients see it: boto3 and aioboto3 over HTTP, on a clock of the test's."""

import contextlib
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import aioboto3
import pytest
from botocore.exceptions import ClientError

from fleetsim.cloud_state import CloudSettings, Instance
from fleetsim.zone_stock import PoolStock
from localsuite.aws.account import boto_client, seed_account
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.tiers import TierCapacity, group_name

START = 1_900_000_000.0
COMPRESSION = 20.0
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")


@dataclass
class ManualClock:
    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class RecordingHosts:
    """What the simulated fleet would have been told."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    notices: dict[str, float] = field(default_factory=dict)

    def on_instance_running(self, instance: Instance) -> None:
        self.calls.append(("running", instance.instance_id))

    def on_interruption_notice(self, instance: Instance, at: float) -> None:
        self.calls.append(("notice", instance.instance_id))
        self.notices[instance.instance_id] = at

    def on_instance_terminated(self, instance: Instance) -> None:
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
        return self.server.endpoint

    def client(self, service: str) -> Any:
        client = boto_client(service, self.endpoint)
        self.stack.callback(client.close)
        return client

    def pass_time(self, production_seconds: float) -> None:
        self.clock.now += production_seconds / COMPRESSION
        self.region.advance()

    def local(self, method: str, path: str, document: object = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the endpoint is ours
            f"{self.endpoint}/_local/{path}",
            data=None if document is None else json.dumps(document).encode(),
            method=method,
        )
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - as above
            return json.load(response)

    def group(self, name: str) -> Any:
        described = self.client("autoscaling").describe_auto_scaling_groups(
            AutoScalingGroupNames=[name]
        )
        return described["AutoScalingGroups"][0]

    def instances(self, *states: str) -> list[Any]:
        filters = [{"Name": "instance-state-name", "Values": list(states)}] if states else []
        described = self.client("ec2").describe_instances(Filters=filters)
        return [i for r in described["Reservations"] for i in r["Instances"]]


@contextlib.contextmanager
def local_aws(settings: CloudSettings | None = None, seed: int = 7) -> Iterator[LocalAws]:
    clock = ManualClock()
    hosts = RecordingHosts()
    region = Region(
        seed=seed, time_compression=COMPRESSION, settings=settings, clock=clock, hosts=hosts
    )
    aws = LocalAws(clock, region, hosts)
    with aws.stack, aws.server:
        yield aws


@pytest.fixture
def aws() -> Iterator[LocalAws]:
    with local_aws() as running:
        yield running


def a_tier(desired: int = 0, **changes: Any) -> TierCapacity:
    """A tier of its own: launch templates outlive a test, they are moto's."""
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
    return a_tier(desired, on_demand_percentage_above_base=0)


def refusal(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, str]:
    described = error.value.response["Error"]
    return described["Code"], described["Message"]


class TestGroups:
    def test_a_group_lives_from_creation_to_deletion(self, aws: LocalAws) -> None:
        tier = a_tier(desired=2)
        (name,) = seed_account(aws.endpoint, [tier])
        assert name == group_name(tier.tier)
        autoscaling = aws.client("autoscaling")

        group = aws.group(name)
        assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 10, 2)
        assert [m["LifecycleState"] for m in group["Instances"]] == ["Pending", "Pending"]
        assert group["AvailabilityZones"] == list(ZONES)
        assert {tag["Key"]: tag["Value"] for tag in group["Tags"]} == {"gamekeeper:tier": tier.tier}

        aws.pass_time(600)
        members = aws.group(name)["Instances"]
        assert [m["LifecycleState"] for m in members] == ["InService", "InService"]
        assert {m["AvailabilityZone"] for m in members} == {"us-east-1a", "us-east-1b"}

        with pytest.raises(ClientError) as refused:
            autoscaling.delete_auto_scaling_group(AutoScalingGroupName=name)
        assert refusal(refused)[0] == "ResourceInUse"
        autoscaling.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
        assert aws.group(name)["Status"] == "Delete in progress"
        aws.pass_time(600)
        described = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
        assert described["AutoScalingGroups"] == []
        assert aws.instances("pending", "running") == []

    def test_seeding_twice_keeps_the_size(self, aws: LocalAws) -> None:
        tier = a_tier(desired=1)
        (name,) = seed_account(aws.endpoint, [tier])
        aws.client("autoscaling").set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=3)
        seed_account(aws.endpoint, [tier])
        assert aws.group(name)["DesiredCapacity"] == 3

    @pytest.mark.parametrize(("wanted", "bound"), [(11, "above max value 10"), (0, "below min")])
    def test_a_size_outside_the_bounds_is_refused_as_aws_refuses_it(
        self, aws: LocalAws, wanted: int, bound: str
    ) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=2, min_size=1)])
        with pytest.raises(ClientError) as refused:
            aws.client("autoscaling").set_desired_capacity(
                AutoScalingGroupName=name, DesiredCapacity=wanted
            )
        code, message = refusal(refused)
        assert code == "ValidationError"
        assert message.startswith(f"New SetDesiredCapacity value {wanted} is {bound}")
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        assert aws.group(name)["DesiredCapacity"] == 2

    def test_an_update_outside_its_own_bounds_changes_nothing(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=2)])
        autoscaling = aws.client("autoscaling")
        with pytest.raises(ClientError) as refused:
            autoscaling.update_auto_scaling_group(
                AutoScalingGroupName=name, MinSize=5, MaxSize=6, DesiredCapacity=7
            )
        assert refusal(refused)[0] == "ValidationError"
        assert aws.group(name)["MaxSize"] == 10
        autoscaling.update_auto_scaling_group(AutoScalingGroupName=name, MinSize=4)
        assert aws.group(name)["DesiredCapacity"] == 4

    def test_an_unknown_group_is_refused(self, aws: LocalAws) -> None:
        with pytest.raises(ClientError) as refused:
            aws.client("autoscaling").set_desired_capacity(
                AutoScalingGroupName="nowhere", DesiredCapacity=1
            )
        assert refusal(refused)[0] == "ValidationError"
        assert "nowhere" in refusal(refused)[1]

    def test_a_group_needs_an_existing_launch_template(self, aws: LocalAws) -> None:
        with pytest.raises(ClientError) as refused:
            aws.client("autoscaling").create_auto_scaling_group(
                AutoScalingGroupName="gold",
                MinSize=0,
                MaxSize=1,
                AvailabilityZones=["us-east-1a"],
                LaunchTemplate={"LaunchTemplateName": "absent", "Version": "$Latest"},
            )
        code, message = refusal(refused)
        assert code == "ValidationError"
        assert "absent" in message

    def test_a_group_in_subnets_launches_in_their_zones(self, aws: LocalAws) -> None:
        (template,) = seed_account(aws.endpoint, [a_tier()])
        ec2 = aws.client("ec2")
        subnets = ec2.describe_subnets(
            Filters=[{"Name": "availability-zone", "Values": ["us-east-1c"]}]
        )["Subnets"]
        aws.client("autoscaling").create_auto_scaling_group(
            AutoScalingGroupName=f"{template}-in-subnets",
            MinSize=1,
            MaxSize=1,
            VPCZoneIdentifier=subnets[0]["SubnetId"],
            LaunchTemplate={"LaunchTemplateName": template, "Version": "1"},
        )
        group = aws.group(f"{template}-in-subnets")
        assert [m["AvailabilityZone"] for m in group["Instances"]] == ["us-east-1c"]
        assert group["VPCZoneIdentifier"] == subnets[0]["SubnetId"]
        assert group["LaunchTemplate"]["LaunchTemplateName"] == template

    def test_groups_are_found_by_tag_and_in_pages(self, aws: LocalAws) -> None:
        tiers = [a_tier() for _ in range(3)]
        names = seed_account(aws.endpoint, tiers)
        autoscaling = aws.client("autoscaling")
        found = autoscaling.describe_auto_scaling_groups(
            Filters=[{"Name": "tag:gamekeeper:tier", "Values": [tiers[1].tier]}]
        )
        assert [g["AutoScalingGroupName"] for g in found["AutoScalingGroups"]] == [names[1]]
        pages = list(
            autoscaling.get_paginator("describe_auto_scaling_groups").paginate(
                PaginationConfig={"PageSize": 2}
            )
        )
        assert [len(page["AutoScalingGroups"]) for page in pages] == [2, 1]

    def test_tags_given_later_reach_instances_launched_later(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=1)])
        autoscaling = aws.client("autoscaling")
        autoscaling.create_or_update_tags(
            Tags=[
                {
                    "ResourceId": name,
                    "ResourceType": "auto-scaling-group",
                    "Key": "owner",
                    "Value": "ops & <dev>",
                    "PropagateAtLaunch": True,
                }
            ]
        )
        autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)
        owners = [
            {tag["Key"]: tag["Value"] for tag in instance["Tags"]}.get("owner")
            for instance in aws.instances()
        ]
        assert owners == [None, "ops & <dev>"]
        described = autoscaling.describe_tags(
            Filters=[{"Name": "auto-scaling-group", "Values": [name]}]
        )
        assert {tag["Key"] for tag in described["Tags"]} == {"gamekeeper:tier", "owner"}

    def test_what_is_not_modelled_says_so(self, aws: LocalAws) -> None:
        with pytest.raises(ClientError) as refused:
            aws.client("autoscaling").put_scaling_policy(
                AutoScalingGroupName="gold", PolicyName="p"
            )
        assert "not modelled by the local AWS simulation" in refusal(refused)[1]


class TestInstancesInTime:
    def test_an_instance_runs_only_after_its_launch_latency(self, aws: LocalAws) -> None:
        seed_account(aws.endpoint, [a_tier(desired=1)])
        (instance,) = aws.instances()
        assert instance["State"] == {"Code": 0, "Name": "pending"}
        assert aws.hosts.calls == []
        aws.pass_time(1)
        assert [i["State"]["Name"] for i in aws.instances()] == ["pending"]
        aws.pass_time(300)
        assert [i["State"]["Name"] for i in aws.instances()] == ["running"]
        assert aws.hosts.calls == [("running", instance["InstanceId"])]

    def test_a_launch_waits_for_stock(self) -> None:
        dry = {("g5.xlarge", zone): PoolStock(on_demand_limit=1) for zone in ZONES}
        with local_aws(CloudSettings(zones=ZONES, stock=dry)) as aws:
            (name,) = seed_account(aws.endpoint, [a_tier(desired=5)])
            assert sorted(i["Placement"]["AvailabilityZone"] for i in aws.instances()) == [*ZONES]
            activities = aws.client("autoscaling").describe_scaling_activities(
                AutoScalingGroupName=name
            )["Activities"]
            failed = [a for a in activities if a["StatusCode"] == "Failed"]
            assert "InsufficientInstanceCapacity" in failed[0]["StatusMessage"]

            aws.local(
                "POST",
                "stock",
                {"instance_type": "g5.xlarge", "zone": "us-east-1b", "on_demand_limit": 3},
            )
            aws.pass_time(600)
            assert len(aws.instances("running")) == 5

    def test_termination_by_id_with_decrement_shrinks_the_group(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=3)])
        aws.pass_time(600)
        victim = aws.group(name)["Instances"][1]["InstanceId"]
        activity = aws.client("autoscaling").terminate_instance_in_auto_scaling_group(
            InstanceId=victim, ShouldDecrementDesiredCapacity=True
        )["Activity"]
        assert activity["StatusCode"] == "InProgress"
        assert "shrinking the capacity from 3 to 2" in activity["Cause"]
        assert aws.hosts.calls[-1] == ("terminated", victim)
        aws.pass_time(600)
        group = aws.group(name)
        assert group["DesiredCapacity"] == 2
        assert victim not in [m["InstanceId"] for m in group["Instances"]]
        assert len(group["Instances"]) == 2

    def test_termination_without_decrement_is_replaced(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=1)])
        aws.pass_time(600)
        victim = aws.group(name)["Instances"][0]["InstanceId"]
        aws.client("autoscaling").terminate_instance_in_auto_scaling_group(
            InstanceId=victim, ShouldDecrementDesiredCapacity=False
        )
        aws.pass_time(600)
        (member,) = aws.group(name)["Instances"]
        assert member["InstanceId"] != victim
        assert member["LifecycleState"] == "InService"

    def test_a_protected_instance_is_spared_by_scale_in(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=2)])
        aws.pass_time(600)
        autoscaling = aws.client("autoscaling")
        kept = aws.group(name)["Instances"][0]["InstanceId"]
        autoscaling.set_instance_protection(
            AutoScalingGroupName=name, InstanceIds=[kept], ProtectedFromScaleIn=True
        )
        autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
        aws.pass_time(600)
        (member,) = autoscaling.describe_auto_scaling_instances()["AutoScalingInstances"]
        assert (member["InstanceId"], member["ProtectedFromScaleIn"]) == (kept, True)

    def test_ec2_termination_of_a_member_is_replaced_by_its_group(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=1)])
        aws.pass_time(600)
        (victim,) = aws.instances("running")
        changed = aws.client("ec2").terminate_instances(InstanceIds=[victim["InstanceId"]])
        (change,) = changed["TerminatingInstances"]
        assert change["PreviousState"]["Name"] == "running"
        assert change["CurrentState"]["Name"] == "shutting-down"
        aws.pass_time(600)
        (member,) = aws.group(name)["Instances"]
        assert member["InstanceId"] != victim["InstanceId"]

    def test_instances_outside_groups_can_be_run(self, aws: LocalAws) -> None:
        ec2 = aws.client("ec2")
        launched = ec2.run_instances(
            InstanceType="g6.xlarge",
            MinCount=1,
            MaxCount=2,
            Placement={"AvailabilityZone": "us-east-1b"},
            InstanceMarketOptions={"MarketType": "spot"},
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": "purpose", "Value": "trial"}]}
            ],
        )["Instances"]
        assert [i["InstanceLifecycle"] for i in launched] == ["spot", "spot"]
        ec2.create_tags(
            Resources=[launched[0]["InstanceId"]], Tags=[{"Key": "purpose", "Value": "kept"}]
        )
        found = ec2.describe_instances(Filters=[{"Name": "tag:purpose", "Values": ["tr*"]}])
        assert [i["InstanceId"] for r in found["Reservations"] for i in r["Instances"]] == [
            launched[1]["InstanceId"]
        ]
        statuses = ec2.describe_instance_status(IncludeAllInstances=True)["InstanceStatuses"]
        assert [s["InstanceState"]["Name"] for s in statuses] == ["pending", "pending"]

    def test_an_unknown_instance_is_refused_with_ec2s_code(self, aws: LocalAws) -> None:
        with pytest.raises(ClientError) as refused:
            aws.client("ec2").describe_instances(InstanceIds=["i-0123456789abcdef0"])
        assert refusal(refused) == (
            "InvalidInstanceID.NotFound",
            "The instance ID 'i-0123456789abcdef0' does not exist",
        )

    def test_the_same_seed_gives_the_same_region(self) -> None:
        tier = spot_tier(4)
        histories = []
        for _ in range(2):
            with local_aws(seed=11) as aws:
                seed_account(aws.endpoint, [tier])
                aws.pass_time(600)
                histories.append(aws.local("GET", "events")["events"])
        assert histories[0] == histories[1]
        assert len(histories[0]) == 8


class TestSpot:
    def test_an_interruption_gives_notice_then_takes_the_instance(self, aws: LocalAws) -> None:
        tier = spot_tier(1)
        (name,) = seed_account(aws.endpoint, [tier])
        aws.pass_time(600)
        interrupted = aws.local("POST", "interrupt", {"tier": tier.tier})["instance"]
        instance_id = interrupted["instance_id"]

        assert aws.hosts.notices == {instance_id: pytest.approx(aws.clock.now + 120 / COMPRESSION)}
        ec2 = aws.client("ec2")
        (request,) = ec2.describe_spot_instance_requests(
            Filters=[{"Name": "instance-id", "Values": [instance_id]}]
        )["SpotInstanceRequests"]
        assert request["Status"]["Code"] == "marked-for-termination"
        aws.pass_time(119)
        assert [i["State"]["Name"] for i in aws.instances()] == ["running"]

        aws.pass_time(2)
        (gone,) = [i for i in aws.instances() if i["InstanceId"] == instance_id]
        assert gone["State"]["Name"] == "shutting-down"
        assert gone["StateReason"]["Code"] == "Server.SpotInstanceTermination"
        assert gone["InstanceLifecycle"] == "spot"
        assert aws.hosts.calls[1:] == [("notice", instance_id), ("terminated", instance_id)]
        aws.pass_time(600)
        (member,) = aws.group(name)["Instances"]
        assert member["InstanceId"] != instance_id

    def test_an_emptied_zone_interrupts_all_its_spot_instances(self, aws: LocalAws) -> None:
        seed_account(aws.endpoint, [spot_tier(6)])
        aws.pass_time(600)
        stock = {"instance_type": "g5.xlarge", "zone": "us-east-1a", "spot_in_stock": False}
        assert aws.local("POST", "stock", stock) == {"on-demand": True, "spot": False}
        aws.pass_time(60)
        in_zone = {
            i["InstanceId"]
            for i in aws.instances("running")
            if i["Placement"]["AvailabilityZone"] == "us-east-1a"
        }
        assert len(in_zone) == 2
        assert set(aws.hosts.notices) == in_zone

    def test_an_on_demand_instance_cannot_be_interrupted(self, aws: LocalAws) -> None:
        tier = a_tier(desired=1)
        seed_account(aws.endpoint, [tier])
        aws.pass_time(600)
        with pytest.raises(urllib.error.HTTPError) as refused:
            aws.local("POST", "interrupt", {"tier": tier.tier})
        with refused.value as answer:
            assert answer.code == 409
            assert tier.tier in json.load(answer)["error"]

    def test_a_mixed_group_buys_its_share_on_demand(self, aws: LocalAws) -> None:
        seed_account(
            aws.endpoint,
            [a_tier(desired=5, on_demand_base_capacity=1, on_demand_percentage_above_base=50)],
        )
        spot = [i for i in aws.instances() if i.get("InstanceLifecycle") == "spot"]
        assert len(spot) == 2


class TestLocalControl:
    def test_a_killed_host_is_gone_at_once_and_replaced(self, aws: LocalAws) -> None:
        tier = a_tier(desired=1)
        (name,) = seed_account(aws.endpoint, [tier])
        aws.pass_time(600)
        killed = aws.local("POST", "kill-host", {"tier": tier.tier})["instance"]
        assert killed["state"] == "shutting-down"
        assert aws.hosts.calls[-1] == ("terminated", killed["instance_id"])
        aws.pass_time(600)
        (member,) = aws.group(name)["Instances"]
        assert member["InstanceId"] != killed["instance_id"]

    def test_events_are_numbered_and_read_from_a_position(self, aws: LocalAws) -> None:
        tier = a_tier(desired=1)
        seed_account(aws.endpoint, [tier])
        aws.pass_time(600)
        page = aws.local("GET", "events?after=0")
        kinds = [event["kind"] for event in page["events"]]
        assert kinds == ["instance-pending", "instance-running"]
        assert page["events"][1]["instance"]["tier"] == tier.tier
        assert page["complete"]
        assert aws.local("GET", f"events?after={page['next']}")["events"] == []
        assert [e["sequence"] for e in aws.local("GET", "events?after=1")["events"]] == [2]
        assert not aws.local("GET", "events?after=99")["complete"]

    def test_a_list_of_instances_names_the_position_to_follow_it_from(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier(desired=1)])
        listed = aws.local("GET", "instances?state=pending")
        assert len(listed["instances"]) == 1
        aws.client("autoscaling").set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)
        following = aws.local("GET", f"events?after={listed['next']}")["events"]
        assert [event["kind"] for event in following] == ["instance-pending"]

    def test_costs_are_production_costs_and_survive_the_instance(self, aws: LocalAws) -> None:
        tier = a_tier(desired=1)
        (name,) = seed_account(aws.endpoint, [tier])
        aws.pass_time(600)
        before = aws.local("GET", "costs")["tiers"][tier.tier]
        assert before["usd_per_hour"] == 1.006
        aws.pass_time(3600)
        after = aws.local("GET", "costs")["tiers"][tier.tier]
        assert after["total_usd"] - before["total_usd"] == pytest.approx(1.006, abs=1e-3)

        aws.client("autoscaling").set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=0)
        aws.pass_time(3 * 3600)
        costs = aws.local("GET", "costs")
        assert costs["instances"] == []
        assert costs["usd_per_hour"] == 0
        assert costs["total_usd"] == pytest.approx(after["total_usd"], abs=1e-3)

    def test_throttling_is_retried_by_the_client_and_then_told(self, aws: LocalAws) -> None:
        (name,) = seed_account(aws.endpoint, [a_tier()])
        autoscaling = aws.client("autoscaling")
        fault = {"operation": "SetDesiredCapacity", "error_code": "Throttling"}
        aws.local("POST", "faults", {**fault, "count": 1})
        answer = autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
        assert answer["ResponseMetadata"]["RetryAttempts"] == 1

        aws.local("POST", "faults", {**fault, "count": 50})
        with pytest.raises(ClientError) as refused:
            autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)
        assert refusal(refused) == ("Throttling", "Rate exceeded")
        assert aws.group(name)["DesiredCapacity"] == 1
        assert aws.local("DELETE", "faults", {})["faults"] == []
        autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)

    def test_faults_reach_services_that_moto_answers(self, aws: LocalAws) -> None:
        aws.local(
            "POST",
            "faults",
            {"operation": "sqs:CreateQueue", "error_code": "AccessDenied", "status": 403},
        )
        sqs = aws.client("sqs")
        with pytest.raises(ClientError) as refused:
            sqs.create_queue(QueueName=f"q-{uuid.uuid4().hex}")
        assert refusal(refused)[0] == "AccessDenied"

    def test_it_says_what_it_is_once_it_is_ready(self, aws: LocalAws) -> None:
        told = aws.local("GET", "")
        assert (told["simulation"], told["seed"], told["time_compression"]) == (True, 7, 20.0)
        aws.server.front.control.ready.clear()
        with pytest.raises(urllib.error.HTTPError) as refused:
            aws.local("GET", "")
        with refused.value as answer:
            assert answer.code == 503

    @pytest.mark.parametrize(
        ("method", "path", "document", "status"),
        [
            ("GET", "nowhere", None, 404),
            ("POST", "faults", {"operation": "X"}, 400),
            ("POST", "faults", [], 400),
            ("POST", "interrupt", {}, 400),
            ("POST", "interrupt", {"instance_id": "i-0"}, 404),
            ("POST", "stock", {"instance_type": "z9.huge", "zone": "us-east-1a"}, 400),
            ("GET", "instances?state=asleep", None, 400),
        ],
    )
    def test_mistakes_are_told(
        self, aws: LocalAws, method: str, path: str, document: object, status: int
    ) -> None:
        with pytest.raises(urllib.error.HTTPError) as refused:
            aws.local(method, path, document)
        with refused.value as answer:
            assert answer.code == status
            assert json.load(answer)["error"]


class TestContainerInstances:
    def test_the_cluster_counts_its_hosts_once_it_exists(self, aws: LocalAws) -> None:
        ecs = aws.client("ecs")
        assert ecs.describe_clusters(clusters=["gamekeeper"])["clusters"] == []
        with pytest.raises(ClientError) as refused:
            ecs.list_container_instances(cluster="gamekeeper")
        assert refusal(refused)[0] == "ClusterNotFoundException"
        seed_account(aws.endpoint, [a_tier(desired=2)])
        aws.pass_time(600)
        (cluster,) = ecs.describe_clusters(clusters=["gamekeeper"])["clusters"]
        assert (cluster["status"], cluster["registeredContainerInstancesCount"]) == ("ACTIVE", 2)

    def test_hosts_that_run_are_container_instances(self, aws: LocalAws) -> None:
        tier = a_tier(desired=2)
        seed_account(aws.endpoint, [tier])
        ecs = aws.client("ecs")
        assert ecs.list_container_instances(cluster="gamekeeper")["containerInstanceArns"] == []
        aws.pass_time(600)
        arns = ecs.list_container_instances(cluster="gamekeeper")["containerInstanceArns"]
        described = ecs.describe_container_instances(
            cluster="gamekeeper", containerInstances=[*arns, "arn:aws:ecs:x:y:container-instance/z"]
        )
        running = {i["InstanceId"] for i in aws.instances("running")}
        assert {c["ec2InstanceId"] for c in described["containerInstances"]} == running
        assert [f["reason"] for f in described["failures"]] == ["MISSING"]

    def test_a_drained_one_is_listed_as_draining(self, aws: LocalAws) -> None:
        seed_account(aws.endpoint, [a_tier(desired=2)])
        aws.pass_time(600)
        ecs = aws.client("ecs")
        first, second = ecs.list_container_instances(cluster="gamekeeper")["containerInstanceArns"]
        ecs.update_container_instances_state(
            cluster="gamekeeper", containerInstances=[first], status="DRAINING"
        )
        draining = ecs.list_container_instances(cluster="gamekeeper", status="DRAINING")
        active = ecs.list_container_instances(cluster="gamekeeper", status="ACTIVE")
        assert draining["containerInstanceArns"] == [first]
        assert active["containerInstanceArns"] == [second]


class TestPassedToMoto:
    def test_metrics_queues_and_parameters(self, aws: LocalAws) -> None:
        unique = uuid.uuid4().hex
        cloudwatch = aws.client("cloudwatch")
        cloudwatch.put_metric_data(
            Namespace=f"Gamekeeper/{unique}", MetricData=[{"MetricName": "Queue", "Value": 3.0}]
        )
        metrics = cloudwatch.list_metrics(Namespace=f"Gamekeeper/{unique}")["Metrics"]
        assert [metric["MetricName"] for metric in metrics] == ["Queue"]

        sqs, sns = aws.client("sqs"), aws.client("sns")
        queue = sqs.create_queue(QueueName=f"q-{unique}")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
        topic = sns.create_topic(Name=f"t-{unique}")["TopicArn"]
        sns.subscribe(
            TopicArn=topic,
            Protocol="sqs",
            Endpoint=arn["QueueArn"],
            Attributes={"RawMessageDelivery": "true"},
        )
        sns.publish(TopicArn=topic, Message="dusk falls")
        (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
        assert message["Body"] == "dusk falls"

        ssm = aws.client("ssm")
        ssm.put_parameter(Name=f"/{unique}", Value="on", Type="String")
        assert ssm.get_parameter(Name=f"/{unique}")["Parameter"]["Value"] == "on"

    def test_networks_of_ec2(self, aws: LocalAws) -> None:
        zones = aws.client("ec2").describe_availability_zones()["AvailabilityZones"]
        assert set(ZONES) <= {zone["ZoneName"] for zone in zones}

    def test_services_of_the_cluster(self, aws: LocalAws) -> None:
        seed_account(aws.endpoint, [])
        ecs = aws.client("ecs")
        unique = uuid.uuid4().hex[:8]
        definition = ecs.register_task_definition(
            family=f"router-{unique}",
            containerDefinitions=[{"name": "router", "image": "router", "memory": 64}],
        )["taskDefinition"]["taskDefinitionArn"]
        ecs.create_service(
            cluster="gamekeeper",
            serviceName=f"router-{unique}",
            taskDefinition=definition,
            desiredCount=2,
        )
        described = ecs.describe_services(cluster="gamekeeper", services=[f"router-{unique}"])
        assert [service["desiredCount"] for service in described["services"]] == [2]


class TestLaunchTemplates:
    def test_a_group_follows_the_newest_version_of_its_template(self, aws: LocalAws) -> None:
        ec2, autoscaling = aws.client("ec2"), aws.client("autoscaling")
        ec2.create_launch_template(
            LaunchTemplateName="gold",
            LaunchTemplateData={
                "InstanceType": "g5.xlarge",
                "UserData": "IyEvYmluL3NoCg==",
                "IamInstanceProfile": {"Name": "gpu-host"},
                "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 100}}],
                "MetadataOptions": {"HttpTokens": "required"},
            },
        )
        for name, version in (("newest", "$Latest"), ("pinned", "1")):
            autoscaling.create_auto_scaling_group(
                AutoScalingGroupName=name,
                MinSize=1,
                MaxSize=5,
                AvailabilityZones=["us-east-1a"],
                LaunchTemplate={"LaunchTemplateName": "gold", "Version": version},
            )
        ec2.create_launch_template_version(
            LaunchTemplateName="gold",
            SourceVersion="1",
            LaunchTemplateData={"InstanceType": "g6.xlarge"},
        )
        for name in ("newest", "pinned"):
            autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=2)
        types = {
            name: [m["InstanceType"] for m in aws.group(name)["Instances"]]
            for name in ("newest", "pinned")
        }
        assert types == {
            "newest": ["g5.xlarge", "g6.xlarge"],
            "pinned": ["g5.xlarge", "g5.xlarge"],
        }
        versions = ec2.describe_launch_template_versions(LaunchTemplateName="gold")
        newest, first = versions["LaunchTemplateVersions"]
        assert (newest["VersionNumber"], first["VersionNumber"]) == (2, 1)
        assert first["DefaultVersion"]
        assert newest["LaunchTemplateData"] == {
            **first["LaunchTemplateData"],
            "InstanceType": "g6.xlarge",
        }

    def test_a_template_is_found_changed_and_deleted(self, aws: LocalAws) -> None:
        ec2 = aws.client("ec2")
        created = ec2.create_launch_template(
            LaunchTemplateName="silver", LaunchTemplateData={"InstanceType": "g5.2xlarge"}
        )["LaunchTemplate"]
        with pytest.raises(ClientError) as refused:
            ec2.create_launch_template(LaunchTemplateName="silver", LaunchTemplateData={})
        assert refusal(refused)[0] == "InvalidLaunchTemplateName.AlreadyExistsException"
        ec2.create_launch_template_version(
            LaunchTemplateId=created["LaunchTemplateId"],
            LaunchTemplateData={"InstanceType": "g6.xlarge"},
        )
        ec2.modify_launch_template(LaunchTemplateName="silver", DefaultVersion="2")
        (found,) = ec2.describe_launch_templates(LaunchTemplateNames=["silver"])["LaunchTemplates"]
        assert (found["DefaultVersionNumber"], found["LatestVersionNumber"]) == (2, 2)
        ec2.delete_launch_template(LaunchTemplateName="silver")
        with pytest.raises(ClientError) as refused:
            ec2.describe_launch_templates(LaunchTemplateNames=["silver"])
        assert refusal(refused)[0] == "InvalidLaunchTemplateName.NotFoundException"

    def test_a_dry_run_changes_nothing(self, aws: LocalAws) -> None:
        ec2 = aws.client("ec2")
        with pytest.raises(ClientError) as refused:
            ec2.run_instances(InstanceType="g5.xlarge", MinCount=1, MaxCount=1, DryRun=True)
        assert refusal(refused)[0] == "DryRunOperation"
        assert aws.instances() == []


async def test_aioboto3_sees_the_same(aws: LocalAws) -> None:
    (name,) = seed_account(aws.endpoint, [a_tier(desired=3)])
    aws.pass_time(600)
    session = aioboto3.Session(
        aws_access_key_id="local", aws_secret_access_key="local", region_name="us-east-1"
    )
    async with session.client("autoscaling", endpoint_url=aws.endpoint) as autoscaling:
        described = await autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
        (group,) = described["AutoScalingGroups"]
        assert len(group["Instances"]) == 3
        with pytest.raises(ClientError) as refused:
            await autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=99)
        assert refusal(refused)[0] == "ValidationError"
    async with session.client("ec2", endpoint_url=aws.endpoint) as ec2:
        pages = [
            page
            async for page in ec2.get_paginator("describe_instances").paginate(
                PaginationConfig={"PageSize": 2}
            )
        ]
    assert [len(page["Reservations"]) for page in pages] == [2, 1]


def test_many_clients_at_once_leave_one_consistent_group() -> None:
    region = Region(seed=3, time_compression=200.0)
    with LocalAwsServer(region) as server:
        (name,) = seed_account(server.endpoint, [a_tier(max_size=20)])

        def work(worker: int) -> None:
            autoscaling = boto_client("autoscaling", server.endpoint)
            ec2 = boto_client("ec2", server.endpoint)
            for size in range(worker, worker + 10):
                autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=size)
                group = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])
                ids = [m["InstanceId"] for m in group["AutoScalingGroups"][0]["Instances"]]
                described = ec2.describe_instances(
                    Filters=[{"Name": "instance-id", "Values": ids or ["i-none"]}]
                )
                assert {
                    i["InstanceId"] for r in described["Reservations"] for i in r["Instances"]
                } == set(ids)
            autoscaling.close()
            ec2.close()

        with ThreadPoolExecutor(max_workers=6) as pool:
            for outcome in [pool.submit(work, worker) for worker in range(6)]:
                outcome.result(timeout=90)
        with region.at_now():
            view = region.groups.group(name)
            counted = [m for m in view.instances if m.lifecycle_state.counts_towards_desired]
        assert len(counted) == view.desired_capacity
