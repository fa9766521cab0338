"""How a journal's file is written, as bytes.

The file is a row of frames: length and CRC-32 of the payload, four bytes each, then the payload,
whose first byte says what it is. `H` is the header, JSON: the journal's id, the sequence before the
first event, the run of the machine, and the XIDs counted up to the newest event that the file began
with. `E` holds the events of one append, each a length and a `GpuEvent`, after the sequence that
collectors had acknowledged by then. One append is one frame, so what a crash leaves half-written is
the last frame alone.
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from gaming.gpu_metrics.v1 import events_pb2
from gpu_metrics.domain.gpu_events import GpuEvent
from gpu_metrics.domain.xid_counts import XidCounts
from gpu_metrics.wire.events import event_from_message, event_message

__all__ = ["DamagedJournal", "JournalContents", "decode_journal", "events_frame", "header_frame"]

_FRAME = struct.Struct("<II")
_EVENTS = struct.Struct("<cQ")
_EVENT = struct.Struct("<I")
# An append of the most events at once is far below; a larger length is damage.
_MAXIMUM_PAYLOAD_BYTES = 64 * 1024 * 1024


class DamagedJournal(Exception):
    """A frame before the last one cannot be read."""


@dataclass(slots=True)
class JournalContents:
    """What a file holds; `length` bytes of it are whole frames.

    `xid_counts` are of the machine's run `machine_boot_id`.
    """

    journal_id: str
    machine_boot_id: str
    last_sequence: int
    counted_sequence: int
    xid_counts: XidCounts
    events: list[GpuEvent] = field(default_factory=list)
    acknowledged: int = 0
    length: int = 0


def header_frame(
    journal_id: str,
    machine_boot_id: str,
    base_sequence: int,
    counted_sequence: int,
    counts: XidCounts,
) -> bytes:
    """Return a header; `counts` hold after the event `counted_sequence`."""
    document = {
        "journal_id": journal_id,
        "machine_boot_id": machine_boot_id,
        "base_sequence": base_sequence,
        "counted_sequence": counted_sequence,
        "xid_counts": [[gpu, xid, count] for (gpu, xid), count in counts.counts.items()],
        "last_codes": counts.last_codes,
    }
    return _frame(b"H" + json.dumps(document).encode())


def events_frame(events: Sequence[GpuEvent], acknowledged: int) -> bytes:
    """Return the events of one append."""
    parts = [_EVENTS.pack(b"E", acknowledged)]
    for event in events:
        message = event_message(event).SerializeToString()
        parts += (_EVENT.pack(len(message)), message)
    return _frame(b"".join(parts))


def decode_journal(data: bytes) -> JournalContents | None:
    """Return what a file holds, up to a torn last frame; None without a whole header.

    Raises `DamagedJournal` when a frame that others follow cannot be read.
    """
    contents: JournalContents | None = None
    offset = 0
    while (payload := _payload_at(data, offset)) is not None:
        try:
            if contents is None:
                contents = _decode_header(payload)
            else:
                _decode_events(payload, contents)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error, DecodeError):
            raise DamagedJournal from None
        offset += _FRAME.size + len(payload)
        contents.length = offset
    if _whole_frame_after(data, offset):
        raise DamagedJournal
    return contents


def _payload_at(data: bytes, offset: int) -> bytes | None:
    """Return the payload of the frame that begins here, None when none does."""
    if offset + _FRAME.size > len(data):
        return None
    length, checksum = _FRAME.unpack_from(data, offset)
    start = offset + _FRAME.size
    if not 0 < length <= _MAXIMUM_PAYLOAD_BYTES or start + length > len(data):
        return None
    payload = data[start : start + length]
    return payload if zlib.crc32(payload) == checksum else None


def _whole_frame_after(data: bytes, offset: int) -> bool:
    """Return whether a frame of events begins anywhere behind `offset`."""
    found = data.find(b"E", offset + _FRAME.size + 1)
    while found >= 0:
        if _payload_at(data, found - _FRAME.size) is not None:
            return True
        found = data.find(b"E", found + 1)
    return False


def _frame(payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _decode_header(payload: bytes) -> JournalContents:
    if payload[:1] != b"H":
        raise ValueError("no header")
    document = json.loads(payload[1:])
    return JournalContents(
        journal_id=str(document["journal_id"]),
        machine_boot_id=str(document["machine_boot_id"]),
        last_sequence=int(document["base_sequence"]),
        counted_sequence=int(document["counted_sequence"]),
        xid_counts=XidCounts(
            counts={(str(gpu), int(xid)): int(count) for gpu, xid, count in document["xid_counts"]},
            last_codes={str(gpu): int(xid) for gpu, xid in document["last_codes"].items()},
        ),
    )


def _decode_events(payload: bytes, contents: JournalContents) -> None:
    kind, contents.acknowledged = _EVENTS.unpack_from(payload)
    if kind != b"E":
        raise ValueError("unknown frame")
    offset = _EVENTS.size
    while offset < len(payload):
        (length,) = _EVENT.unpack_from(payload, offset)
        offset += _EVENT.size
        message = events_pb2.GpuEvent.FromString(payload[offset : offset + length])
        offset += length
        event = event_from_message(message)
        if event.sequence != contents.last_sequence + 1:
            raise ValueError("not the next event")
        contents.last_sequence = event.sequence
        contents.events.append(event)
        if event.sequence > contents.counted_sequence:
            contents.xid_counts.observe(event.kind, event.gpu_uuid, event.xid)
