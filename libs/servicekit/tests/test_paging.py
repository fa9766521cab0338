"""Page tokens come back as they went, for their own list alone."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.paging import InvalidPageToken, decode_page_token, encode_page_token


@given(st.lists(st.text() | st.integers(), max_size=4))
def test_page_tokens_come_back_as_they_went(position: list[str | int]) -> None:
    token = encode_page_token(("list", "filter"), position)
    kinds = tuple(type(value) for value in position)
    assert decode_page_token(token, ("list", "filter"), kinds) == position


def test_an_empty_page_token_is_the_start() -> None:
    assert decode_page_token("", ("list",), (str,)) is None


@given(st.text(min_size=1))
def test_other_page_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken):
        decode_page_token(token, ("list",), (str,))


@pytest.mark.parametrize(
    "content", [b"\xff", b"{}", b"[]", b"7", b"[" * 3000, b'["no mark","name"]']
)
def test_contents_that_no_list_gives_out_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidPageToken) as refused:
        decode_page_token(base64.urlsafe_b64encode(content).decode(), ("list",), (str,))
    assert refused.value.field_violations[0].field == "page_token"


@pytest.mark.parametrize(
    ("scope", "kinds"),
    [(("list", "other filter"), (str,)), (("list", "filter"), (int,)), (("list", "filter"), ())],
)
def test_page_tokens_of_another_list_are_refused(
    scope: tuple[str, ...], kinds: tuple[type, ...]
) -> None:
    token = encode_page_token(("list", "filter"), ["name"])
    with pytest.raises(InvalidPageToken):
        decode_page_token(token, scope, kinds)
