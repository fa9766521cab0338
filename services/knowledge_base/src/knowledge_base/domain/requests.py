"""Recognising a repeated request by its id and its content."""

import hashlib
import json
from collections.abc import Mapping

__all__ = ["Json", "fingerprint"]

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


def fingerprint(method: str, content: Mapping[str, Json]) -> bytes:
    """Returns 32 bytes that differ whenever the method or what it was asked differ."""
    text = json.dumps(
        [method, dict(content)], sort_keys=True, ensure_ascii=False, separators=(",", ":")
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
