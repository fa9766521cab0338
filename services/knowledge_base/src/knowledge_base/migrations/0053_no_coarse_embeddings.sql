-- The copies of migration 0046 and the index over them go; blocks (migration 0051) took their place.

DROP TRIGGER set_coarse_embedding ON story_events;
DROP FUNCTION set_coarse_embedding, index_coarse_embedding;
ALTER TABLE story_events
    DROP COLUMN coarse_embedding, DROP COLUMN IF EXISTS next_coarse_embedding;

-- As before migration 0046: the columns that it left out are gone.
CREATE OR REPLACE FUNCTION copied_columns(p_table oid) RETURNS TABLE (name text, type oid)
LANGUAGE sql STABLE
AS $$
    SELECT a.attname::text, a.atttypid FROM pg_attribute a
    WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
        AND a.attgenerated = '' AND a.attidentity = ''
    ORDER BY a.attnum
$$;
