-- Recall of a world's events: meaning, words with those of the neighbours, who and when the query
-- names, recency and importance. recall_events of migration 0003 stays for the version before.

-- Participants of the world's events whose names hold one of p_words, by its stem. Looks at the
-- latest 50 events with each word, which hold their participants' names among their stems.
CREATE FUNCTION participants_named(p_world uuid, p_words text[]) RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    RETURN QUERY
    SELECT DISTINCT n.name
    FROM unnest(p_words) AS w (word)
    CROSS JOIN LATERAL unnest(to_tsvector('english', w.word)) AS l
    CROSS JOIN LATERAL (
        SELECT t.sequence FROM story_event_terms t
        WHERE t.world_id = p_world AND t.term = l.lexeme
        ORDER BY t.sequence DESC LIMIT 50
    ) AS latest
    JOIN story_events e ON e.world_id = p_world AND e.sequence = latest.sequence
    CROSS JOIN LATERAL unnest(e.participants) AS n (name)
    WHERE l.lexeme = ANY (tsvector_to_array(to_tsvector('english', n.name)))
    ORDER BY n.name;
END $$;

-- The events of a world that matter to a query, best first; every event that passes the filters is
-- scored, so there are never fewer than p_limit of them where so many pass. Raises KB001.
--
-- keyword_share: BM25F (Robertson, Zaragoza & Taylor 2004) over an event and its neighbours: a
--   stem's frequency f is its own plus the weighted ones of the event before, the one before that
--   and the one after, in the order of recording; the sum of idf * f / (f + k1) over the query's
--   stems, over the sum of idf. idf counts events that hold the stem themselves.
-- relevance: p_vector_weight * max(0, cosine) + (1 - p_vector_weight) * keyword_share, plus
--   p_participant_boost when the first participant is one of p_named, half of it when another is;
--   plus p_time_boost when the event falls into one of the p_from/p_until spans or p_months; less
--   p_question_penalty when its text ends as a question; within 0..1.
-- recency: 0.5 ^ (age / half-life), the age counted in story time back from p_as_of or else from
--   the latest event before p_end.
-- score: the weighted mean of relevance, recency and importance; the weights come normalised.
--
-- Words and meaning are joined by hash: the planner cannot know how many rows the words of a query
-- match, and estimating one it would loop over all of them for each event (0.8 s in a world of
-- 5,000). So loops are off, and the rows to give, ten or so, are read in a statement of their own.
-- Plans are made once for a session; making one costs more than a search in a usual world.
CREATE FUNCTION recall_story_events(
    p_world uuid, p_query text, p_embedding vector, p_limit integer,
    p_start timestamptz, p_end timestamptz, p_kinds text[], p_participants text[],
    p_as_of timestamptz, p_as_of_record timestamptz,
    p_named text[], p_from timestamptz[], p_until timestamptz[], p_months integer[],
    p_vector_weight double precision, p_k1 double precision,
    p_before_weight double precision, p_second_before_weight double precision,
    p_after_weight double precision, p_participant_boost double precision,
    p_time_boost double precision, p_question_penalty double precision,
    p_half_life_seconds double precision, p_relevance_weight double precision,
    p_recency_weight double precision, p_importance_weight double precision
) RETURNS TABLE (
    sequence bigint, event_id uuid, text text, kind text, participants text[],
    occur_time timestamptz, record_time timestamptz, importance double precision,
    score double precision, relevance double precision, recency double precision,
    cosine double precision, keyword_share double precision
)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_nestloop = off
AS $$
#variable_conflict use_column
DECLARE
    v_count double precision;
    v_now double precision := date_part('epoch', p_as_of);
    v_decay double precision := ln(0.5::double precision) / p_half_life_seconds;
    v_terms text[] := '{}';
    v_best bigint[];
    v_scores double precision[];
    v_relevances double precision[];
    v_recencies double precision[];
    v_cosines double precision[];
    v_shares double precision[];
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    SELECT w.event_count INTO v_count FROM worlds w WHERE w.world_id = p_world;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such world' USING ERRCODE = 'KB001';
    END IF;
    IF v_now IS NULL THEN
        SELECT date_part('epoch', e.occur_time) INTO v_now FROM story_events e
        WHERE e.world_id = p_world AND (p_end IS NULL OR e.occur_time < p_end)
        ORDER BY e.occur_time DESC LIMIT 1;
    END IF;
    IF p_vector_weight < 1 THEN
        v_terms := tsvector_to_array(to_tsvector('english', p_query));
    END IF;

    -- Stems go by their place in v_terms: numbers are grouped in half the time of texts. A stem and
    -- an event are one number where both are grouped by.
    WITH postings AS MATERIALIZED (
        SELECT array_position(v_terms, p.term) AS term, p.sequence, p.frequency
        FROM story_event_terms p
        WHERE p.world_id = p_world AND p.term = ANY (v_terms)
    ), rarity AS MATERIALIZED (
        SELECT p.term, ln(1 + (v_count - count(*) + 0.5) / (count(*) + 0.5)) AS idf
        FROM postings p GROUP BY p.term
    ), bound AS MATERIALIZED (
        SELECT nullif(coalesce(sum(r.idf), 0)
            + (cardinality(v_terms) - count(*)) * ln(1 + (v_count + 0.5) / 0.5), 0) AS total
        FROM rarity r
    ), spread AS (
        SELECT (p.sequence + n.step) * 65536 + p.term AS place, sum(p.frequency * n.weight)
            AS frequency
        FROM postings p
        CROSS JOIN unnest(
            ARRAY[0, 1, 2, -1],
            ARRAY[1, p_before_weight, p_second_before_weight, p_after_weight]
        ) AS n (step, weight)
        WHERE n.weight > 0
        GROUP BY place
    ), keyword AS (
        SELECT s.place / 65536 AS sequence, sum(r.idf * s.frequency / (s.frequency + p_k1))
            / (SELECT b.total FROM bound b) AS share
        FROM spread s JOIN rarity r ON r.term = (s.place % 65536)::integer
        GROUP BY s.place / 65536
    ), legs AS (
        SELECT
            e.sequence, e.importance, coalesce(k.share, 0) AS keyword_share,
            -(e.embedding <#> p_embedding) AS cosine,
            exp(greatest(-700, least(0, (v_now - date_part('epoch', e.occur_time)) * v_decay)))
                AS recency,
            CASE
                WHEN p_named IS NULL THEN 0
                WHEN e.participants[1] = ANY (p_named) THEN p_participant_boost
                WHEN e.participants && p_named THEN p_participant_boost / 2
                ELSE 0
            END
            + CASE WHEN (p_from IS NOT NULL AND EXISTS (
                SELECT FROM unnest(p_from, p_until) AS s (span_start, span_end)
                WHERE e.occur_time >= s.span_start AND e.occur_time < s.span_end
            )) OR (p_months IS NOT NULL
                AND extract(month FROM e.occur_time AT TIME ZONE 'UTC')::integer = ANY (p_months))
            THEN p_time_boost ELSE 0 END
            - CASE WHEN p_question_penalty > 0 AND e.text LIKE '%?'
                THEN p_question_penalty ELSE 0 END AS boost
        FROM story_events e LEFT JOIN keyword k ON k.sequence = e.sequence
        WHERE e.world_id = p_world
            AND (p_start IS NULL OR e.occur_time >= p_start)
            AND (p_end IS NULL OR e.occur_time < p_end)
            AND (p_as_of IS NULL OR e.occur_time <= p_as_of)
            AND (p_as_of_record IS NULL OR e.record_time <= p_as_of_record)
            AND (p_kinds IS NULL OR e.kind = ANY (p_kinds))
            AND (p_participants IS NULL OR e.participants @> p_participants)
        OFFSET 0 -- or each use below computes a cosine of its own
    ), weighed AS (
        SELECT
            l.*, greatest(0, least(1, p_vector_weight * greatest(0, l.cosine)
                + (1 - p_vector_weight) * l.keyword_share + l.boost)) AS relevance
        FROM legs l
        OFFSET 0
    ), ranked AS (
        SELECT
            w.sequence, w.relevance, w.recency, w.cosine, w.keyword_share,
            p_relevance_weight * w.relevance + p_recency_weight * w.recency
                + p_importance_weight * w.importance AS score
        FROM weighed w
        ORDER BY score DESC, w.sequence DESC
        LIMIT p_limit
    )
    SELECT array_agg(r.sequence), array_agg(r.score), array_agg(r.relevance),
        array_agg(r.recency), array_agg(r.cosine), array_agg(r.keyword_share)
    INTO v_best, v_scores, v_relevances, v_recencies, v_cosines, v_shares
    FROM ranked r;

    RETURN QUERY
    SELECT
        e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
        e.importance, r.score, r.relevance, r.recency, r.cosine, r.keyword_share
    FROM story_events e
    JOIN unnest(v_best, v_scores, v_relevances, v_recencies, v_cosines, v_shares)
        AS r (sequence, score, relevance, recency, cosine, keyword_share)
        ON r.sequence = e.sequence
    WHERE e.world_id = p_world AND e.sequence = ANY (v_best)
    ORDER BY r.score DESC, r.sequence DESC;
END $$;

-- The events around others in the order of recording, at most p_steps before and after each; none
-- that happened after p_as_of or was recorded after p_as_of_record.
CREATE FUNCTION events_around(
    p_world uuid, p_sequences bigint[], p_steps integer, p_as_of timestamptz,
    p_as_of_record timestamptz
) RETURNS SETOF story_event_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    RETURN QUERY
    SELECT e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
        e.importance
    FROM story_events e
    WHERE e.world_id = p_world AND e.sequence IN (
        SELECT s.sequence + n.step
        FROM unnest(p_sequences) AS s (sequence), generate_series(-p_steps, p_steps) AS n (step)
    )
        AND (p_as_of IS NULL OR e.occur_time <= p_as_of)
        AND (p_as_of_record IS NULL OR e.record_time <= p_as_of_record)
    ORDER BY e.sequence;
END $$;
