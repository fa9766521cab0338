"""Changes of worlds on the wire."""

from gaming.knowledge_base.v1 import world_changes_pb2 as pb
from knowledge_base.wire.times import stamp
from knowledge_base.world_watch import ERASED, WatchStep

__all__ = ["watch_message"]

_KINDS = {
    "event": pb.WORLD_CHANGE_KIND_EVENT,
    "concept": pb.WORLD_CHANGE_KIND_CONCEPT,
    "relationship": pb.WORLD_CHANGE_KIND_RELATIONSHIP,
    "subscription": pb.WORLD_CHANGE_KIND_SUBSCRIPTION,
    "archived": pb.WORLD_CHANGE_KIND_ARCHIVED,
    "unarchived": pb.WORLD_CHANGE_KIND_UNARCHIVED,
    ERASED: pb.WORLD_CHANGE_KIND_ERASED,
}


def watch_message(step: WatchStep) -> pb.WatchWorldResponse:
    """Returns one step of a watch."""
    change = None
    if step.change is not None:
        change = pb.WorldChange(
            number=step.change.number,
            kind=_KINDS.get(step.change.kind, pb.WORLD_CHANGE_KIND_UNSPECIFIED),
            subject_id=str(step.change.subject_id) if step.change.subject_id else "",
            record_time=stamp(step.change.record_time),
        )
    return pb.WatchWorldResponse(resume_token=step.token, change=change)
