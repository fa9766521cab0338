"""The share of calls a slow server admits."""

from servicekit.load_shedding import LoadShedder

TARGET = 0.25


def admitted(shedder: LoadShedder, calls: int) -> int:
    return sum(shedder.admit() for _ in range(calls))


def overloaded(looks: int = 4) -> LoadShedder:
    shedder = LoadShedder(target_seconds=TARGET)
    for _ in range(looks):
        shedder.observe(1.0)
    return shedder


def test_a_server_whose_calls_begin_in_time_admits_all() -> None:
    shedder = LoadShedder(target_seconds=TARGET)
    for _ in range(100):
        shedder.observe(TARGET)
    assert admitted(shedder, 1000) == 1000


def test_one_look_that_finds_a_wait_is_not_overload() -> None:
    shedder = LoadShedder(target_seconds=TARGET)
    for _ in range(10):
        shedder.observe(30.0)  # frozen, say
        shedder.observe(0.0)
    assert not shedder.shedding


def test_the_longer_they_wait_the_fewer_are_admitted() -> None:
    slightly, badly = LoadShedder(target_seconds=TARGET), LoadShedder(target_seconds=TARGET)
    for _ in range(2):
        slightly.observe(0.3)
        badly.observe(3.0)
    assert 800 <= admitted(slightly, 1000) <= 850
    assert 295 <= admitted(badly, 1000) <= 305


def test_the_first_call_after_each_look_is_admitted_however_slow_it_is() -> None:
    shedder = overloaded(looks=50)
    for _ in range(5):
        shedder.observe(1.0)
        assert shedder.admit()
        assert not shedder.admit()


def test_while_the_wait_grows_shorter_no_more_are_turned_away() -> None:
    shedder = overloaded(looks=2)
    share = shedder.share
    for wait_seconds in (0.79, 0.6, 0.45, 0.3):
        shedder.observe(wait_seconds)
    assert shedder.share == share


def test_it_recovers_within_seconds() -> None:
    shedder = overloaded()
    looks = 0
    while shedder.shedding:
        shedder.observe(0.0)
        looks += 1
    assert looks <= 15  # three seconds at five a second
    assert admitted(shedder, 1000) == 1000
