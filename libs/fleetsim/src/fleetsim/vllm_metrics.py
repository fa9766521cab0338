"""The `/metrics` page of a simulated model server, with vLLM's names, labels and buckets.

Names follow vLLM's Prometheus logger (vllm/v1/metrics/loggers.py), present ones and the older
names that were replaced (`gpu_cache_usage_perc`, `time_per_output_token_seconds`), because fleets
run both. Rendering is plain string work: about 0.1 ms a page.
"""

from fleetsim.latency_histogram import LatencyHistogram
from fleetsim.model_server import ModelServer

__all__ = ["CONTENT_TYPE", "render_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render_metrics(server: ModelServer, now: float) -> str:
    """Return the page in the Prometheus text format. Settles the server at `now`."""
    server.settle(now)
    load = server.load(now)
    profile = server.profile
    labels = f'engine="0",model_name="{profile.model_name}"'
    cache = server.prefix_cache
    usage = f"{load.kv_cache_usage_ratio:.9g}"
    lines: list[str] = []
    for name, kind, value in (
        ("num_requests_running", "gauge", load.running),
        ("num_requests_waiting", "gauge", load.waiting),
        ("kv_cache_usage_perc", "gauge", usage),
        ("gpu_cache_usage_perc", "gauge", usage),
        ("prefix_cache_queries_total", "counter", cache.queried_tokens_total),
        ("prefix_cache_hits_total", "counter", cache.hit_tokens_total),
        ("num_preemptions_total", "counter", server.preemptions_total),
        ("prompt_tokens_total", "counter", server.prompt_tokens_total),
        ("generation_tokens_total", "counter", int(server.generation_tokens_total + 1e-6)),
    ):
        lines.append(f"# TYPE vllm:{name} {kind}\nvllm:{name}{{{labels}}} {value}")
    lines.append("# TYPE vllm:request_success_total counter")
    for reason, count in server.finished_total.items():
        lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {count}')
    lines.append(
        "# TYPE vllm:cache_config_info gauge\n"
        f'vllm:cache_config_info{{block_size="{profile.kv_block_tokens}",'
        f'enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.9",'
        f'num_gpu_blocks="{profile.kv_cache_blocks}"}} 1.0'
    )
    _histogram(lines, "time_to_first_token_seconds", labels, server.time_to_first_token_seconds)
    inter_token = server.inter_token_seconds
    _histogram(lines, "inter_token_latency_seconds", labels, inter_token)
    _histogram(lines, "time_per_output_token_seconds", labels, inter_token)
    _histogram(lines, "e2e_request_latency_seconds", labels, server.end_to_end_seconds)
    lines.append("")
    return "\n".join(lines)


def _histogram(lines: list[str], name: str, labels: str, histogram: LatencyHistogram) -> None:
    lines.append(f"# TYPE vllm:{name} histogram")
    prefix = f'vllm:{name}_bucket{{{labels},le="'
    cumulative = 0.0
    for boundary, count in zip(histogram.boundaries, histogram.counts, strict=False):
        cumulative += count
        lines.append(f'{prefix}{boundary}"}} {int(cumulative + 1e-6)}')
    total = int(cumulative + histogram.counts[-1] + 1e-6)
    lines.append(f'{prefix}+Inf"}} {total}')
    lines.append(f"vllm:{name}_count{{{labels}}} {total}")
    lines.append(f"vllm:{name}_sum{{{labels}}} {histogram.total_seconds:.9g}")
