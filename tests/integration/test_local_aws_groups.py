"""Scaling groups and launch templates of the local AWS, as boto3 sees them over HTTP."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from localsuite.aws.account import boto_client, seed_account
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.testing import ZONES, LocalAws, a_tier, refusal
from localsuite.aws.tiers import group_name


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


def test_many_clients_at_once_leave_one_consistent_group() -> None:
    region = Region(seed=3, time_compression=200.0)
    with LocalAwsServer(region) as server:
        tier = a_tier(max_size=20, protected_from_scale_in=False)
        (name,) = seed_account(server.endpoint, [tier])

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
