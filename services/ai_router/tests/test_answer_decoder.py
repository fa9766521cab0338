"""What a streamed answer says, whatever a server may send in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_router.adapters.answer_decoder import AnswerDecoder
from ai_router.domain.generation import FinishReason
from ai_router.ports import FailureKind, ModelServerFailure


def event(content: Any = None, finish: Any = None, usage: Any = None) -> bytes:
    choice = {"delta": {"content": content}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n"


def test_text_and_end_are_what_the_server_sent() -> None:
    decoder = AnswerDecoder()
    assert decoder.feed(event("Once ") + event("upon")) == "Once upon"
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    assert decoder.feed(event(" a time", "stop", usage) + b"data: [DONE]\n\n") == " a time"
    assert decoder.complete
    assert decoder.end().finish_reason is FinishReason.STOP
    assert (decoder.end().prompt_tokens, decoder.end().output_tokens) == (7, 2)


@given(st.text(max_size=40), st.integers(1, 30))
def test_the_text_does_not_depend_on_where_the_network_cuts(text: str, size: int) -> None:
    stream = event(text) + event(None, "length") + b"data: [DONE]\n\n"
    decoder = AnswerDecoder()
    pieces = [decoder.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    assert "".join(pieces) == text
    assert decoder.end().finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"choices": [{"delta": {"content": ["a"]}}]}',
        b'{"choices": [{"delta": null}]}',
        b'{"choices": {"0": 1}}',
        b'{"choices": [{"finish_reason": {}}]}',
        b'{"usage": "many"}',
        b"null",
        b"\xff\xfe",
        b"1" * 5_000,
    ],
)
def test_what_is_not_understood_fails_the_server_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(ModelServerFailure) as failure:
        AnswerDecoder().feed(b"data: " + payload + b"\n")
    assert failure.value.kind is FailureKind.FAILED


@pytest.mark.parametrize("count", ["1e999", "-1", "2147483648", '"7"', "null", "1.5", "true"])
def test_a_count_that_makes_no_sense_counts_as_not_told(count: str) -> None:
    decoder = AnswerDecoder()
    decoder.feed(b'data: {"usage": {"prompt_tokens": ' + count.encode() + b"}}\n")
    decoder.feed(event("", "stop"))
    assert decoder.end().prompt_tokens == 0


def test_half_a_character_becomes_one_that_can_be_carried() -> None:
    text = AnswerDecoder().feed(b'data: {"choices": [{"delta": {"content": "ok \\ud83d"}}]}\n')
    assert text.startswith("ok ")
    assert text.encode("utf-8").decode("utf-8") == text


def test_an_answer_without_its_end_broke_off() -> None:
    decoder = AnswerDecoder()
    decoder.feed(event("Once"))
    with pytest.raises(ModelServerFailure, match="broke off"):
        decoder.end()
