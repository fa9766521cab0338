"""Whether a report certainly keeps the protocol's rules, told sooner than by its descriptors.

The rules stand in the protocol; what is here repeats those of the parts that come every second, and
calls everything else not plain, which is then checked at length. A test holds both against each
other.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, starmap
from operator import attrgetter
from typing import Any

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, samples_pb2

__all__ = ["plainly_fit_report"]

_GPUS = 64
# What is remembered of hosts is bounded; few of those that keep the rules are larger.
_HOST_BYTES = 1024
_SERVERS = 64
_SERIES = 1024
_BLOCKS = 1024
_SAMPLES = 512
_COLUMNS = 1024
_VALUES = 524_288
_MISSING = 32
_WHOLE_PERMILLE = 1000

_TIERS = frozenset(tier_pb2.Tier.values()) - {0}
_METRICS = frozenset(samples_pb2.FleetMetric.values()) - {0}
_STATES = frozenset(fleet_pb2.ModelServerState.values())
_PURCHASES = frozenset(fleet_pb2.PurchaseOption.values())
# The fields that agents name, with every reason; a name of another kind is looked at at length.
_MISSING_READINGS = frozenset(
    (field.name, reason)
    for kind in (fleet_pb2.GpuSample, fleet_pb2.ModelServerSample)
    for field in kind.DESCRIPTOR.fields
    for reason in fleet_pb2.MissingReason.values()
)

_missing_parts = attrgetter("field", "reason")
# What has rules, read at once: nearly all of the time is that of reading one field after the other.
_gpu_texts = attrgetter("gpu_uuid", "product_name", "pci_bus_id")
_gpu_permilles = attrgetter(
    "utilization_permille", "peak_utilization_permille", "memory_utilization_permille"
)
_gpu_missing = attrgetter("missing")
_report_parts = attrgetter(
    "sequence",
    "boot_id",
    "journal_id",
    "events",
    "host",
    "gpus",
    "servers",
    "series",
    "sample_blocks",
)


def plainly_fit_report(report: gpu_metrics_pb2.StreamReportsRequest) -> bool:
    """Return True only for a report that breaks no rule of the protocol and hides no character."""
    sequence, boot_id, journal_id, events, host, gpus, servers, series, blocks = _report_parts(
        report
    )
    return (
        sequence >= 1
        and report.HasField("host")
        and report.HasField("sample_time")
        and _name(boot_id, 1, 64)
        and _name(journal_id, 0, 64)
        # Those come seldom, or with nothing else.
        and not events
        and not report.HasField("processes")
        and host.ByteSize() <= _HOST_BYTES
        and _host_fits(host.SerializeToString())
        and len(gpus) <= _GPUS
        and len(servers) <= _SERVERS
        and len(series) <= _SERIES
        and len(blocks) <= _BLOCKS
        # A slice is taken at once, while an iteration ends with an exception.
        and (not gpus or _gpus_fit(gpus[:]))
        and all(map(_server_fits, servers[:]))
        and all(map(_series_fits, series[:]))
        and all(map(_block_fits, blocks[:]))
    )


@lru_cache(maxsize=4096)
def _host_fits(serialized: bytes) -> bool:
    # A host hardly ever changes what it says of itself.
    host = fleet_pb2.Host.FromString(serialized)
    return (
        host.purchase_option in _PURCHASES
        and _name(host.host_id, 1, 128)
        and _name(host.instance_type, 0, 32)
        and _name(host.availability_zone, 0, 32)
        and _name(host.ecs_cluster, 0, 255)
        and _name(host.driver_version, 0, 80)
    )


def _gpus_fit(gpus: Sequence[fleet_pb2.GpuSample]) -> bool:
    if not all(starmap(_gpu_texts_fit, map(_gpu_texts, gpus))):
        return False
    if max(map(max, map(_gpu_permilles, gpus))) > _WHOLE_PERMILLE:
        return False
    missing = [each[:] for each in map(_gpu_missing, gpus) if each]
    return not missing or (
        max(map(len, missing)) <= _MISSING
        and _MISSING_READINGS.issuperset(map(_missing_parts, chain.from_iterable(missing)))
    )


# A GPU never changes what it is called.
@lru_cache(maxsize=16_384)
def _gpu_texts_fit(gpu_uuid: str, product_name: str, pci_bus_id: str) -> bool:
    return _name(gpu_uuid, 1, 80) and _name(product_name, 0, 96) and _name(pci_bus_id, 0, 32)


def _server_fits(server: fleet_pb2.ModelServerSample) -> bool:
    return (
        server.tier in _TIERS
        and server.state in _STATES
        and server.kv_cache_usage_permille <= _WHOLE_PERMILLE
        and _name(server.server_id, 1, 128)
        and _name(server.endpoint_url, 1, 256)
        and _name(server.model, 0, 128)
        and len(server.gpu_uuids) <= 16
        and all(map(str.isprintable, server.gpu_uuids))
        and _histogram_fits(server.time_to_first_token)
        and _histogram_fits(server.inter_token_latency)
        and _missing_fit(server.missing)
    )


def _histogram_fits(histogram: fleet_pb2.LatencyHistogram) -> bool:
    return len(histogram.upper_bounds_seconds) <= 128 and len(histogram.bucket_counts) <= 129


def _series_fits(series: samples_pb2.SampleSeries) -> bool:
    return (
        series.gpu_index < _GPUS
        and series.metric in _METRICS
        and len(series.offset_microseconds) <= _SAMPLES
        and len(series.values) <= _SAMPLES
    )


def _block_fits(block: samples_pb2.SampleBlock) -> bool:
    return (
        len(block.offset_microseconds) <= _SAMPLES
        and len(block.gpu_indexes) <= _COLUMNS
        and len(block.metrics) <= _COLUMNS
        and len(block.values) <= _VALUES
    )


def _missing_fit(missing: Any) -> bool:
    return len(missing) <= _MISSING and _MISSING_READINGS.issuperset(
        # A slice is taken at once, while an iteration ends with an exception.
        map(_missing_parts, missing[:])
    )


def _name(text: str, shortest: int, longest: int) -> bool:
    return shortest <= len(text) <= longest and text.isprintable()
