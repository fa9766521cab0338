"""What a vLLM server says of itself on its metrics page, picked out by one regular expression.

A page has hundreds of lines and a host needs a dozen names of them, each second; building every
sample of the page costs twenty times as much. Names are those of vLLM's documented metrics:
`kv_cache_usage_perc` replaced `gpu_cache_usage_perc`, and `inter_token_latency_seconds` replaced
`time_per_output_token_seconds`; both are understood and the newer one wins. The lines of several
engines of one server (data parallelism) are added up, KV-cache usage is averaged.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from gpu_metrics.domain.histogram import Histogram, HistogramShapeError
from gpu_metrics.domain.readings import CountReading, HistogramReading, MissingReason

__all__ = ["VllmMetrics", "parse_vllm_metrics"]

_WANTED = re.compile(
    r"\nvllm:"
    r"(num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc"
    r"|prompt_tokens_total|generation_tokens_total|cache_config_info"
    r"|(?:time_to_first_token_seconds|inter_token_latency_seconds|time_per_output_token_seconds)"
    r"_(?:bucket|sum))"
    # Possessive, and never past the end of a line: a hostile page costs no more than its length.
    r'(?:\{((?:[^"}\n]++|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+")*+)\})?[ \t]+([^ \t\n]+)'
)
_BUCKET_BOUND = re.compile(r'(?:^|,)le="([^"]*)"')
_MODEL_NAME = re.compile(r'(?:^|,)model_name="((?:[^"\\]|\\.)*)"')
_BLOCK_SIZE = re.compile(r'(?:^|,)block_size="([0-9]{1,9})"')
_BLOCK_COUNT = re.compile(r'(?:^|,)num_gpu_blocks="([0-9]{1,9})"')
# What the wire's 64-bit counts hold; a larger figure is none.
_LARGEST_COUNT = float(2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmMetrics:
    """The wanted figures of one page; `model` is empty when no line names it."""

    model: str
    running_requests: CountReading
    waiting_requests: CountReading
    kv_cache_usage_permille: CountReading
    kv_cache_capacity_tokens: CountReading
    prompt_tokens_total: CountReading
    generation_tokens_total: CountReading
    time_to_first_token: HistogramReading
    inter_token_latency: HistogramReading


@dataclass(slots=True)
class _HistogramLines:
    buckets: dict[float, float] = field(default_factory=dict)
    sums: list[float] = field(default_factory=list)


def parse_vllm_metrics(page: str) -> VllmMetrics:
    """Return the figures of a metrics page in Prometheus' text format.

    A name that is not on the page is `UNSUPPORTED`, one whose value makes no sense `MALFORMED`.
    """
    values: dict[str, list[float]] = defaultdict(list)
    histograms: dict[str, _HistogramLines] = defaultdict(_HistogramLines)
    capacities: list[int] = []
    model = ""
    for name, labels, text in _WANTED.findall("\n" + page):
        if name == "cache_config_info":
            capacities += _capacity_tokens(labels)
            continue
        number = _number(text)
        if name.endswith("_bucket"):
            buckets = histograms[name[:-7]].buckets
            bound = _bucket_bound(labels)
            buckets[bound] = buckets.get(bound, 0.0) + number
        elif name.endswith("_seconds_sum"):
            histograms[name[:-4]].sums.append(number)
        else:
            values[name].append(number)
            model = model or _model_name(labels)
    newer_latency = histograms.get("inter_token_latency_seconds")
    return VllmMetrics(
        model=model,
        running_requests=_count(values["num_requests_running"]),
        waiting_requests=_count(values["num_requests_waiting"]),
        kv_cache_usage_permille=_permille(
            values["kv_cache_usage_perc"] or values["gpu_cache_usage_perc"]
        ),
        kv_cache_capacity_tokens=sum(capacities) if capacities else MissingReason.UNSUPPORTED,
        prompt_tokens_total=_count(values["prompt_tokens_total"]),
        generation_tokens_total=_count(values["generation_tokens_total"]),
        time_to_first_token=_histogram(histograms.get("time_to_first_token_seconds")),
        inter_token_latency=_histogram(
            newer_latency or histograms.get("time_per_output_token_seconds")
        ),
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# The labels of a server's lines are the same at every scrape, and of a tier's servers too.
@lru_cache(maxsize=4096)
def _bucket_bound(labels: str) -> float:
    bound = _BUCKET_BOUND.search(labels)
    return _number(bound[1]) if bound else math.nan


@lru_cache(maxsize=256)
def _model_name(labels: str) -> str:
    named = _MODEL_NAME.search(labels)
    return named[1] if named else ""


def _capacity_tokens(labels: str) -> list[int]:
    size, count = _BLOCK_SIZE.search(labels), _BLOCK_COUNT.search(labels)
    return [int(size[1]) * int(count[1])] if size and count else []


def _count(values: list[float]) -> CountReading:
    if not values:
        return MissingReason.UNSUPPORTED
    # In plain sums infinities and overflow come out as what they are; nan compares as false.
    total = sum(values)
    return round(total) if 0 <= total < _LARGEST_COUNT else MissingReason.MALFORMED


def _permille(shares: list[float]) -> CountReading:
    if not shares:
        return MissingReason.UNSUPPORTED
    if not all(0.0 <= share <= 1.0 for share in shares):
        return MissingReason.MALFORMED
    return round(1000 * math.fsum(shares) / len(shares))


def _histogram(lines: _HistogramLines | None) -> HistogramReading:
    if lines is None:
        return MissingReason.UNSUPPORTED
    bounds = sorted(lines.buckets)
    cumulative = [lines.buckets[bound] for bound in bounds]
    if not bounds or bounds[-1] != math.inf or not lines.sums:
        return MissingReason.MALFORMED
    if not all(abs(number) < _LARGEST_COUNT for number in (*lines.sums, *cumulative)):
        return MissingReason.MALFORMED
    counts = [int(after - before) for before, after in pairwise((0.0, *cumulative))]
    try:
        return Histogram(tuple(bounds[:-1]), tuple(counts), math.fsum(lines.sums))
    except HistogramShapeError:
        return MissingReason.MALFORMED
