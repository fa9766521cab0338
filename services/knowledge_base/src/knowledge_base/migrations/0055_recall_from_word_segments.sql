-- Recall adds up the words of older events from the segments of migration 0054. What it answers stays
-- as it was.

-- By how much the rounded sum of an event's words can differ from that of its postings: weights and
-- idf are rounded to single precision, 2^-24 of each, as is the sum after each of the query's stems;
-- the sum is at most 1. A query of 100 stems stays below 0.00001.
CREATE FUNCTION segment_error() RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 0.00005;

-- Recall as it was stays for worlds without segments and for other weighings.
ALTER FUNCTION recall_story_events RENAME TO recall_from_postings;

-- The events of a world that matter to a query, best first; every event that passes the filters is
-- weighed, so there are never fewer than p_limit of them where so many pass. Raises KB001. What each
-- figure is stands above the function of the same name in migration 0010.
--
-- Older events are weighed by the block: the sum of their words is read from v_words, the meaning
-- from the block's vectors. A block's bound is the best relevance among its events with the latest
-- of their times and the highest of their importances. Of the blocks whose bounds are highest, each
-- event is weighed by itself; the latest events, whose words are in no segment, always are.
--
-- An event's bound is its score with the rounded vector, the rounded sum of words and without the
-- penalty for questions, whose texts are in the table. No event scores more than its bound, nor its
-- bound more than that of its block, by more than rounding can do; so events whose bounds are below
-- the p_limit-th best one by more than the penalty and rounding both ways cannot come among the
-- first. The others, a few dozen, are scored by their full vectors and by their postings. Where more
-- blocks or events lie that close than were looked at, more are.
--
-- Filters that blocks do not hold are looked up in the table first, and so is what the names and
-- times in a query add to events. With a filter all blocks are looked at.
--
-- Postings are grouped and joined by hash: the planner cannot know how many rows the words of a
-- query match. Estimating a few it would loop over all of them for each event, or sort them several
-- times. So other ways are off, and the rows to give, ten or so, are read in a statement of their
-- own. Plans are made once for a session; making one costs more than a search in a usual world.
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
    -- The events up to here have their words in segments that are weighed as this recall does.
    v_segmented bigint;
    -- (1 - p_vector_weight) * keyword_share of the events of each segment, rounded; NULL: 0.
    v_words real[];
    -- Of each event by its sequence, which counts from 1 without gaps; NULL where none is boosted.
    v_boosts double precision[];
    -- How far below the p_limit-th best bound an event may lie and still come among the first.
    v_margin double precision := p_relevance_weight
        * (greatest(0, p_question_penalty) + 2 * coarse_error() * p_vector_weight
            + 2 * segment_error());
    v_sorted integer := 3 * p_limit + 30;
    -- NULL: all blocks.
    v_blocks integer := CASE
        WHEN NOT v_filtered AND p_start IS NULL AND p_end IS NULL AND p_as_of IS NULL
            THEN 2 * p_limit + 40
    END;
    v_complete boolean;
    v_best bigint[];
    -- Those and their neighbours.
    v_around bigint[];
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    SELECT
        w.event_count,
        CASE WHEN v_size > 1 AND word_weighing() =
            ARRAY[p_k1, p_before_weight, p_second_before_weight, p_after_weight]
            THEN w.segmented_events ELSE 0 END
    INTO v_count, v_segmented
    FROM worlds w WHERE w.world_id = p_world;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such world' USING ERRCODE = 'KB001';
    END IF;
    IF v_segmented = 0 THEN
        RETURN QUERY SELECT * FROM recall_from_postings(
            p_world, p_query, p_embedding, p_limit, p_start, p_end, p_kinds, p_participants,
            p_as_of, p_as_of_record, p_named, p_from, p_until, p_months, p_vector_weight, p_k1,
            p_before_weight, p_second_before_weight, p_after_weight, p_participant_boost,
            p_time_boost, p_question_penalty, p_half_life_seconds, p_relevance_weight,
            p_recency_weight, p_importance_weight
        );
        RETURN;
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
            WHERE p.world_id = p_world AND p.term = q.term AND p.sequence > v_segmented
        ) + (
            SELECT coalesce(sum(w.containing), 0) FROM story_event_words w
            WHERE w.world_id = p_world AND w.term = q.term
        ) AS containing
        FROM unnest(v_terms) WITH ORDINALITY AS q (term, place)
        OFFSET 0
    ) t;
    IF v_total > 0 THEN
        SELECT array_agg(coalesce(w.words, array_fill(0::real, ARRAY[segment_events()]))
            ORDER BY s.segment)
        INTO v_words
        FROM generate_series(0, v_segmented / segment_events() - 1) AS s (segment)
        LEFT JOIN (
            SELECT w.segment, sum(w.weights::vector * i.share)::real[] AS words
            FROM story_event_words w
            JOIN (
                SELECT q.term, array_fill(
                    ((1 - p_vector_weight) * v_idf[q.place] / v_total)::real,
                    ARRAY[segment_events()]
                )::vector AS share
                FROM unnest(v_terms) WITH ORDINALITY AS q (term, place)
                OFFSET 0
            ) i ON i.term = w.term
            WHERE w.world_id = p_world AND w.term = ANY (v_terms)
            GROUP BY w.segment
        ) w ON w.segment = s.segment;
    END IF;
    LOOP
        WITH postings AS MATERIALIZED (
            SELECT p.sequence * 65536 + array_position(v_terms, p.term) AS place, p.frequency
            FROM story_event_terms p
            WHERE p.world_id = p_world AND p.term = ANY (v_terms)
                AND p.sequence > v_segmented - 2
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
        ), measured AS (
            SELECT
                b.first_sequence, (b.first_sequence - 1)::integer AS first,
                ((b.first_sequence - 1) / segment_events())::integer + 1 AS segment,
                ((b.first_sequence - 1) % segment_events())::integer AS place,
                b.occur_times, b.importances, b.latest_time, b.highest_importance,
                b.e1 <#> v_coarse AS d1, b.e2 <#> v_coarse AS d2, b.e3 <#> v_coarse AS d3,
                b.e4 <#> v_coarse AS d4, b.e5 <#> v_coarse AS d5, b.e6 <#> v_coarse AS d6,
                b.e7 <#> v_coarse AS d7, b.e8 <#> v_coarse AS d8, b.e9 <#> v_coarse AS d9,
                b.e10 <#> v_coarse AS d10
            FROM story_event_blocks b
            WHERE b.world_id = p_world AND b.first_sequence <= v_segmented
            OFFSET 0 -- or each use computes a distance of its own
        ), closest AS MATERIALIZED (
            SELECT
                b.*,
                p_relevance_weight * least(1, greatest(
                    0,
                    p_vector_weight * greatest(0, -b.d1)
                        + coalesce(v_words[b.segment][b.place + 1], 0)
                        + coalesce(v_boosts[b.first + 1], 0),
                    p_vector_weight * greatest(0, -b.d2)
                        + coalesce(v_words[b.segment][b.place + 2], 0)
                        + coalesce(v_boosts[b.first + 2], 0),
                    p_vector_weight * greatest(0, -b.d3)
                        + coalesce(v_words[b.segment][b.place + 3], 0)
                        + coalesce(v_boosts[b.first + 3], 0),
                    p_vector_weight * greatest(0, -b.d4)
                        + coalesce(v_words[b.segment][b.place + 4], 0)
                        + coalesce(v_boosts[b.first + 4], 0),
                    p_vector_weight * greatest(0, -b.d5)
                        + coalesce(v_words[b.segment][b.place + 5], 0)
                        + coalesce(v_boosts[b.first + 5], 0),
                    p_vector_weight * greatest(0, -b.d6)
                        + coalesce(v_words[b.segment][b.place + 6], 0)
                        + coalesce(v_boosts[b.first + 6], 0),
                    p_vector_weight * greatest(0, -b.d7)
                        + coalesce(v_words[b.segment][b.place + 7], 0)
                        + coalesce(v_boosts[b.first + 7], 0),
                    p_vector_weight * greatest(0, -b.d8)
                        + coalesce(v_words[b.segment][b.place + 8], 0)
                        + coalesce(v_boosts[b.first + 8], 0),
                    p_vector_weight * greatest(0, -b.d9)
                        + coalesce(v_words[b.segment][b.place + 9], 0)
                        + coalesce(v_boosts[b.first + 9], 0),
                    p_vector_weight * greatest(0, -b.d10)
                        + coalesce(v_words[b.segment][b.place + 10], 0)
                        + coalesce(v_boosts[b.first + 10], 0)
                ))
                + p_recency_weight * exp(greatest(-700, least(0,
                    (v_now - date_part('epoch', b.latest_time)) * v_decay)))
                + p_importance_weight * b.highest_importance AS block_bound
            FROM measured b
            ORDER BY block_bound DESC
            LIMIT v_blocks
        ), latest AS (
            SELECT
                b.first_sequence
                    + unnest((ARRAY[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[: v_size]) AS sequence,
                unnest(b.occur_times) AS occur_time, unnest(b.importances) AS importance,
                unnest((ARRAY[
                    b.e1 <#> v_coarse, b.e2 <#> v_coarse, b.e3 <#> v_coarse, b.e4 <#> v_coarse,
                    b.e5 <#> v_coarse, b.e6 <#> v_coarse, b.e7 <#> v_coarse, b.e8 <#> v_coarse,
                    b.e9 <#> v_coarse, b.e10 <#> v_coarse
                ])[: v_size]) AS distance
            FROM story_event_blocks b
            WHERE b.world_id = p_world AND b.first_sequence > v_segmented
            UNION ALL
            SELECT e.sequence, e.occur_time, e.importance, e.embedding <#> p_embedding
            FROM story_events e WHERE e.world_id = p_world AND e.sequence >= (
                SELECT coalesce(max(l.first_sequence) + v_size, 1) FROM story_event_blocks l
                WHERE l.world_id = p_world
            )
        ), weighed AS (
            SELECT e.*, (1 - p_vector_weight) * coalesce(n.share, 0) AS words
            FROM latest e LEFT JOIN noted n ON n.sequence = e.sequence
            UNION ALL
            SELECT c.*, coalesce(v_words[((c.sequence - 1) / segment_events())::integer + 1]
                [((c.sequence - 1) % segment_events())::integer + 1], 0)
            FROM (
                SELECT
                    b.first_sequence
                        + unnest((ARRAY[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[: v_size]) AS sequence,
                    unnest(b.occur_times) AS occur_time, unnest(b.importances) AS importance,
                    unnest((ARRAY[
                        b.d1, b.d2, b.d3, b.d4, b.d5, b.d6, b.d7, b.d8, b.d9, b.d10
                    ])[: v_size]) AS distance
                FROM closest b
            ) c
        ), sorted AS (
            SELECT
                e.sequence,
                p_relevance_weight * greatest(0, least(1,
                    p_vector_weight * greatest(0, -e.distance) + e.words
                    + coalesce(v_boosts[e.sequence::integer], 0)
                ))
                + p_recency_weight * exp(greatest(-700, least(0,
                    (v_now - date_part('epoch', e.occur_time)) * v_decay)))
                + p_importance_weight * e.importance AS bound
            FROM weighed e
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
            (count(*) < v_sorted OR NOT bool_and(c.possible)) AND coalesce((
                SELECT v_blocks IS NULL OR count(*) < v_blocks
                    OR min(b.block_bound) < min(c.least_bound)
                FROM closest b
            ), false)
        INTO v_best, v_complete
        FROM (SELECT c.*, coalesce(c.bound >= c.least_bound, true) AS possible FROM compared c) c;
        EXIT WHEN v_complete;
        v_sorted := 4 * v_sorted;
        v_blocks := 4 * v_blocks;
    END LOOP;

    SELECT array_agg(DISTINCT b.sequence + n.step ORDER BY b.sequence + n.step) INTO v_around
    FROM unnest(v_best) AS b (sequence), generate_series(-2, 1) AS n (step);
    RETURN QUERY
    WITH postings AS (
        SELECT p.sequence * 65536 + array_position(v_terms, p.term) AS place, p.frequency
        FROM story_event_terms p
        WHERE p.world_id = p_world AND p.term = ANY (v_terms) AND p.sequence = ANY (v_around)
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
    ), found AS (
        SELECT
            e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
            e.importance, -(e.embedding <#> p_embedding) AS cosine,
            exp(greatest(-700, least(0, (v_now - date_part('epoch', e.occur_time)) * v_decay)))
                AS recency,
            coalesce(n.share, 0) AS share,
            coalesce(v_boosts[e.sequence::integer], 0)
                - CASE WHEN p_question_penalty > 0 AND e.text LIKE '%?'
                    THEN p_question_penalty ELSE 0 END AS boost
        FROM story_events e LEFT JOIN noted n ON n.sequence = e.sequence
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
