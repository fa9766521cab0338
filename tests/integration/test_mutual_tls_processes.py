"""Who a real collector process lets in, by certificate, and how certificates change under load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.channels import ChannelSettings, open_channel
from servicekit.development_certificates import CertificateFiles, DevelopmentAuthority
from servicekit.settings import load_settings
from servicekit.testing import failure_of, reason_of

START_SECONDS = 60
REFUSED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
GET_FLEET = gpu_metrics_pb2.GetFleetRequest()


@dataclass(frozen=True, slots=True)
class Collector:
    """A running process, its address and its certificate."""

    process: subprocess.Popen[bytes]
    address: str
    files: CertificateFiles


def environ_of(files: CertificateFiles) -> dict[str, str]:
    return {
        "GAMEKEEPER_TLS_CERTIFICATE_FILE": str(files.certificate),
        "GAMEKEEPER_TLS_KEY_FILE": str(files.key),
        "GAMEKEEPER_TLS_CA_FILE": str(files.authority),
    }


@contextmanager
def running_collector(files: CertificateFiles, log_file: Path) -> Iterator[Collector]:
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_metrics", "collector"],
            env={
                "PATH": os.environ["PATH"],
                "GAMEKEEPER_LISTEN_ADDRESS": "127.0.0.1:0",
                "GPU_METRICS_CLOUDWATCH_ENABLED": "false",
                **environ_of(files),
            },
            stderr=log,
        )
    try:
        yield Collector(process, served_address(process, log_file), files)
    finally:
        process.kill()
        process.wait(20)


def served_address(process: subprocess.Popen[bytes], log_file: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        for line in log_file.read_text().splitlines():
            if line.startswith("{") and json.loads(line).get("event") == "server_started":
                return str(json.loads(line)["address"])
        assert process.poll() is None, log_file.read_text()
        time.sleep(0.05)
    raise AssertionError(log_file.read_text())


@pytest.fixture(scope="module")
def authority() -> DevelopmentAuthority:
    return DevelopmentAuthority(now=datetime.now(UTC))


@pytest.fixture(scope="module")
def collector(
    authority: DevelopmentAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Collector]:
    directory = tmp_path_factory.mktemp("collector")
    files = authority.issue("suite-service/gpu-metrics", directory)
    with running_collector(files, directory / "log") as running:
        yield running


def channel_as(collector: Collector, files: CertificateFiles) -> grpc.aio.Channel:
    environ = environ_of(files) | {"GAMEKEEPER_CLIENT_MAX_ATTEMPTS": "1"}
    return open_channel(collector.address, load_settings(ChannelSettings, environ))


def fleet(channel: grpc.aio.Channel) -> Any:
    return gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)


async def refusal(collector: Collector, files: CertificateFiles) -> grpc.aio.AioRpcError:
    async with channel_as(collector, files) as channel:
        return await failure_of(fleet(channel).GetFleet(GET_FLEET, timeout=20))


async def works(collector: Collector, files: CertificateFiles) -> None:
    async with channel_as(collector, files) as channel:
        await fleet(channel).GetFleet(GET_FLEET, timeout=20)


class TestWhoGetsIn:
    async def test_a_caller_with_a_good_certificate_does(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        await works(collector, authority.issue("operator/me", tmp_path))

    async def test_nobody_without_a_certificate(self, collector: Collector) -> None:
        trusting = grpc.ssl_channel_credentials(collector.files.authority.read_bytes())
        for channel in (
            grpc.aio.secure_channel(collector.address, trusting),
            grpc.aio.insecure_channel(collector.address),
        ):
            async with channel:
                error = await failure_of(fleet(channel).GetFleet(GET_FLEET, timeout=20))
            assert error.code() in REFUSED

    async def test_nobody_of_a_foreign_authority(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        foreign = DevelopmentAuthority(now=datetime.now(UTC)).issue("operator/me", tmp_path)
        foreign.authority.write_bytes(collector.files.authority.read_bytes())
        assert (await refusal(collector, foreign)).code() in REFUSED

    @pytest.mark.parametrize("when", ["expired", "not yet valid"])
    async def test_nobody_outside_the_time_of_the_certificate(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path, when: str
    ) -> None:
        moment = datetime.now(UTC)
        if when == "not yet valid":
            moment += timedelta(days=1)
        # The same authority at another time: its key is the same.
        other = DevelopmentAuthority(now=moment, key=authority._key)
        files = other.issue("operator/me", tmp_path, expired=when == "expired")
        files.authority.write_bytes(collector.files.authority.read_bytes())
        assert (await refusal(collector, files)).code() in REFUSED

    async def test_an_agent_may_not_read_the_fleet(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        error = await refusal(collector, authority.issue("gpu-agent/host-1", tmp_path))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED

    async def test_a_game_service_may_not_report_a_host(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        files = authority.issue("game-service/battle", tmp_path)
        async with channel_as(collector, files) as channel:
            error = await failure_of(report(channel, "host-1"))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_certs_dev_makes_runs_a_service_and_lets_its_operator_ask_it(tmp_path: Path) -> None:
    """From an empty directory to an answer, by the command line alone."""
    made = gamekeeper("certs", "dev", str(tmp_path / "certs"), "--agent", "i-0abc")
    assert made.returncode == 0, made.stderr
    files = {
        identity: CertificateFiles(*map(Path, re.findall(r"_FILE=(\S+)", block)))
        for identity, _, block in (part.partition("\n") for part in made.stdout.split("# ")[1:])
    }
    operator = next(identity for identity in files if identity.startswith("operator/"))
    with running_collector(files["suite-service/gpu-metrics"], tmp_path / "log") as running:
        ask = ("--gpu-metrics", running.address, "gpus", "-o", "json")
        answered = gamekeeper(*ask, **environ_of(files[operator]))
        refused = gamekeeper(*ask, **environ_of(files["gpu-agent/i-0abc"]))
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)
    assert refused.returncode == 5
    assert "may not call" in refused.stderr


def gamekeeper(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gamekeeper.cli", *arguments],
        env={"PATH": os.environ["PATH"], "USER": "ada", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def report(channel: grpc.aio.Channel, host_id: str) -> Any:
    stub: Any = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel)
    message = gpu_metrics_pb2.StreamReportsRequest(boot_id="b", sequence=1)
    message.host.host_id = host_id
    message.sample_time.GetCurrentTime()
    return stub.StreamReports(iter([message]), timeout=10)


class TestAgents:
    async def test_an_agent_reports_for_its_own_host(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        async with channel_as(collector, authority.issue("gpu-agent/i-0abc", tmp_path)) as channel:
            answers = [answer async for answer in report(channel, "i-0abc")]
        assert [answer.acknowledged_sequence for answer in answers] == [1]

    async def test_an_agent_cannot_speak_for_another_host(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        files = authority.issue("gpu-agent/i-0abc", tmp_path / "agent")
        async with channel_as(collector, files) as channel:
            error = await failure_of(report(channel, "i-0victim"))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert reason_of(error) == "FOREIGN_HOST"
        operator = authority.issue("operator/me", tmp_path / "operator")
        async with channel_as(collector, operator) as channel:
            answer = await fleet(channel).GetFleet(GET_FLEET, timeout=20)
        assert "i-0victim" not in {view.host.host_id for view in answer.fleet.hosts}


CALLER = "suite-service/ai-router"


class Callers:
    """Call without a pause, over one channel, and remember what failed."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = fleet(channel)
        self.answered = 0
        self.errors: list[str] = []

    async def call(self) -> None:
        while True:
            try:
                await self._stub.GetFleet(GET_FLEET, timeout=20)
                self.answered += 1
            except grpc.aio.AioRpcError as error:
                self.errors.append(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(0.05)

    async def answers(self, count: int) -> None:
        """Returns after so many further answers."""
        target = self.answered + count
        while self.answered < target and not self.errors:  # noqa: ASYNC110  # counted elsewhere
            await asyncio.sleep(0.02)


@asynccontextmanager
async def callers(collector: Collector, files: CertificateFiles) -> AsyncIterator[Callers]:
    async with channel_as(collector, files) as channel:
        running = Callers(channel)
        tasks = [asyncio.ensure_future(running.call()) for _ in range(3)]
        try:
            await running.answers(20)
            yield running
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def served_serial(collector: Collector, files: CertificateFiles) -> int:
    """The serial number of the certificate a new connection is shown."""
    import ssl  # noqa: PLC0415  # here only

    context = ssl.create_default_context(cafile=str(files.authority))
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = collector.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(certificate).serial_number


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110  # the change is in another process
            await asyncio.sleep(0.1)


class TestRotation:
    async def test_both_sides_change_certificates_under_load_without_an_error(
        self, collector: Collector, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        mine = authority.issue(CALLER, tmp_path / "me")
        old = x509.load_pem_x509_certificate(collector.files.certificate.read_bytes())
        async with callers(collector, mine) as running:
            for _ in range(2):
                authority.issue("suite-service/gpu-metrics", collector.files.certificate.parent)
                authority.issue(CALLER, tmp_path / "me")
                new = x509.load_pem_x509_certificate(collector.files.certificate.read_bytes())

                async def serves_new(serial: int = new.serial_number) -> bool:
                    return await served_serial(collector, mine) == serial

                await until(serves_new)
                await asyncio.sleep(1.2)  # the channel looks once a second
                await running.answers(20)
        assert running.errors == []
        assert new.serial_number != old.serial_number
        assert collector.process.poll() is None

    @pytest.mark.endurance
    async def test_the_authority_itself_is_replaced_without_an_error(
        self, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        """First all trust both, then show the new one's certificates, then drop the old one."""
        successor = DevelopmentAuthority(now=datetime.now(UTC))
        server = authority.issue("suite-service/gpu-metrics", tmp_path / "server")
        client = authority.issue(CALLER, tmp_path / "client")
        old = client.authority.read_bytes()
        new = successor.issue(CALLER, tmp_path / "new").authority.read_bytes()
        with running_collector(server, tmp_path / "log") as collector:
            async with callers(collector, client) as running:

                async def settle() -> None:
                    await asyncio.sleep(2.5)
                    await served_serial(collector, client)  # a handshake makes the server look
                    await running.answers(50)

                for files in (server, client):
                    replace(files.authority, old + new)
                await settle()
                for files, identity in (
                    (server, "suite-service/gpu-metrics"),
                    (client, CALLER),
                ):
                    fresh = successor.issue(identity, tmp_path / "fresh")
                    replace(files.certificate, fresh.certificate.read_bytes())
                    replace(files.key, fresh.key.read_bytes())
                    await settle()
                for files in (server, client):
                    replace(files.authority, new)
                await settle()
            assert running.errors == []
            await works(collector, successor.issue(CALLER, tmp_path / "after"))
            former = authority.issue(CALLER, tmp_path / "former")
            former.authority.write_bytes(new)
            assert (await refusal(collector, former)).code() in REFUSED


def replace(path: Path, content: bytes) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_bytes(content)
    scratch.replace(path)
