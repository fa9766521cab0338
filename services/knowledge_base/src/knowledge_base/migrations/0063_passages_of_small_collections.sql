-- A search whose passages are reranked takes two thirds of the time. ranked_passages as it was
-- stays for collections so large that a word may be too frequent to be looked at first, and for
-- searches that leave a section a few places only.
ALTER FUNCTION ranked_passages RENAME TO ranked_passages_of_many;

-- Finds passages by meaning, by words, or both; best first. Ways of reckoning and order are those
-- of search_passages in migration 0011, whose comment explains them. Here each posting is read once,
-- and what a word is worth is counted from what was read.
CREATE FUNCTION ranked_passages(
    p_query text,
    p_embedding vector,
    p_mode text,
    p_collections text[],
    p_limit integer,
    p_per_section integer,
    p_neighbours integer,
    p_vector_weight double precision,
    p_k1 double precision,
    p_b double precision,
    p_frequent_from bigint
) RETURNS TABLE (
    chunk_id bigint, embedding_input_sha256 bytea, collection text, path text, heading_path text[],
    start_line integer, end_line integer, text text, score double precision,
    vector_score double precision, keyword_score double precision, keyword_share double precision,
    text_before text[], text_after text[], concepts text[]
)
LANGUAGE plpgsql STABLE
SET search_path = knowledge_base, public, pg_temp
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_collections text[] := p_collections;
    v_count double precision;
    v_mean_length double precision;
    v_chosen bigint[];
    v_scores double precision[];
    v_cosines double precision[];
    v_bm25 double precision[];
    v_shares double precision[];
BEGIN
    -- A filter that names every collection is none.
    IF NOT EXISTS (
        SELECT FROM lore_statistics s
        WHERE s.chunk_count > 0 AND s.collection <> ALL (p_collections)
    ) THEN
        v_collections := NULL;
    END IF;
    SELECT sum(s.chunk_count), sum(s.term_count)::double precision / nullif(sum(s.chunk_count), 0)
    INTO v_count, v_mean_length
    FROM lore_statistics s
    WHERE v_collections IS NULL OR s.collection = ANY (v_collections);
    IF v_count >= p_frequent_from OR p_per_section < p_limit THEN
        RETURN QUERY SELECT * FROM ranked_passages_of_many(
            p_query, p_embedding, p_mode, v_collections, p_limit, p_per_section, p_neighbours,
            p_vector_weight, p_k1, p_b, p_frequent_from
        );
        RETURN;
    END IF;

    WITH asked AS MATERIALIZED (
        SELECT t.lexeme AS term FROM unnest(to_tsvector('english', p_query)) AS t
        WHERE p_mode <> 'vector'
    ), postings AS MATERIALIZED (
        SELECT
            p.term, p.chunk_id, p.frequency
                / (p.frequency + p_k1 * (1 - p_b + p_b * p.term_count / v_mean_length)) AS weight
        FROM asked a JOIN chunk_terms p ON p.term = a.term
        WHERE v_collections IS NULL OR p.collection = ANY (v_collections)
    ), valued AS MATERIALIZED (
        SELECT a.term, ln(
            1 + (v_count - coalesce(c.containing, 0) + 0.5) / (coalesce(c.containing, 0) + 0.5)
        ) AS idf
        FROM asked a
        LEFT JOIN (
            SELECT p.term, count(*) AS containing FROM postings p GROUP BY p.term
        ) c ON c.term = a.term
    ), legs AS (
        SELECT c.chunk_id, -(c.embedding <#> p_embedding) AS cosine, NULL::double precision AS part
        FROM document_chunks c
        WHERE p_mode <> 'keyword'
            AND (v_collections IS NULL OR c.collection = ANY (v_collections))
        UNION ALL
        SELECT p.chunk_id, NULL, v.idf * p.weight
        FROM valued v JOIN postings p ON p.term = v.term
    ), summed AS (
        SELECT l.chunk_id, max(l.cosine) AS cosine, sum(l.part) AS bm25
        FROM legs l
        GROUP BY l.chunk_id
    ), shared AS (
        SELECT
            s.*,
            coalesce(s.bm25 / (SELECT nullif(sum(v.idf), 0) FROM valued v), 0) AS share
        FROM summed s
    ), chosen AS (
        SELECT
            s.*,
            CASE p_mode
                WHEN 'vector' THEN greatest(0, s.cosine)
                WHEN 'keyword' THEN s.share
                ELSE p_vector_weight * greatest(0, s.cosine) + (1 - p_vector_weight) * s.share
            END AS score
        FROM shared s
        ORDER BY score DESC, s.chunk_id
        LIMIT p_limit
    )
    SELECT
        array_agg(c.chunk_id), array_agg(c.score), array_agg(c.cosine), array_agg(c.bm25),
        array_agg(c.share)
    INTO v_chosen, v_scores, v_cosines, v_bm25, v_shares
    FROM chosen c;

    RETURN QUERY
    WITH spoken_of AS (
        SELECT l.chunk_id, array_agg(l.concept_name ORDER BY l.concept_name) AS concepts
        FROM chunk_concepts l
        WHERE l.chunk_id = ANY (v_chosen)
        GROUP BY l.chunk_id
    )
    SELECT
        c.chunk_id, c.embedding_input_sha256, c.collection, d.path, c.heading_path, c.start_line,
        c.end_line, c.text, r.score, r.cosine, r.bm25, r.share,
        CASE WHEN p_neighbours > 0 THEN ARRAY(
            SELECT n.text FROM document_chunks n
            WHERE n.document_id = c.document_id
                AND n.ordinal BETWEEN c.ordinal - p_neighbours AND c.ordinal - 1
            ORDER BY n.ordinal
        ) ELSE '{}' END,
        CASE WHEN p_neighbours > 0 THEN ARRAY(
            SELECT n.text FROM document_chunks n
            WHERE n.document_id = c.document_id
                AND n.ordinal BETWEEN c.ordinal + 1 AND c.ordinal + p_neighbours
            ORDER BY n.ordinal
        ) ELSE '{}' END,
        coalesce(s.concepts, '{}')
    FROM unnest(v_chosen, v_scores, v_cosines, v_bm25, v_shares) WITH ORDINALITY
        AS r (chunk_id, score, cosine, bm25, share, place)
    JOIN document_chunks c ON c.chunk_id = r.chunk_id
    JOIN narrative_documents d ON d.document_id = c.document_id
    LEFT JOIN spoken_of s ON s.chunk_id = r.chunk_id
    ORDER BY r.place;
END $$;
