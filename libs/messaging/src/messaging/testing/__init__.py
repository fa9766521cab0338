"""The event bus in memory, for tests and simulations of whoever publishes or reads events."""

from messaging.testing.memory_bus import MemoryClaimStore, MemoryQueue, MemoryTopic

__all__ = ["MemoryClaimStore", "MemoryQueue", "MemoryTopic"]
