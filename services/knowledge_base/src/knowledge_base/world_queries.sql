-- name: set_world_archived
SELECT * FROM knowledge_base.set_world_archived($1, $2, $3, $4, $5)

-- name: begin_fork
SELECT * FROM knowledge_base.begin_fork($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)

-- name: begin_erase
SELECT * FROM knowledge_base.begin_erase($1, $2, $3, $4)

-- name: get_job
SELECT * FROM knowledge_base.get_job($1)

-- name: list_jobs
SELECT * FROM knowledge_base.list_jobs($1, $2, $3, $4)

-- name: cancel_job
SELECT * FROM knowledge_base.cancel_job($1)

-- name: claim_job
SELECT * FROM knowledge_base.claim_job($1, $2)

-- name: advance_job
SELECT * FROM knowledge_base.advance_job($1, $2, $3, $4)

-- name: keep_job
SELECT knowledge_base.keep_job($1, $2, $3)

-- name: note_job_failure
SELECT knowledge_base.note_job_failure($1, $2, $3)

-- name: end_erase
SELECT knowledge_base.end_erase($1, $2, $3, $4)

-- name: last_erasure
SELECT knowledge_base.last_erasure()

-- name: forget_jobs
SELECT knowledge_base.forget_jobs($1)

-- name: forget_changes
SELECT knowledge_base.forget_changes($1)

-- name: vacuum_commands
-- A VACUUM for each table that can have held rows or names of the world, whether this role may run
-- it, and the columns whose samples in the planner's statistics go when the table is empty. Indexes
-- are cleaned too: by default few dead entries are left where they are.
SELECT
    c.relname AS name,
    format(
        'VACUUM (%s) knowledge_base.%I',
        CASE WHEN $1 THEN 'FULL, ANALYZE' ELSE 'INDEX_CLEANUP ON, ANALYZE' END, c.relname
    ) AS command,
    pg_has_role(c.relowner, 'MEMBER') OR EXISTS (
        SELECT FROM aclexplode(c.relacl) a
        WHERE a.privilege_type = 'MAINTAIN'
            AND (a.grantee = 0 OR pg_has_role(a.grantee, 'MEMBER'))
    ) AS allowed,
    ARRAY(
        SELECT a.attname FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS columns
FROM pg_class c
WHERE c.relnamespace = 'knowledge_base'::regnamespace AND c.relkind = 'r'
    AND (
        c.relname IN ('worlds', 'outbox', 'outbox_parked', 'inbox')
        OR EXISTS (
            SELECT FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attname = 'world_id' AND NOT a.attisdropped
        )
    )
ORDER BY c.relname

-- name: table_is_empty
-- As the VACUUM just counted it.
SELECT reltuples = 0 FROM pg_class
WHERE relnamespace = 'knowledge_base'::regnamespace AND relname = $1

-- name: clear_column_statistics
SELECT pg_clear_attribute_stats('knowledge_base', $1, $2, false)

-- name: server_version
SELECT current_setting('server_version_num')::integer

-- name: running_transactions
-- All transactions of all databases' sessions at present but this one; whoever sees them may still
-- see rows that are deleted now.
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'virtualxid' AND pid <> pg_backend_pid()

-- name: export_plan
SELECT table_name, row_count FROM knowledge_base.export_plan($1)

-- name: export_rows
SELECT row_columns, row_key, vector_names, vectors
FROM knowledge_base.export_rows($1, $2, $3::jsonb, $4)

-- name: shared_concepts_of
SELECT concept_id, name FROM knowledge_base.shared_concepts_of($1)

-- name: shared_concepts_named
SELECT concept_id, name FROM knowledge_base.shared_concepts_named($1)

-- name: imported_world
SELECT * FROM knowledge_base.imported_world($1, $2)

-- name: begin_import
SELECT * FROM knowledge_base.begin_import($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: import_rows
SELECT knowledge_base.import_rows($1, $2, $3, $4, $5, $6::jsonb, $7)

-- name: end_import
SELECT knowledge_base.end_import($1, $2, $3, $4, $5, $6)

-- name: give_up_import
SELECT knowledge_base.give_up_import($1, $2, $3)

-- name: world_log
SELECT incarnation, oldest, newest FROM knowledge_base.world_log($1, $2)

-- name: read_changes
SELECT change_number, kind, subject_id, record_time
FROM knowledge_base.read_changes($1, $2, $3)
