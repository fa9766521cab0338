"""One simulated model server behind HTTP: vLLM's API in front of the state machine, in real time.

Tokens are handed out by one timer per server, not one task per token: each tick advances the
state machine once and wakes only the streams that have new tokens. Several tokens that became due
in one tick go out in one write, each as its own event.
"""

import asyncio
import json
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from fleetsim.model_server import ModelServer
from fleetsim.openai_protocol import (
    ApiError,
    ChunkWriter,
    GenerationRequest,
    full_answer,
    models_page,
    parse_generation_request,
    prefix_segments,
)
from fleetsim.profiles import ModelServerProfile
from fleetsim.prose import write_answer
from fleetsim.server_request import RequestState, ServerRequest
from fleetsim.vllm_metrics import CONTENT_TYPE, render_metrics

__all__ = ["AnswerLengths", "VllmEndpoint"]

SIMULATED_HEADERS = {"X-Simulated": "fleetsim", "Server": "fleetsim"}
"""On every answer, so that nobody mistakes the simulation for a model."""

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """How long answers are when the caller's limit does not cut them: log-normal, in tokens.

    The default (median 70, mean about 80) is short dialogue; an assumption.
    """

    median_tokens: float = 70.0
    sigma: float = 0.5

    def draw(self, rng: random.Random) -> int:
        """Draw one length, at least 1."""
        return max(1, round(rng.lognormvariate(math.log(self.median_tokens), self.sigma)))


@dataclass(eq=False, slots=True)
class _Generation:
    """One answer under way: its text is known, its pace is the state machine's."""

    request: ServerRequest
    pieces: list[str]
    stop_reason: str | None
    available: int = 0
    is_over: bool = False
    waiter: "asyncio.Future[None] | None" = field(default=None)

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def wait_beyond(self, sent: int) -> int:
        """Wait until more than `sent` tokens exist; return how many do."""
        while self.available <= sent and not self.is_over:
            self.waiter = asyncio.get_running_loop().create_future()
            # Bounded by the caller: a dropped connection cancels the handler.
            await self.waiter
        return self.available


class VllmEndpoint:
    """The HTTP face of one model server. `clock` gives the state machine's time in seconds."""

    def __init__(
        self,
        server_id: str,
        profile: ModelServerProfile,
        *,
        clock: Callable[[], float],
        answer_lengths: AnswerLengths,
        seed: int = 0,
        tick_seconds: float = 0.01,
    ) -> None:
        self.model = ModelServer(profile, server_id=server_id, start_time=clock())
        self._clock = clock
        self._answer_lengths = answer_lengths
        self._rng = random.Random(f"{seed}/{server_id}")  # noqa: S311 - simulation, not secrets
        self._tick_seconds = tick_seconds
        self._created = int(clock())
        self._generations: dict[ServerRequest, _Generation] = {}
        self._streaming: set[_Generation] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_stopped = False

    @property
    def in_flight(self) -> int:
        """Answers under way."""
        return len(self._generations)

    async def wait_until_idle(self, timeout_seconds: float) -> bool:
        """Wait for the answers under way; False when the time ran out first."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """Stop at once: whatever is under way is lost and its handlers end."""
        self.is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.model.fail(self._clock())
        for generation in list(self._generations.values()):
            generation.is_over = True
            generation.wake()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        route = (request.method, request.path)
        if route == ("POST", "/v1/chat/completions"):
            return await self._generate(request, is_chat=True)
        if route == ("POST", "/v1/completions"):
            return await self._generate(request, is_chat=False)
        if route == ("GET", "/metrics"):
            body = render_metrics(self.model, self._clock()).encode()
            headers = {**SIMULATED_HEADERS, "Content-Type": CONTENT_TYPE}
            return web.Response(body=body, headers=headers)
        if route in {("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")}:
            return web.Response(headers=SIMULATED_HEADERS)
        if route == ("GET", "/v1/models"):
            profile = self.model.profile
            body = models_page(
                model_name=profile.model_name,
                created=self._created,
                max_model_len_tokens=profile.max_model_len_tokens,
            )
            return _json_response(200, body)
        if route == ("GET", "/version"):
            return _json_response(200, b'{"version":"0.0.0+simulated"}')
        if request.path in _KNOWN_PATHS:
            return _json_response(405, b'{"detail":"Method Not Allowed"}')
        return _json_response(404, b'{"detail":"Not Found"}')

    # -- generation --------------------------------------------------------------------------

    async def _generate(self, http: web.BaseRequest, *, is_chat: bool) -> web.StreamResponse:
        profile = self.model.profile
        try:
            wanted = parse_generation_request(
                await http.read(),
                is_chat=is_chat,
                model_name=profile.model_name,
                max_model_len_tokens=profile.max_model_len_tokens,
            )
        except ApiError as error:
            return _json_response(error.status, error.body)
        generation = self._begin(wanted)
        answer_id = f"{'chatcmpl' if is_chat else 'cmpl'}-{self._rng.getrandbits(128):032x}"
        try:
            if wanted.stream:
                return await self._stream(http, wanted, generation, answer_id)
            await generation.wait_beyond(len(generation.pieces))
            if generation.request.state is not RequestState.FINISHED:
                return _server_stopped()
            body = full_answer(
                wanted,
                answer_id=answer_id,
                created=int(self._clock()),
                model_name=profile.model_name,
                text="".join(generation.pieces),
                completion_tokens=len(generation.pieces),
                finish_reason=generation.request.finish_reason,
                stop_reason=generation.stop_reason,
            )
            return _json_response(200, body)
        finally:
            self._end(generation)

    def _begin(self, wanted: GenerationRequest) -> _Generation:
        pieces, finish_reason, stop_reason = self._write(wanted)
        request = ServerRequest(
            self._rng.getrandbits(64),
            wanted.prompt_tokens,
            len(pieces),
            prefix_segments=prefix_segments(wanted.prompt, wanted.prompt_tokens),
            finish_reason=finish_reason,
        )
        generation = _Generation(request, pieces, stop_reason)
        now = self._clock()
        self._deliver(now)
        self.model.submit(now, request)
        self._generations[request] = generation
        self._idle.clear()
        if wanted.stream:
            self._streaming.add(generation)
        self._schedule(now)
        return generation

    def _write(self, wanted: GenerationRequest) -> tuple[list[str], str, str | None]:
        """Write the whole answer ahead; only its pace is left to the state machine."""
        if wanted.seed is not None:
            rng = random.Random(wanted.seed ^ zlib.crc32(wanted.prompt.encode()))  # noqa: S311
        elif wanted.temperature == 0.0:
            rng = random.Random(zlib.crc32(wanted.prompt.encode()))  # noqa: S311 - reproducible
        else:
            rng = self._rng
        natural = max(wanted.min_tokens, self._answer_lengths.draw(rng))
        is_cut = wanted.ignore_eos or natural > wanted.max_tokens
        tokens = wanted.max_tokens if is_cut else natural
        pieces = write_answer(wanted.prompt, tokens=tokens, seed=rng.getrandbits(32))
        if wanted.stop:
            text = "".join(pieces)
            found = [(text.find(stop), stop) for stop in wanted.stop if stop in text]
            if found:
                position, stop = min(found)
                return _cut(pieces, position), "stop", stop
        return pieces, "length" if is_cut else "stop", None

    async def _stream(
        self,
        http: web.BaseRequest,
        wanted: GenerationRequest,
        generation: _Generation,
        answer_id: str,
    ) -> web.StreamResponse:
        model_name = self.model.profile.model_name
        writer = ChunkWriter(
            wanted, answer_id=answer_id, created=int(self._clock()), model_name=model_name
        )
        response = web.StreamResponse(
            headers={**SIMULATED_HEADERS, "Content-Type": "text/event-stream; charset=utf-8"}
        )
        await response.prepare(http)
        pieces, total = generation.pieces, len(generation.pieces)
        sent = 0
        while sent < total:
            available = await generation.wait_beyond(sent)
            if available <= sent:
                # The host died: a dead host closes its connections without a word.
                if http.transport is not None:
                    http.transport.abort()
                return response
            events = [writer.opening()] if sent == 0 else []
            last = available == total
            events += [
                writer.token(pieces[index], index + 1)
                for index in range(sent, available - 1 if last else available)
            ]
            if last:
                reason = generation.request.finish_reason
                events.append(writer.last_token(pieces[-1], total, reason, generation.stop_reason))
                events.append(writer.closing(total))
            sent = available
            await response.write("".join(events).encode())
        await response.write_eof()
        return response

    def _end(self, generation: _Generation) -> None:
        """Whatever the reason the answer ended: free what it held and go on with the rest."""
        self._streaming.discard(generation)
        self._generations.pop(generation.request, None)
        if not self.is_stopped:
            now = self._clock()
            self.model.abort(now, generation.request)
            self._deliver(now)
            self._schedule(now)
        if not self._generations:
            self._idle.set()

    # -- the server's one timer --------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = None
        now = self._clock()
        self._deliver(now)
        self._schedule(now)

    def _deliver(self, now: float) -> None:
        model = self.model
        for request in model.advance(now):
            generation = self._generations.get(request)
            if generation is not None:
                generation.available = request.output_tokens
                generation.is_over = True
                self._streaming.discard(generation)
                generation.wake()
        for generation in self._streaming:
            available = model.generated_tokens(generation.request, now)
            # The last token belongs to the end of the request, which `advance` reports.
            available = min(available, generation.request.output_tokens - 1)
            if available > generation.available:
                generation.available = available
                generation.wake()

    def _schedule(self, now: float) -> None:
        upcoming = self.model.next_event_time()
        if math.isinf(upcoming):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        delay = max(upcoming - now, 0.0)
        if self._streaming:
            pace = max(self._tick_seconds, self.model.load(now).step_seconds)
            delay = min(max(delay, self._tick_seconds), pace)
        due = asyncio.get_running_loop().time() + delay
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._tick)


_KNOWN_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/health", "/version"}
)


def _cut(pieces: list[str], position: int) -> list[str]:
    """Return the pieces up to a character position; at least one piece, possibly empty."""
    kept: list[str] = []
    length = 0
    for piece in pieces:
        if length + len(piece) >= position:
            kept.append(piece[: position - length])
            break
        kept.append(piece)
        length += len(piece)
    return kept


def _json_response(status: int, body: bytes) -> web.Response:
    return web.Response(
        status=status, body=body, headers={**SIMULATED_HEADERS, "Content-Type": _JSON}
    )


def _server_stopped() -> web.Response:
    error = {"message": "The server is stopping.", "type": "InternalServerError", "code": 500}
    return _json_response(500, json.dumps({"error": error}).encode())
