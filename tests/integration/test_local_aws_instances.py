"""Instances of the local AWS in time: launches, terminations, Spot interruptions, ECS hosts."""

import json
import urllib.error

import pytest
from botocore.exceptions import ClientError

from fleetsim.cloud_state import CloudSettings
from fleetsim.zone_stock import PoolStock
from localsuite.aws.account import seed_account
from localsuite.aws.testing import (
    COMPRESSION,
    ZONES,
    LocalAws,
    a_tier,
    local_aws,
    refusal,
    spot_tier,
)


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
        tier = a_tier(desired=2, protected_from_scale_in=False)
        (name,) = seed_account(aws.endpoint, [tier])
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
