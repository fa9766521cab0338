-- Vectors of a small world are searched in one statement, which looks at the active model as well.
-- What is answered stays as it was.
--
-- Before, a search ran four: the check of the model, the world's setting, its size, and the search
-- itself, which carried each event with its text through the sort. Now the texts and times of those
-- that come first are read in the end, where the sort has found them. A search of 100 events took a
-- busy server 0.38 to 0.44 ms in place of 0.46 to 0.53, the two in turn.

-- The events of a world nearest to a vector that p_model made, nearest first: recall_story_events
-- where nothing but the vectors counts and nothing is filtered, at a fraction of its cost. Raises
-- KB001, KB010. While it runs the model stays active, as with embedded_with (migration 0015).
--
-- A small world is read from the table, where the vectors are as they are. That statement gives
-- nothing where the world is larger or another model is active, which is known before an event is
-- looked at. In a larger one as many as are wanted and some more are sorted by rounded vectors, and
-- those that can come first are compared by their full ones. The nearest n events lie in the n
-- blocks whose nearest ones are nearest. Vectors that point away are as far as each other; of equals
-- the later event comes first.
--
-- The function with four parameters serves the version before this one.
CREATE FUNCTION nearest_story_events(
    p_world uuid, p_embedding vector, p_limit integer, p_half_life_seconds double precision,
    p_model text
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
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    -- Set before any row is read; as an expression it needs no statement of its own.
    v_entered text := set_config('knowledge_base.world_id', p_world::text, true);
    v_active text;
    v_coarse halfvec;
    v_size integer;
    v_sorted integer := p_limit + 10;
    v_nearest bigint[];
    v_distances double precision[];
BEGIN
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
    FROM (
        -- First, as models are locked before events: whoever finishes a change does it so, too.
        SELECT coalesce((
            SELECT m.name = p_model FROM embedding_models m WHERE m.state = 'active'
        ), true) AS is_active
    ) a
    CROSS JOIN LATERAL (
        -- Of the row only its place is kept; within one statement it stays where it is.
        SELECT
            e.ctid AS place, e.sequence,
            greatest(-1, least(0, e.embedding <#> p_embedding)) AS distance
        FROM story_events e
        WHERE e.world_id = p_world AND a.is_active AND NOT EXISTS (
            SELECT FROM story_events l WHERE l.world_id = p_world AND l.sequence = 250
        )
        ORDER BY distance, e.sequence DESC
        LIMIT p_limit
    ) n
    JOIN story_events e ON e.ctid = n.place
    ORDER BY n.distance, n.sequence DESC;
    IF FOUND THEN
        RETURN;
    END IF;

    SELECT m.name INTO v_active FROM embedding_models m WHERE m.state = 'active';
    IF v_active <> p_model THEN
        RAISE EXCEPTION 'another embedding model is active' USING ERRCODE = 'KB010';
    END IF;
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
    IF NOT FOUND THEN
        PERFORM enter_existing_world(p_world);
    END IF;
END $$;
