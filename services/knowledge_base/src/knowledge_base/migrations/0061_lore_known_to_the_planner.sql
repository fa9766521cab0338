-- How much lore there is, told to the planner as soon as it is stored.
--
-- ranked_passages keeps its plans for the session. Those that were made while there was no lore read
-- whole tables in loops: a search of the shipped documents took 240 ms of processor time in place of
-- 3, until autovacuum came by a minute later, or for ever where it is switched off. Analysing makes
-- every session plan anew.

-- Analyses the tables of lore if their size is no more what the planner takes it for. Whoever has a
-- table locked, most likely autovacuum, is not waited for: it has its turn later.
CREATE FUNCTION analyze_lore() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = knowledge_base, public, pg_temp
SET lock_timeout = '1s'
AS $$
DECLARE
    v_count double precision := (SELECT coalesce(sum(s.chunk_count), 0) FROM lore_statistics s);
BEGIN
    IF (
        SELECT c.reltuples FROM pg_class c WHERE c.oid = 'document_chunks'::regclass
    ) NOT BETWEEN 0.8 * v_count AND 1.25 * v_count THEN
        ANALYZE narrative_documents, document_chunks, chunk_terms, chunk_concepts;
    END IF;
EXCEPTION WHEN lock_not_available THEN
    NULL;
END $$;
