"""How a launched host becomes a model server: the phases of a cold start.

EC2's own latency (pending → running) belongs to the cloud model; these phases follow it:

    boot → image pull → weights load → warm-up → ready

Baked images (everything on the disk image) measured 1-2 minutes from the launch call to ready,
unbaked ones 10-12. The split over phases is an assumption that adds up to that: boot 25 s; a
10 GB inference image at about 33 MB/s net of decompression; weights at 400 MB/s from a baked
volume or 30 MB/s from object storage; warm-up (memory profiling and graph capture) 20 s. Each
phase varies log-normally with sigma 0.2.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

__all__ = ["ColdStart", "ColdStartPhase", "ColdStartProfile", "baked", "unbaked"]

_PHASE_SIGMA = 0.2
_BAKED_WEIGHTS_MB_PER_SECOND = 400.0
_REMOTE_WEIGHTS_MB_PER_SECOND = 30.0


class ColdStartPhase(StrEnum):
    """What a host is doing on its way to serving."""

    BOOTING = "booting"
    PULLING_IMAGE = "pulling-image"
    LOADING_WEIGHTS = "loading-weights"
    WARMING_UP = "warming-up"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class ColdStart:
    """One host's cold start as it will happen: when it begins and how long each phase lasts."""

    start_time: float
    boot_seconds: float = 0.0
    image_pull_seconds: float = 0.0
    weights_load_seconds: float = 0.0
    warm_up_seconds: float = 0.0

    @property
    def booted_time(self) -> float:
        """When the host's own processes (its metrics agent among them) can run."""
        return self.start_time + self.boot_seconds

    @property
    def ready_time(self) -> float:
        """When the model server starts to answer."""
        return (
            self.booted_time
            + self.image_pull_seconds
            + self.weights_load_seconds
            + self.warm_up_seconds
        )

    def phase_at(self, now: float) -> tuple[ColdStartPhase, float]:
        """Return the phase at `now` and the share of it that is done (0-1)."""
        elapsed = now - self.start_time
        for phase, seconds in (
            (ColdStartPhase.BOOTING, self.boot_seconds),
            (ColdStartPhase.PULLING_IMAGE, self.image_pull_seconds),
            (ColdStartPhase.LOADING_WEIGHTS, self.weights_load_seconds),
            (ColdStartPhase.WARMING_UP, self.warm_up_seconds),
        ):
            if elapsed < seconds:
                return phase, max(0.0, elapsed / seconds)
            elapsed -= seconds
        return ColdStartPhase.READY, 1.0


@dataclass(frozen=True, slots=True)
class ColdStartProfile:
    """Median seconds of each phase, in production terms."""

    boot_seconds: float = 25.0
    image_pull_seconds: float = 0.0
    weights_load_seconds: float = 15.0
    warm_up_seconds: float = 20.0

    @property
    def median_seconds(self) -> float:
        """Median of the whole cold start, to a close approximation."""
        return (
            self.boot_seconds
            + self.image_pull_seconds
            + self.weights_load_seconds
            + self.warm_up_seconds
        )

    def draw(
        self, rng: np.random.Generator, *, start_time: float, time_compression: float = 1.0
    ) -> ColdStart:
        """Draw one cold start beginning at `start_time`."""
        boot, pull, load, warm_up = (
            math.exp(_PHASE_SIGMA * float(z)) / time_compression for z in rng.standard_normal(4)
        )
        return ColdStart(
            start_time,
            self.boot_seconds * boot,
            self.image_pull_seconds * pull,
            self.weights_load_seconds * load,
            self.warm_up_seconds * warm_up,
        )


def baked(weights_gb: float) -> ColdStartProfile:
    """Return the cold start of a host whose disk image holds the container and the weights."""
    return ColdStartProfile(weights_load_seconds=weights_gb * 1000 / _BAKED_WEIGHTS_MB_PER_SECOND)


def unbaked(weights_gb: float) -> ColdStartProfile:
    """Return the cold start of a host that pulls the container and downloads the weights."""
    return ColdStartProfile(
        boot_seconds=45.0,
        image_pull_seconds=300.0,
        weights_load_seconds=weights_gb * 1000 / _REMOTE_WEIGHTS_MB_PER_SECOND,
        warm_up_seconds=60.0,
    )
