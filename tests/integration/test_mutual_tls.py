"""Mutual TLS: who gets in, as whom, and that certificates rotate without anybody noticing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from autoscaler.testing.partial_service import GOLD, autoscaler_stub, autoscaler_with
from gaming.autoscaler.v1 import autoscaler_pb2
from servicekit.caller import current_caller
from servicekit.channels import ChannelSettings, open_channel
from servicekit.clock import SystemClock
from servicekit.development_certificates import CertificateFiles, DevelopmentAuthority
from servicekit.server import RpcServer, ServerSettings
from servicekit.settings import SettingsError, load_settings
from servicekit.tls import TlsSettings

PLAYERS = autoscaler_pb2.ReportPlayersRequest(players_online=5)


@pytest.fixture(scope="module")
def authority() -> DevelopmentAuthority:
    return DevelopmentAuthority(now=datetime.now(UTC))


async def report_players(request: Any, context: Any) -> Any:
    return autoscaler_pb2.ReportPlayersResponse(players_online=request.players_online)


async def say_who_calls(request: Any, context: Any) -> Any:
    caller = current_caller()
    assert caller.authenticated
    assert caller.role is not None
    return autoscaler_pb2.GetTierResponse(
        tier=autoscaler_pb2.TierState(latency_target=f"{caller.role.value} {caller.identity}")
    )


async def watch_decisions(request: Any, context: Any) -> AsyncIterator[Any]:
    for number in range(10_000):
        yield autoscaler_pb2.WatchDecisionsResponse(resume_token=f"e.{number}")
        await asyncio.sleep(0.05)


def environ_of(files: CertificateFiles) -> dict[str, str]:
    return {
        "GAMEKEEPER_TLS_CERTIFICATE_FILE": str(files.certificate),
        "GAMEKEEPER_TLS_KEY_FILE": str(files.key),
        "GAMEKEEPER_TLS_CA_FILE": str(files.authority),
    }


@asynccontextmanager
async def serve(files: CertificateFiles) -> AsyncIterator[RpcServer]:
    registration = autoscaler_with(
        GetTier=say_who_calls, ReportPlayers=report_players, WatchDecisions=watch_decisions
    )
    settings = load_settings(ServerSettings, environ_of(files))
    server = RpcServer([registration], settings, clock=SystemClock())
    await server.start()
    await server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop(0)


def channel_as(server: RpcServer, files: CertificateFiles) -> grpc.aio.Channel:
    settings = load_settings(
        ChannelSettings, environ_of(files) | {"GAMEKEEPER_CLIENT_MAX_ATTEMPTS": "1"}
    )
    return open_channel(server.address, settings)


async def code_of(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_caller_with_the_right_role_passes_and_is_known(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    me = authority.issue("operator/me", tmp_path / "me")
    async with (
        serve(authority.issue("suite-service/autoscaler", tmp_path)) as server,
        channel_as(server, me) as channel,
    ):
        response = await autoscaler_stub(channel).GetTier(GOLD)
    assert response.tier.latency_target == "operator spiffe://gamekeeper/operator/me"


async def test_a_caller_with_another_role_is_refused_and_told_which_would_do(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    async with serve(authority.issue("suite-service/autoscaler", tmp_path)) as server:
        agent = authority.issue("gpu-agent/host-1", tmp_path / "agent")
        async with channel_as(server, agent) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await autoscaler_stub(channel).ReportPlayers(PLAYERS)
        game = authority.issue("game-service/battle", tmp_path / "game")
        async with channel_as(server, game) as channel:
            assert (await autoscaler_stub(channel).ReportPlayers(PLAYERS)).players_online == 5
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "allowed are game-service" in (caught.value.details() or "")


async def test_certificates_of_a_foreign_authority_and_expired_ones_are_refused(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    foreign = DevelopmentAuthority(now=datetime.now(UTC)).issue("operator/x", tmp_path / "foreign")
    foreign.authority.write_bytes(
        authority.issue("operator/y", tmp_path / "own").authority.read_bytes()
    )
    expired = authority.issue("operator/me", tmp_path / "expired", expired=True)
    async with serve(authority.issue("suite-service/autoscaler", tmp_path)) as server:
        for files in (foreign, expired):
            async with channel_as(server, files) as channel:
                assert await code_of(autoscaler_stub(channel).GetTier(GOLD, timeout=5)) in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                )


async def test_nobody_gets_in_without_a_certificate_or_in_plaintext(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    files = authority.issue("suite-service/autoscaler", tmp_path)
    async with serve(files) as server:
        bare = grpc.aio.secure_channel(
            server.address, grpc.ssl_channel_credentials(files.authority.read_bytes())
        )
        plain = grpc.aio.insecure_channel(server.address)
        for channel in (bare, plain):
            async with channel:
                code = await code_of(autoscaler_stub(channel).GetTier(GOLD, timeout=2))
                assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_server_of_a_foreign_authority_is_not_trusted(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    impostor = DevelopmentAuthority(now=datetime.now(UTC)).issue(
        "suite-service/autoscaler", tmp_path / "impostor"
    )
    mine = authority.issue("operator/me", tmp_path / "me")
    async with serve(impostor) as server, channel_as(server, mine) as channel:
        assert await code_of(autoscaler_stub(channel).GetTier(GOLD, timeout=5)) in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )


@pytest.mark.parametrize("wrong", ["expired", "another name"])
async def test_a_server_whose_certificate_is_expired_or_of_another_name_is_not_called(
    authority: DevelopmentAuthority, tmp_path: Path, wrong: str
) -> None:
    hosts = ("elsewhere.lan",) if wrong == "another name" else ("localhost", "127.0.0.1")
    files = authority.issue(
        "suite-service/autoscaler", tmp_path, hosts=hosts, expired=wrong == "expired"
    )
    mine = authority.issue("operator/me", tmp_path / "me")
    async with serve(files) as server, channel_as(server, mine) as channel:
        assert await code_of(autoscaler_stub(channel).GetTier(GOLD, timeout=5)) in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )


async def test_a_callers_certificate_does_not_pass_for_a_service(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    """A game's certificate is good for calling; no caller takes its holder for a service."""
    game = authority.issue("game-service/battle", tmp_path / "game", hosts=("127.0.0.1",))
    mine = authority.issue("operator/me", tmp_path / "me")
    async with serve(game) as server, channel_as(server, mine) as channel:
        assert await code_of(autoscaler_stub(channel).GetTier(GOLD, timeout=5)) in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )


@pytest.mark.parametrize("place", ["common name", "dns name", "two uris", "no uri"])
async def test_a_role_counts_only_as_the_one_uri_name_of_a_certificate(
    authority: DevelopmentAuthority, tmp_path: Path, place: str
) -> None:
    """Whoever may choose another part of a certificate must not choose a role with it."""
    operator = "spiffe://gamekeeper/operator/me"
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    if place == "dns name":
        names = [x509.DNSName(operator)]
    elif place == "two uris":
        names += [
            x509.UniformResourceIdentifier("spiffe://gamekeeper/gpu-agent/a"),
            x509.UniformResourceIdentifier(operator),
        ]
    files = forge(authority, tmp_path / "forged", common_name=operator, names=names)
    async with (
        serve(authority.issue("suite-service/autoscaler", tmp_path)) as server,
        channel_as(server, files) as channel,
    ):
        assert (
            await code_of(autoscaler_stub(channel).GetTier(GOLD)) is grpc.StatusCode.UNAUTHENTICATED
        )
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1


def forge(
    authority: DevelopmentAuthority,
    directory: Path,
    *,
    common_name: str,
    names: list[x509.GeneralName],
) -> CertificateFiles:
    files = authority.issue("operator/replaced", directory)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        authority._builder(subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority._key, hashes.SHA256())
    )
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


async def list_services(channel: Any) -> grpc.StatusCode:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    async def read() -> None:
        async for _ in stub.ServerReflectionInfo(iter([request])):
            pass

    return await code_of(read())


async def test_reflection_is_for_operators(authority: DevelopmentAuthority, tmp_path: Path) -> None:
    async with serve(authority.issue("suite-service/autoscaler", tmp_path)) as server:
        for identity, expected in (
            ("operator/me", grpc.StatusCode.OK),
            ("game-service/battle", grpc.StatusCode.PERMISSION_DENIED),
        ):
            files = authority.issue(identity, tmp_path / identity)
            async with channel_as(server, files) as channel:
                assert await list_services(channel) is expected


async def test_both_sides_change_certificates_without_a_restart_or_an_error(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    """Certificate and key cannot change in one step; calls go on in between, too."""
    server_files = authority.issue("suite-service/autoscaler", tmp_path / "server")
    client_files = authority.issue("operator/before", tmp_path / "client")
    async with serve(server_files) as server, channel_as(server, client_files) as channel:
        stream = aiter(
            autoscaler_stub(channel).WatchDecisions(autoscaler_pb2.WatchDecisionsRequest())
        )
        await anext(stream)
        assert await identity_seen(channel) == "operator spiffe://gamekeeper/operator/before"
        old_serial = await served_serial(server, client_files)
        authority.issue("suite-service/autoscaler", tmp_path / "server")
        renewed = authority.issue("operator/after", tmp_path / "renewed")
        client_files.certificate.write_bytes(renewed.certificate.read_bytes())
        async with asyncio.timeout(30):
            for _ in range(12):  # longer than the interval at which the channel looks
                assert (
                    await identity_seen(channel) == "operator spiffe://gamekeeper/operator/before"
                )
                await asyncio.sleep(0.1)
        client_files.key.write_bytes(renewed.key.read_bytes())
        async with asyncio.timeout(10):
            after = "operator spiffe://gamekeeper/operator/after"
            while await identity_seen(channel) != after:  # noqa: ASYNC110  # the event is in the files
                await asyncio.sleep(0.1)
        assert await served_serial(server, renewed) != old_serial
        for _ in range(3):
            await anext(stream)  # the stream of the old connection was not disturbed


async def identity_seen(channel: grpc.aio.Channel) -> str:
    return str((await autoscaler_stub(channel).GetTier(GOLD)).tier.latency_target)


async def served_serial(server: RpcServer, files: CertificateFiles) -> int:
    import ssl  # noqa: PLC0415  # here only

    context = ssl.create_default_context(cafile=str(files.authority))
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(certificate).serial_number


async def test_the_container_probe_speaks_tls(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    """Also when the certificate names the service's address and not loopback."""
    files = authority.issue(
        "suite-service/autoscaler", tmp_path, hosts=("autoscaler.game.internal",)
    )
    async with serve(files) as server:
        probe = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "servicekit.health_probe", server.address],
            env=environ_of(files),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (probe.returncode, probe.stderr) == (0, "")


def test_a_key_of_another_certificate_is_refused_at_the_start(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    files = authority.issue("operator/me", tmp_path)
    other = authority.issue("operator/other", tmp_path / "other")
    tls = TlsSettings(
        certificate_file=files.certificate, key_file=other.key, authority_file=files.authority
    )
    with pytest.raises(SettingsError, match="must be a PEM certificate of the key"):
        tls.server_credentials()


def test_keys_are_written_for_their_owner_only(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    files = authority.issue("operator/me", tmp_path)
    assert files.key.stat().st_mode & 0o777 == 0o600


def test_an_identity_outside_the_suite_is_not_issued(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="emperor"):
        authority.issue("emperor/me", tmp_path)
