"""The grpcurl command that does what a command of ours does."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from servicekit.tls import TlsSettings

__all__ = ["grpcurl_command", "grpcurl_words", "request_json"]


def request_json(request: Message) -> str:
    """Returns a request as grpcurl reads it: proto JSON, one line, unset fields left out."""
    return json.dumps(MessageToDict(request), ensure_ascii=False, separators=(",", ":"))


def grpcurl_words(tls: TlsSettings) -> list[str]:
    """Returns `grpcurl` with the options of this connection: plaintext, or the TLS files set."""
    if not tls.enabled:
        return ["grpcurl", "-plaintext"]
    words = ["grpcurl"]
    for option, path in (
        ("-cacert", tls.authority_file),
        ("-cert", tls.certificate_file),
        ("-key", tls.key_file),
    ):
        if path is not None:
            words += [option, str(path)]
    return words


def grpcurl_command(
    *,
    address: str,
    method: str,
    request: Message,
    tls: TlsSettings,
    substitutions: Mapping[str, str] | None = None,
) -> str:
    """Returns one line for a shell that calls `method` (`package.Service/Method`) at `address`.

    `substitutions` replace marker texts in the request by shell variables, for values that an
    earlier command finds: `{"WORLD": "world_id"}` puts the value of `$world_id` where WORLD stands.
    """
    words = [shlex.quote(word) for word in grpcurl_words(tls)]
    body = request_json(request)
    if body != "{}":
        quoted = shlex.quote(body)
        for marker, variable in (substitutions or {}).items():
            # Ends the single quotes, adds the variable in double ones, and goes on.
            quoted = quoted.replace(marker, f"'\"${variable}\"'")
        words += ["-d", quoted]
    return " ".join([*words, address, method])
