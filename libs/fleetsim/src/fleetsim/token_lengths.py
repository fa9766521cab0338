"""How long prompts and answers are, in tokens.

`GAME_DIALOGUE` is this project's assumption for a game that asks for short lines of dialogue.
The two empirical distributions are quantile tables derived from a public trace:

    NOTICE. Derived from "AzureLLMInferenceTrace_2023" (conversation and code) of the Azure Public
    Dataset, Microsoft, licensed under CC BY 4.0. Fifteen quantiles each of ContextTokens and
    GeneratedTokens (19,366 and 8,819 requests); no request is reproduced. In the trace the two
    lengths are nearly independent (correlation of the logarithms 0.09 and 0.00), so they are
    drawn independently here.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AZURE_CODE",
    "AZURE_CONVERSATION",
    "GAME_DIALOGUE",
    "EmpiricalLengths",
    "LengthDistribution",
    "LogNormalLengths",
    "TokenLengths",
]


class LengthDistribution(Protocol):
    """Draws lengths in tokens, each at least 1."""

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""


@dataclass(frozen=True, slots=True)
class LogNormalLengths:
    """Log-normal lengths, cut at `longest`."""

    median: float
    sigma: float
    longest: int

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""
        lengths = self.median * np.exp(self.sigma * rng.standard_normal(count))
        return np.clip(np.rint(lengths), 1, self.longest).astype(np.int64)


@dataclass(frozen=True, slots=True)
class EmpiricalLengths:
    """Lengths that follow a quantile table, interpolated linearly in the logarithm."""

    quantiles: tuple[float, ...]
    longest: int

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return `count` lengths."""
        logs = np.interp(rng.random(count), _PROBABILITIES, np.log(self.quantiles))
        return np.clip(np.rint(np.exp(logs)), 1, self.longest).astype(np.int64)


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Prompt and answer lengths of one kind of traffic.

    The first `shared_prompt_tokens` of a prompt (instructions, the world's outline) are the same
    for all requests of a tier and come from the server's prefix cache when it has them.
    """

    prompt: LengthDistribution
    output: LengthDistribution
    shared_prompt_tokens: int = 0


_PROBABILITIES = (*(0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),)
_CONVERSATION_PROMPT = (
    *(2.0, 29.0, 181.0, 207.0, 387.0, 403.0, 703.0, 1020.0),
    *(1071.0, 1130.0, 1315.0, 2734.0, 4083.0, 4142.0, 14050.0),
)
_CONVERSATION_OUTPUT = (
    *(7.0, 16.0, 41.0, 54.0, 77.0, 91.0, 103.0, 129.0),
    *(177.0, 384.0, 400.0, 424.0, 451.0, 601.0, 1000.0),
)
_CODE_PROMPT = (
    *(3.0, 17.0, 75.0, 147.0, 386.0, 770.0, 1075.0, 1469.0),
    *(1909.0, 2433.0, 3192.0, 5188.0, 7303.0, 7436.0, 7437.0),
)
_CODE_OUTPUT = (
    *(6.0, 6.0, 6.0, 7.0, 8.0, 9.0, 11.0, 13.0),
    *(16.0, 20.0, 29.0, 55.0, 90.0, 251.0, 1899.0),
)

GAME_DIALOGUE = TokenLengths(
    prompt=LogNormalLengths(median=320.0, sigma=0.35, longest=2048),
    output=LogNormalLengths(median=70.0, sigma=0.5, longest=400),
    shared_prompt_tokens=200,
)
"""Short dialogue: about 340 tokens in, of which 200 are shared, and 80 out. An assumption."""

AZURE_CONVERSATION = TokenLengths(
    prompt=EmpiricalLengths(_CONVERSATION_PROMPT, 7000),
    output=EmpiricalLengths(_CONVERSATION_OUTPUT, 1000),
)
"""Assistant conversations: about 1,150 tokens in and 210 out."""

AZURE_CODE = TokenLengths(
    prompt=EmpiricalLengths(_CODE_PROMPT, 7000),
    output=EmpiricalLengths(_CODE_OUTPUT, 1000),
)
"""Code completion: about 2,050 tokens in and 28 out."""
