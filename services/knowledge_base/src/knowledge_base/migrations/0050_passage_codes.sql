-- What a reranker keeps of the passages of lore.
--
-- Lore is one for all worlds, and so is this table. Codes are written in the transaction that stores
-- their document and vanish with their passages. A passage without codes was ingested by a version,
-- or under a setting, that keeps none; searches that meet it are not reranked.

CREATE TABLE passage_codes (
    chunk_id bigint NOT NULL REFERENCES document_chunks ON DELETE CASCADE,
    reranker text NOT NULL,
    codes bytea NOT NULL,
    PRIMARY KEY (chunk_id, reranker)
);
-- Numbers without order do not compress; trying costs time at every read and write.
ALTER TABLE passage_codes ALTER COLUMN codes SET STORAGE EXTERNAL;

-- Keeps the codes of a document's passages, in their order. To be called in the transaction that
-- stored the document.
CREATE FUNCTION keep_passage_codes(
    p_collection text, p_path text, p_reranker text, p_codes bytea[]
) RETURNS void
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    INSERT INTO passage_codes (chunk_id, reranker, codes)
    SELECT c.chunk_id, p_reranker, p_codes[c.ordinal]
    FROM narrative_documents d JOIN document_chunks c ON c.document_id = d.document_id
    WHERE d.collection = p_collection AND d.path = p_path
$$;

-- The codes kept for these hashes of embedded text, of passages of this recipe.
CREATE FUNCTION known_passage_codes(p_hashes bytea[], p_recipe text, p_reranker text)
RETURNS TABLE (embedding_input_sha256 bytea, codes bytea)
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT DISTINCT ON (c.embedding_input_sha256) c.embedding_input_sha256, k.codes
    FROM document_chunks c JOIN passage_codes k ON k.chunk_id = c.chunk_id
    WHERE c.embedding_input_sha256 = ANY (p_hashes) AND c.recipe = p_recipe
        AND k.reranker = p_reranker
$$;

-- The service appends codes; they vanish with their passages.
CREATE FUNCTION grant_passage_codes(p_role text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT INSERT ON passage_codes TO %I', p_role);
END $$;
