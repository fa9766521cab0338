-- Versions of concepts in two times and three layers, and contradictions. Errors as in 0003, and
--   KB021  there is no such fact in this layer
--   KB022  there is no such contradiction in this layer
--   KB023  the world has no such story event

-- Makes the rest of the transaction write for p_player, within a world that is entered.
CREATE FUNCTION enter_player(p_player text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.player_id', ':' || p_player, true);
END $$;

-- Records a contradiction; nothing when the same one is open already.
CREATE FUNCTION record_contradiction(
    p_world uuid, p_player text, p_now timestamptz, p_kind text, p_subject text, p_predicate text,
    p_earlier_world uuid, p_earlier_player text, p_earlier_id uuid, p_earlier_version integer,
    p_earlier_value text, p_earlier_source text,
    p_later_id uuid, p_later_version integer, p_later_value text, p_later_source text,
    p_from timestamptz, p_until timestamptz
) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    INSERT INTO contradictions (
        world_id, contradiction_id, player_id, kind, subject, predicate,
        earlier_layer, earlier_id, earlier_version, earlier_value, earlier_source,
        later_id, later_version, later_value, later_source, valid_from, valid_until, record_time
    ) VALUES (
        p_world, gen_random_uuid(), p_player, p_kind, p_subject, p_predicate,
        CASE
            WHEN p_earlier_world = shared_world() THEN 'shared'
            WHEN p_earlier_player = '' THEN 'world'
            ELSE 'player'
        END,
        p_earlier_id, p_earlier_version, p_earlier_value, p_earlier_source,
        p_later_id, p_later_version, p_later_value, p_later_source, p_from, p_until, p_now
    )
    ON CONFLICT DO NOTHING;
END $$;

-- A concept as it is answered; NULL for an end of its period that is open.
CREATE TYPE layered_concept_row AS (
    concept_id uuid, world_id uuid, player_id text, name text, kind text, version integer,
    description text, attributes jsonb, source text,
    valid_from timestamptz, valid_until timestamptz, record_time timestamptz
);

-- Records a version of a layer's concept that holds from p_from until p_until (NULL: open) and
-- supersedes what overlaps it. An attribute that another source, or a wider layer, gives another
-- value in the same time is recorded as a contradiction. Raises KB001 and KB002.
CREATE FUNCTION put_concept_version(
    p_world uuid, p_player text, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_concept uuid, p_name text, p_kind text, p_description text, p_attributes jsonb,
    p_source text, p_from timestamptz, p_until timestamptz
) RETURNS SETOF layered_concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_from timestamptz := coalesce(p_from, '-infinity');
    v_until timestamptz := coalesce(p_until, 'infinity');
    v_now timestamptz;
    v_concept uuid;
    v_version integer;
BEGIN
    PERFORM enter_player(p_player);
    IF v_known IS NULL THEN
        INSERT INTO narrative_concepts AS c (world_id, concept_id, player_id, name, latest_version)
        VALUES (p_world, p_concept, p_player, p_name, 1)
        ON CONFLICT (world_id, name, player_id) DO UPDATE SET latest_version = c.latest_version + 1
        RETURNING c.concept_id, c.latest_version INTO v_concept, v_version;

        -- Recorded times of a concept grow although clocks of two writers differ.
        SELECT greatest(p_now, max(v.record_time) + interval '1 microsecond') INTO v_now
        FROM concept_versions v WHERE v.world_id = p_world AND v.concept_id = v_concept;

        PERFORM record_contradiction(
            p_world, p_player, v_now,
            CASE WHEN c.concept_id = v_concept THEN 'attribute' ELSE 'canon' END,
            p_name, said.key, c.world_id, c.player_id, c.concept_id, v.version, said.value,
            v.source, v_concept, v_version, p_attributes ->> said.key, p_source,
            greatest(p.valid_from, v_from), least(p.valid_until, v_until)
        )
        FROM narrative_concepts c
        JOIN concept_periods p ON p.world_id = c.world_id AND p.concept_id = c.concept_id
        JOIN concept_versions v
            ON v.world_id = p.world_id AND v.concept_id = p.concept_id AND v.version = p.version
        CROSS JOIN LATERAL jsonb_each_text(v.attributes) AS said
        WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
            AND c.player_id IN ('', p_player)
            AND p.superseded_time = 'infinity'
            AND p.valid_from < v_until AND p.valid_until > v_from
            AND p_attributes ->> said.key <> said.value
            AND (c.concept_id <> v_concept
                OR (v.source <> '' AND p_source <> '' AND v.source <> p_source))
        ORDER BY said.key, p.valid_from;

        INSERT INTO concept_versions (
            world_id, concept_id, version, player_id, kind, description, attributes, source,
            valid_from, valid_until, record_time
        ) VALUES (
            p_world, v_concept, v_version, p_player, p_kind, p_description, p_attributes, p_source,
            v_from, v_until, v_now
        );
        WITH overlapped AS (
            UPDATE concept_periods p SET superseded_time = v_now
            WHERE p.world_id = p_world AND p.concept_id = v_concept
                AND p.superseded_time = 'infinity'
                AND p.valid_from < v_until AND p.valid_until > v_from
            RETURNING p.version, p.valid_from, p.valid_until
        )
        INSERT INTO concept_periods (
            world_id, concept_id, version, player_id, valid_from, valid_until, record_time
        )
        SELECT p_world, v_concept, o.version, p_player, o.valid_from, v_from, v_now
        FROM overlapped o WHERE o.valid_from < v_from
        UNION ALL
        SELECT p_world, v_concept, o.version, p_player, v_until, o.valid_until, v_now
        FROM overlapped o WHERE o.valid_until > v_until
        UNION ALL
        SELECT p_world, v_concept, v_version, p_player, v_from, v_until, v_now;

        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (
            p_world, p_request, p_fingerprint,
            jsonb_build_object('concept_id', v_concept, 'version', v_version), p_now
        );
    ELSE
        v_concept := (v_known ->> 'concept_id')::uuid;
        v_version := (v_known ->> 'version')::integer;
    END IF;
    RETURN QUERY
    SELECT c.concept_id, c.world_id, c.player_id, c.name, v.kind, v.version, v.description,
        v.attributes, v.source, nullif(v.valid_from, '-infinity'), nullif(v.valid_until, 'infinity'),
        v.record_time
    FROM narrative_concepts c
    JOIN concept_versions v ON v.world_id = c.world_id AND v.concept_id = c.concept_id
    WHERE c.world_id = p_world AND c.concept_id = v_concept AND v.version = v_version;
END $$;

-- The concept of this name as a player of the world sees it: the narrowest layer that knows one at
-- the two moments (NULL: now, which is after all others). Raises KB001.
CREATE FUNCTION get_concept_at(
    p_world uuid, p_player text, p_name text, p_valid timestamptz, p_recorded timestamptz
) RETURNS SETOF layered_concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_valid timestamptz := coalesce(p_valid, latest());
    v_recorded timestamptz := coalesce(p_recorded, latest());
BEGIN
    PERFORM enter_view(p_world, p_player);
    RETURN QUERY
    SELECT c.concept_id, c.world_id, c.player_id, c.name, v.kind, v.version, v.description,
        v.attributes, v.source, nullif(p.valid_from, '-infinity'), nullif(p.valid_until, 'infinity'),
        v.record_time
    FROM narrative_concepts c
    JOIN concept_periods p ON p.world_id = c.world_id AND p.concept_id = c.concept_id
    JOIN concept_versions v
        ON v.world_id = p.world_id AND v.concept_id = p.concept_id AND v.version = p.version
    WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
        AND c.player_id IN ('', p_player)
        AND p.valid_from <= v_valid AND v_valid < p.valid_until
        AND p.record_time <= v_recorded AND v_recorded < p.superseded_time
    ORDER BY c.world_id = p_world DESC, c.player_id DESC
    LIMIT 1;
END $$;

-- A version of the concept of this name in the narrowest layer that has one, with the period its
-- writer gave it. Raises KB001.
CREATE FUNCTION get_concept_version(p_world uuid, p_player text, p_name text, p_version integer)
RETURNS SETOF layered_concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_view(p_world, p_player);
    RETURN QUERY
    WITH seen AS (
        SELECT c.* FROM narrative_concepts c
        WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
            AND c.player_id IN ('', p_player)
        ORDER BY c.world_id = p_world DESC, c.player_id DESC
        LIMIT 1
    )
    SELECT c.concept_id, c.world_id, c.player_id, c.name, v.kind, v.version, v.description,
        v.attributes, v.source, nullif(v.valid_from, '-infinity'), nullif(v.valid_until, 'infinity'),
        v.record_time
    FROM seen c
    JOIN concept_versions v ON v.world_id = c.world_id AND v.concept_id = c.concept_id
    WHERE v.version = p_version;
END $$;

-- The versions of the concept of this name in the narrowest layer that has one, the newest first,
-- before p_before (NULL: from the newest). `periods` is an array of {valid_from, valid_until,
-- record_time, superseded_time}, null where open: when the version was believed to hold when.
-- Raises KB001.
CREATE FUNCTION list_concept_versions(
    p_world uuid, p_player text, p_name text, p_before integer, p_limit integer
) RETURNS TABLE (version_row layered_concept_row, periods jsonb)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_view(p_world, p_player);
    RETURN QUERY
    WITH seen AS (
        SELECT c.* FROM narrative_concepts c
        WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
            AND c.player_id IN ('', p_player)
        ORDER BY c.world_id = p_world DESC, c.player_id DESC
        LIMIT 1
    )
    SELECT
        ROW(
            c.concept_id, c.world_id, c.player_id, c.name, v.kind, v.version, v.description,
            v.attributes, v.source, nullif(v.valid_from, '-infinity'),
            nullif(v.valid_until, 'infinity'), v.record_time
        )::layered_concept_row,
        (
            SELECT jsonb_agg(
                jsonb_build_object(
                    'valid_from', nullif(p.valid_from, '-infinity'),
                    'valid_until', nullif(p.valid_until, 'infinity'),
                    'record_time', p.record_time,
                    'superseded_time', nullif(p.superseded_time, 'infinity')
                ) ORDER BY p.record_time, p.valid_from
            )
            FROM concept_periods p
            WHERE p.world_id = v.world_id AND p.concept_id = v.concept_id AND p.version = v.version
        )
    FROM seen c
    JOIN concept_versions v ON v.world_id = c.world_id AND v.concept_id = c.concept_id
    WHERE p_before IS NULL OR v.version < p_before
    ORDER BY v.version DESC
    LIMIT p_limit;
END $$;

-- The concepts a player of the world sees at the two moments, by name, after p_after. Raises KB001.
CREATE FUNCTION list_concepts_at(
    p_world uuid, p_player text, p_kind text, p_valid timestamptz, p_recorded timestamptz,
    p_after text, p_limit integer
) RETURNS SETOF layered_concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_valid timestamptz := coalesce(p_valid, latest());
    v_recorded timestamptz := coalesce(p_recorded, latest());
BEGIN
    PERFORM enter_view(p_world, p_player);
    RETURN QUERY
    WITH seen AS (
        SELECT DISTINCT ON (c.name)
            c.concept_id, c.world_id, c.player_id, c.name, v.kind, v.version, v.description,
            v.attributes, v.source, nullif(p.valid_from, '-infinity') AS valid_from,
            nullif(p.valid_until, 'infinity') AS valid_until, v.record_time
        FROM narrative_concepts c
        JOIN concept_periods p ON p.world_id = c.world_id AND p.concept_id = c.concept_id
        JOIN concept_versions v
            ON v.world_id = p.world_id AND v.concept_id = p.concept_id AND v.version = p.version
        WHERE c.world_id IN (p_world, shared_world()) AND c.name > p_after
            AND c.player_id IN ('', p_player)
            AND p.valid_from <= v_valid AND v_valid < p.valid_until
            AND p.record_time <= v_recorded AND v_recorded < p.superseded_time
        ORDER BY c.name, c.world_id = p_world DESC, c.player_id DESC
    )
    SELECT s.* FROM seen s
    WHERE p_kind IS NULL OR s.kind = p_kind
    ORDER BY s.name
    LIMIT p_limit;
END $$;

-- The functions of the version before, which may still be running: everybody's layer, now.

CREATE OR REPLACE FUNCTION put_concept(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz, p_concept uuid,
    p_name text, p_kind text, p_description text, p_attributes jsonb
) RETURNS SETOF concept_row
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT concept_id, world_id, name, kind, version, description, attributes, record_time
    FROM put_concept_version(
        p_world, '', p_request, p_fingerprint, p_now, p_concept, p_name, p_kind, p_description,
        p_attributes, '', NULL, NULL
    );
$$;

CREATE OR REPLACE FUNCTION get_concept(p_world uuid, p_name text, p_version integer)
RETURNS SETOF concept_row
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT concept_id, world_id, name, kind, version, description, attributes, record_time
    FROM get_concept_at(p_world, '', p_name, NULL, NULL) WHERE p_version IS NULL
    UNION ALL
    SELECT concept_id, world_id, name, kind, version, description, attributes, record_time
    FROM get_concept_version(p_world, '', p_name, p_version) WHERE p_version IS NOT NULL;
$$;

CREATE OR REPLACE FUNCTION list_concepts(
    p_world uuid, p_kind text, p_after text, p_limit integer
) RETURNS SETOF concept_row
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT concept_id, world_id, name, kind, version, description, attributes, record_time
    FROM list_concepts_at(p_world, '', p_kind, NULL, NULL, p_after, p_limit);
$$;

-- Contradictions of a layer, the newest first, before the position given; p_open NULL: open and
-- resolved ones; p_subject NULL: of all subjects. Raises KB001.
CREATE FUNCTION list_contradictions(
    p_world uuid, p_player text, p_open boolean, p_subject text,
    p_before_time timestamptz, p_before_id uuid, p_limit integer
) RETURNS SETOF contradictions
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_view(p_world, p_player);
    RETURN QUERY
    SELECT c.* FROM contradictions c
    WHERE c.world_id = p_world AND c.player_id IN ('', p_player)
        AND (p_open IS NULL OR (c.resolve_time IS NULL) = p_open)
        AND (p_subject IS NULL OR c.subject = p_subject)
        AND (p_before_time IS NULL
            OR (c.record_time, c.contradiction_id) < (p_before_time, p_before_id))
    ORDER BY c.record_time DESC, c.contradiction_id DESC
    LIMIT p_limit;
END $$;

-- Marks a contradiction as resolved; one that is keeps its first resolution. Raises KB001, KB002
-- and KB022.
CREATE FUNCTION resolve_contradiction(
    p_world uuid, p_player text, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_contradiction uuid, p_resolution text
) RETURNS SETOF contradictions
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
BEGIN
    PERFORM enter_player(p_player);
    IF v_known IS NULL THEN
        PERFORM FROM contradictions c
        WHERE c.world_id = p_world AND c.contradiction_id = p_contradiction
            AND c.player_id IN ('', p_player);
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no such contradiction' USING ERRCODE = 'KB022';
        END IF;
        UPDATE contradictions c SET resolve_time = p_now, resolution = p_resolution
        WHERE c.world_id = p_world AND c.contradiction_id = p_contradiction
            AND c.resolve_time IS NULL;
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (p_world, p_request, p_fingerprint, '{}', p_now);
    END IF;
    RETURN QUERY
    SELECT c.* FROM contradictions c
    WHERE c.world_id = p_world AND c.contradiction_id = p_contradiction
        AND c.player_id IN ('', p_player);
END $$;
