"""The protocol as a whole: rules, baseline, declarations, versions."""

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from gaming.common.v1 import method_policy_pb2
from servicekit.method_policies import declarations_of

ROOT = Path(__file__).resolve().parents[2]
BASELINE = ROOT / "tests" / "contract" / "baseline.binpb"
BUF = str(Path(sys.executable).parent / "buf")


def services() -> Iterator[ServiceDescriptor]:
    for proto in (ROOT / "protos" / "gaming").rglob("*.proto"):
        parts = proto.relative_to(ROOT / "protos").with_suffix("").parts
        module = importlib.import_module(".".join(parts) + "_pb2")
        yield from module.DESCRIPTOR.services_by_name.values()


SERVICES = sorted(services(), key=lambda service: service.full_name)
METHODS = [method for service in SERVICES for method in service.methods]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("protos") / "image.binpb"
    generate = ROOT / "protos" / "generate.py"
    subprocess.run([sys.executable, str(generate), "--image", str(path)], check=True, timeout=60)
    return path


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUF, *arguments, "--config", str(ROOT / "protos" / "buf.yaml"), "--path", "gaming"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_buf_finds_nothing_to_complain_about(image: Path) -> None:
    result = buf("lint", str(image))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_nothing_breaks_against_the_baseline(image: Path) -> None:
    result = buf("breaking", str(image), "--against", str(BASELINE))
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_breaking_check_can_fail(image: Path, tmp_path: Path) -> None:
    changed = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes())
    events = next(file for file in changed.file if file.name == "gaming/events/events.proto")
    del events.message_type[0].field[0]
    broken = tmp_path / "broken.binpb"
    broken.write_bytes(changed.SerializeToString())
    result = buf("breaking", str(broken), "--against", str(BASELINE))
    assert result.returncode != 0
    assert "event_id" in result.stdout


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: str(service.full_name))
def test_every_method_says_who_may_call_it_how_often_and_how_long(
    service: ServiceDescriptor,
) -> None:
    assert len(declarations_of(service)) == len(service.methods)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
def test_the_declared_idempotency_agrees_with_the_standard_option(method: MethodDescriptor) -> None:
    options = method.GetOptions()
    declared = options.Extensions[method_policy_pb2.method_policy].idempotency
    level = descriptor_pb2.MethodOptions.IdempotencyLevel.Name(options.idempotency_level)
    if declared == method_policy_pb2.IDEMPOTENCY_READ_ONLY:
        assert level == "NO_SIDE_EFFECTS"
    else:
        assert level in {"IDEMPOTENT", "IDEMPOTENCY_UNKNOWN"}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
def test_a_method_repeatable_by_request_id_has_a_required_request_id(
    method: MethodDescriptor,
) -> None:
    declared = method.GetOptions().Extensions[method_policy_pb2.method_policy].idempotency
    has_request_id = "request_id" in method.input_type.fields_by_name
    if declared == method_policy_pb2.IDEMPOTENCY_REQUEST_ID:
        assert has_request_id


def test_the_protobuf_runtime_is_at_least_as_new_as_the_generator() -> None:
    project = tomllib.loads((ROOT / "protos" / "pyproject.toml").read_text(encoding="utf-8"))
    (lower_bound,) = (
        requirement.partition(">=")[2]
        for requirement in project["project"]["dependencies"]
        if requirement.startswith("protobuf")
    )
    generated = (ROOT / "protos" / "gen" / "gaming" / "events" / "events_pb2.py").read_text()
    # The generator writes its version as ValidateProtobufRuntimeVersion(domain, major, minor, …).
    call = generated[generated.index("ValidateProtobufRuntimeVersion(") :].split(")")[0]
    generator = tuple(int(part) for part in call.replace(",", " ").split() if part.isdigit())
    assert tuple(int(part) for part in lower_bound.split(".")) == generator[:2]
    assert tuple(int(part) for part in version("protobuf").split("."))[:2] >= generator[:2]
