"""Simulated answers: plausible game dialogue that follows a seed and mentions the prompt's words.

No model runs behind it. The text exists so that streams, caches and stories carry something
readable; whoever shows it must say that it is simulated.
"""

import random
import re
from collections.abc import Sequence

__all__ = ["write_answer"]

_WORD = re.compile(r"[A-Za-z][a-z]{3,}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ROLE_WORDS = frozenset(
    _words(
        "about after again also answer assistant been before being below could does from give "
        "have into just know like make more most must only other over please said same should "
        "some story system tell than that their them then there these they this those user very "
        "want well were what when where which while will with would write your"
    )
)
_NOUNS = _words(
    "lantern river gate ember harbour archive tower market oath shadow bridge captain road "
    "council storm song map watch garden forge"
)
_ADJECTIVES = _words("old quiet broken distant bright hidden weary northern patient cold")
_VERBS = _words("waits remembers guards crosses answers hides follows calls leaves finds")
_PLACES = _words("beyond beneath beside behind above near within")
_OPENERS = (
    ("Listen", ","),
    ("Traveller", ","),
    ("They", "say"),
    ("I", "have", "seen", "it", ":"),
    ("Mark", "my", "words", ","),
    ("Once", "more", ","),
    (),
    (),
)
_MAX_TOPIC_WORDS = 12
_PROMPT_CHARACTERS_READ = 2000


def write_answer(prompt: str, *, tokens: int, seed: int) -> list[str]:
    """Write exactly `tokens` pieces of prose; joined they are the text.

    The same prompt, length and seed give the same text. Nouns come partly from the end of the
    prompt, where the player's own words stand.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible prose, nothing secret
    topics = _topics(prompt)
    pieces: list[str] = []
    while len(pieces) < tokens:
        for index, word in enumerate(_sentence(rng, topics)):
            text = word.capitalize() if index == 0 else word
            glued = not pieces or word in {",", ".", ":"}
            pieces.append(text if glued else f" {text}")
    del pieces[tokens:]
    if tokens > 1 and pieces[-1] not in {".", ","}:
        pieces[-1] = "."
    return pieces


def _topics(prompt: str) -> Sequence[str]:
    words = _WORD.findall(prompt[-_PROMPT_CHARACTERS_READ:])
    topics = [word.lower() for word in reversed(words) if word.lower() not in _ROLE_WORDS]
    return list(dict.fromkeys(topics))[:_MAX_TOPIC_WORDS]


def _sentence(rng: random.Random, topics: Sequence[str]) -> list[str]:
    def noun() -> str:
        return rng.choice(topics) if topics and rng.random() < 0.5 else rng.choice(_NOUNS)

    words = [*rng.choice(_OPENERS), "the", rng.choice(_ADJECTIVES), noun(), rng.choice(_VERBS)]
    words += [rng.choice(_PLACES), "the", noun()]
    if rng.random() < 0.5:
        words += [",", "and", "the", noun(), rng.choice(_VERBS), "us"]
    return [*words, "."]
