import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import MissingReason
from gpu_metrics.domain.vllm_exposition import parse_vllm_metrics

PRESENT_NAMES = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="studio/gold-3b"} 12.0
vllm:num_requests_waiting{engine="0",model_name="studio/gold-3b"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="studio/gold-3b"} 0.4237
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="7437"} 1.0
vllm:prompt_tokens_total{engine="0",model_name="studio/gold-3b"} 1.234567e+06
vllm:generation_tokens_total{engine="0",model_name="studio/gold-3b"} 98765.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="studio/gold-3b"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="studio/gold-3b"} 90.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.25",model_name="studio/gold-3b"} 97.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="studio/gold-3b"} 100.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="studio/gold-3b"} 100.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="studio/gold-3b"} 9.5
vllm:time_to_first_token_seconds_created{engine="0",model_name="studio/gold-3b"} 1.76e+09
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="studio/gold-3b"} 5.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="studio/gold-3b"} 6.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="studio/gold-3b"} 0.07
vllm:request_success_total{engine="0",finished_reason="stop",model_name="studio/gold-3b"} 55.0
process_resident_memory_bytes 3.1e+09
"""


def test_every_wanted_figure_of_a_page_is_read() -> None:
    metrics = parse_vllm_metrics(PRESENT_NAMES)
    assert metrics.model == "studio/gold-3b"
    assert (metrics.running_requests, metrics.waiting_requests) == (12, 3)
    assert metrics.kv_cache_usage_permille == 424
    assert metrics.kv_cache_capacity_tokens == 7437 * 16
    assert metrics.prompt_tokens_total == 1_234_567
    assert metrics.generation_tokens_total == 98_765
    assert metrics.time_to_first_token == Histogram((0.001, 0.1, 0.25), (0, 90, 7, 3), 9.5)
    assert metrics.inter_token_latency == Histogram((0.01,), (5, 1), 0.07)


def test_the_older_names_are_understood() -> None:
    page = PRESENT_NAMES.replace("kv_cache_usage_perc", "gpu_cache_usage_perc").replace(
        "inter_token_latency_seconds", "time_per_output_token_seconds"
    )
    assert parse_vllm_metrics(page) == parse_vllm_metrics(PRESENT_NAMES)


def test_where_both_names_are_given_the_newer_one_wins() -> None:
    page = PRESENT_NAMES + (
        'vllm:gpu_cache_usage_perc{engine="0"} 0.9\n'
        'vllm:time_per_output_token_seconds_bucket{le="+Inf"} 77\n'
        "vllm:time_per_output_token_seconds_sum 1\n"
    )
    metrics = parse_vllm_metrics(page)
    assert metrics.kv_cache_usage_permille == 424
    assert metrics.inter_token_latency == Histogram((0.01,), (5, 1), 0.07)


def test_the_engines_of_one_server_are_added_up() -> None:
    second = PRESENT_NAMES.replace('engine="0"', 'engine="1"').replace("0.4237", "0.2237")
    metrics = parse_vllm_metrics(PRESENT_NAMES + second)
    assert metrics.running_requests == 24
    assert metrics.kv_cache_usage_permille == 324
    assert metrics.kv_cache_capacity_tokens == 2 * 7437 * 16
    assert metrics.time_to_first_token == Histogram((0.001, 0.1, 0.25), (0, 180, 14, 6), 19.0)


def test_what_is_not_on_the_page_is_unsupported() -> None:
    metrics = parse_vllm_metrics("process_cpu_seconds_total 1\n")
    assert metrics.model == ""
    assert metrics.running_requests is MissingReason.UNSUPPORTED
    assert metrics.kv_cache_usage_permille is MissingReason.UNSUPPORTED
    assert metrics.kv_cache_capacity_tokens is MissingReason.UNSUPPORTED
    assert metrics.time_to_first_token is MissingReason.UNSUPPORTED


def test_before_the_cache_is_sized_its_capacity_is_unsupported_and_not_zero() -> None:
    page = PRESENT_NAMES.replace('num_gpu_blocks="7437"', 'num_gpu_blocks="None"')
    assert parse_vllm_metrics(page).kv_cache_capacity_tokens is MissingReason.UNSUPPORTED


@pytest.mark.parametrize("value", ["NaN", "-1.0", "many", "+Inf"])
def test_a_value_that_makes_no_sense_is_malformed(value: str) -> None:
    page = PRESENT_NAMES.replace("} 12.0", f"}} {value}").replace("0.4237", value)
    metrics = parse_vllm_metrics(page)
    assert metrics.running_requests is MissingReason.MALFORMED
    assert metrics.kv_cache_usage_permille is MissingReason.MALFORMED
    assert metrics.waiting_requests == 3


@pytest.mark.parametrize(
    ("found", "replaced"),
    [
        ('le="+Inf",model_name="studio/gold-3b"} 100.0', 'le="1.0"} 100.0'),
        ('le="0.25",model_name="studio/gold-3b"} 97.0', 'le="0.25"} 89.0'),
        ("vllm:time_to_first_token_seconds_sum", "vllm:something_else_sum"),
        ('le="0.25",model_name="studio/gold-3b"} 97.0', 'le="wide"} 97.0'),
    ],
)
def test_a_histogram_that_contradicts_itself_is_malformed(found: str, replaced: str) -> None:
    assert found in PRESENT_NAMES
    metrics = parse_vllm_metrics(PRESENT_NAMES.replace(found, replaced))
    assert metrics.time_to_first_token is MissingReason.MALFORMED
    assert metrics.running_requests == 12


def test_braces_and_quotes_inside_labels_do_not_confuse() -> None:
    page = 'vllm:num_requests_running{model_name="a}b\\"c",engine="0"} 4\n'
    metrics = parse_vllm_metrics(page)
    assert metrics.running_requests == 4
    assert metrics.model == 'a}b\\"c'


def test_similar_names_are_not_taken_for_the_wanted_ones() -> None:
    page = (
        "vllm:num_requests_running_total 7\nother_vllm:num_requests_running 7\n"
        "# vllm:num_requests_running 7\n"
    )
    assert parse_vllm_metrics(page).running_requests is MissingReason.UNSUPPORTED


@settings(deadline=None)
@given(st.text(max_size=300))
def test_no_page_whatever_raises(page: str) -> None:
    parse_vllm_metrics(page)
    parse_vllm_metrics("vllm:num_requests_running{" + page)


def test_a_hostile_page_is_parsed_in_linear_time() -> None:
    began = time.process_time()
    parse_vllm_metrics('vllm:num_requests_running{a="' + "\\" * 200_000 + "\n")
    parse_vllm_metrics("vllm:num_requests_running{" * 20_000)
    parse_vllm_metrics("vllm:num_requests_running{\n" * 20_000)
    parse_vllm_metrics('vllm:num_requests_running{a="\n' * 20_000)
    # Backtracking over the whole page from each of its lines would take minutes.
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    "page",
    [
        "vllm:num_requests_running 1.7e308\nvllm:num_requests_running 1.7e308",
        "vllm:num_requests_running 1e19",
        "vllm:num_requests_running +Inf\nvllm:num_requests_running -Inf",
    ],
)
def test_a_count_beyond_every_count_is_malformed(page: str) -> None:
    assert parse_vllm_metrics(page).running_requests is MissingReason.MALFORMED


def test_buckets_beyond_every_count_are_malformed() -> None:
    page = (
        'vllm:time_to_first_token_seconds_bucket{le="0.1"} -1.7e308\n'
        'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 1.7e308\n'
        "vllm:time_to_first_token_seconds_sum 1"
    )
    assert parse_vllm_metrics(page).time_to_first_token is MissingReason.MALFORMED


def test_a_cache_of_more_blocks_than_any_has_no_capacity() -> None:
    page = f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{"9" * 5000}"}} 1'
    assert parse_vllm_metrics(page).kv_cache_capacity_tokens is MissingReason.UNSUPPORTED
