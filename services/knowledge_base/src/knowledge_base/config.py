"""The settings of the knowledge base."""

import re
from dataclasses import dataclass
from pathlib import Path

from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import RecallParameters
from messaging.outbox_settings import StoreSettings
from messaging.settings import MessagingSettings
from servicekit.server import ServerSettings
from servicekit.settings import setting
from servicekit.telemetry import TelemetrySettings

__all__ = [
    "DatabaseSettings",
    "EmbeddingSettings",
    "KnowledgeBaseSettings",
    "MigrationSettings",
    "ModelSettings",
    "NarrationSettings",
    "RankingSettings",
]

_RANKING = RankingParameters()
_RECALL = RecallParameters()


def _database_url(text: str) -> str:
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("must be postgresql://user:password@host:port/database")
    return text


def _role(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", text):
        raise ValueError("must be a plain lower-case SQL identifier")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """How the service reaches PostgreSQL."""

    database_url: str = setting(
        "KNOWLEDGE_BASE_DATABASE_URL",
        secret=True,
        parse=_database_url,
        help="PostgreSQL as the service's role, postgresql://user:password@host:port/database",
    )
    migration_database_url: str | None = setting(
        "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL",
        default=None,
        secret=True,
        parse=_database_url,
        help="PostgreSQL as the schema's owner; set: migrations run at start",
    )
    service_role: str = setting(
        "KNOWLEDGE_BASE_SERVICE_ROLE",
        default="knowledge_base_service",
        parse=_role,
        help="role that migrations make and grant to; not the owner",
    )
    pool_size: int = setting(
        "KNOWLEDGE_BASE_POOL_SIZE",
        default=8,
        minimum=4,
        maximum=200,
        help="most database connections; up to 3 are held by ingests",
    )
    statement_timeout_seconds: float = setting(
        "KNOWLEDGE_BASE_STATEMENT_TIMEOUT_SECONDS",
        default=5.0,
        minimum=0.1,
        maximum=60.0,
        help="longest statement that answers a call",
    )
    ingest_lock_wait_seconds: float = setting(
        "KNOWLEDGE_BASE_INGEST_LOCK_WAIT_SECONDS",
        default=30.0,
        minimum=0.0,
        maximum=600.0,
        help="how long an ingest waits for another one of its collection",
    )
    stale_answer_seconds: float = setting(
        "KNOWLEDGE_BASE_STALE_ANSWER_SECONDS",
        default=600.0,
        minimum=0.0,
        help="oldest search answer given again while the database is away",
    )
    backup_retention_days: int = setting(
        "KNOWLEDGE_BASE_BACKUP_RETENTION_DAYS",
        default=35,
        minimum=0,
        maximum=3650,
        help="after how long no backup holds what was erased, told to whoever erases a world: "
        "days kept + days between base backups + days between prunes (docs/backup.md)",
    )
    request_retention_hours: float = setting(
        "KNOWLEDGE_BASE_REQUEST_RETENTION_HOURS",
        default=168.0,
        minimum=1.0,
        help="how long a repeated request_id is recognised",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSettings:
    """The embedding models that this process can use."""

    embedder: str = setting(
        "KNOWLEDGE_BASE_EMBEDDER",
        default="local",
        choices=("local", "bedrock"),
        help="the model that a new database is filled with; later it is changed by operators",
    )
    model_cache_directory: Path = setting(
        "KNOWLEDGE_BASE_MODEL_CACHE_DIRECTORY",
        default=Path("~/.cache/gamekeeper/models"),
        help="where the model's graphs are kept, 101 MB, written once",
    )
    query_threads: int = setting(
        "KNOWLEDGE_BASE_EMBEDDING_THREADS",
        default=1,
        minimum=1,
        maximum=64,
        help="threads of a run of the model that embeds queries; more pay from 150 tokens on",
    )
    document_runs: int = setting(
        "KNOWLEDGE_BASE_EMBEDDING_DOCUMENT_RUNS",
        default=2,
        minimum=1,
        maximum=64,
        help="runs of the model that embed documents at once, a core each",
    )
    reranker: str = setting(
        "KNOWLEDGE_BASE_RERANKER",
        default="late_interaction",
        choices=("late_interaction", "none"),
        help="what reads the best passages of a search and the first memories of a recall once"
        " more; documents are embedded anew when they are next ingested after a change of this",
    )
    query_cache_size: int = setting(
        "KNOWLEDGE_BASE_QUERY_CACHE_SIZE",
        default=2048,
        minimum=1,
        maximum=1_000_000,
        help="queries whose vectors are remembered, 1.7 kB each with 384 dimensions",
    )
    filled_rows_per_second: float = setting(
        "KNOWLEDGE_BASE_FILLED_ROWS_PER_SECOND",
        default=100.0,
        minimum=0.1,
        maximum=100_000.0,
        help="rows that get the new vector a second, at most, while the model is changed",
    )
    bedrock_region: str = setting(
        "KNOWLEDGE_BASE_BEDROCK_REGION",
        default="",
        help="AWS region of Amazon Bedrock; empty: its model is not offered",
    )
    bedrock_endpoint_url: str | None = setting(
        "KNOWLEDGE_BASE_BEDROCK_ENDPOINT_URL",
        default=None,
        help="another endpoint than AWS's for Bedrock, for example a VPC's; empty: AWS's",
    )
    bedrock_dimensions: str = setting(
        "KNOWLEDGE_BASE_BEDROCK_DIMENSIONS",
        default="1024",
        choices=("256", "512", "1024"),
        help="length of Titan's vectors",
    )
    bedrock_calls_at_once: int = setting(
        "KNOWLEDGE_BASE_BEDROCK_CALLS_AT_ONCE",
        default=8,
        minimum=3,
        maximum=256,
        help="most calls to Bedrock in flight; two are kept for queries",
    )
    bedrock_timeout_seconds: float = setting(
        "KNOWLEDGE_BASE_BEDROCK_TIMEOUT_SECONDS",
        default=10.0,
        minimum=0.1,
        maximum=60.0,
        help="limit of one text's embedding by Bedrock, repeats included",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingSettings:
    """How answers are ranked; see `RankingParameters` and `RecallParameters`."""

    vector_weight: float = setting(
        "KNOWLEDGE_BASE_VECTOR_WEIGHT",
        default=_RANKING.vector_weight,
        minimum=0.0,
        maximum=1.0,
        help="share of meaning, against words, in relevance",
    )
    bm25_k1: float = setting(
        "KNOWLEDGE_BASE_BM25_K1",
        default=_RANKING.k1,
        minimum=0.0,
        maximum=10.0,
        help="BM25's saturation of term frequency",
    )
    bm25_b: float = setting(
        "KNOWLEDGE_BASE_BM25_B",
        default=_RANKING.b,
        minimum=0.0,
        maximum=1.0,
        help="BM25's length normalisation",
    )
    relevance_weight: float = setting(
        "KNOWLEDGE_BASE_RELEVANCE_WEIGHT",
        default=_RECALL.relevance_weight,
        minimum=0.001,
        maximum=1000.0,
        help="weight of relevance in Recall",
    )
    recency_weight: float = setting(
        "KNOWLEDGE_BASE_RECENCY_WEIGHT",
        default=_RECALL.recency_weight,
        minimum=0.0,
        maximum=1000.0,
        help="weight of recency in Recall",
    )
    importance_weight: float = setting(
        "KNOWLEDGE_BASE_IMPORTANCE_WEIGHT",
        default=_RECALL.importance_weight,
        minimum=0.0,
        maximum=1000.0,
        help="weight of importance in Recall",
    )
    recency_half_life_hours: float = setting(
        "KNOWLEDGE_BASE_RECENCY_HALF_LIFE_HOURS",
        default=_RECALL.half_life_hours,
        minimum=0.01,
        help="story time after which recency is halved",
    )

    @property
    def ranking(self) -> RankingParameters:
        """Meaning against words."""
        return RankingParameters(self.vector_weight, self.bm25_k1, self.bm25_b)

    @property
    def recall(self) -> RecallParameters:
        """Relevance, recency and importance."""
        return RecallParameters(
            self.relevance_weight,
            self.recency_weight,
            self.importance_weight,
            self.recency_half_life_hours,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrationSettings:
    """How events of the game's bus become story events."""

    ignored_state_keys: tuple[str, ...] = setting(
        "KNOWLEDGE_BASE_IGNORED_STATE_KEYS",
        default=("players_online",),
        help="keys of the world's state that no story tells, comma-separated",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KnowledgeBaseSettings:
    """All settings of the service."""

    server: ServerSettings
    telemetry: TelemetrySettings
    database: DatabaseSettings
    embedding: EmbeddingSettings
    ranking: RankingSettings
    narration: NarrationSettings
    messaging: MessagingSettings
    bus_store: StoreSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSettings:
    """What `migrate` needs."""

    telemetry: TelemetrySettings
    migration_database_url: str = setting(
        "KNOWLEDGE_BASE_MIGRATION_DATABASE_URL",
        secret=True,
        parse=_database_url,
        help="PostgreSQL as the schema's owner",
    )
    database_url: str = setting(
        "KNOWLEDGE_BASE_DATABASE_URL",
        default="",
        secret=True,
        parse=_database_url,
        help="PostgreSQL as the service's role; its password is given to a new role",
    )
    service_role: str = setting(
        "KNOWLEDGE_BASE_SERVICE_ROLE",
        default="knowledge_base_service",
        parse=_role,
        help="role that is made and granted to; not the owner",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What `prepare-model` needs."""

    telemetry: TelemetrySettings
    embedding: EmbeddingSettings
