"""Where a group's instances come from: launch templates and subnets, which moto keeps.

Launch templates and networks are created through moto's own EC2 API; this reads them from its
backend in the same process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moto.backends import get_backend
from moto.core.exceptions import ServiceException

from localsuite.aws.errors import ApiError

__all__ = ["LaunchSources", "ResolvedTemplate"]


@dataclass(frozen=True, slots=True)
class ResolvedTemplate:
    """One version of a launch template."""

    template_id: str
    name: str
    version: str
    instance_type: str
    image_id: str
    is_spot: bool
    instance_tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def specification(self) -> dict[str, str]:
        """As Auto Scaling's LaunchTemplateSpecification."""
        return {
            "LaunchTemplateId": self.template_id,
            "LaunchTemplateName": self.name,
            "Version": self.version,
        }


class LaunchSources:
    """Looks up launch templates, subnets and zones of one account and region."""

    def __init__(self, account_id: str, region_name: str) -> None:
        self._account_id = account_id
        self._region_name = region_name

    @property
    def _ec2(self) -> Any:
        return get_backend("ec2")[self._account_id][self._region_name]

    def template(self, specification: Mapping[str, str]) -> ResolvedTemplate:
        """The template version a LaunchTemplateSpecification names.

        Raises ApiError with Auto Scaling's ValidationError when there is none.
        """
        name = specification.get("LaunchTemplateName")
        template_id = specification.get("LaunchTemplateId")
        if bool(name) == bool(template_id):
            raise ApiError(
                "ValidationError",
                "Valid requests must contain either launchTemplateId or LaunchTemplateName",
            )
        try:
            template = (
                self._ec2.get_launch_template_by_name(name)
                if name
                else self._ec2.get_launch_template(template_id)
            )
            version = template.get_version(specification.get("Version") or "$Default")
        except (ServiceException, ValueError, KeyError) as error:
            which = f"name {name}" if name else f"id {template_id}"
            raise ApiError(
                "ValidationError",
                "You must use a valid fully-formed launch template. The specified launch "
                f"template, with template {which}, or its version, does not exist.",
            ) from error
        market = version.data.get("InstanceMarketOptions") or {}
        return ResolvedTemplate(
            template_id=template.id,
            name=template.name,
            version=specification.get("Version") or "$Default",
            instance_type=version.instance_type,
            image_id=version.image_id,
            is_spot=market.get("MarketType") == "spot",
            instance_tags=dict(version.instance_tags),
        )

    def zone_of_subnet(self, subnet_id: str) -> str:
        """The Availability Zone a subnet lies in.

        Raises ApiError when there is no such subnet.
        """
        try:
            return str(self._ec2.get_subnet(subnet_id).availability_zone)
        except ServiceException as error:
            raise ApiError(
                "ValidationError", f"The subnet ID '{subnet_id}' does not exist"
            ) from error

    def default_subnet(self, zone: str) -> tuple[str, str]:
        """The default subnet of a zone and its VPC; empty where there is none."""
        subnet = self._ec2.get_default_subnets().get(zone)
        return (subnet.id, subnet.vpc_id) if subnet is not None else ("", "")
