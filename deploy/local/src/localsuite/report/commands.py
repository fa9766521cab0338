"""Commands to paste while the suite is up."""

from __future__ import annotations

from localsuite.ports import Ports

__all__ = ["paste_commands"]


def paste_commands(ports: Ports) -> list[tuple[str, str]]:
    """Returns what to try next: a remark and the command, for the ports of this run."""
    autoscaler, router = ports.address("autoscaler"), ports.address("ai_router")
    metrics, knowledge = ports.address("gpu_metrics"), ports.address("knowledge_base")
    generate = (
        '{"spec":{"tier":"TIER_GOLD","max_output_tokens":32,"messages":'
        '[{"role":"CHAT_ROLE_USER","content":"Who keeps the ferry?"}]}}'
    )
    return [
        ("how everything is", "gamekeeper status"),
        ("why a tier has its size", "gamekeeper why --tier gold"),
        ("ask a model through the router", 'gamekeeper ask "Who keeps the ferry?" --tier silver'),
        ("search the lore", 'gamekeeper lore search "what may be lent"'),
        ("hold a tier at 3 servers", "gamekeeper override set gold --pin 3 --reason 'a try'"),
        ("what a service offers", f"grpcurl -plaintext {autoscaler} list"),
        (
            "the tiers, by grpcurl",
            f"grpcurl -plaintext {autoscaler} gaming.autoscaler.v1.AutoscalerService/ListTiers",
        ),
        (
            "a generated answer, by grpcurl",
            (
                f"grpcurl -plaintext -d '{generate}' {router} "
                "gaming.ai_router.v1.AiRouterService/Generate"
            ),
        ),
        (
            "the fleet, as it changes",
            f"grpcurl -plaintext {metrics} gaming.gpu_metrics.v1.GpuMetricsService/WatchFleet",
        ),
        (
            "passages of lore, by grpcurl",
            (
                f'grpcurl -plaintext -d \'{{"query":"who may cross","limit":3}}\' {knowledge} '
                "gaming.knowledge_base.v1.KnowledgeBaseService/Search"
            ),
        ),
    ]
