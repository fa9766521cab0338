"""Which GPUs the driver counts; runs in a thread, as every call into the driver may hang."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import pynvml

from gpu_metrics.adapters.nvml_device import NvmlDevice
from gpu_metrics.adapters.nvml_library import CallMeter, NvmlFailed, NvmlLibrary, reason_of
from gpu_metrics.domain.plain_text import plain_text
from gpu_metrics.domain.readings import MissingReason

__all__ = ["Discovery", "FoundGpu", "NvmlDriver", "is_mismatch", "open_device"]


@dataclass(frozen=True, slots=True)
class FoundGpu:
    """A GPU the driver counts; without a handle, `reason` says why it cannot be opened."""

    driver_index: int
    uuid: str
    product_name: str = ""
    pci_bus_id: str = ""
    handle: int = 0
    reason: MissingReason = MissingReason.UNREACHABLE


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a lookup found; `library` is what the handles belong to."""

    library: NvmlLibrary
    driver_version: str
    gpus: tuple[FoundGpu, ...]
    attached_anew: bool


class NvmlDriver:
    """The library and whether it is attached to a driver; used by one thread."""

    def __init__(self) -> None:
        self.meter = CallMeter()
        self._library: NvmlLibrary | None = None
        self._attached = False
        self._bus_ids: dict[str, str] = {}

    def look_up(self, known_uuids: Mapping[int, str], *, attach_anew: bool) -> Discovery:
        """Return the GPUs; `attach_anew` gives up handles first, as they end with the driver.

        `known_uuids` name GPUs that cannot be opened now, by the driver's index. Raises
        `NvmlFailed` without a driver.
        """
        library = self._library = self._library or NvmlLibrary()
        if self._attached and attach_anew:
            self._attached = False
            self.meter.run(library.prepare("nvmlShutdown"))
        attached_anew = not self._attached
        if not self._attached:
            self._bus_ids.clear()
            library.call(self.meter, "nvmlInitWithFlags", ctypes.c_uint(0))
            self._attached = True
        try:
            count = ctypes.c_uint()
            library.call(self.meter, "nvmlDeviceGetCount_v2", ctypes.byref(count))
            gpus = tuple(self._open(library, index, known_uuids) for index in range(count.value))
            version = library.text(self.meter, "nvmlSystemGetDriverVersion")
        except NvmlFailed:
            self._attached = False
            self.meter.run(library.prepare("nvmlShutdown"))
            raise
        return Discovery(library, version, gpus, attached_anew)

    def _open(self, library: NvmlLibrary, index: int, known_uuids: Mapping[int, str]) -> FoundGpu:
        handle = ctypes.c_void_p()
        try:
            library.call(
                self.meter,
                "nvmlDeviceGetHandleByIndex_v2",
                ctypes.c_uint(index),
                ctypes.byref(handle),
            )
            uuid = library.text(self.meter, "nvmlDeviceGetUUID", handle)
        except NvmlFailed as failed:
            uuid = known_uuids.get(index, f"unidentified-{index}")
            return FoundGpu(index, uuid, reason=reason_of(failed.code))
        try:
            name = library.text(self.meter, "nvmlDeviceGetName", handle)
        except NvmlFailed:
            name = ""
        return FoundGpu(
            index, uuid, name, self._bus_id_of(library, uuid, handle), handle.value or 0
        )

    def _bus_id_of(self, library: NvmlLibrary, uuid: str, handle: ctypes.c_void_p) -> str:
        """Return where a GPU is on the bus; asked once, as it stays there."""
        if uuid not in self._bus_ids:
            place = pynvml.nvmlPciInfo_t()
            try:
                library.call(self.meter, "nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(place))
            except NvmlFailed:
                return ""
            self._bus_ids[uuid] = plain_text(str(place.busId), 32)
        return self._bus_ids[uuid]


def open_device(library: NvmlLibrary, found: FoundGpu, meter: CallMeter) -> NvmlDevice:
    """Prepare what is read of a GPU; makes no call yet."""
    return NvmlDevice(library, ctypes.c_void_p(found.handle), meter)


def is_mismatch(failed: NvmlFailed) -> bool:
    """Return whether the library is of another version than the driver's kernel module."""
    return bool(failed.code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
