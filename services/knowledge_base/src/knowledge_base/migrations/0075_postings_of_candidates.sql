-- What a recall's candidates score is computed from fewer pages. What it answers stays as it was.
--
-- Of eighty events it wants the postings of the query's few stems. Told both, the planner read all
-- stems of the events, 865 rows from 29 pages of the table; stem by stem it reads the covering index,
-- where a stem's postings in a world lie next to each other and other recalls have read them.
DO $$
DECLARE
    -- recall_from_segments of migration 0073, but for these lines.
    v_function text := pg_get_functiondef((
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = 'knowledge_base'::regnamespace
            AND p.proname = 'recall_from_segments' AND 'p_sure' = ANY (p.proargnames)
    ));
    v_before text := $before$
            SELECT p.sequence * 65536 + array_position(v_terms, p.term) AS place, p.frequency
            FROM story_event_terms p
            WHERE p.world_id = p_world AND p.term = ANY (v_terms) AND p.sequence = ANY (v_around)
$before$;
    v_since text := $since$
            SELECT p.sequence * 65536 + t.place AS place, p.frequency
            FROM unnest(v_terms) WITH ORDINALITY AS t (term, place)
            CROSS JOIN LATERAL (
                SELECT s.sequence, s.frequency FROM story_event_terms s
                WHERE s.world_id = p_world AND s.term = t.term AND s.sequence = ANY (v_around)
                OFFSET 0 -- or they are joined by hash, for which all of the world's are read
            ) p
$since$;
BEGIN
    IF position(v_before IN v_function) = 0 THEN
        RAISE EXCEPTION 'recall_from_segments is not that of migration 0073';
    END IF;
    EXECUTE replace(v_function, v_before, v_since);
END $$;
