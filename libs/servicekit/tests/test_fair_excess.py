"""Who gives up places when too many are in use: whoever holds most, and never below the others."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from servicekit.eager_server import fair_excess

PLACES = st.lists(st.sampled_from("abcd"), max_size=60)


def left(holders: list[str], given_up: list[int]) -> Counter[str]:
    return Counter(holder for place, holder in enumerate(holders) if place not in set(given_up))


def test_who_holds_most_gives_up_the_oldest() -> None:
    assert fair_excess(list("aababa"), 4) == [0, 1]


def test_who_holds_few_keeps_them_in_any_crowd() -> None:
    assert left(list("b" + "a" * 100 + "c"), fair_excess(list("b" + "a" * 100 + "c"), 10)) == {
        "a": 8,
        "b": 1,
        "c": 1,
    }


def test_nobody_gives_up_anything_while_there_is_room() -> None:
    assert fair_excess(list("aab"), 3) == []


@given(PLACES, st.integers(min_value=0, max_value=70))
def test_no_more_than_allowed_are_left(holders: list[str], allowed: int) -> None:
    assert left(holders, fair_excess(holders, allowed)).total() <= allowed


@given(PLACES, st.integers(min_value=0, max_value=70))
def test_whoever_gives_up_keeps_as_many_as_any_other(holders: list[str], allowed: int) -> None:
    given_up = fair_excess(holders, allowed)
    kept = left(holders, given_up)
    most = max(kept.values(), default=0)
    assert all(kept[holders[place]] == most for place in given_up)


@given(PLACES, st.integers(min_value=0, max_value=70))
def test_one_more_for_each_would_be_too_many(holders: list[str], allowed: int) -> None:
    given_up = fair_excess(holders, allowed)
    losers = {holders[place] for place in given_up}
    assert not losers or left(holders, given_up).total() + len(losers) > allowed
