-- Which model embedded the vectors, and the change to another one while the service runs.
--
-- The columns named `embedding` hold the active model's vectors. A change adds `next_embedding`
-- beside them; the service fills it in the background; finishing it drops `embedding` and gives the
-- new column its name, in one transaction. `story_event_backlog` and `chunk_backlog` list the rows
-- that still lack the new vector: all at first, then also each row that is added meanwhile.
--
-- Statements that bring a vector say which model made it (embedded_with, all_embedded_with). While
-- such a statement runs its model stays active: it holds a lock that finishing a change waits for.
--
-- What alters tables runs as the owner (SECURITY DEFINER) and builds its statements from numbers
-- and from names in the catalogue, never from a caller's text.
--
-- SQLSTATEs of our own:
--   KB010  another model is active now
--   KB011  a change is in progress
--   KB012  there is no such change
--   KB013  rows still lack the new vector
--   KB014  the model is active already
--   KB015  the stored vectors have another number of dimensions

CREATE TABLE embedding_models (
    name text PRIMARY KEY,
    dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 4096),
    state text NOT NULL CHECK (state IN ('active', 'filling', 'paused', 'retired')),
    start_time timestamptz NOT NULL,
    active_time timestamptz,
    -- Whether the backlogs list every row yet, and how many rows have got their new vector.
    listed boolean NOT NULL DEFAULT false,
    filled_rows bigint NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX embedding_models_active ON embedding_models (state) WHERE state = 'active';
CREATE UNIQUE INDEX embedding_models_change ON embedding_models ((true))
    WHERE state IN ('filling', 'paused');

-- Until now there was one model; what it was called stands beside the vectors.
INSERT INTO embedding_models (name, dimensions, state, start_time, active_time)
SELECT stored.name, 384, 'active', now(), now()
FROM (
    (SELECT e.embedding_model AS name FROM story_events e LIMIT 1)
    UNION ALL
    (SELECT substr(c.recipe, strpos(c.recipe, '/') + 1) FROM document_chunks c LIMIT 1)
) stored
LIMIT 1;

CREATE TABLE story_event_backlog (
    world_id uuid NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (world_id, sequence)
);
ALTER TABLE story_event_backlog ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_world ON story_event_backlog USING (world_id = (SELECT current_world()));

CREATE TABLE chunk_backlog (chunk_id bigint PRIMARY KEY);

-- What a statement's vector was made with -----------------------------------------------------------

-- Returns p_vector when p_model is active, or no model is known yet. Reading the table takes a lock
-- on it until the transaction ends, and finish_embedding_change waits for that. Raises KB010.
CREATE FUNCTION embedded_with(p_model text, p_vector vector) RETURNS vector
LANGUAGE plpgsql VOLATILE
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_active text;
BEGIN
    IF p_vector IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT m.name INTO v_active FROM embedding_models m WHERE m.state = 'active';
    IF v_active <> p_model THEN
        RAISE EXCEPTION 'another embedding model is active' USING ERRCODE = 'KB010';
    END IF;
    RETURN p_vector;
END $$;

-- As embedded_with, for vectors that will be stored; waits while a change is being finished.
-- Raises KB010.
CREATE FUNCTION all_embedded_with(p_model text, p_vectors vector[]) RETURNS vector[]
LANGUAGE plpgsql VOLATILE
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_active text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(embedding_writers_lock());
    SELECT m.name INTO v_active FROM embedding_models m WHERE m.state = 'active';
    IF v_active <> p_model THEN
        RAISE EXCEPTION 'another embedding model is active' USING ERRCODE = 'KB010';
    END IF;
    RETURN p_vectors;
END $$;

-- Held by writers, shared, and by whoever finishes a change.
CREATE FUNCTION embedding_writers_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended('knowledge_base.embedding.writers', 0);

-- Held by whoever fills a batch, so that no two do the same work.
CREATE FUNCTION embedding_filler_lock() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN hashtextextended('knowledge_base.embedding.filler', 0);

-- The model of a database that has none -------------------------------------------------------------

-- Makes p_name the active model when there is none; does nothing when there is one. The columns of
-- an empty database take the model's dimensions. Raises KB015.
CREATE FUNCTION register_embedding_model(p_name text, p_dimensions integer, p_now timestamptz)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM embedding_models m WHERE m.state = 'active') THEN
        RETURN;
    END IF;
    LOCK TABLE embedding_models IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM embedding_models m WHERE m.state = 'active') THEN
        RETURN;
    END IF;
    IF p_dimensions <> embedding_dimensions() THEN
        IF EXISTS (SELECT FROM story_events) OR EXISTS (SELECT FROM document_chunks) THEN
            RAISE EXCEPTION 'the stored vectors have other dimensions' USING ERRCODE = 'KB015';
        END IF;
        PERFORM add_next_embedding(p_name, p_dimensions);
        PERFORM index_next_embedding();
        PERFORM swap_in_next_embedding();
    END IF;
    INSERT INTO embedding_models (name, dimensions, state, start_time, active_time)
    VALUES (p_name, p_dimensions, 'active', p_now, p_now)
    ON CONFLICT (name) DO UPDATE SET
        dimensions = excluded.dimensions, state = 'active', active_time = p_now;
END $$;

-- The length of the active vectors, as the columns are declared.
CREATE FUNCTION embedding_dimensions() RETURNS integer
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT a.atttypmod FROM pg_attribute a
    WHERE a.attrelid = 'knowledge_base.story_events'::regclass AND a.attname = 'embedding';
$$;

-- The columns ------------------------------------------------------------------------------------

-- Adds the columns of the next model and what lists rows that are added from now on. Takes moments:
-- the columns are empty.
CREATE FUNCTION add_next_embedding(p_name text, p_dimensions integer) RETURNS void
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

-- Makes for the next columns the indexes that the active ones have. They are as good as empty, so it
-- takes one reading of each table, which is read but not written to meanwhile. Does nothing twice.
CREATE FUNCTION index_next_embedding() RETURNS void
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

CREATE FUNCTION list_added_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    INSERT INTO story_event_backlog SELECT a.world_id, a.sequence FROM added a
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION list_added_chunks() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    INSERT INTO chunk_backlog SELECT a.chunk_id FROM added a ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- Takes away what add_next_embedding made.
CREATE FUNCTION drop_next_embedding() RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET client_min_messages = warning
AS $$
BEGIN
    DROP TRIGGER IF EXISTS list_unfilled ON story_events;
    DROP TRIGGER IF EXISTS list_unfilled ON document_chunks;
    ALTER TABLE story_events
        DROP COLUMN IF EXISTS next_embedding, DROP COLUMN IF EXISTS next_embedding_model;
    ALTER TABLE document_chunks
        DROP COLUMN IF EXISTS next_embedding, DROP COLUMN IF EXISTS next_recipe;
    DELETE FROM story_event_backlog;
    DELETE FROM chunk_backlog;
END $$;

-- Puts the next columns, with their indexes, in the place of the active ones, which are dropped.
-- That no vector is missing is checked for new rows at once, for old ones by settle_embeddings.
CREATE FUNCTION swap_in_next_embedding() RETURNS void
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
END $$;

-- Declares the swapped-in columns NOT NULL, reading the tables once without hindering anyone; does
-- nothing when that is done, or another session is at it.
CREATE FUNCTION settle_embeddings() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF pg_try_advisory_xact_lock(embedding_filler_lock()) AND EXISTS (
        SELECT FROM pg_constraint c WHERE c.conname = 'embedding_present'
            AND c.conrelid = 'knowledge_base.story_events'::regclass
    ) THEN
        ALTER TABLE story_events VALIDATE CONSTRAINT embedding_present;
        ALTER TABLE document_chunks VALIDATE CONSTRAINT embedding_present;
        ALTER TABLE story_events ALTER COLUMN embedding SET NOT NULL,
            DROP CONSTRAINT embedding_present;
        ALTER TABLE document_chunks ALTER COLUMN embedding SET NOT NULL,
            ALTER COLUMN recipe SET NOT NULL, DROP CONSTRAINT embedding_present;
    END IF;
END $$;
