"""A model server with continuous batching, as one pure state machine for virtual and real time.

The batch advances by engine steps; each step gives every decoding sequence one token. Between two
changes of the batch every step takes equally long, so progress is one number, the work clock (in
steps), that runs at `1 / step_seconds`. A sequence that joins at clock v with m tokens to go
finishes at v + m whatever happens to the pace in between: finding the next event is a heap's top,
and a request costs O(log n), not O(tokens).

Modelled: prompts are prefilled first come, first served in chunks that slow decoding down; the KV
cache admits, fills and preempts the newest sequence (recomputed later); shared prefixes are
cached; at most `max_running_sequences` run and the rest waits. The step's length is set when the
batch changes, from the context it has at that moment. Simplified: memory counts in tokens rather
than blocks, one prompt is prefilled at a time, and step boundaries are not quantised (an error
below one step, about 9 ms for Gold).
"""

import heapq
import math
from collections import deque

from fleetsim.errors import TimeWentBackwardsError
from fleetsim.latency_histogram import (
    END_TO_END_BOUNDARIES_SECONDS,
    INTER_TOKEN_BOUNDARIES_SECONDS,
    TIME_TO_FIRST_TOKEN_BOUNDARIES_SECONDS,
    LatencyHistogram,
)
from fleetsim.prefix_cache import PrefixCache
from fleetsim.profiles import ModelServerProfile
from fleetsim.server_request import RequestState, ServerLoad, ServerRequest

__all__ = ["ModelServer"]

_EPSILON = 1e-6
"""Tolerance in steps and tokens, far above rounding and far below one of either."""


_WAITING = RequestState.WAITING
_PREFILLING = RequestState.PREFILLING
_DECODING = RequestState.DECODING
_FINISHED = RequestState.FINISHED


class ModelServer:
    """One model server. `advance(now)` returns the requests that finished since the last call.

    Without `keeps_histograms` the three latency histograms stay empty, which saves a simulated day
    a tenth of its time. Counters end in `_total` and only grow. Every call carries `now`, which never decreases.
    """

    __slots__ = (
        "_base_seconds",
        "_capacity_tokens",
        "_chunk_seconds",
        "_chunk_tokens",
        "_clock",
        "_context_tokens",
        "_decoding",
        "_finished",
        "_finishing",
        "_first_tokens_due",
        "_full_tokens",
        "_keeps_histograms",
        "_most_sequences",
        "_next_change",
        "_next_finish",
        "_own_tokens",
        "_per_context_token_seconds",
        "_per_sequence_seconds",
        "_planned_steps",
        "_prefill",
        "_prefill_tokens_left",
        "_sequence",
        "_step_seconds",
        "_time",
        "_waiting",
        "_waiting_tokens",
        "_watermark_tokens",
        "busy_seconds_total",
        "end_to_end_seconds",
        "finished_total",
        "generation_tokens_total",
        "inter_token_seconds",
        "preemptions_total",
        "prefill_seconds_total",
        "prefix_cache",
        "profile",
        "prompt_tokens_total",
        "server_id",
        "time_to_first_token_seconds",
    )

    def __init__(
        self,
        profile: ModelServerProfile,
        *,
        server_id: str = "",
        start_time: float = 0.0,
        keeps_histograms: bool = True,
    ) -> None:
        self._keeps_histograms = keeps_histograms
        self.profile = profile
        self.server_id = server_id
        self.prefix_cache = PrefixCache()
        self.inter_token_seconds = LatencyHistogram(INTER_TOKEN_BOUNDARIES_SECONDS)
        self.time_to_first_token_seconds = LatencyHistogram(TIME_TO_FIRST_TOKEN_BOUNDARIES_SECONDS)
        self.end_to_end_seconds = LatencyHistogram(END_TO_END_BOUNDARIES_SECONDS)
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0.0
        self.preemptions_total = 0
        self.busy_seconds_total = 0.0
        self.prefill_seconds_total = 0.0
        self.finished_total: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self._capacity_tokens = profile.kv_cache_capacity_tokens
        self._full_tokens = profile.kv_cache_capacity_tokens - _EPSILON
        # vLLM's watermark: room that keeps a newcomer from being preempted right away.
        self._watermark_tokens = 0.01 * profile.kv_cache_capacity_tokens
        self._most_sequences = profile.max_running_sequences
        self._base_seconds = profile.step_base_seconds
        self._per_sequence_seconds = profile.step_per_sequence_seconds
        self._per_context_token_seconds = profile.step_per_kv_token_seconds
        self._chunk_tokens = profile.prefill_chunk_tokens
        self._chunk_seconds = profile.prefill_chunk_tokens / profile.prefill_tokens_per_second
        self._time = start_time
        self._clock = 0.0
        self._step_seconds = profile.step_base_seconds
        self._next_change = math.inf
        self._next_finish = math.inf
        self._planned_steps = math.inf
        self._sequence = 0
        self._finishing: list[tuple[float, int, ServerRequest]] = []
        self._decoding: dict[ServerRequest, None] = {}
        self._first_tokens_due: deque[ServerRequest] = deque()
        self._prefill: ServerRequest | None = None
        self._prefill_tokens_left = 0.0
        self._waiting: deque[ServerRequest] = deque()
        self._waiting_tokens = 0
        self._context_tokens = 0.0
        self._own_tokens = 0.0
        self._finished: list[ServerRequest] = []

    # -- what callers do ---------------------------------------------------------------------

    def submit(self, now: float, request: ServerRequest) -> None:
        """Accept a request; it starts at once when the batch has room, else it waits.

        Raises ValueError when it could never fit (prompt + output above the model's length).
        """
        if request.prompt_tokens + request.output_tokens > self.profile.max_model_len_tokens:
            raise ValueError("prompt and output exceed the model's length")
        if self._next_change <= now:
            self._catch_up(now)
        request.arrival_time = now
        request.state = _WAITING
        self._waiting.append(request)
        self._waiting_tokens += request.prompt_tokens
        if self._prefill is None:
            self._settle(now)
            self._admit()
            self._plan()

    def advance(self, now: float) -> list[ServerRequest]:
        """Move time to `now`; return the requests that finished since the last call, in order."""
        if self._next_change <= now:
            self._catch_up(now)
        finished = self._finished
        if finished:
            self._finished = []
        return finished

    def next_event_time(self) -> float:
        """When to call `advance` next; infinite while nothing runs.

        It may come earlier than the next finished request, never later, and always later than
        the last change.
        """
        return self._time if self._finished else self._next_finish

    def abort(self, now: float, request: ServerRequest) -> bool:
        """Stop a request and free its slot and memory; False when it has already ended."""
        self._catch_up(now)
        if request.state is _WAITING:
            self._waiting.remove(request)
            self._waiting_tokens -= request.prompt_tokens + request.resumed_tokens
        elif request.state is _PREFILLING:
            self._settle(now)
            self._prefill = None
            self._release(request, 0)
            self._waiting_tokens -= request.prompt_tokens + request.resumed_tokens
        elif request.state is _DECODING:
            self._settle(now)
            self._leave_decoding(request)
        else:
            return False
        request.state = RequestState.ABORTED
        request.finish_time = now
        self.finished_total["abort"] += 1
        self._admit()
        self._plan()
        return True

    def fail(self, now: float) -> list[ServerRequest]:
        """The host died: return every request that was in flight; nothing of them is left."""
        self._catch_up(now)
        self._settle(now)
        lost = [*self._decoding, *self._waiting]
        if self._prefill is not None:
            lost.append(self._prefill)
        for request in lost:
            request.state = RequestState.ABORTED
            request.finish_time = now
        self._decoding.clear()
        self._waiting.clear()
        self._finishing.clear()
        self._first_tokens_due.clear()
        self.prefix_cache.clear()
        self._prefill = None
        self._waiting_tokens = 0
        self._context_tokens = self._own_tokens = 0.0
        self._plan()
        return lost

    def settle(self, now: float) -> None:
        """Bring counters and histograms up to `now` (they else lag until the batch changes)."""
        self._catch_up(now)
        self._settle(now)
        self._plan()

    def generated_tokens(self, request: ServerRequest, now: float) -> int:
        """How many of a request's tokens exist at `now` (not before the last event)."""
        state = request.state
        if state is _FINISHED:
            return request.output_tokens
        if state is not _DECODING:
            return request.resumed_tokens
        clock = self._clock + max(0.0, now - self._time) / self._step_seconds
        return request.resumed_tokens + int(clock - request.clock_at_start + _EPSILON)

    @property
    def running_count(self) -> int:
        """Sequences in the batch, the one being prefilled included."""
        return len(self._decoding) + (self._prefill is not None)

    @property
    def waiting_count(self) -> int:
        """Requests not yet scheduled."""
        return len(self._waiting)

    def load(self, now: float) -> ServerLoad:
        """Return the load at `now`."""
        decoded = self._tokens_since_change(now)
        used = self._own_tokens + decoded + self.prefix_cache.active_tokens
        return ServerLoad(
            running=self.running_count,
            waiting=len(self._waiting),
            running_tokens=self._context_tokens + decoded,
            waiting_tokens=self._waiting_tokens,
            kv_cache_usage_ratio=min(1.0, max(0.0, used / self._capacity_tokens)),
            step_seconds=self._step_seconds,
            is_prefilling=self._prefill is not None,
        )

    # -- inside ------------------------------------------------------------------------------

    def _tokens_since_change(self, now: float) -> float:
        return len(self._decoding) * max(0.0, now - self._time) / self._step_seconds

    def _catch_up(self, now: float) -> None:
        if now < self._time - _EPSILON:
            raise TimeWentBackwardsError(now, self._time)
        while self._next_change <= now:
            # The planned steps, not the elapsed seconds: Unix time resolves only 0.2 us.
            self._settle(self._next_change, self._planned_steps)
            finishing = self._finishing
            if finishing and finishing[0][0] <= self._clock + _EPSILON:
                self._finish_due()
            if self._prefill is not None and self._prefill_tokens_left <= _EPSILON:
                self._start_decoding(self._prefill)
            if self._own_tokens + self.prefix_cache.active_tokens >= self._full_tokens:
                self._preempt_newest()
            if self._waiting and self._prefill is None:
                self._admit()
            self._plan()

    def _settle(self, now: float, planned_steps: float | None = None) -> None:
        """Account for the steps since the last change of the batch; the batch stays as it is."""
        elapsed = now - self._time
        if elapsed <= 0.0 and planned_steps is None:
            return
        running = len(self._decoding)
        prefilling = self._prefill is not None
        if running or prefilling:
            step_seconds = self._step_seconds
            steps = elapsed / step_seconds if planned_steps is None else planned_steps
            clock = self._clock + steps
            if running:
                tokens = running * steps
                self._context_tokens += tokens
                self._own_tokens += tokens
                self.generation_tokens_total += tokens
                if self._keeps_histograms:
                    self.inter_token_seconds.observe(step_seconds, tokens)
                due = self._first_tokens_due
                while due and due[0].clock_at_start + 1.0 <= clock + _EPSILON:
                    self._note_first_token(due.popleft())
            if prefilling:
                self._prefill_tokens_left -= steps * self._chunk_tokens
                self.prefill_seconds_total += elapsed
            self._clock = clock
            self.busy_seconds_total += elapsed
        self._time = now

    def _note_first_token(self, request: ServerRequest) -> None:
        steps = request.clock_at_start + 1.0 - self._clock
        request.first_token_time = time = self._time + steps * self._step_seconds
        if self._keeps_histograms:
            self.time_to_first_token_seconds.observe(time - request.arrival_time)

    def _finish_due(self) -> None:
        finishing = self._finishing
        clock = self._clock + _EPSILON
        while finishing and finishing[0][0] <= clock:
            clock_at_end, _, request = heapq.heappop(finishing)
            if request.state is not _DECODING or request.clock_at_end != clock_at_end:
                continue
            self._leave_decoding(request)
            request.state = _FINISHED
            request.finish_time = self._time
            self.finished_total[request.finish_reason] += 1
            if self._keeps_histograms:
                self.end_to_end_seconds.observe(self._time - request.arrival_time)
            self._finished.append(request)

    def _start_decoding(self, request: ServerRequest) -> None:
        self._prefill = None
        request.state = _DECODING
        request.clock_at_start = self._clock
        request.clock_at_end = self._clock + request.output_tokens - request.resumed_tokens
        self._waiting_tokens -= request.prompt_tokens + request.resumed_tokens
        self._decoding[request] = None
        self._context_tokens += request.prompt_tokens + request.resumed_tokens
        if math.isnan(request.first_token_time):
            self._first_tokens_due.append(request)
        self._sequence += 1
        heapq.heappush(self._finishing, (request.clock_at_end, self._sequence, request))
        if not request.resumed_tokens:
            self.prompt_tokens_total += request.prompt_tokens

    def _leave_decoding(self, request: ServerRequest) -> None:
        del self._decoding[request]
        decoded = min(self._clock, request.clock_at_end) - request.clock_at_start
        self._context_tokens -= request.prompt_tokens + request.resumed_tokens + decoded
        self._release(request, decoded)
        request.resumed_tokens += int(decoded + _EPSILON)
        if math.isnan(request.first_token_time):
            self._first_tokens_due.remove(request)
        if not self._decoding:
            self._context_tokens = 0.0

    def _release(self, request: ServerRequest, decoded: float) -> None:
        self._own_tokens -= request.own_tokens + decoded
        if request.prefix_segments:
            self.prefix_cache.release(request.prefix_segments)
        if not self._decoding and self._prefill is None:
            self._own_tokens = 0.0

    def _preempt_newest(self) -> None:
        """Free the newest sequence's memory; it waits first in line and is computed again."""
        if self.running_count < 2:
            return
        request = self._prefill
        if request is not None:
            self._prefill = None
            self._release(request, 0)
        else:
            request = next(reversed(self._decoding))
            self._leave_decoding(request)
            self._waiting_tokens += request.prompt_tokens + request.resumed_tokens
        request.state = _WAITING
        self._waiting.appendleft(request)
        self.preemptions_total += 1

    def _admit(self) -> None:
        """Start the first waiting request when the batch and the memory have room for it."""
        if self._prefill is not None or not self._waiting:
            return
        if len(self._decoding) >= self._most_sequences:
            return
        cache = self.prefix_cache
        request = self._waiting[0]
        segments = request.prefix_segments
        own = request.prompt_tokens + request.resumed_tokens
        room = self._capacity_tokens - self._own_tokens - cache.active_tokens
        if own > room - self._watermark_tokens and self._decoding:
            shared = sum(tokens for _, tokens in segments)
            needed = own - shared + cache.additional_tokens(segments)
            if needed > room - self._watermark_tokens:
                return
        self._waiting.popleft()
        to_compute = own
        if segments:
            for _, tokens in segments:
                own -= tokens
            cached = cache.acquire(segments, request.prompt_tokens)
            request.cached_tokens = cached
            to_compute -= cached
        else:
            cache.queried_tokens_total += request.prompt_tokens
        request.own_tokens = own
        self._own_tokens += own
        if cache.evictable_tokens:
            cache.evict_to(self._capacity_tokens - self._own_tokens - cache.active_tokens)
        request.state = _PREFILLING
        request.scheduled_time = self._time
        self._prefill = request
        self._prefill_tokens_left = to_compute if to_compute > 1 else 1.0

    def _plan(self) -> None:
        """Set the step's length for the present batch and find when the batch next changes."""
        running = len(self._decoding)
        prefill = self._prefill
        prefilling = prefill is not None
        if not running and not prefilling:
            self._next_change = self._next_finish = math.inf
            return
        step = fast_step = (
            self._base_seconds
            + self._per_sequence_seconds * running
            + self._per_context_token_seconds * self._context_tokens
        )
        steps = to_finish = to_full = math.inf
        if running:
            finishing = self._finishing
            while True:
                clock_at_end, _, request = finishing[0]
                if request.clock_at_end == clock_at_end and request.state is _DECODING:
                    break
                heapq.heappop(finishing)
            steps = to_finish = clock_at_end - self._clock
        if prefilling:
            step += self._chunk_seconds
            to_decoding = self._prefill_tokens_left / self._chunk_tokens
            steps = min(steps, to_decoding)
        if running + prefilling > 1 and running:
            used = self._own_tokens + self.prefix_cache.active_tokens
            to_full = (self._capacity_tokens - used) / running
            steps = min(steps, to_full)
        steps = max(steps, 0.0)
        self._step_seconds = step
        self._planned_steps = steps
        self._next_change = change = self._time + steps * step
        if prefill is not None and steps < to_finish and steps + to_finish < to_full / 2:
            # Nothing finishes before the prefill ends; afterwards no step is shorter than now
            # without the prefill, because the batch only grows until something finishes (or
            # memory runs out, which is why that must be far).
            left = float(prefill.output_tokens - prefill.resumed_tokens)
            left = min(left, to_finish - steps)
            self._next_finish = change + left * fast_step
        else:
            self._next_finish = change
