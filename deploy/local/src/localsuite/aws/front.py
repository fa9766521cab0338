"""The WSGI application: our capacity is answered here, everything else by moto."""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from moto.core.exceptions import ServiceException
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.wrappers import Request, Response

from fleetsim.errors import CloudError
from localsuite.aws.autoscaling import AutoScalingApi
from localsuite.aws.control import ControlApi
from localsuite.aws.ec2 import Ec2Api
from localsuite.aws.ec2_tags import Ec2TagsApi
from localsuite.aws.ecs import EcsApi
from localsuite.aws.errors import ApiError, not_modelled
from localsuite.aws.faults import FaultInjector
from localsuite.aws.launch_templates import LaunchTemplatesApi
from localsuite.aws.metric_retention import forget_old_observations
from localsuite.aws.region import Region
from localsuite.aws.tiers import DEFAULT_CLUSTER
from localsuite.aws.wire import CallTarget, ServiceWire, call_target

__all__ = ["LocalAwsFront"]

log = structlog.get_logger(__name__)

Operation = Callable[[Mapping[str, Any]], dict[str, Any]]


class _BufferedRequest(Request):
    max_form_memory_size = None  # loopback only; CloudWatch bodies may exceed werkzeug's default


class LocalAwsFront:
    """Routes each request to the API that knows the answer."""

    def __init__(self, region: Region, *, cluster: str = DEFAULT_CLUSTER) -> None:
        self.region = region
        self.faults = FaultInjector()
        self.control = ControlApi(region, self.faults)
        templates = LaunchTemplatesApi(region.account_id, region.present)
        self._autoscaling = AutoScalingApi(region, templates)
        templates.on_change = self._autoscaling.template_changed
        self._ec2 = Ec2Api(region, self._autoscaling.subnet_of)
        self._ec2_operations = {**self._ec2.operations, **templates.operations}
        self._ec2_tags = Ec2TagsApi(region)
        self._ecs = EcsApi(region, cluster)
        self._wires: dict[str, ServiceWire] = {}
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answers one request (WSGI)."""
        request = _BufferedRequest(environ)
        body = request.get_data(cache=True)
        if request.path == "/_local" or request.path.startswith("/_local/"):
            return self.control.respond(request)(environ, start_response)
        target = call_target(request)
        if target is not None:
            response = self._answer(target, request)
            if response is not None:
                return response(environ, start_response)
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        answer: Iterable[bytes] = self._moto(environ, start_response)
        if target is not None and target.operation == "PutMetricData":
            forget_old_observations(self.region.account_id, self.region.name)
        return answer

    def _answer(self, target: CallTarget, request: Request) -> Response | None:
        """Our answer; None when moto is to answer."""
        try:
            self._inject_fault(target)
            if target.service not in ("autoscaling", "ec2", "ecs"):
                return None
            return self._answer_ours(target, request)
        except ApiError as error:
            refusal = error
        except (CloudError, ServiceException) as error:
            refusal = ApiError(error.code, error.message)
        except Exception:
            log.exception("operation_failed", service=target.service, operation=target.operation)
            refusal = ApiError("InternalFailure", "The local AWS simulation failed; see its log.")
        return self._wire(target.service).refuse(target.operation, refusal)

    def _inject_fault(self, target: CallTarget) -> None:
        injected = self.faults.take(target)
        if injected is not None:
            injected.wait()
            if injected.error is not None:
                raise injected.error

    def _answer_ours(self, target: CallTarget, request: Request) -> Response | None:
        wire = self._wire(target.service)
        found = self._find(target, wire, request)
        if found is None:
            return None
        if target.region != self.region.name:
            raise not_modelled("ValidationError", f"Capacity outside {self.region.name}")
        operation, params = found
        return wire.respond(target.operation, operation(params))

    def _find(
        self, target: CallTarget, wire: ServiceWire, request: Request
    ) -> tuple[Operation, Mapping[str, Any]] | None:
        if target.service == "autoscaling":
            operation = self._autoscaling.operations.get(target.operation)
            params = wire.parse(request, target.operation)  # refuses what Auto Scaling lacks
            if operation is None:
                raise not_modelled("InvalidAction", target.operation)
            return operation, params
        if target.service == "ecs":
            operation = self._ecs.operations.get(target.operation)
            if operation is not None:
                params = wire.parse(request, target.operation)
                if self._ecs.concerns(target.operation, params):
                    return operation, params
            self._ecs.prepare_moto()
            return None
        operation = self._ec2_operations.get(target.operation)
        if operation is not None:
            params = wire.parse(request, target.operation)
            if params.get("DryRun"):
                raise ApiError(
                    "DryRunOperation",
                    "Request would have succeeded, but DryRun flag is set.",
                    status=412,
                )
            return operation, params
        operation = self._ec2_tags.operations.get(target.operation)
        if operation is None:
            return None
        params = wire.parse(request, target.operation)
        return (operation, params) if self._ec2_tags.concerns(params) else None

    def _wire(self, service: str) -> ServiceWire:
        wire = self._wires.get(service)
        if wire is None:
            wire = self._wires[service] = ServiceWire(service)
        return wire
