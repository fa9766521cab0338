"""Sessions of the AWS SDK that are opened while the process does other things.

The SDK keeps each service's API in files of up to several megabytes and reads them anew for every
session: a tenth of a second of CPU for a first client, four for EC2's. They never change while a
process lives, so all sessions share what was read, and it is read in a thread. Credentials and
everything else stay each session's own.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence

from aiobotocore.session import AioSession, get_session
from botocore.loaders import Loader

__all__ = ["open_session"]

_OF_ALL_SERVICES = ("endpoints", "partitions", "_retry", "sdk-default-configuration")
_OF_EACH_SERVICE = ("service-2", "endpoint-rule-set-1")


async def open_session(*services: str) -> AioSession:
    """Returns a session whose clients of `services`, by the SDK's names, are made without reading.

    Clients of other services can be made too.
    """
    descriptions = await asyncio.to_thread(_read, services)
    session = get_session()
    session.register_component("data_loader", descriptions)
    return session


def _read(services: Sequence[str]) -> Loader:
    descriptions = _descriptions()
    for name in _OF_ALL_SERVICES:
        descriptions.load_data(name)
    for service in services:
        for kind in _OF_EACH_SERVICE:
            descriptions.load_service_model(service, kind)
    return descriptions


@functools.cache
def _descriptions() -> Loader:
    # That of a session, so that AWS_DATA_PATH is minded.
    loader: Loader = get_session().get_component("data_loader")
    return loader
