-- Concepts that documents declare, and which of their passages speak of them.
--
-- Lore is one for all worlds, and so is this table: it names shared concepts, no world's.

CREATE TABLE chunk_concepts (
    chunk_id bigint NOT NULL REFERENCES document_chunks ON DELETE CASCADE,
    concept_name text NOT NULL,
    PRIMARY KEY (chunk_id, concept_name)
);
CREATE INDEX chunk_concepts_name ON chunk_concepts (concept_name, chunk_id);

-- Links a document's passages, by their ordinal from 1, to concepts; both arrays run parallel. To be
-- called in the transaction that stored the document.
CREATE FUNCTION link_concepts(
    p_collection text, p_path text, p_ordinals integer[], p_names text[]
) RETURNS void
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    INSERT INTO chunk_concepts (chunk_id, concept_name)
    SELECT c.chunk_id, link.name
    FROM unnest(p_ordinals, p_names) AS link (ordinal, name)
    JOIN narrative_documents d ON d.collection = p_collection AND d.path = p_path
    JOIN document_chunks c ON c.document_id = d.document_id AND c.ordinal = link.ordinal
    ON CONFLICT DO NOTHING
$$;

-- The concepts that a passage speaks of, by name.
CREATE FUNCTION concepts_of_passage(
    p_collection text, p_path text, p_start_line integer, p_end_line integer, p_text text
) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT coalesce(array_agg(DISTINCT l.concept_name ORDER BY l.concept_name), '{}')
    FROM narrative_documents d
    JOIN document_chunks c ON c.document_id = d.document_id
    JOIN chunk_concepts l ON l.chunk_id = c.chunk_id
    WHERE d.collection = p_collection AND d.path = p_path
        AND c.start_line = p_start_line AND c.end_line = p_end_line AND c.text = p_text
$$;

-- The passages that speak of a concept, in the order of the documents, after the place given.
CREATE FUNCTION concept_passages(
    p_concept text, p_collection text, p_after_path text, p_after_collection text,
    p_after_ordinal integer, p_limit integer
) RETURNS TABLE (
    collection text, path text, ordinal integer, heading_path text[], start_line integer,
    end_line integer, text text, concepts text[]
)
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT d.collection, d.path, c.ordinal, c.heading_path, c.start_line, c.end_line, c.text,
        ARRAY(
            SELECT l.concept_name FROM chunk_concepts l
            WHERE l.chunk_id = c.chunk_id ORDER BY l.concept_name
        )
    FROM chunk_concepts named
    JOIN document_chunks c ON c.chunk_id = named.chunk_id
    JOIN narrative_documents d ON d.document_id = c.document_id
    WHERE named.concept_name = p_concept
        AND (p_collection IS NULL OR d.collection = p_collection)
        AND (d.path, d.collection, c.ordinal) > (p_after_path, p_after_collection, p_after_ordinal)
    ORDER BY d.path, d.collection, c.ordinal
    LIMIT p_limit
$$;

-- One document with the concepts its passages speak of; no row when there is none.
CREATE FUNCTION get_document(p_collection text, p_path text)
RETURNS TABLE (
    collection text, path text, title text, chunk_count integer, ingest_time timestamptz,
    content_sha256 bytea, front_matter jsonb, concepts text[]
)
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT d.collection, d.path, d.title, d.chunk_count, d.ingest_time, d.content_sha256,
        d.front_matter,
        ARRAY(
            SELECT DISTINCT l.concept_name
            FROM document_chunks c JOIN chunk_concepts l ON l.chunk_id = c.chunk_id
            WHERE c.document_id = d.document_id
            ORDER BY l.concept_name
        )
    FROM narrative_documents d
    WHERE d.collection = p_collection AND d.path = p_path
$$;

-- The service appends links; they vanish with their passages.
CREATE FUNCTION grant_declared_concepts(p_role text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT INSERT ON chunk_concepts TO %I', p_role);
END $$;
