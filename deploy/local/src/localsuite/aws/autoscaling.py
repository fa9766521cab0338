"""EC2 Auto Scaling's API, answered from the simulated region."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from fleetsim.cloud_state import Instance
from fleetsim.scaling_group import GROUP_TAG
from fleetsim.scaling_group_state import GroupView, HookKind, LifecycleHook
from localsuite.aws.autoscaling_groups import (
    GroupRecord,
    activity_document,
    group_document,
    instance_document,
    settings_changes,
    settings_of_request,
)
from localsuite.aws.errors import ApiError, not_modelled
from localsuite.aws.launch_templates import LaunchTemplatesApi
from localsuite.aws.paging import matches_filters, page_of
from localsuite.aws.region import Region
from localsuite.aws.subnets import Subnets

__all__ = ["AutoScalingApi"]

Params = Mapping[str, Any]
Result = dict[str, Any]

_SUSPENDABLE = ("Launch", "Terminate", "ReplaceUnhealthy")


class AutoScalingApi:
    """One method per operation: parameters in, result out, both keyed as in the API reference.

    Refusals are ApiError or fleetsim's CloudError, with AWS's codes.
    """

    def __init__(self, region: Region, templates: LaunchTemplatesApi) -> None:
        self._region = region
        self._templates = templates
        self._subnets = Subnets(region.account_id, region.name)
        self._records: dict[str, GroupRecord] = {}
        self.operations: Mapping[str, Callable[[Params], Result]] = {
            "CreateAutoScalingGroup": self.create_group,
            "UpdateAutoScalingGroup": self.update_group,
            "DeleteAutoScalingGroup": self.delete_group,
            "DescribeAutoScalingGroups": self.describe_groups,
            "SetDesiredCapacity": self.set_desired_capacity,
            "TerminateInstanceInAutoScalingGroup": self.terminate_instance,
            "DescribeScalingActivities": self.describe_activities,
            "DescribeAutoScalingInstances": self.describe_instances,
            "SetInstanceProtection": self.set_instance_protection,
            "SetInstanceHealth": self.set_instance_health,
            "SuspendProcesses": self.suspend_processes,
            "ResumeProcesses": self.resume_processes,
            "CreateOrUpdateTags": self.create_or_update_tags,
            "DeleteTags": self.delete_tags,
            "DescribeTags": self.describe_tags,
            "PutLifecycleHook": self.put_lifecycle_hook,
            "DescribeLifecycleHooks": self.describe_lifecycle_hooks,
            "CompleteLifecycleAction": self.complete_lifecycle_action,
            "RecordLifecycleActionHeartbeat": self.record_lifecycle_heartbeat,
        }

    # --- groups -----------------------------------------------------------------------------

    def create_group(self, params: Params) -> Result:
        """Creates a group; it starts launching at once."""
        record = GroupRecord.from_request(params, self._templates, self._subnets)
        settings = settings_of_request(params, record)
        hooks = params.get("LifecycleHookSpecificationList") or ()
        with self._region.at_now() as now:
            self._region.groups.create(
                now, settings, desired_capacity=params.get("DesiredCapacity")
            )
            self._records[settings.name] = record
            for hook in hooks:
                self._put_hook(now, settings.name, hook)
        return {}

    def update_group(self, params: Params) -> Result:
        """Changes a group; sizes outside its bounds are refused and nothing changes."""
        name = params["AutoScalingGroupName"]
        with self._region.at_now() as now:
            self._region.groups.group(name)
            record = self._records[name].updated(params, self._templates, self._subnets)
            self._region.groups.update(
                now,
                name,
                desired_capacity=params.get("DesiredCapacity"),
                **settings_changes(params, record),
            )
            self._records[name] = record
        return {}

    def delete_group(self, params: Params) -> Result:
        """Deletes a group, with its instances when forced."""
        with self._region.at_now() as now:
            self._region.groups.delete(
                now, params["AutoScalingGroupName"], force=bool(params.get("ForceDelete"))
            )
        return {}

    def describe_groups(self, params: Params) -> Result:
        """The groups of the given names (all without), a page of 50."""
        names = params.get("AutoScalingGroupNames") or ()
        with self._region.at_now():
            views = [
                view
                for view in self._region.groups.groups()
                if (not names or view.settings.name in names)
                and _group_matches(view, self._records[view.settings.name], params)
            ]
            page, token = page_of(
                views, token=params.get("NextToken"), limit=params.get("MaxRecords") or 50
            )
            documents = [self._group_document(view) for view in page]
        return _paged({"AutoScalingGroups": documents}, token)

    def set_desired_capacity(self, params: Params) -> Result:
        """Sets the size a group aims for."""
        with self._region.at_now() as now:
            self._region.groups.set_desired_capacity(
                now,
                params["AutoScalingGroupName"],
                params["DesiredCapacity"],
                honor_cooldown=bool(params.get("HonorCooldown")),
            )
        return {}

    def describe_activities(self, params: Params) -> Result:
        """What groups did and why, newest first, a page of 100."""
        name = params.get("AutoScalingGroupName")
        wanted_ids = params.get("ActivityIds") or ()
        with self._region.at_now():
            groups = self._region.groups
            names = [name] if name else [view.settings.name for view in groups.groups()]
            activities = [
                activity
                for each in names
                for activity in groups.activities(each)
                if not wanted_ids or activity.activity_id in wanted_ids
            ]
        activities.sort(key=lambda activity: activity.start_time, reverse=True)
        page, token = page_of(
            activities, token=params.get("NextToken"), limit=params.get("MaxRecords") or 100
        )
        return _paged({"Activities": [activity_document(a) for a in page]}, token)

    def suspend_processes(self, params: Params) -> Result:
        """Suspends Launch, Terminate or ReplaceUnhealthy."""
        processes = _processes(params)
        with self._region.at_now() as now:
            self._region.groups.suspend(now, params["AutoScalingGroupName"], *processes)
        return {}

    def resume_processes(self, params: Params) -> Result:
        """Resumes suspended processes, all of them without names."""
        processes = _processes(params)
        with self._region.at_now() as now:
            self._region.groups.resume(now, params["AutoScalingGroupName"], *processes)
        return {}

    def template_changed(self, template_id: str) -> None:
        """Lets the groups of a launch template launch its present version from now on."""
        with self._region.at_now() as now:
            for view in self._region.groups.groups():
                record = self._records[view.settings.name]
                if record.template.template_id != template_id or view.is_deleting:
                    continue
                template = self._templates.resolve(
                    {"LaunchTemplateId": template_id, "Version": record.template.version}
                )
                record = self._records[view.settings.name] = replace(record, template=template)
                self._region.groups.update(now, view.settings.name, **record.launch_settings())

    # --- members ----------------------------------------------------------------------------

    def terminate_instance(self, params: Params) -> Result:
        """Terminates one member, with or without replacement."""
        with self._region.at_now() as now:
            activity = self._region.groups.terminate_instance(
                now,
                params["InstanceId"],
                decrement_desired_capacity=bool(params["ShouldDecrementDesiredCapacity"]),
            )
            return {"Activity": activity_document(activity)}

    def describe_instances(self, params: Params) -> Result:
        """The members of all groups, a page of 50."""
        wanted = params.get("InstanceIds") or ()
        with self._region.at_now():
            documents = [
                {
                    **instance_document(member, self._records[view.settings.name]),
                    "AutoScalingGroupName": view.settings.name,
                    "HealthStatus": "HEALTHY" if member.is_healthy else "UNHEALTHY",
                }
                for view in self._region.groups.groups()
                for member in view.instances
                if not wanted or member.instance_id in wanted
            ]
        page, token = page_of(
            documents, token=params.get("NextToken"), limit=params.get("MaxRecords") or 50
        )
        return _paged({"AutoScalingInstances": list(page)}, token)

    def set_instance_protection(self, params: Params) -> Result:
        """Protects members from scale-in, or stops protecting them."""
        with self._region.at_now() as now:
            self._region.groups.set_instance_protection(
                now,
                params["AutoScalingGroupName"],
                params.get("InstanceIds") or (),
                protected=bool(params["ProtectedFromScaleIn"]),
            )
        return {}

    def set_instance_health(self, params: Params) -> Result:
        """Reports a member's health; an unhealthy one is replaced."""
        with self._region.at_now() as now:
            self._region.groups.set_instance_health(
                now, params["InstanceId"], is_healthy=params["HealthStatus"] == "Healthy"
            )
        return {}

    # --- tags -------------------------------------------------------------------------------

    def create_or_update_tags(self, params: Params) -> Result:
        """Tags groups; instances launched from then on carry the propagated ones."""
        with self._region.at_now() as now:
            for tag in params.get("Tags") or ():
                name = tag.get("ResourceId", "")
                self._region.groups.group(name)
                self._retag(now, name, self._records[name].with_tags(name, [tag]))
        return {}

    def delete_tags(self, params: Params) -> Result:
        """Removes tags from groups."""
        with self._region.at_now() as now:
            for tag in params.get("Tags") or ():
                name = tag.get("ResourceId", "")
                self._region.groups.group(name)
                self._retag(now, name, self._records[name].without_tags({tag["Key"]}))
        return {}

    def describe_tags(self, params: Params) -> Result:
        """The tags of all groups, filtered, a page of 50."""
        with self._region.at_now():
            tags = [tag for each in self._present_records() for tag in each.tags]
        chosen = [
            tag
            for tag in tags
            if matches_filters(
                tag,
                params.get("Filters") or (),
                {
                    "auto-scaling-group": lambda t: (t["ResourceId"],),
                    "key": lambda t: (t["Key"],),
                    "value": lambda t: (t["Value"],),
                    "propagate-at-launch": lambda t: (str(t["PropagateAtLaunch"]).lower(),),
                },
                lambda t: {},
            )
        ]
        page, token = page_of(
            chosen, token=params.get("NextToken"), limit=params.get("MaxRecords") or 50
        )
        return _paged({"Tags": list(page)}, token)

    # --- lifecycle hooks --------------------------------------------------------------------

    def put_lifecycle_hook(self, params: Params) -> Result:
        """Adds or replaces a hook that holds members in a :Wait state."""
        with self._region.at_now() as now:
            self._region.groups.group(params["AutoScalingGroupName"])
            self._put_hook(now, params["AutoScalingGroupName"], params)
        return {}

    def describe_lifecycle_hooks(self, params: Params) -> Result:
        """A group's hooks."""
        name = params["AutoScalingGroupName"]
        wanted = params.get("LifecycleHookNames") or ()
        with self._region.at_now():
            self._region.groups.group(name)
            hooks = self._records[name].hooks
        return {"LifecycleHooks": [h for n, h in hooks.items() if not wanted or n in wanted]}

    def complete_lifecycle_action(self, params: Params) -> Result:
        """Lets a held member go on, or abandons it."""
        with self._region.at_now() as now:
            self._region.groups.complete_lifecycle_action(
                now,
                _held_instance(params),
                continues=params.get("LifecycleActionResult") == "CONTINUE",
            )
        return {}

    def record_lifecycle_heartbeat(self, params: Params) -> Result:
        """Extends a held member's wait."""
        with self._region.at_now() as now:
            self._region.groups.record_lifecycle_heartbeat(now, _held_instance(params))
        return {}

    def subnet_of(self, instance: Instance) -> str | None:
        """The subnet of a member whose group names subnets."""
        record = self._records.get(instance.tags.get(GROUP_TAG, ""))
        return record.subnet_in(instance.zone) if record is not None else None

    # --- internals ----------------------------------------------------------------------------

    def _group_document(self, view: GroupView) -> Result:
        return group_document(
            view,
            self._records[view.settings.name],
            region_name=self._region.name,
            account_id=self._region.account_id,
        )

    def _present_records(self) -> Iterator[GroupRecord]:
        for view in self._region.groups.groups():
            yield self._records[view.settings.name]

    def _retag(self, now: float, name: str, record: GroupRecord) -> None:
        self._records[name] = record
        self._region.groups.update(now, name, tags=record.instance_tags)

    def _put_hook(self, now: float, name: str, params: Params) -> None:
        record = self._records[name]
        known = record.hooks.get(params["LifecycleHookName"], {})
        document = {
            "LifecycleHookName": params["LifecycleHookName"],
            "AutoScalingGroupName": name,
            "LifecycleTransition": params.get("LifecycleTransition")
            or known.get("LifecycleTransition"),
            "HeartbeatTimeout": params.get("HeartbeatTimeout")
            or known.get("HeartbeatTimeout")
            or 3600,
            "DefaultResult": params.get("DefaultResult") or known.get("DefaultResult") or "ABANDON",
        }
        if document["LifecycleTransition"] not in tuple(HookKind):
            raise ApiError("ValidationError", "Please specify a valid LifecycleTransition.")
        document["GlobalTimeout"] = min(48 * 3600, document["HeartbeatTimeout"] * 100)
        self._region.groups.put_lifecycle_hook(
            now,
            name,
            LifecycleHook(
                name=document["LifecycleHookName"],
                kind=HookKind(document["LifecycleTransition"]),
                heartbeat_timeout_seconds=float(document["HeartbeatTimeout"]),
                default_result_continues=document["DefaultResult"] == "CONTINUE",
            ),
        )
        hooks = {**record.hooks, document["LifecycleHookName"]: document}
        self._records[name] = replace(record, hooks=hooks)


def _group_matches(view: GroupView, record: GroupRecord, params: Params) -> bool:
    tags = {tag["Key"]: tag["Value"] for tag in record.tags}
    return matches_filters(
        view,
        params.get("Filters") or (),
        {"tag-value": lambda _: tags.values()},
        lambda _: tags,
    )


def _processes(params: Params) -> tuple[str, ...]:
    processes = tuple(params.get("ScalingProcesses") or ())
    unknown = [process for process in processes if process not in _SUSPENDABLE]
    if unknown:
        raise not_modelled("ValidationError", f"Suspending {', '.join(unknown)}")
    return processes


def _held_instance(params: Params) -> str:
    instance_id = params.get("InstanceId")
    if not instance_id:
        raise not_modelled("ValidationError", "A lifecycle action token without an InstanceId")
    return str(instance_id)


def _paged(result: Result, token: str | None) -> Result:
    return {**result, "NextToken": token} if token else result
