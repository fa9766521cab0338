"""How the embedded PostgreSQL is configured."""

from collections.abc import Mapping

__all__ = ["LOCAL_SETTINGS", "NOT_DURABLE", "configuration_text"]

#: Chosen for one machine with a few services: little memory, few processes. Replication is for
#: `gamekeeper backup` alone; a slot that nobody reads any more keeps at most a gigabyte of WAL.
#: Dynamic shared memory is a file and parallel plans are off, so that a container's small
#: /dev/shm (64 MiB is usual) never fails an index build; PostgreSQL's main memory is anonymous.
#: A statement that is logged is logged without its parameters: texts of worlds, which nothing takes
#: out of a log when a world is erased.
LOCAL_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "default_text_search_config": "pg_catalog.english",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "maintenance_work_mem": "64MB",
    "dynamic_shared_memory_type": "mmap",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "max_parallel_workers": "0",
    "io_method": "sync",
    "jit": "off",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "max_replication_slots": "4",
    "max_slot_wal_keep_size": "1GB",
    "hot_standby": "off",
    "max_logical_replication_workers": "0",
    "max_wal_size": "256MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] %d ",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "logging_collector": "off",
}

#: For throw-away data: survives the death of any process, but not of the machine.
NOT_DURABLE: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}


def configuration_text(settings: Mapping[str, str]) -> str:
    """The text of a `postgresql.conf` with these settings."""
    lines = ["# Written at each start; ALTER SYSTEM, or the launcher's settings, change it."]
    lines += [
        f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in settings.items()
    ]
    return "\n".join(lines) + "\n"
