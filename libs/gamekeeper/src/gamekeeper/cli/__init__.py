"""The `gamekeeper` command line."""

from __future__ import annotations

from typing import Annotated

import typer

from gamekeeper.cli.ask import ask
from gamekeeper.cli.backups import backup, restore_command, verify_command
from gamekeeper.cli.capacity import decisions, override, tiers, why
from gamekeeper.cli.certificates import certs
from gamekeeper.cli.concepts import (
    world_concept,
    world_concepts,
    world_contradictions,
    world_facts,
    world_graph,
    world_path,
)
from gamekeeper.cli.embeddings import embeddings
from gamekeeper.cli.events import events
from gamekeeper.cli.failures import EXIT_CODES
from gamekeeper.cli.fleet import gpus
from gamekeeper.cli.lore import lore
from gamekeeper.cli.status import status
from gamekeeper.cli.subscriptions import (
    world_subscribe,
    world_subscription,
    world_unsubscribe,
)
from gamekeeper.cli.up import up
from gamekeeper.cli.world_context import world_context
from gamekeeper.cli.world_jobs import (
    world_archive,
    world_cancel,
    world_erase,
    world_export,
    world_fork,
    world_import,
    world_jobs,
    world_unarchive,
    world_watch,
)
from gamekeeper.cli.worlds import world

__all__ = ["app", "main"]

_EPILOG = (
    "Addresses: an option, else GAMEKEEPER_<SERVICE>_ADDRESS, else the run in GAMEKEEPER_DATA_DIR "
    "or the nearest .var directory, else 127.0.0.1:50061 to 50064.\n\nMutual TLS: the "
    "GAMEKEEPER_TLS_* files, as for the services.\n\nExit codes: "
    + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    + "."
)

app = typer.Typer(
    name="gamekeeper",
    help="The AI back end of a game: its tiers, its memory, and why it does what it does.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def root(
    context: typer.Context,
    *,
    gpu_metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of the metrics collector; of several side by side, with commas.",
        ),
    ] = None,
    autoscaler: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the autoscaler.")
    ] = None,
    ai_router: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the router.")
    ] = None,
    knowledge_base: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the knowledge base.")
    ] = None,
) -> None:
    """Keeps the addresses given for the command that follows."""
    context.obj = {
        "gpu_metrics": gpu_metrics,
        "autoscaler": autoscaler,
        "ai_router": ai_router,
        "knowledge_base": knowledge_base,
    }


app.command(
    "up",
    # Its options are the suite's own and go through as they are, --help included.
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)(up)
app.command("status")(status)
app.command("tiers")(tiers)
app.command("why")(why)
app.command("decisions")(decisions)
app.add_typer(override, name="override")
app.add_typer(gpus, name="gpus")
app.add_typer(lore, name="lore")
world.command("context")(world_context)
world.command("subscribe")(world_subscribe)
world.command("subscription")(world_subscription)
world.command("unsubscribe")(world_unsubscribe)
world.command("archive")(world_archive)
world.command("cancel")(world_cancel)
world.command("erase")(world_erase)
world.command("export")(world_export)
world.command("fork")(world_fork)
world.command("import")(world_import)
world.command("jobs")(world_jobs)
world.command("unarchive")(world_unarchive)
world.command("watch")(world_watch)
world.command("concepts")(world_concepts)
world.command("concept")(world_concept)
world.command("facts")(world_facts)
world.command("contradictions")(world_contradictions)
world.command("graph")(world_graph)
world.command("path")(world_path)
app.add_typer(world, name="world")
app.add_typer(embeddings, name="embeddings")
app.add_typer(events, name="events")
app.command("ask")(ask)
app.add_typer(certs, name="certs")
app.add_typer(backup, name="backup")
app.command("restore")(restore_command)
app.command("verify")(verify_command)


def main() -> None:
    """Runs the command line; ends the process."""
    app()
