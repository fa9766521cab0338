"""Which GPUs a container was given, by the variable that NVIDIA's container runtime reads.

`NVIDIA_VISIBLE_DEVICES` lists UUIDs (as the ECS agent sets it) or indexes, or is `all`, `none` or
`void` (NVIDIA Container Toolkit, "Environment variables").
"""

from collections.abc import Mapping

__all__ = ["assigned_gpus"]

_MOST = 16


def assigned_gpus(
    visible_devices: str | None, uuids_by_index: Mapping[int, str]
) -> tuple[str, ...]:
    """Return the UUIDs, at most 16; none when the variable is unset or names nothing known."""
    if visible_devices is None:
        return ()
    if visible_devices.strip() == "all":
        return tuple(uuids_by_index[index] for index in sorted(uuids_by_index))[:_MOST]
    found: list[str] = []
    known = set(uuids_by_index.values())
    for entry in (part.strip() for part in visible_devices.split(",")):
        if entry.isascii() and entry.isdigit():
            uuid = uuids_by_index.get(int(entry), "")
        else:
            # A UUID may be cut short, as long as it is unambiguous.
            matches = [uuid for uuid in known if uuid.startswith(entry)] if entry else []
            uuid = matches[0] if len(matches) == 1 else ""
        if uuid and uuid not in found:
            found.append(uuid)
    return tuple(found[:_MOST])
