-- search_lore and recall_events as before, in a form whose cost does not hang on row estimates.
--
-- The planner cannot know how many rows the words of a query match. Joined to the rows scored by
-- meaning, their scores were estimated as one row and looped over: 5,000 events with a frequent word
-- took longer than any statement may. Here both are stacked and grouped instead, which is one pass.

CREATE OR REPLACE FUNCTION search_lore(
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

CREATE OR REPLACE FUNCTION recall_events(
    p_world uuid, p_query text, p_embedding vector, p_limit integer,
    p_start timestamptz, p_end timestamptz, p_kinds text[], p_participants text[],
    p_vector_weight double precision, p_k1 double precision, p_b double precision,
    p_half_life_seconds double precision, p_relevance_weight double precision,
    p_recency_weight double precision, p_importance_weight double precision
) RETURNS TABLE (
    sequence bigint, event_id uuid, text text, kind text, participants text[],
    occur_time timestamptz, record_time timestamptz, importance double precision,
    score double precision, relevance double precision, recency double precision
)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_count double precision;
    v_mean_length double precision;
    v_now timestamptz;
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    SELECT w.event_count, w.event_term_count::double precision / nullif(w.event_count, 0)
    INTO v_count, v_mean_length
    FROM worlds w WHERE w.world_id = p_world;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such world' USING ERRCODE = 'KB001';
    END IF;
    SELECT e.occur_time INTO v_now FROM story_events e
    WHERE e.world_id = p_world AND (p_end IS NULL OR e.occur_time < p_end)
    ORDER BY e.occur_time DESC LIMIT 1;

    RETURN QUERY
    WITH query_terms AS MATERIALIZED (
        SELECT t.lexeme AS term FROM unnest(to_tsvector('english', p_query)) AS t
    ), postings AS MATERIALIZED (
        SELECT
            p.term, p.sequence, p.frequency, p.term_count,
            count(*) OVER (PARTITION BY p.term) AS containing
        FROM query_terms q JOIN story_event_terms p ON p.world_id = p_world AND p.term = q.term
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
        SELECT
            e.sequence, e.importance, -(e.embedding <#> p_embedding) AS cosine,
            power(
                0.5::double precision,
                least(1000, extract(epoch FROM v_now - e.occur_time)::double precision
                    / p_half_life_seconds)
            ) AS recency,
            NULL::double precision AS part
        FROM story_events e
        WHERE e.world_id = p_world
            AND (p_start IS NULL OR e.occur_time >= p_start)
            AND (p_end IS NULL OR e.occur_time < p_end)
            AND (p_kinds IS NULL OR e.kind = ANY (p_kinds))
            AND (p_participants IS NULL OR e.participants @> p_participants)
        UNION ALL
        SELECT
            p.sequence, NULL, NULL, NULL,
            ln(1 + (v_count - p.containing + 0.5) / (p.containing + 0.5)) * p.frequency
                / (p.frequency + p_k1 * (1 - p_b + p_b * p.term_count / v_mean_length))
        FROM postings p
    ), scored AS (
        SELECT
            l.sequence, max(l.importance) AS importance, max(l.cosine) AS cosine,
            max(l.recency) AS recency, coalesce(sum(l.part), 0) AS bm25
        FROM legs l
        GROUP BY l.sequence
        HAVING max(l.importance) IS NOT NULL -- else only words matched and the filters did not
    ), weighed AS (
        SELECT
            s.sequence, s.importance, s.recency,
            p_vector_weight * greatest(0, s.cosine)
                + (1 - p_vector_weight) * coalesce(s.bm25 / b.total, 0) AS relevance
        FROM scored s CROSS JOIN bound b
    ), ranked AS (
        SELECT
            w.sequence, w.relevance, w.recency,
            p_relevance_weight * w.relevance + p_recency_weight * w.recency
                + p_importance_weight * w.importance AS score
        FROM weighed w
        ORDER BY score DESC, w.sequence DESC
        LIMIT p_limit
    )
    SELECT
        e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
        e.importance, r.score, r.relevance, r.recency
    FROM ranked r
    JOIN story_events e ON e.world_id = p_world AND e.sequence = r.sequence
    ORDER BY r.score DESC, r.sequence DESC;
END $$;
