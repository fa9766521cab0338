"""Text of others, made fit to be a name in a report.

Collectors refuse a whole message for one name with characters that cannot be seen; a process, a
page or a driver that calls something so must not silence its host.
"""

__all__ = ["plain_text"]


def plain_text(text: str, limit: int) -> str:
    """Return the text without what cannot be seen, at most `limit` characters of it."""
    shown = text[: 4 * limit]
    if not shown.isprintable():
        shown = "".join(character for character in shown if character.isprintable())
    return shown[:limit]
