-- The role with which `gamekeeper backup` works. It copies the cluster and reads every table to
-- prove the copy; it changes nothing. Run by psql as superuser, with the variable `password`.
--
-- It sees all worlds: the password belongs where the backups are, and nowhere else.
CREATE ROLE gamekeeper_backup LOGIN REPLICATION BYPASSRLS PASSWORD :'password';
GRANT pg_read_all_data TO gamekeeper_backup;
-- To hold writers off for the moment at which the tables are looked at.
GRANT pg_maintain TO gamekeeper_backup;
GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_switch_wal() TO gamekeeper_backup;
