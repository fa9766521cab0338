-- A recall that is reranked scores no more events than one that is not: the memories beyond those asked
-- for come as they were found.
--
-- Reranking wants ten more than are given. To be sure of these too, more events were scored and more
-- blocks weighed. But they only have to be good: what is scored to be sure of the first is at hand, and the next best of it are those.

-- recall_from_segments of migration 0064, which serves the version before this one. Of the p_limit
-- events that it gives, the first p_sure are the first of the world; p_sure <= p_limit <= p_sure + 10
-- looks at no more than p_limit = p_sure.
CREATE FUNCTION recall_from_segments(
    p_world uuid, p_count double precision, p_segmented bigint,
    p_query text, p_embedding vector, p_limit integer,
    p_start timestamptz, p_end timestamptz, p_kinds text[], p_participants text[],
    p_as_of timestamptz, p_as_of_record timestamptz,
    p_named text[], p_from timestamptz[], p_until timestamptz[], p_months integer[],
    p_vector_weight double precision, p_k1 double precision,
    p_before_weight double precision, p_second_before_weight double precision,
    p_after_weight double precision, p_participant_boost double precision,
    p_time_boost double precision, p_question_penalty double precision,
    p_half_life_seconds double precision, p_relevance_weight double precision,
    p_recency_weight double precision, p_importance_weight double precision, p_sure integer
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
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    -- An event's inner product with it is that with the query times p_vector_weight.
    v_coarse halfvec := (
        p_embedding
        * array_fill(p_vector_weight::real, ARRAY[vector_dims(p_embedding)])::vector
    )::halfvec;
    v_size integer := events_per_block(vector_dims(p_embedding));
    -- The last event that can begin a block.
    v_full bigint := p_count::bigint - v_size + 1;
    v_filtered boolean := p_kinds IS NOT NULL OR p_participants IS NOT NULL
        OR p_as_of_record IS NOT NULL;
    v_now double precision := date_part('epoch', p_as_of);
    v_decay double precision := ln(0.5::double precision) / p_half_life_seconds;
    v_names text[];
    v_terms text[] := '{}';
    v_idf double precision[];
    v_total double precision;
    -- What names and times in the query add to each event, by its sequence, which counts from 1
    -- without gaps; NULL where they add nothing to any.
    v_boosts double precision[];
    -- By segment and place in it, both from 1, what words, names and times in the query add to the
    -- relevance of each event, rounded.
    v_segments integer := (p_count::integer - 1) / segment_events() + 1;
    v_worth real[];
    v_sequence integer;
    v_segment integer;
    v_place integer;
    v_share double precision;
    v_boost double precision;
    -- By how much an event can score more than its bound.
    v_rounding double precision := p_relevance_weight
        * (coarse_error() * p_vector_weight + segment_error());
    -- How many events are scored at first, and events of how many blocks are weighed.
    v_sorted integer := greatest(p_limit, p_sure + 10);
    -- NULL: all blocks.
    v_blocks integer := CASE
        WHEN NOT v_filtered AND p_start IS NULL AND p_end IS NULL AND p_as_of IS NULL
            THEN p_sure + 24
    END;
    v_best bigint[];
    -- The highest bound that another event can have; NULL: there is none.
    v_rest double precision;
    -- Those and their neighbours.
    v_around bigint[];
BEGIN
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
    SELECT
        array_agg(ln(1 + (p_count - t.containing + 0.5) / (t.containing + 0.5)) ORDER BY t.place),
        nullif(sum(ln(1 + (p_count - t.containing + 0.5) / (t.containing + 0.5))), 0)
    INTO v_idf, v_total
    FROM (
        SELECT q.place, (
            SELECT count(*) FROM story_event_terms p
            WHERE p.world_id = p_world AND p.term = q.term AND p.sequence > p_segmented
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
        INTO v_worth
        FROM generate_series(0, v_segments - 1) AS s (segment)
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
        FOR v_segment, v_place, v_share IN
            WITH postings AS MATERIALIZED (
                SELECT p.sequence * 65536 + array_position(v_terms, p.term) AS place, p.frequency
                FROM story_event_terms p
                WHERE p.world_id = p_world AND p.term = ANY (v_terms)
                    AND p.sequence > p_segmented - 2
            ), spread AS (
                SELECT p.place + n.step * 65536 AS place, sum(p.frequency * n.weight) AS frequency
                FROM postings p
                CROSS JOIN unnest(
                    ARRAY[0, 1, 2, -1],
                    ARRAY[1, p_before_weight, p_second_before_weight, p_after_weight]
                ) AS n (step, weight)
                WHERE n.weight > 0
                GROUP BY p.place + n.step * 65536
            )
            SELECT
                ((s.place >> 16) - 1) / segment_events() + 1,
                ((s.place >> 16) - 1) % segment_events() + 1,
                (1 - p_vector_weight) / v_total
                    * sum(v_idf[(s.place & 65535)::integer] * s.frequency / (s.frequency + p_k1))
            FROM spread s
            WHERE (s.place >> 16) > p_segmented AND (s.place >> 16) <= p_count
            GROUP BY s.place >> 16
        LOOP
            v_worth[v_segment][v_place] := v_share;
        END LOOP;
    ELSE
        v_worth := array_fill(0::real, ARRAY[v_segments, segment_events()]);
    END IF;
    IF p_from IS NOT NULL OR p_months IS NOT NULL THEN
        v_boosts := array_fill(0::double precision, ARRAY[p_count::integer]);
        FOR v_sequence, v_boost IN
            SELECT b.sequence, b.boost
            FROM (
                SELECT
                    e.sequence,
                    CASE
                        WHEN p_named IS NULL THEN 0
                        WHEN e.participants[1] = ANY (p_named) THEN p_participant_boost
                        WHEN e.participants && p_named THEN p_participant_boost / 2
                        ELSE 0
                    END
                    + CASE WHEN (p_from IS NOT NULL AND EXISTS (
                        SELECT FROM unnest(p_from, p_until) AS s (span_start, span_end)
                        WHERE e.occur_time >= s.span_start AND e.occur_time < s.span_end
                    )) OR (p_months IS NOT NULL AND
                        extract(month FROM e.occur_time AT TIME ZONE 'UTC')::integer
                            = ANY (p_months)
                    ) THEN p_time_boost ELSE 0 END AS boost
                FROM story_events e WHERE e.world_id = p_world AND e.sequence <= p_count
                OFFSET 0
            ) b
            WHERE b.boost <> 0
        LOOP
            v_segment := (v_sequence - 1) / segment_events() + 1;
            v_place := (v_sequence - 1) % segment_events() + 1;
            v_worth[v_segment][v_place] := v_worth[v_segment][v_place] + v_boost;
            v_boosts[v_sequence] := v_boost;
        END LOOP;
    ELSIF p_named IS NOT NULL THEN
        v_names := ARRAY(SELECT participant_key(n.name) FROM unnest(p_named) AS n (name));
        v_boosts := array_fill(0::double precision, ARRAY[p_count::integer]);
        -- Who is named first adds more, so it is noted last.
        FOR v_segment, v_place, v_boost IN
            SELECT n.segment + 1, unnest(n.later_places), p_participant_boost / 2
            FROM story_event_participants n
            WHERE n.world_id = p_world AND n.name = ANY (v_names)
            UNION ALL
            SELECT n.segment + 1, unnest(n.first_places), p_participant_boost
            FROM story_event_participants n
            WHERE n.world_id = p_world AND n.name = ANY (v_names)
            UNION ALL
            SELECT
                (e.sequence - 1) / segment_events() + 1, (e.sequence - 1) % segment_events() + 1,
                CASE
                    WHEN e.participants[1] = ANY (p_named) THEN p_participant_boost
                    ELSE p_participant_boost / 2
                END
            FROM story_events e
            WHERE e.world_id = p_world AND e.sequence > p_segmented AND e.sequence <= p_count
                AND e.participants && p_named
        LOOP
            v_sequence := (v_segment - 1) * segment_events() + v_place;
            v_worth[v_segment][v_place] :=
                v_worth[v_segment][v_place] + v_boost - v_boosts[v_sequence];
            v_boosts[v_sequence] := v_boost;
        END LOOP;
    END IF;
    LOOP
        WITH passing AS (
            SELECT f.sequence FROM story_events f
            WHERE v_filtered AND f.world_id = p_world
                AND (p_as_of_record IS NULL OR f.record_time <= p_as_of_record)
                AND (p_kinds IS NULL OR f.kind = ANY (p_kinds))
                AND (p_participants IS NULL OR f.participants @> p_participants)
        ), measured AS (
            SELECT
                b.first_sequence,
                ((b.first_sequence - 1) / segment_events())::integer + 1 AS segment,
                ((b.first_sequence - 1) % segment_events())::integer AS place,
                b.occur_times, b.importances, b.latest_time, b.highest_importance,
                b.e1 <#> v_coarse AS d1, b.e2 <#> v_coarse AS d2, b.e3 <#> v_coarse AS d3,
                b.e4 <#> v_coarse AS d4, b.e5 <#> v_coarse AS d5, b.e6 <#> v_coarse AS d6,
                b.e7 <#> v_coarse AS d7, b.e8 <#> v_coarse AS d8, b.e9 <#> v_coarse AS d9,
                b.e10 <#> v_coarse AS d10
            FROM story_event_blocks b
            WHERE b.world_id = p_world AND b.first_sequence <= v_full
            OFFSET 0 -- or each use computes a distance of its own
        ), closest AS MATERIALIZED (
            SELECT
                b.*,
                p_relevance_weight * least(1, greatest(
                    0,
                    v_worth[b.segment][b.place + 1] - least(0, b.d1),
                    v_worth[b.segment][b.place + 2] - least(0, b.d2),
                    v_worth[b.segment][b.place + 3] - least(0, b.d3),
                    v_worth[b.segment][b.place + 4] - least(0, b.d4),
                    v_worth[b.segment][b.place + 5] - least(0, b.d5),
                    v_worth[b.segment][b.place + 6] - least(0, b.d6),
                    v_worth[b.segment][b.place + 7] - least(0, b.d7),
                    v_worth[b.segment][b.place + 8] - least(0, b.d8),
                    v_worth[b.segment][b.place + 9] - least(0, b.d9),
                    v_worth[b.segment][b.place + 10] - least(0, b.d10)
                ))
                + p_recency_weight * exp(greatest(-700, least(0,
                    (v_now - date_part('epoch', b.latest_time)) * v_decay)))
                + p_importance_weight * b.highest_importance AS block_bound
            FROM measured b
            ORDER BY block_bound DESC
            LIMIT v_blocks
        ), weighed AS (
            SELECT
                b.first_sequence
                    + unnest((ARRAY[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[: v_size]) AS sequence,
                unnest(b.occur_times) AS occur_time, unnest(b.importances) AS importance,
                unnest((ARRAY[
                    b.d1, b.d2, b.d3, b.d4, b.d5, b.d6, b.d7, b.d8, b.d9, b.d10
                ])[: v_size]) AS distance
            FROM closest b
            UNION ALL
            SELECT
                e.sequence, e.occur_time, e.importance,
                p_vector_weight * (e.embedding <#> p_embedding)
            FROM story_events e
            WHERE e.world_id = p_world AND e.sequence <= p_count AND e.sequence >= (
                SELECT coalesce(max(l.first_sequence) + v_size, 1) FROM story_event_blocks l
                WHERE l.world_id = p_world AND l.first_sequence <= v_full
            )
        ), sorted AS (
            SELECT
                e.sequence,
                p_relevance_weight * greatest(0, least(1,
                    v_worth[((e.sequence - 1) / segment_events())::integer + 1]
                        [((e.sequence - 1) % segment_events())::integer + 1]
                    - least(0, e.distance)
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
        )
        SELECT
            array_agg(s.sequence),
            greatest(
                CASE WHEN count(*) = v_sorted THEN min(s.bound) END,
                (SELECT CASE WHEN count(*) = v_blocks THEN min(b.block_bound) END FROM closest b)
            )
        INTO v_best, v_rest
        FROM sorted s;

        SELECT array_agg(DISTINCT b.sequence + n.step ORDER BY b.sequence + n.step) INTO v_around
        FROM unnest(v_best) AS b (sequence), generate_series(-2, 1) AS n (step);
        RETURN QUERY
        WITH postings AS MATERIALIZED (
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
                b.share,
                coalesce(v_boosts[e.sequence::integer], 0)
                    - CASE WHEN p_question_penalty > 0 AND e.text LIKE '%?'
                        THEN p_question_penalty ELSE 0 END AS boost
            FROM (
                SELECT b.sequence, coalesce(n.share, 0) AS share
                FROM unnest(v_best) AS b (sequence) LEFT JOIN noted n ON n.sequence = b.sequence
                OFFSET 0 -- or the postings are grouped once more for each event
            ) b
            CROSS JOIN LATERAL (
                SELECT s.* FROM story_events s
                WHERE s.world_id = p_world AND s.sequence = b.sequence
                OFFSET 0 -- or the world's events are read for a join by hash
            ) e
            OFFSET 0
        ), weighed AS (
            SELECT
                f.*, greatest(0, least(1, p_vector_weight * greatest(0, f.cosine)
                    + (1 - p_vector_weight) * f.share + f.boost)) AS relevance
            FROM found f
            OFFSET 0
        ), first AS MATERIALIZED (
            SELECT
                w.sequence, w.event_id, w.text, w.kind, w.participants, w.occur_time, w.record_time,
                w.importance,
                p_relevance_weight * w.relevance + p_recency_weight * w.recency
                    + p_importance_weight * w.importance AS score,
                w.relevance, w.recency, w.cosine, w.share
            FROM weighed w
            ORDER BY score DESC, w.sequence DESC
            LIMIT p_limit
        )
        SELECT f.* FROM first f
        WHERE v_rest IS NULL
            OR (
                SELECT count(*) = p_sure AND min(t.score) > v_rest + v_rounding
                FROM (SELECT r.score FROM first r ORDER BY r.score DESC LIMIT p_sure) t
            );
        EXIT WHEN FOUND OR v_rest IS NULL;
        v_sorted := 4 * v_sorted;
        v_blocks := 4 * v_blocks;
    END LOOP;
END $$;

-- recall_story_events of migration 0062, which serves the version before this one; the first p_sure
-- events that it gives are the first of the world, whatever p_limit is.
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
    p_recency_weight double precision, p_importance_weight double precision, p_sure integer
) RETURNS TABLE (
    sequence bigint, event_id uuid, text text, kind text, participants text[],
    occur_time timestamptz, record_time timestamptz, importance double precision,
    score double precision, relevance double precision, recency double precision,
    cosine double precision, keyword_share double precision
)
LANGUAGE plpgsql
AS $$
DECLARE
    v_count double precision;
    v_segmented bigint;
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    SELECT w.event_count, w.segmented_events INTO v_count, v_segmented
    FROM knowledge_base.worlds w WHERE w.world_id = p_world;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such world' USING ERRCODE = 'KB001';
    END IF;
    IF v_segmented > 0 AND knowledge_base.events_per_block_of(p_embedding) > 1
        AND knowledge_base.word_weighing()
            = ARRAY[p_k1, p_before_weight, p_second_before_weight, p_after_weight]
    THEN
        RETURN QUERY SELECT * FROM knowledge_base.recall_from_segments(
            p_world, v_count, v_segmented,
            p_query, p_embedding, p_limit, p_start, p_end, p_kinds, p_participants, p_as_of,
            p_as_of_record, p_named, p_from, p_until, p_months, p_vector_weight, p_k1,
            p_before_weight, p_second_before_weight, p_after_weight, p_participant_boost,
            p_time_boost, p_question_penalty, p_half_life_seconds, p_relevance_weight,
            p_recency_weight, p_importance_weight, least(p_sure, p_limit)
        );
    ELSE
        RETURN QUERY SELECT * FROM knowledge_base.recall_from_postings(
            p_world,
            p_query, p_embedding, p_limit, p_start, p_end, p_kinds, p_participants, p_as_of,
            p_as_of_record, p_named, p_from, p_until, p_months, p_vector_weight, p_k1,
            p_before_weight, p_second_before_weight, p_after_weight, p_participant_boost,
            p_time_boost, p_question_penalty, p_half_life_seconds, p_relevance_weight,
            p_recency_weight, p_importance_weight
        );
    END IF;
END $$;
