"""Auto Scaling groups between the API's documents and fleetsim's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fleetsim.scaling_group_state import (
    GroupInstance,
    GroupSettings,
    GroupView,
    ScalingActivity,
    TerminationPolicy,
)
from localsuite.aws.errors import ApiError, not_modelled
from localsuite.aws.launch_templates import LaunchTemplatesApi, ResolvedTemplate
from localsuite.aws.moments import moment
from localsuite.aws.subnets import Subnets

__all__ = [
    "GroupRecord",
    "activity_document",
    "group_document",
    "instance_document",
    "settings_changes",
    "settings_of_request",
]

_NOT_MODELLED = ("LaunchConfigurationName", "InstanceId", "WarmPoolConfiguration")


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """What a group says about itself beyond what fleetsim acts on."""

    template: ResolvedTemplate
    mixed_instances_policy: Mapping[str, Any] | None
    tags: tuple[Mapping[str, Any], ...] = ()
    zone_by_subnet: Mapping[str, str] = field(default_factory=dict)
    health_check_type: str = "EC2"
    health_check_grace_period: int = 0
    hooks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_request(
        cls, params: Mapping[str, Any], templates: LaunchTemplatesApi, subnets: Subnets
    ) -> "GroupRecord":
        """The record of a CreateAutoScalingGroup request. Raises ApiError (ValidationError)."""
        template, policy = _launch_source(params, templates)
        return cls(
            template=template,
            mixed_instances_policy=policy,
            tags=tuple(_tag(params["AutoScalingGroupName"], t) for t in params.get("Tags") or ()),
            zone_by_subnet=_zone_by_subnet(params, subnets),
            health_check_type=params.get("HealthCheckType") or "EC2",
            health_check_grace_period=params.get("HealthCheckGracePeriod") or 0,
        )

    def updated(
        self, params: Mapping[str, Any], templates: LaunchTemplatesApi, subnets: Subnets
    ) -> "GroupRecord":
        """The record after an UpdateAutoScalingGroup request."""
        record = self
        if params.get("LaunchTemplate") or params.get("MixedInstancesPolicy"):
            template, policy = _launch_source(params, templates)
            record = replace(record, template=template, mixed_instances_policy=policy)
        if params.get("VPCZoneIdentifier") is not None:
            record = replace(record, zone_by_subnet=_zone_by_subnet(params, subnets))
        if params.get("HealthCheckType"):
            record = replace(record, health_check_type=params["HealthCheckType"])
        if params.get("HealthCheckGracePeriod") is not None:
            record = replace(record, health_check_grace_period=params["HealthCheckGracePeriod"])
        return record

    def with_tags(self, name: str, tags: Sequence[Mapping[str, Any]]) -> "GroupRecord":
        """The record with tags added or replaced by key."""
        merged = {tag["Key"]: tag for tag in self.tags}
        merged |= {tag["Key"]: _tag(name, tag) for tag in tags}
        return replace(self, tags=tuple(merged.values()))

    def without_tags(self, keys: set[str]) -> "GroupRecord":
        """The record without the tags of these keys."""
        return replace(self, tags=tuple(tag for tag in self.tags if tag["Key"] not in keys))

    def subnet_in(self, zone: str) -> str | None:
        """The group's subnet in a zone; None for a group that names zones only."""
        return next((s for s, z in self.zone_by_subnet.items() if z == zone), None)

    @property
    def instance_tags(self) -> dict[str, str]:
        """What a launched instance is tagged with: the template's tags, then propagated ones."""
        propagated = {t["Key"]: t["Value"] for t in self.tags if t["PropagateAtLaunch"]}
        return {**self.template.instance_tags, **propagated}

    def launch_settings(self) -> dict[str, Any]:
        """The fields of fleetsim's GroupSettings that say what is launched."""
        policy = self.mixed_instances_policy or {}
        overrides = policy.get("LaunchTemplate", {}).get("Overrides") or ()
        if any("WeightedCapacity" in o or "InstanceRequirements" in o for o in overrides):
            raise not_modelled("ValidationError", "An override other than by InstanceType")
        types = tuple(o["InstanceType"] for o in overrides if o.get("InstanceType"))
        distribution = policy.get("InstancesDistribution") or {}
        percentage = distribution.get("OnDemandPercentageAboveBaseCapacity")
        if percentage is None:
            percentage = 0 if self.template.is_spot else 100
        return {
            "instance_types": types or (self.template.instance_type,),
            "on_demand_base_capacity": distribution.get("OnDemandBaseCapacity") or 0,
            "on_demand_percentage_above_base": percentage,
            "tags": self.instance_tags,
        }


def settings_of_request(params: Mapping[str, Any], record: GroupRecord) -> GroupSettings:
    """The settings a CreateAutoScalingGroup request asks for. Raises ApiError."""
    zones = _zones(params, record)
    if not zones:
        raise ApiError(
            "ValidationError", "At least one Availability Zone or VPC Subnet is required."
        )
    return GroupSettings(
        name=params["AutoScalingGroupName"],
        zones=zones,
        min_size=params["MinSize"],
        max_size=params["MaxSize"],
        **record.launch_settings(),
        **_plain_settings(params),
    )


def settings_changes(params: Mapping[str, Any], record: GroupRecord) -> dict[str, Any]:
    """The fields of GroupSettings an UpdateAutoScalingGroup request changes."""
    changes: dict[str, Any] = {**record.launch_settings(), **_plain_settings(params)}
    if zones := _zones(params, record):
        changes["zones"] = zones
    for parameter, field_name in (("MinSize", "min_size"), ("MaxSize", "max_size")):
        if params.get(parameter) is not None:
            changes[field_name] = params[parameter]
    return changes


def group_document(
    view: GroupView, record: GroupRecord, *, region_name: str, account_id: str
) -> dict[str, Any]:
    """A group as DescribeAutoScalingGroups shows it."""
    settings = view.settings
    arn = f"arn:aws:autoscaling:{region_name}:{account_id}:autoScalingGroup"
    document: dict[str, Any] = {
        "AutoScalingGroupName": settings.name,
        "AutoScalingGroupARN": f"{arn}:{settings.name}:autoScalingGroupName/{settings.name}",
        "MinSize": settings.min_size,
        "MaxSize": settings.max_size,
        "DesiredCapacity": view.desired_capacity,
        "DefaultCooldown": int(settings.default_cooldown_seconds),
        "AvailabilityZones": list(settings.zones),
        "LoadBalancerNames": [],
        "TargetGroupARNs": [],
        "HealthCheckType": record.health_check_type,
        "HealthCheckGracePeriod": record.health_check_grace_period,
        "Instances": [instance_document(member, record) for member in view.instances],
        "CreatedTime": moment(view.created_time),
        "SuspendedProcesses": [
            {"ProcessName": name, "SuspensionReason": "User suspended"}
            for name in sorted(view.suspended_processes)
        ],
        "VPCZoneIdentifier": ",".join(record.zone_by_subnet),
        "EnabledMetrics": [],
        "Tags": list(record.tags),
        "TerminationPolicies": [settings.termination_policy.value],
        "NewInstancesProtectedFromScaleIn": settings.new_instances_protected_from_scale_in,
        "ServiceLinkedRoleARN": (
            f"arn:aws:iam::{account_id}:role/aws-service-role/autoscaling.amazonaws.com/"
            "AWSServiceRoleForAutoScaling"
        ),
        "CapacityRebalance": settings.capacity_rebalance,
    }
    if record.mixed_instances_policy is None:
        document["LaunchTemplate"] = record.template.specification
    else:
        document["MixedInstancesPolicy"] = record.mixed_instances_policy
    if view.is_deleting:
        document["Status"] = "Delete in progress"
    return document


def instance_document(member: GroupInstance, record: GroupRecord) -> dict[str, Any]:
    """A member as it stands in a group's `Instances`."""
    return {
        "InstanceId": member.instance_id,
        "InstanceType": member.instance_type,
        "AvailabilityZone": member.zone,
        "LifecycleState": member.lifecycle_state.value,
        "HealthStatus": "Healthy" if member.is_healthy else "Unhealthy",
        "LaunchTemplate": record.template.specification,
        "ProtectedFromScaleIn": member.protected_from_scale_in,
    }


def activity_document(activity: ScalingActivity) -> dict[str, Any]:
    """A scaling activity as DescribeScalingActivities shows it."""
    document: dict[str, Any] = {
        "ActivityId": activity.activity_id,
        "AutoScalingGroupName": activity.group_name,
        "Description": activity.description,
        "Cause": activity.cause,
        "StartTime": moment(activity.start_time),
        "StatusCode": activity.status.value,
        "Progress": activity.progress,
        "Details": "{}",
    }
    if activity.end_time is not None:
        document["EndTime"] = moment(activity.end_time)
    if activity.status_message:
        document["StatusMessage"] = activity.status_message
    return document


def _launch_source(
    params: Mapping[str, Any], templates: LaunchTemplatesApi
) -> tuple[ResolvedTemplate, Mapping[str, Any] | None]:
    for name in _NOT_MODELLED:
        if params.get(name):
            raise not_modelled("ValidationError", name)
    policy = params.get("MixedInstancesPolicy")
    specification = params.get("LaunchTemplate")
    if bool(policy) == bool(specification):
        raise ApiError(
            "ValidationError",
            "Valid requests must contain either LaunchTemplate, LaunchConfigurationName, "
            "InstanceId or MixedInstancesPolicy parameter.",
        )
    if specification:
        return templates.resolve(specification), None
    inner = (policy or {}).get("LaunchTemplate", {}).get("LaunchTemplateSpecification")
    if not inner:
        raise ApiError(
            "ValidationError", "MixedInstancesPolicy must contain a LaunchTemplateSpecification."
        )
    return templates.resolve(inner), policy


def _plain_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for parameter, field_name in (
        ("DefaultCooldown", "default_cooldown_seconds"),
        ("NewInstancesProtectedFromScaleIn", "new_instances_protected_from_scale_in"),
        ("CapacityRebalance", "capacity_rebalance"),
    ):
        if params.get(parameter) is not None:
            settings[field_name] = params[parameter]
    policies = params.get("TerminationPolicies") or ()
    if policies:
        try:
            settings["termination_policy"] = TerminationPolicy(policies[0])
        except ValueError:
            raise not_modelled("ValidationError", f"Termination policy {policies[0]}") from None
    return settings


def _zone_by_subnet(params: Mapping[str, Any], subnets: Subnets) -> dict[str, str]:
    identifier = params.get("VPCZoneIdentifier") or ""
    names = [subnet.strip() for subnet in identifier.split(",") if subnet.strip()]
    return {name: subnets.zone_of(name) for name in names}


def _zones(params: Mapping[str, Any], record: GroupRecord) -> tuple[str, ...]:
    zones = list(params.get("AvailabilityZones") or ())
    if zones or params.get("VPCZoneIdentifier"):
        zones += record.zone_by_subnet.values()
    return tuple(dict.fromkeys(zones))


def _tag(group_name: str, tag: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "ResourceId": tag.get("ResourceId") or group_name,
        "ResourceType": "auto-scaling-group",
        "Key": tag["Key"],
        "Value": tag.get("Value") or "",
        "PropagateAtLaunch": bool(tag.get("PropagateAtLaunch")),
    }
