"""The metrics of outbox and relay, by name; code, dashboards and alarms use these alone."""

__all__ = ["OUTBOX_EVENTS", "OUTBOX_OLDEST_WAIT", "OUTBOX_PARKED"]

OUTBOX_EVENTS = "messaging.outbox.events"
"""Events the relay was done with for now, by `outcome`: published, deferred, parked."""

OUTBOX_OLDEST_WAIT = "messaging.outbox.oldest_wait"
"""Seconds for which the oldest event in the outbox has waited; the backlog's age."""

OUTBOX_PARKED = "messaging.outbox.parked"
"""Events the topic will not take, which wait for people; 10,000 stands for as many or more."""
