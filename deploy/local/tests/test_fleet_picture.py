from datetime import UTC, datetime

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2
from localsuite.observe.fleet import FleetPicture


def a_host(
    host_id: str,
    *,
    tier: tier_pb2.Tier.ValueType = tier_pb2.TIER_GOLD,
    state: fleet_pb2.ModelServerState.ValueType = fleet_pb2.MODEL_SERVER_STATE_READY,
    stale: bool = False,
    interrupted: bool = False,
) -> fleet_pb2.HostView:
    view = fleet_pb2.HostView(
        host=fleet_pb2.Host(host_id=host_id),
        gpus=[fleet_pb2.GpuSample(gpu_uuid=f"GPU-{host_id}")],
        servers=[
            fleet_pb2.ModelServerSample(
                server_id=f"server-{host_id}", tier=tier, state=state, gpu_uuids=[f"GPU-{host_id}"]
            )
        ],
        freshness=fleet_pb2.FRESHNESS_STALE if stale else fleet_pb2.FRESHNESS_FRESH,
    )
    if interrupted:
        view.host.interruption_time.FromDatetime(datetime(2026, 1, 1, tzinfo=UTC))
    return view


def snapshot(*hosts: fleet_pb2.HostView) -> gpu_metrics_pb2.WatchFleetResponse:
    return gpu_metrics_pb2.WatchFleetResponse(snapshot=gpu_metrics_pb2.FleetSnapshot(hosts=hosts))


def delta(
    *hosts: fleet_pb2.HostView, removed: tuple[str, ...] = ()
) -> gpu_metrics_pb2.WatchFleetResponse:
    return gpu_metrics_pb2.WatchFleetResponse(
        delta=gpu_metrics_pb2.FleetDelta(changed_hosts=hosts, removed_host_ids=removed)
    )


def test_servers_are_counted_by_what_they_are_doing() -> None:
    picture = FleetPicture()
    picture.apply(
        snapshot(
            a_host("a"),
            a_host("b", state=fleet_pb2.MODEL_SERVER_STATE_STARTING),
            a_host("c", stale=True),
            a_host("d", tier=tier_pb2.TIER_SILVER),
        )
    )
    gold = picture.servers("gold")
    assert (gold.ready, gold.starting, gold.stale) == (1, 1, 1)
    assert picture.servers("silver").ready == 1
    assert picture.gpus == 4


def test_a_spot_notice_is_told_once_and_its_end_too() -> None:
    picture = FleetPicture()
    assert picture.apply(snapshot(a_host("a"))) == []
    (notice,) = picture.apply(delta(a_host("a", interrupted=True)))
    assert "Spot notice" in notice
    assert picture.apply(delta(a_host("a", interrupted=True))) == []
    assert picture.servers("gold").interrupted == 1
    (gone,) = picture.apply(delta(removed=("a",)))
    assert "taken back by the cloud" in gone


def test_a_host_that_falls_silent_and_comes_back_is_told_again_when_it_falls_silent_again() -> None:
    picture = FleetPicture()
    picture.apply(snapshot(a_host("a")))
    assert len(picture.apply(delta(a_host("a", stale=True)))) == 1
    assert picture.apply(delta(a_host("a", stale=True))) == []
    assert picture.apply(delta(a_host("a"))) == []
    assert len(picture.apply(delta(a_host("a", stale=True)))) == 1


def test_hosts_that_leave_in_order_are_not_news() -> None:
    picture = FleetPicture()
    picture.apply(snapshot(a_host("a"), a_host("b")))
    assert picture.apply(delta(removed=("a",))) == []
    assert picture.apply(snapshot()) == []
    assert picture.gpus == 0
