-- Searches of much lore by meaning ask its index (migration 0071), and are completed by the words
-- of the query.

-- The passages nearest to a vector as the index tells, at most p_count (1 to 1000), best first but
-- for what rounding to half precision exchanges; with exact cosines. Fewer than p_count where the
-- index does not reach more that the filter lets pass. The index is that of the vector's length, so
-- the statement is made for it.
CREATE FUNCTION nearest_passages(p_embedding vector, p_collections text[], p_count integer)
RETURNS TABLE (chunk_id bigint, cosine double precision)
LANGUAGE plpgsql STABLE
SET search_path = knowledge_base, public, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
BEGIN
    -- Not in the head of the function: an older pgvector knows no such setting. Both end with the
    -- transaction, which is this search's alone.
    PERFORM
        set_config('hnsw.iterative_scan', 'relaxed_order', true),
        set_config(
            'hnsw.ef_search', least(1000, greatest(lore_index_effort(), p_count))::text, true
        );
    RETURN QUERY EXECUTE format(
        'SELECT c.chunk_id, -(c.embedding <#> $1) FROM knowledge_base.document_chunks c'
        ' WHERE $2 IS NULL OR c.collection = ANY ($2)'
        ' ORDER BY c.embedding::halfvec(%1$s) <#> $1::halfvec(%1$s) LIMIT $3',
        vector_dims(p_embedding)
    ) USING p_embedding, p_collections, p_count;
END $$;

-- How many passages the index weighs at least; see docs/decisions, number 24.
CREATE FUNCTION lore_index_effort() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 400;

-- Passages with their cosines, and with what some words add to what is known of their BM25.
CREATE FUNCTION completed_passages(
    p_chunks bigint[], p_bm25 double precision[], p_embedding vector, p_terms text[],
    p_idfs double precision[], p_k1 double precision, p_b double precision,
    p_mean_length double precision
) RETURNS TABLE (chunk_id bigint, cosine double precision, bm25 double precision)
LANGUAGE plpgsql STABLE
SET search_path = knowledge_base, public, pg_temp
SET plan_cache_mode = force_generic_plan
SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT p.chunk_id, e.cosine, CASE WHEN o.bm25 IS NULL THEN p.bm25 ELSE p.bm25 + o.bm25 END
    FROM unnest(p_chunks, p_bm25) AS p (chunk_id, bm25)
    CROSS JOIN LATERAL (
        SELECT -(c.embedding <#> p_embedding) AS cosine FROM document_chunks c
        WHERE c.chunk_id = p.chunk_id
        OFFSET 0
    ) e
    CROSS JOIN LATERAL (
        SELECT sum(t.idf * q.frequency
            / (q.frequency + p_k1 * (1 - p_b + p_b * q.term_count / p_mean_length))) AS bm25
        FROM unnest(p_terms, p_idfs) AS t (term, idf)
        CROSS JOIN LATERAL (
            SELECT q.frequency, q.term_count FROM chunk_terms q
            WHERE q.term = t.term AND q.chunk_id = p.chunk_id
            OFFSET 0
        ) q
    ) o;
END $$;

-- Finds passages by meaning, or by meaning and words, with the index of lore; best first. Ways of
-- reckoning and order are those of search_passages in migration 0011. Returns no row where the
-- index gives too few passages, as under a filter that lets few of the near ones pass.
--
-- The answer is that of weighing every passage, as far as the index knows the nearest ones: those
-- are scored in full. Every other passage is no nearer than the last of them. Words that few
-- passages have are read whole; the others only as far as passages that are not near could come
-- first by them (MaxScore, Turtle & Flood 1995). What has enough of the words then to come first,
-- were it as near as the last one, is scored in full, too.
CREATE FUNCTION ranked_passages_by_index(
    p_query text,
    p_embedding vector,
    p_mode text,
    p_collections text[],
    p_limit integer,
    p_per_section integer,
    p_neighbours integer,
    p_vector_weight double precision,
    p_k1 double precision,
    p_b double precision
) RETURNS TABLE (
    chunk_id bigint, embedding_input_sha256 bytea, collection text, path text, heading_path text[],
    start_line integer, end_line integer, text text, score double precision,
    vector_score double precision, keyword_score double precision, keyword_share double precision,
    text_before text[], text_after text[], concepts text[]
)
LANGUAGE plpgsql STABLE
SET search_path = knowledge_base, public, pg_temp
SET plan_cache_mode = force_generic_plan
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    v_count double precision;
    v_mean_length double precision;
    -- As in ranked_passages_of_many.
    v_pool integer := CASE WHEN p_per_section < p_limit THEN 4 * p_limit + 20 ELSE p_limit END;
    -- Twelve for each place, so that the last of the near ones is worth less than what is looked
    -- for, and the index misses few of those that are; and twice the pool, to cut by section.
    v_wanted integer := least(1000, greatest(lore_index_effort(), 12 * p_limit, 2 * v_pool));
    v_near bigint[];
    v_near_cosines double precision[];
    -- What a passage that is not near can have for its cosine, at most.
    v_farthest double precision;
    -- Passages that have a word from which on it is not read whole at once.
    v_many constant integer := 2000;
    -- Passages beside the near ones that are scored in full, at most.
    v_most constant integer := 2000;
    v_rare text[];
    v_rare_idf double precision[];
    v_other text[];
    v_other_idf double precision[];
    v_total double precision;
    v_vector_weight double precision := CASE p_mode WHEN 'vector' THEN 1 ELSE p_vector_weight END;
    v_word_weight double precision := CASE p_mode WHEN 'vector' THEN 0 ELSE 1 - p_vector_weight END;
    v_chosen bigint[];
    v_scores double precision[];
    v_cosines double precision[];
    v_bm25 double precision[];
    v_shares double precision[];
BEGIN
    IF 2 * v_pool > 1000 THEN
        RETURN;
    END IF;
    SELECT sum(s.chunk_count), sum(s.term_count)::double precision / nullif(sum(s.chunk_count), 0)
    INTO v_count, v_mean_length
    FROM lore_statistics s
    WHERE p_collections IS NULL OR s.collection = ANY (p_collections);
    SELECT array_agg(n.chunk_id), array_agg(n.cosine), min(n.cosine)
    INTO v_near, v_near_cosines, v_farthest
    FROM nearest_passages(p_embedding, p_collections, v_wanted) n;
    IF coalesce(cardinality(v_near), 0) < least(v_wanted, v_count) THEN
        RETURN;
    END IF;

    WITH counted AS (
        SELECT t.lexeme AS term, (
            SELECT count(*) FROM chunk_terms p
            WHERE p.term = t.lexeme
                AND (p_collections IS NULL OR p.collection = ANY (p_collections))
        ) AS containing
        FROM unnest(to_tsvector('english', p_query)) AS t
        WHERE p_mode <> 'vector'
    ), weighted AS (
        SELECT c.term, c.containing, ln(1 + (v_count - c.containing + 0.5) / (c.containing + 0.5))
            AS idf
        FROM counted c
    )
    SELECT
        array_agg(w.term ORDER BY w.term) FILTER (WHERE w.containing < v_many),
        array_agg(w.idf ORDER BY w.term) FILTER (WHERE w.containing < v_many),
        array_agg(w.term ORDER BY w.term) FILTER (WHERE w.containing >= v_many),
        array_agg(w.idf ORDER BY w.term) FILTER (WHERE w.containing >= v_many),
        nullif(sum(w.idf), 0)
    INTO v_rare, v_rare_idf, v_other, v_other_idf, v_total
    FROM weighted w;

    WITH seen AS MATERIALIZED (
        SELECT l.chunk_id, max(l.cosine) AS cosine, sum(l.part) AS bm25
        FROM (
            SELECT n.chunk_id, n.cosine, NULL::double precision AS part
            FROM unnest(v_near, v_near_cosines) AS n (chunk_id, cosine)
            UNION ALL
            SELECT p.chunk_id, NULL, t.idf * p.frequency
                / (p.frequency + p_k1 * (1 - p_b + p_b * p.term_count / v_mean_length))
            FROM unnest(v_rare, v_rare_idf) AS t (term, idf)
            JOIN chunk_terms p ON p.term = t.term
            WHERE p_collections IS NULL OR p.collection = ANY (p_collections)
        ) l
        GROUP BY l.chunk_id
    ), near AS MATERIALIZED (
        SELECT s.chunk_id, s.cosine,
            CASE WHEN o.bm25 IS NULL THEN s.bm25 ELSE coalesce(s.bm25, 0) + o.bm25 END AS bm25
        FROM (SELECT s.* FROM seen s WHERE s.cosine IS NOT NULL OFFSET 0) s
        CROSS JOIN LATERAL (
            SELECT sum(t.idf * q.frequency
                / (q.frequency + p_k1 * (1 - p_b + p_b * q.term_count / v_mean_length))) AS bm25
            FROM unnest(v_other, v_other_idf) AS t (term, idf)
            CROSS JOIN LATERAL (
                SELECT q.frequency, q.term_count FROM chunk_terms q
                WHERE q.term = t.term AND q.chunk_id = s.chunk_id
                OFFSET 0
            ) q
        ) o
    ), near_floor AS MATERIALIZED (
        SELECT v_vector_weight * greatest(0, n.cosine)
            + v_word_weight * coalesce(n.bm25 / v_total, 0) AS score
        FROM near n
        ORDER BY 1 DESC OFFSET v_pool - 1 LIMIT 1
    ), others AS MATERIALIZED (
        -- With all words before it that weigh no more, could this one lift what is not near?
        SELECT t.term, t.idf, v_vector_weight * greatest(0, v_farthest) + v_word_weight / v_total
            * sum(t.idf) OVER (ORDER BY t.idf, t.term) >= f.score - 1e-9 AS is_read
        FROM unnest(v_other, v_other_idf) AS t (term, idf) CROSS JOIN near_floor f
    ), left_out AS MATERIALIZED (
        SELECT coalesce(array_agg(o.term), '{}') AS terms, coalesce(array_agg(o.idf), '{}') AS idfs,
            coalesce(v_word_weight * sum(o.idf) / v_total, 0) AS score
        FROM others o WHERE NOT o.is_read
    ), worded AS MATERIALIZED (
        SELECT s.chunk_id, s.bm25 FROM seen s
        WHERE s.cosine IS NULL AND NOT EXISTS (SELECT FROM others o WHERE o.is_read)
        UNION ALL
        SELECT l.chunk_id, sum(l.bm25)
        FROM (
            SELECT s.chunk_id, s.cosine, s.bm25 FROM seen s
            UNION ALL
            SELECT p.chunk_id, NULL, o.idf * p.frequency
                / (p.frequency + p_k1 * (1 - p_b + p_b * p.term_count / v_mean_length))
            FROM others o JOIN chunk_terms p ON p.term = o.term
            WHERE o.is_read AND (p_collections IS NULL OR p.collection = ANY (p_collections))
        ) l
        WHERE EXISTS (SELECT FROM others o WHERE o.is_read)
        GROUP BY l.chunk_id
        HAVING max(l.cosine) IS NULL
    ), possible AS MATERIALIZED (
        -- Those with most of the words that could come before what is near.
        SELECT w.*, row_number() OVER (ORDER BY w.bm25 DESC, w.chunk_id) AS place
        FROM (
            SELECT w.chunk_id, w.bm25, v_vector_weight * greatest(0, v_farthest)
                + v_word_weight * w.bm25 / v_total + l.score AS most
            FROM left_out l CROSS JOIN worded w
            WHERE v_vector_weight * greatest(0, v_farthest) + v_word_weight * w.bm25 / v_total
                + l.score >= (SELECT f.score FROM near_floor f) - 1e-9
            ORDER BY w.bm25 DESC, w.chunk_id
            LIMIT v_most
        ) w
    ), first_ones AS MATERIALIZED (
        SELECT n.chunk_id, n.cosine, n.bm25 FROM near n
        UNION ALL
        SELECT c.chunk_id, c.cosine, c.bm25
        FROM (
            SELECT array_agg(p.chunk_id) AS chunks, array_agg(p.bm25) AS bm25 FROM possible p
            WHERE p.place <= v_pool
        ) p
        CROSS JOIN left_out l
        CROSS JOIN LATERAL completed_passages(
            p.chunks, p.bm25, p_embedding, l.terms, l.idfs, p_k1, p_b, v_mean_length
        ) c
    ), completed AS (
        SELECT f.chunk_id, f.cosine, f.bm25 FROM first_ones f
        UNION ALL
        -- Then those that could come before the first ones.
        SELECT c.chunk_id, c.cosine, c.bm25
        FROM (
            SELECT array_agg(p.chunk_id) AS chunks, array_agg(p.bm25) AS bm25 FROM possible p
            WHERE p.place > v_pool AND p.most >= (
                SELECT v_vector_weight * greatest(0, f.cosine)
                    + v_word_weight * coalesce(f.bm25 / v_total, 0)
                FROM first_ones f
                ORDER BY 1 DESC OFFSET v_pool - 1 LIMIT 1
            ) - 1e-9
        ) p
        CROSS JOIN left_out l
        CROSS JOIN LATERAL completed_passages(
            p.chunks, p.bm25, p_embedding, l.terms, l.idfs, p_k1, p_b, v_mean_length
        ) c
    ), pool AS (
        SELECT c.chunk_id, c.cosine, c.bm25, coalesce(c.bm25 / v_total, 0) AS share,
            v_vector_weight * greatest(0, c.cosine)
                + v_word_weight * coalesce(c.bm25 / v_total, 0) AS score
        FROM completed c
        ORDER BY score DESC, c.chunk_id
        LIMIT v_pool
    ), placed AS (
        SELECT
            p.*,
            row_number() OVER (
                PARTITION BY c.document_id, c.heading_path ORDER BY p.score DESC, p.chunk_id
            ) > p_per_section AS crowds
        FROM pool p JOIN document_chunks c ON c.chunk_id = p.chunk_id
    ), chosen AS (
        SELECT p.* FROM placed p
        ORDER BY p.crowds, p.score DESC, p.chunk_id
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

-- ranked_passages of migration 0063, which asks the index where there is one.
CREATE OR REPLACE FUNCTION ranked_passages(
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
SET jit = off
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
    IF v_count >= least(p_frequent_from, lore_index_from()) OR p_per_section < p_limit THEN
        IF v_count >= lore_index_from() AND p_mode <> 'keyword' AND lore_index_stands() THEN
            RETURN QUERY SELECT * FROM ranked_passages_by_index(
                p_query, p_embedding, p_mode, v_collections, p_limit, p_per_section, p_neighbours,
                p_vector_weight, p_k1, p_b
            );
            IF FOUND THEN
                RETURN;
            END IF;
        END IF;
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
