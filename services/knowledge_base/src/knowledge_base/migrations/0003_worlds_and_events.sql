-- Worlds, and the memory of what happened in them.
--
-- Errors that callers shall see are raised with SQLSTATEs of our own:
--   KB001  the world does not exist
--   KB002  the request id was used for something else
--   KB003  a world of that name exists
--   KB004  the concept does not exist as this world sees it

-- Makes the rest of the transaction work for p_world only.
CREATE FUNCTION enter_world(p_world uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
END $$;

-- Enters p_world to read it. Raises KB001 when it does not exist.
CREATE FUNCTION enter_existing_world(p_world uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    IF NOT EXISTS (SELECT FROM worlds w WHERE w.world_id = p_world) THEN
        RAISE EXCEPTION 'no such world' USING ERRCODE = 'KB001';
    END IF;
END $$;

-- Enters p_world to write to it, one writer at a time, and returns what a request did before;
-- NULL when the request is new. Raises KB001 and KB002.
CREATE FUNCTION begin_request(p_world uuid, p_request uuid, p_fingerprint bytea) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known requests;
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    PERFORM FROM worlds w WHERE w.world_id = p_world FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such world' USING ERRCODE = 'KB001';
    END IF;
    SELECT * INTO v_known FROM requests r WHERE r.world_id = p_world AND r.request_id = p_request;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF v_known.fingerprint <> p_fingerprint THEN
        RAISE EXCEPTION 'request id used otherwise' USING ERRCODE = 'KB002';
    END IF;
    RETURN v_known.response;
END $$;

-- Makes a world. Raises KB003 when the name is taken, KB002.
CREATE FUNCTION create_world(
    p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_world uuid, p_name text, p_description text
) RETURNS SETOF worlds
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(shared_world(), p_request, p_fingerprint);
BEGIN
    IF v_known IS NULL THEN
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (
            shared_world(), p_request, p_fingerprint, jsonb_build_object('world_id', p_world), p_now
        );
        PERFORM set_config('knowledge_base.world_id', p_world::text, true);
        INSERT INTO worlds (world_id, name, description, create_time)
        VALUES (p_world, p_name, p_description, p_now)
        ON CONFLICT (name) DO NOTHING;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'world name taken' USING ERRCODE = 'KB003';
        END IF;
    ELSE
        PERFORM set_config('knowledge_base.world_id', v_known ->> 'world_id', true);
    END IF;
    RETURN QUERY SELECT w.* FROM worlds w WHERE w.world_id = current_world();
END $$;

-- The world with this id or, when p_world is NULL, of this name.
CREATE FUNCTION get_world(p_world uuid, p_name text) RETURNS SETOF worlds
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.directory', 'on', true);
    RETURN QUERY SELECT w.* FROM worlds w
    WHERE w.world_id <> shared_world()
        AND CASE WHEN p_world IS NULL THEN w.name = p_name ELSE w.world_id = p_world END;
    PERFORM set_config('knowledge_base.directory', '', true);
END $$;

-- Worlds ordered by name, after p_after.
CREATE FUNCTION list_worlds(p_after text, p_limit integer) RETURNS SETOF worlds
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.directory', 'on', true);
    RETURN QUERY SELECT w.* FROM worlds w WHERE w.name > p_after ORDER BY w.name LIMIT p_limit;
    PERFORM set_config('knowledge_base.directory', '', true);
END $$;

-- A story event without its embedding, as the service reads it.
CREATE TYPE story_event_row AS (
    sequence bigint, event_id uuid, text text, kind text, participants text[],
    occur_time timestamptz, record_time timestamptz, importance double precision
);

-- The events first_sequence .. first_sequence + count - 1 that a known request recorded, or no row
-- when the request is new. Lets a repeat skip the embedding. Raises KB001 and KB002.
CREATE FUNCTION recorded_events(p_world uuid, p_request uuid, p_fingerprint bytea)
RETURNS SETOF story_event_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known requests;
BEGIN
    PERFORM enter_existing_world(p_world);
    SELECT * INTO v_known FROM requests r WHERE r.world_id = p_world AND r.request_id = p_request;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_known.fingerprint <> p_fingerprint THEN
        RAISE EXCEPTION 'request id used otherwise' USING ERRCODE = 'KB002';
    END IF;
    RETURN QUERY SELECT * FROM events_between(
        p_world, (v_known.response ->> 'first')::bigint, (v_known.response ->> 'last')::bigint
    );
END $$;

CREATE FUNCTION events_between(p_world uuid, p_first bigint, p_last bigint)
RETURNS SETOF story_event_row
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
        e.importance
    FROM story_events e
    WHERE e.world_id = p_world AND e.sequence BETWEEN p_first AND p_last
    ORDER BY e.sequence;
$$;

-- Appends events to a world's memory, all or none; a repeated request returns what it recorded.
-- p_events is an array of {event_id, text, kind, participants, occur_time, importance, search_text};
-- p_embeddings runs parallel to it. Raises KB001 and KB002.
CREATE FUNCTION record_events(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_events jsonb, p_embedding_model text, p_embeddings vector[]
) RETURNS SETOF story_event_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_count integer := jsonb_array_length(p_events);
    v_first bigint;
BEGIN
    IF v_known IS NOT NULL THEN
        RETURN QUERY SELECT * FROM events_between(
            p_world, (v_known ->> 'first')::bigint, (v_known ->> 'last')::bigint
        );
        RETURN;
    END IF;

    SELECT w.event_count + 1 INTO v_first FROM worlds w WHERE w.world_id = p_world;
    INSERT INTO story_events (
        world_id, sequence, event_id, text, kind, participants, occur_time, record_time,
        importance, embedding_model, embedding
    )
    SELECT
        p_world, v_first + e.ordinal - 1, (e.item ->> 'event_id')::uuid, e.item ->> 'text',
        e.item ->> 'kind', ARRAY(SELECT jsonb_array_elements_text(e.item -> 'participants')),
        (e.item ->> 'occur_time')::timestamptz, p_now, (e.item ->> 'importance')::double precision,
        p_embedding_model, p_embeddings[e.ordinal]
    FROM jsonb_array_elements(p_events) WITH ORDINALITY AS e (item, ordinal);

    WITH terms AS (
        SELECT
            v_first + e.ordinal - 1 AS sequence, t.lexeme, cardinality(t.positions) AS frequency
        FROM jsonb_array_elements(p_events) WITH ORDINALITY AS e (item, ordinal),
            unnest(to_tsvector('english', e.item ->> 'search_text')) AS t
    ), posted AS (
        INSERT INTO story_event_terms (world_id, term, sequence, frequency, term_count)
        SELECT
            p_world, t.lexeme, t.sequence, t.frequency,
            sum(t.frequency) OVER (PARTITION BY t.sequence)
        FROM terms t
    )
    UPDATE worlds w SET
        event_count = w.event_count + v_count,
        event_term_count = w.event_term_count + (SELECT coalesce(sum(frequency), 0) FROM terms)
    WHERE w.world_id = p_world;

    INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
    VALUES (
        p_world, p_request, p_fingerprint,
        jsonb_build_object('first', v_first, 'last', v_first + v_count - 1), p_now
    );
    RETURN QUERY SELECT * FROM events_between(p_world, v_first, v_first + v_count - 1);
END $$;

-- A world's events, the latest in story time first, before the position given. Raises KB001.
CREATE FUNCTION list_events(
    p_world uuid, p_before_time timestamptz, p_before_sequence bigint, p_limit integer
) RETURNS SETOF story_event_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    RETURN QUERY
    SELECT e.sequence, e.event_id, e.text, e.kind, e.participants, e.occur_time, e.record_time,
        e.importance
    FROM story_events e
    WHERE e.world_id = p_world
        AND (p_before_time IS NULL
            OR (e.occur_time, e.sequence) < (p_before_time, p_before_sequence))
    ORDER BY e.occur_time DESC, e.sequence DESC
    LIMIT p_limit;
END $$;

-- The events of a world that matter to a query, best first, every event scored. Raises KB001.
--
-- relevance: as the hybrid score of search_lore, with the world as the corpus.
-- recency: 0.5 ^ (age / half-life); the age counts in story time, back from the latest event
--   before p_end, so a world that rests does not forget.
-- score: the weighted mean of relevance, recency and importance; the weights come normalised.
--
-- Words and meaning are stacked and grouped, not joined: the planner cannot know how many rows the
-- words of a query match, and a join estimated as one row loops over all of them.
CREATE FUNCTION recall_events(
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

-- Forgets request ids recorded before p_before, of all worlds; returns how many. Runs as the owner,
-- whom row-level security does not bind, and touches nothing but this table.
CREATE FUNCTION forget_requests(p_before timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_count bigint;
BEGIN
    DELETE FROM requests r WHERE r.record_time < p_before;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;
