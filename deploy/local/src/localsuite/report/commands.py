"""Commands to paste while the suite is up."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from localsuite.ports import Ports

__all__ = ["paste_commands"]


def paste_commands(ports: Ports, data_directory: Path) -> list[tuple[str, str]]:
    """Returns what to try next: a remark and the command, right for this run as they stand."""
    gamekeeper = _gamekeeper(data_directory)
    grpcurl = _program("grpcurl", Path(".tool") / "bin" / "grpcurl")
    autoscaler, router = ports.address("autoscaler"), ports.address("ai_router")
    metrics, knowledge = ports.address("gpu_metrics"), ports.address("knowledge_base")
    generate = (
        '{"spec":{"tier":"TIER_GOLD","max_output_tokens":32,"messages":'
        '[{"role":"CHAT_ROLE_USER","content":"Who keeps the ferry?"}]}}'
    )
    return [
        ("how everything is", f"{gamekeeper} status"),
        ("why a tier has its size", f"{gamekeeper} why --tier gold"),
        (
            "ask a model through the router",
            f'{gamekeeper} ask "Who keeps the ferry?"',
        ),
        ("search the lore", f'{gamekeeper} lore search "what may be lent"'),
        ("hold a tier at 3 servers", f"{gamekeeper} override set gold --pin 3 --reason 'a try'"),
        ("what the game and the suite tell each other", f"{gamekeeper} events tail"),
        ("what a service offers", f"{grpcurl} -plaintext {autoscaler} list"),
        (
            "the tiers, by grpcurl",
            f"{grpcurl} -plaintext {autoscaler} gaming.autoscaler.v1.AutoscalerService/ListTiers",
        ),
        (
            "a generated answer, by grpcurl",
            (
                f"{grpcurl} -plaintext -d '{generate}' {router} "
                "gaming.ai_router.v1.AiRouterService/Generate"
            ),
        ),
        (
            "the fleet, as it changes",
            f"{grpcurl} -plaintext {metrics} gaming.gpu_metrics.v1.GpuMetricsService/WatchFleet",
        ),
        (
            "passages of lore, by grpcurl",
            (
                f'{grpcurl} -plaintext -d \'{{"query":"who may cross","limit":3}}\' {knowledge} '
                "gaming.knowledge_base.v1.KnowledgeBaseService/Search"
            ),
        ),
    ]


def _gamekeeper(data_directory: Path) -> str:
    """The command line beside this interpreter, told where the run is if it would not find it."""
    command = _program("gamekeeper", Path(sys.executable).with_name("gamekeeper"))
    here = Path.cwd()
    if any(parent / ".var" == data_directory for parent in (here, *here.parents)):
        return command
    return f"GAMEKEEPER_DATA_DIR={shlex.quote(str(data_directory))} {command}"


def _program(name: str, otherwise: Path) -> str:
    """The program by name where the shell finds it, else by its path from here."""
    if shutil.which(name) is not None or not otherwise.exists():
        return name
    return shlex.quote(os.path.relpath(otherwise))
