from moto.backends import get_backend
from moto.cloudwatch.models import MetricDatum

from localsuite.aws.account import boto_client
from localsuite.aws.metric_retention import OBSERVATIONS_KEPT
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer


def test_published_latencies_do_not_fill_the_memory() -> None:
    region = Region(seed=1)
    with LocalAwsServer(region) as server:
        cloudwatch = boto_client("cloudwatch", server.endpoint)
        for round_number in range(4):
            datum = {
                "MetricName": "InterTokenLatency",
                "Values": [0.009, 0.016],
                "Counts": [9_000.0, 1_000.0 + round_number],
            }
            cloudwatch.put_metric_data(Namespace="Test/Retention", MetricData=[datum])
        backend = get_backend("cloudwatch")[region.account_id][region.name]
        assert OBSERVATIONS_KEPT <= len(backend.metric_data) <= OBSERVATIONS_KEPT * 3 // 2
        assert backend.metric_data[-1].value == 0.016
        assert MetricDatum.instances_tracked == []
