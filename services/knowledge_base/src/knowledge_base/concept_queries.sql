-- name: put_concept
SELECT * FROM knowledge_base.put_concept_version(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11, $12, $13
)

-- name: get_concept_at
SELECT * FROM knowledge_base.get_concept_at($1, $2, $3, $4, $5)

-- name: get_concepts_at
SELECT c.* FROM unnest($3::text[]) AS n (name),
    LATERAL knowledge_base.get_concept_at($1, $2, n.name, $4, $5) AS c

-- name: get_concept_version
SELECT * FROM knowledge_base.get_concept_version($1, $2, $3, $4)

-- name: list_concept_versions
SELECT (version_row).*, periods FROM knowledge_base.list_concept_versions($1, $2, $3, $4, $5)

-- name: list_concepts
SELECT * FROM knowledge_base.list_concepts_at($1, $2, $3, $4, $5, $6, $7)

-- name: relate_concepts
SELECT * FROM knowledge_base.relate_concepts_during($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: end_relationship
SELECT * FROM knowledge_base.end_relationship($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: list_relationships
SELECT * FROM knowledge_base.list_relationships_at($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: assert_facts
SELECT * FROM knowledge_base.assert_facts($1, $2, $3, $4, $5, $6::jsonb)

-- name: list_facts
SELECT * FROM knowledge_base.list_facts($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: retract_fact
SELECT * FROM knowledge_base.retract_fact($1, $2, $3, $4, $5, $6, $7)

-- name: list_contradictions
SELECT * FROM knowledge_base.list_contradictions($1, $2, $3, $4, $5, $6, $7)

-- name: resolve_contradiction
SELECT * FROM knowledge_base.resolve_contradiction($1, $2, $3, $4, $5, $6, $7)

-- name: traverse
SELECT depth, name, truncated, (tie).*
FROM knowledge_base.traverse_graph($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- name: find_path
SELECT depth, name, truncated, (tie).*
FROM knowledge_base.find_path($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
