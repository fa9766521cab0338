import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from google.protobuf import json_format
from typer.testing import CliRunner

from gamekeeper.cli import app
from gamekeeper.cli.grpcurl import grpcurl_command
from gaming.ai_router.v1 import ai_router_pb2
from gaming.autoscaler.v1 import autoscaler_pb2
from gaming.common.v1 import tier_pb2
from gaming.knowledge_base.v1 import story_pb2
from servicekit.tls import TlsSettings

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def away_from_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("GAMEKEEPER_DATA_DIR", "GAMEKEEPER_AUTOSCALER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)


def commands(group: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL_COMMANDS = [path for path in commands(typer.main.get_command(app)) if path != ("up",)]


def run(*arguments: str) -> str:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("path", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_help_and_leaves_show_an_example(path: tuple[str, ...]) -> None:
    shown = run(*path, "--help")
    assert "Usage:" in shown
    if len(path) == 2 or path[:1] in {("tiers",), ("why",), ("gpus",), ("ask",), ("status",)}:
        assert f"gamekeeper {' '.join(path)}" in shown


def test_the_commands_promised_are_there() -> None:
    assert {path[0] for path in ALL_COMMANDS if path} | {"up"} >= {
        "up", "status", "tiers", "why", "gpus", "lore", "world", "ask", "override", "decisions",
    }  # fmt: skip


def test_the_root_help_documents_the_exit_codes() -> None:
    assert "3 the service cannot" in " ".join(run("--help").split())


def parsed(line: str) -> tuple[str, str, dict[str, object]]:
    """Splits a printed command as a shell would: address, method, request."""
    words = shlex.split(line)
    assert words[:2] == ["grpcurl", "-plaintext"]
    body = json.loads(words[words.index("-d") + 1]) if "-d" in words else {}
    return words[-2], words[-1], body


def test_why_prints_the_equivalent_grpcurl_command() -> None:
    line = run("why", "--tier", "gold", "--grpcurl")
    address, method, body = parsed(line)
    assert address == "127.0.0.1:50062"
    assert method == "gaming.autoscaler.v1.AutoscalerService/ExplainDecision"
    request = json_format.ParseDict(body, autoscaler_pb2.ExplainDecisionRequest())
    assert request.tier == tier_pb2.TIER_GOLD


def test_a_root_option_moves_the_call_elsewhere() -> None:
    line = run("--autoscaler", "autoscaler.internal:443", "tiers", "--grpcurl").splitlines()[0]
    address, method, body = parsed(line)
    assert address == "autoscaler.internal:443"
    assert method.endswith("/ListTiers")
    assert body == {}


def test_override_prints_a_whole_request() -> None:
    line = run(
        "override", "set", "silver", "--min", "2", "--max", "8", "--for", "2h",
        "--reason", "it's release night", "--grpcurl",
    )  # fmt: skip
    _, method, body = parsed(line)
    assert method == "gaming.autoscaler.v1.AutoscalerService/SetOverride"
    request = json_format.ParseDict(body, autoscaler_pb2.SetOverrideRequest())
    assert request.tier == tier_pb2.TIER_SILVER
    assert request.override.kind == autoscaler_pb2.OVERRIDE_KIND_BOUNDS
    assert (request.override.minimum, request.override.maximum) == (2, 8)
    assert request.override.reason == "it's release night"
    assert request.request_id


def test_ask_prints_a_request_with_its_quotes_intact() -> None:
    line = run("ask", 'Who\'s "there"?', "--tier", "bronze", "--tokens", "12", "--grpcurl")
    _, method, body = parsed(line)
    assert method == "gaming.ai_router.v1.AiRouterService/Generate"
    request = json_format.ParseDict(body, ai_router_pb2.GenerateRequest())
    assert request.spec.messages[0].content == 'Who\'s "there"?'
    assert request.spec.tier == tier_pb2.TIER_BRONZE
    assert request.spec.max_output_tokens == 12


def test_a_world_named_by_id_takes_one_command_and_by_name_two() -> None:
    world_id = "7b0d9c1e-58f1-4a39-9f0a-0c8a3a5e2f11"
    _, method, body = parsed(run("world", "recall", world_id, "who owes us", "--grpcurl"))
    assert method.endswith("/Recall")
    request = json_format.ParseDict(body, story_pb2.RecallRequest())
    assert request.world_id == world_id
    first, second = run("world", "recall", "Hollow mere", "who's", "--grpcurl").splitlines()
    assert first.startswith('world_id="$(grpcurl -plaintext -d \'{"name":"Hollow mere"}\'')
    assert first.endswith(')"')
    assert "'\"$world_id\"'" in second


def test_a_stream_of_documents_is_printed_as_a_pipeline(tmp_path: Path) -> None:
    (tmp_path / "a world.md").write_text("# One")
    line = run("lore", "ingest", str(tmp_path), "--collection", "mine", "--grpcurl")
    assert '"collection":"mine"' in line
    assert line.rstrip().endswith(
        "| grpcurl -plaintext -d @ 127.0.0.1:50064 "
        "gaming.knowledge_base.v1.KnowledgeBaseService/IngestDocuments"
    )


def test_a_document_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.md").open("wb") as file:
        file.truncate(50_000_000)
    result = RUNNER.invoke(app, ["lore", "ingest", str(tmp_path)])
    assert result.exit_code == 2
    assert "huge.md has 50,000,000 bytes; at most 1,000,000 are taken" in result.output


def test_grpcurl_speaks_tls_where_we_do(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem")]
    tls = TlsSettings(certificate_file=files[0], key_file=files[1], authority_file=files[2])
    line = grpcurl_command(
        address="autoscaler.internal:443",
        method="a.B/C",
        request=autoscaler_pb2.GetStatusRequest(),
        tls=tls,
    )
    words = shlex.split(line)
    assert "-plaintext" not in words
    assert words[words.index("-cacert") + 1] == str(files[2])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["override", "set", "gold", "--reason", "x"], "exactly one of --pin"),
        (["override", "set", "gold", "--pin", "1", "--freeze", "--reason", "x"], "exactly one"),
        (["override", "set", "gold", "--pin", "1", "--for", "soon", "--reason", "x"], "length"),
        (["lore", "search", "x", "--mode", "magic"], "none of hybrid, vector, keyword"),
        (["tiers", "--tier", "gold"], "No such option"),
    ],
)
def test_wrong_arguments_say_what_is_right(arguments: list[str], expected: str) -> None:
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert expected in result.output


def test_up_says_so_where_the_suite_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = RUNNER.invoke(app, ["up"])
    assert result.exit_code == 2
    assert "not installed" in result.output
