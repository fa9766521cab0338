"""Keeps the ONNX graph of the embedding model on disk, written once, whole or not at all."""

import contextlib
import json
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


def ensure_graph(files: ModelFiles, cache_directory: Path) -> Path:
    """Returns the path of the ONNX graph in `cache_directory`, written there when it is absent.

    Several processes may call this at once: each writes aside and renames. A cached graph whose
    files do not have the recorded hashes is written anew.

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
        return _GRAPH in manifest and all(
            file_sha256(directory / name) == sha256 for name, sha256 in manifest.items()
        )
    except (OSError, ValueError, AttributeError):
        return False
