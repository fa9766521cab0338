"""The errors of the whole suite are a catalogue, and statuses carry it to the caller."""

from __future__ import annotations

import importlib
import pkgutil
import re
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from servicekit import errors
from servicekit.errors import (
    FieldViolation,
    InvalidRequest,
    Overloaded,
    ServiceError,
    StatusCode,
    Unavailable,
)
from servicekit.interceptors.errors import ERROR_DOMAIN, status_of

PACKAGES = ("servicekit", "gpu_metrics", "autoscaler", "ai_router", "knowledge_base")


def _import_everything() -> None:
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def _descendants(kind: type[ServiceError]) -> list[type[ServiceError]]:
    found = []
    for child in kind.__subclasses__():
        found.extend([child, *_descendants(child)])
    return found


@pytest.fixture(scope="module")
def catalogue() -> list[type[ServiceError]]:
    _import_everything()
    ours = [
        kind for kind in _descendants(ServiceError) if kind.__module__.split(".")[0] in PACKAGES
    ]
    assert len(ours) > 15
    return ours


def test_every_error_fixes_its_code_and_reason(catalogue: list[type[ServiceError]]) -> None:
    """A refinement may keep its parent's reason, but nobody keeps the base class's."""
    for kind in catalogue:
        assert isinstance(kind.code, StatusCode)
        if kind is not errors.Internal:
            assert kind.reason != ServiceError.reason, kind.__qualname__


def test_reasons_are_unique_upper_snake_case(catalogue: list[type[ServiceError]]) -> None:
    owners: dict[str, type[ServiceError]] = {}
    for kind in catalogue:
        # google.rpc.ErrorInfo: at most 63 characters of [A-Z][A-Z0-9_]+[A-Z0-9].
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", kind.reason)
        if "reason" in vars(kind) or kind is errors.Internal:
            other = owners.setdefault(kind.reason, kind)
            # Two services may have the same error; two different errors may not look the same.
            assert (other.__name__, other.code) == (kind.__name__, kind.code), kind.reason


def test_a_subclass_keeps_the_code_of_its_family(catalogue: list[type[ServiceError]]) -> None:
    for kind in catalogue:
        family = kind.__mro__[1]
        if issubclass(family, ServiceError) and family is not ServiceError:
            assert kind.code is family.code, kind.__qualname__


def test_errors_that_ask_for_patience_say_how_long(catalogue: list[type[ServiceError]]) -> None:
    for kind in catalogue:
        if kind.code in (StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE):
            assert kind.default_retry_after_seconds is not None, kind.__qualname__


def test_every_error_is_promised_in_one_line(catalogue: list[type[ServiceError]]) -> None:
    assert all((kind.__doc__ or "").strip() for kind in catalogue)


def test_codes_are_grpcs_own() -> None:
    numbers = {code.name: code.value[0] for code in grpc.StatusCode}
    assert all(numbers[code.name] == code.value for code in StatusCode)


def details_of(error: ServiceError) -> list[str]:
    return [detail.type_url.rsplit(".", 1)[1] for detail in status_of(error).details]


def test_a_status_carries_reason_domain_and_metadata() -> None:
    status = status_of(errors.NotFound("No such tier.", metadata={"tier": "gold"}))
    assert (status.code, status.message) == (5, "No such tier.")
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert (info.reason, info.domain) == ("NOT_FOUND", ERROR_DOMAIN)
    assert dict(info.metadata) == {"tier": "gold"}
    assert details_of(errors.NotFound("x")) == ["ErrorInfo"]


def test_fields_travel_as_bad_request() -> None:
    violations = [FieldViolation("tier", "required"), FieldViolation("id", "must be a UUID")]
    status = status_of(InvalidRequest("wrong", field_violations=violations))
    bad = error_details_pb2.BadRequest.FromString(status.details[1].value)
    assert [(item.field, item.description) for item in bad.field_violations] == [
        ("tier", "required"),
        ("id", "must be a UUID"),
    ]


@pytest.mark.parametrize(
    ("error", "milliseconds"),
    [(Overloaded("full"), 1000), (Unavailable("away", retry_after_seconds=0.25), 250)],
)
def test_patience_travels_as_retry_info(error: ServiceError, milliseconds: int) -> None:
    status = status_of(error)
    info = error_details_pb2.RetryInfo.FromString(status.details[1].value)
    assert info.retry_delay.ToMilliseconds() == milliseconds


# Length, not variety, is what strains the trailers: pieces are repeated.
_PIECE = st.sampled_from(["a", "é", "漢", "🎲", "%", "\n", "a sentence of some length. "])
_LONG = st.builds(str.__mul__, _PIECE, st.integers(0, 5000))


@given(
    message=_LONG,
    metadata=st.dictionaries(st.sampled_from(["a", "b" * 500, "c"]), _LONG, max_size=3),
    violations=st.lists(st.builds(FieldViolation, _LONG, _LONG), max_size=10),
)
def test_every_status_fits_into_the_trailers(
    message: str, metadata: dict[str, str], violations: list[FieldViolation]
) -> None:
    status = status_of(InvalidRequest(message, metadata=metadata, field_violations=violations))
    encoded_message = len(quote(status.message, safe=" "))
    encoded_details = status.ByteSize() * 4 / 3  # base64
    assert encoded_message + encoded_details < 8 * 1024 - 500
    assert message.startswith(status.message)


def test_an_errors_metadata_cannot_be_changed_afterwards() -> None:
    error = errors.NotFound("x", metadata={"a": "b"})
    with pytest.raises(TypeError):
        error.metadata["a"] = "c"  # type: ignore[index]  # the point of the test
