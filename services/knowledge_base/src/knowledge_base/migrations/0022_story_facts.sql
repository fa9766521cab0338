-- Facts: a subject, a predicate and an object, in two times and three layers. Errors as in 0021.

-- Asserts facts, all or none, in their order; a repeated request returns what it recorded. p_facts is
-- an array of {fact_id, subject, predicate, object, object_is_concept, single_valued, source,
-- source_event_id, valid_from, valid_until}; null ends are open. A fact supersedes what the layer
-- says of the same subject, predicate and object in the same story time; one that another object
-- excludes is recorded as a contradiction, and both stay. Raises KB001, KB002, KB004 and KB023.
CREATE FUNCTION assert_facts(
    p_world uuid, p_player text, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_facts jsonb
) RETURNS SETOF story_facts
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_item record;
    v_fact story_facts;
    v_answer jsonb := '[]';
BEGIN
    PERFORM enter_player(p_player);
    IF v_known IS NOT NULL THEN
        RETURN QUERY SELECT * FROM jsonb_populate_recordset(NULL::story_facts, v_known -> 'facts');
        RETURN;
    END IF;

    FOR v_item IN
        SELECT e.item, e.ordinal - 1 AS index
        FROM jsonb_array_elements(p_facts) WITH ORDINALITY AS e (item, ordinal)
    LOOP
        v_fact := jsonb_populate_record(NULL::story_facts, v_item.item);
        v_fact.world_id := p_world;
        v_fact.player_id := p_player;
        v_fact.valid_from := coalesce(v_fact.valid_from, '-infinity');
        v_fact.valid_until := coalesce(v_fact.valid_until, 'infinity');
        v_fact.superseded_time := 'infinity';

        IF NOT concept_is_known(p_world, p_player, v_fact.subject) THEN
            RAISE EXCEPTION 'no such concept'
                USING ERRCODE = 'KB004', DETAIL = format('facts[%s].subject', v_item.index);
        ELSIF v_fact.object_is_concept
            AND NOT concept_is_known(p_world, p_player, v_fact.object)
        THEN
            RAISE EXCEPTION 'no such concept'
                USING ERRCODE = 'KB004', DETAIL = format('facts[%s].object_concept', v_item.index);
        ELSIF v_fact.source_event_id IS NOT NULL AND NOT EXISTS (
            SELECT FROM story_events e
            WHERE e.world_id = p_world AND e.event_id = v_fact.source_event_id
        ) THEN
            RAISE EXCEPTION 'no such event'
                USING ERRCODE = 'KB023', DETAIL = format('facts[%s].source_event_id', v_item.index);
        END IF;

        -- The fact keeps its id, and its recorded times grow although clocks of writers differ.
        SELECT
            coalesce((array_agg(f.fact_id))[1], v_fact.fact_id),
            greatest(p_now, max(f.record_time) + interval '1 microsecond',
                max(nullif(f.superseded_time, 'infinity')) + interval '1 microsecond')
        INTO v_fact.fact_id, v_fact.record_time
        FROM story_facts f
        WHERE f.world_id = p_world AND f.player_id = p_player AND f.subject = v_fact.subject
            AND f.predicate = v_fact.predicate AND f.object = v_fact.object
            AND f.object_is_concept = v_fact.object_is_concept;

        PERFORM supersede_fact(
            p_world, v_fact.fact_id, v_fact.record_time, v_fact.valid_from, v_fact.valid_until
        );
        INSERT INTO story_facts SELECT v_fact.*;

        PERFORM record_contradiction(
            p_world, p_player, v_fact.record_time,
            CASE
                WHEN f.world_id = p_world AND f.player_id = p_player THEN 'fact' ELSE 'canon'
            END,
            v_fact.subject, v_fact.predicate, f.world_id, f.player_id, f.fact_id, NULL, f.object,
            f.source, v_fact.fact_id, NULL, v_fact.object, v_fact.source,
            greatest(f.valid_from, v_fact.valid_from), least(f.valid_until, v_fact.valid_until)
        )
        FROM story_facts f
        WHERE f.world_id IN (p_world, shared_world()) AND f.player_id IN ('', p_player)
            AND f.subject = v_fact.subject AND f.predicate = v_fact.predicate
            AND (f.object <> v_fact.object OR f.object_is_concept <> v_fact.object_is_concept)
            AND (f.single_valued OR v_fact.single_valued)
            AND f.superseded_time = 'infinity'
            AND f.valid_from < v_fact.valid_until AND f.valid_until > v_fact.valid_from;

        v_answer := v_answer || to_jsonb(v_fact);
        RETURN NEXT v_fact;
    END LOOP;

    INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
    VALUES (
        p_world, p_request, p_fingerprint, jsonb_build_object('facts', v_answer), p_now
    );
END $$;

-- Whether a player of the world sees a concept of this name, in any story time.
CREATE FUNCTION concept_is_known(p_world uuid, p_player text, p_name text) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM narrative_concepts c
        WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
            AND c.player_id IN ('', p_player)
    );
$$;

-- Supersedes what is believed of a fact from p_from until p_until, and records what remains of it
-- before and after.
CREATE FUNCTION supersede_fact(
    p_world uuid, p_fact uuid, p_now timestamptz, p_from timestamptz, p_until timestamptz
) RETURNS void
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    WITH overlapped AS (
        UPDATE story_facts f SET superseded_time = p_now
        WHERE f.world_id = p_world AND f.fact_id = p_fact AND f.superseded_time = 'infinity'
            AND f.valid_from < p_until AND f.valid_until > p_from
        RETURNING f.*
    ), remains AS (
        SELECT o.*, o.valid_from AS remains_from, p_from AS remains_until
        FROM overlapped o WHERE o.valid_from < p_from
        UNION ALL
        SELECT o.*, p_until, o.valid_until FROM overlapped o WHERE o.valid_until > p_until
    )
    INSERT INTO story_facts (
        world_id, fact_id, player_id, subject, predicate, object, object_is_concept, single_valued,
        source, source_event_id, valid_from, valid_until, record_time
    )
    SELECT
        world_id, fact_id, player_id, subject, predicate, object, object_is_concept, single_valued,
        source, source_event_id, remains_from, remains_until, p_now
    FROM remains;
$$;

-- Says that a fact of this very layer does not hold from p_until on (NULL: that it never did), and
-- returns what remains believed of it. Raises KB001, KB002 and KB021.
CREATE FUNCTION retract_fact(
    p_world uuid, p_player text, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_fact uuid, p_until timestamptz
) RETURNS SETOF story_facts
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_now timestamptz;
BEGIN
    PERFORM enter_player(p_player);
    IF v_known IS NULL THEN
        SELECT greatest(p_now, max(f.record_time) + interval '1 microsecond',
            max(nullif(f.superseded_time, 'infinity')) + interval '1 microsecond')
        INTO v_now
        FROM story_facts f
        WHERE f.world_id = p_world AND f.player_id = p_player AND f.fact_id = p_fact
        HAVING count(*) > 0;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no such fact' USING ERRCODE = 'KB021';
        END IF;
        PERFORM supersede_fact(
            p_world, p_fact, v_now, coalesce(p_until, '-infinity'), 'infinity'
        );
        SELECT jsonb_build_object('facts', coalesce(jsonb_agg(to_jsonb(f) ORDER BY f.valid_from), '[]'))
        INTO v_known
        FROM story_facts f
        WHERE f.world_id = p_world AND f.fact_id = p_fact AND f.superseded_time = 'infinity';
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (p_world, p_request, p_fingerprint, v_known, p_now);
    END IF;
    RETURN QUERY SELECT * FROM jsonb_populate_recordset(NULL::story_facts, v_known -> 'facts');
END $$;

-- The facts a player of the world sees, as believed at p_recorded (NULL: now), by subject and
-- predicate, after the position given. With p_valid those that hold then: a narrower layer's fact
-- hides a wider one of the same object, and any other object where one of the two allows one only.
-- Without it the facts of all story time, each in its layer, none hidden. Raises KB001.
CREATE FUNCTION list_facts(
    p_world uuid, p_player text, p_subject text, p_predicate text,
    p_valid timestamptz, p_recorded timestamptz,
    p_after_subject text, p_after_predicate text, p_after_from timestamptz, p_after_fact uuid,
    p_limit integer
) RETURNS SETOF story_facts
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_recorded timestamptz := coalesce(p_recorded, latest());
BEGIN
    PERFORM enter_view(p_world, p_player);
    RETURN QUERY
    SELECT f.* FROM story_facts f
    WHERE f.world_id IN (p_world, shared_world()) AND f.player_id IN ('', p_player)
        AND (p_subject IS NULL OR f.subject = p_subject)
        AND (p_predicate IS NULL OR f.predicate = p_predicate)
        AND f.record_time <= v_recorded AND v_recorded < f.superseded_time
        AND (p_valid IS NULL OR (f.valid_from <= p_valid AND p_valid < f.valid_until))
        AND (p_after_subject IS NULL
            OR (f.subject, f.predicate, f.valid_from, f.fact_id)
                > (p_after_subject, p_after_predicate, p_after_from, p_after_fact))
        AND NOT (p_valid IS NOT NULL AND EXISTS (
            SELECT FROM story_facts n
            WHERE n.world_id = p_world AND n.player_id IN ('', p_player)
                AND n.subject = f.subject AND n.predicate = f.predicate
                AND n.valid_from <= p_valid AND p_valid < n.valid_until
                AND n.record_time <= v_recorded AND v_recorded < n.superseded_time
                AND (f.world_id <> p_world OR (f.player_id = '' AND n.player_id <> ''))
                AND (n.single_valued OR f.single_valued
                    OR (n.object = f.object AND n.object_is_concept = f.object_is_concept))
        ))
    ORDER BY f.subject, f.predicate, f.valid_from, f.fact_id
    LIMIT p_limit;
END $$;
