"""`/_local`: what AWS has no API for: the event feed, costs, and what a test makes happen.

GET    /_local/events?after=N&timeout_seconds=S   events numbered above N, waiting up to S
GET    /_local/instances[?state=running]          every instance, hosts of the fleet
GET    /_local/costs                              spent and per hour, by tier and instance
POST   /_local/interrupt  {instance_id | tier}    the interruption notice of a Spot instance
POST   /_local/kill-host  {instance_id | tier}    a host dies at once; its group replaces it
POST   /_local/stock      {instance_type, zone, spot_in_stock?, on_demand_limit?, spot_limit?}
POST   /_local/faults     {operation, error_code, count}; GET lists, DELETE clears
GET    /_local                                    what this is
"""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from werkzeug.wrappers import Request, Response

from fleetsim.cloud_state import Instance, InstanceState
from fleetsim.errors import CloudError
from fleetsim.instance_types import INSTANCE_TYPES, Market
from localsuite.aws.faults import FaultInjector
from localsuite.aws.region import Region

__all__ = ["ControlApi"]

_LONGEST_POLL_SECONDS = 30.0
_HARDWARE_FAILURE = (
    "Server.InternalError",
    "Server.InternalError: Internal error on launch",
)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ControlApi:
    """Answers requests below `/_local` with JSON; a refusal is `{"error": text}`.

    `ready` is cleared while the account is being filled; only `GET /_local` looks at it.
    """

    def __init__(self, region: Region, faults: FaultInjector) -> None:
        self._region = region
        self._faults = faults
        self.ready = threading.Event()
        self.ready.set()
        self._routes: Mapping[tuple[str, str], Callable[[Request], Any]] = {
            ("GET", ""): self._describe,
            ("GET", "events"): self._events,
            ("GET", "instances"): self._instances,
            ("GET", "costs"): self._costs,
            ("POST", "interrupt"): self._interrupt,
            ("POST", "kill-host"): self._kill_host,
            ("POST", "stock"): self._set_stock,
            ("POST", "faults"): self._add_fault,
            ("GET", "faults"): lambda _: {
                "faults": self._faults.waiting(),
                "held": self._faults.held(),
            },
            ("DELETE", "faults"): self._clear_faults,
        }

    def respond(self, request: Request) -> Response:
        """Answers one request."""
        route = request.path.removeprefix("/_local").strip("/")
        handler = self._routes.get((request.method, route), _unknown_route)
        try:
            document, status = handler(request), 200
        except _RefusedError as error:
            document, status = {"error": str(error)}, error.status
        except CloudError as error:
            document, status = {"error": error.message, "code": error.code}, 404
        return Response(json.dumps(document), status=status, content_type="application/json")

    def _describe(self, _: Request) -> Any:
        if not self.ready.is_set():
            raise _RefusedError(503, "the account is being filled")
        return {
            "simulation": True,
            "region": self._region.name,
            "account_id": self._region.account_id,
            "seed": self._region.seed,
            "time_compression": self._region.cloud.time_compression,
            "zones": list(self._region.cloud.settings.zones),
            "epoch": self._region.feed.epoch,
            "routes": sorted(f"{method} /_local/{path}" for method, path in self._routes),
        }

    def _events(self, request: Request) -> Any:
        after = request.args.get("after", 0, type=int)
        timeout_seconds = request.args.get("timeout_seconds", 0.0, type=float)
        self._region.advance()
        page = self._region.feed.read(
            max(0, after), timeout_seconds=min(max(0.0, timeout_seconds), _LONGEST_POLL_SECONDS)
        )
        return {
            "epoch": page.epoch,
            "events": list(page.events),
            "next": page.next_sequence,
            "complete": page.complete,
        }

    def _instances(self, request: Request) -> Any:
        state = request.args.get("state")
        if state is not None and state not in tuple(InstanceState):
            raise _RefusedError(400, f"state: one of {', '.join(InstanceState)}")
        with self._region.at_now() as now:
            # The position belongs to the list: events above it are not in it yet.
            position = self._region.feed.last_sequence
            states = (InstanceState(state),) if state else ()
            return {
                "epoch": self._region.feed.epoch,
                "next": position,
                "instances": [
                    self._region.instance_document(instance, now)
                    for instance in self._region.cloud.instances(*states)
                ],
            }

    def _costs(self, _: Request) -> Any:
        with self._region.at_now() as now:
            return self._region.costs_document(now)

    def _interrupt(self, request: Request) -> Any:
        document = _body(request)
        with self._region.at_now() as now:
            instance = self._pick(document, market=Market.SPOT)
            self._region.cloud.interrupt(now, [instance.instance_id])
            return self._shown(instance.instance_id, now)

    def _kill_host(self, request: Request) -> Any:
        document = _body(request)
        with self._region.at_now() as now:
            instance = self._pick(document)
            self._region.cloud.terminate(now, [instance.instance_id], reason=_HARDWARE_FAILURE)
            return self._shown(instance.instance_id, now)

    def _set_stock(self, request: Request) -> Any:
        document = _body(request)
        instance_type = str(document.get("instance_type"))
        zone = str(document.get("zone"))
        cloud = self._region.cloud
        if instance_type not in INSTANCE_TYPES:
            raise _RefusedError(400, f"instance_type: one of {', '.join(INSTANCE_TYPES)}")
        if zone not in cloud.settings.zones:
            raise _RefusedError(400, f"zone: one of {', '.join(cloud.settings.zones)}")
        with self._region.at_now() as now:
            if "spot_in_stock" in document:
                in_stock = bool(document["spot_in_stock"])
                cloud.set_spot_stock(now, instance_type, zone, in_stock=in_stock)
            if "on_demand_limit" in document or "spot_limit" in document:
                cloud.set_pool_limits(
                    now,
                    instance_type,
                    zone,
                    on_demand_limit=document.get("on_demand_limit"),
                    spot_limit=document.get("spot_limit"),
                )
            return {market.value: cloud.has_stock(instance_type, zone, market) for market in Market}

    def _add_fault(self, request: Request) -> Any:
        try:
            self._faults.add(_body(request))
        except ValueError as error:
            raise _RefusedError(400, str(error)) from error
        return {"faults": self._faults.waiting()}

    def _clear_faults(self, _: Request) -> Any:
        self._faults.clear()
        return {"faults": []}

    def _shown(self, instance_id: str, now: float) -> Any:
        instance = self._region.cloud.instance(instance_id)
        return {"instance": self._region.instance_document(instance, now)}

    def _pick(self, document: Mapping[str, Any], market: Market | None = None) -> Instance:
        """The instance named, or the oldest running one of the tier named."""
        wanted_id, tier = document.get("instance_id"), document.get("tier")
        if isinstance(wanted_id, str):
            candidates = [self._region.cloud.instance(wanted_id)]
        elif isinstance(tier, str):
            running = self._region.cloud.instances(InstanceState.RUNNING)
            candidates = [i for i in running if self._region.tier_of(i) == tier]
        else:
            raise _RefusedError(400, "instance_id or tier is needed")
        for instance in candidates:
            fresh = instance.interruption_notice_time is None
            if instance.is_alive and (market is None or (instance.market is market and fresh)):
                return instance
        kind = "a Spot instance without a notice" if market else "alive"
        raise _RefusedError(409, f"{wanted_id or f'no instance of tier {tier}'} is not {kind}")


def _unknown_route(request: Request) -> Any:
    raise _RefusedError(404, f"no {request.method} {request.path}")


def _body(request: Request) -> Mapping[str, Any]:
    try:
        document = json.loads(request.get_data() or b"{}")
    except ValueError as error:
        raise _RefusedError(400, f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _RefusedError(400, "the body is not a JSON object")
    return document
