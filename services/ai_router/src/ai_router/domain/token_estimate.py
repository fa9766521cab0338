"""How many tokens a request will hold on a server, before the server has counted them.

A prompt's tokens are estimated from its size in UTF-8 (four bytes a token, the usual rule of thumb
for English text with byte-pair vocabularies; scripts with longer encodings come out in proportion)
plus a few tokens of chat template per message, scaled by what the tier's servers counted before.
The answer's tokens are the mean of the tier's recent answers, never more than the request allows.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["TokenEstimator", "utf8_size"]

_BYTES_PER_TOKEN = 4.0
# Role and delimiters of one message in the ChatML and Llama 3 templates.
_TEMPLATE_TOKENS_PER_MESSAGE = 4
_TEMPLATE_TOKENS = 3
_LEARNING_RATE = 0.02
_SAMPLES_BEFORE_TRUST = 20
_SMALLEST_SCALE, _LARGEST_SCALE = 0.25, 4.0


def utf8_size(text: str) -> int:
    """Returns the bytes of `text` in UTF-8; free of copying for ASCII."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class TokenEstimator:
    """Estimates tokens for one tier and learns from what its servers count."""

    __slots__ = ("_mean_output", "_output_samples", "_prompt_scale")

    def __init__(self) -> None:
        self._prompt_scale = 1.0
        self._mean_output = 0.0
        self._output_samples = 0

    @property
    def prompt_scale(self) -> float:
        """What estimates are multiplied by now: counted tokens over those by size alone."""
        return self._prompt_scale

    def prompt_tokens(self, texts: Iterable[str]) -> int:
        """Returns the estimated tokens of a conversation, at least 1."""
        size, messages = 0, 0
        for text in texts:
            size += utf8_size(text)
            messages += 1
        raw = size / _BYTES_PER_TOKEN * self._prompt_scale
        return max(1, round(raw) + messages * _TEMPLATE_TOKENS_PER_MESSAGE + _TEMPLATE_TOKENS)

    def output_tokens(self, max_output_tokens: int) -> int:
        """Returns the tokens an answer is expected to have, from 1 to `max_output_tokens`.

        Until 20 answers were seen it is `max_output_tokens`, which errs on the safe side.
        """
        if self._output_samples < _SAMPLES_BEFORE_TRUST:
            return max_output_tokens
        return max(1, min(max_output_tokens, round(self._mean_output)))

    def learn(
        self, estimated_prompt: int, scale: float, counted_prompt: int, counted_output: int
    ) -> None:
        """Takes in what a server counted; a count of 0 means that it did not tell.

        `scale` is the `prompt_scale` that `estimated_prompt` was made with. With the present one
        instead, every answer on its way would correct the same error again, and estimates would
        swing ever wider the more requests run at a time.
        """
        if counted_prompt > 0 and estimated_prompt > 0:
            target = scale * counted_prompt / estimated_prompt
            target = min(_LARGEST_SCALE, max(_SMALLEST_SCALE, target))
            self._prompt_scale += _LEARNING_RATE * (target - self._prompt_scale)
        if counted_output > 0:
            self._output_samples += 1
            rate = max(_LEARNING_RATE, 1.0 / self._output_samples)
            self._mean_output += rate * (counted_output - self._mean_output)
