-- The words of a world's older events, weighed and side by side: a row for each stem in 250 events.
--
-- A row holds what the stem is worth in each of the events, its neighbours' share included, as
-- recall weighs it (the keyword_share of migration 0010, idf apart). A query then adds up a few rows
-- of vectors, 20 for each of its stems in a world of 5,000, in place of grouping thousands of
-- postings by event. The weighing is that of the service as it is shipped (word_weighing); a recall
-- that weighs otherwise reads the postings, which stay as they were, and so does every recall for
-- the latest events, which are in no segment yet.
--
-- Weights are single-precision. They tell which events can come first; what those score is computed
-- from the postings (migration 0055).

-- k1 and the weights of the event before, the one before that and the one after.
CREATE FUNCTION word_weighing() RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY[0.5, 0.5, 0.2, 0.2]::double precision[];

CREATE FUNCTION segment_events() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 250;

-- From how many events on a world has segments. In smaller ones grouping postings takes no longer.
CREATE FUNCTION segmented_from() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1000;

CREATE TABLE story_event_words (
    world_id uuid NOT NULL REFERENCES worlds,
    term text COLLATE "C" NOT NULL,
    -- Counts from 0; a segment holds the events 250 * segment + 1 .. 250 * segment + 250.
    segment integer NOT NULL,
    -- How many of them hold the stem themselves.
    containing integer NOT NULL,
    weights sparsevec(250) NOT NULL,
    PRIMARY KEY (world_id, term, segment)
);
ALTER TABLE story_event_words
    ALTER COLUMN term SET STATISTICS 0,
    ALTER COLUMN weights SET STORAGE PLAIN, ALTER COLUMN weights SET STATISTICS 0;
ALTER TABLE story_event_words ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_world ON story_event_words USING (world_id = (SELECT current_world()));
-- Who reads events reads their words, at once: see migration 0051.
DO $$
DECLARE
    v_role regrole;
BEGIN
    FOR v_role IN
        SELECT DISTINCT a.grantee::regrole FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'story_events'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> 0
    LOOP
        EXECUTE format('GRANT SELECT ON story_event_words TO %s', v_role);
    END LOOP;
END $$;

-- How many of a world's events, the oldest, have their words in segments.
ALTER TABLE worlds ADD COLUMN segmented_events bigint NOT NULL DEFAULT 0;

-- Writes segments of a world, at most p_limit, as far as its events go. An event weighs words of the
-- one after it, so a segment is written when there is one.
CREATE FUNCTION write_word_segments(p_world uuid, p_limit integer) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
SET enable_seqscan = off
SET enable_sort = off
AS $$
DECLARE
    v_weighing double precision[] := word_weighing();
    v_count bigint;
    v_done bigint;
BEGIN
    SELECT w.event_count, w.segmented_events INTO v_count, v_done
    FROM worlds w WHERE w.world_id = p_world FOR NO KEY UPDATE;
    FOR v_number IN 1 .. least(p_limit, (v_count - v_done - 1) / segment_events()) LOOP
        INSERT INTO story_event_words (world_id, term, segment, containing, weights)
        SELECT
            p_world, f.term, v_done / segment_events(), count(*) FILTER (WHERE f.own > 0),
            (
                '{' || string_agg(
                    (f.sequence - v_done) || ':'
                        || (f.frequency / (f.frequency + v_weighing[1]))::real,
                    ','
                ) || '}/' || segment_events()
            )::sparsevec
        FROM (
            SELECT
                t.term, t.sequence + n.step AS sequence, sum(t.frequency * n.weight) AS frequency,
                sum(CASE WHEN n.step = 0 THEN t.frequency ELSE 0 END) AS own
            FROM story_event_terms t
            CROSS JOIN unnest(
                ARRAY[0, 1, 2, -1], ARRAY[1, v_weighing[2], v_weighing[3], v_weighing[4]]
            ) AS n (step, weight)
            WHERE t.world_id = p_world
                AND t.sequence BETWEEN v_done - 1 AND v_done + segment_events() + 1
            GROUP BY t.term, t.sequence + n.step
        ) f
        WHERE f.sequence BETWEEN v_done + 1 AND v_done + segment_events()
        GROUP BY f.term;
        v_done := v_done + segment_events();
    END LOOP;
    UPDATE worlds w SET segmented_events = v_done
    WHERE w.world_id = p_world AND w.segmented_events <> v_done;
END $$;

-- Runs as the owner, since nobody else writes segments. A segment takes some 50 ms, so whoever
-- records waits for two at most, also while a world catches up. A copy or an import gets those of its
-- first 10,000 events when it is shown, the others as it goes on; until then their words are read
-- from the postings.
CREATE FUNCTION write_next_word_segments() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM write_word_segments(
        NEW.world_id, CASE WHEN OLD.hidden AND NOT NEW.hidden THEN 40 ELSE 2 END
    );
    RETURN NULL;
END $$;
CREATE TRIGGER write_word_segments AFTER UPDATE OF event_count ON worlds FOR EACH ROW
    WHEN (
        NEW.event_count > NEW.segmented_events + segment_events()
        AND NEW.event_count >= segmented_from()
    )
    EXECUTE FUNCTION write_next_word_segments();

DO $$
DECLARE
    v_world uuid;
BEGIN
    FOR v_world IN SELECT w.world_id FROM worlds w WHERE w.event_count >= segmented_from() LOOP
        PERFORM write_word_segments(v_world, 1000000);
    END LOOP;
END $$;

-- As blocks, segments are not copied: those of a copy come of its postings.
CREATE OR REPLACE FUNCTION known_world_tables()
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
        ('story_event_words', 'local', NULL, NULL),
        ('story_event_blocks', 'local', NULL, NULL),
        ('next_story_event_blocks', 'local', NULL, NULL),
        ('world_changes', 'local', NULL, NULL)
$$;
