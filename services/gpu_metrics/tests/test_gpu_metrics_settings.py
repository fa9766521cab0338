import pytest

from gpu_metrics.agent_settings import (
    AgentSettings,
    ModelServerAddress,
    default_state_directory,
)
from gpu_metrics.config import CollectorSettings
from gpu_metrics.domain.readings import PurchaseOption, Tier
from servicekit.settings import SettingsError, load_settings


def test_an_agent_needs_no_settings() -> None:
    settings = load_settings(AgentSettings, {})
    assert settings.collectors == ("127.0.0.1:50061",)
    assert settings.model_servers == ()
    assert settings.purchase_option is PurchaseOption.UNKNOWN


def test_an_agents_settings_are_read() -> None:
    settings = load_settings(
        AgentSettings,
        {
            "GPU_METRICS_COLLECTORS": "10.0.0.1:50061, 10.0.0.2:50061",
            "GPU_METRICS_MODEL_SERVERS": "gold=http://127.0.0.1:8000/,bronze=https://[::1]:8001",
            "GPU_METRICS_PURCHASE_OPTION": "spot",
            "GPU_METRICS_NVML_HUNG_AFTER_SECONDS": "2.5",
        },
    )
    assert settings.collectors == ("10.0.0.1:50061", "10.0.0.2:50061")
    assert settings.model_servers == (
        ModelServerAddress(Tier.GOLD, "http://127.0.0.1:8000"),
        ModelServerAddress(Tier.BRONZE, "https://[::1]:8001"),
    )
    assert settings.purchase_option is PurchaseOption.SPOT
    assert settings.nvml_hung_after_seconds == 2.5


@pytest.mark.parametrize(
    "servers", ["http://127.0.0.1:8000", "platinum=http://x:1", "gold=ftp://x", "gold=http://x/v1"]
)
def test_a_wrong_model_server_is_refused_with_what_is_allowed(servers: str) -> None:
    with pytest.raises(SettingsError, match=r"GPU_METRICS_MODEL_SERVERS=.* (must be|needs)"):
        load_settings(AgentSettings, {"GPU_METRICS_MODEL_SERVERS": servers})


def test_latency_slots_serve_the_window_and_the_publication() -> None:
    settings = load_settings(
        CollectorSettings,
        {
            "GPU_METRICS_LATENCY_WINDOW_SECONDS": "30",
            "GPU_METRICS_CLOUDWATCH_INTERVAL_SECONDS": "120",
        },
    )
    policy = settings.fleet_policy()
    assert policy.window_seconds == 30
    assert policy.retained_seconds == 120
    assert policy.slot_seconds == 2.5


def test_a_host_cannot_expire_before_it_is_stale() -> None:
    settings = load_settings(CollectorSettings, {"GPU_METRICS_EXPIRE_AFTER_SECONDS": "5"})
    with pytest.raises(SettingsError, match="GPU_METRICS_EXPIRE_AFTER_SECONDS=5 is wrong"):
        settings.fleet_policy()


def test_events_are_kept_below_var_by_root_and_below_the_home_by_others() -> None:
    assert str(default_state_directory(0, "/root")) == "/var/lib/gamekeeper/gpu_metrics"
    assert (
        str(default_state_directory(1000, "/home/a"))
        == "/home/a/.local/state/gamekeeper/gpu_metrics"
    )
    assert str(default_state_directory(1000, "")) == "/var/lib/gamekeeper/gpu_metrics"


@pytest.mark.parametrize("variable", ["GPU_METRICS_IMDS_URL", "GPU_METRICS_DCGM_URL"])
def test_a_source_is_reached_over_http(variable: str) -> None:
    with pytest.raises(SettingsError, match="must be a http or https url"):
        load_settings(AgentSettings, {variable: "localhost:9400"})
