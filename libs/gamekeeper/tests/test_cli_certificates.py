"""`gamekeeper certs dev`: what it makes, prints, keeps and refuses."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from typer.testing import CliRunner, Result

from gamekeeper.cli import app
from servicekit.channels import ChannelSettings
from servicekit.server import ServerSettings
from servicekit.settings import load_settings

RUNNER = CliRunner()


def make(directory: Path, *options: str) -> Result:
    return RUNNER.invoke(app, ["certs", "dev", str(directory), *options])


def settings_printed(output: str) -> dict[str, dict[str, str]]:
    """The environment of each identity, by the comment above it."""
    found: dict[str, dict[str, str]] = {}
    for line in output.splitlines():
        if line.startswith("# "):
            found[line[2:]] = {}
        else:
            variable, value = line.removeprefix("export ").split("=", 1)
            list(found.values())[-1][variable] = value
    return found


def test_it_prints_settings_that_services_and_callers_start_with(tmp_path: Path) -> None:
    result = make(tmp_path / "certs", "--agent", "gpu-7", "--game", "battle")
    assert result.exit_code == 0, result.output
    printed = settings_printed(result.stdout)
    operators = {identity for identity in printed if identity.startswith("operator/")}
    assert len(operators) == 1
    assert printed.keys() - operators == {
        "suite-service/gpu-metrics",
        "suite-service/autoscaler",
        "suite-service/ai-router",
        "suite-service/knowledge-base",
        "game-service/battle",
        "gpu-agent/gpu-7",
    }
    for environ in printed.values():
        assert load_settings(ServerSettings, environ).tls.problems() == []
        load_settings(ServerSettings, environ).tls.server_credentials()
        load_settings(ChannelSettings, environ).tls.follow()


def test_every_file_is_its_owners_alone(tmp_path: Path) -> None:
    make(tmp_path / "certs")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "certs").iterdir()}
    assert modes == {0o600}


def test_a_second_run_keeps_everything_and_says_so(tmp_path: Path) -> None:
    first = make(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    second = make(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert second.stdout == first.stdout
    assert re.findall(r" (made|kept|renewed) ", first.stderr) == ["made"] * 7
    assert re.findall(r" (made|kept|renewed) ", second.stderr) == ["kept"] * 7


def test_what_cannot_be_is_told_in_a_sentence(tmp_path: Path) -> None:
    wrong_name = make(tmp_path, "--agent", "gpu 7")
    assert wrong_name.exit_code == 2
    assert "gpu-agent/gpu 7" in wrong_name.stderr
    (tmp_path / "file").write_text("")
    no_directory = make(tmp_path / "file")
    assert no_directory.exit_code == 2
    assert "cannot be written" in no_directory.stderr
    assert "Traceback" not in wrong_name.stderr + no_directory.stderr
