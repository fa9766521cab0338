"""Injected faults: who they hit, how often, and which requests for them are refused."""

import pytest

from localsuite.aws.faults import FaultInjector
from localsuite.aws.wire import CallTarget

SET_SIZE = CallTarget("autoscaling", "us-east-1", "SetDesiredCapacity")
LIST = CallTarget("ec2", "us-east-1", "DescribeInstances")


@pytest.mark.parametrize("operation", ["SetDesiredCapacity", "autoscaling:SetDesiredCapacity", "*"])
def test_a_fault_hits_its_operation_as_often_as_asked(operation: str) -> None:
    faults = FaultInjector()
    faults.add({"operation": operation, "error_code": "Throttling", "count": 2})
    hits = [faults.take(SET_SIZE) for _ in range(3)]
    assert [hit.error.code if hit and hit.error else None for hit in hits] == [
        "Throttling",
        "Throttling",
        None,
    ]
    assert faults.waiting() == []


def test_a_fault_leaves_other_operations_alone() -> None:
    faults = FaultInjector()
    faults.add({"operation": "ec2:SetDesiredCapacity", "error_code": "Throttling"})
    assert faults.take(SET_SIZE) is None
    assert faults.take(LIST) is None
    assert len(faults.waiting()) == 1


def test_a_fault_may_only_delay() -> None:
    faults = FaultInjector()
    faults.add({"operation": "*", "delay_seconds": 0.5})
    hit = faults.take(LIST)
    assert hit is not None
    assert (hit.delay_seconds, hit.error) == (0.5, None)


def test_a_held_call_goes_on_when_the_faults_are_cleared() -> None:
    faults = FaultInjector()
    faults.add({"operation": "DescribeInstances", "hold": True})
    hit = faults.take(LIST)
    assert hit is not None
    assert hit.release is not None
    assert faults.held() == ["DescribeInstances"]
    faults.clear()
    hit.wait()
    assert hit.release.is_set()
    assert faults.held() == []


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({}, "operation"),
        ({"operation": "X"}, "error_code"),
        ({"operation": "X", "error_code": "Y", "count": 0}, "count"),
        ({"operation": "X", "error_code": "Y", "count": "2"}, "count"),
        ({"operation": "X", "error_code": "Y", "delay_seconds": 3600}, "delay_seconds"),
        ({"operation": "X", "hold": "yes"}, "hold"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(document: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}:"):
        FaultInjector().add(document)
