from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.readings import CountReading, GpuReading, MissingReason

from .builders import NOON, make_report, make_server


class Host:
    """A view that is told tokens and energy second by second."""

    def __init__(self) -> None:
        self.view = FleetView(FleetPolicy())
        self.told = 0

    def tell(
        self,
        tokens: CountReading,
        *energy: CountReading,
        epoch: int = 1,
        host: str = "i-1",
        names: tuple[str, ...] = (),
    ) -> None:
        gpus = tuple(
            GpuReading(
                gpu_uuid=f"GPU-{host}-{index}",
                index=index,
                energy_millijoules=value,
                driver_epoch=epoch,
            )
            for index, value in enumerate(energy)
        )
        server = make_server(f"s-{host}", generation_tokens_total=tokens, gpu_uuids=names)
        self.told += 1
        self.view.apply(make_report(host, self.told, server, gpus=gpus), float(self.told), NOON)

    @property
    def tokens_per_joule(self) -> float | None:
        return self.view.aggregates(float(self.told))[0].tokens_per_joule


def test_tokens_are_divided_by_the_joules_of_the_same_time() -> None:
    host = Host()
    host.tell(1000, 50_000, 70_000)
    host.tell(1600, 150_000, 270_000)
    assert host.tokens_per_joule == 600 / 300


def test_before_two_reports_nothing_is_known() -> None:
    host = Host()
    host.tell(1000, 50_000)
    assert host.tokens_per_joule is None


def test_a_driver_that_was_loaded_anew_leaves_that_stretch_out() -> None:
    host = Host()
    host.tell(0, 90_000)
    host.tell(100, 140_000)
    host.tell(900, 150_000, epoch=2)
    host.tell(1000, 200_000, epoch=2)
    assert host.tokens_per_joule == 200 / 100


def test_a_server_that_started_again_leaves_that_stretch_out() -> None:
    host = Host()
    host.tell(1000, 0)
    host.tell(50, 100_000)
    host.tell(150, 200_000)
    assert host.tokens_per_joule == 1.0


def test_a_gpu_without_a_counter_makes_its_server_count_for_nothing() -> None:
    host = Host()
    host.tell(0, 0, MissingReason.UNSUPPORTED)
    host.tell(100, 1000, MissingReason.UNSUPPORTED)
    assert host.tokens_per_joule is None


def test_a_gpu_that_vanished_does_not_make_tokens_cheaper() -> None:
    host = Host()
    names = ("GPU-i-1-0", "GPU-i-1-1")
    host.tell(0, 0, 0, names=names)
    host.tell(100, 50_000, names=names)
    host.tell(200, 100_000, names=names)
    assert host.tokens_per_joule is None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1000),
            st.one_of(st.integers(0, 10**6), st.just(MissingReason.TIMEOUT)),
            st.integers(1, 2),
        ),
        max_size=12,
    )
)
def test_whatever_the_counters_do_it_is_never_negative(
    told: list[tuple[int, int | MissingReason, int]],
) -> None:
    host = Host()
    host.tell(0, 0)
    for tokens, energy, epoch in told:
        host.tell(tokens, energy, epoch=epoch)
    assert host.tokens_per_joule is None or host.tokens_per_joule >= 0
