"""The part of EC2's API that concerns instances, answered from the simulated region."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fleetsim.cloud_state import Instance, InstanceState
from fleetsim.errors import CloudError
from fleetsim.instance_types import INSTANCE_TYPES, Market
from localsuite.aws.errors import ApiError, not_modelled
from localsuite.aws.moments import moment
from localsuite.aws.paging import matches_filters, page_of
from localsuite.aws.region import Region

__all__ = ["Ec2Api"]

Params = Mapping[str, Any]
Result = dict[str, Any]

#: EC2 API reference, "InstanceState": the low byte of the code.
_STATE_CODES = {
    InstanceState.PENDING: 0,
    InstanceState.RUNNING: 16,
    InstanceState.SHUTTING_DOWN: 32,
    InstanceState.TERMINATED: 48,
}
_INSTANCES_NOT_MODELLED = ("StopInstances", "StartInstances", "RebootInstances")


class Ec2Api:
    """One method per operation: parameters in, result out, both keyed as in the API reference."""

    def __init__(
        self, region: Region, subnet_of: Callable[[Instance], str | None] = lambda _: None
    ) -> None:
        self._region = region
        self._subnet_of = subnet_of
        self.operations: Mapping[str, Callable[[Params], Result]] = {
            "DescribeInstances": self.describe_instances,
            "DescribeInstanceStatus": self.describe_instance_status,
            "RunInstances": self.run_instances,
            "TerminateInstances": self.terminate_instances,
            "DescribeSpotInstanceRequests": self.describe_spot_instance_requests,
            "DescribeSpotPriceHistory": self.describe_spot_price_history,
            **{name: self._refuse(name) for name in _INSTANCES_NOT_MODELLED},
        }

    def describe_instances(self, params: Params) -> Result:
        """Instances by id and filter; those terminated over an hour ago are gone."""
        with self._region.at_now():
            instances = self._chosen(params)
            page, token = page_of(
                instances, token=params.get("NextToken"), limit=params.get("MaxResults")
            )
            reservations = [
                {
                    "ReservationId": f"r-{instance.instance_id[2:]}",
                    "OwnerId": self._region.account_id,
                    "Groups": [],
                    "Instances": [_instance_document(instance, self._subnet_of(instance))],
                }
                for instance in page
            ]
        return _paged({"Reservations": reservations}, token)

    def describe_instance_status(self, params: Params) -> Result:
        """The status of running instances, or of all with IncludeAllInstances."""
        everything = bool(params.get("IncludeAllInstances"))
        with self._region.at_now():
            instances = [
                instance
                for instance in self._chosen(params)
                if everything or instance.state is InstanceState.RUNNING
            ]
        page, token = page_of(
            instances, token=params.get("NextToken"), limit=params.get("MaxResults")
        )
        return _paged({"InstanceStatuses": [_status_document(i) for i in page]}, token)

    def run_instances(self, params: Params) -> Result:
        """Launches instances outside any group: as many as there is stock for, up to MaxCount.

        Raises ApiError when fewer than MinCount can be had; then none stays.
        """
        placement = params.get("Placement") or {}
        zone = placement.get("AvailabilityZone") or self._region.cloud.settings.zones[0]
        instance_type = params.get("InstanceType")
        if not instance_type:
            raise ApiError(
                "MissingParameter", "The request must contain the parameter InstanceType"
            )
        if instance_type not in INSTANCE_TYPES:
            raise not_modelled("InvalidParameterValue", f"Instance type {instance_type}")
        market_options = params.get("InstanceMarketOptions") or {}
        market = Market.SPOT if market_options.get("MarketType") == "spot" else Market.ON_DEMAND
        tags = {
            tag["Key"]: tag.get("Value") or ""
            for specification in params.get("TagSpecifications") or ()
            if specification.get("ResourceType") == "instance"
            for tag in specification.get("Tags") or ()
        }
        with self._region.at_now() as now:
            cloud = self._region.cloud
            launched: list[Instance] = []
            try:
                while len(launched) < params["MaxCount"]:
                    instance = cloud.launch(
                        now, instance_type=instance_type, zone=zone, market=market, tags=tags
                    )
                    launched.append(instance)
            except CloudError:
                if len(launched) < params["MinCount"]:
                    cloud.terminate(now, [each.instance_id for each in launched])
                    raise
            except ValueError as error:
                message = f"Invalid availability zone: [{zone}]"
                raise ApiError("InvalidParameterValue", message) from error
        return {
            "ReservationId": f"r-{launched[0].instance_id[2:]}",
            "OwnerId": self._region.account_id,
            "Groups": [],
            "Instances": [_instance_document(instance, None) for instance in launched],
        }

    def terminate_instances(self, params: Params) -> Result:
        """Shuts instances down; one that is a group's member will be replaced by the group."""
        ids = list(params.get("InstanceIds") or ())
        with self._region.at_now() as now:
            cloud = self._region.cloud
            before = {instance_id: _state(cloud.instance(instance_id)) for instance_id in ids}
            after = cloud.terminate(now, ids)
        return {
            "TerminatingInstances": [
                {
                    "InstanceId": instance.instance_id,
                    "PreviousState": before[instance.instance_id],
                    "CurrentState": _state(instance),
                }
                for instance in after
            ]
        }

    def describe_spot_instance_requests(self, params: Params) -> Result:
        """The requests behind Spot instances; an interruption notice shows in their status."""
        wanted = set(params.get("SpotInstanceRequestIds") or ())
        with self._region.at_now():
            requests = [
                _spot_request_document(instance)
                for instance in self._region.cloud.instances()
                if instance.market is Market.SPOT
            ]
        chosen = [
            request
            for request in requests
            if (not wanted or request["SpotInstanceRequestId"] in wanted)
            and matches_filters(
                request,
                params.get("Filters") or (),
                {
                    "spot-instance-request-id": lambda r: (r["SpotInstanceRequestId"],),
                    "instance-id": lambda r: (r["InstanceId"],),
                    "state": lambda r: (r["State"],),
                    "status-code": lambda r: (r["Status"]["Code"],),
                },
                lambda r: {tag["Key"]: tag["Value"] for tag in r["Tags"]},
            )
        ]
        page, token = page_of(chosen, token=params.get("NextToken"), limit=params.get("MaxResults"))
        return _paged({"SpotInstanceRequests": list(page)}, token)

    def describe_spot_price_history(self, params: Params) -> Result:
        """One price per instance type and zone: the simulation's prices do not move."""
        wanted = params.get("InstanceTypes") or tuple(INSTANCE_TYPES)
        zone = params.get("AvailabilityZone")
        with self._region.at_now() as now:
            zones = self._region.cloud.settings.zones
        prices = [
            {
                "AvailabilityZone": each_zone,
                "InstanceType": name,
                "ProductDescription": "Linux/UNIX",
                "SpotPrice": f"{INSTANCE_TYPES[name].spot_usd_per_hour:.6f}",
                "Timestamp": moment(now),
            }
            for name in wanted
            if name in INSTANCE_TYPES
            for each_zone in zones
            if zone in (None, each_zone)
        ]
        page, token = page_of(prices, token=params.get("NextToken"), limit=params.get("MaxResults"))
        return _paged({"SpotPriceHistory": list(page)}, token)

    def _chosen(self, params: Params) -> list[Instance]:
        ids: Sequence[str] = params.get("InstanceIds") or ()
        cloud = self._region.cloud
        instances = [cloud.instance(i) for i in ids] if ids else cloud.instances()
        filters = params.get("Filters") or ()
        return [i for i in instances if matches_filters(i, filters, _INSTANCE_FILTERS, _tags)]

    @staticmethod
    def _refuse(operation: str) -> Callable[[Params], Result]:
        def refuse(_: Params) -> Result:
            raise not_modelled("UnsupportedOperation", operation)

        return refuse


def _tags(instance: Instance) -> Mapping[str, str]:
    return instance.tags


_INSTANCE_FILTERS: Mapping[str, Callable[[Instance], Iterable[str]]] = {
    "instance-id": lambda i: (i.instance_id,),
    "instance-state-name": lambda i: (i.state.value,),
    "instance-state-code": lambda i: (str(_STATE_CODES[i.state]),),
    "instance-type": lambda i: (i.instance_type,),
    "instance-lifecycle": lambda i: ("spot",) if i.market is Market.SPOT else (),
    "availability-zone": lambda i: (i.zone,),
    "private-ip-address": lambda i: (i.private_ip_address,),
    "private-dns-name": lambda i: (_private_dns_name(i),),
    "tag-value": lambda i: i.tags.values(),
}


def _state(instance: Instance) -> Result:
    return {"Code": _STATE_CODES[instance.state], "Name": instance.state.value}


def _private_dns_name(instance: Instance) -> str:
    return f"ip-{instance.private_ip_address.replace('.', '-')}.ec2.internal"


def _spot_request_id(instance: Instance) -> str:
    return f"sir-{instance.instance_id[-8:]}"


def _tag_list(instance: Instance) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in instance.tags.items()]


def _instance_document(instance: Instance, subnet_id: str | None) -> Result:
    document: Result = {
        "InstanceId": instance.instance_id,
        "ImageId": "ami-00000000000000000",
        "State": _state(instance),
        "PrivateDnsName": _private_dns_name(instance),
        "PublicDnsName": "",
        "StateTransitionReason": "",
        "AmiLaunchIndex": 0,
        "ProductCodes": [],
        "InstanceType": instance.instance_type,
        "LaunchTime": moment(instance.launch_time),
        "Placement": {
            "AvailabilityZone": instance.zone,
            "GroupName": "",
            "Tenancy": "default",
        },
        "Monitoring": {"State": "disabled"},
        "SubnetId": subnet_id,
        "PrivateIpAddress": instance.private_ip_address,
        "Architecture": "x86_64",
        "RootDeviceName": "/dev/xvda",
        "RootDeviceType": "ebs",
        "BlockDeviceMappings": [],
        "VirtualizationType": "hvm",
        "Hypervisor": "xen",
        "EbsOptimized": False,
        "EnaSupport": True,
        "NetworkInterfaces": [],
        "SecurityGroups": [],
        "SourceDestCheck": True,
        "Tags": _tag_list(instance),
    }
    if instance.market is Market.SPOT:
        document["InstanceLifecycle"] = "spot"
        document["SpotInstanceRequestId"] = _spot_request_id(instance)
    if instance.state_reason is not None:
        code, message = instance.state_reason
        document["StateReason"] = {"Code": code, "Message": message}
        at = moment(instance.shutting_down_time or instance.launch_time)
        word = "User initiated" if code.startswith("Client.") else code
        document["StateTransitionReason"] = f"{word} ({at:%Y-%m-%d %H:%M:%S} GMT)"
    return document


def _status_document(instance: Instance) -> Result:
    passed = instance.state is InstanceState.RUNNING
    summary = {
        "Status": "ok" if passed else "not-applicable",
        "Details": [{"Name": "reachability", "Status": "passed"}] if passed else [],
    }
    document: Result = {
        "InstanceId": instance.instance_id,
        "AvailabilityZone": instance.zone,
        "InstanceState": _state(instance),
        "InstanceStatus": summary,
        "SystemStatus": summary,
    }
    return document


def _spot_request_document(instance: Instance) -> Result:
    state, code, message = "active", "fulfilled", "Your Spot request is fulfilled."
    if not instance.is_alive:
        state = "closed"
        if instance.interruption_notice_time is not None:
            code = "instance-terminated-no-capacity"
            message = "Your Spot instance was terminated because there is no Spot capacity."
        else:
            code, message = "instance-terminated-by-user", "Your instance was terminated by you."
    elif instance.interruption_notice_time is not None:
        code = "marked-for-termination"
        message = "The Spot Instance is marked for termination."
    return {
        "SpotInstanceRequestId": _spot_request_id(instance),
        "InstanceId": instance.instance_id,
        "State": state,
        "Status": {
            "Code": code,
            "Message": message,
            "UpdateTime": moment(instance.interruption_notice_time or instance.launch_time),
        },
        "Type": "one-time",
        "CreateTime": moment(instance.launch_time),
        "LaunchedAvailabilityZone": instance.zone,
        "ProductDescription": "Linux/UNIX",
        "InstanceInterruptionBehavior": "terminate",
        "LaunchSpecification": {"InstanceType": instance.instance_type},
        "Tags": _tag_list(instance),
    }


def _paged(result: Result, token: str | None) -> Result:
    return {**result, "NextToken": token} if token else result
