"""The short look at a report against the rules of the protocol."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gaming.gpu_metrics.v1 import (
    events_pb2,
    fleet_pb2,
    gpu_metrics_pb2,
    processes_pb2,
    samples_pb2,
)
from gpu_metrics import wire
from gpu_metrics.domain.readings import GpuReading, MissingReason
from gpu_metrics.domain.samples import AgentCost, FleetMetric, SampleSeries
from gpu_metrics.wire.plain_reports import plainly_fit_report
from servicekit.errors import InvalidRequest
from servicekit.interceptors.texts import TextCheck
from servicekit.interceptors.validation import RequestValidator

from .builders import make_histogram, make_report, make_server

Report = gpu_metrics_pb2.StreamReportsRequest
CHECKS = (RequestValidator(), TextCheck())


def full_report() -> Report:
    """Everything that an agent sends each second."""
    gpus = tuple(
        GpuReading(
            gpu_uuid=f"GPU-{index}",
            index=index,
            product_name="NVIDIA A10G",
            utilization_permille=1000,
            memory_temperature_celsius=MissingReason.UNSUPPORTED,
        )
        for index in range(2)
    )
    server = make_server(time_to_first_token=make_histogram(1, 2, 3, 4))
    figures = (FleetMetric.GPU_POWER_MILLIWATTS, FleetMetric.GPU_UTILIZATION_PERMILLE)
    shared = [SampleSeries(0, figure, (500_000, 250_000), (1, 2)) for figure in figures]
    alone = SampleSeries(1, FleetMetric.GPU_POWER_MILLIWATTS, (400_000,), (3,))
    report = make_report("i-1", 1, server, gpus=gpus)._replace(
        series=(*shared, alone), journal_id="journal", cost=AgentCost(driver_calls=3)
    )
    message = wire.report_message(report)
    message.servers[0].gpu_uuids[:] = ["GPU-0"]
    return message


def passes_at_length(report: Report) -> bool:
    call: Any = None  # neither check asks who calls
    try:
        for check in CHECKS:
            check.check(call, report)
    except InvalidRequest:
        return False
    return True


def test_what_agents_send_every_second_is_plainly_fit() -> None:
    report = full_report()
    assert report.sample_blocks
    assert report.series
    assert plainly_fit_report(report)


TEXTS = st.one_of(
    st.sampled_from(["", "a", "\0", "a\u200bb", "e\u0301", "a b", "line\nbreak"]),
    st.integers(1, 300).map(lambda length: "x" * length),
)
NUMBERS = st.one_of(st.integers(-1, 70), st.sampled_from([999, 1000, 1001, 2**31 - 1]))
LENGTHS = st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129, 130, 512, 513, 1025])


def messages_in(message: Message) -> list[Message]:
    """All messages within one, itself included."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                found += messages_in(part)
    return found


@st.composite
def altered_reports(draw: st.DrawFn) -> Report:
    """A fit report of which a few fields were set to anything near their bounds."""
    report = full_report()
    for _ in range(draw(st.integers(1, 2))):
        within = draw(st.sampled_from(messages_in(report)))
        field: Any = draw(st.sampled_from(tuple(within.DESCRIPTOR.fields)))
        if draw(st.integers(0, 9)) == 0:
            within.ClearField(field.name)
            continue
        scalar: st.SearchStrategy[Any] = {
            field.CPPTYPE_STRING: TEXTS,
            field.CPPTYPE_BOOL: st.booleans(),
            field.CPPTYPE_DOUBLE: st.floats(),
            field.CPPTYPE_ENUM: st.integers(-1, 12),
            field.CPPTYPE_MESSAGE: st.none(),
        }.get(field.cpp_type, NUMBERS)
        value = draw(scalar)
        try:
            if field.message_type is not None and field.is_repeated:
                whole = getattr(within, field.name)
                example = [whole[0]] if whole else [whole.add()]
                whole.MergeFrom(example * draw(LENGTHS))
            elif field.message_type is not None:
                getattr(within, field.name).SetInParent()
            elif field.is_repeated:
                getattr(within, field.name)[:] = [value] * draw(LENGTHS)
            else:
                setattr(within, field.name, value)
        except ValueError:
            pass  # no number of the field's type
    return report


@given(altered_reports())
def test_no_report_is_plainly_fit_that_is_refused_at_length(report: Report) -> None:
    assert passes_at_length(report) or not plainly_fit_report(report)


BROKEN: dict[str, Callable[[Any], object]] = {
    "no sequence": lambda report: report.ClearField("sequence"),
    "no host": lambda report: report.ClearField("host"),
    "no sample time": lambda report: report.ClearField("sample_time"),
    "no boot id": lambda report: report.ClearField("boot_id"),
    "a boot id of 65": lambda report: setattr(report, "boot_id", "x" * 65),
    "a hidden character": lambda report: setattr(report, "boot_id", "a\u200bb"),
    "a journal id of 65": lambda report: setattr(report, "journal_id", "x" * 65),
    "a host without an id": lambda report: report.host.ClearField("host_id"),
    "an unknown purchase": lambda report: setattr(report.host, "purchase_option", 99),
    "a host of 129": lambda report: setattr(report.host, "host_id", "x" * 129),
    "a type of 33": lambda report: setattr(report.host, "instance_type", "x" * 33),
    "a zone of 33": lambda report: setattr(report.host, "availability_zone", "x" * 33),
    "a cluster of 256": lambda report: setattr(report.host, "ecs_cluster", "x" * 256),
    "a driver of 81": lambda report: setattr(report.host, "driver_version", "x" * 81),
    "a host with a hidden name": lambda report: setattr(report.host, "ecs_cluster", "a\u200bb"),
    "65 GPUs": lambda report: report.gpus.MergeFrom([report.gpus[0]] * 63),
    "65 servers": lambda report: report.servers.MergeFrom([report.servers[0]] * 64),
    "1,025 series": lambda report: report.series.MergeFrom([report.series[0]] * 1024),
    "1,025 blocks": lambda report: report.sample_blocks.MergeFrom([report.sample_blocks[0]] * 1024),
    "a GPU without a UUID": lambda report: report.gpus[1].ClearField("gpu_uuid"),
    "a product of 97": lambda report: setattr(report.gpus[1], "product_name", "x" * 97),
    "a bus id of 33": lambda report: setattr(report.gpus[1], "pci_bus_id", "x" * 33),
    "use of 1,001": lambda report: setattr(report.gpus[1], "utilization_permille", 1001),
    "a peak of 1,001": lambda report: setattr(report.gpus[1], "peak_utilization_permille", 1001),
    "memory 1,001": lambda report: setattr(report.gpus[1], "memory_utilization_permille", 1001),
    "33 missing": lambda report: report.gpus[1].missing.MergeFrom([report.gpus[1].missing[0]] * 33),
    "an unknown reason": lambda report: setattr(report.gpus[1].missing[0], "reason", 99),
    "a nameless reason": lambda report: report.gpus[1].missing[0].ClearField("field"),
    "no tier": lambda report: report.servers[0].ClearField("tier"),
    "an unknown state": lambda report: setattr(report.servers[0], "state", 99),
    "a cache of 1,001": lambda report: setattr(report.servers[0], "kv_cache_usage_permille", 1001),
    "no server id": lambda report: report.servers[0].ClearField("server_id"),
    "no endpoint": lambda report: report.servers[0].ClearField("endpoint_url"),
    "a model of 129": lambda report: setattr(report.servers[0], "model", "x" * 129),
    "17 GPUs of a server": lambda report: report.servers[0].gpu_uuids.extend(["x"] * 16),
    "a hidden GPU": lambda report: report.servers[0].gpu_uuids.append("a\u200bb"),
    "129 bounds": lambda report: report.servers[0].time_to_first_token.upper_bounds_seconds.extend(
        [1.0] * 126
    ),
    "130 buckets": lambda report: report.servers[0].inter_token_latency.bucket_counts.extend(
        [1] * 130
    ),
    "GPU 64 in a series": lambda report: setattr(report.series[0], "gpu_index", 64),
    "a series of nothing": lambda report: report.series[0].ClearField("metric"),
    "513 moments": lambda report: report.series[0].offset_microseconds.extend([1] * 512),
    "513 values": lambda report: report.series[0].values.extend([1] * 512),
    "513 moments of a block": lambda report: report.sample_blocks[0].offset_microseconds.extend(
        [1] * 511
    ),
    "1,025 columns": lambda report: report.sample_blocks[0].gpu_indexes.extend([1] * 1023),
    "1,025 figures": lambda report: report.sample_blocks[0].metrics.extend([1] * 1023),
    "too many values": lambda report: report.sample_blocks[0].values.extend([1] * 524_288),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_broken_rule_is_seen(what: str) -> None:
    report = full_report()
    BROKEN[what](report)
    assert not passes_at_length(report)
    assert not plainly_fit_report(report)


@pytest.mark.parametrize(
    "unusual",
    [
        Report(processes=processes_pb2.ProcessReading()),
        Report(events=[events_pb2.GpuEvent(sequence=1)]),
        Report(host=fleet_pb2.Host(availability_zone="\u0101" * 900)),
    ],
    ids=["processes", "events", "a long host"],
)
def test_what_comes_seldom_is_looked_at_at_length(unusual: Report) -> None:
    report = full_report()
    report.MergeFrom(unusual)
    assert not plainly_fit_report(report)


def test_every_figure_may_be_sampled() -> None:
    report = full_report()
    for metric in samples_pb2.FleetMetric.values()[1:]:
        report.series[0].metric = metric
        assert plainly_fit_report(report)
