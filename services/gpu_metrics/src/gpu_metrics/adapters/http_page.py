"""A page of another process on this host, within limits of time and size."""

import aiohttp

from gpu_metrics.domain.readings import MissingReason

__all__ = ["MAXIMUM_PAGE_BYTES", "fetch_page"]

MAXIMUM_PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of a page that are read; a larger one is none."""


async def fetch_page(
    session: aiohttp.ClientSession, url: str, limits: aiohttp.ClientTimeout
) -> str | MissingReason:
    """Return the page, or why it could not be had; within `limits` of time, never raising."""
    try:
        async with session.get(url, timeout=limits, allow_redirects=False) as response:
            if response.status != 200:
                return _reason_of_status(response.status)
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAXIMUM_PAGE_BYTES:
                    return MissingReason.MALFORMED
            return body.decode()
    except TimeoutError:
        return MissingReason.TIMEOUT
    except UnicodeDecodeError:
        return MissingReason.MALFORMED
    except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError):
        return MissingReason.MALFORMED
    except (aiohttp.ClientError, OSError):
        return MissingReason.UNREACHABLE


def _reason_of_status(status: int) -> MissingReason:
    if status in (401, 403):
        return MissingReason.PERMISSION
    if status == 404:
        return MissingReason.UNSUPPORTED
    return MissingReason.UNREACHABLE
