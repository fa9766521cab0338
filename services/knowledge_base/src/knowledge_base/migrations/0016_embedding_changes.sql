-- The course of a change of the embedding model: started, filled, paused, resumed, finished or
-- cancelled. See migration 0015 for the columns, the locks and the SQLSTATEs.

-- A model, and how many rows still lack its vectors.
CREATE TYPE embedding_model_row AS (
    name text, dimensions integer, state text, start_time timestamptz, active_time timestamptz,
    listed boolean, filled_rows bigint, remaining_rows bigint
);

-- All models this database knows, the one that is changed to first, then the active one. The rows
-- that remain are counted over all worlds, so as the owner.
CREATE FUNCTION list_embedding_models() RETURNS SETOF embedding_model_row
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT
        m.name, m.dimensions, m.state, m.start_time, m.active_time, m.listed, m.filled_rows,
        CASE WHEN m.state IN ('filling', 'paused') THEN
            (SELECT count(*) FROM story_event_backlog) + (SELECT count(*) FROM chunk_backlog)
        ELSE 0 END
    FROM embedding_models m
    ORDER BY array_position(ARRAY['filling', 'paused', 'active', 'retired'], m.state), m.name;
$$;

-- Whether a request was done before. Changes belong to no world: their requests are kept under the
-- shared one. Raises KB002.
CREATE FUNCTION is_repeated_change(p_request uuid, p_fingerprint bytea, p_now timestamptz)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF begin_request(shared_world(), p_request, p_fingerprint) IS NOT NULL THEN
        RETURN true;
    END IF;
    INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
    VALUES (shared_world(), p_request, p_fingerprint, '{}', p_now);
    RETURN false;
END $$;

-- Starts a change to p_name. Raises KB002, KB011, KB014.
CREATE FUNCTION start_embedding_change(
    p_request uuid, p_fingerprint bytea, p_now timestamptz, p_name text, p_dimensions integer
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF is_repeated_change(p_request, p_fingerprint, p_now) THEN
        RETURN;
    END IF;
    LOCK TABLE embedding_models IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM embedding_models m WHERE m.state IN ('filling', 'paused')) THEN
        RAISE EXCEPTION 'a change is in progress' USING ERRCODE = 'KB011';
    END IF;
    IF EXISTS (SELECT FROM embedding_models m WHERE m.state = 'active' AND m.name = p_name) THEN
        RAISE EXCEPTION 'the model is active' USING ERRCODE = 'KB014';
    END IF;
    PERFORM add_next_embedding(p_name, p_dimensions);
    INSERT INTO embedding_models (name, dimensions, state, start_time)
    VALUES (p_name, p_dimensions, 'filling', p_now)
    ON CONFLICT (name) DO UPDATE SET
        dimensions = excluded.dimensions, state = 'filling', start_time = p_now,
        active_time = NULL, listed = false, filled_rows = 0;
END $$;

-- Pauses the filling (p_state paused) or goes on with it (filling). Raises KB002, KB012.
CREATE FUNCTION set_embedding_change_state(
    p_request uuid, p_fingerprint bytea, p_now timestamptz, p_state text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF is_repeated_change(p_request, p_fingerprint, p_now) THEN
        RETURN;
    END IF;
    IF p_state NOT IN ('filling', 'paused') THEN
        RAISE EXCEPTION 'no such state' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE embedding_models m SET state = p_state WHERE m.state IN ('filling', 'paused');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no change is in progress' USING ERRCODE = 'KB012';
    END IF;
END $$;

-- Gives the change up; the active model stays. Raises KB002, KB012.
CREATE FUNCTION cancel_embedding_change(p_request uuid, p_fingerprint bytea, p_now timestamptz)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF is_repeated_change(p_request, p_fingerprint, p_now) THEN
        RETURN;
    END IF;
    DELETE FROM embedding_models m WHERE m.state IN ('filling', 'paused');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no change is in progress' USING ERRCODE = 'KB012';
    END IF;
    PERFORM drop_next_embedding();
END $$;

-- Filling ----------------------------------------------------------------------------------------

-- Lists every row that lacks the vector of p_name, once at first and once more before the end.
-- Raises KB012.
CREATE FUNCTION list_unfilled_rows(p_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM embedding_models m WHERE m.name = p_name AND m.state IN ('filling', 'paused')
    ) THEN
        RAISE EXCEPTION 'no change is in progress' USING ERRCODE = 'KB012';
    END IF;
    INSERT INTO story_event_backlog
    SELECT e.world_id, e.sequence FROM story_events e WHERE e.next_embedding IS NULL
    ON CONFLICT DO NOTHING;
    INSERT INTO chunk_backlog
    SELECT c.chunk_id FROM document_chunks c WHERE c.next_embedding IS NULL
    ON CONFLICT DO NOTHING;
    UPDATE embedding_models m SET listed = true WHERE m.name = p_name AND NOT m.listed;
END $$;

-- Some events of any world that lack the next vector, and what they are embedded by.
CREATE FUNCTION unfilled_events(p_limit integer)
RETURNS TABLE (world_id uuid, sequence bigint, text text, participants text[])
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT b.world_id, b.sequence, e.text, e.participants
    FROM (SELECT * FROM story_event_backlog ORDER BY world_id, sequence LIMIT p_limit) b
    LEFT JOIN story_events e USING (world_id, sequence);
END $$;

-- Some chunks that lack the next vector, and what they are embedded by.
CREATE FUNCTION unfilled_chunks(p_limit integer)
RETURNS TABLE (chunk_id bigint, heading_path text[], text text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT b.chunk_id, c.heading_path, c.text
    FROM (SELECT * FROM chunk_backlog ORDER BY chunk_id LIMIT p_limit) b
    LEFT JOIN document_chunks c USING (chunk_id);
END $$;

-- Stores vectors of p_name; a row that is gone meanwhile is left out. Raises KB012.
CREATE FUNCTION fill_events(
    p_name text, p_worlds uuid[], p_sequences bigint[], p_vectors vector[]
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM count_filled(p_name, cardinality(p_sequences));
    UPDATE story_events e SET next_embedding = f.embedding
    FROM unnest(p_worlds, p_sequences, p_vectors) AS f (world_id, sequence, embedding)
    WHERE e.world_id = f.world_id AND e.sequence = f.sequence;
    DELETE FROM story_event_backlog b
    USING unnest(p_worlds, p_sequences) AS f (world_id, sequence)
    WHERE b.world_id = f.world_id AND b.sequence = f.sequence;
END $$;

-- As fill_events. The recipe names the model last, so the next one names the next model.
CREATE FUNCTION fill_chunks(p_name text, p_chunks bigint[], p_vectors vector[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_active text := (SELECT m.name FROM embedding_models m WHERE m.state = 'active');
BEGIN
    PERFORM count_filled(p_name, cardinality(p_chunks));
    UPDATE document_chunks c SET
        next_embedding = f.embedding, next_recipe = recipe_with(c.recipe, v_active, p_name)
    FROM unnest(p_chunks, p_vectors) AS f (chunk_id, embedding)
    WHERE c.chunk_id = f.chunk_id;
    DELETE FROM chunk_backlog b WHERE b.chunk_id = ANY (p_chunks);
END $$;

CREATE FUNCTION count_filled(p_name text, p_rows integer) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    UPDATE embedding_models m SET filled_rows = m.filled_rows + p_rows
    WHERE m.name = p_name AND m.state IN ('filling', 'paused');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no change is in progress' USING ERRCODE = 'KB012';
    END IF;
END $$;

-- A recipe (`…/<model>`) with another model; one of neither model stays as it is.
CREATE FUNCTION recipe_with(p_recipe text, p_from text, p_to text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN right(p_recipe, length(p_from) + 1) = '/' || p_from
        THEN left(p_recipe, length(p_recipe) - length(p_from)) || p_to
    ELSE p_recipe
END;

-- Makes p_name the active model. The caller holds both locks of migration 0015, so that no checked
-- writer is under way, and repeats the call when an unchecked one left a row without its vector.
-- Raises KB002, KB012, KB013.
CREATE FUNCTION finish_embedding_change(
    p_request uuid, p_fingerprint bytea, p_now timestamptz, p_name text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_active text;
BEGIN
    IF is_repeated_change(p_request, p_fingerprint, p_now) THEN
        RETURN;
    END IF;
    LOCK TABLE embedding_models, story_events, document_chunks IN ACCESS EXCLUSIVE MODE;
    IF NOT EXISTS (
        SELECT FROM embedding_models m WHERE m.name = p_name AND m.state IN ('filling', 'paused')
    ) THEN
        RAISE EXCEPTION 'no change is in progress' USING ERRCODE = 'KB012';
    END IF;
    IF NOT (SELECT m.listed FROM embedding_models m WHERE m.name = p_name)
        OR EXISTS (SELECT FROM story_event_backlog) OR EXISTS (SELECT FROM chunk_backlog)
    THEN
        RAISE EXCEPTION 'rows lack the new vector' USING ERRCODE = 'KB013';
    END IF;
    UPDATE embedding_models m SET state = 'retired' WHERE m.state = 'active'
    RETURNING m.name INTO v_active;
    UPDATE embedding_models m SET state = 'active', active_time = p_now WHERE m.name = p_name;
    UPDATE narrative_documents d SET recipe = recipe_with(d.recipe, v_active, p_name);
    PERFORM swap_in_next_embedding();
END $$;
