"""A model server with continuous batching, as one pure state machine for virtual and real time.

The batch advances by engine steps; each step gives every running sequence one token. Between two
changes of the batch every step takes equally long, so progress is one number, the work clock (in
steps). A sequence that joins at clock v with m tokens to go finishes at v + m whatever happens to
the pace in between: finding the next event is a heap's top, and a request costs O(log n), not
O(tokens).

A step that admits prompts also computes them, which makes this one step longer by
`uncached prompt tokens / prefill_tokens_per_second`: the work clock stands still for that long.
Everyone in the batch sees one long gap, and the newcomers' first tokens come at the end of the
step. New prompts wait for the next step's beginning, and a step admits at most
`prefill_chunk_tokens` of them (at least one prompt), as vLLM's token budget does.

Also modelled: the KV cache admits, fills, and preempts the newest sequence (computed again later);
shared prefixes are cached; at most `max_running_sequences` run and the rest waits. Simplified: the
step's length is set when the batch changes; memory counts in tokens rather than blocks; a prompt
longer than a chunk stalls the others in one piece; step boundaries count for admissions only.
"""

# ruff: noqa: PLR1730 - in the innermost loop of a day, `min` costs three comparisons

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
_RUNNING = RequestState.RUNNING
_FINISHED = RequestState.FINISHED


class ModelServer:
    """One model server. `advance(now)` returns the requests that finished since the last call.

    Without `keeps_histograms` the three latency histograms stay empty, which saves a simulated day
    a tenth of its time. Counters end in `_total` and only grow. Every call carries `now`, which
    never decreases.
    """

    __slots__ = (
        "_base_seconds",
        "_boundary_clock",
        "_capacity_tokens",
        "_chunk_tokens",
        "_clock",
        "_context_tokens",
        "_finished",
        "_finishing",
        "_first_tokens_due",
        "_full_tokens",
        "_gaps_noted",
        "_keeps_histograms",
        "_most_sequences",
        "_next_change",
        "_next_finish",
        "_own_tokens",
        "_per_context_token_seconds",
        "_per_sequence_seconds",
        "_planned_steps",
        "_prefill_rate",
        "_running",
        "_sequence",
        "_stall_until",
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
        self._prefill_rate = profile.prefill_tokens_per_second
        self._time = start_time
        self._clock = 0.0
        self._planned_steps = 0.0
        self._stall_until = start_time
        self._boundary_clock = 0.0
        self._gaps_noted = 0.0
        self._step_seconds = profile.step_base_seconds
        self._next_change = math.inf
        self._next_finish = math.inf
        self._sequence = 0
        self._finishing: list[tuple[float, int, ServerRequest]] = []
        self._running: dict[ServerRequest, None] = {}
        self._first_tokens_due: deque[ServerRequest] = deque()
        self._waiting: deque[ServerRequest] = deque()
        self._waiting_tokens = 0
        self._context_tokens = 0.0
        self._own_tokens = 0.0
        self._finished: list[ServerRequest] = []

    # -- what callers do ---------------------------------------------------------------------

    def submit(self, now: float, request: ServerRequest) -> None:
        """Accept a request; it starts with the next step when the batch has room, else it waits.

        Raises ValueError when it could never fit (prompt + output above the model's length).
        """
        if request.prompt_tokens + request.output_tokens > self.profile.max_model_len_tokens:
            raise ValueError("prompt and output exceed the model's length")
        if self._next_change <= now:
            self._catch_up(now)
        request.arrival_time = now
        request.state = _WAITING
        waiting = self._waiting
        waiting.append(request)
        self._waiting_tokens += request.prompt_tokens
        if len(waiting) == 1 and len(self._running) < self._most_sequences:
            boundary = self._boundary_time()
            if boundary <= now:
                self._settle(now)
                self._admit()
                self._plan()
            elif boundary < self._next_change:
                self._next_change = boundary
                self._planned_steps = max(0.0, self._boundary_clock - self._clock)
                if not self._running:
                    # An aborted prefill still occupies the engine, and nothing else will wake it.
                    self._next_finish = boundary

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
        elif request.state is _RUNNING:
            self._settle(now)
            self._leave_batch(request)
        else:
            return False
        request.state = RequestState.ABORTED
        request.finish_time = now
        self.finished_total["abort"] += 1
        self._settle(now)
        self._admit()
        self._plan()
        return True

    def fail(self, now: float) -> list[ServerRequest]:
        """The host died: return every request that was in flight; nothing of them is left."""
        self._catch_up(now)
        self._settle(now)
        lost = [*self._running, *self._waiting]
        for request in lost:
            request.state = RequestState.ABORTED
            request.finish_time = now
        self._running.clear()
        self._waiting.clear()
        self._finishing.clear()
        self._first_tokens_due.clear()
        self.prefix_cache.clear()
        self._waiting_tokens = 0
        self._context_tokens = self._own_tokens = 0.0
        self._boundary_clock = self._clock
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
        if state is not _RUNNING:
            return request.resumed_tokens
        clock = self._clock + self._steps_since_change(now)
        return request.resumed_tokens + int(clock - request.clock_at_start + _EPSILON)

    @property
    def running_count(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Requests not yet scheduled."""
        return len(self._waiting)

    def load(self, now: float) -> ServerLoad:
        """Return the load at `now`."""
        decoded = len(self._running) * self._steps_since_change(now)
        used = self._own_tokens + decoded + self.prefix_cache.active_tokens
        return ServerLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            running_tokens=self._context_tokens + decoded,
            waiting_tokens=self._waiting_tokens,
            kv_cache_usage_ratio=min(1.0, max(0.0, used / self._capacity_tokens)),
            step_seconds=self._step_seconds,
            is_prefilling=now < self._stall_until,
        )

    # -- time --------------------------------------------------------------------------------

    def _steps_since_change(self, now: float) -> float:
        begin = max(self._time, self._stall_until)
        return (now - begin) / self._step_seconds if now > begin else 0.0

    def _boundary_time(self) -> float:
        """When the next step begins that may admit prompts."""
        begin = self._time
        if self._stall_until > begin:
            begin = self._stall_until
        steps = self._boundary_clock - self._clock
        return begin + steps * self._step_seconds if steps > _EPSILON else begin

    def _catch_up(self, now: float) -> None:
        if now < self._time - _EPSILON:
            raise TimeWentBackwardsError(now, self._time)
        while self._next_change <= now:
            # The planned steps, not the elapsed seconds: Unix time resolves only 0.2 us.
            self._settle(self._next_change, self._planned_steps)
            finishing = self._finishing
            reached = self._clock + _EPSILON
            if finishing and finishing[0][0] <= reached:
                self._finish_due(reached)
            if self._own_tokens + self.prefix_cache.active_tokens >= self._full_tokens:
                self._preempt_newest()
            if self._waiting and self._boundary_clock <= reached:
                self._admit()
            self._plan()

    def _settle(self, now: float, planned_steps: float | None = None) -> None:
        """Account for the steps since the last change of the batch; the batch stays as it is."""
        time = self._time
        elapsed = now - time
        if elapsed <= 0.0 and planned_steps is None:
            return
        running = len(self._running)
        if running:
            self.busy_seconds_total += elapsed
            stall = self._stall_until - time
            if stall > 0.0:
                if stall > elapsed:
                    stall = elapsed
                self.prefill_seconds_total += stall
                elapsed -= stall
            steps = elapsed / self._step_seconds if planned_steps is None else planned_steps
            self._clock = clock = self._clock + steps
            tokens = running * steps
            self._context_tokens += tokens
            self._own_tokens += tokens
            self.generation_tokens_total += tokens
            if self._keeps_histograms:
                self._note_gaps(tokens)
            due = self._first_tokens_due
            if due and due[0].clock_at_start + 1.0 <= clock + _EPSILON:
                self._note_first_tokens(now)
        self._time = now

    def _note_gaps(self, tokens: float) -> None:
        """Count the gaps between tokens; those that contained a prefill are counted already."""
        noted = min(tokens, self._gaps_noted)
        self._gaps_noted -= noted
        self.inter_token_seconds.observe(self._step_seconds, tokens - noted)

    def _note_first_tokens(self, now: float) -> None:
        due = self._first_tokens_due
        reached = self._clock + _EPSILON
        while due and due[0].clock_at_start + 1.0 <= reached:
            request = due.popleft()
            steps_ago = self._clock - request.clock_at_start - 1.0
            if steps_ago < 0.0:
                steps_ago = 0.0
            request.first_token_time = time = now - steps_ago * self._step_seconds
            if self._keeps_histograms:
                self.time_to_first_token_seconds.observe(time - request.arrival_time)

    def _plan(self) -> None:
        """Set the step's length for the present batch and find when the batch next changes."""
        running = len(self._running)
        if not running:
            self._next_change = self._next_finish = math.inf
            return
        self._step_seconds = step = (
            self._base_seconds
            + self._per_sequence_seconds * running
            + self._per_context_token_seconds * self._context_tokens
        )
        finishing = self._finishing
        while True:
            clock_at_end, _, request = finishing[0]
            if request.clock_at_end == clock_at_end and request.state is _RUNNING:
                break
            heapq.heappop(finishing)
        clock = self._clock
        steps = clock_at_end - clock
        if running > 1:
            used = self._own_tokens + self.prefix_cache.active_tokens
            to_full = (self._capacity_tokens - used) / running
            if to_full < steps:
                steps = to_full
        begin = self._time
        if self._stall_until > begin:
            begin = self._stall_until
        if steps < 0.0:
            steps = 0.0
        # New prompts only delay what runs: this is the earliest that anything can finish.
        self._planned_steps = steps
        self._next_finish = self._next_change = begin + steps * step
        if self._waiting and running < self._most_sequences:
            to_boundary = self._boundary_clock - clock
            # At the boundary already: what waits lacks memory, and the next finish may help.
            if _EPSILON < to_boundary < steps:
                self._next_change = begin + to_boundary * step
                self._planned_steps = to_boundary

    # -- the batch ---------------------------------------------------------------------------

    def _admit(self) -> None:
        """Begin a step with the waiting requests that batch, memory and token budget have room for.

        While they are computed the work clock stands still.
        """
        waiting = self._waiting
        running_before = running = len(self._running)
        budget = self._chunk_tokens
        while waiting and running < self._most_sequences:
            request = waiting[0]
            total = request.prompt_tokens + request.resumed_tokens
            if running and not self._has_memory_for(request, total):
                break
            if running > running_before and total > budget:
                break
            waiting.popleft()
            budget -= self._start(request, total)
            running += 1
        if running == running_before:
            return
        computed = self._chunk_tokens - budget
        seconds = computed / self._prefill_rate
        self._stall_until = max(self._stall_until, self._time) + seconds
        self._boundary_clock = self._clock + 1.0
        if self._keeps_histograms:
            if running_before:
                gap = seconds + self._step_seconds
                self.inter_token_seconds.observe(gap, running_before)
            # First tokens are no gaps; they too must not be counted by the steps to come.
            self._gaps_noted += running

    def _has_memory_for(self, request: ServerRequest, total: int) -> bool:
        cache = self.prefix_cache
        room = self._capacity_tokens - self._own_tokens - cache.active_tokens
        room -= self._watermark_tokens
        if total <= room:
            return True
        shared = sum(tokens for _, tokens in request.prefix_segments)
        return total - shared + cache.additional_tokens(request.prefix_segments) <= room

    def _start(self, request: ServerRequest, total: int) -> int:
        """Put a request into the batch; return how many tokens have to be computed for it."""
        cache = self.prefix_cache
        own = to_compute = total
        segments = request.prefix_segments
        if segments:
            for _, tokens in segments:
                own -= tokens
            cached = cache.acquire(segments, request.prompt_tokens)
            request.cached_tokens = cached
            to_compute = total - cached
        else:
            cache.queried_tokens_total += request.prompt_tokens
        request.own_tokens = own
        self._own_tokens += own
        if cache.evictable_tokens:
            cache.evict_to(self._capacity_tokens - self._own_tokens - cache.active_tokens)
        self._waiting_tokens -= total
        self._context_tokens += total
        clock = self._clock
        request.state = _RUNNING
        request.scheduled_time = self._time
        request.clock_at_start = clock
        request.clock_at_end = clock_at_end = clock + request.output_tokens - request.resumed_tokens
        self._running[request] = None
        self._sequence += 1
        heapq.heappush(self._finishing, (clock_at_end, self._sequence, request))
        if not request.resumed_tokens:
            self._first_tokens_due.append(request)
            self.prompt_tokens_total += request.prompt_tokens
        return max(1, to_compute)

    def _finish_due(self, reached: float) -> None:
        finishing = self._finishing
        while finishing and finishing[0][0] <= reached:
            clock_at_end, _, request = heapq.heappop(finishing)
            if request.state is not _RUNNING or request.clock_at_end != clock_at_end:
                continue
            self._leave_batch(request)
            request.state = _FINISHED
            request.finish_time = self._time
            self.finished_total[request.finish_reason] += 1
            if self._keeps_histograms:
                self.end_to_end_seconds.observe(self._time - request.arrival_time)
            self._finished.append(request)

    def _leave_batch(self, request: ServerRequest) -> None:
        del self._running[request]
        decoded = min(self._clock, request.clock_at_end) - request.clock_at_start
        self._context_tokens -= request.prompt_tokens + request.resumed_tokens + decoded
        self._own_tokens -= request.own_tokens + decoded
        if request.prefix_segments:
            self.prefix_cache.release(request.prefix_segments)
        request.resumed_tokens += int(decoded + _EPSILON)
        if math.isnan(request.first_token_time):
            self._first_tokens_due.remove(request)
        if not self._running:
            # Nothing is left: take what rounding has gathered out of the books.
            self._context_tokens = self._own_tokens = self._gaps_noted = 0.0
            self._boundary_clock = self._clock

    def _preempt_newest(self) -> None:
        """Free the newest sequence's memory; it waits first in line and is computed again."""
        if len(self._running) < 2:
            return
        request = next(reversed(self._running))
        self._leave_batch(request)
        self._waiting_tokens += request.prompt_tokens + request.resumed_tokens
        request.state = _WAITING
        self._waiting.appendleft(request)
        self.preemptions_total += 1
