"""Typed access to the four services for game services written in Python.

async with GamekeeperClient.open() as gamekeeper:
    world = await gamekeeper.ensure_world("Hollowmere")
    storyteller = gamekeeper.storyteller(world.world_id)
    turn = await storyteller.tell("I give the lantern back to the ferryman.")
    print(turn.text)
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from gamekeeper.addresses import Addresses, find_addresses
from gamekeeper.call_errors import CallFailed, calls_to
from gamekeeper.story_services import KnowledgeBaseMemory, RouterNarrator
from gamekeeper.storyteller import Storyteller, StorytellerPolicy
from gaming.ai_router.v1 import ai_router_pb2_grpc
from gaming.autoscaler.v1 import autoscaler_pb2_grpc
from gaming.events import events_pb2
from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc
from gaming.knowledge_base.v1 import (
    context_pb2,
    knowledge_base_pb2_grpc,
    subscriptions_pb2,
    worlds_pb2,
)
from servicekit.channels import ChannelSettings, open_channel
from servicekit.settings import load_settings

__all__ = ["GamekeeperClient"]

# Names worlds' creation requests, so that two processes that make the same world make one.
_WORLD_NAMESPACE = uuid.UUID("5f0c8f0e-5a1c-4a39-9c36-7a8f0d2f6f5b")
_CALL_SECONDS = 10.0


class GamekeeperClient:
    """Holds one channel per service; open it once per process and share it.

    Every stub is the generated, typed client; calls without a timeout get the longest their method
    allows, and calls that can be repeated are retried while their service is away.

    Attributes:
        addresses: where the services are.
        ai_router: generated client of AiRouterService.
        autoscaler: generated client of AutoscalerService.
        gpu_metrics: generated client of GpuMetricsService.
        knowledge_base: generated client of KnowledgeBaseService.
    """

    def __init__(self, addresses: Addresses, settings: ChannelSettings) -> None:
        self.addresses = addresses
        self._channels = {
            name: open_channel(addresses.of(name), settings)
            for name in ("ai_router", "autoscaler", "gpu_metrics", "knowledge_base")
        }
        self.ai_router = ai_router_pb2_grpc.AiRouterServiceStub(self._channels["ai_router"])
        self.autoscaler = autoscaler_pb2_grpc.AutoscalerServiceStub(self._channels["autoscaler"])
        self.gpu_metrics = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(self._channels["gpu_metrics"])
        self.knowledge_base = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(
            self._channels["knowledge_base"]
        )

    @classmethod
    def open(
        cls, addresses: Addresses | None = None, *, environ: Mapping[str, str] | None = None
    ) -> Self:
        """Returns a client of the services at `addresses`, else of those the environment names.

        Nothing is connected yet; the first call does that.

        Raises:
            SettingsError: the environment is wrong, or an address is not on this machine and no
                certificates are set.
        """
        environ = os.environ if environ is None else environ
        settings = load_settings(ChannelSettings, environ)
        return cls(addresses or find_addresses(environ=environ), settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all channels; calls under way are cancelled."""
        for channel in self._channels.values():
            await channel.close()

    async def ensure_world(self, name: str, description: str = "") -> worlds_pb2.World:
        """Returns the world of that name, made if it does not exist yet.

        Raises:
            CallFailed: the knowledge base is away or refuses the name.
        """
        world = await self._find_world(name)
        if world is not None:
            return world
        request = worlds_pb2.CreateWorldRequest(
            name=name,
            description=description,
            request_id=str(uuid.uuid5(_WORLD_NAMESPACE, f"{name}\n{description}")),
        )
        try:
            with calls_to("knowledge_base"):
                made = await self.knowledge_base.CreateWorld(request, timeout=_CALL_SECONDS)
        except CallFailed as failure:
            if failure.code is grpc.StatusCode.ALREADY_EXISTS:
                # Somebody made it between the two calls.
                world = await self._find_world(name)
                if world is not None:
                    return world
            raise
        return made.world

    async def subscribe_to_events(
        self,
        world_id: str,
        event_types: Sequence[events_pb2.EventType.ValueType],
        *,
        sources: Sequence[str] = (),
    ) -> subscriptions_pb2.EventSubscription:
        """Lets events of the game's bus become memories of a world, in place of those set before.

        Args:
            world_id: which world.
            event_types: types of weather, time and world state, for example WEATHER_CHANGED.
            sources: only events of these services; empty means all.

        Raises:
            CallFailed: the knowledge base is away, or knows no such world.
        """
        request = subscriptions_pb2.SetEventSubscriptionRequest(
            world_id=world_id,
            subscription=subscriptions_pb2.EventSubscription(
                event_types=event_types, sources=sources
            ),
            request_id=str(uuid.uuid4()),
        )
        with calls_to("knowledge_base"):
            answer = await self.knowledge_base.SetEventSubscription(request, timeout=_CALL_SECONDS)
        return answer.subscription

    async def build_context(
        self,
        world_id: str,
        query: str,
        *,
        token_budget: int = 1000,
        scene: str = "",
        characters: Sequence[str] = (),
    ) -> context_pb2.BuildContextResponse:
        """Returns memory and lore for a prompt: a text within the budget, its parts cited.

        Args:
            world_id: which world.
            query: what the player does or says.
            token_budget: most tokens of the text, 1 to 32,000.
            scene: where the story is, in plain words.
            characters: who is there.

        Raises:
            CallFailed: the knowledge base is away, or knows no such world.
        """
        request = context_pb2.BuildContextRequest(
            world_id=world_id,
            query=query,
            token_budget=token_budget,
            scene=scene,
            characters=characters,
        )
        with calls_to("knowledge_base"):
            return await self.knowledge_base.BuildContext(request, timeout=_CALL_SECONDS)

    def storyteller(self, world_id: str, policy: StorytellerPolicy | None = None) -> Storyteller:
        """Returns a storyteller of the world."""
        return Storyteller(
            world_id,
            memory=KnowledgeBaseMemory(self.knowledge_base),
            narrator=RouterNarrator(self.ai_router),
            policy=policy or StorytellerPolicy(),
        )

    async def _find_world(self, name: str) -> worlds_pb2.World | None:
        try:
            with calls_to("knowledge_base"):
                found = await self.knowledge_base.GetWorld(
                    worlds_pb2.GetWorldRequest(name=name), timeout=_CALL_SECONDS
                )
        except CallFailed as failure:
            if failure.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return found.world
