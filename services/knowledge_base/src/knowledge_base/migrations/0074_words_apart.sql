-- Words that a slash holds together are words each, and a number is the same with a sign or without.
--
-- PostgreSQL's parser takes "day/night" for the path of a file, one stem, and the end of "pier-7" for
-- the number -7. Neither "night" nor "pier 7" found them. From this version on the service hands texts
-- and questions over with blanks there; what is stored already is read anew here. A replica of the
-- version before goes on as it did: what it ingests or records during the roll-out, and what an export
-- of before brings, keeps the stems that it has.
--
-- A million events take a second where nothing is to be parted, and three quarters of a minute where one in
-- a hundred is; who records in such a world waits until then.

-- As words_apart of domain/text.py.
CREATE FUNCTION words_apart(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN regexp_replace(p_text, '/|[-+](?=[0-9])', ' ', 'g');

CREATE OR REPLACE FUNCTION participants_named(p_world uuid, p_words text[]) RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM set_config('knowledge_base.world_id', p_world::text, true);
    RETURN QUERY
    SELECT DISTINCT n.name
    FROM unnest(p_words) AS w (word)
    CROSS JOIN LATERAL unnest(to_tsvector('english', words_apart(w.word))) AS l
    CROSS JOIN LATERAL (
        SELECT t.sequence FROM story_event_terms t
        WHERE t.world_id = p_world AND t.term = l.lexeme
        ORDER BY t.sequence DESC LIMIT 50
    ) AS latest
    JOIN story_events e ON e.world_id = p_world AND e.sequence = latest.sequence
    CROSS JOIN LATERAL unnest(e.participants) AS n (name)
    WHERE l.lexeme = ANY (tsvector_to_array(to_tsvector('english', words_apart(n.name))))
    ORDER BY n.name;
END $$;

DO $$
DECLARE
    v_chunk record;
    v_terms tsvector;
    v_count integer;
BEGIN
    -- Ingests take a row of these before any chunk.
    PERFORM FROM lore_statistics s ORDER BY s.collection FOR UPDATE;
    FOR v_chunk IN
        SELECT c.chunk_id, c.collection, c.term_count, t.search_text
        FROM document_chunks c
        CROSS JOIN LATERAL (
            SELECT concat_ws(
                E'\n\n', nullif(array_to_string(c.heading_path, ' > '), ''), nullif(c.text, '')
            ) AS search_text
        ) t
        WHERE t.search_text ~ '/|[-+][0-9]'
    LOOP
        v_terms := to_tsvector('english', words_apart(v_chunk.search_text));
        SELECT coalesce(sum(cardinality(t.positions)), 0) INTO v_count FROM unnest(v_terms) t;
        DELETE FROM chunk_terms p WHERE p.chunk_id = v_chunk.chunk_id;
        INSERT INTO chunk_terms (term, chunk_id, collection, frequency, term_count)
        SELECT t.lexeme, v_chunk.chunk_id, v_chunk.collection, cardinality(t.positions), v_count
        FROM unnest(v_terms) t;
        UPDATE document_chunks c SET term_count = v_count WHERE c.chunk_id = v_chunk.chunk_id;
        UPDATE lore_statistics s SET term_count = s.term_count + v_count - v_chunk.term_count
        WHERE s.collection = v_chunk.collection;
    END LOOP;
END $$;

-- An event's text with those who took part, as the service has it indexed.
CREATE FUNCTION indexed_text(p_text text, p_participants text[]) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT concat_ws(': ', (
        SELECT string_agg(n.name, ', ') FROM unnest(p_participants) AS n (name)
        WHERE strpos(p_text, n.name) = 0
    ), p_text)
$$;

-- Whether that can hold anything to part; ten times as fast as to look at it.
CREATE FUNCTION may_be_parted(p_text text, p_participants text[]) RETURNS boolean
LANGUAGE sql STABLE
RETURN p_text ~ '/|[-+][0-9]' OR array_to_string(p_participants, ' ') ~ '/|[-+][0-9]';

DO $$
DECLARE
    v_world uuid;
    v_event record;
    v_before bigint;
    v_after bigint;
    v_first bigint;
    v_segment integer;
BEGIN
    -- A world that is being made gets its stems from the export or the world it is a copy of.
    FOR v_world IN
        SELECT w.world_id FROM worlds w
        WHERE NOT w.hidden AND EXISTS (
            SELECT FROM story_events e
            WHERE e.world_id = w.world_id AND may_be_parted(e.text, e.participants)
        )
        ORDER BY w.world_id
    LOOP
        PERFORM FROM worlds w WHERE w.world_id = v_world AND NOT w.hidden FOR NO KEY UPDATE;
        CONTINUE WHEN NOT FOUND;
        v_before := 0;
        v_after := 0;
        v_first := NULL;
        FOR v_event IN
            SELECT e.sequence, indexed_text(e.text, e.participants) AS search_text
            FROM story_events e
            WHERE e.world_id = v_world AND may_be_parted(e.text, e.participants)
            ORDER BY e.sequence
        LOOP
            v_first := coalesce(v_first, v_event.sequence);
            WITH gone AS (
                DELETE FROM story_event_terms t
                WHERE t.world_id = v_world AND t.sequence = v_event.sequence
                RETURNING t.frequency
            )
            SELECT v_before + coalesce(sum(g.frequency), 0) INTO v_before FROM gone g;
            WITH posted AS (
                INSERT INTO story_event_terms (world_id, term, sequence, frequency, term_count)
                SELECT
                    v_world, t.lexeme, v_event.sequence, cardinality(t.positions),
                    sum(cardinality(t.positions)) OVER ()
                FROM unnest(to_tsvector('english', words_apart(v_event.search_text))) t
                RETURNING frequency
            )
            SELECT v_after + coalesce(sum(p.frequency), 0) INTO v_after FROM posted p;
        END LOOP;
        UPDATE worlds w SET event_term_count = w.event_term_count + v_after - v_before
        WHERE w.world_id = v_world;

        -- Segments from the first on that weighs such a word: an event weighs those of the one after.
        v_segment := greatest(0, v_first - 2) / segment_events();
        DELETE FROM story_event_words t WHERE t.world_id = v_world AND t.segment >= v_segment;
        DELETE FROM story_event_participants t
        WHERE t.world_id = v_world AND t.segment >= v_segment;
        UPDATE worlds w SET segmented_events = v_segment * segment_events()
        WHERE w.world_id = v_world AND w.segmented_events > v_segment * segment_events();
        IF FOUND THEN
            PERFORM write_word_segments(v_world, 1000000);
        END IF;
    END LOOP;
END $$;
DROP FUNCTION may_be_parted;
DROP FUNCTION indexed_text;
