-- name: note_event
-- Waits for another transaction that handles the same event: it decides whose effect counts.
INSERT INTO {{schema}}.inbox (consumer, event_id) VALUES ($1, $2)
ON CONFLICT DO NOTHING
RETURNING true

-- name: delete_old_entries
DELETE FROM {{schema}}.inbox i
WHERE (i.consumer, i.event_id) IN (
    SELECT o.consumer, o.event_id FROM {{schema}}.inbox o
    WHERE o.effect_time < now() - make_interval(secs => $1)
    ORDER BY o.effect_time LIMIT $2
)
