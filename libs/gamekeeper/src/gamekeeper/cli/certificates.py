"""`gamekeeper certs`: certificates for a suite under development."""

from __future__ import annotations

import getpass
import re
import shlex
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.session import fail
from servicekit.development_certificates import (
    LOOPBACK_HOSTS,
    AuthorityUnusable,
    DevelopmentAuthority,
    EnsuredCertificate,
)

__all__ = ["certs"]

_SERVICES = ("gpu-metrics", "autoscaler", "ai-router", "knowledge-base")
_NOT_IN_AN_IDENTITY = re.compile(r"[^A-Za-z0-9._-]+")

certs = typer.Typer(
    name="certs", help="Certificates for a suite under development.", no_args_is_help=True
)


@certs.callback()
def root() -> None:
    """Makes `dev` a command of a group, where production's may join it."""


@certs.command("dev")
def dev(
    directory: Annotated[Path, typer.Argument(help="Where the files are, or shall be.")],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address by which services are called, beside loopback."),
    ] = None,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST_ID",
            help="A GPU host whose agent gets a certificate; default: this machine's name.",
        ),
    ] = None,
    game: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A game service that gets one; default: game."),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=825, help="How long new certificates are valid.")
    ] = 30,
) -> None:
    """Make a development authority and certificates for the suite, and print the settings.

    There is one certificate for each service, for you as operator, for game services and for GPU
    agents. Run it again whenever you like: it keeps the authority and every certificate with more
    than a third of its time left, and renews the others in place. Running services take renewed
    files over by themselves.

    Whoever has the files can do everything in a suite that trusts them: keep them out of version
    control, and let production bring its own.

    Examples:
      gamekeeper certs dev certs

      gamekeeper certs dev certs --host gpu-7.lan --agent gpu-7 --agent gpu-8
    """
    hosts = (*LOOPBACK_HOSTS, *(host or ()))
    identities = [
        *(f"suite-service/{name}" for name in _SERVICES),
        f"operator/{_NOT_IN_AN_IDENTITY.sub('-', _user())}",
        *(f"game-service/{name}" for name in game or ("game",)),
        *(f"gpu-agent/{name}" for name in agent or (socket.gethostname(),)),
    ]
    try:
        authority = DevelopmentAuthority.of_directory(
            directory, now=datetime.now(UTC), valid_days=days
        )
        made = [authority.ensure(each, directory.resolve(), hosts=hosts) for each in identities]
    except (ValueError, AuthorityUnusable) as error:
        fail(str(error), exit_code=EXIT_USAGE)
    except OSError as error:
        fail(f"{directory} cannot be written: {error.strerror}", exit_code=EXIT_USAGE)
    _show(made)
    for line in _settings(made):
        typer.echo(line)


def _show(made: Iterable[EnsuredCertificate]) -> None:
    table = Table(box=None)
    for heading in ("identity", "certificate", "valid until"):
        table.add_column(heading)
    for each in made:
        until = each.valid_until.astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(each.identity, each.outcome.value, until)
    # Beside the settings, which alone go to standard output.
    Console(stderr=True, highlight=False).print(table)


def _settings(made: Iterable[EnsuredCertificate]) -> Iterable[str]:
    for each in made:
        yield f"# {each.identity}"
        for variable, path in (
            ("CERTIFICATE", each.files.certificate),
            ("KEY", each.files.key),
            ("CA", each.files.authority),
        ):
            yield f"export GAMEKEEPER_TLS_{variable}_FILE={shlex.quote(str(path))}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return "operator"
