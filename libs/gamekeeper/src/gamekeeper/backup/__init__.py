"""Backups of the suite's PostgreSQL: base backups, archived WAL, restore to a second, proof.

A repository is a directory on another disk than the database's (see `repository` for its layout).
PostgreSQL's own programs do the copying; nothing here needs to run beside the server but
`taking.stream_wal`, without which changes since the last backup are lost with the server's disk.

Needs the extra `backup` (asyncpg).
"""
