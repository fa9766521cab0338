"""What text may be stored, how its words are told apart, and how names are compared."""

import re
import unicodedata
import uuid
from collections.abc import Iterable

from knowledge_base.domain.errors import InvalidIdentifier, InvalidText
from servicekit.errors import FieldViolation

__all__ = [
    "SHARED_WORLD",
    "check_text",
    "check_texts",
    "normalise_name",
    "parse_world_id",
    "words_apart",
]

# The world whose concepts every world sees; callers write it as an empty id.
SHARED_WORLD = uuid.UUID(int=0)

# The same as the function words_apart of migration 0074.
_GLUE = re.compile(r"/|[-+](?=[0-9])")


def check_text(field: str, text: str) -> str:
    """Returns `text` when PostgreSQL can store it: any Unicode but U+0000.

    Raises InvalidText naming the field and the position, counted in characters from 0.
    """
    position = text.find("\0")
    if position >= 0:
        description = f"holds the character U+0000 at position {position}; remove it"
        raise InvalidText(
            f"{field} {description}.",
            metadata={"field": field, "position": str(position)},
            field_violations=[FieldViolation(field, description)],
        )
    return text


def check_texts(field: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Returns the texts when each can be stored; see `check_text`."""
    return tuple(check_text(f"{field}[{index}]", text) for index, text in enumerate(texts))


def words_apart(text: str) -> str:
    """Returns the text as its words are looked up: blanks for slashes and for signs of numbers.

    PostgreSQL's parser takes "day/night" for the path of a file and the end of "pier-7" for a
    negative number, so that neither "night" nor "pier 7" would find them.
    """
    return _GLUE.sub(" ", text)


def normalise_name(field: str, name: str) -> str:
    """Returns the name in Unicode form NFC, without blanks around it.

    So one name typed in two ways is one name. Case counts.

    Raises InvalidText when nothing is left, or when it holds control characters.
    """
    normal = unicodedata.normalize("NFC", check_text(field, name)).strip()
    if not normal:
        description = "must hold more than blanks"
    elif any(unicodedata.category(character) == "Cc" for character in normal):
        description = "must not hold control characters"
    else:
        return normal
    raise InvalidText(
        f"{field} {description}.",
        metadata={"field": field},
        field_violations=[FieldViolation(field, description)],
    )


def parse_world_id(field: str, text: str) -> uuid.UUID:
    """Returns the world's id; an empty text is `SHARED_WORLD`.

    Raises InvalidIdentifier when it is not a UUID.
    """
    if not text:
        return SHARED_WORLD
    try:
        world_id = uuid.UUID(text)
    except ValueError:
        world_id = SHARED_WORLD
    if world_id == SHARED_WORLD:  # written out it is no world of anybody's
        description = "must be a UUID such as 3f2b8c1e-8f5e-4d0a-9a57-0f2f3f4b5c6d"
        raise InvalidIdentifier(
            f"{field} {description}.",
            metadata={"field": field},
            field_violations=[FieldViolation(field, description)],
        )
    return world_id
