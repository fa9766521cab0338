-- name: participants_named
SELECT name FROM knowledge_base.participants_named($1, $2) AS name

-- name: recall_story_events
-- Codes are looked up for the rows that the function gave, which has entered the world.
SELECT f.*, (
    SELECT k.codes FROM knowledge_base.story_event_codes k
    WHERE k.world_id = $1 AND k.sequence = f.sequence AND k.reranker = $28
) AS codes
FROM knowledge_base.recall_story_events(
    $1, $2, knowledge_base.embedded_with($27, $3), $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
    $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $29
) AS f

-- name: nearest_story_events
SELECT * FROM knowledge_base.nearest_story_events($1, $2, $3, $4, $5)

-- name: events_around
SELECT * FROM knowledge_base.events_around($1, $2, $3, $4, $5)

-- name: search_passages
SELECT * FROM knowledge_base.ranked_passages(
    $1, knowledge_base.embedded_with($12, $2), $3, $4, $5, $6, $7, $8, $9, $10, $11
)

-- name: passage_codes
SELECT k.chunk_id, k.codes FROM knowledge_base.passage_codes k
WHERE k.chunk_id = ANY ($1) AND k.reranker = $2

-- name: known_passage_codes
SELECT * FROM knowledge_base.known_passage_codes($1, $2, $3)

-- name: keep_passage_codes
SELECT knowledge_base.keep_passage_codes($1, $2, $3, $4)

-- name: analyze_lore
SELECT knowledge_base.analyze_lore()

-- name: index_lore
SELECT knowledge_base.index_lore()
