"""Settings: what is refused, what is told about them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ai_router.adapters.static_fleet import StaticFleetSource, parse_static_servers
from ai_router.config import AiRouterSettings
from ai_router.domain.fleet import FleetView
from ai_router.domain.tiers import Tier
from servicekit.settings import SettingsError, describe_settings, load_settings
from servicekit.testing import FakeClock

README = Path(__file__).parents[1] / "README.md"


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    text = README.read_text(encoding="utf-8")
    rows = describe_settings(load_settings(AiRouterSettings, {}), {})
    own = [row for row in rows if row.variable.startswith("AI_ROUTER_")]
    assert len(own) > 20
    for row in own:
        assert f"| `{row.variable}` |" in text
        assert row.help in text


def test_static_servers_are_read_as_they_are_written() -> None:
    settings = load_settings(
        AiRouterSettings,
        {"AI_ROUTER_STATIC_SERVERS": "gold:org/llama:3b@http://10.0.0.1:8000, BRONZE:b@https://h"},
    )
    gold, bronze = settings.static_fleet()
    assert (gold.tier, gold.model, gold.server_id) == (Tier.GOLD, "org/llama:3b", "10.0.0.1:8000")
    assert (bronze.tier, bronze.endpoint_url) == (Tier.BRONZE, "https://h")


@pytest.mark.parametrize(
    "text",
    [
        "gold",
        "gold:m",
        "copper:m@http://h:1",
        "gold:@http://h:1",
        "gold:m@ftp://h:1",
        "gold:m@http://h:1/v1",
        "gold:m@http://h:1,silver:n@http://h:1",
    ],
)
def test_static_servers_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="'"):
        parse_static_servers(text)


def test_settings_out_of_bounds_are_all_told() -> None:
    environ = {"AI_ROUTER_ATTEMPTS": "0", "AI_ROUTER_GUEST_LOAD_LIMIT": "1.5"}
    with pytest.raises(SettingsError) as caught:
        load_settings(AiRouterSettings, environ)
    assert len(caught.value.problems) == 2


def test_the_api_key_is_never_shown() -> None:
    environ = {"AI_ROUTER_MODEL_SERVER_API_KEY": "s3cret"}
    rows = describe_settings(load_settings(AiRouterSettings, environ), environ)
    assert "s3cret" not in str(rows)


async def test_a_static_fleet_is_shown_once_and_confirmed_ever_after() -> None:
    clock = FakeClock()
    servers = parse_static_servers("gold:m@http://h:1")
    views = aiter(StaticFleetSource(servers, clock).views())
    assert await anext(views) == FleetView(servers)
    following = asyncio.ensure_future(anext(views))
    await clock.advance(1.0)
    assert await following is None
