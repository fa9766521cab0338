"""TCP ports on 127.0.0.1: free ones, which a run uses, and who has one of them already."""

from __future__ import annotations

import contextlib
import random
import socket
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

__all__ = ["PortInUseError", "Ports", "choose_ports", "free_ports", "port_taken"]

_LOWEST = 20_000
_LEAST_CHOICE = 1_000
_DYNAMIC_PORTS_FROM = 49_152
"""Where IANA's dynamic ports begin (RFC 6335); Linux hands out others and says which."""


class PortInUseError(Exception):
    """A port the run needs is taken; the text names it, its user where known, and the option."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one run, in the order of their distance from the base."""

    gpu_metrics: int
    autoscaler: int
    ai_router: int
    knowledge_base: int
    postgres: int
    aws: int
    fleet: int

    def address(self, name: str) -> str:
        """Returns `host:port` of a component, for example `autoscaler`."""
        return f"127.0.0.1:{getattr(self, name)}"


def choose_ports(base: int) -> Ports:
    """Returns the ports after `base`, or free ones for base 0.

    Raises:
        PortInUseError: one of them is taken.
    """
    names = [field.name for field in fields(Ports)]
    if base == 0:
        return Ports(*free_ports(len(names)))
    ports = {name: base + offset for offset, name in enumerate(names, start=1)}
    for name, port in ports.items():
        if port_taken(port):
            raise PortInUseError(
                f"port {port} ({name}) is in use{_user_of(port)}; stop that, or start with "
                f"--port-base {_suggestion(base, len(names))}"
            )
    return Ports(**ports)


def free_ports(count: int) -> list[int]:
    """Returns different ports that nobody listens on.

    They lie below those that the kernel gives to whoever asks for any port: one of these would now
    and then be somebody else's by the time that it is listened on.
    """
    draw = random.SystemRandom()
    above = _first_given_port()
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            roomy = above - _LOWEST >= _LEAST_CHOICE
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", draw.randrange(_LOWEST, above) if roomy else 0))
                ports.append(int(probe.getsockname()[1]))
        return ports


def _first_given_port() -> int:
    try:
        told = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        return _DYNAMIC_PORTS_FROM
    return int(told.split()[0])


def port_taken(port: int) -> bool:
    """Returns whether `port` cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _user_of(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return ""
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN
        if listens and connection.laddr and connection.laddr.port == port and connection.pid:
            with contextlib.suppress(psutil.Error):
                name = psutil.Process(connection.pid).name()
                return f" by process {connection.pid} ({name})"
    return ""


def _suggestion(base: int, count: int) -> int:
    for candidate in range(base + 1000, 64_000, 1000):
        if not any(port_taken(candidate + offset) for offset in range(1, count + 1)):
            return candidate
    return 0
