"""Commands about lore: ingest and search."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.status import Status

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.grpcurl import grpcurl_words
from gamekeeper.cli.lore_progress import IngestProgress
from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    fail,
    message_json,
    method_name,
)
from gamekeeper.cli.wording import moment
from gamekeeper.lore import (
    INGEST_DEADLINE_SECONDS,
    DocumentTooLargeError,
    ingest_directory,
    markdown_files,
)
from gaming.knowledge_base.v1 import lore_pb2

__all__ = ["lore"]

lore = typer.Typer(help="Ingest and search documents of lore.", no_args_is_help=True)

_STATES = {
    lore_pb2.INGEST_STATE_UNCHANGED: "unchanged",
    lore_pb2.INGEST_STATE_STORED: "stored",
    lore_pb2.INGEST_STATE_REMOVED: "removed",
}


@lore.command("ingest")
def lore_ingest(
    context: typer.Context,
    *,
    directory: Annotated[
        Path,
        typer.Argument(exists=True, file_okay=False, help="Directory with Markdown files."),
    ],
    collection: Annotated[str, typer.Option(help="Names the set of documents.")] = "lore",
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Keep documents that are not there any more.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = INGEST_DEADLINE_SECONDS,
) -> None:
    """Ingest the Markdown files of a directory; unchanged ones cost nothing.

    With -o json, prints one JSON object per document and one for the summary, a line each.

    Examples:
      gamekeeper lore ingest services/knowledge_base/lore

      gamekeeper lore ingest ~/my-world --collection my-world
    """
    session = Session.of(context, output, grpcurl, timeout)
    if not markdown_files(directory):
        fail(f"{directory} holds no Markdown file (*.md)", exit_code=EXIT_USAGE)
    if grpcurl:
        _print_ingest_grpcurl(session, directory, collection, remove_missing=not keep_missing)
        return

    progress = IngestProgress(
        {
            path.relative_to(directory).as_posix(): path.stat().st_size
            for path in markdown_files(directory)
        }
    )
    started = time.monotonic()
    # Only a terminal shows it; a file gets the lines of the documents alone.
    live = Status("", console=Console(stderr=True, highlight=False))

    def hear(update: lore_pb2.IngestDocumentsResponse) -> None:
        if session.as_json:
            session.emit_json(message_json(update), one_line=True)
            return
        progress.hear(update)
        words = progress.words(time.monotonic() - started)
        now = f"{progress.count} documents, {progress.embedded} passages embedded"
        live.update(", ".join(filter(None, [now, words])))
        if update.HasField("document"):
            each = update.document
            note = f"{each.chunks} passages, {each.embedded_chunks} embedded"
            session.console.print(
                f"{progress.count}  {_STATES.get(each.state, '?'):<10} {escape(each.path)}  "
                f"[dim]{', '.join(filter(None, [note, words]))}[/dim]",
                soft_wrap=True,
            )
        elif update.HasField("summary"):
            total = update.summary
            session.console.print(
                f"{total.stored_documents} stored, {total.unchanged_documents} unchanged, "
                f"{total.removed_documents} removed; {total.chunks} passages in all, "
                f"{total.embedded_chunks} embedded, in {time.monotonic() - started:.1f} s"
            )

    try:
        if not session.as_json:
            live.start()
        session.stream(
            "knowledge_base",
            lambda stub: ingest_directory(
                stub,
                directory,
                collection=collection,
                remove_missing=not keep_missing,
                progress=not session.as_json,
                timeout_seconds=timeout,
            ),
            hear,
        )
    except (DocumentTooLargeError, OSError) as error:
        fail(str(error), exit_code=EXIT_USAGE)
    finally:
        live.stop()


@lore.command("show")
def lore_show(
    context: typer.Context,
    *,
    path: Annotated[str, typer.Argument(help="The document's path in its collection.")],
    collection: Annotated[str, typer.Option(help="Its collection.")] = "lore",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show a document: its front matter, and the concepts that it speaks of.

    Example:
      gamekeeper lore show 03-factions.md
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: lore_pb2.GetDocumentResponse) -> None:
        each = answer.document
        session.console.print(
            f"[bold]{escape(each.title)}[/bold]  [dim]{escape(each.collection)}/"
            f"{escape(each.path)}, {each.chunks} passages, ingested "
            f"{moment(each.ingest_time)}[/dim]",
            soft_wrap=True,
        )
        for key, value in sorted(message_json(each)["frontMatter"].items()):
            if key != "concepts":
                session.console.print(f"{escape(key)}: {escape(str(value))}", soft_wrap=True)
        if answer.concepts:
            session.console.print(f"speaks of {escape(', '.join(answer.concepts))}", soft_wrap=True)

    request = lore_pb2.GetDocumentRequest(collection=collection, path=path)
    session.show("knowledge_base", "GetDocument", request, render)


@lore.command("concept")
def lore_concept(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="The concept's name.")],
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most this many.")] = 20,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the passages that speak of a concept which a document declares.

    Example:
      gamekeeper lore concept "The Ledger House"
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: lore_pb2.ListConceptPassagesResponse) -> None:
        if not answer.passages:
            session.console.print("no passage speaks of it")
        for passage in answer.passages:
            session.console.print(
                f"[bold]{escape(citation_words(passage.citation))}[/bold]", soft_wrap=True
            )
            session.console.print(Padding(escape(_excerpt(passage.text)), (0, 0, 1, 3)))

    request = lore_pb2.ListConceptPassagesRequest(concept=name, page_size=limit)
    session.show("knowledge_base", "ListConceptPassages", request, render)


@lore.command("search")
def lore_search(
    context: typer.Context,
    *,
    query: Annotated[str, typer.Argument(help="What is looked for, in plain words.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most this many.")] = 5,
    mode: Annotated[
        str, typer.Option(help="hybrid, vector (meaning only) or keyword (words only).")
    ] = "hybrid",
    collection: Annotated[
        list[str] | None, typer.Option(help="Only this collection; may be repeated.")
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Find the passages that answer a question, with where they stand.

    Examples:
      gamekeeper lore search "what may never be lent"

      gamekeeper lore search "ferry" --mode keyword --limit 3 -o json
    """
    session = Session.of(context, output, grpcurl, timeout)
    modes = {
        "hybrid": lore_pb2.SEARCH_MODE_HYBRID,
        "vector": lore_pb2.SEARCH_MODE_VECTOR,
        "keyword": lore_pb2.SEARCH_MODE_KEYWORD,
    }
    if mode not in modes:
        fail(f"--mode {mode} is none of {', '.join(modes)}", exit_code=EXIT_USAGE)
    request = lore_pb2.SearchRequest(
        query=query, limit=limit, mode=modes[mode], collections=collection or []
    )

    def render(answer: lore_pb2.SearchResponse) -> None:
        if not answer.results:
            session.console.print("nothing was found")
        for number, result in enumerate(answer.results, start=1):
            session.console.print(
                f"[bold]{number}. {escape(citation_words(result.citation))}[/bold]  "
                f"[dim]score {result.score:.3f}[/dim]",
                soft_wrap=True,
            )
            if result.concepts:
                about = escape(", ".join(result.concepts))
                session.console.print(f"   [dim]speaks of {about}[/dim]", soft_wrap=True)
            session.console.print(Padding(escape(_excerpt(result.text)), (0, 0, 1, 3)))

    session.show("knowledge_base", "Search", request, render)


def citation_words(citation: lore_pb2.Citation) -> str:
    """`lore/03-factions.md > Wardens > Oaths, lines 40-52`."""
    headings = " > ".join([citation.path, *citation.heading_path[-2:]])
    return f"{headings}, lines {citation.start_line}-{citation.end_line}"


def _excerpt(text: str, *, characters: int = 400) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= characters else flat[:characters].rsplit(" ", 1)[0] + " …"


def _print_ingest_grpcurl(
    session: Session, directory: Path, collection: str, *, remove_missing: bool
) -> None:
    """Prints a pipeline, since the call is a stream of documents: each file as base64."""
    begin = (
        f'{{"begin":{{"collection":"{collection}","removeMissing":{str(remove_missing).lower()}}}}}'
    )
    words = " ".join(shlex.quote(word) for word in grpcurl_words(session.channel.tls))
    session.print_line(
        f"(cd {shlex.quote(str(directory))} && {{ echo {shlex.quote(begin)}; "
        "find . -name '*.md' -not -path '*/.*' | sort | while read -r f; do "
        'printf \'{"document":{"path":"%s","content":"%s"}}\\n\' '
        '"${f#./}" "$(base64 < "$f" | tr -d \'\\n\')"; done; }) | '
        f"{words} -d @ {session.addresses.knowledge_base} "
        f"{method_name('knowledge_base', 'IngestDocuments')}"
    )
