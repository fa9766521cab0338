"""What a run can be told on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT_PORT_BASE", "RunOptions", "parse_options", "repository_root"]

DEFAULT_PORT_BASE = 50060
DEFAULT_DURATION_SECONDS = 120.0
DEFAULT_PLAYERS = 1000

_EPILOG = """\
examples:
  make run                                         an evening of 1,000 players in two minutes
  make run ARGS="--once --players 200 --seed 7"    a small one that ends after the report
  make run ARGS="--no-traffic"                     the services alone, for your own calls
  make run ARGS="--lore ~/my-world"                with your own documents (Markdown)
  make run ARGS="--port-base 51000"                when a port is in use

exit codes: 0 all held · 1 something did not hold, see the report · 2 wrong option, port in use,
or data directory in use · 130 stopped before the report of --once
"""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One run of the suite; the defaults are those of the command line."""

    data_directory: Path
    lore_directory: Path
    once: bool = False
    players: int = DEFAULT_PLAYERS
    seed: int = 1
    duration_seconds: float = DEFAULT_DURATION_SECONDS
    traffic: bool = True
    plain: bool = False
    port_base: int = DEFAULT_PORT_BASE


def repository_root() -> Path:
    """The directory of the checkout this package runs from.

    Raises FileNotFoundError when the package was installed without one.
    """
    for candidate in (Path(__file__).resolve(), Path.cwd() / "here"):
        for parent in candidate.parents:
            if (parent / "services" / "knowledge_base" / "lore").is_dir():
                return parent
    raise FileNotFoundError(
        "the repository was not found from here; name --data-dir and --lore, or run inside it"
    )


def parse_options(arguments: Sequence[str]) -> RunOptions:
    """Returns the run asked for; prints help or what is wrong and raises SystemExit otherwise."""
    parser = argparse.ArgumentParser(
        prog="gamekeeper up",
        description="Starts the whole suite on this machine and plays an evening of a game on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end after the report")
    parser.add_argument(
        "--players",
        type=_whole(0, 20_000),
        default=DEFAULT_PLAYERS,
        metavar="N",
        help="players online at the peak (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=_whole(0, 2**31), default=1, metavar="N", help="same seed, same evening"
    )
    parser.add_argument(
        "--duration-seconds",
        type=_number(20.0, 3600.0),
        default=DEFAULT_DURATION_SECONDS,
        metavar="S",
        help="how long the hour's evening takes here, 20 to 3600; the time factor is 3600 over "
        "this (default %(default)g: factor 30)",
    )
    parser.add_argument(
        "--compression",
        type=_number(1.0, 180.0),
        metavar="FACTOR",
        help="the time factor itself, instead of --duration-seconds",
    )
    parser.add_argument(
        "--no-traffic", action="store_true", help="start everything, play no evening"
    )
    parser.add_argument(
        "--lore", type=Path, metavar="DIR", help="Markdown documents to ingest instead of ours"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="what is kept between runs (default .var)"
    )
    parser.add_argument(
        "--port-base",
        type=_whole(0, 65_000),
        default=DEFAULT_PORT_BASE,
        metavar="PORT",
        help="the services listen on the ports after this one; 0 takes free ones "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--plain", action="store_true", help="lines instead of the live view, also for logs"
    )
    given = parser.parse_args(arguments)
    if given.compression is not None:
        given.duration_seconds = 3600.0 / given.compression
    return RunOptions(
        data_directory=_data_directory(parser, given.data_dir),
        lore_directory=_lore_directory(parser, given.lore),
        once=given.once,
        players=given.players,
        seed=given.seed,
        duration_seconds=given.duration_seconds,
        traffic=not given.no_traffic,
        plain=given.plain,
        port_base=given.port_base,
    )


def _data_directory(parser: argparse.ArgumentParser, given: Path | None) -> Path:
    if given is not None:
        return given.expanduser().resolve()
    try:
        return repository_root() / ".var"
    except FileNotFoundError as error:
        parser.error(str(error))


def _lore_directory(parser: argparse.ArgumentParser, given: Path | None) -> Path:
    if given is None:
        try:
            return repository_root() / "services" / "knowledge_base" / "lore"
        except FileNotFoundError as error:
            parser.error(str(error))
    directory = given.expanduser().resolve()
    if not directory.is_dir():
        parser.error(f"argument --lore: {directory} is not a directory")
    if not any(directory.rglob("*.md")):
        parser.error(f"argument --lore: {directory} holds no Markdown file (*.md)")
    return directory


class _whole:  # noqa: N801  # reads as a type in the parser's messages and in the calls above
    """A whole number within bounds, for argparse."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def __call__(self, text: str) -> int:
        try:
            value = int(text.replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not self.least <= value <= self.most:
            raise argparse.ArgumentTypeError(f"{value} is not within {self.least}..{self.most}")
        return value


class _number:  # noqa: N801  # as above
    """A number within bounds, for argparse."""

    def __init__(self, least: float, most: float) -> None:
        self.least, self.most = least, most

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not self.least <= value <= self.most:
            raise argparse.ArgumentTypeError(
                f"{value:g} is not within {self.least:g}..{self.most:g}"
            )
        return value
