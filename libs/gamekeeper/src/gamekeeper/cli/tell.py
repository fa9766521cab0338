"""`gamekeeper ask --world`: one turn of a world's storyteller."""

from __future__ import annotations

import sys

import grpc
from rich.console import Console
from rich.markup import escape

from gamekeeper.call_errors import CallFailed
from gamekeeper.cli.failures import EXIT_NOT_FOUND, EXIT_USAGE
from gamekeeper.cli.session import Session, fail, message_json
from gamekeeper.cli.tiers import TierName, tier_number
from gamekeeper.client import GamekeeperClient
from gamekeeper.story_context import Citation, CitationKind
from gamekeeper.storyteller import ContextReady, StoryPiece, StorytellerPolicy, StoryTurn
from gaming.knowledge_base.v1 import worlds_pb2

__all__ = ["tell"]


def tell(
    session: Session, world: str, action: str, *, tier: TierName | None, output_tokens: int
) -> None:
    """Tells one turn in the world of that name, which must exist, and prints it as it grows."""
    if session.grpcurl:
        fail(
            "a storyteller's turn is several calls, which one grpcurl command cannot be",
            advice="see them one by one: gamekeeper world recall, lore search, ask and world "
            "record, each with --grpcurl",
            exit_code=EXIT_USAGE,
        )
    policy = StorytellerPolicy(
        tier=tier_number(tier),
        max_output_tokens=output_tokens,
        turn_seconds=session.timeout_seconds,
    )
    try:
        session.run("knowledge_base", _tell(session, world, action, policy))
    except CallFailed as failure:
        if isinstance(failure.__cause__, grpc.aio.AioRpcError):
            session.fail_call(failure.__cause__, failure.service)
        raise


async def _tell(session: Session, world: str, action: str, policy: StorytellerPolicy) -> None:
    async with GamekeeperClient(session.addresses, session.channel) as client:
        try:
            found = await client.knowledge_base.GetWorld(
                worlds_pb2.GetWorldRequest(name=world), timeout=10.0
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            fail(
                f"there is no world named {world!r}",
                advice=f"make it with: gamekeeper world create {world!r}",
                exit_code=EXIT_NOT_FOUND,
            )
        storyteller = client.storyteller(found.world.world_id, policy)
        async for step in storyteller.stream(action):
            if session.as_json:
                if isinstance(step, StoryTurn):
                    session.emit_json(_document(step))
            elif isinstance(step, ContextReady):
                _say_memories(step.context.citations)
            elif isinstance(step, StoryPiece):
                sys.stdout.write(step.text)
                sys.stdout.flush()
            else:
                sys.stdout.write("\n")
                sys.stdout.flush()
                _say_losses(step)


def _document(turn: StoryTurn) -> dict[str, object]:
    return {
        "turnId": turn.turn_id,
        "text": turn.text,
        "citations": [
            {
                "label": each.label,
                "kind": each.kind.value,
                "source": each.source,
                "text": each.text,
            }
            for each in turn.citations
        ],
        "route": message_json(turn.route),
        "end": message_json(turn.end),
        "recorded": turn.recorded,
        "eventIds": list(turn.event_ids),
        "degradations": [loss.name for loss in turn.degradations],
    }


def _say_memories(citations: tuple[Citation, ...]) -> None:
    for each in citations:
        mark = "remembers" if each.kind is CitationKind.MEMORY else "knows"
        source = "" if each.kind is CitationKind.MEMORY else f" ({each.source})"
        flat = " ".join(each.text.split())
        _aside(f"{mark} [{each.label}] {flat[:100]}{source}")


def _say_losses(turn: StoryTurn) -> None:
    for loss in turn.degradations:
        _aside(f"without: {loss.value}")


def _aside(text: str) -> None:
    Console(stderr=True, highlight=False).print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)
