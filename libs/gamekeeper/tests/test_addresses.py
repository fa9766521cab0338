import json
from pathlib import Path

import pytest

from gamekeeper.addresses import DEFAULT_ADDRESSES, find_addresses


def write_run(directory: Path, **addresses: object) -> None:
    (directory / ".var").mkdir()
    (directory / ".var" / "addresses.json").write_text(json.dumps(addresses))


def test_without_anything_the_usual_ports_are_meant(tmp_path: Path) -> None:
    found = find_addresses(environ={}, directory=tmp_path)
    assert {name: found.of(name) for name in DEFAULT_ADDRESSES} == dict(DEFAULT_ADDRESSES)


def test_a_local_run_above_the_present_directory_is_found(tmp_path: Path) -> None:
    write_run(tmp_path, autoscaler="127.0.0.1:21002", pid=1)
    below = tmp_path / "services" / "autoscaler"
    below.mkdir(parents=True)
    found = find_addresses(environ={}, directory=below)
    assert found.autoscaler == "127.0.0.1:21002"
    assert found.sources["autoscaler"] == "local run"
    assert found.sources["ai_router"] == "default"


def test_the_environment_beats_a_local_run_and_an_option_beats_both(tmp_path: Path) -> None:
    write_run(tmp_path, autoscaler="127.0.0.1:1", ai_router="127.0.0.1:2")
    environ = {
        "GAMEKEEPER_AUTOSCALER_ADDRESS": "autoscaler.internal:443",
        "GAMEKEEPER_AI_ROUTER_ADDRESS": "router.internal:443",
    }
    found = find_addresses(told={"ai_router": "[::1]:9"}, environ=environ, directory=tmp_path)
    assert found.autoscaler == "autoscaler.internal:443"
    assert found.ai_router == "[::1]:9"


def test_a_named_data_directory_is_the_only_one_looked_at(tmp_path: Path) -> None:
    write_run(tmp_path, autoscaler="127.0.0.1:1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environ = {"GAMEKEEPER_DATA_DIR": str(elsewhere)}
    found = find_addresses(environ=environ, directory=tmp_path)
    assert found.autoscaler == DEFAULT_ADDRESSES["autoscaler"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"autoscaler": 7}'])
def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / ".var").mkdir()
    (tmp_path / ".var" / "addresses.json").write_text(text)
    found = find_addresses(environ={}, directory=tmp_path)
    assert found.autoscaler == DEFAULT_ADDRESSES["autoscaler"]


def test_an_unknown_service_is_refused() -> None:
    with pytest.raises(ValueError, match="gpu_metrics"):
        find_addresses(environ={}).of("aws")


def test_of_several_addresses_the_first_is_asked_and_all_can_be_told() -> None:
    found = find_addresses(told={"gpu_metrics": "a:1, b:2"}, environ={})
    assert found.of("gpu_metrics") == "a:1"
    assert found.every("gpu_metrics") == ("a:1", "b:2")
