-- Concepts, their versions, and how they relate. Raises as listed in 0003.

CREATE TYPE concept_row AS (
    concept_id uuid, world_id uuid, name text, kind text, version integer, description text,
    attributes jsonb, record_time timestamptz
);

CREATE TYPE relationship_row AS (
    relationship_id uuid, world_id uuid, from_name text, to_name text, kind text,
    strength double precision, record_time timestamptz
);

-- Records a new version of a concept, the first one when there was none.
CREATE FUNCTION put_concept(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz, p_concept uuid,
    p_name text, p_kind text, p_description text, p_attributes jsonb
) RETURNS SETOF concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_concept uuid;
    v_version integer;
BEGIN
    IF v_known IS NULL THEN
        INSERT INTO narrative_concepts AS c (world_id, concept_id, name, latest_version)
        VALUES (p_world, p_concept, p_name, 1)
        ON CONFLICT (world_id, name) DO UPDATE SET latest_version = c.latest_version + 1
        RETURNING c.concept_id, c.latest_version INTO v_concept, v_version;
        INSERT INTO concept_versions (
            world_id, concept_id, version, kind, description, attributes, record_time
        ) VALUES (p_world, v_concept, v_version, p_kind, p_description, p_attributes, p_now);
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
    SELECT c.concept_id, c.world_id, c.name, v.kind, v.version, v.description, v.attributes,
        v.record_time
    FROM narrative_concepts c
    JOIN concept_versions v ON v.world_id = c.world_id AND v.concept_id = c.concept_id
    WHERE c.world_id = p_world AND c.concept_id = v_concept AND v.version = v_version;
END $$;

-- The concept of this name as the world sees it: its own one, else the shared one. p_version NULL
-- means the latest.
CREATE FUNCTION get_concept(p_world uuid, p_name text, p_version integer)
RETURNS SETOF concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    RETURN QUERY
    WITH seen AS (
        SELECT c.* FROM narrative_concepts c
        WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
        ORDER BY c.world_id = p_world DESC
        LIMIT 1
    )
    SELECT c.concept_id, c.world_id, c.name, v.kind, v.version, v.description, v.attributes,
        v.record_time
    FROM seen c
    JOIN concept_versions v ON v.world_id = c.world_id AND v.concept_id = c.concept_id
    WHERE v.version = coalesce(p_version, c.latest_version);
END $$;

-- The latest versions of the concepts the world sees, by name, after p_after.
CREATE FUNCTION list_concepts(p_world uuid, p_kind text, p_after text, p_limit integer)
RETURNS SETOF concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    RETURN QUERY
    SELECT c.concept_id, c.world_id, c.name, v.kind, v.version, v.description, v.attributes,
        v.record_time
    FROM narrative_concepts c
    JOIN concept_versions v
        ON v.world_id = c.world_id AND v.concept_id = c.concept_id AND v.version = c.latest_version
    WHERE c.world_id IN (p_world, shared_world())
        AND c.name > p_after
        AND (p_kind IS NULL OR v.kind = p_kind)
        AND (c.world_id = p_world OR NOT EXISTS (
            SELECT FROM narrative_concepts own
            WHERE own.world_id = p_world AND own.name = c.name
        ))
    ORDER BY c.name
    LIMIT p_limit;
END $$;

-- Records a relationship between two concepts as the world sees them; the same pair and kind again
-- replaces the strength. The answer is kept whole, since the row may change later.
CREATE FUNCTION relate_concepts(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz, p_relationship uuid,
    p_from text, p_to text, p_kind text, p_strength double precision
) RETURNS SETOF relationship_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_from narrative_concepts;
    v_to narrative_concepts;
    v_answer relationship_row;
BEGIN
    IF v_known IS NOT NULL THEN
        RETURN NEXT jsonb_populate_record(NULL::relationship_row, v_known);
        RETURN;
    END IF;
    SELECT * INTO v_from FROM narrative_concepts c
    WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_from
    ORDER BY c.world_id = p_world DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'from_concept';
    END IF;
    SELECT * INTO v_to FROM narrative_concepts c
    WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_to
    ORDER BY c.world_id = p_world DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'to_concept';
    END IF;
    INSERT INTO concept_relationships AS r (
        world_id, relationship_id, from_world_id, from_concept_id, to_world_id, to_concept_id,
        kind, strength, record_time
    ) VALUES (
        p_world, p_relationship, v_from.world_id, v_from.concept_id, v_to.world_id,
        v_to.concept_id, p_kind, p_strength, p_now
    )
    ON CONFLICT (world_id, from_concept_id, to_concept_id, kind) DO UPDATE SET
        strength = excluded.strength, record_time = excluded.record_time
    RETURNING r.relationship_id, r.world_id, p_from, p_to, r.kind, r.strength, r.record_time
    INTO v_answer;
    INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
    VALUES (p_world, p_request, p_fingerprint, to_jsonb(v_answer), p_now);
    RETURN NEXT v_answer;
END $$;

-- The relationships of a concept as the world sees them: those from it, then those to it. They are
-- matched by name, so that a world's own version of a concept keeps the shared one's ties; a world's
-- own tie hides the shared one of the same pair and kind. p_after is the last row's position
-- (direction 0 from / 1 to, the other name, kind), or NULL. Raises KB004.
CREATE FUNCTION list_relationships(
    p_world uuid, p_name text, p_after_direction integer, p_after_other text, p_after_kind text,
    p_limit integer
) RETURNS SETOF relationship_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    IF NOT EXISTS (
        SELECT FROM narrative_concepts c
        WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
    ) THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'concept';
    END IF;
    RETURN QUERY
    WITH named AS (
        SELECT c.world_id, c.concept_id FROM narrative_concepts c
        WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_name
    ), directed AS (
        SELECT 0 AS direction, r.* FROM concept_relationships r
        JOIN named n ON r.from_world_id = n.world_id AND r.from_concept_id = n.concept_id
        WHERE r.world_id IN (p_world, shared_world())
        UNION ALL
        SELECT 1 AS direction, r.* FROM concept_relationships r
        JOIN named n ON r.to_world_id = n.world_id AND r.to_concept_id = n.concept_id
        WHERE r.world_id IN (p_world, shared_world())
    ), seen AS (
        SELECT DISTINCT ON (d.direction, f.name, t.name, d.kind)
            d.direction, d.relationship_id, d.world_id, f.name AS from_name, t.name AS to_name,
            CASE d.direction WHEN 0 THEN t.name ELSE f.name END AS other,
            d.kind, d.strength, d.record_time
        FROM directed d
        JOIN narrative_concepts f
            ON f.world_id = d.from_world_id AND f.concept_id = d.from_concept_id
        JOIN narrative_concepts t
            ON t.world_id = d.to_world_id AND t.concept_id = d.to_concept_id
        WHERE d.direction = 0 OR f.name <> t.name
        ORDER BY d.direction, f.name, t.name, d.kind, d.world_id = p_world DESC, d.record_time DESC
    )
    SELECT s.relationship_id, s.world_id, s.from_name, s.to_name, s.kind, s.strength, s.record_time
    FROM seen s
    WHERE p_after_direction IS NULL
        OR (s.direction, s.other, s.kind) > (p_after_direction, p_after_other, p_after_kind)
    ORDER BY s.direction, s.other, s.kind
    LIMIT p_limit;
END $$;
