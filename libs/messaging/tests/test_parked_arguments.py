"""How the command for parked events is asked for."""

from __future__ import annotations

import pytest

from messaging.parked import main


def test_without_the_services_environment_it_says_which_variable_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AUTOSCALER_DATABASE_URL", raising=False)
    assert main(["list", "autoscaler"]) == 2
    assert "AUTOSCALER_DATABASE_URL is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["drop", "autoscaler"],
        ["list", "a; DROP TABLE outbox"],
        ["requeue", "autoscaler", "--limit", "0"],
        ["requeue", "autoscaler", "--limit", "-1"],
    ],
)
def test_a_wrong_command_schema_or_limit_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
