-- Leaving frequent words out of a search never costs more than reading them. Answers stay as they
-- were. Before, every passage was sorted, and each that could come first was looked up by itself,
-- thousands at times; by words alone the rare ones were read twice.

-- ranked_passages_of_many of migrations 0060 and 0063. Ways of reckoning and order are those of
-- search_passages in migration 0011, whose comment explains them.
CREATE OR REPLACE FUNCTION ranked_passages_of_many(
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
    v_frequent_from double precision;
    -- What is cut to size by section; deep enough that other sections can take the place of one,
    -- which none has to where one may fill all places.
    v_pool integer := CASE WHEN p_per_section < p_limit THEN 4 * p_limit + 20 ELSE p_limit END;
    v_rare text[];
    v_rare_idf double precision[];
    v_frequent text[];
    v_frequent_idf double precision[];
    v_total double precision;
    v_chosen bigint[];
    v_scores double precision[];
    v_cosines double precision[];
    v_bm25 double precision[];
    v_shares double precision[];
    v_open double precision;
    v_frequent_postings double precision;
    -- The most that frequent words, which are left out at first, can add to a score.
    v_left_out double precision;
    -- Postings of a word that are read in the time in which one is looked up.
    v_reads_a_lookup constant integer := 8;
    v_word_weight double precision :=
        CASE p_mode WHEN 'vector' THEN 0 WHEN 'keyword' THEN 1 ELSE 1 - p_vector_weight END;
BEGIN
    -- A filter that names every collection is none, and then the index alone counts a word.
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
    v_frequent_from := greatest(p_frequent_from, v_count / 10);

    WITH counted AS (
        SELECT t.lexeme AS term, (
            SELECT count(*) FROM chunk_terms p
            WHERE p.term = t.lexeme
                AND (v_collections IS NULL OR p.collection = ANY (v_collections))
        ) AS containing
        FROM unnest(to_tsvector('english', p_query)) AS t
        WHERE p_mode <> 'vector'
    ), weighted AS (
        SELECT c.term, c.containing, ln(1 + (v_count - c.containing + 0.5) / (c.containing + 0.5))
            AS idf
        FROM counted c
    )
    SELECT
        array_agg(w.term ORDER BY w.term) FILTER (WHERE w.containing < v_frequent_from),
        array_agg(w.idf ORDER BY w.term) FILTER (WHERE w.containing < v_frequent_from),
        coalesce(array_agg(w.term ORDER BY w.term)
            FILTER (WHERE w.containing >= v_frequent_from), '{}'),
        coalesce(array_agg(w.idf ORDER BY w.term)
            FILTER (WHERE w.containing >= v_frequent_from), '{}'),
        nullif(sum(w.idf), 0),
        coalesce(sum(w.idf) FILTER (WHERE w.containing >= v_frequent_from), 0),
        sum(w.containing) FILTER (WHERE w.containing >= v_frequent_from)
    INTO v_rare, v_rare_idf, v_frequent, v_frequent_idf, v_total, v_open, v_frequent_postings
    FROM weighted w;
    v_left_out := v_word_weight * v_open / v_total;

    WITH legs AS (
        SELECT c.chunk_id, -(c.embedding <#> p_embedding) AS cosine, NULL::double precision AS part
        FROM document_chunks c
        WHERE p_mode <> 'keyword'
            AND (v_collections IS NULL OR c.collection = ANY (v_collections))
        UNION ALL
        SELECT p.chunk_id, NULL, t.idf * p.frequency
            / (p.frequency + p_k1 * (1 - p_b + p_b * p.term_count / v_mean_length))
        FROM unnest(v_rare, v_rare_idf) AS t (term, idf)
        JOIN chunk_terms p ON p.term = t.term
        WHERE v_collections IS NULL OR p.collection = ANY (v_collections)
    ), scored AS (
        SELECT l.chunk_id, max(l.cosine) AS cosine, sum(l.part) AS bm25
        FROM legs l
        GROUP BY l.chunk_id
    ), at_least AS MATERIALIZED (
        SELECT s.*,
            CASE p_mode WHEN 'keyword' THEN 0
                WHEN 'vector' THEN greatest(0, s.cosine)
                ELSE p_vector_weight * greatest(0, s.cosine) END
            + v_word_weight * coalesce(s.bm25 / v_total, 0) AS least_score
        FROM scored s
    ), bound AS MATERIALIZED (
        SELECT coalesce((
            SELECT a.least_score FROM at_least a
            ORDER BY a.least_score DESC OFFSET v_pool - 1 LIMIT 1
        ), 0) AS least_score
        WHERE v_open > 0
    ), possible AS MATERIALIZED (
        -- Where frequent words were left out: what can come first with the whole of them. By words
        -- alone a passage with none but those was not seen; where it could belong in, all counts.
        SELECT a.chunk_id, a.cosine, a.bm25 FROM at_least a
        WHERE v_open > 0 AND a.least_score >= (
            SELECT CASE
                WHEN p_mode = 'keyword' AND b.least_score <= v_left_out THEN 0
                -- The subtrahend keeps rounding from throwing out a passage that ties.
                ELSE b.least_score - v_left_out - 1e-9
            END
            FROM bound b
        )
        UNION ALL
        (
            SELECT a.chunk_id, a.cosine, a.bm25 FROM at_least a
            WHERE v_open = 0
            ORDER BY a.least_score DESC, a.chunk_id
            LIMIT v_pool
        )
    ), way AS MATERIALIZED (
        SELECT CASE
            WHEN p_mode = 'keyword' AND b.least_score <= v_left_out THEN 'all'
            WHEN (SELECT count(*) FROM possible) * cardinality(v_frequent) * v_reads_a_lookup
                < v_frequent_postings THEN 'each'
            ELSE 'whole'
        END AS name
        FROM bound b
    ), left_out AS (
        SELECT q.chunk_id, t.idf * q.saturation AS part
        FROM (SELECT p.chunk_id FROM possible p WHERE (SELECT w.name FROM way w) = 'each' OFFSET 0) p
        CROSS JOIN unnest(v_frequent, v_frequent_idf) AS t (term, idf)
        CROSS JOIN LATERAL (
            SELECT q.chunk_id, q.frequency
                / (q.frequency + p_k1 * (1 - p_b + p_b * q.term_count / v_mean_length)) AS saturation
            FROM chunk_terms q
            WHERE q.term = t.term AND q.chunk_id = p.chunk_id
            OFFSET 0
        ) q
        UNION ALL
        SELECT q.chunk_id, q.part
        FROM (
            SELECT q.chunk_id, t.idf * q.frequency
                / (q.frequency + p_k1 * (1 - p_b + p_b * q.term_count / v_mean_length)) AS part
            FROM unnest(v_frequent, v_frequent_idf) AS t (term, idf)
            JOIN chunk_terms q ON q.term = t.term
            WHERE (SELECT w.name FROM way w) IN ('whole', 'all')
                AND (v_collections IS NULL OR q.collection = ANY (v_collections))
            OFFSET 0
        ) q
        WHERE (SELECT w.name FROM way w) = 'all' OR q.chunk_id IN (SELECT p.chunk_id FROM possible p)
    ), completed AS (
        SELECT l.chunk_id, max(l.cosine) AS cosine, sum(l.bm25) AS bm25
        FROM (
            SELECT p.chunk_id, p.cosine, p.bm25 FROM possible p
            UNION ALL
            SELECT o.chunk_id, NULL, o.part FROM left_out o
        ) l
        GROUP BY l.chunk_id
    ), pool AS (
        SELECT
            c.chunk_id, c.cosine, c.bm25, coalesce(c.bm25 / v_total, 0) AS share,
            CASE p_mode
                WHEN 'vector' THEN greatest(0, c.cosine)
                WHEN 'keyword' THEN coalesce(c.bm25 / v_total, 0)
                ELSE p_vector_weight * greatest(0, c.cosine)
                    + (1 - p_vector_weight) * coalesce(c.bm25 / v_total, 0)
            END AS score
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
