-- name: participants_named
SELECT name FROM knowledge_base.participants_named($1, $2) AS name

-- name: recall_story_events
SELECT * FROM knowledge_base.recall_story_events(
    $1, $2, knowledge_base.embedded_with($27, $3), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
    $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26
)

-- name: nearest_story_events
SELECT * FROM knowledge_base.nearest_story_events(
    $1, knowledge_base.embedded_with($5, $2), $3, $4
)

-- name: events_around
SELECT * FROM knowledge_base.events_around($1, $2, $3, $4, $5)

-- name: search_passages
-- Concepts are read at once: one by one, each of them is looked for in the whole of a small table.
WITH found AS MATERIALIZED (
    SELECT * FROM knowledge_base.ranked_passages(
        $1, knowledge_base.embedded_with($12, $2), $3, $4, $5, $6, $8, $9, $10, $11
    ) WITH ORDINALITY
), spoken_of AS (
    SELECT l.chunk_id, array_agg(l.concept_name ORDER BY l.concept_name) AS concepts
    FROM knowledge_base.chunk_concepts l
    WHERE l.chunk_id IN (SELECT f.chunk_id FROM found f)
    GROUP BY l.chunk_id
)
SELECT
    f.chunk_id, c.embedding_input_sha256, c.collection, d.path, c.heading_path, c.start_line,
    c.end_line, c.text, f.score, f.vector_score, f.keyword_score, f.keyword_share,
    coalesce(s.concepts, '{}') AS concepts,
    CASE WHEN $7 > 0 THEN ARRAY(
        SELECT n.text FROM knowledge_base.document_chunks n
        WHERE n.document_id = c.document_id AND n.ordinal BETWEEN c.ordinal - $7 AND c.ordinal - 1
        ORDER BY n.ordinal
    ) ELSE '{}' END AS text_before,
    CASE WHEN $7 > 0 THEN ARRAY(
        SELECT n.text FROM knowledge_base.document_chunks n
        WHERE n.document_id = c.document_id AND n.ordinal BETWEEN c.ordinal + 1 AND c.ordinal + $7
        ORDER BY n.ordinal
    ) ELSE '{}' END AS text_after
FROM found f
JOIN knowledge_base.document_chunks c ON c.chunk_id = f.chunk_id
JOIN knowledge_base.narrative_documents d ON d.document_id = c.document_id
LEFT JOIN spoken_of s ON s.chunk_id = f.chunk_id
ORDER BY f.ordinality

-- name: passage_codes
SELECT k.chunk_id, k.codes FROM knowledge_base.passage_codes k
WHERE k.chunk_id = ANY ($1) AND k.reranker = $2

-- name: known_passage_codes
SELECT * FROM knowledge_base.known_passage_codes($1, $2, $3)

-- name: keep_passage_codes
SELECT knowledge_base.keep_passage_codes($1, $2, $3, $4)
