"""EC2's tags on simulated instances; tags on every other resource are moto's."""

from collections.abc import Callable, Mapping
from typing import Any

from fleetsim.errors import InstanceNotFoundError
from localsuite.aws.errors import not_modelled
from localsuite.aws.region import Region

__all__ = ["Ec2TagsApi"]

Params = Mapping[str, Any]
Result = dict[str, Any]


class Ec2TagsApi:
    """One method per operation: parameters in, result out, both keyed as in the API reference."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.operations: Mapping[str, Callable[[Params], Result]] = {
            "CreateTags": self.create_tags,
            "DeleteTags": self.delete_tags,
        }

    def concerns(self, params: Params) -> bool:
        """True when the resources are simulated instances.

        Raises ApiError for a call that mixes them with resources that moto keeps.
        """
        resources = params.get("Resources") or ()
        with self._region.at_now():
            ours = [resource for resource in resources if self._is_ours(resource)]
        if ours and len(ours) != len(resources):
            raise not_modelled("InvalidParameterValue", "Tagging instances and others in one call")
        return bool(ours)

    def create_tags(self, params: Params) -> Result:
        """Adds or replaces tags."""
        added = {tag["Key"]: tag.get("Value") or "" for tag in params.get("Tags") or ()}
        with self._region.at_now() as now:
            cloud = self._region.cloud
            for instance_id in params["Resources"]:
                present = cloud.instance(instance_id).tags
                cloud.set_tags(now, instance_id, {**present, **added})
        return {}

    def delete_tags(self, params: Params) -> Result:
        """Removes tags: by key, by key and value, or all without any named."""
        tags = params.get("Tags")
        with self._region.at_now() as now:
            cloud = self._region.cloud
            for instance_id in params["Resources"]:
                present = cloud.instance(instance_id).tags
                kept = {k: v for k, v in present.items() if not _named(k, v, tags)}
                cloud.set_tags(now, instance_id, kept)
        return {}

    def _is_ours(self, resource: str) -> bool:
        try:
            self._region.cloud.instance(resource)
        except InstanceNotFoundError:
            return False
        return True


def _named(key: str, value: str, tags: Any) -> bool:
    if key.startswith("aws:"):
        return False
    if not tags:
        return True
    return any(tag["Key"] == key and tag.get("Value") in (None, value) for tag in tags)
