-- Who took part lies by name and segment, so that a question that names somebody reads no more
-- events than one that names nobody. What recall answers stays as it was.
--
-- A name in a question adds to what its events score. To know which, recall read every event of the
-- world, 8 ms of 22 in a world of 5,000.

-- As the words of migration 0054: a row for each participant of the events of a segment.
CREATE TABLE story_event_participants (
    world_id uuid NOT NULL REFERENCES worlds,
    -- The name's first 500 characters, which is all of it but in imports made by hand.
    name text COLLATE "C" NOT NULL,
    segment integer NOT NULL,
    -- Places in the segment, from 1, of the events that name it first, and of those that do later.
    first_places smallint[] NOT NULL,
    later_places smallint[] NOT NULL,
    PRIMARY KEY (world_id, name, segment)
);
ALTER TABLE story_event_participants
    ALTER COLUMN name SET STATISTICS 0, ALTER COLUMN first_places SET STATISTICS 0,
    ALTER COLUMN later_places SET STATISTICS 0;
ALTER TABLE story_event_participants ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_world ON story_event_participants USING (world_id = (SELECT current_world()));
-- Who reads events reads their participants, at once: see migration 0051.
DO $$
DECLARE
    v_role regrole;
BEGIN
    FOR v_role IN
        SELECT DISTINCT a.grantee::regrole FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'story_events'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> 0
    LOOP
        EXECUTE format('GRANT SELECT ON story_event_participants TO %s', v_role);
    END LOOP;
END $$;

-- The same length for names that are stored and names that are looked for.
CREATE FUNCTION participant_key(p_name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN left(p_name, 500);

-- Writes the participants of the events after p_from, up to p_until, both ends of segments.
CREATE FUNCTION write_segment_participants(p_world uuid, p_from bigint, p_until bigint) RETURNS void
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    INSERT INTO story_event_participants (world_id, name, segment, first_places, later_places)
    SELECT
        p_world, n.name, n.segment,
        coalesce(array_agg(n.place ORDER BY n.place) FILTER (WHERE n.leads), '{}'),
        coalesce(array_agg(n.place ORDER BY n.place) FILTER (WHERE NOT n.leads), '{}')
    FROM (
        SELECT
            participant_key(u.name) AS name,
            ((e.sequence - 1) / segment_events())::integer AS segment,
            ((e.sequence - 1) % segment_events() + 1)::smallint AS place,
            bool_or(u.position = 1) AS leads
        FROM story_events e CROSS JOIN LATERAL unnest(e.participants) WITH ORDINALITY
            AS u (name, position)
        WHERE e.world_id = p_world AND e.sequence > p_from AND e.sequence <= p_until
            AND u.name IS NOT NULL
        GROUP BY participant_key(u.name), e.sequence
    ) n
    GROUP BY n.name, n.segment
$$;

DO $$
DECLARE
    v_world uuid;
    v_segmented bigint;
BEGIN
    FOR v_world, v_segmented IN
        SELECT w.world_id, w.segmented_events FROM worlds w WHERE w.segmented_events > 0
    LOOP
        PERFORM write_segment_participants(v_world, 0, v_segmented);
    END LOOP;
END $$;

-- As in migration 0054, and the participants with the words.
CREATE OR REPLACE FUNCTION write_word_segments(p_world uuid, p_limit integer) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_weighing double precision[] := word_weighing();
    v_count bigint;
    v_done bigint;
BEGIN
    SELECT w.event_count, w.segmented_events INTO v_count, v_done
    FROM worlds w WHERE w.world_id = p_world FOR NO KEY UPDATE;
    FOR v_number IN 1 .. least(p_limit, (v_count - v_done - 1) / segment_events()) LOOP
        INSERT INTO story_event_words (world_id, term, segment, containing, weights)
        SELECT
            p_world, f.term, v_done / segment_events(), count(*) FILTER (WHERE f.own > 0),
            (
                '{' || string_agg(
                    (f.sequence - v_done) || ':'
                        || (f.frequency / (f.frequency + v_weighing[1]))::real,
                    ','
                ) || '}/' || segment_events()
            )::sparsevec
        FROM (
            SELECT
                t.term, t.sequence + n.step AS sequence, sum(t.frequency * n.weight) AS frequency,
                sum(CASE WHEN n.step = 0 THEN t.frequency ELSE 0 END) AS own
            FROM story_event_terms t
            CROSS JOIN unnest(
                ARRAY[0, 1, 2, -1], ARRAY[1, v_weighing[2], v_weighing[3], v_weighing[4]]
            ) AS n (step, weight)
            WHERE t.world_id = p_world
                AND t.sequence BETWEEN v_done - 1 AND v_done + segment_events() + 1
            GROUP BY t.term, t.sequence + n.step
        ) f
        WHERE f.sequence BETWEEN v_done + 1 AND v_done + segment_events()
        GROUP BY f.term;
        PERFORM write_segment_participants(p_world, v_done, v_done + segment_events());
        v_done := v_done + segment_events();
    END LOOP;
    UPDATE worlds w SET segmented_events = v_done
    WHERE w.world_id = p_world AND w.segmented_events <> v_done;
END $$;

-- As blocks, segments are not copied: those of a copy come of its postings.
CREATE OR REPLACE FUNCTION known_world_tables()
RETURNS TABLE (table_name text, role text, change_kind text, id_column text)
LANGUAGE sql IMMUTABLE
AS $$
    VALUES
        ('story_events', 'content', 'event', 'event_id'),
        ('story_event_terms', 'content', NULL, NULL),
        ('narrative_concepts', 'content', NULL, NULL),
        ('concept_versions', 'content', 'concept', 'concept_id'),
        ('concept_periods', 'content', NULL, NULL),
        ('concept_relationships', 'content', 'relationship', 'relationship_id'),
        ('story_facts', 'content', 'concept', 'fact_id'),
        ('contradictions', 'content', 'concept', 'contradiction_id'),
        ('event_subscriptions', 'subscription', 'subscription', NULL),
        ('requests', 'local', NULL, NULL),
        ('story_event_backlog', 'local', NULL, NULL),
        ('story_event_words', 'local', NULL, NULL),
        ('story_event_participants', 'local', NULL, NULL),
        ('story_event_blocks', 'local', NULL, NULL),
        ('next_story_event_blocks', 'local', NULL, NULL),
        ('world_changes', 'local', NULL, NULL)
$$;

-- The events of a world that matter to a query, best first; every event that passes the filters is
-- weighed, so there are never fewer than p_limit of them where so many pass. For worlds with
-- segments, weighed as these are: see recall_story_events below. What each figure is stands above
-- the function of that name in migration 0010.
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
-- first. The others, a few dozen, are scored by their full vectors and by their postings. Where
-- more blocks or events lie that close than were looked at, more are.
--
-- Filters that blocks do not hold are looked up in the table first, and so is what the times in a
-- query add to events; what names add comes from story_event_participants. With a filter all blocks
-- are looked at.
--
-- Postings are grouped and joined by hash: the planner cannot know how many rows the words of a
-- query match. Estimating a few it would loop over all of them for each event, or sort them several
-- times. So other ways are off, and the rows to give, ten or so, are read in a statement of their
-- own. There each event is looked up by its key: asked for as a list, which is taken for one row,
-- they were found by walking through the world's index by time. Plans are made once for a session;
-- making one costs more than a search in a usual world.
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
    v_now double precision := date_part('epoch', p_as_of);
    v_decay double precision := ln(0.5::double precision) / p_half_life_seconds;
    v_names text[];
    v_terms text[] := '{}';
    v_idf double precision[];
    v_total double precision;
    -- (1 - p_vector_weight) * keyword_share of the events of each segment, rounded; NULL: 0.
    v_words real[];
    -- Of each event by its sequence, which counts from 1 without gaps; NULL where none is boosted.
    v_boosts double precision[];
    v_sequence integer;
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
    IF v_now IS NULL THEN
        SELECT date_part('epoch', e.occur_time) INTO v_now FROM story_events e
        WHERE e.world_id = p_world AND (p_end IS NULL OR e.occur_time < p_end)
        ORDER BY e.occur_time DESC LIMIT 1;
    END IF;
    IF p_vector_weight < 1 THEN
        v_terms := tsvector_to_array(to_tsvector('english', p_query));
    END IF;
    IF p_from IS NOT NULL OR p_months IS NOT NULL THEN
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
    ELSIF p_named IS NOT NULL THEN
        v_names := ARRAY(SELECT participant_key(n.name) FROM unnest(p_named) AS n (name));
        v_boosts := array_fill(0::double precision, ARRAY[p_count::integer]);
        FOR v_sequence IN
            SELECT n.segment * segment_events() + unnest(n.later_places)
            FROM story_event_participants n
            WHERE n.world_id = p_world AND n.name = ANY (v_names)
            UNION ALL
            SELECT e.sequence::integer FROM story_events e
            WHERE e.world_id = p_world AND e.sequence > p_segmented
                AND e.participants && p_named
        LOOP
            v_boosts[v_sequence] := p_participant_boost / 2;
        END LOOP;
        -- Who is named first adds more, so it is noted last.
        FOR v_sequence IN
            SELECT n.segment * segment_events() + unnest(n.first_places)
            FROM story_event_participants n
            WHERE n.world_id = p_world AND n.name = ANY (v_names)
            UNION ALL
            SELECT e.sequence::integer FROM story_events e
            WHERE e.world_id = p_world AND e.sequence > p_segmented
                AND e.participants[1] = ANY (p_named)
        LOOP
            v_boosts[v_sequence] := p_participant_boost;
        END LOOP;
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
        INTO v_words
        FROM generate_series(0, p_segmented / segment_events() - 1) AS s (segment)
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
            WHERE b.world_id = p_world AND b.first_sequence <= p_segmented
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
            WHERE b.world_id = p_world AND b.first_sequence > p_segmented
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
        FROM unnest(v_best) AS b (sequence)
        CROSS JOIN LATERAL (
            SELECT s.* FROM story_events s
            WHERE s.world_id = p_world AND s.sequence = b.sequence
            OFFSET 0 -- or the world's events are read for a join by hash
        ) e
        LEFT JOIN noted n ON n.sequence = e.sequence
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

-- How many events a block holds of such vectors.
CREATE FUNCTION events_per_block_of(p_embedding vector) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN events_per_block(vector_dims(p_embedding));

-- The events of a world that matter to a query, best first: from segments where it has some and
-- they are weighed as this recall does, else from postings. Raises KB001. It has no settings, which
-- would cost small worlds more than the choice does, and so names its schema.
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
            p_recency_weight, p_importance_weight
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
