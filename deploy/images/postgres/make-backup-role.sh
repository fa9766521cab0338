#!/bin/sh
# Runs once, when the data directory is made.
set -eu
[ -n "${BACKUP_PASSWORD:-}" ] || exit 0
psql --no-psqlrc --set ON_ERROR_STOP=1 --set "password=$BACKUP_PASSWORD" \
    --username "$POSTGRES_USER" --dbname postgres --file /usr/local/share/gamekeeper/backup-role.sql
echo "host replication gamekeeper_backup all scram-sha-256" >> "$PGDATA/pg_hba.conf"
