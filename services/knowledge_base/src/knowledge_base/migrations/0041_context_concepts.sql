-- The concepts that a context may tell: those named, and those whose name the text holds.

-- As p_world sees them now, by name. The text is searched for the bare letters of a name; whether
-- they stand there as words is for the caller to see. Raises KB001.
CREATE FUNCTION context_concepts(p_world uuid, p_names text[], p_text text, p_limit integer)
RETURNS SETOF layered_concept_row
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
DECLARE
    v_name text;
BEGIN
    PERFORM enter_view(p_world, '');
    FOR v_name IN
        SELECT DISTINCT c.name COLLATE "C" AS name
        FROM narrative_concepts c
        WHERE c.world_id IN (p_world, shared_world()) AND c.player_id = ''
            AND (
                c.name = ANY (p_names)
                OR (length(c.name) > 2 AND strpos(lower(p_text), lower(c.name)) > 0)
            )
        ORDER BY name
        LIMIT p_limit
    LOOP
        RETURN QUERY SELECT * FROM get_concept_at(p_world, '', v_name, NULL, NULL);
    END LOOP;
END $$;
