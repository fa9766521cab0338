"""Answers given again."""

from __future__ import annotations

from typing import Any

import pytest

from ai_router.domain.answer_cache import AnswerCache, CachedAnswer, answer_key, is_deterministic
from ai_router.domain.generation import ChatMessage, ChatRole, FinishReason
from ai_router.testing.builders import request


def answer(text: str = "text") -> CachedAnswer:
    return CachedAnswer(
        text=text, model="m", finish_reason=FinishReason.STOP, prompt_tokens=1, output_tokens=1
    )


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_only_repeatable_requests_are_deterministic() -> None:
    assert is_deterministic(request(temperature=0.0))
    assert is_deterministic(request(seed=0))
    assert not is_deterministic(request())
    assert not is_deterministic(request(temperature=0.1))


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "other"},
        {"temperature": 0.0},
        {"top_p": 0.5},
        {"seed": 1},
        {"max_output_tokens": 99},
        {"stop": ("x",)},
        {"stop": ("x", "y")},
        {"stop": ("xy",)},
        {"messages": (ChatMessage(ChatRole.SYSTEM, "Hail, ferryman!"),)},
    ],
)
def test_whatever_decides_the_text_is_in_the_key(changes: dict[str, Any]) -> None:
    assert answer_key("m", request(**changes)) != answer_key("m", request())


def test_the_model_is_in_the_key_and_routing_is_not() -> None:
    assert answer_key("m", request()) != answer_key("n", request())
    routed = request(request_id="other", affinity_key="k", latency_budget_seconds=3.0)
    assert answer_key("m", routed) == answer_key("m", request())


def test_an_answer_is_kept_for_the_caller_who_asked() -> None:
    mine, yours = (request(caller=f"spiffe://gamekeeper/game-service/{name}") for name in "ab")
    assert answer_key("m", mine) != answer_key("m", yours)


def test_parts_cannot_run_into_each_other() -> None:
    one = request(messages=(ChatMessage(ChatRole.USER, "ab"), ChatMessage(ChatRole.USER, "c")))
    two = request(messages=(ChatMessage(ChatRole.USER, "a"), ChatMessage(ChatRole.USER, "bc")))
    assert answer_key("m", one) != answer_key("m", two)


def test_an_answer_is_kept_for_its_time() -> None:
    cache = AnswerCache(100_000, 10.0)
    cache.put(key(1), answer(), 0.0)
    assert cache.get(key(1), 9.9) == answer()
    assert cache.peek(key(1), 10.0) is None
    assert cache.get(key(1), 10.0) is None
    assert (len(cache), cache.stored_bytes) == (0, 0)


def test_the_least_recently_used_goes_first_and_the_room_is_bounded() -> None:
    cache = AnswerCache(10_000, 100.0)
    for number in range(12):
        cache.put(key(number), answer("x" * 400), 0.0)
        cache.get(key(0), 0.0)
        assert cache.stored_bytes <= 10_000
    assert cache.get(key(0), 0.0) is not None
    assert cache.get(key(1), 0.0) is None
    assert len(cache) == 10


def test_huge_answers_are_not_kept() -> None:
    cache = AnswerCache(10_000, 100.0)
    cache.put(key(1), answer("x" * 5_000), 0.0)
    assert len(cache) == 0
    AnswerCache(0, 100.0).put(key(1), answer(), 0.0)


def test_putting_again_replaces() -> None:
    cache = AnswerCache(100_000, 10.0)
    cache.put(key(1), answer("old"), 0.0)
    cache.put(key(1), answer("new"), 5.0)
    assert cache.get(key(1), 12.0) == answer("new")
    assert len(cache) == 1
