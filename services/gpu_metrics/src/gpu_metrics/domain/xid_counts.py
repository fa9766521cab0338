"""How many XID errors each GPU had of each code since its driver was loaded."""

from dataclasses import dataclass, field

from gpu_metrics.domain.gpu_events import GpuEventKind

__all__ = ["XidCounts"]


@dataclass(slots=True)
class XidCounts:
    """Counts XIDs by GPU and code; a driver that was loaded anew starts from 0.

    `last_codes` holds the newest code of each GPU.
    """

    counts: dict[tuple[str, int], int] = field(default_factory=dict)
    last_codes: dict[str, int] = field(default_factory=dict)

    def observe(self, kind: GpuEventKind, gpu_uuid: str, xid: int) -> int:
        """Take an event in and return the count of its code, 0 for one that is no XID."""
        if kind is GpuEventKind.DRIVER_RELOADED:
            self._forget(gpu_uuid)
        if kind is not GpuEventKind.XID:
            return 0
        count = self.counts.get((gpu_uuid, xid), 0) + 1
        self.counts[gpu_uuid, xid] = count
        self.last_codes[gpu_uuid] = xid
        return count

    def copy(self) -> "XidCounts":
        """Return the counts as they are now."""
        return XidCounts(dict(self.counts), dict(self.last_codes))

    def _forget(self, gpu_uuid: str) -> None:
        """Start anew for one GPU, for all when none is named."""
        for key in [key for key in self.counts if gpu_uuid in ("", key[0])]:
            del self.counts[key]
        for name in [name for name in self.last_codes if gpu_uuid in ("", name)]:
            del self.last_codes[name]
