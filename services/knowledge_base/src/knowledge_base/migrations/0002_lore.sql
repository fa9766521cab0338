-- Ingest and search of lore.

-- Replaces one document and its chunks, all or nothing, and keeps the statistics true.
-- p_chunks is an array of {heading_path, start_line, end_line, text, search_text}; p_embeddings and
-- p_hashes (of the embedded input) run parallel to it. Returns the number of chunks.
CREATE FUNCTION replace_document(
    p_collection text,
    p_path text,
    p_title text,
    p_front_matter jsonb,
    p_content_sha256 bytea,
    p_recipe text,
    p_now timestamptz,
    p_chunks jsonb,
    p_hashes bytea[],
    p_embeddings vector[]
) RETURNS integer
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_document bigint;
    v_chunks integer := jsonb_array_length(p_chunks);
BEGIN
    PERFORM remove_documents_where(p_collection, ARRAY[p_path]);
    INSERT INTO narrative_documents (
        collection, path, title, front_matter, content_sha256, recipe, chunk_count, ingest_time
    ) VALUES (
        p_collection, p_path, p_title, p_front_matter, p_content_sha256, p_recipe, v_chunks, p_now
    ) RETURNING document_id INTO v_document;

    WITH chunks AS (
        SELECT c.ordinal, c.item, to_tsvector('english', c.item ->> 'search_text') AS terms
        FROM jsonb_array_elements(p_chunks) WITH ORDINALITY AS c (item, ordinal)
    ), lengths AS (
        SELECT c.ordinal, coalesce(sum(cardinality(t.positions)), 0)::integer AS term_count
        FROM chunks c LEFT JOIN LATERAL unnest(c.terms) AS t ON true
        GROUP BY c.ordinal
    ), stored AS (
        INSERT INTO document_chunks (
            document_id, ordinal, collection, heading_path, start_line, end_line, text,
            embedding_input_sha256, recipe, term_count, embedding
        )
        SELECT
            v_document, c.ordinal, p_collection,
            ARRAY(SELECT jsonb_array_elements_text(c.item -> 'heading_path')),
            (c.item ->> 'start_line')::integer, (c.item ->> 'end_line')::integer,
            c.item ->> 'text', p_hashes[c.ordinal], p_recipe, l.term_count, p_embeddings[c.ordinal]
        FROM chunks c JOIN lengths l USING (ordinal)
        RETURNING chunk_id, ordinal, term_count
    ), posted AS (
        INSERT INTO chunk_terms (term, chunk_id, collection, frequency, term_count)
        SELECT t.lexeme, s.chunk_id, p_collection, cardinality(t.positions), s.term_count
        FROM stored s JOIN chunks c USING (ordinal), unnest(c.terms) AS t
    )
    INSERT INTO lore_statistics AS s (collection, chunk_count, term_count)
    SELECT p_collection, count(*), coalesce(sum(term_count), 0) FROM stored
    ON CONFLICT (collection) DO UPDATE SET
        chunk_count = s.chunk_count + excluded.chunk_count,
        term_count = s.term_count + excluded.term_count;
    RETURN v_chunks;
END $$;

-- Removes the documents with these paths and takes them out of the statistics.
CREATE FUNCTION remove_documents_where(p_collection text, p_paths text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    UPDATE lore_statistics s SET
        chunk_count = s.chunk_count - gone.chunk_count,
        term_count = s.term_count - gone.term_count
    FROM (
        SELECT count(*) AS chunk_count, coalesce(sum(c.term_count), 0) AS term_count
        FROM narrative_documents d JOIN document_chunks c USING (document_id)
        WHERE d.collection = p_collection AND d.path = ANY (p_paths)
    ) gone
    WHERE s.collection = p_collection;
    DELETE FROM narrative_documents d WHERE d.collection = p_collection AND d.path = ANY (p_paths);
END $$;

-- Removes the documents of a collection that are not among p_kept; returns their paths.
CREATE FUNCTION remove_missing_documents(p_collection text, p_kept text[])
RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_paths text[];
BEGIN
    SELECT array_agg(d.path ORDER BY d.path) INTO v_paths
    FROM narrative_documents d
    WHERE d.collection = p_collection AND d.path <> ALL (p_kept);
    IF v_paths IS NOT NULL THEN
        PERFORM remove_documents_where(p_collection, v_paths);
        RETURN QUERY SELECT unnest(v_paths);
    END IF;
END $$;

-- Finds chunks by meaning, by words, or both.
--
-- keyword_score is BM25 with Lucene's inverse document frequency, over the stems of the built-in
-- configuration `english`, the query's stems joined by OR; the corpus is what p_collections names.
-- keyword_share is keyword_score over its least upper bound, the sum of the query's idf.
-- score is p_vector_weight * max(0, cosine) + (1 - p_vector_weight) * keyword_share in mode hybrid,
-- and the one term in the other modes. Every chunk is scored: the ranking is exact.
--
-- Words and meaning are stacked and grouped, not joined: the planner cannot know how many rows the
-- words of a query match, and a join estimated as one row loops over all of them.
CREATE FUNCTION search_lore(
    p_query text,
    p_embedding vector,
    p_mode text,
    p_collections text[],
    p_limit integer,
    p_vector_weight double precision,
    p_k1 double precision,
    p_b double precision
) RETURNS TABLE (
    collection text, path text, heading_path text[], start_line integer, end_line integer,
    text text, score double precision, vector_score double precision,
    keyword_score double precision
)
LANGUAGE plpgsql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_count double precision;
    v_mean_length double precision;
BEGIN
    SELECT sum(s.chunk_count), sum(s.term_count)::double precision / nullif(sum(s.chunk_count), 0)
    INTO v_count, v_mean_length
    FROM lore_statistics s
    WHERE p_collections IS NULL OR s.collection = ANY (p_collections);

    RETURN QUERY
    WITH query_terms AS MATERIALIZED (
        SELECT t.lexeme AS term FROM unnest(to_tsvector('english', p_query)) AS t
        WHERE p_mode <> 'vector'
    ), postings AS MATERIALIZED (
        SELECT
            p.term, p.chunk_id, p.frequency, p.term_count,
            count(*) OVER (PARTITION BY p.term) AS containing
        FROM query_terms q JOIN chunk_terms p ON p.term = q.term
        WHERE p_collections IS NULL OR p.collection = ANY (p_collections)
    ), bound AS MATERIALIZED (
        SELECT
            nullif(sum(
                ln(1 + (v_count - coalesce(d.containing, 0) + 0.5)
                    / (coalesce(d.containing, 0) + 0.5))
            ), 0) AS total
        FROM query_terms q
        LEFT JOIN (
            SELECT p.term, max(p.containing) AS containing FROM postings p GROUP BY p.term
        ) d ON d.term = q.term
    ), legs AS (
        SELECT c.chunk_id, -(c.embedding <#> p_embedding) AS cosine, NULL::double precision AS part
        FROM document_chunks c
        WHERE p_mode <> 'keyword'
            AND (p_collections IS NULL OR c.collection = ANY (p_collections))
        UNION ALL
        SELECT
            p.chunk_id, NULL,
            ln(1 + (v_count - p.containing + 0.5) / (p.containing + 0.5)) * p.frequency
                / (p.frequency + p_k1 * (1 - p_b + p_b * p.term_count / v_mean_length))
        FROM postings p
    ), scored AS (
        SELECT l.chunk_id, max(l.cosine) AS cosine, sum(l.part) AS bm25
        FROM legs l
        GROUP BY l.chunk_id
    ), ranked AS (
        SELECT
            s.chunk_id, s.cosine, s.bm25,
            CASE p_mode
                WHEN 'vector' THEN greatest(0, s.cosine)
                WHEN 'keyword' THEN coalesce(s.bm25 / b.total, 0)
                ELSE p_vector_weight * greatest(0, s.cosine)
                    + (1 - p_vector_weight) * coalesce(s.bm25 / b.total, 0)
            END AS score
        FROM scored s CROSS JOIN bound b
        ORDER BY score DESC, s.chunk_id
        LIMIT p_limit
    )
    SELECT
        c.collection, d.path, c.heading_path, c.start_line, c.end_line, c.text,
        r.score, r.cosine, r.bm25
    FROM ranked r
    JOIN document_chunks c ON c.chunk_id = r.chunk_id
    JOIN narrative_documents d ON d.document_id = c.document_id
    ORDER BY r.score DESC, r.chunk_id;
END $$;
