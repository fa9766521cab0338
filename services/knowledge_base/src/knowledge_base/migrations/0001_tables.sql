-- The tables of the knowledge base.
--
-- Two kinds of rows live here. Lore (documents and their chunks) is one for all worlds. Memory
-- (events, concepts, relationships, request ids) belongs to a world: row-level security shows a
-- session only the rows of the world named by the setting knowledge_base.world_id, and the service
-- connects as a role that neither owns the tables nor bypasses that. The functions of the later
-- migrations set the world and still name it in every predicate, so that indexes are used.
--
-- The all-zero world is the shared one: its concepts are seen from every world.

CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;

-- Which world the present statement works for; NULL when none was named, which matches no row.
CREATE FUNCTION current_world() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('knowledge_base.world_id', true), '')::uuid;

CREATE FUNCTION shared_world() RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '00000000-0000-0000-0000-000000000000'::uuid;

-- Lore ------------------------------------------------------------------------------------------

CREATE TABLE narrative_documents (
    document_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection text NOT NULL,
    path text NOT NULL,
    title text NOT NULL,
    front_matter jsonb NOT NULL,
    content_sha256 bytea NOT NULL CHECK (octet_length(content_sha256) = 32),
    -- Names the way of chunking and the embedding model; a document made another way is made anew.
    recipe text NOT NULL,
    chunk_count integer NOT NULL,
    ingest_time timestamptz NOT NULL,
    UNIQUE (collection, path)
);

CREATE TABLE document_chunks (
    chunk_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    document_id bigint NOT NULL REFERENCES narrative_documents ON DELETE CASCADE,
    ordinal integer NOT NULL,
    collection text NOT NULL,
    heading_path text[] NOT NULL,
    start_line integer NOT NULL CHECK (start_line >= 1),
    end_line integer NOT NULL CHECK (end_line >= start_line),
    text text NOT NULL,
    -- Of what was embedded; a chunk with the same hash and recipe need not be embedded again.
    embedding_input_sha256 bytea NOT NULL,
    recipe text NOT NULL,
    term_count integer NOT NULL,
    embedding vector(384) NOT NULL,
    UNIQUE (document_id, ordinal)
);
-- A search reads every embedding: they stay in the row, the text goes out of line instead.
ALTER TABLE document_chunks ALTER COLUMN embedding SET STORAGE PLAIN;
CREATE INDEX document_chunks_embedding_input ON document_chunks (embedding_input_sha256, recipe);
CREATE INDEX document_chunks_collection ON document_chunks (collection);

-- Which chunk holds which stem how often. The chunk's own length rides along, so that BM25 is
-- computed from this table alone.
CREATE TABLE chunk_terms (
    term text COLLATE "C" NOT NULL,
    chunk_id bigint NOT NULL REFERENCES document_chunks ON DELETE CASCADE,
    collection text NOT NULL,
    frequency integer NOT NULL,
    term_count integer NOT NULL,
    PRIMARY KEY (term, chunk_id)
);
CREATE INDEX chunk_terms_chunk ON chunk_terms (chunk_id);

-- Corpus statistics of BM25 per collection, kept in the transaction that changes the chunks.
CREATE TABLE lore_statistics (
    collection text PRIMARY KEY,
    chunk_count bigint NOT NULL DEFAULT 0,
    term_count bigint NOT NULL DEFAULT 0
);

-- Worlds ----------------------------------------------------------------------------------------

CREATE TABLE worlds (
    world_id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    description text NOT NULL,
    create_time timestamptz NOT NULL,
    -- Also the number given to the last event; and, with the terms, BM25's corpus statistics.
    event_count bigint NOT NULL DEFAULT 0,
    event_term_count bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);

INSERT INTO worlds (world_id, name, description, create_time)
VALUES (shared_world(), '', 'What all worlds share.', '2000-01-01T00:00:00Z');

CREATE TABLE story_events (
    world_id uuid NOT NULL REFERENCES worlds,
    -- Counts the world's events from 1, without gaps.
    sequence bigint NOT NULL,
    event_id uuid NOT NULL,
    text text NOT NULL,
    kind text NOT NULL,
    participants text[] NOT NULL,
    occur_time timestamptz NOT NULL,
    record_time timestamptz NOT NULL,
    importance double precision NOT NULL CHECK (importance BETWEEN 0 AND 1),
    embedding_model text NOT NULL,
    embedding vector(384) NOT NULL,
    PRIMARY KEY (world_id, sequence),
    UNIQUE (world_id, event_id)
);
ALTER TABLE story_events ALTER COLUMN embedding SET STORAGE PLAIN;
CREATE INDEX story_events_occur_time ON story_events (world_id, occur_time, sequence);

CREATE TABLE story_event_terms (
    world_id uuid NOT NULL,
    term text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL,
    frequency integer NOT NULL,
    term_count integer NOT NULL,
    PRIMARY KEY (world_id, term, sequence),
    FOREIGN KEY (world_id, sequence) REFERENCES story_events ON DELETE CASCADE
);
CREATE INDEX story_event_terms_event ON story_event_terms (world_id, sequence);

CREATE TABLE narrative_concepts (
    world_id uuid NOT NULL REFERENCES worlds,
    concept_id uuid NOT NULL,
    name text NOT NULL,
    latest_version integer NOT NULL CHECK (latest_version >= 1),
    PRIMARY KEY (world_id, concept_id),
    UNIQUE (world_id, name)
);

CREATE TABLE concept_versions (
    world_id uuid NOT NULL,
    concept_id uuid NOT NULL,
    version integer NOT NULL CHECK (version >= 1),
    kind text NOT NULL,
    description text NOT NULL,
    attributes jsonb NOT NULL,
    record_time timestamptz NOT NULL,
    PRIMARY KEY (world_id, concept_id, version),
    FOREIGN KEY (world_id, concept_id) REFERENCES narrative_concepts ON DELETE CASCADE
);

-- A world's relationship may join its own concepts and shared ones, never another world's.
CREATE TABLE concept_relationships (
    world_id uuid NOT NULL REFERENCES worlds,
    relationship_id uuid NOT NULL,
    from_world_id uuid NOT NULL,
    from_concept_id uuid NOT NULL,
    to_world_id uuid NOT NULL,
    to_concept_id uuid NOT NULL,
    kind text NOT NULL,
    strength double precision NOT NULL CHECK (strength BETWEEN 0 AND 1),
    record_time timestamptz NOT NULL,
    PRIMARY KEY (world_id, relationship_id),
    UNIQUE (world_id, from_concept_id, to_concept_id, kind),
    CHECK (from_world_id IN (world_id, '00000000-0000-0000-0000-000000000000')),
    CHECK (to_world_id IN (world_id, '00000000-0000-0000-0000-000000000000')),
    FOREIGN KEY (from_world_id, from_concept_id) REFERENCES narrative_concepts ON DELETE CASCADE,
    FOREIGN KEY (to_world_id, to_concept_id) REFERENCES narrative_concepts ON DELETE CASCADE
);
CREATE INDEX concept_relationships_from ON concept_relationships (from_world_id, from_concept_id);
CREATE INDEX concept_relationships_to ON concept_relationships (to_world_id, to_concept_id);

-- What each request id did. A repeat finds its answer here instead of doing it again; requests
-- that belong to no world (making one, shared concepts) are kept under the shared world.
CREATE TABLE requests (
    world_id uuid NOT NULL REFERENCES worlds,
    request_id uuid NOT NULL,
    fingerprint bytea NOT NULL CHECK (octet_length(fingerprint) = 32),
    response jsonb NOT NULL,
    record_time timestamptz NOT NULL,
    PRIMARY KEY (world_id, request_id)
);
CREATE INDEX requests_record_time ON requests (record_time);

-- Isolation -------------------------------------------------------------------------------------
-- The sub-select is evaluated once per statement, not once per row.

ALTER TABLE worlds ENABLE ROW LEVEL SECURITY;
ALTER TABLE story_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE story_event_terms ENABLE ROW LEVEL SECURITY;
ALTER TABLE narrative_concepts ENABLE ROW LEVEL SECURITY;
ALTER TABLE concept_versions ENABLE ROW LEVEL SECURITY;
ALTER TABLE concept_relationships ENABLE ROW LEVEL SECURITY;
ALTER TABLE requests ENABLE ROW LEVEL SECURITY;

CREATE POLICY own_world ON worlds USING (world_id = (SELECT current_world()));
-- The list of worlds crosses worlds; only the functions that list them switch this on.
CREATE POLICY directory ON worlds FOR SELECT
    USING ((SELECT current_setting('knowledge_base.directory', true)) = 'on');

CREATE POLICY own_world ON story_events USING (world_id = (SELECT current_world()));
CREATE POLICY own_world ON story_event_terms USING (world_id = (SELECT current_world()));
CREATE POLICY own_world ON requests USING (world_id = (SELECT current_world()));

CREATE POLICY own_world ON narrative_concepts USING (world_id = (SELECT current_world()));
CREATE POLICY own_world ON concept_versions USING (world_id = (SELECT current_world()));
CREATE POLICY own_world ON concept_relationships USING (world_id = (SELECT current_world()));
-- Shared rows are read from every world, written only by a statement that works for the shared one.
CREATE POLICY shared ON narrative_concepts FOR SELECT
    USING ((SELECT current_world()) IS NOT NULL AND world_id = shared_world());
CREATE POLICY shared ON concept_versions FOR SELECT
    USING ((SELECT current_world()) IS NOT NULL AND world_id = shared_world());
CREATE POLICY shared ON concept_relationships FOR SELECT
    USING ((SELECT current_world()) IS NOT NULL AND world_id = shared_world());
