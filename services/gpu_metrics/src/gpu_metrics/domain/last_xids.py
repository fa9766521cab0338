"""The XID error that each GPU had last, as its host's journal tells."""

from collections import OrderedDict
from collections.abc import Iterable

from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind

__all__ = ["LastXids"]

_HOSTS_REMEMBERED = 4096
_GPUS_PER_HOST = 64


class LastXids:
    """Remembers one code per GPU since its driver was loaded, of a bounded number of hosts."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, dict[str, int]] = OrderedDict()

    def take(self, host_id: str, events: Iterable[GpuEvent]) -> None:
        """Take what is new of a host's journal, in order."""
        for event in events:
            if event.kind is GpuEventKind.DRIVER_RELOADED:
                self._hosts.pop(host_id, None)
            elif event.kind is GpuEventKind.XID:
                codes = self._hosts.setdefault(host_id, {})
                self._hosts.move_to_end(host_id)
                if event.gpu_uuid in codes or len(codes) < _GPUS_PER_HOST:
                    codes[event.gpu_uuid] = event.xid
                if len(self._hosts) > _HOSTS_REMEMBERED:
                    self._hosts.popitem(last=False)

    def of(self, host_id: str, gpu_uuid: str) -> int:
        """Return the code, 0 for none."""
        return self._hosts.get(host_id, {}).get(gpu_uuid, 0)
