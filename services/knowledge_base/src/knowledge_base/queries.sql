-- name: check_session
-- What a new connection may not be, and whether it meets a schema at all.
SELECT
    r.rolname AS role,
    r.rolsuper OR r.rolbypassrls AS bypasses,
    EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'knowledge_base' AND c.relkind = 'r'
            AND pg_has_role(r.oid, c.relowner, 'MEMBER')
    ) AS owns,
    to_regclass('knowledge_base.schema_migrations') IS NOT NULL AS has_schema
FROM pg_roles r WHERE r.rolname = current_user

-- name: newest_migration
SELECT coalesce(max(number), 0) FROM knowledge_base.schema_migrations

-- name: vector_schema
-- Where the extension's type lives.
SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector'

-- name: try_lock_collection
SELECT pg_try_advisory_lock(hashtextextended('knowledge_base.ingest.' || $1, 0))

-- name: document_versions
SELECT path, content_sha256, recipe, chunk_count
FROM knowledge_base.narrative_documents WHERE collection = $1

-- name: known_embeddings
-- Without its declared length, so that a change of the model leaves the statement's result as it is.
SELECT DISTINCT ON (embedding_input_sha256) embedding_input_sha256, embedding::vector AS embedding
FROM knowledge_base.document_chunks
WHERE embedding_input_sha256 = ANY ($1::bytea[]) AND recipe = $2

-- name: replace_document
SELECT knowledge_base.replace_document(
    $1, $2, $3, $4::jsonb, $5, $6, $7, $8::jsonb, $9,
    knowledge_base.all_embedded_with($11, $10)
)

-- name: link_concepts
SELECT knowledge_base.link_concepts($1, $2, $3, $4)

-- name: remove_missing_documents
SELECT path FROM knowledge_base.remove_missing_documents($1, $2) AS path ORDER BY path

-- name: chunk_count
SELECT coalesce(sum(chunk_count), 0)::bigint
FROM knowledge_base.lore_statistics WHERE collection = $1

-- name: list_documents
SELECT collection, path, title, chunk_count, ingest_time, content_sha256, front_matter,
    '{}'::text[] AS concepts
FROM knowledge_base.narrative_documents
WHERE ($1::text IS NULL OR collection = $1) AND (path, collection) > ($2, $3)
ORDER BY path, collection
LIMIT $4

-- name: get_document
SELECT * FROM knowledge_base.get_document($1, $2)

-- name: concept_passages
SELECT * FROM knowledge_base.concept_passages($1, $2, $3, $4, $5, $6)

-- name: search_lore
SELECT f.*, knowledge_base.concepts_of_passage(
    f.collection, f.path, f.start_line, f.end_line, f.text
) AS concepts
FROM knowledge_base.search_lore(
    $1, knowledge_base.embedded_with($9, $2), $3, $4, $5, $6, $7, $8
) AS f

-- name: create_world
SELECT * FROM knowledge_base.create_world($1, $2, $3, $4, $5, $6)

-- name: get_world
SELECT * FROM knowledge_base.get_world($1, $2)

-- name: list_worlds
SELECT * FROM knowledge_base.list_worlds($1, $2)

-- name: recorded_events
SELECT * FROM knowledge_base.recorded_events($1, $2, $3)

-- name: record_events
SELECT * FROM knowledge_base.record_events(
    $1, $2, $3, $4, $5::jsonb, $6, knowledge_base.all_embedded_with($6, $7), $8, $9
)

-- name: recall_events
SELECT * FROM knowledge_base.recall_events(
    $1, $2, knowledge_base.embedded_with($16, $3), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
    $15
)

-- name: list_events
SELECT * FROM knowledge_base.list_events($1, $2, $3, $4)

-- name: set_event_subscription
SELECT * FROM knowledge_base.set_event_subscription($1, $2, $3, $4, $5, $6)

-- name: get_event_subscription
SELECT * FROM knowledge_base.get_event_subscription($1)

-- name: delete_event_subscription
SELECT * FROM knowledge_base.delete_event_subscription($1, $2, $3, $4)

-- name: subscribed_worlds
SELECT world_id FROM knowledge_base.subscribed_worlds($1, $2, $3) AS world_id

-- name: forget_requests
SELECT knowledge_base.forget_requests($1)

-- name: register_embedding_model
SELECT knowledge_base.register_embedding_model($1, $2, $3)

-- name: active_embedding_model
SELECT name FROM knowledge_base.embedding_models WHERE state = 'active'

-- name: list_embedding_models
SELECT * FROM knowledge_base.list_embedding_models()

-- name: start_embedding_change
SELECT knowledge_base.start_embedding_change($1, $2, $3, $4, $5)

-- name: set_embedding_change_state
SELECT knowledge_base.set_embedding_change_state($1, $2, $3, $4)

-- name: cancel_embedding_change
SELECT knowledge_base.cancel_embedding_change($1, $2, $3)

-- name: finish_embedding_change
SELECT knowledge_base.finish_embedding_change($1, $2, $3, $4)

-- name: settle_embeddings
SELECT knowledge_base.settle_embeddings()

-- name: try_lock_embedding_filler
SELECT pg_try_advisory_lock(knowledge_base.embedding_filler_lock())

-- name: unlock_embedding_filler
SELECT pg_advisory_unlock(knowledge_base.embedding_filler_lock())

-- name: hold_embedding_filler
SELECT pg_advisory_xact_lock(knowledge_base.embedding_filler_lock())

-- name: hold_embedding_writers
SELECT pg_advisory_xact_lock(knowledge_base.embedding_writers_lock())

-- name: change_to_fill
SELECT name, listed FROM knowledge_base.embedding_models WHERE state = 'filling'

-- name: index_next_embedding
SELECT knowledge_base.index_next_embedding()

-- name: list_unfilled_rows
SELECT knowledge_base.list_unfilled_rows($1)

-- name: unfilled_events
SELECT * FROM knowledge_base.unfilled_events($1)

-- name: unfilled_chunks
SELECT * FROM knowledge_base.unfilled_chunks($1)

-- name: fill_events
SELECT knowledge_base.fill_events($1, $2, $3, $4)

-- name: fill_chunks
SELECT knowledge_base.fill_chunks($1, $2, $3)
