"""One ECS cluster and its container instances: the hosts that run, as its agent registers them.

Task definitions, services and other clusters are moto's; the cluster is made known to it when
one of them is first used, since loading moto's ECS doubles the memory of the local AWS. Tasks
are not modelled, so `runningTasksCount` is 0.
"""

import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from moto.backends import get_backend

from fleetsim.cloud_state import Instance, InstanceState
from fleetsim.instance_types import INSTANCE_TYPES
from localsuite.aws.errors import ApiError, not_modelled
from localsuite.aws.moments import moment
from localsuite.aws.paging import page_of
from localsuite.aws.region import Region

__all__ = ["EcsApi"]

Params = Mapping[str, Any]
Result = dict[str, Any]

_ID_NAMESPACE = uuid.UUID("5f0c4b6e-54a4-4a0b-8d61-0f6e4cf1a0c5")
_STATUSES = ("ACTIVE", "DRAINING")


class EcsApi:
    """One method per operation: parameters in, result out, both keyed as in the API reference."""

    def __init__(self, region: Region, cluster: str) -> None:
        self._region = region
        self.cluster = cluster
        self._draining: set[str] = set()
        self._lock = threading.Lock()
        self._created_with: Params | None = None
        self._moto_cluster: Any = None
        self.operations: Mapping[str, Callable[[Params], Result]] = {
            "CreateCluster": self.create_cluster,
            "DescribeClusters": self.describe_clusters,
            "DeleteCluster": self._refuse_deletion,
            "ListContainerInstances": self.list_container_instances,
            "DescribeContainerInstances": self.describe_container_instances,
            "UpdateContainerInstancesState": self.update_container_instances_state,
        }

    def concerns(self, operation: str, params: Params) -> bool:
        """True when a call is about this cluster; other clusters are moto's."""
        if operation == "DescribeClusters":
            references = params.get("clusters") or ("default",)
        elif operation == "CreateCluster":
            references = (params.get("clusterName") or "default",)
        else:
            references = (params.get("cluster") or "default",)
        return all(reference.rpartition("/")[2] == self.cluster for reference in references)

    def prepare_moto(self) -> None:
        """Makes the cluster known to moto, which is about to answer a call about services."""
        with self._lock:
            if self._created_with is not None and self._moto_cluster is None:
                backend = get_backend("ecs")[self._region.account_id][self._region.name]
                self._moto_cluster = backend.create_cluster(
                    self.cluster, self._created_with.get("tags"), None, None, None
                )

    def create_cluster(self, params: Params) -> Result:
        """Creates the cluster; again is the same, as in ECS."""
        with self._lock:
            if self._created_with is None:
                self._created_with = params
        with self._region.at_now():
            return {"cluster": self._cluster_document()}

    def describe_clusters(self, _: Params) -> Result:
        """The cluster, with the count of its container instances."""
        if self._created_with is None:
            arn = f"{self._arn_prefix}:cluster/{self.cluster}"
            return {"clusters": [], "failures": [{"arn": arn, "reason": "MISSING"}]}
        with self._region.at_now():
            return {"clusters": [self._cluster_document()], "failures": []}

    def list_container_instances(self, params: Params) -> Result:
        """The ARNs of the cluster's container instances, a page of 100."""
        self._require_cluster()
        if params.get("filter"):
            raise not_modelled("InvalidParameterException", "The filter of ListContainerInstances")
        status = params.get("status")
        with self._region.at_now():
            arns = [
                self._arn(instance)
                for instance in self._hosts()
                if status in (None, self._status(instance))
            ]
        page, token = page_of(
            arns,
            token=params.get("nextToken"),
            limit=params.get("maxResults") or 100,
            error_code="InvalidParameterException",
        )
        result: Result = {"containerInstanceArns": list(page)}
        return {**result, "nextToken": token} if token else result

    def describe_container_instances(self, params: Params) -> Result:
        """Container instances by ARN or id; unknown ones are listed as failures."""
        self._require_cluster()
        with self._region.at_now():
            return self._described(params.get("containerInstances") or ())

    def update_container_instances_state(self, params: Params) -> Result:
        """Drains container instances or makes them active again."""
        self._require_cluster()
        status = params.get("status")
        if status not in _STATUSES:
            raise ApiError(
                "InvalidParameterException", "Container instance status must be ACTIVE or DRAINING."
            )
        with self._region.at_now():
            by_id = {_container_id(instance): instance for instance in self._hosts()}
            self._draining &= {instance.instance_id for instance in by_id.values()}
            for reference in params.get("containerInstances") or ():
                instance = by_id.get(reference.rpartition("/")[2])
                if instance is None:
                    continue
                if status == "DRAINING":
                    self._draining.add(instance.instance_id)
                else:
                    self._draining.discard(instance.instance_id)
            return self._described(params.get("containerInstances") or ())

    def _require_cluster(self) -> None:
        if self._created_with is None:
            raise ApiError("ClusterNotFoundException", "Cluster not found.")

    def _refuse_deletion(self, _: Params) -> Result:
        raise not_modelled("InvalidParameterException", f"Deleting the cluster {self.cluster}")

    def _cluster_document(self) -> Result:
        return {
            "clusterArn": f"{self._arn_prefix}:cluster/{self.cluster}",
            "clusterName": self.cluster,
            "status": "ACTIVE",
            "registeredContainerInstancesCount": len(self._hosts()),
            "runningTasksCount": 0,
            "pendingTasksCount": 0,
            "activeServicesCount": getattr(self._moto_cluster, "active_services_count", 0),
            "statistics": [],
            "tags": (self._created_with or {}).get("tags") or [],
            "settings": [],
            "capacityProviders": [],
            "defaultCapacityProviderStrategy": [],
        }

    @property
    def _arn_prefix(self) -> str:
        return f"arn:aws:ecs:{self._region.name}:{self._region.account_id}"

    def _described(self, references: Any) -> Result:
        by_id = {_container_id(instance): instance for instance in self._hosts()}
        found, failures = [], []
        for reference in references:
            instance = by_id.get(reference.rpartition("/")[2])
            if instance is None:
                failures.append({"arn": reference, "reason": "MISSING"})
            else:
                found.append(self._document(instance))
        return {"containerInstances": found, "failures": failures}

    def _hosts(self) -> list[Instance]:
        return self._region.cloud.instances(InstanceState.RUNNING)

    def _status(self, instance: Instance) -> str:
        return "DRAINING" if instance.instance_id in self._draining else "ACTIVE"

    def _arn(self, instance: Instance) -> str:
        return f"{self._arn_prefix}:container-instance/{self.cluster}/{_container_id(instance)}"

    def _document(self, instance: Instance) -> Result:
        spec = INSTANCE_TYPES[instance.instance_type]
        resources = [
            {"name": "CPU", "type": "INTEGER", "integerValue": spec.vcpus * 1024},
            {"name": "MEMORY", "type": "INTEGER", "integerValue": int(spec.memory_gib * 1024)},
        ]
        if spec.gpu_name is not None:
            resources.append({"name": "GPU", "type": "STRINGSET", "stringSetValue": ["GPU-0"]})
        return {
            "containerInstanceArn": self._arn(instance),
            "ec2InstanceId": instance.instance_id,
            "version": 1,
            "remainingResources": resources,
            "registeredResources": resources,
            "status": self._status(instance),
            "agentConnected": True,
            "runningTasksCount": 0,
            "pendingTasksCount": 0,
            "attributes": [
                {"name": "ecs.instance-type", "value": instance.instance_type},
                {"name": "ecs.availability-zone", "value": instance.zone},
                {"name": "gamekeeper.tier", "value": self._region.tier_of(instance)},
            ],
            "registeredAt": moment(instance.running_time or instance.launch_time),
            "attachments": [],
            "tags": [{"key": key, "value": value} for key, value in instance.tags.items()],
        }


def _container_id(instance: Instance) -> str:
    return uuid.uuid5(_ID_NAMESPACE, instance.instance_id).hex
