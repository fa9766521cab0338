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
SELECT f.*, knowledge_base.concepts_of_passage(
    f.collection, f.path, f.start_line, f.end_line, f.text
) AS concepts
FROM knowledge_base.search_passages(
    $1, knowledge_base.embedded_with($12, $2), $3, $4, $5, $6, $7, $8, $9, $10, $11
) AS f

-- name: search_passages_with_codes
-- Concepts and codes are joined here: a function called for each row is planned for each row.
SELECT f.*, k.codes, ARRAY(
    SELECT l.concept_name FROM knowledge_base.chunk_concepts l
    WHERE l.chunk_id = c.chunk_id ORDER BY l.concept_name
) AS concepts
FROM knowledge_base.search_passages(
    $1, knowledge_base.embedded_with($12, $2), $3, $4, $5, $6, $7, $8, $9, $10, $11
) WITH ORDINALITY AS f
JOIN knowledge_base.narrative_documents d ON d.collection = f.collection AND d.path = f.path
JOIN LATERAL (
    SELECT c.chunk_id FROM knowledge_base.document_chunks c
    WHERE c.document_id = d.document_id AND c.start_line = f.start_line
        AND c.end_line = f.end_line AND c.text = f.text
    ORDER BY c.ordinal LIMIT 1
) c ON true
LEFT JOIN knowledge_base.passage_codes k ON k.chunk_id = c.chunk_id AND k.reranker = $13
ORDER BY f.ordinality

-- name: known_passage_codes
SELECT * FROM knowledge_base.known_passage_codes($1, $2, $3)

-- name: keep_passage_codes
SELECT knowledge_base.keep_passage_codes($1, $2, $3, $4)
