-- name: context_concepts
SELECT * FROM knowledge_base.context_concepts($1, $2, $3, $4)
