"""`/_local` of the simulated fleet, on loopback: what there is, and what a test makes happen.

GET   /_local                                             what this is; answers once the fleet runs
GET   /_local/servers                                     every model server, its phase and load
POST  /_local/kill?server_id=ID | tier=TIER [&restart=false]   a model server dies at once
"""

import dataclasses

from aiohttp import web

from fleetsim.vllm_http import ServerStatus
from localsuite.fleet.fleet import NoSuchServerError, SimulatedFleet

__all__ = ["control_application"]


def control_application(fleet: SimulatedFleet) -> web.Application:
    """Return the control API; refusals are `{"error": text}`."""

    async def describe(_: web.Request) -> web.Response:
        servers = fleet.servers()
        return web.json_response(
            {"simulation": True, "hosts": fleet.host_count, "servers": len(servers)}
        )

    async def list_servers(_: web.Request) -> web.Response:
        return web.json_response({"servers": [_document(server) for server in fleet.servers()]})

    async def kill(request: web.Request) -> web.Response:
        try:
            killed = await fleet.kill_server(
                server_id=request.query.get("server_id"),
                tier=request.query.get("tier"),
                restart=request.query.get("restart", "true").lower() != "false",
            )
        except NoSuchServerError as error:
            return web.json_response({"error": str(error)}, status=404)
        return web.json_response({"killed": _document(killed)})

    application = web.Application()
    application.router.add_get("/_local", describe)
    application.router.add_get("/_local/servers", list_servers)
    application.router.add_post("/_local/kill", kill)
    return application


def _document(server: ServerStatus) -> dict[str, object]:
    return {**dataclasses.asdict(server), "phase": server.phase.value}
