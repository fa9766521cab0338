"""Which server of a tier takes a request."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_router.domain.server_selection import ServerPool


def pool_of(count: int, capacity: int = 1000, limit: int = 100, seed: int = 0) -> ServerPool:
    pool = ServerPool(seed)
    for index in range(count):
        pool.put(f"s{index}", capacity, limit)
    return pool


def chosen(pool: ServerPool, tokens: int, **options: object) -> str:
    selection = pool.choose(tokens, **options)  # type: ignore[arg-type]  # options of choose
    assert selection is not None
    return selection.server_id


def test_an_empty_pool_chooses_nobody() -> None:
    assert ServerPool().choose(1) is None
    assert ServerPool().choose(1, "key") is None


def test_requests_spread_evenly_over_equal_servers() -> None:
    pool = pool_of(10)
    for _ in range(100):
        pool.assign(chosen(pool, 50), 50)
    assert {pool.running(f"s{index}") for index in range(10)} == {(10, 500)}


def test_load_is_relative_to_capacity() -> None:
    pool = ServerPool()
    pool.put("small", 100, 100)
    pool.put("large", 1000, 100)
    pool.assign("small", 20)
    pool.assign("large", 100)
    # 20 + 50 of 100 is more than 100 + 50 of 1000.
    assert chosen(pool, 50) == "large"


def test_load_of_others_counts() -> None:
    pool = pool_of(2)
    pool.set_foreign_tokens("s0", 500)
    assert [chosen(pool, 10) for _ in range(3)] == ["s1"] * 3
    pool.set_foreign_tokens("s0", 0)
    pool.set_foreign_tokens("s1", 500)
    assert chosen(pool, 10) == "s0"


def test_a_server_is_full_at_its_token_limit_and_at_its_request_limit() -> None:
    pool = pool_of(1, capacity=100, limit=2)
    pool.assign("s0", 60)
    assert pool.choose(41) is None
    assert pool.choose(40) is not None
    assert pool.choose(20, load_limit=0.7) is None
    pool.assign("s0", 1)
    assert pool.choose(1) is None
    pool.release("s0", 1)
    assert pool.choose(1) is not None


def test_an_idle_server_takes_a_request_larger_than_its_capacity() -> None:
    pool = pool_of(2, capacity=100)
    pool.assign("s0", 1)
    assert chosen(pool, 500) == "s1"
    pool.assign("s1", 500)
    assert pool.choose(500) is None


def test_ineligible_and_excluded_servers_get_nothing() -> None:
    pool = pool_of(3)
    pool.set_eligible("s0", False)
    assert {chosen(pool, 1, excluded={"s1"}) for _ in range(5)} == {"s2"}
    assert pool.choose(1, excluded={"s1", "s2"}) is None
    assert not pool.has_usable({"s1", "s2"})
    pool.set_eligible("s0", True)
    assert chosen(pool, 1, excluded={"s1", "s2"}) == "s0"


def test_a_removed_server_keeps_its_count_until_its_last_request_ended() -> None:
    pool = pool_of(2)
    pool.assign("s0", 10)
    pool.remove("s0")
    assert pool.running("s0") == (1, 10)
    assert {chosen(pool, 1) for _ in range(3)} == {"s1"}
    pool.release("s0", 10)
    assert pool.running("s0") == (0, 0)
    pool.put("s0", 1000, 100)
    assert chosen(pool, 1, excluded={"s1"}) == "s0"


def test_routers_break_ties_differently_and_each_always_alike() -> None:
    firsts = [chosen(pool_of(20, seed=seed), 1) for seed in range(30)]
    assert len(set(firsts)) > 5
    assert firsts == [chosen(pool_of(20, seed=seed), 1) for seed in range(30)]


def test_a_key_stays_with_its_server_while_that_is_not_overloaded() -> None:
    pool = pool_of(10)
    home = chosen(pool, 10, affinity_key="player-7")
    for _ in range(20):
        assert chosen(pool, 10, affinity_key="player-7") == home
        pool.assign(home, 10)
    pool.assign(home, 600)
    assert chosen(pool, 10, affinity_key="player-7") != home


def test_keys_spread_evenly_over_servers() -> None:
    pool = pool_of(10)
    homes = Counter(chosen(pool, 1, affinity_key=f"player-{index}") for index in range(5000))
    assert min(homes.values()) > 350
    assert max(homes.values()) < 650


def test_a_server_that_goes_moves_only_its_own_keys() -> None:
    pool = pool_of(10)
    keys = [f"player-{index}" for index in range(500)]
    before = {key: chosen(pool, 1, affinity_key=key) for key in keys}
    pool.remove("s3")
    after = {key: chosen(pool, 1, affinity_key=key) for key in keys}
    assert all(after[key] == home for key, home in before.items() if home != "s3")
    assert "s3" not in after.values()


@pytest.mark.parametrize(("capacity", "limit"), [(0, 1), (-1, 1), (1, 0)])
def test_a_server_needs_capacity(capacity: int, limit: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        ServerPool().put("s", capacity, limit)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["choose", "key", "release", "eligible", "foreign", "remove", "put"]),
        st.integers(0, 5),
        st.integers(1, 400),
    ),
    max_size=80,
)


@given(OPERATIONS)
def test_the_choice_is_always_the_least_loaded_server_with_room(  # noqa: C901  # one model run
    operations: list[tuple[str, int, int]],
) -> None:
    pool = ServerPool(7)
    capacities = {f"s{index}": 500 + 500 * (index % 2) for index in range(6)}
    for server_id, capacity in capacities.items():
        pool.put(server_id, capacity, 4)
    placed: list[tuple[str, int]] = []
    for name, index, tokens in operations:
        server_id = f"s{index}"
        candidates = pool.candidates(tokens)
        listed = {candidate.server_id for candidate in candidates}
        if name in ("choose", "key"):
            selection = pool.choose(tokens, server_id if name == "key" else "")
            best = next((c for c in candidates if c.eligible), None)
            assert (selection is None) == (best is None)
            if selection is not None and best is not None:
                eligible = {c.server_id for c in candidates if c.eligible}
                assert selection.server_id in eligible
                if not selection.by_affinity:
                    assert selection.load_ratio == pytest.approx(best.load_ratio)
                pool.assign(selection.server_id, tokens)
                placed.append((selection.server_id, tokens))
        elif name == "release" and placed:
            pool.release(*placed.pop(index % len(placed)))
        elif name == "eligible" and server_id in listed:
            pool.set_eligible(server_id, tokens % 2 == 0)
        elif name == "foreign" and server_id in listed:
            pool.set_foreign_tokens(server_id, tokens)
        elif name == "remove":
            pool.remove(server_id)
        elif name == "put":
            pool.put(server_id, capacities[server_id], 1 + tokens % 6)
    for server_id, tokens in placed:
        pool.release(server_id, tokens)
    assert all(pool.running(server_id) == (0, 0) for server_id in capacities)
    foreign = sum(
        round(c.load_ratio * capacities[c.server_id]) - 1 for c in pool.candidates(1) if c.eligible
    )
    assert pool.eligible_load_tokens == foreign


_SERVERS = ("s0", "s1", "s2")
_operations = st.lists(
    st.tuples(
        st.sampled_from(("put", "remove", "eligible", "limit", "foreign", "assign", "release")),
        st.sampled_from(_SERVERS),
        st.integers(1, 6),
    ),
    max_size=60,
)


@given(_operations)
def test_totals_kept_up_to_date_are_those_counted_anew(
    operations: list[tuple[str, str, int]],
) -> None:
    pool = ServerPool()
    limits: dict[str, int] = {}
    eligible: dict[str, bool] = {}
    foreign: dict[str, int] = {}
    running: dict[str, list[int]] = {server: [] for server in _SERVERS}
    for operation, server, number in operations:
        if operation == "put":
            foreign = {**foreign, server: foreign.get(server, 0)}
            pool.put(server, 100, number, eligible=number % 2 == 0)
            limits[server], eligible[server] = number, number % 2 == 0
        elif operation == "assign" and server in limits:
            pool.assign(server, number)
            running[server].append(number)
        elif operation == "release" and running[server]:
            pool.release(server, running[server].pop())
        elif server in limits and operation == "remove" and not running[server]:
            pool.remove(server)
            del limits[server], eligible[server], foreign[server]
        elif server in limits and operation == "eligible":
            pool.set_eligible(server, number % 2 == 0)
            eligible[server] = number % 2 == 0
        elif server in limits and operation == "limit":
            pool.set_request_limit(server, number)
            limits[server] = number
        elif server in limits and operation == "foreign":
            pool.set_foreign_tokens(server, number)
            foreign[server] = number
    taking = [server for server in limits if eligible[server]]
    assert pool.eligible_capacity_tokens == 100 * len(taking)
    assert pool.eligible_load_tokens == sum(sum(running[s]) + foreign[s] for s in taking)
    assert pool.free_places == sum(max(0, limits[s] - len(running[s])) for s in taking)
