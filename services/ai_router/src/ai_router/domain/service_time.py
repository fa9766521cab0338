"""How long an answer takes, and how long a queue: predictions from what was seen."""

from __future__ import annotations

from ai_router.domain.tiers import TierProfile

__all__ = ["ServiceTimeModel", "predict_wait_seconds"]

_LEARNING_RATE = 0.05


class ServiceTimeModel:
    """Predicts a tier's answer time: time to first token plus time per token, both learned.

    Both start from the tier's profile and follow what requests took on its servers (an exponential
    mean with a weight of 5 % per request), waiting in the router not included.
    """

    __slots__ = ("_first_token_seconds", "_token_seconds")

    def __init__(self, profile: TierProfile) -> None:
        self._first_token_seconds = profile.first_token_seconds
        self._token_seconds = profile.token_seconds

    def predict(self, output_tokens: int) -> float:
        """Returns the predicted seconds from sending a request to its last token."""
        return self._first_token_seconds + self._token_seconds * output_tokens

    def learn(self, first_token_seconds: float, generation_seconds: float, tokens: int) -> None:
        """Takes in one answer: its time to first token, and from there to its last of `tokens`."""
        self._first_token_seconds += _LEARNING_RATE * (
            first_token_seconds - self._first_token_seconds
        )
        if tokens > 1:
            per_token = generation_seconds / (tokens - 1)
            self._token_seconds += _LEARNING_RATE * (per_token - self._token_seconds)


def predict_wait_seconds(needed: int, free: int, running: int, answer_seconds: float) -> float:
    """Returns how long until so much of a resource is free, by Little's law.

    The resource is tokens, or places for requests. `running` of it is held `answer_seconds` each on
    average, so it comes free at `running / answer_seconds` per second (Little, 1961: L = λ·W).
    `needed` is wanted, by those ahead in the queue too, of which `free` is there already. With
    nothing running and not enough free, one answer's time is the best guess.
    """
    missing = needed - free
    if missing <= 0:
        return 0.0
    if running <= 0:
        return answer_seconds
    return missing * answer_seconds / running
