"""The OpenAI API as vLLM speaks it: reading requests, writing answers, chunks and errors.

Shapes and messages follow vLLM's OpenAI server. Deliberate limits of the simulation, each refused
with a clear 400: one choice per request (`n` = 1), one prompt per completion, no log
probabilities, no tools.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from fleetsim.prefix_cache import PrefixSegments

__all__ = [
    "ApiError",
    "ChunkWriter",
    "GenerationRequest",
    "count_tokens",
    "full_answer",
    "models_page",
    "parse_generation_request",
    "prefix_segments",
]

_CHARACTERS_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_SEGMENT_TOKENS = 64
_COMPLETION_DEFAULT_MAX_TOKENS = 16
_MAX_STOP_SEQUENCES = 16


class ApiError(Exception):
    """The request is refused with an HTTP status and OpenAI's error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "NotFoundError" if status == 404 else "BadRequestError"
        error = {"message": message, "type": kind, "param": param, "code": status}
        self.body = json.dumps({"error": error}).encode()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What a caller wants generated. `max_tokens` fits the model's length."""

    is_chat: bool
    prompt: str
    prompt_tokens: int
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    seed: int | None
    temperature: float
    stream: bool
    include_usage: bool
    continuous_usage: bool


def count_tokens(text: str) -> int:
    """Estimate tokens at four characters each, the usual rule of thumb for English."""
    return math.ceil(len(text) / _CHARACTERS_PER_TOKEN)


def prefix_segments(prompt: str, prompt_tokens: int) -> PrefixSegments:
    """Cut a prompt into a chain of 64-token segments (4 KV blocks) for the prefix cache.

    Each key depends on everything before it; the rest and the last token are never cached.
    """
    characters = _SEGMENT_TOKENS * _CHARACTERS_PER_TOKEN
    count = min(len(prompt) // characters, (prompt_tokens - 1) // _SEGMENT_TOKENS)
    segments = []
    key = 0
    for index in range(count):
        key = hash((key, prompt[index * characters : (index + 1) * characters]))
        segments.append((key, _SEGMENT_TOKENS))
    return tuple(segments)


def parse_generation_request(
    raw: bytes, *, is_chat: bool, model_name: str, max_model_len_tokens: int
) -> GenerationRequest:
    """Read a completion or chat completion request. Raises ApiError as vLLM would refuse it."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise ApiError(400, "Invalid JSON in the request body.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.")
    model = body.get("model", model_name)
    if model != model_name:
        raise ApiError(404, f"The model `{model}` does not exist.", param="model")
    if body.get("n", 1) not in {1, None}:
        raise ApiError(400, "This simulated server generates one choice (n=1).", param="n")
    prompt, prompt_tokens = _chat_prompt(body) if is_chat else _completion_prompt(body)
    room = max_model_len_tokens - prompt_tokens
    limit = body.get("max_completion_tokens") if is_chat else None
    if limit is None:
        limit = body.get("max_tokens")
    max_tokens = _integer(limit, "max_tokens", minimum=1)
    where = "messages" if is_chat else "prompt"
    if max_tokens is None:
        max_tokens = room if is_chat else _COMPLETION_DEFAULT_MAX_TOKENS
    if room < 1 or max_tokens > room:
        wanted = max(max_tokens, 0)
        raise ApiError(
            400,
            f"This model's maximum context length is {max_model_len_tokens} tokens. However, you "
            f"requested {prompt_tokens + wanted} tokens ({prompt_tokens} in the {where}, {wanted} "
            f"in the completion). Please reduce the length of the {where} or completion.",
            param="max_tokens",
        )
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object.", param="stream_options")
    stream = _boolean(body.get("stream"), "stream")
    if options and not stream:
        raise ApiError(
            400, "Stream options can only be defined when `stream=True`.", param="stream_options"
        )
    return GenerationRequest(
        is_chat=is_chat,
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        min_tokens=_integer(body.get("min_tokens"), "min_tokens", minimum=0) or 0,
        ignore_eos=_boolean(body.get("ignore_eos"), "ignore_eos"),
        stop=_stop_sequences(body.get("stop")),
        seed=_integer(body.get("seed"), "seed", minimum=None),
        temperature=_temperature(body.get("temperature")),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
    )


def _chat_prompt(body: Mapping[str, Any]) -> tuple[str, int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a non-empty array.", param="messages")
    parts: list[str] = []
    tokens = 3
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, "each message needs a role and content.", param="messages")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(p.get("text", "") for p in content if isinstance(p, dict))
        if not isinstance(content, str):
            raise ApiError(400, "message content must be text.", param="messages")
        parts.append(f"{message['role']}: {content}\n")
        tokens += count_tokens(content) + _TOKENS_PER_MESSAGE
    return "".join(parts), tokens


def _completion_prompt(body: Mapping[str, Any]) -> tuple[str, int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(isinstance(t, int) for t in prompt):
        return " ".join(map(str, prompt)), len(prompt)
    if isinstance(prompt, list):
        raise ApiError(400, "This simulated server takes one prompt a request.", param="prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ApiError(400, "prompt must be a non-empty string.", param="prompt")
    return prompt, count_tokens(prompt)


def _integer(value: Any, name: str, *, minimum: int | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ApiError(400, f"{name} must be an integer.", param=name)
    if minimum is not None and value < minimum:
        raise ApiError(400, f"{name} must be at least {minimum}, got {value}.", param=name)
    return value


def _boolean(value: Any, name: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ApiError(400, f"{name} must be a boolean.", param=name)


def _temperature(value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ApiError(400, f"temperature must be non-negative, got {value}.", param="temperature")
    return float(value)


def _stop_sequences(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > _MAX_STOP_SEQUENCES
        or not all(isinstance(s, str) and s for s in stops)
    ):
        raise ApiError(400, "stop must be a string or an array of strings.", param="stop")
    return tuple(stops)


class ChunkWriter:
    """Writes one stream's server-sent events; everything that repeats is encoded once."""

    __slots__ = ("_after", "_before", "_head", "_is_chat", "_request")

    def __init__(
        self, request: GenerationRequest, *, answer_id: str, created: int, model_name: str
    ) -> None:
        self._request = request
        self._is_chat = request.is_chat
        kind = "chat.completion.chunk" if request.is_chat else "text_completion"
        self._head = (
            f'data: {{"id":{quote(answer_id)},"object":"{kind}","created":{created},'
            f'"model":{quote(model_name)},"choices":['
        )
        field = '"delta":{"content":' if request.is_chat else '"text":'
        close = "}" if request.is_chat else ""
        self._before = f'{self._head}{{"index":0,{field}'
        self._after = f'{close},"logprobs":null,"finish_reason":'

    def opening(self) -> str:
        """Return the chat stream's first event, which names the role; nothing otherwise."""
        if not self._is_chat:
            return ""
        usage = self._usage(0) if self._request.continuous_usage else ""
        return (
            f'{self._head}{{"index":0,"delta":{{"role":"assistant","content":""}},'
            f'"logprobs":null,"finish_reason":null}}]{usage}}}\n\n'
        )

    def token(self, text: str, completion_tokens: int) -> str:
        """Return the event of one token."""
        usage = self._usage(completion_tokens) if self._request.continuous_usage else ""
        return f"{self._before}{quote(text)}{self._after}null}}]{usage}}}\n\n"

    def last_token(
        self, text: str, completion_tokens: int, finish_reason: str, stop_reason: str | None
    ) -> str:
        """Return the event of the last token, with why generation ended."""
        usage = self._usage(completion_tokens) if self._request.continuous_usage else ""
        stop = "null" if stop_reason is None else quote(stop_reason)
        return (
            f'{self._before}{quote(text)}{self._after}"{finish_reason}",'
            f'"stop_reason":{stop}}}]{usage}}}\n\n'
        )

    def closing(self, completion_tokens: int) -> str:
        """Return the usage event, when asked for, and the end of the stream."""
        usage = ""
        if self._request.include_usage:
            usage = f"{self._head}]{self._usage(completion_tokens)}}}\n\n"
        return f"{usage}data: [DONE]\n\n"

    def _usage(self, completion_tokens: int) -> str:
        return f',"usage":{json.dumps(_usage(self._request.prompt_tokens, completion_tokens))}'


def full_answer(
    request: GenerationRequest,
    *,
    answer_id: str,
    created: int,
    model_name: str,
    text: str,
    completion_tokens: int,
    finish_reason: str,
    stop_reason: str | None,
) -> bytes:
    """Return the body of an answer that is not streamed."""
    choice: dict[str, Any] = {"index": 0}
    if request.is_chat:
        choice["message"] = {"role": "assistant", "content": text, "tool_calls": []}
    else:
        choice["text"] = text
    choice |= {"logprobs": None, "finish_reason": finish_reason, "stop_reason": stop_reason}
    answer = {
        "id": answer_id,
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": created,
        "model": model_name,
        "choices": [choice],
        "usage": _usage(request.prompt_tokens, completion_tokens),
    }
    return json.dumps(answer).encode()


def models_page(*, model_name: str, created: int, max_model_len_tokens: int) -> bytes:
    """Return the body of `/v1/models`."""
    model = {
        "id": model_name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": model_name,
        "parent": None,
        "max_model_len": max_model_len_tokens,
        "permission": [],
    }
    return json.dumps({"object": "list", "data": [model]}).encode()


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
