"""SQL statements that lie in files beside the code, each under its name."""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources

__all__ = ["Queries", "check_identifiers", "load_queries", "substitute"]

_NAME_LINE = re.compile(r"^-- name: (?P<name>[a-z][a-z0-9_]*)\s*$", re.MULTILINE)


class Queries:
    """SQL statements by the names written above them."""

    def __init__(self, statements: Mapping[str, str]) -> None:
        self._statements = dict(statements)

    def __getattr__(self, name: str) -> str:
        try:
            return self._statements[name]
        except KeyError:
            raise AttributeError(f"no SQL statement is named {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)


def load_queries(
    package: str,
    filename: str = "queries.sql",
    *,
    substitutions: Mapping[str, str] | None = None,
) -> Queries:
    """Returns the statements of a package's `.sql` file, each under a line `-- name: …`.

    Args:
        package: holds the file.
        filename: its name.
        substitutions: replaces `{{name}}` in the file; values must be plain identifiers.

    Raises:
        ValueError: when two statements share a name, a name has none, or a substitution is not an
            identifier.
    """
    substitutions = dict(substitutions or {})
    check_identifiers(substitutions.values())
    text = resources.files(package).joinpath(filename).read_text(encoding="utf-8")
    text = substitute(text, substitutions)
    statements: dict[str, str] = {}
    matches = list(_NAME_LINE.finditer(text))
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        body = text[match.end() : following.start() if following else None].strip()
        name = match["name"]
        if name in statements or not body:
            raise ValueError(f"{filename}: {name!r} is there twice or is empty")
        statements[name] = body
    return Queries(statements)


def check_identifiers(values: Iterable[str]) -> None:
    """Raises ValueError unless all are plain lower-case SQL identifiers."""
    for value in values:
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value):
            raise ValueError(f"{value!r} is not a plain lower-case SQL identifier")


def substitute(sql: str, substitutions: Mapping[str, str]) -> str:
    """Returns the SQL with each `{{name}}` replaced."""
    for name, value in substitutions.items():
        sql = sql.replace("{{" + name + "}}", value)
    return sql
