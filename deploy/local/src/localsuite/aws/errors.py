"""How the local AWS refuses a call: with AWS's code, text and HTTP status."""

__all__ = ["ApiError", "http_status_of", "not_modelled"]

#: Codes AWS answers with something else than 400 (EC2 API reference, "Error codes").
_STATUS_BY_CODE = {
    "RequestLimitExceeded": 503,
    "ServiceUnavailable": 503,
    "Unavailable": 503,
    "InternalError": 500,
    "InternalFailure": 500,
    "InsufficientInstanceCapacity": 500,
}


class ApiError(Exception):
    """A refused call. `status` is the HTTP status; by default the one AWS uses for `code`."""

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = http_status_of(code) if status is None else status


def http_status_of(code: str) -> int:
    """The HTTP status AWS answers an error code with."""
    return _STATUS_BY_CODE.get(code, 400)


def not_modelled(code: str, what: str) -> ApiError:
    """The refusal of something AWS can do and this simulation cannot; its text says so."""
    return ApiError(code, f"{what} is not modelled by the local AWS simulation.")
