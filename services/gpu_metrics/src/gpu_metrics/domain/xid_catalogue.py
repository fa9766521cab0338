"""What XID errors mean and what is to be done about them.

Codes, what they are about and the group of the immediate action are facts of NVIDIA's public
catalogue, "Analyzing Xid Errors with the Xid Catalog" (docs.nvidia.com/deploy/xid-errors, as of
October 2025); the wording is ours. The catalogue has no severities, so ours follow from its
immediate action: work is lost or the device unusable where something must be restarted or reset,
worth knowing where nothing is to be done.
"""

from dataclasses import dataclass
from enum import Enum

from gpu_metrics.domain.gpu_events import Severity

__all__ = ["XidAction", "XidFacts", "xid_facts"]


class XidAction(Enum):
    """What is to be done at once, by the catalogue's groups."""

    NOTHING = "no action needed; look into it if it repeats"
    RESTART_APPLICATION = "restart the application"
    RESET_GPU = "reset the GPU, or replace the instance"
    RESTART_HOST = "restart the host, or replace the instance"
    RESTART_VIRTUAL_MACHINE = "restart the virtual machine"
    CHECK_MECHANICALS = "check power connectors and seating of the board"
    UPDATE_SOFTWARE = "update the driver and the firmware"
    CHECK_NVLINK = "follow NVIDIA's NVLink procedure; reset the GPU if it repeats"
    FOLLOW_ECC = "drain the GPU and reset it; replace the instance if it repeats"
    FOLLOW_OTHERS = "act on the XID that came with it"
    CONTACT_SUPPORT = "collect a bug report and contact support"


_SEVERITIES = {
    XidAction.NOTHING: Severity.INFO,
    XidAction.RESTART_APPLICATION: Severity.WARNING,
    XidAction.RESET_GPU: Severity.CRITICAL,
    XidAction.RESTART_HOST: Severity.CRITICAL,
    XidAction.RESTART_VIRTUAL_MACHINE: Severity.CRITICAL,
    XidAction.CHECK_MECHANICALS: Severity.CRITICAL,
    XidAction.UPDATE_SOFTWARE: Severity.WARNING,
    XidAction.CHECK_NVLINK: Severity.CRITICAL,
    XidAction.FOLLOW_ECC: Severity.CRITICAL,
    XidAction.FOLLOW_OTHERS: Severity.WARNING,
    XidAction.CONTACT_SUPPORT: Severity.WARNING,
}


@dataclass(frozen=True, slots=True)
class XidFacts:
    """What is known of a code; `known` is false for one that the catalogue does not use."""

    code: int
    description: str
    action: XidAction
    severity: Severity
    known: bool = True


def _engines(name: str, codes: dict[int, int]) -> dict[int, tuple[str, XidAction]]:
    return {
        code: (f"{name} {number} reported an error", XidAction.RESTART_APPLICATION)
        for code, number in codes.items()
    }


_CATALOGUE: dict[int, tuple[str, XidAction]] = {
    8: ("the GPU stopped processing a channel", XidAction.RESTART_APPLICATION),
    11: ("commands sent to the GPU were invalid", XidAction.RESTART_APPLICATION),
    13: ("a program did something illegal on the GPU", XidAction.RESTART_APPLICATION),
    14: ("an error made for a test", XidAction.NOTHING),
    25: ("commands sent to the GPU were illegal", XidAction.RESTART_APPLICATION),
    31: ("a program used GPU memory that it does not have", XidAction.RESTART_APPLICATION),
    32: ("commands sent to the GPU were corrupted", XidAction.RESTART_APPLICATION),
    37: ("the driver's firmware met a request it does not know", XidAction.NOTHING),
    38: ("the driver's firmware timed out", XidAction.NOTHING),
    43: ("a program's fault stopped its work; the GPU goes on", XidAction.NOTHING),
    44: ("a fault while switching between programs", XidAction.NOTHING),
    45: ("work was removed because of an earlier error", XidAction.FOLLOW_OTHERS),
    46: ("the GPU stopped processing", XidAction.RESET_GPU),
    48: ("a memory error that could not be corrected", XidAction.FOLLOW_ECC),
    54: ("the board's auxiliary power is not connected", XidAction.CHECK_MECHANICALS),
    60: ("the video processor reported an error", XidAction.RESTART_APPLICATION),
    62: ("the GPU's power controller halted", XidAction.RESET_GPU),
    63: ("a faulty part of memory was marked for replacement", XidAction.NOTHING),
    64: ("a faulty part of memory could not be replaced", XidAction.RESET_GPU),
    66: ("the driver made an illegal access", XidAction.NOTHING),
    67: ("the driver made an access that was refused", XidAction.NOTHING),
    69: ("a program used a graphics class wrongly", XidAction.RESTART_APPLICATION),
    74: ("an NVLink connection failed", XidAction.CHECK_NVLINK),
    78: ("a virtual GPU did not start", XidAction.UPDATE_SOFTWARE),
    79: ("the GPU fell off the bus", XidAction.RESTART_HOST),
    80: ("data sent to the GPU was corrupted", XidAction.RESTART_APPLICATION),
    92: ("corrected memory errors are frequent", XidAction.NOTHING),
    93: ("the board's own storage is wearing out", XidAction.NOTHING),
    94: ("a memory error that harmed only the programs using it", XidAction.RESTART_APPLICATION),
    95: ("a memory error that may have harmed every program", XidAction.RESET_GPU),
    106: ("a test message", XidAction.NOTHING),
    107: ("a silent test message", XidAction.NOTHING),
    108: ("a remote NVLink translation failed", XidAction.NOTHING),
    109: ("switching between programs timed out", XidAction.RESET_GPU),
    110: ("a security fault", XidAction.RESET_GPU),
    119: ("the GPU's system processor did not answer in time", XidAction.RESET_GPU),
    120: ("the GPU's system processor failed", XidAction.RESET_GPU),
    121: ("a chip-to-chip connection had an error", XidAction.NOTHING),
    136: ("a link could not be trained", XidAction.RESET_GPU),
    137: ("an NVLink access was refused", XidAction.NOTHING),
    140: ("a memory error escaped correction", XidAction.RESET_GPU),
    141: ("an error on the fast path for programs", XidAction.NOTHING),
    142: ("video encoder 3 reported an error", XidAction.CONTACT_SUPPORT),
    143: ("the GPU could not be initialised", XidAction.RESET_GPU),
    **dict.fromkeys(range(144, 151), ("an NVLink connection had an error", XidAction.CHECK_NVLINK)),
    151: ("keys could not be rotated", XidAction.RESTART_VIRTUAL_MACHINE),
    152: ("the deep-learning accelerator's memory unit had an error", XidAction.NOTHING),
    153: ("the deep-learning accelerator timed out", XidAction.NOTHING),
    154: ("what the driver recommends for recovery changed", XidAction.FOLLOW_OTHERS),
    155: ("software reported an NVLink error", XidAction.RESET_GPU),
    156: ("a faulty part of the GPU was retired", XidAction.RESET_GPU),
    157: ("a faulty part of the GPU could not be retired", XidAction.NOTHING),
    158: ("the GPU timed out for good", XidAction.RESET_GPU),
    159: ("an error on the link to the processor", XidAction.CONTACT_SUPPORT),
    160: ("a memory channel was retired", XidAction.NOTHING),
    161: ("a memory channel could not be retired", XidAction.NOTHING),
    **_engines(
        "copy engine",
        {39: 0, 40: 1, 41: 2, 70: 3, 71: 4, 72: 5, 75: 6, 76: 7, 77: 8, 85: 9}
        | {code: code - 116 for code in range(126, 136)},
    ),
    **_engines("video decoder", {68: 0, 83: 1, 84: 2, 88: 3, 89: 4, 96: 5, 97: 6, 98: 7}),
    **_engines("picture decoder", {82: 0} | {code: code - 98 for code in range(99, 106)}),
    **_engines("optical-flow engine", {86: 0, 139: 1}),
}


def xid_facts(code: int) -> XidFacts:
    """Return what the catalogue says of `code`; one it does not use is for support to explain."""
    if code not in _CATALOGUE:
        action = XidAction.CONTACT_SUPPORT
        return XidFacts(code, "not in NVIDIA's catalogue", action, _SEVERITIES[action], known=False)
    description, action = _CATALOGUE[code]
    return XidFacts(code, description, action, _SEVERITIES[action])
