from datetime import timedelta

from gaming.gpu_metrics.v1 import events_pb2, fleet_pb2, gpu_metrics_pb2, samples_pb2
from gpu_metrics import wire
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, Severity
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.domain.readings import (
    GpuReading,
    Host,
    HostReport,
    MissingReason,
    ModelServerState,
    PurchaseOption,
    Tier,
)
from gpu_metrics.domain.samples import AgentCost, FleetMetric, SampleSeries

from .builders import NOON, make_histogram, make_report, make_server


def full_report() -> HostReport:
    return HostReport(
        host=Host(
            host_id="i-1",
            instance_type="g5.xlarge",
            availability_zone="us-east-1a",
            purchase_option=PurchaseOption.SPOT,
            interruption_time=NOON + timedelta(seconds=120),
            simulated=True,
            rebalance_time=NOON - timedelta(seconds=30),
            ecs_cluster="gpus",
            driver_version="570.172.08",
        ),
        boot_id="boot",
        sequence=7,
        sample_time=NOON,
        gpus=(
            GpuReading(
                gpu_uuid="GPU-1",
                index=3,
                product_name="NVIDIA A10G",
                utilization_permille=0,
                memory_used_bytes=1,
                memory_total_bytes=2**35,
                power_milliwatts=MissingReason.LOST,
                energy_millijoules=MissingReason.TIMEOUT,
                temperature_celsius=MissingReason.PERMISSION,
                sm_clock_megahertz=MissingReason.UNSUPPORTED,
                peak_utilization_permille=1000,
                clock_event_reasons=2**63,
                ecc_corrected_total=MissingReason.HUNG,
                pcie_replays_total=MissingReason.STALE,
                driver_epoch=5,
            ),
        ),
        servers=(
            make_server(
                "gold-1",
                model="m",
                running_requests=0,
                waiting_requests=MissingReason.MALFORMED,
                prompt_tokens_total=MissingReason.UNREACHABLE,
                time_to_first_token=make_histogram(0, 0, 0, 0),
                inter_token_latency=MissingReason.MALFORMED,
                gpu_uuids=("GPU-1",),
            ),
            make_server("silver-1", Tier.SILVER, state=ModelServerState.STARTING),
        ),
        leaving=True,
        monotonic_microseconds=2**40,
        series=(
            SampleSeries(
                gpu_index=3,
                metric=FleetMetric.GPU_UTILIZATION_PERMILLE,
                offset_microseconds=(999_000, 166_667, 166_667),
                values=(0, 1000, 370),
            ),
        ),
        events=(
            GpuEvent(
                sequence=9,
                kind=GpuEventKind.XID,
                time=NOON,
                gpu_uuid="GPU-1",
                xid=79,
                severity=Severity.CRITICAL,
                recommended_action="restart the host",
                description="The GPU fell off the bus.",
                due_time=NOON + timedelta(seconds=1),
                xid_count=2,
            ),
        ),
        journal_id="journal",
        events_only=True,
        processes=ProcessReading(
            read_time=NOON,
            processes=(
                GpuProcess(
                    process_id=41,
                    gpu_uuid="GPU-1",
                    memory_used_bytes=0,
                    name="vllm",
                    container_id="c0ffee",
                    ecs_task_arn="arn:aws:ecs:us-east-1:1:task/gold/1",
                    ecs_service="gold",
                    container_name="server",
                    server_id="gold-1",
                    model="m",
                    assigned_gpu_uuids=("GPU-1",),
                ),
                GpuProcess(process_id=42, gpu_uuid="GPU-1", unknown_because="no cgroup"),
            ),
            missing=(("GPU-2", MissingReason.HUNG.value),),
        ),
        cost=AgentCost(
            driver_calls=7,
            driver_seconds=0.25,
            cpu_seconds=1.5,
            resident_bytes=2**26,
            replaced_reports=1,
            lost_events=3,
        ),
    )


def test_a_report_survives_the_wire_with_every_value_and_every_reason() -> None:
    message = wire.report_message(full_report())
    received = gpu_metrics_pb2.StreamReportsRequest.FromString(message.SerializeToString())
    assert wire.report_from_message(received) == full_report()


def test_a_missing_figure_is_unset_and_named_with_its_reason() -> None:
    gpu = wire.report_message(full_report()).gpus[0]
    assert not gpu.HasField("power_milliwatts")
    assert gpu.HasField("utilization_permille")
    assert {(entry.field, entry.reason) for entry in gpu.missing} == {
        ("power_milliwatts", fleet_pb2.MISSING_REASON_LOST),
        ("energy_millijoules", fleet_pb2.MISSING_REASON_TIMEOUT),
        ("temperature_celsius", fleet_pb2.MISSING_REASON_PERMISSION),
        ("sm_clock_megahertz", fleet_pb2.MISSING_REASON_UNSUPPORTED),
        ("ecc_corrected_total", fleet_pb2.MISSING_REASON_HUNG),
        ("pcie_replays_total", fleet_pb2.MISSING_REASON_STALE),
    }


def test_a_figure_left_out_without_a_reason_is_missing_all_the_same() -> None:
    message = gpu_metrics_pb2.StreamReportsRequest()
    message.CopyFrom(wire.report_message(full_report()))
    del message.gpus[0].missing[:]
    received = wire.report_from_message(message).gpus[0]
    assert received.power_milliwatts is MissingReason.NOT_TOLD
    assert received.utilization_permille == 0


def test_the_domain_knows_exactly_the_protocols_enum_values() -> None:
    assert {r.value for r in MissingReason} == set(fleet_pb2.MissingReason.values())
    assert {s.value for s in ModelServerState} == set(fleet_pb2.ModelServerState.values())
    assert {p.value for p in PurchaseOption} == set(fleet_pb2.PurchaseOption.values())
    assert {m.value for m in FleetMetric} == set(samples_pb2.FleetMetric.values()) - {0}
    assert {k.value for k in GpuEventKind} == set(events_pb2.GpuEventKind.values()) - {0}
    assert {s.value for s in Severity} == set(events_pb2.Severity.values())


def test_an_aggregate_sets_only_what_somebody_reported() -> None:
    view = FleetView(FleetPolicy())
    server = make_server("a", running_requests=0, waiting_requests=MissingReason.LOST)
    view.apply(make_report("i-1", 1, server), 0.0, NOON)
    message = wire.aggregate_message(view.aggregates(0.0)[0])
    assert message.HasField("running_requests")
    assert not message.HasField("waiting_requests")
    assert not message.HasField("time_to_first_token")
    assert not message.HasField("power_milliwatts")


def test_an_empty_histogram_is_present_and_an_absent_one_is_not() -> None:
    server = wire.report_message(full_report()).servers[0]
    assert server.HasField("time_to_first_token")
    assert not server.HasField("inter_token_latency")


def test_a_host_view_says_how_current_it_is() -> None:
    view = FleetView(FleetPolicy(stale_after_seconds=5.0))
    view.apply(make_report("i-1", 1), 0.0, NOON)
    fresh, stale = (wire.host_view_message(view.hosts(now)[0]) for now in (1.0, 6.0))
    assert fresh.freshness == fleet_pb2.FRESHNESS_FRESH
    assert stale.freshness == fleet_pb2.FRESHNESS_STALE
    assert stale.receive_time.ToDatetime() == NOON.replace(tzinfo=None)
