"""Which servers go first when a tier shrinks, and which drains are taken back when it grows."""

from autoscaler.domain.snapshot import Instance, InstancePhase

__all__ = ["choose_resumes", "choose_victims"]

_PHASE_ORDER = {InstancePhase.UNRESPONSIVE: 0, InstancePhase.PENDING: 1, InstancePhase.READY: 2}


def choose_victims(staying: tuple[Instance, ...], count: int) -> tuple[Instance, ...]:
    """Return the `count` servers that are missed least.

    Those that do not serve come first, so the ready ones never fall below what remains asked for.
    Among the ready: interrupted ones, then the least loaded, then the dearest, then the oldest.
    """
    ranked = sorted(
        staying,
        key=lambda i: (
            _PHASE_ORDER[i.phase],
            not i.is_interrupted,
            i.load_requests,
            -i.usd_per_hour,
            i.launch_time,
            i.instance_id,
        ),
    )
    return tuple(ranked[: max(0, count)])


def choose_resumes(draining: tuple[Instance, ...], count: int) -> tuple[Instance, ...]:
    """Return up to `count` drains worth taking back: ready servers, the busiest first."""
    worth = [i for i in draining if i.phase is InstancePhase.READY and not i.is_interrupted]
    worth.sort(key=lambda i: (-i.load_requests, -i.launch_time, i.instance_id))
    return tuple(worth[: max(0, count)])
