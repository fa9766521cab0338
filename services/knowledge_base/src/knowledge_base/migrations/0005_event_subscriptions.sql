-- What a world takes from the game's event bus.

CREATE TABLE event_subscriptions (
    world_id uuid PRIMARY KEY REFERENCES worlds,
    event_types integer[] NOT NULL CHECK (cardinality(event_types) > 0),
    -- Publishing services; empty: all.
    sources text[] NOT NULL,
    update_time timestamptz NOT NULL
);
ALTER TABLE event_subscriptions ENABLE ROW LEVEL SECURITY;

CREATE POLICY own_world ON event_subscriptions USING (world_id = (SELECT current_world()));
-- Who takes an event crosses worlds; only subscribed_worlds switches this on.
CREATE POLICY directory ON event_subscriptions FOR SELECT
    USING ((SELECT current_setting('knowledge_base.directory', true)) = 'on');

-- Sets what a world takes and returns it as this request set it. Raises KB001 and KB002.
CREATE FUNCTION set_event_subscription(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_event_types integer[], p_sources text[]
) RETURNS SETOF event_subscriptions
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_answer jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_set event_subscriptions;
BEGIN
    IF v_answer IS NULL THEN
        INSERT INTO event_subscriptions AS s (world_id, event_types, sources, update_time)
        VALUES (p_world, p_event_types, p_sources, p_now)
        ON CONFLICT (world_id) DO UPDATE SET
            event_types = excluded.event_types, sources = excluded.sources,
            update_time = excluded.update_time
        RETURNING s.* INTO v_set;
        v_answer := to_jsonb(v_set);
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (p_world, p_request, p_fingerprint, v_answer, p_now);
    END IF;
    RETURN QUERY SELECT * FROM jsonb_populate_record(NULL::event_subscriptions, v_answer);
END $$;

-- What a world takes; no row when nothing. Raises KB001.
CREATE FUNCTION get_event_subscription(p_world uuid) RETURNS SETOF event_subscriptions
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    RETURN QUERY SELECT s.* FROM event_subscriptions s WHERE s.world_id = p_world;
END $$;

-- Ends what a world takes and returns what this request ended; no row when there was nothing.
-- Raises KB001 and KB002.
CREATE FUNCTION delete_event_subscription(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz
) RETURNS SETOF event_subscriptions
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_answer jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_ended event_subscriptions;
BEGIN
    IF v_answer IS NULL THEN
        DELETE FROM event_subscriptions s WHERE s.world_id = p_world RETURNING s.* INTO v_ended;
        v_answer := CASE WHEN FOUND THEN to_jsonb(v_ended) ELSE '{}' END;
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (p_world, p_request, p_fingerprint, v_answer, p_now);
    END IF;
    IF v_answer <> '{}' THEN
        RETURN QUERY SELECT * FROM jsonb_populate_record(NULL::event_subscriptions, v_answer);
    END IF;
END $$;

-- The worlds that take an event: of this type, of this source; only p_world unless it is NULL.
CREATE FUNCTION subscribed_worlds(p_event_type integer, p_source text, p_world uuid)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.directory', 'on', true);
    RETURN QUERY SELECT s.world_id FROM event_subscriptions s
    WHERE (p_world IS NULL OR s.world_id = p_world)
        AND p_event_type = ANY (s.event_types)
        AND (cardinality(s.sources) = 0 OR p_source = ANY (s.sources))
    ORDER BY s.world_id;
    PERFORM set_config('knowledge_base.directory', '', true);
END $$;
