-- The vectors of a world's events next to each other: an index over half-precision copies of them.
--
-- A game writes the events of its worlds mixed, so in the table a world's vectors lie a page or so
-- each. In the index story_events_coarse_embedding they lie in the order of the world, with the
-- time and importance that a recall weighs, and a search reads it alone: 5,000 events are 640 pages
-- when it is new and 1,000 as a running game fills it, in place of 1,400 to 5,000. Full vectors are
-- read for the few events that can come first; the bound on what rounding changes (coarse_error,
-- migration 0047) keeps searches exact.
--
-- An entry of a B-tree takes at most a third of a page, so there is no such index for vectors of
-- more than 1,280 dimensions. The functions give the same answers without it, from the table.

-- The table is written anew once, which is what makes the column; from then on it is filled by a
-- trigger, since a generated column could be neither added nor renamed while the service runs. It
-- has no declared length: a session's compiled trigger would keep that beyond a change of model.
ALTER TABLE story_events
    ADD COLUMN coarse_embedding halfvec GENERATED ALWAYS AS (embedding::halfvec) STORED;
ALTER TABLE story_events
    ALTER COLUMN coarse_embedding DROP EXPRESSION,
    ALTER COLUMN coarse_embedding SET STATISTICS 0;

CREATE FUNCTION set_coarse_embedding() RETURNS trigger
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    NEW.coarse_embedding := NEW.embedding::halfvec;
    RETURN NEW;
END $$;
CREATE TRIGGER set_coarse_embedding BEFORE INSERT ON story_events
    FOR EACH ROW EXECUTE FUNCTION set_coarse_embedding();

-- Makes the index over the copies of p_vectors where they fit into one.
CREATE FUNCTION index_coarse_embedding(p_index text, p_vectors text, p_copies text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET client_min_messages = warning
AS $$
BEGIN
    IF (
        SELECT a.atttypmod FROM pg_attribute a
        WHERE a.attrelid = 'knowledge_base.story_events'::regclass AND a.attname = p_vectors
    ) <= 1280 THEN
        EXECUTE format(
            'CREATE INDEX IF NOT EXISTS %I ON story_events (world_id, sequence)'
            ' INCLUDE (occur_time, importance, %I)', p_index, p_copies
        );
    END IF;
END $$;

SELECT index_coarse_embedding('story_events_coarse_embedding', 'embedding', 'coarse_embedding');

-- An index is read alone where the table's pages are known to be visible to all, which VACUUM notes.
-- By default it comes after a fifth of the table is new.
ALTER TABLE story_events SET (
    autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05
);
ALTER TABLE story_event_terms SET (
    autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05
);

-- A copy of a world's rows gives the vectors only; the trigger makes the rest.
CREATE OR REPLACE FUNCTION copied_columns(p_table oid) RETURNS TABLE (name text, type oid)
LANGUAGE sql STABLE
AS $$
    SELECT a.attname::text, a.atttypid FROM pg_attribute a
    WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attgenerated = '' AND a.attidentity = ''
        AND a.attname NOT IN ('coarse_embedding', 'next_coarse_embedding')
    ORDER BY a.attnum
$$;

-- The change of the embedding model (migrations 0015 and 0016), with the copies -----------------------

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
        ' ADD COLUMN next_coarse_embedding halfvec,'
        ' ALTER COLUMN next_coarse_embedding SET STATISTICS 0,'
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
        ) AND c.relname NOT LIKE 'next\_%' AND c.relname <> 'story_events_coarse_embedding'
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
    -- Made by its own rule: vectors may come to fit into an index, or no longer.
    PERFORM index_coarse_embedding(
        'next_story_events_coarse_embedding', 'next_embedding', 'next_coarse_embedding'
    );
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
    ALTER TABLE story_events
        DROP COLUMN embedding, DROP COLUMN coarse_embedding, DROP COLUMN embedding_model;
    ALTER TABLE story_events RENAME COLUMN next_embedding TO embedding;
    ALTER TABLE story_events RENAME COLUMN next_coarse_embedding TO coarse_embedding;
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
END $$;

CREATE OR REPLACE FUNCTION fill_events(
    p_name text, p_worlds uuid[], p_sequences bigint[], p_vectors vector[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM count_filled(p_name, cardinality(p_sequences));
    UPDATE story_events e
    SET next_embedding = f.embedding, next_coarse_embedding = f.embedding::halfvec
    FROM unnest(p_worlds, p_sequences, p_vectors) AS f (world_id, sequence, embedding)
    WHERE e.world_id = f.world_id AND e.sequence = f.sequence;
    DELETE FROM story_event_backlog b
    USING unnest(p_worlds, p_sequences) AS f (world_id, sequence)
    WHERE b.world_id = f.world_id AND b.sequence = f.sequence;
END $$;

-- A change that is in progress while this migration runs goes on.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = 'knowledge_base.story_events'::regclass AND a.attname = 'next_embedding'
    ) THEN
        ALTER TABLE story_events
            ADD COLUMN next_coarse_embedding halfvec,
            ALTER COLUMN next_coarse_embedding SET STATISTICS 0;
        UPDATE story_events e SET next_coarse_embedding = e.next_embedding::halfvec
        WHERE e.next_embedding IS NOT NULL;
        PERFORM index_coarse_embedding(
            'next_story_events_coarse_embedding', 'next_embedding', 'next_coarse_embedding'
        );
    END IF;
END $$;
