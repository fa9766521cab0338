"""Where the services are: as told, as a local run says, or their usual ports on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DEFAULT_ADDRESSES", "SERVICES", "Addresses", "bus_of_run", "find_addresses"]

SERVICES = ("gpu_metrics", "autoscaler", "ai_router", "knowledge_base")

DEFAULT_ADDRESSES: Mapping[str, str] = {
    "gpu_metrics": "127.0.0.1:50061",
    "autoscaler": "127.0.0.1:50062",
    "ai_router": "127.0.0.1:50063",
    "knowledge_base": "127.0.0.1:50064",
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """The address (`host:port`) of each service, and where it was learned.

    Where a service runs side by side with another of its kind, several separated by commas.
    """

    gpu_metrics: str = DEFAULT_ADDRESSES["gpu_metrics"]
    autoscaler: str = DEFAULT_ADDRESSES["autoscaler"]
    ai_router: str = DEFAULT_ADDRESSES["ai_router"]
    knowledge_base: str = DEFAULT_ADDRESSES["knowledge_base"]
    sources: Mapping[str, str] = field(default_factory=dict)

    def of(self, service: str) -> str:
        """Returns the address of a service by name, for example `ai_router`: the first of several.

        Raises:
            ValueError: no such service.
        """
        return self.every(service)[0]

    def every(self, service: str) -> tuple[str, ...]:
        """Returns all addresses of a service by name, at least one.

        Raises:
            ValueError: no such service.
        """
        if service not in SERVICES:
            raise ValueError(f"{service!r} is none of {', '.join(SERVICES)}")
        told = str(getattr(self, service))
        return tuple(part for each in told.split(",") if (part := each.strip())) or (told,)


def find_addresses(
    *,
    told: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Addresses:
    """Returns each service's address from the first of these that knows it.

    1. `told`, for example command-line options.
    2. The environment: GAMEKEEPER_AUTOSCALER_ADDRESS and the like.
    3. `addresses.json` of a local run: in GAMEKEEPER_DATA_DIR, else in the nearest `.var` in
       `directory` (default: the present one) or above it.
    4. The usual ports on this machine, 50061 to 50064.

    A file that cannot be read is as good as none.
    """
    environ = os.environ if environ is None else environ
    run = _addresses_of_run(environ, directory or Path.cwd())
    found: dict[str, str] = {}
    sources: dict[str, str] = {}
    for service in SERVICES:
        variable = f"GAMEKEEPER_{service.upper()}_ADDRESS"
        for source, address in (
            ("told", (told or {}).get(service)),
            (variable, environ.get(variable)),
            ("local run", run.get(service)),
            ("default", DEFAULT_ADDRESSES[service]),
        ):
            if address:
                found[service], sources[service] = address, source
                break
    return Addresses(
        gpu_metrics=found["gpu_metrics"],
        autoscaler=found["autoscaler"],
        ai_router=found["ai_router"],
        knowledge_base=found["knowledge_base"],
        sources=sources,
    )


def bus_of_run(
    *, environ: Mapping[str, str] | None = None, directory: Path | None = None
) -> dict[str, str]:
    """Returns the variables that lead to the event bus of a local run; empty where none is up.

    The run is found as `find_addresses` finds it.
    """
    document = _run_document(os.environ if environ is None else environ, directory or Path.cwd())
    variables = document.get("event_bus")
    if not isinstance(variables, dict):
        return {}
    return {str(name): value for name, value in variables.items() if isinstance(value, str)}


def _addresses_of_run(environ: Mapping[str, str], directory: Path) -> dict[str, str]:
    document = _run_document(environ, directory)
    return {
        service: address
        for service in SERVICES
        if isinstance(address := document.get(service), str)
    }


def _run_document(environ: Mapping[str, str], directory: Path) -> dict[str, object]:
    named = environ.get("GAMEKEEPER_DATA_DIR")
    candidates = (
        [Path(named).expanduser()]
        if named
        else [parent / ".var" for parent in (directory, *directory.parents)]
    )
    for candidate in candidates:
        try:
            document = json.loads((candidate / "addresses.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(document, dict):
            return document
    return {}
