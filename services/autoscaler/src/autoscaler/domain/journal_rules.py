"""Which decisions are worth a line in the journal, and how they are named."""

from dataclasses import dataclass

from autoscaler.domain.decision import Decision, DecisionRule, Outcome

__all__ = ["JournalPolicy", "LastEntry", "decision_id", "is_worth_writing"]

_RANDOM_BITS = 62


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPolicy:
    """How often decisions that change nothing are written; seconds."""

    keep_alive_seconds: float = 60.0
    rule_change_seconds: float = 10.0
    """A rule that flips to and fro is written at most this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEntry:
    """What the journal last said of a tier."""

    time: float
    rule: DecisionRule
    outcome: Outcome | None
    desired: int


def is_worth_writing(
    decision: Decision, last: LastEntry | None, policy: JournalPolicy, now: float
) -> bool:
    """Whether a decision is written: every change, a new reason, and one line a minute.

    A change that is tried again because the cloud refused it, as far as is known with the same
    result, is written once per keep-alive interval: the first line says it all.
    """
    if last is None:
        return True
    since = now - last.time
    changes = decision.desired != decision.previous_desired or not decision.plan.is_empty
    tried = last.outcome in (Outcome.FAILED, Outcome.DRY_RUN) and last.desired == decision.desired
    if changes and not tried:
        return True
    if since >= policy.keep_alive_seconds:
        return True
    return decision.rule is not last.rule and since >= policy.rule_change_seconds


def decision_id(unix_milliseconds: int, counter: int, random_bits: int) -> str:
    """Return a UUID version 7 (RFC 9562): unique, and ascending in time and in the counter.

    The 12 bits after the time hold the counter, so several decisions of one millisecond keep
    their order; `counter` wraps at 4096.
    """
    value = (unix_milliseconds & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76
    value |= (counter & 0xFFF) << 64
    value |= 0b10 << 62
    value |= random_bits & ((1 << _RANDOM_BITS) - 1)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
