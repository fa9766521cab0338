"""Remembered codes take no more memory than they may, and the ones in use stay."""

from hypothesis import given
from hypothesis import strategies as st

from knowledge_base.adapters.recent_codes import RecentCodes

LIMIT = 100


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 150)), max_size=60))
def test_the_bytes_stay_within_the_limit(puts: list[tuple[int, int]]) -> None:
    codes = RecentCodes(LIMIT)
    for text, size in puts:
        codes.put(("reranker", bytes([text])), bytes(size))
        kept = [codes.get(("reranker", bytes([text]))) for text in range(10)]
        assert sum(len(each) for each in kept if each is not None) <= LIMIT


def test_what_was_not_used_for_longest_goes_first() -> None:
    codes = RecentCodes(LIMIT)
    for text in (b"first", b"second"):
        codes.put(("reranker", text), bytes(50))
    assert codes.get(("reranker", b"first"))
    codes.put(("reranker", b"third"), bytes(50))
    assert codes.get(("reranker", b"first"))
    assert codes.get(("reranker", b"second")) is None


def test_two_rerankers_keep_apart_what_they_made_of_one_text() -> None:
    codes = RecentCodes(LIMIT)
    codes.put(("one", b"text"), b"1")
    codes.put(("other", b"text"), b"2")
    assert (codes.get(("one", b"text")), codes.get(("other", b"text"))) == (b"1", b"2")
