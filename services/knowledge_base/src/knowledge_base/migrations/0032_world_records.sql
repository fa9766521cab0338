-- Worlds as records: reading all rows of one, table by table, and taking them in again.

-- What an export of a world holds: its tables in an order in which each refers to earlier ones only,
-- and how many rows of the world are in each.
CREATE FUNCTION export_plan(p_world uuid) RETURNS TABLE (table_name text, row_count bigint)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_table record;
BEGIN
    PERFORM enter_existing_world(p_world);
    FOR v_table IN
        SELECT * FROM world_tables() t WHERE t.role IN ('content', 'subscription')
        ORDER BY t.depth, t.table_name
    LOOP
        table_name := v_table.table_name;
        EXECUTE format('SELECT count(*) FROM %s WHERE world_id = $1', v_table.oid::regclass)
        INTO row_count USING p_world;
        RETURN NEXT;
    END LOOP;
END $$;

-- Rows of a world in one table after the primary key p_after (NULL: the first ones), in its order.
-- vector_names and vectors run parallel; a vector is in pgvector's binary form.
CREATE FUNCTION export_rows(p_world uuid, p_table text, p_after jsonb, p_limit integer)
RETURNS TABLE (row_columns text, row_key text, vector_names text[], vectors bytea[])
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_table oid := (SELECT t.oid FROM world_tables() t
        WHERE t.table_name = p_table AND t.role IN ('content', 'subscription'));
    v_key text[];
    v_key_values text[];
    v_plain text;
    v_vector_names text[];
    v_vectors text;
BEGIN
    PERFORM enter_existing_world(p_world);
    SELECT array_agg(quote_ident(a.attname) ORDER BY k.position),
        array_agg(
            format('($2 ->> %L)::%s', a.attname, format_type(a.atttypid, a.atttypmod))
            ORDER BY k.position
        )
    INTO v_key, v_key_values
    FROM pg_index i, unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position),
        pg_attribute a
    WHERE i.indrelid = v_table AND i.indisprimary
        AND a.attrelid = v_table AND a.attnum = k.attnum;
    SELECT
        string_agg(format('s.%I', c.name), ', ')
            FILTER (WHERE NOT format_type(c.type, NULL) ~ '(^|\.)(half)?vec(tor)?$'),
        coalesce(array_agg(c.name) FILTER (
            WHERE format_type(c.type, NULL) ~ '(^|\.)(half)?vec(tor)?$'), '{}'),
        coalesce(string_agg(format('vector_send(s.%I::vector)', c.name), ', ')
            FILTER (WHERE format_type(c.type, NULL) ~ '(^|\.)(half)?vec(tor)?$'), '')
    INTO v_plain, v_vector_names, v_vectors
    FROM copied_columns(v_table) c
    -- A change of model that is under way is this database's own.
    WHERE c.name NOT LIKE 'next\_%';
    RETURN QUERY EXECUTE format(
        'SELECT to_jsonb(p)::text, to_jsonb(k)::text, $4, ARRAY[%s]::bytea[]'
        ' FROM %s s, LATERAL (SELECT %s) p, LATERAL (SELECT s.%s) k'
        ' WHERE s.world_id = $1%s ORDER BY s.%s LIMIT $3',
        v_vectors, v_table::regclass, v_plain, array_to_string(v_key, ', s.'),
        CASE WHEN p_after IS NULL THEN '' ELSE format(
            ' AND (s.%s) > (%s)', array_to_string(v_key, ', s.'), array_to_string(v_key_values, ', ')
        ) END,
        array_to_string(v_key, ', s.')
    ) USING p_world, p_after, p_limit, v_vector_names;
END $$;

-- The concepts of all worlds that a world's relationships refer to.
CREATE FUNCTION shared_concepts_of(p_world uuid) RETURNS TABLE (concept_id uuid, name text)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    RETURN QUERY
    SELECT c.concept_id, c.name FROM narrative_concepts c
    WHERE c.world_id = shared_world() AND c.concept_id IN (
        SELECT r.from_concept_id FROM concept_relationships r
        WHERE r.world_id = p_world AND r.from_world_id = shared_world()
        UNION
        SELECT r.to_concept_id FROM concept_relationships r
        WHERE r.world_id = p_world AND r.to_world_id = shared_world()
    )
    ORDER BY c.name;
END $$;

-- The concepts of all worlds with these names.
CREATE FUNCTION shared_concepts_named(p_names text[]) RETURNS TABLE (concept_id uuid, name text)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(shared_world());
    RETURN QUERY
    SELECT c.concept_id, c.name FROM narrative_concepts c
    WHERE c.world_id = shared_world() AND c.name = ANY (p_names) AND c.player_id = '';
END $$;

-- Begins an import: makes the world, hidden and empty, and a job that its caller holds. No row is
-- returned when there was nothing to begin, since the request succeeded before. Raises KB002, KB003,
-- KB033.
CREATE FUNCTION begin_import(
    p_request uuid, p_fingerprint bytea, p_now timestamptz, p_job uuid, p_holder uuid,
    p_lease interval, p_world uuid, p_name text, p_description text, p_create_time timestamptz,
    p_total_rows bigint
) RETURNS SETOF world_jobs
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF begin_request_to_any(shared_world(), p_request, p_fingerprint) IS NOT NULL THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM worlds w WHERE w.world_id = p_world) THEN
        RAISE EXCEPTION 'world exists' USING ERRCODE = 'KB033';
    END IF;
    INSERT INTO worlds (world_id, name, description, create_time, hidden)
    VALUES (p_world, p_name, p_description, p_create_time, true)
    ON CONFLICT (name) DO NOTHING;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'world name taken' USING ERRCODE = 'KB003';
    END IF;
    RETURN QUERY INSERT INTO world_jobs (
        job_id, kind, target_id, phase, total_rows, lease_holder, lease_until, create_time,
        update_time
    ) VALUES (
        p_job, 'import', p_world, 'rows', p_total_rows, p_holder, clock_timestamp() + p_lease,
        p_now, p_now
    ) RETURNING *;
END $$;

-- What an import that succeeded made; no row when this request has not. Raises KB002.
CREATE FUNCTION imported_world(p_request uuid, p_fingerprint bytea)
RETURNS TABLE (world_id uuid, job_id uuid, imported_rows bigint, embedded_texts bigint)
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_known jsonb := begin_request_to_any(shared_world(), p_request, p_fingerprint);
BEGIN
    IF v_known IS NOT NULL THEN
        RETURN QUERY SELECT (v_known ->> 'world_id')::uuid, (v_known ->> 'job_id')::uuid,
            (v_known ->> 'imported_rows')::bigint, (v_known ->> 'embedded_texts')::bigint;
    END IF;
END $$;

-- Takes rows of one table in, for the hidden world of an import; p_rows is an array of objects that
-- all have the same keys. Columns that named the world exported (p_source) name the new one; one that
-- names any other world but the shared one is refused. Vectors in them are of p_model. Raises KB010,
-- KB034, KB035 and what the table's own constraints raise.
CREATE FUNCTION import_rows(
    p_job uuid, p_holder uuid, p_lease interval, p_table text, p_source uuid, p_rows jsonb,
    p_model text
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_job world_jobs := hold_job(p_job, p_holder, p_lease);
    v_table oid := (SELECT t.oid FROM world_tables() t
        WHERE t.table_name = p_table AND t.role IN ('content', 'subscription'));
    v_keys text[] := ARRAY(SELECT jsonb_object_keys(p_rows -> 0));
    v_columns text;
    v_values text;
    v_foreign text;
    v_known integer;
    v_count bigint;
BEGIN
    IF v_job.kind <> 'import' OR v_job.state <> 'running' THEN
        RAISE EXCEPTION 'job is not held' USING ERRCODE = 'KB035';
    END IF;
    PERFORM all_embedded_with(p_model, NULL);
    IF v_table IS NULL THEN
        RAISE EXCEPTION 'unknown table' USING ERRCODE = 'KB034', DETAIL = 'UNKNOWN_TABLE';
    END IF;
    SELECT
        string_agg(format('%I', c.name), ', '),
        string_agg(
            CASE WHEN c.name = 'world_id' THEN '$1'
                WHEN c.name LIKE '%world_id' AND c.type = 'uuid'::regtype
                    THEN format('CASE WHEN r.%1$I = $2 THEN $1 ELSE r.%1$I END', c.name)
                ELSE format('r.%I', c.name) END, ', '
        ),
        coalesce(string_agg(
            format('r.%I NOT IN ($2, shared_world())', c.name), ' OR '
        ) FILTER (WHERE c.name LIKE '%world_id' AND c.type = 'uuid'::regtype), 'false'),
        count(*)
    INTO v_columns, v_values, v_foreign, v_known
    FROM copied_columns(v_table) c WHERE c.name = ANY (v_keys);
    IF v_known <> cardinality(v_keys) OR NOT 'world_id' = ANY (v_keys) THEN
        RAISE EXCEPTION 'unknown column' USING ERRCODE = 'KB034', DETAIL = 'UNKNOWN_COLUMN';
    END IF;
    EXECUTE format(
        'SELECT count(*) FROM jsonb_populate_recordset(NULL::%s, $1) r'
        ' WHERE r.world_id IS DISTINCT FROM $2 OR %s',
        v_table::regclass, v_foreign
    ) INTO v_count USING p_rows, p_source;
    IF v_count > 0 THEN
        RAISE EXCEPTION 'row of another world' USING ERRCODE = 'KB034', DETAIL = 'FOREIGN_WORLD';
    END IF;
    PERFORM set_config('knowledge_base.copying', 'on', true);
    EXECUTE format(
        'INSERT INTO %1$s (%2$s) SELECT %3$s FROM jsonb_populate_recordset(NULL::%1$s, $3) r',
        v_table::regclass, v_columns, v_values
    ) USING v_job.target_id, p_source, p_rows;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    PERFORM set_config('knowledge_base.copying', '', true);
    UPDATE world_jobs j SET done_rows = j.done_rows + v_count, update_time = clock_timestamp()
    WHERE j.job_id = p_job;
    RETURN v_count;
END $$;

-- Extends the lease of an import while its texts are embedded. Raises KB035.
CREATE FUNCTION keep_job(p_job uuid, p_holder uuid, p_lease interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    IF (hold_job(p_job, p_holder, p_lease)).state NOT IN ('running', 'undoing') THEN
        RAISE EXCEPTION 'job is not held' USING ERRCODE = 'KB035';
    END IF;
END $$;

-- Ends an import: shows the world and remembers the request. Raises KB034 when the events are not
-- numbered without gaps, KB035.
CREATE FUNCTION end_import(
    p_job uuid, p_holder uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_embedded_texts bigint
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_job world_jobs := hold_job(p_job, p_holder, interval '1 minute');
BEGIN
    IF v_job.kind <> 'import' OR v_job.state <> 'running' THEN
        RAISE EXCEPTION 'job is not held' USING ERRCODE = 'KB035';
    END IF;
    IF (
        SELECT count(*) <> coalesce(max(e.sequence), 0) OR min(e.sequence) < 1 FROM story_events e
        WHERE e.world_id = v_job.target_id
    ) THEN
        RAISE EXCEPTION 'events have gaps' USING ERRCODE = 'KB034', DETAIL = 'EVENTS_NOT_NUMBERED';
    END IF;
    PERFORM show_made_world(v_job.target_id);
    INSERT INTO requests (world_id, request_id, fingerprint, response, record_time)
    VALUES (
        shared_world(), p_request, p_fingerprint,
        jsonb_build_object(
            'world_id', v_job.target_id, 'job_id', p_job, 'imported_rows', v_job.done_rows,
            'embedded_texts', p_embedded_texts
        ), p_now
    );
    UPDATE world_jobs j SET
        state = 'succeeded', end_time = clock_timestamp(), update_time = clock_timestamp()
    WHERE j.job_id = p_job;
END $$;

-- Has an import undone whose rows cannot be taken in or whose caller left; its holder gives it up.
CREATE FUNCTION give_up_import(p_job uuid, p_holder uuid, p_reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    UPDATE world_jobs j SET
        state = 'undoing', failure_reason = p_reason, lease_holder = NULL, lease_until = '-infinity'
    WHERE j.job_id = p_job AND j.lease_holder = p_holder AND j.kind = 'import'
        AND j.state = 'running';
END $$;

-- What the service's role may do with worlds as a whole, and that every table tells of changes.
-- Jobs are read and changed by their functions only. MAINTAIN (PostgreSQL 17) lets the service take
-- dead rows out of the tables after an erasure; it gives no sight of rows.
CREATE FUNCTION grant_worlds(p_role text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM hear_world_tables();
    EXECUTE format(
        'REVOKE SELECT ON world_jobs FROM %1$I;'
        'GRANT UPDATE (archive_time, watched_until) ON worlds TO %1$I;'
        'REVOKE EXECUTE ON FUNCTION hear_world_tables FROM %1$I;',
        p_role
    );
    IF current_setting('server_version_num')::integer >= 170000 THEN
        EXECUTE format('GRANT MAINTAIN ON ALL TABLES IN SCHEMA knowledge_base TO %I', p_role);
    END IF;
END $$;

-- Texts of worlds leave no samples in the planner's statistics; no plan depends on them.
ALTER TABLE story_events ALTER COLUMN text SET STATISTICS 0;
ALTER TABLE story_events ALTER COLUMN participants SET STATISTICS 0;
ALTER TABLE concept_versions ALTER COLUMN description SET STATISTICS 0;
ALTER TABLE concept_versions ALTER COLUMN attributes SET STATISTICS 0;
ALTER TABLE worlds ALTER COLUMN description SET STATISTICS 0;
ALTER TABLE requests ALTER COLUMN response SET STATISTICS 0;
