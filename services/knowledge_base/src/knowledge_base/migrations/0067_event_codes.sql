-- What a reranker keeps of story events.
--
-- As for passages of lore (migration 0050): codes are written in the transaction that records their
-- events. A table of its own, since beside the vectors they would push these out of the events' rows.
-- An event without codes was recorded by a version, or under a setting, that keeps none; a recall
-- takes it to be as near to the query as its vector says.

CREATE TABLE story_event_codes (
    world_id uuid NOT NULL,
    sequence bigint NOT NULL,
    reranker text NOT NULL,
    codes bytea NOT NULL,
    PRIMARY KEY (world_id, sequence),
    FOREIGN KEY (world_id, sequence) REFERENCES story_events ON DELETE CASCADE
);
-- Numbers without order do not compress; trying costs time at every read and write.
ALTER TABLE story_event_codes
    ALTER COLUMN codes SET STORAGE EXTERNAL, ALTER COLUMN codes SET STATISTICS 0;
ALTER TABLE story_event_codes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_world ON story_event_codes USING (world_id = (SELECT current_world()));

-- The service appends codes; they vanish with their events.
CREATE FUNCTION grant_event_codes(p_role text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT INSERT ON story_event_codes TO %I', p_role);
END $$;

-- As content, codes are copied with a world and exported with it.
CREATE OR REPLACE FUNCTION known_world_tables()
RETURNS TABLE (table_name text, role text, change_kind text, id_column text)
LANGUAGE sql IMMUTABLE
AS $$
    VALUES
        ('story_events', 'content', 'event', 'event_id'),
        ('story_event_terms', 'content', NULL, NULL),
        ('story_event_codes', 'content', NULL, NULL),
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
        ('story_event_participants', 'local', NULL, NULL),
        ('story_event_blocks', 'local', NULL, NULL),
        ('next_story_event_blocks', 'local', NULL, NULL),
        ('world_changes', 'local', NULL, NULL)
$$;

-- As record_events of migration 0003, which serves the version before this one, and keeps the codes
-- of the events, in their order; none: p_codes is empty. Raises KB001, KB002.
CREATE FUNCTION record_events(
    p_world uuid, p_request uuid, p_fingerprint bytea, p_now timestamptz,
    p_events jsonb, p_embedding_model text, p_embeddings vector[],
    p_reranker text, p_codes bytea[]
) RETURNS SETOF story_event_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_recorded story_event_row[] := ARRAY(
        SELECT r FROM record_events(
            p_world, p_request, p_fingerprint, p_now, p_events, p_embedding_model, p_embeddings
        ) r
    );
BEGIN
    -- A repeat returns the events of the first time, whose codes are kept already.
    IF cardinality(p_codes) > 0
        AND (v_recorded[1]).event_id = (p_events -> 0 ->> 'event_id')::uuid
    THEN
        INSERT INTO story_event_codes (world_id, sequence, reranker, codes)
        SELECT p_world, (v_recorded[1]).sequence + c.ordinal - 1, p_reranker, c.codes
        FROM unnest(p_codes) WITH ORDINALITY AS c (codes, ordinal);
    END IF;
    RETURN QUERY SELECT * FROM unnest(v_recorded);
END $$;
