"""Brings the database to this version's schema and makes the service's role."""

import asyncio
import base64
import hashlib
import hmac
import os
import unicodedata
from urllib.parse import unquote, urlsplit

import asyncpg
import structlog

from messaging.store_schema import grant_stores, migrate_stores
from servicekit.postgres import migrate

__all__ = ["SCHEMA", "migrate_schema"]

log = structlog.get_logger(__name__)

SCHEMA = "knowledge_base"
_CONNECT_TIMEOUT_SECONDS = 10.0
_STATEMENT_TIMEOUT_SECONDS = 600.0
_OTHERS_SECONDS = 60.0
_LOCK_POLL_SECONDS = 0.1
_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended('knowledge_base.migrate', 0))"
# RFC 7677 for SCRAM-SHA-256; PostgreSQL's own default.
_SCRAM_ITERATIONS = 4096
_SCRAM_SALT_BYTES = 16

# Statements that grant the role what an area's functions need, and keep the granting to the owner.
_AREA_GRANTS = """
SELECT
    format('SELECT %s(%L)', p.oid::regproc, $1::text) AS grant_statement,
    format('REVOKE EXECUTE ON FUNCTION %s FROM %I', p.oid::regprocedure, $1::text) AS keep_statement
FROM pg_proc p
WHERE p.pronamespace = 'knowledge_base'::regnamespace AND p.proname LIKE 'grant\\_%'
    AND pg_get_function_identity_arguments(p.oid) = 'p_role text'
ORDER BY p.proname
"""


async def migrate_schema(owner_url: str, service_url: str, service_role: str) -> list[str]:
    """Applies the missing migrations as the owner, then grants the service role what it needs.

    The role is made when it is absent. It gets the password of `service_url` when that names the
    role; as a SCRAM verifier, so that the password reaches no server log.

    Returns:
        the names of the migrations applied now.

    Raises:
        OSError, asyncpg.PostgresError: the database is away or refuses.
        TimeoutError: another process migrates for longer than a minute.
    """
    connection = await asyncpg.connect(
        owner_url,
        timeout=_CONNECT_TIMEOUT_SECONDS,
        command_timeout=_STATEMENT_TIMEOUT_SECONDS,
        server_settings={"application_name": "knowledge_base-migrate"},
    )
    try:
        # Replicas that start together also grant together, which PostgreSQL refuses to one of them.
        await _wait_for_others(connection)
        applied = await migrate(connection, "knowledge_base", schema=SCHEMA)
        applied += await migrate_stores(connection, schema=SCHEMA)
        await connection.execute(
            "SELECT knowledge_base.provision_service_role($1, $2)",
            service_role,
            _verifier_for(service_url, service_role),
        )
        # A migration that makes tables ends with a function grant_<area>(role) for them.
        for area in await connection.fetch(_AREA_GRANTS, service_role):
            await connection.execute(area["grant_statement"])
            await connection.execute(area["keep_statement"])
        await grant_stores(connection, schema=SCHEMA, role=service_role)
    finally:
        await connection.close(timeout=_CONNECT_TIMEOUT_SECONDS)
    log.info("schema_ready", applied=applied, service_role=service_role)
    return applied


async def _wait_for_others(connection: asyncpg.Connection) -> None:
    """Takes the lock of whoever migrates; it is given up with the connection."""
    async with asyncio.timeout(_OTHERS_SECONDS):
        while not await connection.fetchval(_TRY_LOCK):  # noqa: ASYNC110  # the lock is the server's
            await asyncio.sleep(_LOCK_POLL_SECONDS)


def _verifier_for(service_url: str, service_role: str) -> str | None:
    address = urlsplit(service_url)
    if not address.password or unquote(address.username or "") != service_role:
        return None
    return scram_verifier(unquote(address.password), os.urandom(_SCRAM_SALT_BYTES))


def scram_verifier(password: str, salt: bytes) -> str:
    """Returns PostgreSQL's form of a SCRAM-SHA-256 verifier (RFC 5802, section 3)."""
    prepared = unicodedata.normalize("NFKC", password).encode()
    salted = hashlib.pbkdf2_hmac("sha256", prepared, salt, _SCRAM_ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"
