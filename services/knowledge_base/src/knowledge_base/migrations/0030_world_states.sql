-- Worlds that are archived, being made, or being erased; which tables a world's rows lie in; and a
-- log of what changed in each world.
--
-- Further SQLSTATEs of our own (see 0003):
--   KB030  the world is archived
--   KB031  there is no such job
--   KB032  the job cannot be cancelled
--   KB033  a world of this id exists
--   KB034  rows of an import cannot be taken in; DETAIL says why in UPPER_SNAKE_CASE
--   KB035  the job was taken over, ended or cancelled

ALTER TABLE worlds
    -- Read-only since; NULL: it can be written to.
    ADD COLUMN archive_time timestamptz,
    -- True while a job makes or erases it. The policies below then show it to nobody, so that every
    -- function finds no such world.
    ADD COLUMN hidden boolean NOT NULL DEFAULT false,
    -- New for each world, also for one that is imported under an id that was used before.
    ADD COLUMN incarnation uuid NOT NULL DEFAULT gen_random_uuid(),
    -- Until then somebody wants to be woken when the world changes.
    ADD COLUMN watched_until timestamptz NOT NULL DEFAULT '-infinity';

DROP POLICY own_world ON worlds;
CREATE POLICY own_world ON worlds
    USING (world_id = (SELECT current_world()) AND NOT hidden)
    WITH CHECK (world_id = (SELECT current_world()) AND NOT hidden);
DROP POLICY directory ON worlds;
CREATE POLICY directory ON worlds FOR SELECT
    USING ((SELECT current_setting('knowledge_base.directory', true)) = 'on' AND NOT hidden);

-- Enters p_world to write to it, one writer at a time, and returns what a request did before; NULL
-- when the request is new. Raises KB001, KB002 and, for a new request to an archived world, KB030.
CREATE OR REPLACE FUNCTION begin_request(p_world uuid, p_request uuid, p_fingerprint bytea)
RETURNS jsonb
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request_to_any(p_world, p_request, p_fingerprint);
BEGIN
    IF v_known IS NULL
        AND (SELECT w.archive_time IS NOT NULL FROM worlds w WHERE w.world_id = p_world)
    THEN
        RAISE EXCEPTION 'world is archived' USING ERRCODE = 'KB030';
    END IF;
    RETURN v_known;
END $$;

-- As begin_request, for a request that an archived world takes too.
CREATE FUNCTION begin_request_to_any(p_world uuid, p_request uuid, p_fingerprint bytea)
RETURNS jsonb
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

-- Archives a world or ends that, and returns it as it is now. Raises KB001 and KB002.
CREATE FUNCTION set_world_archived(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz, p_archived boolean
) RETURNS SETOF worlds
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF begin_request_to_any(p_world, p_request, p_fingerprint) IS NULL THEN
        UPDATE worlds w SET archive_time = CASE WHEN p_archived THEN p_now END
        WHERE w.world_id = p_world AND (w.archive_time IS NOT NULL) <> p_archived;
        IF FOUND THEN
            PERFORM append_changes(
                p_world, CASE WHEN p_archived THEN 'archived' ELSE 'unarchived' END, ARRAY[NULL::uuid]
            );
        END IF;
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (p_world, p_request, p_fingerprint, '{}', p_now);
    END IF;
    RETURN QUERY SELECT w.* FROM worlds w WHERE w.world_id = p_world;
END $$;

-- The worlds that take an event: of this type, of this source; only p_world unless it is NULL. An
-- archived world takes none, nor does one that is being made or erased.
CREATE OR REPLACE FUNCTION subscribed_worlds(p_event_type integer, p_source text, p_world uuid)
RETURNS SETOF uuid
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.directory', 'on', true);
    RETURN QUERY SELECT s.world_id FROM event_subscriptions s JOIN worlds w USING (world_id)
    WHERE (p_world IS NULL OR s.world_id = p_world)
        AND p_event_type = ANY (s.event_types)
        AND (cardinality(s.sources) = 0 OR p_source = ANY (s.sources))
        AND w.archive_time IS NULL
    ORDER BY s.world_id;
    PERFORM set_config('knowledge_base.directory', '', true);
END $$;

-- Which tables ----------------------------------------------------------------------------------

-- What the tables of a world are to it. `content` is what a fork copies and an export holds;
-- `subscription` is copied when asked for; `local` rows make sense where they are only. Every table
-- is erased. A table that is not named here is content. change_kind and id_column say what the log
-- of changes tells of a new row; NULL: nothing.
CREATE FUNCTION known_world_tables()
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
        ('world_changes', 'local', NULL, NULL)
$$;

-- All tables with rows of worlds, found by their column world_id; depth is above that of the tables
-- they refer to. of_events says whether a row is an event or belongs to one by its sequence.
CREATE FUNCTION world_tables() RETURNS TABLE (
    table_name text, oid oid, role text, change_kind text, id_column text, depth integer,
    of_events boolean
)
LANGUAGE sql STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    WITH RECURSIVE found AS (
        SELECT c.oid, c.relname::text AS name
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'knowledge_base'::regnamespace AND c.relkind IN ('r', 'p')
            AND a.attname = 'world_id' AND NOT a.attisdropped AND c.relname <> 'worlds'
    ), refers AS (
        SELECT k.conrelid AS child, k.confrelid AS parent
        FROM pg_constraint k
        WHERE k.contype = 'f' AND k.conrelid <> k.confrelid
            AND k.conrelid IN (SELECT f.oid FROM found f)
            AND k.confrelid IN (SELECT f.oid FROM found f)
    ), levels AS (
        SELECT f.oid, 0 AS depth FROM found f
        UNION
        SELECT r.child, l.depth + 1 FROM levels l JOIN refers r ON r.parent = l.oid
        WHERE l.depth < 16
    )
    SELECT
        f.name, f.oid, coalesce(k.role, 'content'), k.change_kind, k.id_column,
        (SELECT max(l.depth) FROM levels l WHERE l.oid = f.oid),
        f.name = 'story_events' OR EXISTS (
            SELECT FROM refers r WHERE r.child = f.oid AND r.parent = 'story_events'::regclass
        )
    FROM found f LEFT JOIN known_world_tables() k ON k.table_name = f.name
$$;

-- The log of changes ----------------------------------------------------------------------------

-- What changed in each world, in the order of commits: numbers are given under the lock on the
-- world's row, which is held until the commit. Holds ids and no text. Old rows go, the last one of
-- each world stays, since it is what the next number is counted from.
CREATE TABLE world_changes (
    world_id uuid NOT NULL REFERENCES worlds,
    change_number bigint NOT NULL,
    kind text NOT NULL,
    subject_id uuid,
    record_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (world_id, change_number)
);
CREATE INDEX world_changes_record_time ON world_changes USING brin (record_time);
ALTER TABLE world_changes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_world ON world_changes USING (world_id = (SELECT current_world()));

-- How many changes of a world are kept at least.
CREATE FUNCTION kept_changes() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 5000;

-- Logs changes of a world and wakes whoever watches it. Runs as the owner, since the service's role
-- may not change what is logged.
CREATE FUNCTION append_changes(p_world uuid, p_kind text, p_subjects uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_watched_until timestamptz;
    v_last bigint;
    v_next bigint;
BEGIN
    SELECT w.watched_until INTO v_watched_until FROM worlds w
    WHERE w.world_id = p_world FOR NO KEY UPDATE;
    SELECT coalesce(max(c.change_number), 0) INTO v_last
    FROM world_changes c WHERE c.world_id = p_world;
    INSERT INTO world_changes (world_id, change_number, kind, subject_id)
    SELECT p_world, v_last + s.ordinal, p_kind, s.subject
    FROM unnest(p_subjects) WITH ORDINALITY AS s (subject, ordinal);
    v_next := v_last + cardinality(p_subjects);
    -- Now and then, not each time: so that deleting costs little and the log stays bounded.
    IF v_next / 500 > v_last / 500 THEN
        DELETE FROM world_changes c
        WHERE c.world_id = p_world AND c.change_number <= v_next - kept_changes();
    END IF;
    -- A notification makes commits wait for each other, so only worlds that are watched pay for it.
    IF v_watched_until > clock_timestamp() THEN
        PERFORM pg_notify('knowledge_base_world_changes', p_world::text);
    END IF;
END $$;

-- Logs what a statement added or changed; its arguments are the kind and the column with the id.
-- Copies of whole worlds are not logged row by row.
CREATE FUNCTION note_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_world uuid;
    v_subjects uuid[];
BEGIN
    IF current_setting('knowledge_base.copying', true) = 'on' THEN
        RETURN NULL;
    END IF;
    FOR v_world, v_subjects IN EXECUTE format(
        'SELECT c.world_id, array_agg(DISTINCT %s) FROM changed c GROUP BY c.world_id',
        CASE WHEN TG_ARGV[1] = '' THEN 'NULL::uuid' ELSE format('c.%I', TG_ARGV[1]) END
    ) LOOP
        PERFORM append_changes(v_world, TG_ARGV[0], v_subjects);
    END LOOP;
    RETURN NULL;
END $$;

-- As note_changes for story events, in the order of their sequence.
CREATE FUNCTION note_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_world uuid;
    v_subjects uuid[];
BEGIN
    IF current_setting('knowledge_base.copying', true) = 'on' THEN
        RETURN NULL;
    END IF;
    FOR v_world, v_subjects IN
        SELECT c.world_id, array_agg(c.event_id ORDER BY c.sequence) FROM changed c
        GROUP BY c.world_id
    LOOP
        PERFORM append_changes(v_world, 'event', v_subjects);
    END LOOP;
    RETURN NULL;
END $$;

-- Lets the log know of every table that has something to tell and is not heard yet.
CREATE FUNCTION hear_world_tables() RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_table record;
    v_event text;
BEGIN
    FOR v_table IN SELECT * FROM world_tables() t WHERE t.change_kind IS NOT NULL LOOP
        -- Events are appended only; a new vector of an old event is no change of the story.
        FOREACH v_event IN ARRAY CASE
            WHEN v_table.table_name = 'story_events' THEN ARRAY['insert']
            ELSE ARRAY['insert', 'update', 'delete']
        END LOOP
            EXECUTE format(
                'CREATE OR REPLACE TRIGGER %I AFTER %s ON %I REFERENCING %s TABLE AS changed'
                ' FOR EACH STATEMENT EXECUTE FUNCTION %s(%L, %L)',
                'note_' || v_event, v_event, v_table.table_name,
                CASE v_event WHEN 'delete' THEN 'OLD' ELSE 'NEW' END,
                CASE v_table.table_name WHEN 'story_events' THEN 'note_events'
                    ELSE 'note_changes' END,
                v_table.change_kind, coalesce(v_table.id_column, '')
            );
        END LOOP;
    END LOOP;
END $$;

-- Where the log of a world begins and ends, and which incarnation of the world it tells of. Says
-- that the world is watched for a minute when p_watch. Raises KB001.
CREATE FUNCTION world_log(p_world uuid, p_watch boolean)
RETURNS TABLE (incarnation uuid, oldest bigint, newest bigint)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    IF p_watch THEN
        UPDATE worlds w SET watched_until = clock_timestamp() + interval '60 seconds'
        WHERE w.world_id = p_world AND w.watched_until < clock_timestamp() + interval '30 seconds';
    END IF;
    RETURN QUERY
    SELECT
        w.incarnation,
        coalesce(
            (SELECT min(c.change_number) FROM world_changes c WHERE c.world_id = p_world), 1
        ),
        coalesce(
            (SELECT max(c.change_number) FROM world_changes c WHERE c.world_id = p_world), 0
        )
    FROM worlds w WHERE w.world_id = p_world;
END $$;

-- The changes of a world after p_after, oldest first. Raises KB001.
CREATE FUNCTION read_changes(p_world uuid, p_after bigint, p_limit integer)
RETURNS SETOF world_changes
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    RETURN QUERY
    SELECT c.* FROM world_changes c
    WHERE c.world_id = p_world AND c.change_number > p_after
    ORDER BY c.change_number LIMIT p_limit;
END $$;

-- Forgets changes recorded before p_before, of all worlds, but the last one of each; some thousands
-- at a time. Returns how many.
CREATE FUNCTION forget_changes(p_before timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_count bigint;
BEGIN
    DELETE FROM world_changes c WHERE (c.world_id, c.change_number) IN (
        SELECT o.world_id, o.change_number FROM world_changes o
        WHERE o.record_time < p_before AND EXISTS (
            SELECT FROM world_changes n
            WHERE n.world_id = o.world_id AND n.change_number > o.change_number
        )
        LIMIT 5000
    );
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;
