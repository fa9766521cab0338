"""A network of its own, in the kernel, that loses packets at random.

The packets are those of real TCP connections over the loopback device of a new network namespace,
dropped on their way in by an nftables rule, so the kernel retransmits, backs off and gives up as on
a real network. The rule is what `nft add rule ip loss input numgen random mod 20 0 drop` makes; it
is sent to the kernel here because the command is not installed everywhere. Needs root, or a kernel
that lets others make user namespaces.

Run as a program inside the namespace, this module reads a modulus a line and drops every packet
with a chance of one in so many; 0 drops none.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

__all__ = ["LossyNetwork", "NoNamespaceError", "lossy_network"]

_START_SECONDS = 20.0

# From linux/netlink.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
_NETLINK_NETFILTER = 12
_REQUEST, _ACKNOWLEDGE, _CREATE = 0x1, 0x4, 0x400
_ERROR_MESSAGE = 0x2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFTABLES = 10
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_IPV4, _LOCAL_IN, _NESTED = 2, 1, 0x8000
_NUMGEN_RANDOM, _EQUAL, _DROP = 1, 0, 0
_REGISTER, _VERDICT_REGISTER = 1, 0
# From linux/sockios.h and linux/if.h.
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1


class NoNamespaceError(Exception):
    """This machine or account cannot make a network namespace with such a rule."""


@dataclass(slots=True)
class LossyNetwork:
    """A network namespace and the process that keeps it.

    Attributes:
        prefix: put before a command to run it inside.
    """

    keeper: asyncio.subprocess.Process
    prefix: tuple[str, ...]

    async def lose_one_in(self, modulus: int) -> None:
        """Drops a packet with a chance of one in `modulus` from now on; none for 0.

        Raises:
            NoNamespaceError: the kernel refused.
        """
        if self.keeper.stdin is None or self.keeper.stdout is None:
            raise NoNamespaceError("the keeper has no pipes")
        self.keeper.stdin.write(f"{modulus}\n".encode())
        async with asyncio.timeout(_START_SECONDS):
            answer = (await self.keeper.stdout.readline()).decode().strip()
        if answer != "done":
            raise NoNamespaceError(answer or "the kernel lets this account make no namespace")

    async def retransmitted_segments(self) -> int:
        """Returns how many TCP segments were sent again in this network."""
        reading = await asyncio.create_subprocess_exec(
            *(*self.prefix, "cat", "/proc/net/snmp"), stdout=asyncio.subprocess.PIPE
        )
        content, _ = await asyncio.wait_for(reading.communicate(), _START_SECONDS)
        names, values = (line.split() for line in content.decode().splitlines() if "Tcp:" in line)
        return int(values[names.index("RetransSegs")])


@asynccontextmanager
async def lossy_network() -> AsyncIterator[LossyNetwork]:
    """Makes a namespace with only a loopback device; it goes with the last process in it.

    Raises:
        NoNamespaceError: when it cannot be made here.
    """
    is_root = os.geteuid() == 0
    unshare = ["unshare", "--net"] if is_root else ["unshare", "--user", "--map-root-user", "--net"]
    try:
        keeper = await asyncio.create_subprocess_exec(
            *(*unshare, "--", sys.executable, __file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        raise NoNamespaceError("there is no unshare command") from None
    enter = ["nsenter", f"--target={keeper.pid}", "--net"]
    if not is_root:
        enter += ["--user", "--preserve-credentials"]
    network = LossyNetwork(keeper, (*enter, "--"))
    try:
        await network.lose_one_in(0)
        yield network
    finally:
        if keeper.returncode is None:
            keeper.kill()
        await keeper.communicate()


def _attribute(kind: int, content: bytes) -> bytes:
    header = struct.pack("=HH", len(content) + 4, kind)
    return header + content + bytes(-len(content) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value))


def _name(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nested(kind: int, *contents: bytes) -> bytes:
    return _attribute(kind | _NESTED, b"".join(contents))


def _expression(name: str, *contents: bytes) -> bytes:
    return _nested(1, _name(1, name), _nested(2, *contents))


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    is_batch = kind in (_BATCH_BEGIN, _BATCH_END)
    family, resource = (0, _NFTABLES) if is_batch else (_IPV4, 0)
    content = struct.pack("!BBH", family, 0, resource) + body
    return struct.pack("=IHHII", len(content) + 16, kind, flags, sequence, 0) + content


def _drop_one_in(modulus: int) -> bytes:
    return b"".join(
        (
            _name(1, "loss"),
            _name(2, "input"),
            _nested(
                4,
                _expression(
                    "numgen",
                    _number(1, _REGISTER),
                    _number(2, modulus),
                    _number(3, _NUMGEN_RANDOM),
                    _number(4, 0),
                ),
                _expression(
                    "cmp",
                    _number(1, _REGISTER),
                    _number(2, _EQUAL),
                    _nested(3, _attribute(1, bytes(4))),
                ),
                _expression(
                    "immediate",
                    _number(1, _VERDICT_REGISTER),
                    _nested(2, _nested(2, _number(1, _DROP))),
                ),
            ),
        )
    )


def _apply(changes: list[tuple[int, bytes]]) -> None:
    """Makes the changes, all or none.

    Raises:
        OSError: the kernel refused one.
    """
    batch = _message(_BATCH_BEGIN, _REQUEST, 0, b"")
    for sequence, (kind, body) in enumerate(changes, start=1):
        flags = _REQUEST | _ACKNOWLEDGE | _CREATE
        batch += _message(_NFTABLES << 8 | kind, flags, sequence, body)
    batch += _message(_BATCH_END, _REQUEST, len(changes) + 1, b"")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(5)
        kernel.send(batch)
        answered = 0
        while answered < len(changes):
            answers = kernel.recv(65536)
            while answers:
                length, kind = struct.unpack_from("=IH", answers)
                if kind == _ERROR_MESSAGE:
                    (error,) = struct.unpack_from("=i", answers, 16)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    answered += 1
                answers = answers[length + -length % 4 :]


def _raise_loopback() -> None:
    with socket.socket() as anything:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(anything, _GET_FLAGS, request))[1]
        fcntl.ioctl(anything, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def _keep() -> None:
    table = _name(1, "loss")
    hook = _nested(4, _number(1, _LOCAL_IN), _number(2, 0))
    chain = _name(1, "loss") + _name(3, "input") + hook + _name(7, "filter")
    _raise_loopback()
    for line in sys.stdin:
        modulus = int(line)
        changes = [(_NEW_TABLE, table), (_DELETE_TABLE, table)]
        if modulus:
            changes += [(_NEW_TABLE, table), (_NEW_CHAIN, chain)]
            changes += [(_NEW_RULE, _drop_one_in(modulus))]
        try:
            _apply(changes)
        except OSError as error:
            print(f"nftables: {error.strerror}", flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    _keep()
