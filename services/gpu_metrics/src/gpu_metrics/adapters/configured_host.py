"""The machine as its settings describe it."""

from gpu_metrics.domain.readings import Host

__all__ = ["ConfiguredHost"]


class ConfiguredHost:
    """A host whose identity does not change and which learns of no interruption."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def read_host(self) -> Host:
        """Return the machine."""
        return self._host
