"""Commands about the embedding model of the knowledge base, and its change."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
)
from gaming.knowledge_base.v1 import embedding_models_pb2 as pb

__all__ = ["embeddings"]

embeddings = typer.Typer(
    help="The embedding model of the memory, and its change while it serves.",
    no_args_is_help=True,
)

# Finishing waits for statements under way and embeds the last rows.
_FINISH_TIMEOUT_SECONDS = 60.0


@embeddings.command("status")
def embeddings_status(
    context: typer.Context,
    *,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show which model answers, and how far a change of it is.

    Example:
      gamekeeper embeddings status
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: pb.GetEmbeddingChangeResponse) -> None:
        _render(session)(answer)
        offered = ", ".join(answer.offered_models)
        session.console.print(f"the server offers {escape(offered)}")

    session.show("knowledge_base", "GetEmbeddingChange", pb.GetEmbeddingChangeRequest(), render)


@embeddings.command("start")
def embeddings_start(
    context: typer.Context,
    *,
    model: Annotated[str, typer.Argument(help="One of those that `embeddings status` lists.")],
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Start a change to another model; calls are answered with the present one meanwhile.

    Example:
      gamekeeper embeddings start amazon.titan-embed-text-v2:0/1024
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = pb.StartEmbeddingChangeRequest(model=model, request_id=str(uuid.uuid4()))
    session.show("knowledge_base", "StartEmbeddingChange", request, _render(session))


@embeddings.command("pause")
def embeddings_pause(
    context: typer.Context,
    *,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Pause the filling of the new vectors.

    Example:
      gamekeeper embeddings pause
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = pb.PauseEmbeddingChangeRequest(request_id=str(uuid.uuid4()))
    session.show("knowledge_base", "PauseEmbeddingChange", request, _render(session))


@embeddings.command("resume")
def embeddings_resume(
    context: typer.Context,
    *,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Go on with the filling.

    Example:
      gamekeeper embeddings resume
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = pb.ResumeEmbeddingChangeRequest(request_id=str(uuid.uuid4()))
    session.show("knowledge_base", "ResumeEmbeddingChange", request, _render(session))


@embeddings.command("finish")
def embeddings_finish(
    context: typer.Context,
    *,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = _FINISH_TIMEOUT_SECONDS,
) -> None:
    """Let the new model answer from now on, and drop the old vectors.

    Example:
      gamekeeper embeddings finish
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = pb.FinishEmbeddingChangeRequest(request_id=str(uuid.uuid4()))
    session.show("knowledge_base", "FinishEmbeddingChange", request, _render(session))


@embeddings.command("cancel")
def embeddings_cancel(
    context: typer.Context,
    *,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = _FINISH_TIMEOUT_SECONDS,
) -> None:
    """Give the change up; the present model stays.

    Example:
      gamekeeper embeddings cancel
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = pb.CancelEmbeddingChangeRequest(request_id=str(uuid.uuid4()))
    session.show("knowledge_base", "CancelEmbeddingChange", request, _render(session))


def _render(session: Session) -> Callable[[Any], None]:
    def render(answer: Any) -> None:
        if answer.HasField("active"):
            active = answer.active
            session.console.print(f"{escape(active.name)} answers, {active.dimensions} dimensions")
        if not answer.HasField("change"):
            session.console.print("no change is under way")
            return
        change = answer.change
        paused = change.state == pb.EMBEDDING_MODEL_STATE_PAUSED
        session.console.print(
            f"{'paused: ' if paused else ''}changing to {escape(change.name)}, "
            f"{change.dimensions} dimensions: {_progress(change)}"
        )

    return render


def _progress(change: pb.EmbeddingModel) -> str:
    if not change.listed:
        return "finding the rows to fill"
    if not change.remaining_rows:
        return f"all {change.filled_rows:,} rows have their vector; finish it when you like"
    share = change.filled_rows / (change.filled_rows + change.remaining_rows)
    return f"{change.filled_rows:,} rows filled, {change.remaining_rows:,} to go ({share:.0%})"
