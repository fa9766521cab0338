-- A world's vectors ten to a row: blocks of half-precision copies, each a page of its own.
--
-- They take the place of the copies beside each event and of the index over them (migration 0046).
-- A search reads a tenth of the rows, half of the pages (the index lay half empty as a running game
-- fills it), and computes ten distances a row. Recording writes a block with every tenth event and
-- no block twice, so there is nothing to vacuum; events since the last full block are read from the
-- table. A block holds what a recall weighs beside the vectors, times and importances. What
-- answers are is as before: full vectors decide (migration 0052).
--
-- Vectors of which no two fit into a page have no blocks; the table is read then.

-- How many events of vectors of this length a block holds; 1: there are no blocks. A block has ten
-- columns for vectors. A page takes a row of 8,160 bytes, 160 of which are left for the rest. Sizes
-- divide ten, so that a block lies in one segment of words (migration 0054).
CREATE FUNCTION events_per_block(p_dimensions integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN 10 * (2 * p_dimensions + 24) <= 8000 THEN 10
    WHEN 5 * (2 * p_dimensions + 24) <= 8000 THEN 5
    WHEN 2 * (2 * p_dimensions + 24) <= 8000 THEN 2
    ELSE 1
END;

CREATE TABLE story_event_blocks (
    world_id uuid NOT NULL REFERENCES worlds,
    first_sequence bigint NOT NULL,
    e1 halfvec,
    e2 halfvec,
    e3 halfvec,
    e4 halfvec,
    e5 halfvec,
    e6 halfvec,
    e7 halfvec,
    e8 halfvec,
    e9 halfvec,
    e10 halfvec,
    occur_times timestamptz[] NOT NULL,
    importances double precision[] NOT NULL,
    latest_time timestamptz NOT NULL,
    highest_importance double precision NOT NULL,
    PRIMARY KEY (world_id, first_sequence)
);
ALTER TABLE story_event_blocks
    ALTER COLUMN e1 SET STORAGE PLAIN, ALTER COLUMN e1 SET STATISTICS 0,
    ALTER COLUMN e2 SET STORAGE PLAIN, ALTER COLUMN e2 SET STATISTICS 0,
    ALTER COLUMN e3 SET STORAGE PLAIN, ALTER COLUMN e3 SET STATISTICS 0,
    ALTER COLUMN e4 SET STORAGE PLAIN, ALTER COLUMN e4 SET STATISTICS 0,
    ALTER COLUMN e5 SET STORAGE PLAIN, ALTER COLUMN e5 SET STATISTICS 0,
    ALTER COLUMN e6 SET STORAGE PLAIN, ALTER COLUMN e6 SET STATISTICS 0,
    ALTER COLUMN e7 SET STORAGE PLAIN, ALTER COLUMN e7 SET STATISTICS 0,
    ALTER COLUMN e8 SET STORAGE PLAIN, ALTER COLUMN e8 SET STATISTICS 0,
    ALTER COLUMN e9 SET STORAGE PLAIN, ALTER COLUMN e9 SET STATISTICS 0,
    ALTER COLUMN e10 SET STORAGE PLAIN, ALTER COLUMN e10 SET STATISTICS 0,
    ALTER COLUMN occur_times SET STORAGE PLAIN, ALTER COLUMN occur_times SET STATISTICS 0,
    ALTER COLUMN importances SET STORAGE PLAIN, ALTER COLUMN importances SET STATISTICS 0;
-- Those of the next model while a change of model is under way; the two change places in the end.
CREATE TABLE next_story_event_blocks (LIKE story_event_blocks INCLUDING ALL);
ALTER TABLE next_story_event_blocks ADD FOREIGN KEY (world_id) REFERENCES worlds;
ALTER TABLE story_event_blocks ENABLE ROW LEVEL SECURITY;
ALTER TABLE next_story_event_blocks ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_world ON story_event_blocks USING (world_id = (SELECT current_world()));
CREATE POLICY own_world ON next_story_event_blocks USING (world_id = (SELECT current_world()));
-- Who reads events reads blocks, at once: a service at work does not wait for the last migration.
DO $$
DECLARE
    v_role regrole;
BEGIN
    FOR v_role IN
        SELECT DISTINCT a.grantee::regrole FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'story_events'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> 0
    LOOP
        EXECUTE format(
            'GRANT SELECT ON story_event_blocks, next_story_event_blocks TO %s', v_role
        );
    END LOOP;
END $$;

-- The rest of a block's row is what names it; the events come in their order.
CREATE FUNCTION block_of(
    p_vectors halfvec[], p_occur_times timestamptz[], p_importances double precision[]
) RETURNS TABLE (
    e1 halfvec, e2 halfvec, e3 halfvec, e4 halfvec, e5 halfvec,
    e6 halfvec, e7 halfvec, e8 halfvec, e9 halfvec, e10 halfvec,
    occur_times timestamptz[], importances double precision[],
    latest_time timestamptz, highest_importance double precision
)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT
        p_vectors[1], p_vectors[2], p_vectors[3], p_vectors[4], p_vectors[5],
        p_vectors[6], p_vectors[7], p_vectors[8], p_vectors[9], p_vectors[10],
        p_occur_times, p_importances,
        (SELECT max(t) FROM unnest(p_occur_times) t), (SELECT max(i) FROM unnest(p_importances) i)
$$;

-- Writes the blocks that the added events complete, whatever order they come in. Runs as the owner,
-- since nobody else writes blocks.
CREATE FUNCTION write_event_blocks() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    v_size integer := events_per_block((SELECT vector_dims(a.embedding) FROM added a LIMIT 1));
BEGIN
    IF v_size > 1 THEN
        INSERT INTO story_event_blocks
        SELECT f.world_id, f.first_sequence, b.*
        FROM (
            SELECT
                e.world_id, c.first_sequence,
                array_agg(e.embedding::halfvec ORDER BY e.sequence) AS vectors,
                array_agg(e.occur_time ORDER BY e.sequence) AS occur_times,
                array_agg(e.importance ORDER BY e.sequence) AS importances
            FROM (
                SELECT DISTINCT a.world_id, (a.sequence - 1) / v_size * v_size + 1 AS first_sequence
                FROM added a
            ) c
            JOIN story_events e ON e.world_id = c.world_id
                AND e.sequence BETWEEN c.first_sequence AND c.first_sequence + v_size - 1
            GROUP BY e.world_id, c.first_sequence
            HAVING count(*) = v_size
        ) f, block_of(f.vectors, f.occur_times, f.importances) b
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER write_event_blocks AFTER INSERT ON story_events
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION write_event_blocks();

-- Writes the blocks of a world's events that are there already, of the active vectors or the next.
CREATE FUNCTION write_blocks_of_world(
    p_world uuid, p_table text, p_vectors text, p_dimensions integer
) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET enable_seqscan = off
AS $$
BEGIN
    IF events_per_block(p_dimensions) > 1 THEN
        EXECUTE format(
            'INSERT INTO %1$I SELECT $1, f.first_sequence, b.* FROM ('
            ' SELECT (e.sequence - 1) / $2 * $2 + 1 AS first_sequence,'
            ' array_agg(e.%2$I::halfvec ORDER BY e.sequence) AS vectors,'
            ' array_agg(e.occur_time ORDER BY e.sequence) AS occur_times,'
            ' array_agg(e.importance ORDER BY e.sequence) AS importances'
            ' FROM story_events e WHERE e.world_id = $1 GROUP BY (e.sequence - 1) / $2'
            ' HAVING count(e.%2$I) = $2'
            ') f, block_of(f.vectors, f.occur_times, f.importances) b',
            p_table, p_vectors
        ) USING p_world, events_per_block(p_dimensions);
    END IF;
END $$;

DO $$
DECLARE
    v_world uuid;
    v_next integer := (
        SELECT a.atttypmod FROM pg_attribute a
        WHERE a.attrelid = 'knowledge_base.story_events'::regclass AND a.attname = 'next_embedding'
    );
BEGIN
    FOR v_world IN SELECT w.world_id FROM worlds w ORDER BY w.world_id LOOP
        PERFORM write_blocks_of_world(
            v_world, 'story_event_blocks', 'embedding', embedding_dimensions()
        );
        IF v_next IS NOT NULL THEN -- a change that is under way goes on
            PERFORM write_blocks_of_world(
                v_world, 'next_story_event_blocks', 'next_embedding', v_next
            );
        END IF;
    END LOOP;
END $$;
DROP FUNCTION write_blocks_of_world;

-- Blocks are not copied: those of a copy come of its events.
CREATE OR REPLACE FUNCTION known_world_tables()
RETURNS TABLE (table_name text, role text, change_kind text, id_column text)
LANGUAGE sql IMMUTABLE
AS $$
    VALUES
        ('story_events', 'content', 'event', 'event_id'),
        ('story_event_terms', 'content', NULL, NULL),
        ('narrative_concepts', 'content', NULL, NULL),
        ('concept_versions', 'content', 'concept', 'concept_id'),
        ('concept_periods', 'content', NULL, NULL),
        ('concept_relationships', 'content', 'relationship', 'relationship_id'),
        ('story_facts', 'content', 'concept', 'fact_id'),
        ('contradictions', 'content', 'concept', 'contradiction_id'),
        ('event_subscriptions', 'subscription', 'subscription', NULL),
        ('requests', 'local', NULL, NULL),
        ('story_event_backlog', 'local', NULL, NULL),
        ('story_event_blocks', 'local', NULL, NULL),
        ('next_story_event_blocks', 'local', NULL, NULL),
        ('world_changes', 'local', NULL, NULL)
$$;

-- The change of the embedding model (migrations 0015 and 0016), with the blocks ---------------------

CREATE OR REPLACE FUNCTION add_next_embedding(p_name text, p_dimensions integer) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    -- In the row while both vectors fit into a page beside the rest of it, else out of line.
    v_storage text := CASE
        WHEN 4 * (p_dimensions + embedding_dimensions()) <= 7000 THEN 'PLAIN' ELSE 'EXTERNAL'
    END;
BEGIN
    PERFORM drop_next_embedding();
    EXECUTE format(
        'ALTER TABLE story_events ADD COLUMN next_embedding vector(%1$s),'
        ' ALTER COLUMN next_embedding SET STORAGE %2$s,'
        ' ADD COLUMN next_embedding_model text NOT NULL DEFAULT %3$L;'
        'ALTER TABLE document_chunks ADD COLUMN next_embedding vector(%1$s),'
        ' ALTER COLUMN next_embedding SET STORAGE %2$s, ADD COLUMN next_recipe text',
        p_dimensions, v_storage, p_name
    );
    CREATE TRIGGER list_unfilled AFTER INSERT ON story_events
        REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION list_added_events();
    CREATE TRIGGER list_unfilled AFTER INSERT ON document_chunks
        REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION list_added_chunks();
END $$;

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

CREATE OR REPLACE FUNCTION drop_next_embedding() RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET client_min_messages = warning
AS $$
BEGIN
    DROP TRIGGER IF EXISTS list_unfilled ON story_events;
    DROP TRIGGER IF EXISTS list_unfilled ON document_chunks;
    ALTER TABLE story_events
        DROP COLUMN IF EXISTS next_embedding, DROP COLUMN IF EXISTS next_coarse_embedding,
        DROP COLUMN IF EXISTS next_embedding_model;
    TRUNCATE next_story_event_blocks;
    ALTER TABLE document_chunks
        DROP COLUMN IF EXISTS next_embedding, DROP COLUMN IF EXISTS next_recipe;
    DELETE FROM story_event_backlog;
    DELETE FROM chunk_backlog;
END $$;

CREATE OR REPLACE FUNCTION swap_in_next_embedding() RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_index record;
BEGIN
    DROP TRIGGER list_unfilled ON story_events;
    DROP TRIGGER list_unfilled ON document_chunks;
    ALTER TABLE story_events DROP COLUMN embedding, DROP COLUMN embedding_model;
    ALTER TABLE story_events RENAME COLUMN next_embedding TO embedding;
    ALTER TABLE story_events RENAME COLUMN next_embedding_model TO embedding_model;
    -- The default still answers for rows that were there before the column.
    ALTER TABLE story_events ALTER COLUMN embedding_model DROP DEFAULT,
        ADD CONSTRAINT embedding_present CHECK (embedding IS NOT NULL) NOT VALID;
    ALTER TABLE document_chunks DROP COLUMN embedding, DROP COLUMN recipe;
    ALTER TABLE document_chunks RENAME COLUMN next_embedding TO embedding;
    ALTER TABLE document_chunks RENAME COLUMN next_recipe TO recipe;
    ALTER TABLE document_chunks
        ADD CONSTRAINT embedding_present
            CHECK (embedding IS NOT NULL AND recipe IS NOT NULL) NOT VALID;
    FOR v_index IN
        SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid IN (
            'knowledge_base.story_events'::regclass, 'knowledge_base.document_chunks'::regclass
        ) AND c.relname LIKE 'next\_%'
    LOOP
        EXECUTE format('ALTER INDEX %I RENAME TO %I', v_index.relname, substr(v_index.relname, 6));
    END LOOP;
    TRUNCATE story_event_blocks;
    ALTER TABLE story_event_blocks RENAME TO former_story_event_blocks;
    ALTER TABLE next_story_event_blocks RENAME TO story_event_blocks;
    ALTER TABLE former_story_event_blocks RENAME TO next_story_event_blocks;
END $$;

CREATE OR REPLACE FUNCTION fill_events(
    p_name text, p_worlds uuid[], p_sequences bigint[], p_vectors vector[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_seqscan = off
AS $$
DECLARE
    v_size integer := events_per_block(vector_dims(p_vectors[1]));
BEGIN
    PERFORM count_filled(p_name, cardinality(p_sequences));
    UPDATE story_events e SET next_embedding = f.embedding
    FROM unnest(p_worlds, p_sequences, p_vectors) AS f (world_id, sequence, embedding)
    WHERE e.world_id = f.world_id AND e.sequence = f.sequence;
    IF v_size > 1 THEN
        INSERT INTO next_story_event_blocks
        SELECT f.world_id, f.first_sequence, b.*
        FROM (
            SELECT
                e.world_id, c.first_sequence,
                array_agg(e.next_embedding::halfvec ORDER BY e.sequence) AS vectors,
                array_agg(e.occur_time ORDER BY e.sequence) AS occur_times,
                array_agg(e.importance ORDER BY e.sequence) AS importances
            FROM (
                SELECT DISTINCT f.world_id, (f.sequence - 1) / v_size * v_size + 1 AS first_sequence
                FROM unnest(p_worlds, p_sequences) AS f (world_id, sequence)
            ) c
            JOIN story_events e ON e.world_id = c.world_id
                AND e.sequence BETWEEN c.first_sequence AND c.first_sequence + v_size - 1
            GROUP BY e.world_id, c.first_sequence
            HAVING count(e.next_embedding) = v_size
        ) f, block_of(f.vectors, f.occur_times, f.importances) b
        ON CONFLICT DO NOTHING;
    END IF;
    DELETE FROM story_event_backlog b
    USING unnest(p_worlds, p_sequences) AS f (world_id, sequence)
    WHERE b.world_id = f.world_id AND b.sequence = f.sequence;
END $$;
