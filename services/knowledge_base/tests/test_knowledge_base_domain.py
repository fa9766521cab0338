"""Names, request fingerprints and the parameters of recall."""

import uuid
from datetime import UTC, datetime

import pytest

from knowledge_base.domain.errors import (
    InvalidDocument,
    InvalidIdentifier,
    InvalidText,
)
from knowledge_base.domain.lore import check_path
from knowledge_base.domain.memory import NewEvent, RecallParameters
from knowledge_base.domain.requests import fingerprint
from knowledge_base.domain.text import SHARED_WORLD, check_text, normalise_name, parse_world_id


def test_one_name_typed_in_two_ways_is_one_name() -> None:
    assert normalise_name("name", "Ze\u0301 ") == normalise_name("name", "Z\u00e9")


@pytest.mark.parametrize("name", [" ", "\u2003", "a\nb", "a\0b", "\x7f"])
def test_names_need_something_to_read_and_no_control_codes(name: str) -> None:
    with pytest.raises(InvalidText) as caught:
        normalise_name("name", name)
    assert caught.value.field_violations[0].field == "name"


def test_nul_in_text_is_named_with_its_position() -> None:
    with pytest.raises(InvalidText) as caught:
        check_text("events[2].text", "ab\0c")
    assert caught.value.metadata == {"field": "events[2].text", "position": "2"}


def test_an_empty_world_id_is_the_shared_world() -> None:
    assert parse_world_id("world_id", "") == SHARED_WORLD


@pytest.mark.parametrize("text", ["x", "0", str(SHARED_WORLD), "3f2b8c1e"])
def test_what_is_no_world_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_world_id("world_id", text)


def test_fingerprints_tell_methods_and_contents_apart() -> None:
    marks = {
        fingerprint("Put", {"a": 1, "b": "x"}),
        fingerprint("Put", {"a": 1, "b": "y"}),
        fingerprint("Put", {"a": 1}),
        fingerprint("Other", {"a": 1, "b": "x"}),
        fingerprint("Put", {"a": "1", "b": "x"}),
    }
    assert len(marks) == 5
    assert fingerprint("Put", {"b": "x", "a": 1}) == fingerprint("Put", {"a": 1, "b": "x"})


@pytest.mark.parametrize("path", ["/a", "a//b", "../a", "a/..", "./a", "a\nb", "a\\b", "a/", ""])
def test_paths_that_leave_the_collection_are_refused(path: str) -> None:
    with pytest.raises(InvalidDocument):
        check_path(path)


def test_a_path_may_hold_any_printable_text() -> None:
    assert check_path("Büche r/Teil 1.md") == "Büche r/Teil 1.md"


def test_events_get_their_defaults() -> None:
    event = NewEvent.of("It rained.")
    assert (event.kind, event.importance, event.occur_time) == ("event", 0.5, None)
    assert NewEvent.of("x", importance=0.0).importance == 0.0


def test_search_text_names_those_who_took_part_once() -> None:
    event = NewEvent.of(
        "Mira lit the lamp.", participants=("Mira", "Tobin"), occur_time=datetime.now(UTC)
    )
    assert event.search_text == "Tobin: Mira lit the lamp."


def test_recall_weights_have_sum_one_and_the_half_life_is_the_sources() -> None:
    parameters = RecallParameters(2.0, 1.0, 1.0)
    assert parameters.normalised_weights == (0.5, 0.25, 0.25)
    assert 0.5 ** (1 / parameters.half_life_hours) == pytest.approx(0.995)


def test_ids_are_compared_as_uuids_not_as_text() -> None:
    world = uuid.uuid4()
    assert parse_world_id("world_id", str(world).upper()) == world
