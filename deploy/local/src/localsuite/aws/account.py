"""What an account of the suite holds: a cluster and one Auto Scaling group per tier.

Made through the real AWS API, so the same code would make them in AWS.
"""

from collections.abc import Sequence
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from localsuite.aws.tiers import (
    DEFAULT_CLUSTER,
    DEFAULT_TIERS,
    TIER_TAG,
    TierCapacity,
    group_name,
)

__all__ = ["boto_client", "seed_account"]


def boto_client(service: str, endpoint: str, *, region_name: str = "us-east-1") -> Any:
    """A boto3 client of the local AWS; the credentials are fixed words that it does not check."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=region_name,
        aws_access_key_id="local",
        aws_secret_access_key="local",  # noqa: S106 - the local AWS checks no signature
        config=Config(connect_timeout=5, read_timeout=30, retries={"max_attempts": 3}),
    )


def seed_account(
    endpoint: str,
    tiers: Sequence[TierCapacity] = DEFAULT_TIERS,
    *,
    region_name: str = "us-east-1",
    zones: Sequence[str] | None = None,
    cluster: str = DEFAULT_CLUSTER,
) -> tuple[str, ...]:
    """Makes the cluster and every tier's launch template and group exist; returns their names.

    A group that exists keeps its size and gets the wanted bounds. Zones default to a, b
    and c of the region.
    """
    ec2 = boto_client("ec2", endpoint, region_name=region_name)
    autoscaling = boto_client("autoscaling", endpoint, region_name=region_name)
    boto_client("ecs", endpoint, region_name=region_name).create_cluster(clusterName=cluster)
    if zones is None:
        zones = tuple(f"{region_name}{letter}" for letter in "abc")
    names = []
    for tier in tiers:
        name = group_name(tier.tier)
        try:
            ec2.create_launch_template(
                LaunchTemplateName=name,
                LaunchTemplateData={
                    "InstanceType": tier.instance_types[0],
                    "TagSpecifications": [
                        {
                            "ResourceType": "instance",
                            "Tags": [{"Key": "Name", "Value": name}],
                        }
                    ],
                },
            )
        except ClientError as error:
            if (
                error.response["Error"]["Code"]
                != "InvalidLaunchTemplateName.AlreadyExistsException"
            ):
                raise
        _ensure_group(autoscaling, name, tier, zones)
        names.append(name)
    return tuple(names)


def _ensure_group(autoscaling: Any, name: str, tier: TierCapacity, zones: Sequence[str]) -> None:
    settings = {
        "AutoScalingGroupName": name,
        "MinSize": tier.min_size,
        "MaxSize": tier.max_size,
        "AvailabilityZones": list(zones),
        "NewInstancesProtectedFromScaleIn": tier.protected_from_scale_in,
        "MixedInstancesPolicy": {
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {
                    "LaunchTemplateName": name,
                    "Version": "$Latest",
                },
                "Overrides": [{"InstanceType": each} for each in tier.instance_types],
            },
            "InstancesDistribution": {
                "OnDemandAllocationStrategy": "prioritized",
                "OnDemandBaseCapacity": tier.on_demand_base_capacity,
                "OnDemandPercentageAboveBaseCapacity": tier.on_demand_percentage_above_base,
                "SpotAllocationStrategy": "capacity-optimized-prioritized",
            },
        },
    }
    try:
        autoscaling.create_auto_scaling_group(
            **settings,
            DesiredCapacity=tier.desired_capacity,
            Tags=[{"Key": TIER_TAG, "Value": tier.tier, "PropagateAtLaunch": True}],
        )
    except ClientError as error:
        if error.response["Error"]["Code"] != "AlreadyExists":
            raise
        autoscaling.update_auto_scaling_group(**settings)
