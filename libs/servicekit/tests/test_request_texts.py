"""Which texts are taken as names and prose, and that none of a request is overlooked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gaming.ai_router.v1 import ai_router_pb2
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2
from gaming.knowledge_base.v1 import concepts_pb2, story_pb2, worlds_pb2
from servicekit.errors import InvalidRequest
from servicekit.interceptors.call import Call
from servicekit.interceptors.texts import TextCheck, problem_of_name, problem_of_prose
from servicekit.testing import FakeClock

ZERO_WIDTH_SPACE = "\u200b"
PERSIAN = "می\u200cخواهم"  # noqa: RUF001  # a word with a joiner in it


@pytest.mark.parametrize(
    "name",
    [
        "Emberfall",
        "Ærø 北京",
        PERSIAN,
        "क्\u200dष",
        "👩\u200d🚀",
        "a\u00a0b",
        "",
        "i-0a/b.c",
    ],
)
def test_names_of_any_script_are_taken(name: str) -> None:
    assert problem_of_name(name) is None


@pytest.mark.parametrize(
    "hidden",
    [
        "\0",
        ZERO_WIDTH_SPACE,
        "\u200d",
        "\u202e",
        "\ufeff",
        "\u00ad",
        "\x1b",
        "\n",
        "\u2028",
        "\x7f",
    ],
)
def test_a_name_with_something_nobody_sees_is_not(hidden: str) -> None:
    problem = problem_of_name(f"Ember{hidden}fall")
    assert problem is not None
    assert f"U+{ord(hidden):04X}" in problem


@pytest.mark.parametrize(
    "text", ["First line.\n\tSecond.", "\n\n", PERSIAN, "\ufeffText after a mark.", ""]
)
def test_prose_may_have_lines_and_joiners(text: str) -> None:
    assert problem_of_prose(text) is None


@pytest.mark.parametrize("text", ["a\0b", ZERO_WIDTH_SPACE, f" {ZERO_WIDTH_SPACE}\u2060 "])
def test_prose_has_no_nul_and_something_to_see(text: str) -> None:
    assert problem_of_prose(text) is not None


def violations_of(request: Any) -> dict[str, str]:
    async def check() -> dict[str, str]:
        task: Any = asyncio.current_task()
        context: Any = SimpleNamespace()
        call = Call("/s/M", None, b"", context, {}, FakeClock().monotonic(), task)
        try:
            TextCheck().check(call, request)
        except InvalidRequest as error:
            return {item.field: item.description for item in error.field_violations}
        return {}

    return asyncio.run(check())


@pytest.mark.parametrize(
    ("field", "request_message"),
    [
        ("name", worlds_pb2.CreateWorldRequest(name="Em\u200bber")),
        (
            "events[1].participants[0]",
            story_pb2.RecordEventsRequest(
                events=[
                    story_pb2.StoryEvent(text="fine"),
                    story_pb2.StoryEvent(text="fine", participants=["Mi\u200bra"]),
                ]
            ),
        ),
        (
            "attributes.key",
            concepts_pb2.PutConceptRequest(attributes={"pla\u200bce": "here"}),
        ),
        (
            "attributes[place]",
            concepts_pb2.PutConceptRequest(attributes={"place": "he\0re"}),
        ),
        (
            "spec.messages[0].content",
            ai_router_pb2.GenerateOnceRequest(
                spec=ai_router_pb2.GenerationSpec(
                    messages=[ai_router_pb2.ChatMessage(content="a\0b")],
                    tier=tier_pb2.TIER_GOLD,
                    stop=["\n"],
                )
            ),
        ),
        (
            "host.host_id",
            gpu_metrics_pb2.StreamReportsRequest(host=fleet_pb2.Host(host_id="i-1\x1b[2J")),
        ),
    ],
)
def test_the_text_is_found_wherever_it_stands(field: str, request_message: Any) -> None:
    assert list(violations_of(request_message)) == [field]


def test_a_request_without_such_texts_passes() -> None:
    assert violations_of(ai_router_pb2.ListTiersRequest()) == {}
