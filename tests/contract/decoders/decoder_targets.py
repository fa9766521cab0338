"""Every decoder that faces outside, as functions of arbitrary bytes.

Each target takes any bytes and returns; it lets out only what its decoder does not promise to
raise. Property tests and the coverage-guided fuzzer share them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ai_router.adapters.answer_decoder import AnswerDecoder
from ai_router.ports import ModelServerFailure
from autoscaler.config import AutoscalerSettings
from gpu_metrics.domain.vllm_exposition import parse_vllm_metrics
from knowledge_base.domain.chunking import chunk_document
from knowledge_base.domain.errors import InvalidDocument
from messaging.codec import decode_event, encode_event
from messaging.errors import PoisonEvent
from servicekit.errors import ServiceError
from servicekit.paging import decode_page_token
from servicekit.settings import SettingsError, describe_settings, load_settings, setting

__all__ = ["TARGETS", "Target"]

REPOSITORY = Path(__file__).resolve().parents[3]
_ENVIRONMENT = ("AUTOSCALER_", "GAMEKEEPER_", "DATABASE_URL", "TICK_SECONDS", "=", "\n")


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder: what to call, inputs to start from, words worth trying."""

    decode: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[str, ...] = ()


class Choice(Enum):
    """Some enumeration."""

    ONE = "one"
    TWO = "two"


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryType:
    """A setting of every type that settings may have."""

    text: str = setting("T", default="", help="text", secret=True)
    whole: int = setting("W", default=1, minimum=0, maximum=10**9, help="a whole number")
    number: float = setting("N", default=1.0, minimum=-1.0, help="a number")
    switch: bool = setting("S", default=False, help="a switch")
    path: Path | None = setting("P", default=None, help="a path")
    choice: Choice = setting("C", default=Choice.ONE, help="a choice")
    several: tuple[str, ...] = setting("L", default=(), choices=("a", "b"), help="a list")


def _text(data: bytes) -> str:
    # Half characters too: JSON and file names may hold them.
    return data.decode("utf-8", "surrogateescape")


def decode_queue_message(data: bytes) -> None:
    """Reads an event of the bus; what was read is written and read again unchanged."""
    try:
        event = decode_event(_text(data), {"event_type": "weather.changed", "source": "w"})
    except PoisonEvent:
        return
    assert decode_event(encode_event(event), {}) == event


def decode_answer(data: bytes) -> None:
    """Reads a model server's answer, whole and cut in two: both say the same."""
    whole = _answer([data])
    half = len(data) // 2
    assert _answer([data[:half], data[half:]]) == whole


def _answer(chunks: list[bytes]) -> tuple[str, bool] | None:
    decoder = AnswerDecoder()
    text = ""
    try:
        for chunk in chunks:
            if not decoder.complete:
                text += decoder.feed(chunk)
    except ModelServerFailure:
        return None
    text.encode("utf-8")
    return text, decoder.complete


def decode_metrics_page(data: bytes) -> None:
    """Reads a model server's metrics page."""
    parse_vllm_metrics(data.decode("utf-8", "replace"))


def decode_document(data: bytes) -> None:
    """Cuts a document; every chunk cites lines that the document has."""
    try:
        document = chunk_document("lore/any.md", data)
    except InvalidDocument:
        return
    text = data.decode("utf-8").removeprefix("\ufeff")
    lines = len(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    for chunk in document.chunks:
        assert 1 <= chunk.start_line <= chunk.end_line <= lines
        assert chunk.text.strip()


def decode_settings(data: bytes) -> None:
    """Reads a service's settings; what was read can be shown."""
    pairs = (line.partition("=") for line in _text(data).split("\n"))
    environ = {name: value for name, _, value in pairs if name}
    # A service's own parsers take long to run through; every other input tries the types alone.
    kind: type[Any] = AutoscalerSettings if len(data) % 2 else EveryType
    try:
        settings = load_settings(kind, environ)
    except SettingsError:
        return
    assert describe_settings(settings, environ)


def decode_token(data: bytes) -> None:
    """Reads a page token."""
    try:
        decode_page_token(_text(data), ["decisions"], (str, int))
    except ServiceError:
        return


def _event_seeds() -> tuple[bytes, ...]:
    texts = [
        vector["hex"]
        for name in ("event_vectors.json", "suite_event_vectors.json")
        for vector in json.loads((REPOSITORY / "tests/contract" / name).read_text("utf-8"))
    ]
    envelope = json.dumps(
        {
            "Type": "Notification",
            "Message": texts[0],
            "MessageAttributes": {"event_type": {"Type": "String", "Value": "weather.changed"}},
        }
    )
    plain = json.dumps(
        {
            "event_id": "4be6c8a8-6a33-4b9d-9df6-6a6d4bb5a1fe",
            "event_type": "world_state.updated",
            "source": "world",
            "timestamp": 1_700_000_000_000,
            "data": {"state": {"a": "b"}, "update_type": "delta"},
        }
    )
    return tuple(text.encode() for text in (*texts, envelope, plain))


_ANSWER = (
    b'data: {"choices": [{"delta": {"content": "Once"}, "finish_reason": null}]}\n\n'
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], '
    b'"usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
)
_PAGE = (
    b'vllm:num_requests_running{model_name="m"} 3.0\nvllm:kv_cache_usage_perc 0.5\n'
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="2048"} 1.0\n'
    b'vllm:time_to_first_token_seconds_bucket{le="0.1"} 1.0\n'
    b'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 2.0\n'
    b"vllm:time_to_first_token_seconds_sum 0.3\n"
)
_DOCUMENT = (
    b"---\ntitle: T\ntags: [a, b]\n---\n# One\n\nText. More text!\n\n```py\ncode\n```\n\n"
    b"Two\n---\n\n| a | b |\n|---|---|\n| 1 | 2 |\n<!-- no -->\n"
)
_SETTINGS = (
    b"AUTOSCALER_DATABASE_URL=postgresql://a@b/c\nAUTOSCALER_TICK_SECONDS=5\n"
    b"GAMEKEEPER_LISTEN_ADDRESS=127.0.0.1:0\nGAMEKEEPER_LOG_LEVEL=info\n"
    b"T=t\nW=7\nN=0.5\nS=yes\nP=a/b\nC=two\nL=a,b"
)

TARGETS = {
    "events": Target(
        decode_queue_message,
        _event_seeds(),
        ('"Message"', '"event_id"', '"data"', '"timestamp"', "1e999", '"state"', '"event_type"'),
    ),
    "answers": Target(
        decode_answer,
        (_ANSWER,),
        ("data: ", '"choices"', '"delta"', '"content"', '"usage"', "1e999", "[DONE]", '"error"'),
    ),
    "metrics pages": Target(
        decode_metrics_page,
        (_PAGE,),
        ("vllm:", "_bucket{le=", "_sum ", "1.7e308", "-1.7e308", "+Inf", "NaN", "num_gpu_blocks="),
    ),
    "documents": Target(
        decode_document, (_DOCUMENT,), ("---", "```", "~~~", "# ", "| - |", "<!--", "-->", "\r\n")
    ),
    "settings": Target(decode_settings, (_SETTINGS,), (*_ENVIRONMENT, "1e999", "nan", "127.0.0.1")),
    "page tokens": Target(decode_token, (b"WyJhIiwgImIiLCAxXQ",)),
}
