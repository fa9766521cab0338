import json
import os
from pathlib import Path

import pytest

from localsuite.data_directory import (
    DataDirectory,
    DataDirectoryInUseError,
    DataDirectoryUnusableError,
)


def test_a_second_run_is_told_who_is_up_and_what_to_do(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path / "var"),
        pytest.raises(DataDirectoryInUseError) as refused,
        DataDirectory(tmp_path / "var"),
    ):
        pytest.fail("two runs on one directory")
    assert str(os.getpid()) in str(refused.value)
    assert "--data-dir" in str(refused.value)


def test_data_survives_and_addresses_do_not(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "var") as data:
        data.publish_addresses({"autoscaler": "127.0.0.1:1"})
        (data.reports / "kept").mkdir()
        assert json.loads(data.addresses_file.read_text())["autoscaler"] == "127.0.0.1:1"
    assert not data.addresses_file.exists()
    with DataDirectory(tmp_path / "var") as again:
        assert (again.reports / "kept").is_dir()


def test_addresses_left_by_a_killed_run_are_withdrawn(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "var"):
        pass
    (tmp_path / "var" / "addresses.json").write_text("{}")
    with DataDirectory(tmp_path / "var") as data:
        assert not data.addresses_file.exists()


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with (
        pytest.raises(DataDirectoryUnusableError, match="not made by Gamekeeper"),
        DataDirectory(tmp_path),
    ):
        pytest.fail("it must not be used")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_directory_of_another_layout_is_refused(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "var"):
        pass
    (tmp_path / "var" / "gamekeeper-data.json").write_text('{"layout": 99}')
    with (
        pytest.raises(DataDirectoryUnusableError, match="layout 99"),
        DataDirectory(tmp_path / "var"),
    ):
        pytest.fail("it must not be used")


def test_the_log_of_the_run_before_is_kept(tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "var") as data:
        data.fresh_log("autoscaler").write_text("the run before")
        assert not data.fresh_log("autoscaler").exists()
        assert (data.logs / "autoscaler.log.1").read_text() == "the run before"
