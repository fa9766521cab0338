-- An index of the vectors of lore, made when there is much of it, dropped when there no longer is.
--
-- The service owns nothing, so it asks these functions, which run as the owner, after each ingest.
-- They take no parameter: what is indexed, from when on, and how, is decided here. What is built is
-- built in one transaction: a build that ends early leaves nothing, searches stay exact, and the
-- next ingest tries again. Searches go on meanwhile; other ingests wait with what they store.

-- From how many passages on lore has an index. See docs/decisions, number 24, for the measurement.
CREATE FUNCTION lore_index_from() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 10000;

-- Below which share of that many passages it is dropped, so that it does not come and go.
CREATE FUNCTION lore_index_kept_share() RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 0.5;

-- Held by whoever makes or drops the index.
CREATE FUNCTION lore_index_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended('knowledge_base.lore.index', 0);

-- Whether the index is there and whole.
CREATE FUNCTION lore_index_stands() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_index i
        WHERE i.indexrelid = to_regclass('knowledge_base.document_chunks_nearest') AND i.indisvalid
    );
$$;

-- Whether pgvector can index vectors this long, and scan on until a filter has let enough of them
-- pass (iterative scan, since 0.8).
CREATE FUNCTION lore_index_possible(p_dimensions integer) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT p_dimensions <= 4000 AND EXISTS (
        SELECT FROM pg_extension e
        WHERE e.extname = 'vector'
            AND string_to_array(substring(e.extversion FROM '^\d+\.\d+'), '.')::integer[]
                >= '{0,8}'
    );
$$;

-- Makes the index of lore, or drops it, as is right for the number of passages; tells which it did,
-- NULL when neither. Somebody who is at it, or has the table locked for longer, is not waited for.
CREATE FUNCTION index_lore() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
    v_count bigint := (SELECT coalesce(sum(s.chunk_count), 0) FROM lore_statistics s);
    v_dimensions integer := (
        SELECT a.atttypmod FROM pg_attribute a
        WHERE a.attrelid = 'knowledge_base.document_chunks'::regclass AND a.attname = 'embedding'
    );
    v_exists boolean := to_regclass('knowledge_base.document_chunks_nearest') IS NOT NULL;
    v_statement text;
BEGIN
    IF v_exists AND v_count < lore_index_from() * lore_index_kept_share() THEN
        IF NOT pg_try_advisory_xact_lock(lore_index_lock()) THEN
            RETURN NULL;
        END IF;
        -- Searches wait behind whoever waits to drop something.
        PERFORM set_config('lock_timeout', '500ms', true);
        DROP INDEX IF EXISTS knowledge_base.document_chunks_nearest;
        RETURN 'dropped';
    END IF;
    IF v_exists OR v_count < lore_index_from() OR NOT lore_index_possible(v_dimensions)
        OR NOT pg_try_advisory_xact_lock(lore_index_lock())
    THEN
        RETURN NULL;
    END IF;
    -- Only other ingests wait behind it, and an ANALYZE or VACUUM before it takes a while.
    PERFORM set_config('lock_timeout', '10s', true);
    -- A graph that does not fit into memory is built on disk, in many times the time.
    PERFORM set_config('maintenance_work_mem', greatest(
        (SELECT s.setting::bigint FROM pg_settings s WHERE s.name = 'maintenance_work_mem'),
        least(2000000, v_count * (2 * v_dimensions + 1200) / 1024)
    )::text || 'kB', true);
    v_statement := format(
        'CREATE INDEX IF NOT EXISTS document_chunks_nearest ON knowledge_base.document_chunks'
        ' USING hnsw ((embedding::halfvec(%s)) halfvec_ip_ops)', v_dimensions
    );
    BEGIN
        EXECUTE v_statement;
    EXCEPTION WHEN insufficient_resources THEN
        -- Workers share the graph in /dev/shm, which containers are given little of.
        PERFORM set_config('max_parallel_maintenance_workers', '0', true);
        EXECUTE v_statement;
    END;
    RETURN 'made';
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END $$;

-- index_next_embedding of migration 0051, which leaves out an index that the next vectors are too
-- long for. The next vectors are put into their index as they are filled in, so that searches are
-- as fast after a change of the model as before.
CREATE OR REPLACE FUNCTION index_next_embedding() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
    v_dimensions integer := (
        SELECT a.atttypmod FROM pg_attribute a
        WHERE a.attrelid = 'knowledge_base.story_events'::regclass AND a.attname = 'next_embedding'
    );
    v_index record;
BEGIN
    FOR v_index IN
        SELECT c.relname, pg_get_indexdef(i.indexrelid) AS definition
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid IN (
            'knowledge_base.story_events'::regclass, 'knowledge_base.document_chunks'::regclass
        ) AND c.relname NOT LIKE 'next\_%'
            AND (c.relname <> 'document_chunks_nearest' OR lore_index_possible(v_dimensions))
            AND pg_get_indexdef(i.indexrelid) ~ '\m(embedding|embedding_model|recipe)\M'
    LOOP
        EXECUTE regexp_replace(
            regexp_replace(
                regexp_replace(
                    v_index.definition, '\m(embedding|embedding_model|recipe)\M', 'next_\1', 'g'
                ),
                '\m(vector|halfvec)\(\d+\)', format('\1(%s)', v_dimensions), 'g'
            ),
            '^(CREATE (?:UNIQUE )?INDEX) \S+ ON',
            format('\1 IF NOT EXISTS %I ON', 'next_' || v_index.relname)
        );
    END LOOP;
END $$;
