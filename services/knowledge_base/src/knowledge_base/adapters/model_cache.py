"""Keeps the ONNX graph of the embedding model on disk, written once, whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import structlog

from knowledge_base.adapters.minilm_weights import ModelFiles, file_sha256

__all__ = ["ensure_graph"]

log = structlog.get_logger(__name__)

# Rises with every change of what `minilm_graph` writes, so that old graphs are not used.
_FORMAT = "minilm-onnx-2"
_GRAPH = "model.onnx"
_MANIFEST = "manifest.json"
# Size and dates of the files when their hashes were last compared. Hashing 90 MB takes 0.3 s of
# CPU, a third of a start: it is left out while nothing was written since.
_COMPARED = "compared.json"


def ensure_graph(files: ModelFiles, cache_directory: Path) -> Path:
    """Returns the path of the ONNX graph in `cache_directory`, written there when it is absent.

    Several processes may call this at once: each writes aside and renames. A cached graph whose
    files do not have the recorded hashes is written anew; they are compared when a file is another
    than it was at the last comparison.

    Raises:
        ModelFilesError: the weights are not the published ones.
        OSError: the directory cannot be written.
    """
    target = cache_directory / _FORMAT
    if _is_whole(target):
        return target / _GRAPH
    files.verify_weights()
    # The writer is imported only when it is needed: onnx costs memory that a server never uses.
    from knowledge_base.adapters.minilm_graph import write_graph  # noqa: PLC0415  # as said above

    cache_directory.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{_FORMAT}-", dir=cache_directory))
    try:
        write_graph(files.weights, workplace)
        hashes = {path.name: file_sha256(path) for path in workplace.iterdir()}
        (workplace / _MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n")
        workplace.chmod(0o755)
        _put_in_place(workplace, target)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    log.info("embedding_graph_written", location=str(target))
    return target / _GRAPH


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
        if _GRAPH not in manifest:
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
