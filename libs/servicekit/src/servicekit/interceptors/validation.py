"""Checks every request against the rules written in its proto."""

from __future__ import annotations

from typing import Any

import protovalidate
from google.protobuf.message import Message

from servicekit.errors import FieldViolation, InvalidRequest
from servicekit.interceptors.call import Call

__all__ = ["RequestValidator"]

_MAXIMUM_VIOLATIONS = 20


class RequestValidator:
    """Checks requests with protovalidate; one instance serves a whole server."""

    def __init__(self) -> None:
        self._validator = protovalidate.Validator()

    def check(self, call: Call, request: Any) -> None:
        """Returns when `request` keeps its rules.

        Raises:
            InvalidRequest: naming every field that breaks a rule, and the rule.
        """
        if not isinstance(request, Message):
            return
        violations = self._validator.collect_violations(request)
        if violations:
            described = [_describe(violation) for violation in violations[:_MAXIMUM_VIOLATIONS]]
            first = described[0]
            raise InvalidRequest(
                f"{first.field}: {first.description}"
                + (f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""),
                field_violations=described,
            )


def _describe(violation: Any) -> FieldViolation:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field else ():
        path += f".{element.field_name}"
        subscript = element.subscript
        if subscript is not None and isinstance(
            getattr(subscript, "value", None), int | str | bool
        ):
            path += f"[{subscript.value}]"
    return FieldViolation(path.lstrip(".") or "request", proto.message or proto.rule_id)
