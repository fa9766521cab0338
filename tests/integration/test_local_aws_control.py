"""The local AWS around its instances: control of incidents, moto's services, other clients."""

import json
import urllib.error
import uuid

import aioboto3
import pytest
from botocore.exceptions import ClientError

from localsuite.aws.account import seed_account
from localsuite.aws.testing import ZONES, LocalAws, a_tier, refusal


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
        tier = a_tier(desired=1, protected_from_scale_in=False)
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
