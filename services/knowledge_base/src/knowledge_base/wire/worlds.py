"""Worlds on the wire."""

import uuid

from gaming.knowledge_base.v1 import worlds_pb2
from knowledge_base.domain.memory import World
from knowledge_base.domain.text import SHARED_WORLD
from knowledge_base.wire.times import optional_stamp, stamp

__all__ = ["world_id_text", "world_message"]


def world_id_text(world_id: uuid.UUID) -> str:
    """Returns a world's id; empty for the shared one."""
    return "" if world_id == SHARED_WORLD else str(world_id)


def world_message(world: World) -> worlds_pb2.World:
    """Returns a world."""
    return worlds_pb2.World(
        world_id=str(world.world_id),
        name=world.name,
        description=world.description,
        create_time=stamp(world.create_time),
        event_count=world.event_count,
        archive_time=optional_stamp(world.archive_time),
    )
