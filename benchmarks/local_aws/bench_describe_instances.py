"""DescribeInstances at 100 instances: the local AWS against plain moto, in the same run.

    python benchmarks/local_aws/bench_describe_instances.py [--instances 100] [--calls 30]

Both are asked in turn, in the same process, so that a busy machine slows both alike. Two figures
each: the answer alone (the WSGI application, called directly) and the whole round trip of a boto3
client over HTTP, most of which is the client's own parsing. Medians; the ratio is moto's divided
by ours. Moto's instances say more (block devices, network interfaces), ours less.
"""

import argparse
import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder

from localsuite.aws.account import boto_client
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer

_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/ec2/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


def launch(endpoint: str, count: int) -> Any:
    """Launches instances that carry the suite's tags and returns the client."""
    client = boto_client("ec2", endpoint)
    image = client.describe_images()["Images"][0]["ImageId"]
    tags = [{"Key": key, "Value": "gold"} for key in ("gamekeeper:tier", "Name", "group")]
    client.run_instances(
        ImageId=image,
        InstanceType="g5.xlarge",
        MinCount=count,
        MaxCount=count,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return client


def answer_of(application: Callable[..., Any]) -> bytes:
    """One DescribeInstances answered by a WSGI application, without a socket."""
    builder = EnvironBuilder(
        method="POST",
        base_url="http://127.0.0.1",
        data={"Action": "DescribeInstances", "Version": "2016-11-15"},
        headers=[("Authorization", _AUTHORIZATION)],
    )
    return b"".join(application(builder.get_environ(), lambda *_: None))


def medians_ms(calls: int, *subjects: Callable[[], object]) -> list[float]:
    """Median milliseconds of each subject, called in turn; the first round does not count."""
    samples: list[list[float]] = [[] for _ in subjects]
    for round_number in range(calls + 1):
        for subject, times in zip(subjects, samples, strict=True):
            began = time.perf_counter()
            subject()
            if round_number:
                times.append((time.perf_counter() - began) * 1000)
    return [statistics.median(times) for times in samples]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints both figures and their ratio."""
    parser = argparse.ArgumentParser(description="DescribeInstances: local AWS against moto.")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--calls", type=int, default=30)
    arguments = parser.parse_args(argv)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = DomainDispatcherApplication(create_backend_app)
    moto_server = make_server("127.0.0.1", 0, moto, threaded=True)
    threading.Thread(target=moto_server.serve_forever, daemon=True).start()
    with LocalAwsServer(Region(time_compression=60.0)) as ours:
        our_client = launch(ours.endpoint, arguments.instances)
        moto_client = launch(f"http://127.0.0.1:{moto_server.port}", arguments.instances)
        for client in (our_client, moto_client):
            described = client.describe_instances()["Reservations"]
            assert sum(len(r["Instances"]) for r in described) == arguments.instances
        our_answer, moto_answer = medians_ms(
            arguments.calls, lambda: answer_of(ours.front), lambda: answer_of(moto)
        )
        our_trip, moto_trip = medians_ms(
            arguments.calls, our_client.describe_instances, moto_client.describe_instances
        )
    moto_server.shutdown()
    print(f"DescribeInstances, {arguments.instances} instances, {arguments.calls} calls, medians")
    print(f"{'':12}{'local AWS':>12}{'moto':>12}{'ratio':>8}")
    for name, our, theirs in (
        ("answer", our_answer, moto_answer),
        ("round trip", our_trip, moto_trip),
    ):
        print(f"{name:12}{our:>9.1f} ms{theirs:>9.1f} ms{theirs / our:>7.1f}x")


if __name__ == "__main__":
    main()
