"""Keeps the ONNX graphs of the embedding model on disk, written once, whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import structlog

from knowledge_base.adapters.minilm_weights import ModelFiles, file_sha256

__all__ = ["Graphs", "ensure_graphs"]

log = structlog.get_logger(__name__)

# Rises with every change of what is written, so that old graphs are not used.
_FORMAT = "minilm-onnx-3"
_DOCUMENTS = "model.onnx"
_QUERIES = "query.onnx"
_MANIFEST = "manifest.json"
# Size and dates of the files when their hashes were last compared. Hashing 90 MB takes 0.3 s of
# CPU, a third of a start: it is left out while nothing was written since.
_COMPARED = "compared.json"


@dataclass(frozen=True, slots=True)
class Graphs:
    """Where the model's graphs lie.

    Attributes:
        documents: the model in float32; see `minilm_graph`.
        queries: the model in bytes; see `minilm_query_graph`.
    """

    documents: Path
    queries: Path


def ensure_graphs(files: ModelFiles, cache_directory: Path) -> Graphs:
    """Returns the paths of the ONNX graphs in `cache_directory`, written there when absent.

    Several processes may call this at once: each writes aside and renames. Cached graphs whose
    files do not have the recorded hashes are written anew; they are compared when a file is another
    than it was at the last comparison.

    Raises:
        ModelFilesError: the weights are not the published ones.
        OSError: the directory cannot be written.
    """
    target = cache_directory / _FORMAT
    graphs = Graphs(target / _DOCUMENTS, target / _QUERIES)
    if _is_whole(target):
        return graphs
    files.verify_weights()
    # Writers are imported only when they are needed: onnx costs memory that a server never uses.
    from knowledge_base.adapters.minilm_graph import write_graph  # noqa: PLC0415  # as said above
    from knowledge_base.adapters.minilm_query_graph import (  # noqa: PLC0415  # as said above
        write_query_graph,
    )

    cache_directory.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{_FORMAT}-", dir=cache_directory))
    try:
        write_graph(files.weights, workplace)
        write_query_graph(files.weights, workplace)
        hashes = {path.name: file_sha256(path) for path in workplace.iterdir()}
        (workplace / _MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n")
        workplace.chmod(0o755)
        _put_in_place(workplace, target)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    log.info("embedding_graphs_written", location=str(target))
    return graphs


def _put_in_place(workplace: Path, target: Path) -> None:
    if target.exists() and not _is_whole(target):
        broken = Path(tempfile.mkdtemp(prefix=".broken-", dir=target.parent))
        with contextlib.suppress(FileNotFoundError):  # another process moved it first
            target.rename(broken / "graph")
        shutil.rmtree(broken, ignore_errors=True)
    try:
        workplace.rename(target)
    except OSError:
        if not _is_whole(target):  # else another process was first, with the same content
            raise


def _is_whole(directory: Path) -> bool:
    try:
        manifest: dict[str, str] = json.loads((directory / _MANIFEST).read_text())
        stamps = {name: _stamp(directory / name) for name in manifest}
        if not {_DOCUMENTS, _QUERIES} <= manifest.keys():
            return False
        if stamps != _stamps_when_compared(directory):
            if any(file_sha256(directory / name) != manifest[name] for name in manifest):
                return False
            _remember(directory, stamps)
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _stamp(path: Path) -> list[int]:
    """Returns what changes when a file is written: by the change time also when dates are kept."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _stamps_when_compared(directory: Path) -> object:
    try:
        return json.loads((directory / _COMPARED).read_text())
    except (OSError, ValueError):
        return None


def _remember(directory: Path, stamps: dict[str, list[int]]) -> None:
    # Where it cannot be written, as in a read-only image, each start reads the weights.
    with contextlib.suppress(OSError):
        descriptor, aside = tempfile.mkstemp(prefix=f".{_COMPARED}-", dir=directory)
        with os.fdopen(descriptor, "w") as file:
            json.dump(stamps, file)
        Path(aside).replace(directory / _COMPARED)
