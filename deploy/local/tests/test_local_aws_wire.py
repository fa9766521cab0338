"""The local AWS's wire formats, against botocore's own parser and moto's own serialiser."""

from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.model import ServiceModel as BotocoreServiceModel
from botocore.parsers import create_parser
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.core.serialize import get_serializer_class
from moto.core.utils import get_service_model
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from localsuite.aws.errors import ApiError
from localsuite.aws.paging import matches_filters, page_of, pattern
from localsuite.aws.wire import CallTarget, ServiceWire, call_target
from localsuite.aws.xml_results import XmlResults

MOMENT = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)

RESULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("autoscaling", "SetDesiredCapacity", {}),
    (
        "autoscaling",
        "DescribeAutoScalingGroups",
        {
            "AutoScalingGroups": [
                {
                    "AutoScalingGroupName": "gold <1> & co",
                    "MinSize": 0,
                    "CreatedTime": MOMENT,
                    "CapacityRebalance": False,
                    "Instances": [{"InstanceId": "i-1", "ProtectedFromScaleIn": True}],
                    "LoadBalancerNames": [],
                    "MixedInstancesPolicy": {
                        "LaunchTemplate": {"Overrides": [{"InstanceType": "g5.xlarge"}]}
                    },
                }
            ],
            "NextToken": "next",
        },
    ),
    (
        "ec2",
        "DescribeInstances",
        {
            "Reservations": [
                {
                    "ReservationId": "r-1",
                    "Instances": [
                        {
                            "InstanceId": "i-1",
                            "State": {"Code": 16, "Name": "running"},
                            "LaunchTime": MOMENT,
                            "EbsOptimized": True,
                            "Tags": [{"Key": "a", "Value": 'quote " and é'}],
                        },
                        {"InstanceId": "i-2", "Tags": [], "KernelId": None},
                    ],
                }
            ]
        },
    ),
    ("ec2", "DescribeSpotPriceHistory", {"SpotPriceHistory": [{"SpotPrice": "0.4"}]}),
]


def parsed_by_botocore(service: str, operation: str, body: str, status: int = 200) -> Any:
    model = get_service_model(service)
    shape = BotocoreServiceModel(model._service_description).operation_model(operation).output_shape
    answer = {"body": body.encode(), "headers": {}, "status_code": status}
    parsed = create_parser(model.protocol).parse(answer, shape)
    parsed.pop("ResponseMetadata")
    return parsed


@pytest.mark.parametrize(("service", "operation", "result"), RESULTS)
def test_results_read_like_those_of_moto(
    service: str, operation: str, result: dict[str, Any]
) -> None:
    model = get_service_model(service)
    operation_model = model.operation_model(operation)
    ours = XmlResults(model.protocol).document(operation_model, result, "request-1")
    serializer = get_serializer_class(service, model.protocol)(operation_model=operation_model)
    motos = serializer.serialize(result)["body"]
    assert parsed_by_botocore(service, operation, ours) == parsed_by_botocore(
        service, operation, motos
    )


def test_a_member_the_model_lacks_is_a_mistake_of_ours_and_fails() -> None:
    operation_model = get_service_model("ec2").operation_model("DescribeInstances")
    with pytest.raises(KeyError):
        XmlResults("ec2").document(operation_model, {"Reservation": []}, "request-1")


@settings(deadline=None)  # the first example loads EC2's model
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn"))))
def test_any_text_survives_the_wire(text: str) -> None:
    operation_model = get_service_model("ec2").operation_model("DescribeSpotPriceHistory")
    body = XmlResults("ec2").document(
        operation_model, {"SpotPriceHistory": [{"AvailabilityZone": f"<{text}>"}]}, "request-1"
    )
    parsed = parsed_by_botocore("ec2", "DescribeSpotPriceHistory", body)
    assert parsed["SpotPriceHistory"][0]["AvailabilityZone"] == f"<{text}>"


@pytest.mark.parametrize(
    ("service", "operation", "code", "status"),
    [
        ("autoscaling", "SetDesiredCapacity", "Throttling", 400),
        ("autoscaling", "CreateAutoScalingGroup", "AlreadyExists", 400),
        ("ec2", "DescribeInstances", "RequestLimitExceeded", 503),
        ("ecs", "ListContainerInstances", "ClusterNotFoundException", 400),
        ("autoscaling", "NoSuchOperation", "InvalidAction", 400),
    ],
)
def test_errors_carry_code_text_and_status(
    service: str, operation: str, code: str, status: int
) -> None:
    response = ServiceWire(service).refuse(operation, ApiError(code, "told so"))
    assert response.status_code == status
    answer = {
        "body": response.get_data(),
        "headers": {name.lower(): value for name, value in response.headers.items()},
        "status_code": status,
    }
    error = create_parser(get_service_model(service).protocol).parse(answer, None)["Error"]
    assert (error["Code"], error["Message"]) == (code, "told so")


def signed(service: str, **arguments: Any) -> Request:
    scope = f"AKID/20260301/eu-west-1/{service}/aws4_request"
    headers = {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host"}
    headers |= arguments.pop("headers", {})
    return Request(
        EnvironBuilder(method="POST", headers=list(headers.items()), **arguments).get_environ()
    )


def test_a_signed_request_names_service_region_and_operation() -> None:
    query = signed("autoscaling", data={"Action": "SetDesiredCapacity"})
    assert call_target(query) == CallTarget("autoscaling", "eu-west-1", "SetDesiredCapacity")
    target = {"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.ListClusters"}
    assert call_target(signed("ecs", headers=target)) == CallTarget(
        "ecs", "eu-west-1", "ListClusters"
    )
    assert call_target(Request(EnvironBuilder().get_environ())) is None


def test_a_required_parameter_that_is_absent_refuses_the_call() -> None:
    request = signed("autoscaling", data={"Action": "SetDesiredCapacity"})
    params = ServiceWire("autoscaling").parse(request, "SetDesiredCapacity")
    assert params.get("DesiredCapacity") is None
    with pytest.raises(ApiError, match="DesiredCapacity is required"):
        params["DesiredCapacity"]


@given(st.lists(st.integers()), st.integers(min_value=1, max_value=7))
def test_pages_hold_every_item_once_and_in_order(items: list[int], limit: int) -> None:
    seen: list[int] = []
    token = None
    while True:
        page, token = page_of(items, token=token, limit=limit)
        seen += page
        assert len(page) <= limit
        if token is None:
            break
    assert seen == items


def test_a_foreign_token_is_refused() -> None:
    with pytest.raises(ApiError, match="InvalidNextToken"):
        page_of([1, 2], token="not one of ours", limit=1)


@pytest.mark.parametrize(
    ("text", "value", "matches"),
    [
        ("gold", "gold", True),
        ("gold", "golden", False),
        ("g*d", "gd", True),
        ("g?ld", "gold", True),
        (r"g\*d", "g*d", True),
        (r"g\*d", "gold", False),
        ("a.b", "axb", False),
    ],
)
def test_filter_values_take_ec2s_wildcards(text: str, value: str, matches: bool) -> None:
    assert bool(pattern(text).fullmatch(value)) is matches


def test_filters_are_joined_by_and_their_values_by_or() -> None:
    item = {"zone": "a", "owner": "ops"}

    def passes(*filters: tuple[str, list[str]]) -> bool:
        documents = [{"Name": name, "Values": values} for name, values in filters]
        return matches_filters(item, documents, {"zone": lambda i: (i["zone"],)}, lambda i: i)

    assert passes(("zone", ["b", "a"]), ("tag:owner", ["ops"]))
    assert not passes(("zone", ["a"]), ("tag:owner", ["dev"]))
    assert passes(("tag-key", ["own*"]))
    with pytest.raises(ApiError, match="The filter 'colour' is invalid"):
        passes(("colour", ["red"]))
