"""One reading of each GPU from several sources."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpu_metrics.domain.readings import GPU_FIGURES, CountReading, GpuReading, MissingReason

__all__ = ["merged_gpus"]

# What these sources say of a GPU holds for all its figures: what another still tells is old.
_FINAL = (MissingReason.LOST, MissingReason.HUNG)


def merged_gpus(sources: Sequence[Sequence[GpuReading]]) -> tuple[GpuReading, ...]:
    """Return every GPU once, by UUID, in the order of the sources and of their readings.

    A figure is that of the first source that has it, and where none has, the reason of the first
    that gives one. A GPU that an earlier source calls lost or hung is not filled up from a later
    one, nor are its figures of another epoch of the driver.
    """
    found: dict[str, GpuReading] = {}
    for source in sources:
        for gpu in source:
            before = found.get(gpu.gpu_uuid)
            found[gpu.gpu_uuid] = gpu if before is None else _filled(before, gpu)
    return tuple(found.values())


def _filled(first: GpuReading, second: GpuReading) -> GpuReading:
    if first.driver_epoch and second.driver_epoch and first.driver_epoch != second.driver_epoch:
        return first
    changes: dict[str, Any] = {}
    for name in GPU_FIGURES:
        reading: CountReading = getattr(first, name)
        if not isinstance(reading, MissingReason):
            continue
        if reading in _FINAL:
            return first
        other: CountReading = getattr(second, name)
        if not isinstance(other, MissingReason) or reading is MissingReason.NOT_TOLD:
            changes[name] = other
    return replace(
        first,
        product_name=first.product_name or second.product_name,
        pci_bus_id=first.pci_bus_id or second.pci_bus_id,
        driver_epoch=first.driver_epoch or second.driver_epoch,
        **changes,
    )
