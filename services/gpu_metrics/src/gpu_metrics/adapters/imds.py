"""EC2's instance metadata service, version 2: what a machine can learn about itself.

Every request carries a session token that was asked for with PUT; requests without are refused
(AWS, "Use IMDSv2"). An answer's IP packets live for as many hops as the instance's options say, by
default one, so that a container behind a bridge gets none unless the limit is 2.
"""

import aiohttp

from servicekit.clock import Clock

__all__ = ["InstanceMetadata", "MetadataUnavailable"]

_TOKEN_SECONDS = 21_600
_MAXIMUM_BYTES = 64 * 1024


class MetadataUnavailable(Exception):
    """The service did not answer, or not in a way that means anything; `cause_name` says how."""

    def __init__(self, cause_name: str) -> None:
        super().__init__(cause_name)
        self.cause_name = cause_name


class _TokenRefused(Exception):
    """The token ran out."""


class InstanceMetadata:
    """Reads metadata by path, over a shared HTTP session; the token is kept until it runs out."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        clock: Clock,
        base_url: str = "http://169.254.169.254",
        timeout_seconds: float = 1.0,
    ) -> None:
        self._session = session
        self._clock = clock
        self._base_url = base_url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._token = ""
        self._token_ends_at = 0.0

    async def read(self, path: str) -> str | None:
        """Return the text at `path` below `latest/meta-data`, None when there is none.

        Raises `MetadataUnavailable`, after two requests and two timeouts at most twice over.
        """
        try:
            return await self._read(path)
        except _TokenRefused:
            self._token = ""
        try:
            return await self._read(path)
        except _TokenRefused:
            raise MetadataUnavailable("TOKEN_REFUSED") from None

    async def _read(self, path: str) -> str | None:
        if not self._token or self._clock.monotonic() >= self._token_ends_at:
            await self._renew_token()
        status, text = await self._request(
            "GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token}
        )
        if status == 401:
            raise _TokenRefused
        if status == 404:
            return None
        if status != 200:
            raise MetadataUnavailable(f"STATUS_{status}")
        return text

    async def _renew_token(self) -> None:
        status, text = await self._request(
            "PUT",
            "/latest/api/token",
            {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)},
        )
        # A token goes into a header: what could not stand there is none.
        if status != 200 or not text.isascii() or not text.isprintable() or not text:
            raise MetadataUnavailable("NO_TOKEN")
        self._token = text
        # Renewed early, so that none runs out under way.
        self._token_ends_at = self._clock.monotonic() + 0.9 * _TOKEN_SECONDS

    async def _request(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                body = await response.content.read(_MAXIMUM_BYTES)
                if not response.content.at_eof():
                    raise MetadataUnavailable("TOO_LARGE")
                return response.status, body.decode().strip()
        except TimeoutError:
            raise MetadataUnavailable("TIMEOUT") from None
        except UnicodeDecodeError:
            raise MetadataUnavailable("MALFORMED") from None
        except (aiohttp.ClientError, OSError, ValueError):
            raise MetadataUnavailable("UNREACHABLE") from None
