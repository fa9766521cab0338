"""Ports that are chosen now and listened on in a moment."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from localsuite.ports import free_ports

GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")


@pytest.mark.skipif(not GIVEN.exists(), reason="Linux says which ports it gives by itself")
def test_they_are_none_that_the_kernel_gives_to_whoever_asks_for_any() -> None:
    lowest_given = int(GIVEN.read_text().split()[0])
    if lowest_given < 21_000:
        pytest.skip("this machine gives nearly all ports by itself")
    assert max(free_ports(100)) < lowest_given


def test_they_are_different_and_can_be_listened_on() -> None:
    ports = free_ports(100)
    assert len(set(ports)) == 100
    with contextlib.ExitStack() as listening:
        for port in ports:
            listener = listening.enter_context(socket.socket())
            listener.bind(("127.0.0.1", port))
            listener.listen()
