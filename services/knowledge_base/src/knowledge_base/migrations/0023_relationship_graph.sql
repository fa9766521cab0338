-- Relationships in two times and three layers, and ways through the graph they make. Errors as in
-- 0021, and KB004 with the field as its detail.

-- A relationship as it is answered; NULL for an end that is open.
CREATE TYPE tie_row AS (
    relationship_id uuid, world_id uuid, player_id text, from_name text, to_name text, kind text,
    strength double precision, valid_from timestamptz, valid_until timestamptz,
    record_time timestamptz
);

-- Supersedes what is believed of a relationship from p_from until p_until, and records what remains
-- of it before and after.
CREATE FUNCTION supersede_relationship(
    p_world uuid, p_relationship uuid, p_now timestamptz, p_from timestamptz, p_until timestamptz
) RETURNS void
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    WITH overlapped AS (
        UPDATE concept_relationships r SET superseded_time = p_now
        WHERE r.world_id = p_world AND r.relationship_id = p_relationship
            AND r.superseded_time = 'infinity'
            AND r.valid_from < p_until AND r.valid_until > p_from
        RETURNING r.*
    ), remains AS (
        SELECT o.*, o.valid_from AS remains_from, p_from AS remains_until
        FROM overlapped o WHERE o.valid_from < p_from
        UNION ALL
        SELECT o.*, p_until, o.valid_until FROM overlapped o WHERE o.valid_until > p_until
    )
    INSERT INTO concept_relationships (
        world_id, relationship_id, player_id, from_world_id, from_concept_id, to_world_id,
        to_concept_id, from_name, to_name, kind, strength, valid_from, valid_until, record_time
    )
    SELECT
        world_id, relationship_id, player_id, from_world_id, from_concept_id, to_world_id,
        to_concept_id, from_name, to_name, kind, strength, remains_from, remains_until, p_now
    FROM remains;
$$;

-- Records a relationship of a layer between two concepts as its player sees them; it supersedes what
-- the layer says of the pair and kind in the same story time. Raises KB001, KB002 and KB004.
CREATE FUNCTION relate_concepts_during(
    p_world uuid, p_player text, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_relationship uuid, p_from_name text, p_to_name text, p_kind text, p_strength double precision,
    p_from timestamptz, p_until timestamptz
) RETURNS SETOF tie_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_from narrative_concepts;
    v_to narrative_concepts;
    v_valid_from timestamptz := coalesce(p_from, '-infinity');
    v_valid_until timestamptz := coalesce(p_until, 'infinity');
    v_relationship uuid;
    v_now timestamptz;
    v_answer tie_row;
BEGIN
    PERFORM enter_player(p_player);
    IF v_known IS NOT NULL THEN
        -- Answers of the version before name no player.
        RETURN NEXT jsonb_populate_record(
            jsonb_populate_record(NULL::tie_row, '{"player_id": ""}'), v_known
        );
        RETURN;
    END IF;
    SELECT * INTO v_from FROM narrative_concepts c
    WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_from_name
        AND c.player_id IN ('', p_player)
    ORDER BY c.world_id = p_world DESC, c.player_id DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'from_concept';
    END IF;
    SELECT * INTO v_to FROM narrative_concepts c
    WHERE c.world_id IN (p_world, shared_world()) AND c.name = p_to_name
        AND c.player_id IN ('', p_player)
    ORDER BY c.world_id = p_world DESC, c.player_id DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'to_concept';
    END IF;

    SELECT
        coalesce((array_agg(r.relationship_id))[1], p_relationship),
        greatest(p_now, max(r.record_time) + interval '1 microsecond',
            max(nullif(r.superseded_time, 'infinity')) + interval '1 microsecond')
    INTO v_relationship, v_now
    FROM concept_relationships r
    WHERE r.world_id = p_world AND r.player_id = p_player AND r.from_name = p_from_name
        AND r.to_name = p_to_name AND r.kind = p_kind;
    PERFORM supersede_relationship(p_world, v_relationship, v_now, v_valid_from, v_valid_until);
    INSERT INTO concept_relationships (
        world_id, relationship_id, player_id, from_world_id, from_concept_id, to_world_id,
        to_concept_id, from_name, to_name, kind, strength, valid_from, valid_until, record_time
    ) VALUES (
        p_world, v_relationship, p_player, v_from.world_id, v_from.concept_id, v_to.world_id,
        v_to.concept_id, p_from_name, p_to_name, p_kind, p_strength, v_valid_from, v_valid_until,
        v_now
    );
    v_answer := ROW(
        v_relationship, p_world, p_player, p_from_name, p_to_name, p_kind, p_strength, p_from,
        p_until, v_now
    );
    INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
    VALUES (p_world, p_request, p_fingerprint, to_jsonb(v_answer), p_now);
    RETURN NEXT v_answer;
END $$;

-- Says that a relationship of this very layer does not hold from p_until on (NULL: that it never
-- did), and returns what remains believed of it. Raises KB001, KB002 and KB024.
CREATE FUNCTION end_relationship(
    p_world uuid, p_player text, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_from_name text, p_to_name text, p_kind text, p_until timestamptz
) RETURNS SETOF tie_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request(p_world, p_request, p_fingerprint);
    v_relationship uuid;
    v_now timestamptz;
BEGIN
    PERFORM enter_player(p_player);
    IF v_known IS NULL THEN
        SELECT
            (array_agg(r.relationship_id))[1],
            greatest(p_now, max(r.record_time) + interval '1 microsecond',
                max(nullif(r.superseded_time, 'infinity')) + interval '1 microsecond')
        INTO v_relationship, v_now
        FROM concept_relationships r
        WHERE r.world_id = p_world AND r.player_id = p_player AND r.from_name = p_from_name
            AND r.to_name = p_to_name AND r.kind = p_kind
        HAVING count(*) > 0;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no such relationship' USING ERRCODE = 'KB024';
        END IF;
        PERFORM supersede_relationship(
            p_world, v_relationship, v_now, coalesce(p_until, '-infinity'), 'infinity'
        );
        SELECT jsonb_build_object('ties', coalesce(jsonb_agg(
            jsonb_build_object(
                'relationship_id', r.relationship_id, 'world_id', r.world_id,
                'player_id', r.player_id, 'from_name', r.from_name, 'to_name', r.to_name,
                'kind', r.kind, 'strength', r.strength,
                'valid_from', nullif(r.valid_from, '-infinity'),
                'valid_until', nullif(r.valid_until, 'infinity'), 'record_time', r.record_time
            ) ORDER BY r.valid_from
        ), '[]')) INTO v_known
        FROM concept_relationships r
        WHERE r.world_id = p_world AND r.relationship_id = v_relationship
            AND r.superseded_time = 'infinity';
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (p_world, p_request, p_fingerprint, v_known, p_now);
    END IF;
    RETURN QUERY SELECT * FROM jsonb_populate_recordset(NULL::tie_row, v_known -> 'ties');
END $$;

-- The relationships that hold at a moment of the story, as believed at another one, as a player of
-- the world sees them: a narrower layer's hides a wider one of the same pair and kind. No SET clause:
-- the planner can then put it into the query that calls it, with that query's conditions.
CREATE FUNCTION visible_ties(
    p_world uuid, p_player text, p_valid timestamptz, p_recorded timestamptz
) RETURNS SETOF concept_relationships
LANGUAGE sql STABLE
AS $$
    SELECT r.* FROM knowledge_base.concept_relationships r
    WHERE r.world_id IN (p_world, '00000000-0000-0000-0000-000000000000')
        AND r.player_id IN ('', p_player)
        AND r.valid_from <= p_valid AND p_valid < r.valid_until
        AND r.record_time <= p_recorded AND p_recorded < r.superseded_time
        AND ((r.world_id = p_world AND r.player_id = p_player) OR NOT EXISTS (
            SELECT FROM knowledge_base.concept_relationships n
            WHERE n.world_id = p_world AND n.player_id IN ('', p_player)
                AND n.from_name = r.from_name AND n.to_name = r.to_name AND n.kind = r.kind
                AND n.valid_from <= p_valid AND p_valid < n.valid_until
                AND n.record_time <= p_recorded AND p_recorded < n.superseded_time
                AND (r.world_id <> p_world OR (r.player_id = '' AND n.player_id <> ''))
        ))
$$;

-- The relationships of a concept: those from it, then those to it, after the position given
-- (direction 0 from / 1 to, the other name, kind). Raises KB001 and KB004.
CREATE FUNCTION list_relationships_at(
    p_world uuid, p_player text, p_name text, p_valid timestamptz, p_recorded timestamptz,
    p_after_direction integer, p_after_other text, p_after_kind text, p_limit integer
) RETURNS SETOF tie_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_valid timestamptz := coalesce(p_valid, latest());
    v_recorded timestamptz := coalesce(p_recorded, latest());
BEGIN
    PERFORM enter_view(p_world, p_player);
    IF NOT concept_is_known(p_world, p_player, p_name) THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'concept';
    END IF;
    RETURN QUERY
    WITH directed AS (
        SELECT 0 AS direction, t.to_name AS other, t.*
        FROM visible_ties(p_world, p_player, v_valid, v_recorded) t
        WHERE t.from_name = p_name
        UNION ALL
        SELECT 1, t.from_name, t.*
        FROM visible_ties(p_world, p_player, v_valid, v_recorded) t
        WHERE t.to_name = p_name AND t.from_name <> p_name
    )
    SELECT d.relationship_id, d.world_id, d.player_id, d.from_name, d.to_name, d.kind, d.strength,
        nullif(d.valid_from, '-infinity'), nullif(d.valid_until, 'infinity'), d.record_time
    FROM directed d
    WHERE p_after_direction IS NULL
        OR (d.direction, d.other, d.kind) > (p_after_direction, p_after_other, p_after_kind)
    ORDER BY d.direction, d.other, d.kind
    LIMIT p_limit;
END $$;

-- The functions of the version before, which may still be running: everybody's layer, now.

CREATE OR REPLACE FUNCTION relate_concepts(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz, p_relationship uuid,
    p_from text, p_to text, p_kind text, p_strength double precision
) RETURNS SETOF relationship_row
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT relationship_id, world_id, from_name, to_name, kind, strength, record_time
    FROM relate_concepts_during(
        p_world, '', p_request, p_fingerprint, p_now, p_relationship, p_from, p_to, p_kind,
        p_strength, NULL, NULL
    );
$$;

CREATE OR REPLACE FUNCTION list_relationships(
    p_world uuid, p_name text, p_after_direction integer, p_after_other text, p_after_kind text,
    p_limit integer
) RETURNS SETOF relationship_row
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT relationship_id, world_id, from_name, to_name, kind, strength, record_time
    FROM list_relationships_at(
        p_world, '', p_name, NULL, NULL, p_after_direction, p_after_other, p_after_kind, p_limit
    );
$$;

-- Ways through the graph ------------------------------------------------------------------------

-- A concept reached (tie columns NULL) or a relationship between two of them; `truncated` in every
-- row says whether a bound left something out.
CREATE TYPE graph_row AS (
    depth integer, name text, tie tie_row, truncated boolean
);

-- What is reached from a concept over at most p_depth relationships, nearest first, and the
-- relationships on the way. The recursion has one row a level: the names reached there and all names
-- seen, so that no concept is entered twice, whatever circles there are. When more than p_nodes
-- concepts are reached, the strongest ties win. p_direction is 'out', 'in' or 'both'; ties of
-- strength 0 are none. What is compared with many rows is stacked under them and grouped, not joined:
-- the planner expects few rows, and would loop over all for each. Raises KB001 and KB004.
CREATE FUNCTION traverse_graph(
    p_world uuid, p_player text, p_start text, p_depth integer, p_kinds text[],
    p_strength double precision, p_direction text, p_valid timestamptz, p_recorded timestamptz,
    p_nodes integer, p_edges integer
) RETURNS SETOF graph_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET plan_cache_mode = force_custom_plan -- a plan for any direction and kinds reads too much
AS $$
DECLARE
    v_valid timestamptz := coalesce(p_valid, latest());
    v_recorded timestamptz := coalesce(p_recorded, latest());
BEGIN
    PERFORM enter_view(p_world, p_player);
    IF NOT concept_is_known(p_world, p_player, p_start) THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'start_concept';
    END IF;
    RETURN QUERY
    WITH RECURSIVE walk (depth, reached, seen, cut) AS (
        SELECT 0, ARRAY[p_start], ARRAY[p_start], false
        UNION ALL
        SELECT
            w.depth + 1, next.names[:p_nodes - cardinality(w.seen)],
            w.seen || next.names[:p_nodes - cardinality(w.seen)],
            cardinality(next.names) > p_nodes - cardinality(w.seen)
        FROM walk w
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(best.name), '{}') AS names
            FROM (
                SELECT step.name
                FROM (
                    SELECT t.to_name AS name, t.strength, false AS seen
                    FROM unnest(w.reached) AS at (name)
                    JOIN visible_ties(p_world, p_player, v_valid, v_recorded) t
                        ON t.from_name = at.name
                    WHERE p_direction <> 'in' AND t.strength > 0 AND t.strength >= p_strength
                        AND (p_kinds IS NULL OR t.kind = ANY (p_kinds))
                    UNION ALL
                    SELECT t.from_name, t.strength, false
                    FROM unnest(w.reached) AS at (name)
                    JOIN visible_ties(p_world, p_player, v_valid, v_recorded) t
                        ON t.to_name = at.name
                    WHERE p_direction <> 'out' AND t.strength > 0 AND t.strength >= p_strength
                        AND (p_kinds IS NULL OR t.kind = ANY (p_kinds))
                    UNION ALL
                    SELECT before.name, NULL, true FROM unnest(w.seen) AS before (name)
                ) step
                GROUP BY step.name
                HAVING NOT bool_or(step.seen)
                ORDER BY max(step.strength) DESC, step.name
                LIMIT p_nodes - cardinality(w.seen) + 1
            ) best
        ) next
        WHERE w.depth < p_depth AND cardinality(w.reached) > 0 AND NOT w.cut
    ), nodes AS MATERIALIZED (
        SELECT w.depth, at.name FROM walk w CROSS JOIN unnest(w.reached) AS at (name)
    ), stacked AS (
        SELECT t.to_name AS name, t AS tie, a.depth AS from_depth, NULL::integer AS depth
        FROM nodes a
        JOIN visible_ties(p_world, p_player, v_valid, v_recorded) t ON t.from_name = a.name
        WHERE t.strength > 0 AND t.strength >= p_strength
            AND (p_kinds IS NULL OR t.kind = ANY (p_kinds))
        UNION ALL
        SELECT n.name, NULL, NULL, n.depth FROM nodes n
    ), between_nodes AS (
        SELECT s.tie, s.from_depth, max(s.depth) OVER (PARTITION BY s.name) AS to_depth
        FROM stacked s
    ), ties AS MATERIALIZED (
        SELECT least(b.from_depth, b.to_depth) AS depth, (b.tie).*
        FROM between_nodes b
        WHERE b.from_depth IS NOT NULL AND b.to_depth IS NOT NULL
            AND CASE p_direction
                WHEN 'out' THEN b.from_depth < p_depth
                WHEN 'in' THEN b.to_depth < p_depth
                ELSE least(b.from_depth, b.to_depth) < p_depth
            END
        ORDER BY 1, (b.tie).strength DESC, (b.tie).from_name, (b.tie).to_name, (b.tie).kind
        LIMIT p_edges + 1
    ), bounds AS (
        SELECT (SELECT bool_or(w.cut) FROM walk w) OR (SELECT count(*) FROM ties) > p_edges AS cut
    )
    SELECT n.depth, n.name, NULL::tie_row, b.cut FROM nodes n CROSS JOIN bounds b
    UNION ALL
    (
        SELECT
            t.depth, NULL,
            ROW(
                t.relationship_id, t.world_id, t.player_id, t.from_name, t.to_name, t.kind,
                t.strength, nullif(t.valid_from, '-infinity'), nullif(t.valid_until, 'infinity'),
                t.record_time
            )::tie_row,
            b.cut
        FROM ties t CROSS JOIN bounds b
        ORDER BY t.depth, t.strength DESC, t.from_name, t.to_name, t.kind
        LIMIT p_edges
    );
END $$;

-- A concept reached over a path: how strong the path is, and its relationships in order.
CREATE TYPE path_reach AS (name text, strength double precision, ties uuid[]);

-- The best path from one concept to another over at most p_hops relationships, in order; no row when
-- there is none. A path is as strong as the product of its relationships. p_shortest: the fewest
-- relationships, of those the strongest; else the strongest, of those the fewest. One row of the
-- recursion is a level: what was reached there on a better path than before, and all that is known.
-- A circle never makes a path stronger, so none is entered. Of more than p_width concepts in a level
-- the strongest are followed and every row says `truncated`; a row of depth 0 without a tie says it
-- where no path was found. Stacked and not joined, as in traverse_graph. Raises KB001 and KB004.
CREATE FUNCTION find_path(
    p_world uuid, p_player text, p_from_name text, p_to_name text, p_hops integer, p_kinds text[],
    p_strength double precision, p_direction text, p_valid timestamptz, p_recorded timestamptz,
    p_shortest boolean, p_width integer
) RETURNS SETOF graph_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET plan_cache_mode = force_custom_plan -- a plan for any direction and kinds reads too much
AS $$
DECLARE
    v_valid timestamptz := coalesce(p_valid, latest());
    v_recorded timestamptz := coalesce(p_recorded, latest());
BEGIN
    PERFORM enter_view(p_world, p_player);
    IF NOT concept_is_known(p_world, p_player, p_from_name) THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'from_concept';
    ELSIF NOT concept_is_known(p_world, p_player, p_to_name) THEN
        RAISE EXCEPTION 'no such concept' USING ERRCODE = 'KB004', DETAIL = 'to_concept';
    END IF;
    RETURN QUERY
    WITH RECURSIVE search (depth, reached, known, goal, cut) AS (
        SELECT
            0, ARRAY[ROW(p_from_name, 1, '{}')::path_reach],
            ARRAY[ROW(p_from_name, 1, '{}')::path_reach], 0::double precision, false
        UNION ALL
        SELECT
            s.depth + 1, next.found[:p_width], merged.known, merged.goal,
            s.cut OR cardinality(next.found) > p_width
        FROM search s
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(best.reach), '{}') AS found
            FROM (
                SELECT ROW(first.name, first.strength, first.ties)::path_reach AS reach
                FROM (
                    SELECT DISTINCT ON (step.name)
                        step.name, step.strength, step.ties || step.relationship_id AS ties, step.fresh
                    FROM (
                        SELECT t.to_name AS name, at.strength * t.strength AS strength, at.ties,
                            t.relationship_id, true AS fresh
                        FROM unnest(s.reached) AS at
                        JOIN visible_ties(p_world, p_player, v_valid, v_recorded) t
                            ON t.from_name = at.name
                        WHERE p_direction <> 'in' AND t.strength > 0 AND t.strength >= p_strength
                            AND (p_kinds IS NULL OR t.kind = ANY (p_kinds))
                        UNION ALL
                        SELECT t.from_name, at.strength * t.strength, at.ties, t.relationship_id, true
                        FROM unnest(s.reached) AS at
                        JOIN visible_ties(p_world, p_player, v_valid, v_recorded) t
                            ON t.to_name = at.name
                        WHERE p_direction <> 'out' AND t.strength > 0 AND t.strength >= p_strength
                            AND (p_kinds IS NULL OR t.kind = ANY (p_kinds))
                        UNION ALL
                        SELECT before.name, before.strength, NULL, NULL, false
                        FROM unnest(s.known) AS before
                    ) step
                    -- What is known comes first where it is as good, or where any path will do.
                    ORDER BY step.name, p_shortest AND NOT step.fresh DESC, step.strength DESC,
                        step.fresh, step.relationship_id
                ) first
                -- A path that is weaker than a known one to the end will not get stronger.
                WHERE first.fresh AND first.strength > s.goal
                ORDER BY first.strength DESC, first.name
                LIMIT p_width + 1
            ) best
        ) next
        CROSS JOIN LATERAL (
            SELECT
                array_agg(ROW(each.name, each.strength, each.ties)::path_reach) AS known,
                coalesce(max(each.strength) FILTER (WHERE each.name = p_to_name), 0) AS goal
            FROM (
                SELECT DISTINCT ON (both_of.name) both_of.name, both_of.strength, both_of.ties
                FROM (
                    SELECT f.name, f.strength, f.ties, true AS found
                    FROM unnest(next.found[:p_width]) AS f
                    UNION ALL
                    SELECT k.name, k.strength, k.ties, false FROM unnest(s.known) AS k
                ) both_of
                ORDER BY both_of.name, both_of.found DESC
            ) each
        ) merged
        WHERE s.depth < p_hops AND cardinality(s.reached) > 0
            AND p_from_name <> p_to_name
            AND NOT (p_shortest AND s.goal > 0)
    ), last AS (
        SELECT s.known, s.cut FROM search s ORDER BY s.depth DESC LIMIT 1
    ), path AS (
        SELECT way.relationship_id, way.ordinal, l.cut
        FROM last l
        CROSS JOIN unnest(l.known) AS k
        CROSS JOIN unnest(k.ties) WITH ORDINALITY AS way (relationship_id, ordinal)
        WHERE k.name = p_to_name
    )
    SELECT
        0,
        CASE WHEN EXISTS (SELECT FROM unnest(l.known) AS k WHERE k.name = p_to_name)
            THEN p_from_name END,
        NULL::tie_row, l.cut
    FROM last l
    UNION ALL
    (
        SELECT
            p.ordinal::integer, NULL,
            ROW(
                t.relationship_id, t.world_id, t.player_id, t.from_name, t.to_name, t.kind,
                t.strength, nullif(t.valid_from, '-infinity'), nullif(t.valid_until, 'infinity'),
                t.record_time
            )::tie_row,
            p.cut
        FROM path p
        JOIN concept_relationships t
            ON t.world_id IN (p_world, shared_world()) AND t.relationship_id = p.relationship_id
            AND t.valid_from <= v_valid AND v_valid < t.valid_until
            AND t.record_time <= v_recorded AND v_recorded < t.superseded_time
        ORDER BY p.ordinal
    );
END $$;
