-- Long work on whole worlds. A job's state is here and nowhere else: each step of it is one bounded
-- transaction that also notes how far the job is, so that whoever goes on after a crash finds a whole
-- number of steps done. The functions run as the owner, since a copy works for two worlds at once and
-- an erasure deletes what the service's role may not; each works on the worlds its job names only.

CREATE TABLE world_jobs (
    job_id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('fork', 'erase', 'import')),
    state text NOT NULL DEFAULT 'running'
        CHECK (state IN ('running', 'undoing', 'succeeded', 'failed', 'cancelled')),
    -- The world forked or erased, the world made; no other world's rows are touched. Not named
    -- world_id: a job outlives its world, and tells of ids only.
    source_id uuid,
    target_id uuid,
    -- start, events, rows, purge: what comes next.
    phase text NOT NULL DEFAULT 'start',
    end_time_in_story timestamptz,
    with_subscription boolean NOT NULL DEFAULT false,
    rewrite_tables boolean NOT NULL DEFAULT false,
    -- Of a fork: events of the source up to this one exist in the copy's time; the last one looked
    -- at; the number given to the last one copied.
    bound_sequence bigint NOT NULL DEFAULT 0,
    last_sequence bigint NOT NULL DEFAULT 0,
    copied_events bigint NOT NULL DEFAULT 0,
    done_rows bigint NOT NULL DEFAULT 0,
    total_rows bigint NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    failure_reason text NOT NULL DEFAULT '',
    -- How an undone job ends.
    end_state text NOT NULL DEFAULT 'failed',
    lease_holder uuid,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    end_time timestamptz,
    rows_gone_time timestamptz,
    storage_gone_time timestamptz
);
CREATE INDEX world_jobs_unfinished ON world_jobs (create_time) WHERE end_time IS NULL;
CREATE INDEX world_jobs_create_time ON world_jobs (create_time, job_id);

-- The columns of a table that a copy of a row must give.
CREATE FUNCTION copied_columns(p_table oid) RETURNS TABLE (name text, type oid)
LANGUAGE sql STABLE
AS $$
    SELECT a.attname::text, a.atttypid FROM pg_attribute a
    WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attgenerated = '' AND a.attidentity = ''
    ORDER BY a.attnum
$$;

-- Copies rows of one table from world to world; returns how many. Columns that name a world are
-- changed from the one to the other. With p_end, only rows that held before it in the story, and what
-- ended later has no end: that is not known yet. With p_events, only the rows of these events of the
-- source, numbered from p_first on.
CREATE FUNCTION copy_world_rows(
    p_table oid, p_from uuid, p_to uuid, p_end timestamptz,
    p_events bigint[] DEFAULT NULL, p_first bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_table text := p_table::regclass::text;
    v_columns text;
    v_values text;
    v_where text := '';
    v_count bigint;
    v_names text[];
BEGIN
    SELECT
        string_agg(format('%I', c.name), ', '),
        string_agg(
            CASE
                WHEN c.name LIKE '%world_id' AND c.type = 'uuid'::regtype
                    THEN format('CASE WHEN s.%1$I = $1 THEN $2 ELSE s.%1$I END', c.name)
                WHEN c.name = 'sequence' AND p_events IS NOT NULL THEN '$5 + m.position - 1'
                WHEN c.name = 'valid_until' THEN
                    'CASE WHEN s.valid_until >= $3 THEN ''infinity'' ELSE s.valid_until END'
                WHEN c.name = 'latest_version' THEN
                    '(SELECT max(v.version) FROM concept_versions v WHERE v.world_id = $1'
                    ' AND v.concept_id = s.concept_id AND ($3 IS NULL OR v.valid_from < $3))'
                ELSE format('s.%I', c.name)
            END, ', '
        ),
        array_agg(c.name)
    INTO v_columns, v_values, v_names
    FROM copied_columns(p_table) c;
    IF p_end IS NOT NULL AND 'valid_from' = ANY (v_names) THEN
        v_where := ' AND s.valid_from < $3';
    END IF;
    -- A concept of which nothing is known yet is not in the copy, nor is what ties it.
    IF v_table = 'narrative_concepts' THEN
        v_where := ' AND EXISTS (SELECT FROM concept_versions v WHERE v.world_id = $1'
            ' AND v.concept_id = s.concept_id AND ($3 IS NULL OR v.valid_from < $3))';
    ELSIF v_table = 'concept_relationships' THEN
        v_where := v_where || ' AND NOT EXISTS ('
            'SELECT FROM (VALUES (s.from_world_id, s.from_concept_id),'
            ' (s.to_world_id, s.to_concept_id)) AS tied (world_id, concept_id)'
            ' WHERE tied.world_id = $1 AND NOT EXISTS (SELECT FROM narrative_concepts n'
            ' WHERE n.world_id = $2 AND n.concept_id = tied.concept_id))';
    END IF;
    EXECUTE format(
        'INSERT INTO %s (%s) SELECT %s FROM %s s%s WHERE s.world_id = $1%s',
        v_table, v_columns, v_values, v_table,
        CASE WHEN p_events IS NULL THEN ''
            ELSE ' JOIN unnest($4) WITH ORDINALITY AS m (sequence, position)'
                ' ON s.sequence = m.sequence' END,
        v_where
    ) USING p_from, p_to, p_end, p_events, p_first;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;

-- Begins to copy a world: makes the copy, hidden and empty. Raises KB001, KB002, KB003.
CREATE FUNCTION begin_fork(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz, p_job uuid,
    p_target uuid, p_name text, p_description text, p_end timestamptz, p_with_subscription boolean
) RETURNS SETOF world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb;
BEGIN
    PERFORM refuse_hidden(p_world);
    v_known := begin_request_to_any(p_world, p_request, p_fingerprint);
    IF v_known IS NULL THEN
        INSERT INTO worlds (world_id, name, description, create_time, hidden)
        SELECT p_target, p_name, coalesce(nullif(p_description, ''), w.description), p_now, true
        FROM worlds w WHERE w.world_id = p_world
        ON CONFLICT (name) DO NOTHING;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'world name taken' USING ERRCODE = 'KB003';
        END IF;
        INSERT INTO world_jobs (
            job_id, kind, source_id, target_id, end_time_in_story, with_subscription,
            create_time, update_time
        ) VALUES (p_job, 'fork', p_world, p_target, p_end, p_with_subscription, p_now, p_now);
        v_known := jsonb_build_object('job_id', p_job);
        INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
        VALUES (p_world, p_request, p_fingerprint, v_known, p_now);
    END IF;
    RETURN QUERY SELECT j.* FROM world_jobs j WHERE j.job_id = (v_known ->> 'job_id')::uuid;
END $$;

-- Raises KB001 unless the world is there for callers: these functions run as the owner, whom the
-- policies do not bind. The shared world is nobody's to copy or erase.
CREATE FUNCTION refuse_hidden(p_world uuid) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM FROM worlds w
    WHERE w.world_id = p_world AND NOT w.hidden AND p_world <> shared_world()
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such world' USING ERRCODE = 'KB001';
    END IF;
END $$;

-- Hides a world from every call and begins to erase it. Its name is free at once. Raises KB001.
-- The request is kept with the job, not with the world, so a repeat is known by the job's id.
CREATE FUNCTION begin_erase(p_world uuid, p_now timestamptz, p_job uuid, p_rewrite_tables boolean)
RETURNS SETOF world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_job world_jobs;
BEGIN
    SELECT * INTO v_job FROM world_jobs j WHERE j.job_id = p_job;
    IF FOUND THEN
        IF v_job.source_id <> p_world OR v_job.rewrite_tables <> p_rewrite_tables THEN
            RAISE EXCEPTION 'request id used otherwise' USING ERRCODE = 'KB002';
        END IF;
        RETURN NEXT v_job;
        RETURN;
    END IF;
    PERFORM refuse_hidden(p_world);
    UPDATE worlds w SET hidden = true, name = 'erasing ' || p_job, description = ''
    WHERE w.world_id = p_world;
    RETURN QUERY INSERT INTO world_jobs (
        job_id, kind, source_id, rewrite_tables, create_time, update_time
    ) VALUES (p_job, 'erase', p_world, p_rewrite_tables, p_now, p_now) RETURNING *;
    PERFORM pg_notify('knowledge_base_world_changes', p_world::text);
END $$;

-- Hands a job that nobody works on to p_holder for a while; no row when there is none.
CREATE FUNCTION claim_job(p_holder uuid, p_lease interval) RETURNS SETOF world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_job uuid;
BEGIN
    SELECT j.job_id INTO v_job FROM world_jobs j
    WHERE j.end_time IS NULL AND j.lease_until < clock_timestamp()
    ORDER BY j.create_time LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        RETURN QUERY UPDATE world_jobs j SET
            lease_holder = p_holder, lease_until = clock_timestamp() + p_lease,
            -- Nobody sends an import's rows any more when its lease has run out.
            state = CASE WHEN j.kind = 'import' THEN 'undoing' ELSE j.state END,
            failure_reason = CASE WHEN j.kind = 'import' AND j.failure_reason = ''
                THEN 'IMPORT_BROKEN_OFF' ELSE j.failure_reason END
        WHERE j.job_id = v_job RETURNING j.*;
    END IF;
END $$;

-- Locks a job for one step of its holder and extends the lease. Raises KB035 when another one works
-- on it or it has ended.
CREATE FUNCTION hold_job(p_job uuid, p_holder uuid, p_lease interval) RETURNS world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_job world_jobs;
BEGIN
    UPDATE world_jobs j SET lease_until = clock_timestamp() + p_lease
    WHERE j.job_id = p_job AND j.lease_holder = p_holder AND j.end_time IS NULL
    RETURNING * INTO v_job;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job is not held' USING ERRCODE = 'KB035';
    END IF;
    RETURN v_job;
END $$;

-- Does one bounded step of a job and returns how it stands. Raises KB035.
CREATE FUNCTION advance_job(p_job uuid, p_holder uuid, p_lease interval, p_rows integer)
RETURNS SETOF world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_job world_jobs := hold_job(p_job, p_holder, p_lease);
    v_done bigint := 0;
BEGIN
    PERFORM set_config('knowledge_base.copying', 'on', true);
    IF v_job.state = 'undoing' THEN
        v_done := erase_step(v_job.target_id, p_rows);
        IF v_done = 0 THEN
            UPDATE world_jobs j SET state = j.end_state, end_time = clock_timestamp()
            WHERE j.job_id = p_job;
        END IF;
    ELSIF v_job.kind = 'fork' THEN
        v_done := fork_step(v_job, p_rows);
    ELSIF v_job.kind = 'erase' THEN
        IF v_job.phase = 'start' THEN
            UPDATE world_jobs j SET phase = 'rows', total_rows = world_row_count(v_job.source_id)
            WHERE j.job_id = p_job;
        ELSIF v_job.phase = 'rows' THEN
            v_done := erase_step(v_job.source_id, p_rows);
            IF v_done = 0 THEN
                UPDATE world_jobs j SET phase = 'purge', rows_gone_time = clock_timestamp()
                WHERE j.job_id = p_job;
            END IF;
        END IF;
    END IF;
    PERFORM set_config('knowledge_base.copying', '', true);
    RETURN QUERY UPDATE world_jobs j SET
        done_rows = j.done_rows + CASE WHEN v_job.state = 'undoing' THEN 0 ELSE v_done END,
        update_time = clock_timestamp(), failures = 0
    WHERE j.job_id = p_job RETURNING j.*;
END $$;

-- One step of a fork: first all that is no event, under the lock that keeps writers of the source
-- out, so that the copy is the source at one instant; then, since events never change, the events up
-- to then in batches; then the copy is shown. A source that is being erased ends the fork: an erasure
-- cannot begin during a step, and no step follows it.
CREATE FUNCTION fork_step(p_job world_jobs, p_rows integer) RETURNS bigint
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_table record;
    v_events bigint[];
    v_done bigint := 0;
BEGIN
    PERFORM FROM worlds w WHERE w.world_id = p_job.source_id AND NOT w.hidden FOR KEY SHARE;
    IF NOT FOUND THEN
        UPDATE world_jobs j SET state = 'undoing', failure_reason = 'WORLD_ERASED'
        WHERE j.job_id = p_job.job_id;
        RETURN 0;
    END IF;
    IF p_job.phase = 'start' THEN
        PERFORM FROM worlds w WHERE w.world_id = p_job.source_id FOR NO KEY UPDATE;
        FOR v_table IN
            SELECT t.* FROM world_tables() t
            WHERE NOT t.of_events AND (
                t.role = 'content' OR (t.role = 'subscription' AND p_job.with_subscription))
            ORDER BY t.depth, t.table_name
        LOOP
            v_done := v_done + copy_world_rows(
                v_table.oid, p_job.source_id, p_job.target_id, p_job.end_time_in_story
            );
        END LOOP;
        UPDATE world_jobs j SET
            phase = 'events', bound_sequence = w.event_count,
            total_rows = v_done + (
                SELECT count(*) FROM story_events e
                WHERE e.world_id = p_job.source_id AND e.sequence <= w.event_count
                    AND (p_job.end_time_in_story IS NULL
                        OR e.occur_time < p_job.end_time_in_story)
            )
        FROM worlds w WHERE w.world_id = p_job.source_id AND j.job_id = p_job.job_id;
        RETURN v_done;
    END IF;

    SELECT array_agg(b.sequence) INTO v_events FROM (
        SELECT e.sequence FROM story_events e
        WHERE e.world_id = p_job.source_id AND e.sequence > p_job.last_sequence
            AND e.sequence <= p_job.bound_sequence
            AND (p_job.end_time_in_story IS NULL OR e.occur_time < p_job.end_time_in_story)
        ORDER BY e.sequence LIMIT p_rows
    ) b;
    IF v_events IS NOT NULL THEN
        FOR v_table IN
            SELECT t.* FROM world_tables() t WHERE t.of_events AND t.role = 'content'
            ORDER BY t.depth, t.table_name
        LOOP
            PERFORM copy_world_rows(
                v_table.oid, p_job.source_id, p_job.target_id, p_job.end_time_in_story,
                v_events, p_job.copied_events + 1
            );
        END LOOP;
        UPDATE world_jobs j SET
            last_sequence = v_events[cardinality(v_events)],
            copied_events = j.copied_events + cardinality(v_events)
        WHERE j.job_id = p_job.job_id;
        RETURN cardinality(v_events);
    END IF;

    PERFORM show_made_world(p_job.target_id);
    UPDATE world_jobs j SET state = 'succeeded', end_time = clock_timestamp()
    WHERE j.job_id = p_job.job_id;
    RETURN 0;
END $$;

-- Counts what a world that was made by a job holds, and shows it.
CREATE FUNCTION show_made_world(p_world uuid) RETURNS void
LANGUAGE sql
SET search_path = knowledge_base, public, pg_temp
AS $$
    UPDATE worlds w SET
        event_count = (SELECT count(*) FROM story_events e WHERE e.world_id = p_world),
        event_term_count = (
            SELECT coalesce(sum(t.frequency), 0) FROM story_event_terms t
            WHERE t.world_id = p_world
        ),
        hidden = false
    WHERE w.world_id = p_world
$$;

-- Rows of a world in all its tables.
CREATE FUNCTION world_row_count(p_world uuid) RETURNS bigint
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_table record;
    v_count bigint;
    v_total bigint := 0;
BEGIN
    FOR v_table IN SELECT * FROM world_tables() LOOP
        EXECUTE format('SELECT count(*) FROM %s WHERE world_id = $1', v_table.oid::regclass)
        INTO v_count USING p_world;
        v_total := v_total + v_count;
    END LOOP;
    RETURN v_total;
END $$;

-- Deletes up to p_rows rows of a world, those that refer to others first; then, when there are none,
-- the world's traces in tables that cross worlds and the world itself. Returns how many rows it
-- deleted; 0 when nothing is left.
CREATE FUNCTION erase_step(p_world uuid, p_rows integer) RETURNS bigint
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_table record;
    v_count bigint;
BEGIN
    IF p_world IS NULL OR p_world = shared_world()
        OR EXISTS (SELECT FROM worlds w WHERE w.world_id = p_world AND NOT w.hidden)
    THEN
        RAISE EXCEPTION 'only a hidden world is erased';
    END IF;
    FOR v_table IN SELECT * FROM world_tables() t ORDER BY t.depth DESC, t.table_name LOOP
        EXECUTE format(
            'DELETE FROM %1$s WHERE ctid = ANY (ARRAY('
            'SELECT ctid FROM %1$s WHERE world_id = $1 LIMIT $2))',
            v_table.oid::regclass
        ) USING p_world, p_rows;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        IF v_count > 0 THEN
            RETURN v_count;
        END IF;
    END LOOP;
    -- Announcements on their way out name the world and the kinds its callers chose.
    DELETE FROM outbox o WHERE position(convert_to(p_world::text, 'UTF8') IN o.event) > 0;
    DELETE FROM outbox_parked o WHERE position(convert_to(p_world::text, 'UTF8') IN o.event) > 0;
    DELETE FROM inbox i WHERE i.consumer = 'knowledge_base/' || p_world;
    -- Who made it, or asked for a copy or an import that became it.
    DELETE FROM requests r
    WHERE r.world_id = shared_world() AND r.response ->> 'world_id' = p_world::text;
    DELETE FROM worlds w WHERE w.world_id = p_world;
    RETURN 0;
END $$;

-- Ends an erasure; p_purged says whether dead rows were removed from the tables. Raises KB035.
CREATE FUNCTION end_erase(p_job uuid, p_holder uuid, p_lease interval, p_purged boolean)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM hold_job(p_job, p_holder, p_lease);
    UPDATE world_jobs j SET
        state = 'succeeded', end_time = clock_timestamp(), update_time = clock_timestamp(),
        storage_gone_time = CASE WHEN p_purged THEN clock_timestamp() END
    WHERE j.job_id = p_job AND j.kind = 'erase' AND j.phase = 'purge';
END $$;

-- Notes that a step failed; after p_tries in a row the job is undone, except an erasure, which is
-- tried for ever, later and later. Raises KB035.
CREATE FUNCTION note_job_failure(p_job uuid, p_holder uuid, p_tries integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM hold_job(p_job, p_holder, interval '0');
    UPDATE world_jobs j SET
        failures = j.failures + 1,
        lease_until = clock_timestamp() + interval '1 second' * least(60, 2 ^ j.failures),
        state = CASE WHEN j.kind = 'fork' AND j.failures + 1 >= p_tries THEN 'undoing'
            ELSE j.state END,
        failure_reason = CASE WHEN j.kind = 'fork' AND j.failures + 1 >= p_tries
            AND j.failure_reason = '' THEN 'INTERNAL' ELSE j.failure_reason END
    WHERE j.job_id = p_job;
END $$;

-- Returns a job. Raises KB031.
CREATE FUNCTION get_job(p_job uuid) RETURNS SETOF world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT j.* FROM world_jobs j WHERE j.job_id = p_job;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such job' USING ERRCODE = 'KB031';
    END IF;
END $$;

-- Jobs, newest first, before the one named.
CREATE FUNCTION list_jobs(
    p_before_time timestamptz, p_before_job uuid, p_unfinished boolean, p_limit integer
) RETURNS SETOF world_jobs
LANGUAGE sql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT j.* FROM world_jobs j
    WHERE (p_before_time IS NULL OR (j.create_time, j.job_id) < (p_before_time, p_before_job))
        AND (NOT p_unfinished OR j.end_time IS NULL)
    ORDER BY j.create_time DESC, j.job_id DESC LIMIT p_limit
$$;

-- Has a fork or an import undone and returns it; one that ended, or is being undone, stays as it
-- is. Raises KB031 and, for an erasure that has not ended, KB032.
CREATE FUNCTION cancel_job(p_job uuid) RETURNS SETOF world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_job world_jobs;
BEGIN
    SELECT * INTO v_job FROM world_jobs j WHERE j.job_id = p_job FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such job' USING ERRCODE = 'KB031';
    ELSIF v_job.end_time IS NULL AND v_job.kind = 'erase' THEN
        RAISE EXCEPTION 'an erasure goes on' USING ERRCODE = 'KB032';
    ELSIF v_job.state = 'running' THEN
        UPDATE world_jobs j SET
            state = 'undoing', end_state = 'cancelled', update_time = clock_timestamp(),
            -- Whoever works on it finds it is not theirs any more, and the next one undoes it.
            lease_holder = NULL, lease_until = '-infinity'
        WHERE j.job_id = p_job RETURNING * INTO v_job;
    END IF;
    RETURN NEXT v_job;
END $$;

-- When an erasure last began or ended; whoever keeps texts in memory forgets them when this changes.
CREATE FUNCTION last_erasure() RETURNS timestamptz
LANGUAGE sql SECURITY DEFINER STABLE
SET search_path = knowledge_base, public, pg_temp
AS $$
    SELECT max(greatest(j.create_time, j.rows_gone_time, j.end_time)) FROM world_jobs j
    WHERE j.kind = 'erase'
$$;

-- Forgets jobs that ended before p_before; returns how many.
CREATE FUNCTION forget_jobs(p_before timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_count bigint;
BEGIN
    DELETE FROM world_jobs j WHERE j.end_time < p_before;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;
