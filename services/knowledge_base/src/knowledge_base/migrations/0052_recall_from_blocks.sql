-- Recall reads a world's vectors from the blocks of migration 0051, and the events that can come
-- first once more from the table. What it answers stays as it was.

-- The events of a world that matter to a query, best first; every event that passes the filters is
-- scored, so there are never fewer than p_limit of them where so many pass. Raises KB001. What each
-- figure is stands above the function of the same name in migration 0010.
--
-- An event's bound is its score with the rounded vector and without the penalty for questions,
-- whose texts are in the table; events since the last full block come with their full vectors. No
-- event scores more than its bound by more than rounding can do; so events whose bounds are below
-- the p_limit-th best one by more than the penalty and rounding both ways cannot come among the
-- first. The others, a few dozen, are scored by their full vectors. Where more of them than are
-- sorted lie that close, more are sorted.
--
-- Filters that blocks do not hold are looked up in the table first, and so is what the names
-- and times in a query add to events.
--
-- Words and meaning are grouped and joined by hash: the planner cannot know how many rows the words
-- of a query match. Estimating a few it would loop over all of them for each event (0.8 s in a world
-- of 5,000), or sort them several times (twice the time). So other ways are off, and the rows to
-- give, ten or so, are read in a statement of their own. That the spans of time are one condition
-- keeps the estimate of the events above that of the words, or they would be what is hashed, vectors
-- and all. The index is always the better way to a world's rows, however many they are.
-- Plans are made once for a session; making one costs more than a search in a usual world.
CREATE OR REPLACE FUNCTION recall_story_events(
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
SET enable_mergejoin = off
SET enable_sort = off
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    v_coarse halfvec := p_embedding::halfvec;
    v_size integer := events_per_block(vector_dims(p_embedding));
    v_filtered boolean := p_kinds IS NOT NULL OR p_participants IS NOT NULL
        OR p_as_of_record IS NOT NULL;
    v_count double precision;
    v_now double precision := date_part('epoch', p_as_of);
    v_decay double precision := ln(0.5::double precision) / p_half_life_seconds;
    v_terms text[] := '{}';
    v_idf double precision[];
    v_total double precision;
    -- Of each event by its sequence, which counts from 1 without gaps; NULL where none is boosted.
    v_boosts double precision[];
    -- How far below the p_limit-th best bound an event may lie and still come among the first.
    v_margin double precision := p_relevance_weight
        * (greatest(0, p_question_penalty) + 2 * coarse_error() * p_vector_weight);
    v_sorted integer := 3 * p_limit + 30;
    v_complete boolean;
    v_best bigint[];
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
    IF p_named IS NOT NULL OR p_from IS NOT NULL OR p_months IS NOT NULL THEN
        SELECT array_agg(
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
            ORDER BY e.sequence
        ) INTO v_boosts
        FROM story_events e WHERE e.world_id = p_world;
    END IF;

    -- Stems go by their place in v_terms: numbers are grouped in half the time of texts. A stem and
    -- an event are one number where both are grouped by.
    SELECT
        array_agg(ln(1 + (v_count - t.containing + 0.5) / (t.containing + 0.5)) ORDER BY t.place),
        nullif(sum(ln(1 + (v_count - t.containing + 0.5) / (t.containing + 0.5))), 0)
    INTO v_idf, v_total
    FROM (
        SELECT q.place, (
            SELECT count(*) FROM story_event_terms p
            WHERE p.world_id = p_world AND p.term = q.term
        ) AS containing
        FROM unnest(v_terms) WITH ORDINALITY AS q (term, place)
        OFFSET 0
    ) t;
    LOOP
        WITH postings AS MATERIALIZED (
            SELECT p.sequence * 65536 + array_position(v_terms, p.term) AS place, p.frequency
            FROM story_event_terms p
            WHERE p.world_id = p_world AND p.term = ANY (v_terms)
        ), spread AS (
            SELECT p.place + n.step * 65536 AS place, sum(p.frequency * n.weight) AS frequency
            FROM postings p
            CROSS JOIN unnest(
                ARRAY[0, 1, 2, -1],
                ARRAY[1, p_before_weight, p_second_before_weight, p_after_weight]
            ) AS n (step, weight)
            WHERE n.weight > 0
            GROUP BY p.place + n.step * 65536
        ), noted AS (
            SELECT s.place >> 16 AS sequence,
                sum(v_idf[(s.place & 65535)::integer] * s.frequency / (s.frequency + p_k1))
                    / v_total AS share
            FROM spread s
            GROUP BY s.place >> 16
        ), passing AS (
            SELECT f.sequence FROM story_events f
            WHERE v_filtered AND f.world_id = p_world
                AND (p_as_of_record IS NULL OR f.record_time <= p_as_of_record)
                AND (p_kinds IS NULL OR f.kind = ANY (p_kinds))
                AND (p_participants IS NULL OR f.participants @> p_participants)
        ), scored AS (
            SELECT
                b.first_sequence
                    + unnest((ARRAY[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[: v_size]) AS sequence,
                unnest(b.occur_times) AS occur_time, unnest(b.importances) AS importance,
                unnest((ARRAY[
                    b.e1 <#> v_coarse, b.e2 <#> v_coarse, b.e3 <#> v_coarse, b.e4 <#> v_coarse,
                    b.e5 <#> v_coarse, b.e6 <#> v_coarse, b.e7 <#> v_coarse, b.e8 <#> v_coarse,
                    b.e9 <#> v_coarse, b.e10 <#> v_coarse
                ])[: v_size]) AS distance
            FROM story_event_blocks b WHERE b.world_id = p_world
            UNION ALL
            SELECT e.sequence, e.occur_time, e.importance, e.embedding <#> p_embedding
            FROM story_events e WHERE e.world_id = p_world AND e.sequence >= (
                SELECT coalesce(max(l.first_sequence) + v_size, 1) FROM story_event_blocks l
                WHERE l.world_id = p_world
            )
        ), sorted AS (
            SELECT
                e.sequence, n.share,
                p_relevance_weight * greatest(0, least(1,
                    p_vector_weight * greatest(0, -e.distance)
                    + (1 - p_vector_weight) * coalesce(n.share, 0)
                    + coalesce(v_boosts[e.sequence::integer], 0)
                ))
                + p_recency_weight * exp(greatest(-700, least(0,
                    (v_now - date_part('epoch', e.occur_time)) * v_decay)))
                + p_importance_weight * e.importance AS bound
            FROM scored e LEFT JOIN noted n ON n.sequence = e.sequence
            WHERE coalesce(e.occur_time >= p_start AND e.occur_time < p_end
                    AND e.occur_time <= p_as_of, true)
                AND (NOT v_filtered OR e.sequence IN (SELECT f.sequence FROM passing f))
            ORDER BY bound DESC
            LIMIT v_sorted
        ), compared AS (
            SELECT s.*, nth_value(s.bound, p_limit) OVER (
                ORDER BY s.bound DESC ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
            ) - v_margin AS least_bound
            FROM sorted s
        )
        SELECT
            array_agg(c.sequence) FILTER (WHERE c.possible),
            array_agg(c.share) FILTER (WHERE c.possible),
            count(*) < v_sorted OR NOT bool_and(c.possible)
        INTO v_best, v_shares, v_complete
        FROM (SELECT c.*, coalesce(c.bound >= c.least_bound, true) AS possible FROM compared c) c;
        EXIT WHEN v_complete;
        v_sorted := 4 * v_sorted;
    END LOOP;

    RETURN QUERY
    WITH found AS (
        SELECT
            e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
            e.importance, -(e.embedding <#> p_embedding) AS cosine,
            exp(greatest(-700, least(0, (v_now - date_part('epoch', e.occur_time)) * v_decay)))
                AS recency,
            coalesce(r.share, 0) AS share,
            coalesce(v_boosts[e.sequence::integer], 0)
                - CASE WHEN p_question_penalty > 0 AND e.text LIKE '%?'
                    THEN p_question_penalty ELSE 0 END AS boost
        FROM story_events e
        JOIN unnest(v_best, v_shares) AS r (sequence, share) ON r.sequence = e.sequence
        WHERE e.world_id = p_world AND e.sequence = ANY (v_best)
        OFFSET 0
    ), weighed AS (
        SELECT
            f.*, greatest(0, least(1, p_vector_weight * greatest(0, f.cosine)
                + (1 - p_vector_weight) * f.share + f.boost)) AS relevance
        FROM found f
        OFFSET 0
    )
    SELECT
        w.sequence, w.event_id, w.text, w.kind, w.participants, w.occur_time, w.record_time,
        w.importance,
        p_relevance_weight * w.relevance + p_recency_weight * w.recency
            + p_importance_weight * w.importance AS score,
        w.relevance, w.recency, w.cosine, w.share
    FROM weighed w
    ORDER BY score DESC, w.sequence DESC
    LIMIT p_limit;
END $$;

-- The events of a world nearest to a vector, nearest first: recall_story_events where nothing but
-- the vectors counts and nothing is filtered, at a fraction of its cost. Raises KB001.
--
-- A small world is read from the table, where the vectors are as they are. In a larger one as many
-- as are wanted and some more are sorted by rounded vectors, and those that can come first are
-- compared by their full ones. The nearest n events lie in the n blocks whose nearest ones are
-- nearest. Vectors that point away are as far as each other; of equals the later event comes first.
CREATE OR REPLACE FUNCTION nearest_story_events(
    p_world uuid, p_embedding vector, p_limit integer, p_half_life_seconds double precision
) RETURNS TABLE (
    sequence bigint, event_id uuid, text text, kind text, participants text[],
    occur_time timestamptz, record_time timestamptz, importance double precision,
    recency double precision, cosine double precision
)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    v_coarse halfvec;
    v_size integer;
    v_sorted integer := p_limit + 20;
    v_nearest bigint[];
    v_distances double precision[];
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    IF EXISTS (SELECT FROM story_events e WHERE e.world_id = p_world AND e.sequence = 250) THEN
        v_coarse := p_embedding::halfvec;
        v_size := events_per_block(vector_dims(p_embedding));
        LOOP
            SELECT array_agg(n.sequence), array_agg(n.distance) INTO v_nearest, v_distances
            FROM (
                SELECT c.sequence, least(0, c.distance) AS distance
                FROM (
                    SELECT
                        b.first_sequence
                            + unnest((ARRAY[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[: v_size]) AS sequence,
                        unnest((ARRAY[
                            b.d1, b.d2, b.d3, b.d4, b.d5, b.d6, b.d7, b.d8, b.d9, b.d10
                        ])[: v_size]) AS distance
                    FROM (
                        SELECT * FROM (
                            SELECT b.first_sequence,
                                b.e1 <#> v_coarse AS d1, b.e2 <#> v_coarse AS d2,
                                b.e3 <#> v_coarse AS d3, b.e4 <#> v_coarse AS d4,
                                b.e5 <#> v_coarse AS d5, b.e6 <#> v_coarse AS d6,
                                b.e7 <#> v_coarse AS d7, b.e8 <#> v_coarse AS d8,
                                b.e9 <#> v_coarse AS d9, b.e10 <#> v_coarse AS d10
                            FROM story_event_blocks b WHERE b.world_id = p_world
                            OFFSET 0 -- or each use computes a distance of its own
                        ) b
                        ORDER BY least(b.d1, b.d2, b.d3, b.d4, b.d5, b.d6, b.d7, b.d8, b.d9, b.d10)
                        LIMIT v_sorted
                    ) b
                    UNION ALL
                    SELECT e.sequence, e.embedding <#> p_embedding
                    FROM story_events e WHERE e.world_id = p_world AND e.sequence >= (
                        SELECT coalesce(max(l.first_sequence) + v_size, 1) FROM story_event_blocks l
                        WHERE l.world_id = p_world
                    )
                ) c
                ORDER BY distance
                LIMIT v_sorted
            ) n;
            EXIT WHEN v_nearest IS NULL OR cardinality(v_nearest) < v_sorted
                OR v_distances[v_sorted] > v_distances[p_limit] + 2 * coarse_error();
            v_sorted := 4 * v_sorted;
        END LOOP;
        IF cardinality(v_nearest) > p_limit THEN
            v_nearest := v_nearest[
                : width_bucket(v_distances[p_limit] + 2 * coarse_error(), v_distances)
            ];
        END IF;
    END IF;

    -- One statement for both would get one plan for both, which reads the whole world.
    IF v_nearest IS NULL THEN
        RETURN QUERY
        SELECT
            e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
            e.importance,
            exp(greatest(-700, least(0, (
                (
                    SELECT date_part('epoch', l.occur_time) FROM story_events l
                    WHERE l.world_id = p_world ORDER BY l.occur_time DESC LIMIT 1
                ) - date_part('epoch', e.occur_time)
            ) * ln(0.5::double precision) / p_half_life_seconds))),
            -(e.embedding <#> p_embedding)
        FROM story_events e
        WHERE e.world_id = p_world
        ORDER BY greatest(-1, least(0, e.embedding <#> p_embedding)), e.sequence DESC
        LIMIT p_limit;
    ELSE
        RETURN QUERY
        SELECT
            e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
            e.importance,
            exp(greatest(-700, least(0, (
                (
                    SELECT date_part('epoch', l.occur_time) FROM story_events l
                    WHERE l.world_id = p_world ORDER BY l.occur_time DESC LIMIT 1
                ) - date_part('epoch', e.occur_time)
            ) * ln(0.5::double precision) / p_half_life_seconds))),
            -(e.embedding <#> p_embedding)
        FROM unnest(v_nearest) AS n (sequence)
        JOIN story_events e ON e.world_id = p_world AND e.sequence = n.sequence
        ORDER BY greatest(-1, least(0, e.embedding <#> p_embedding)), e.sequence DESC
        LIMIT p_limit;
    END IF;
    IF NOT FOUND THEN
        PERFORM enter_existing_world(p_world);
    END IF;
END $$;
