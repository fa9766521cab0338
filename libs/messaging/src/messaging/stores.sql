-- name: grant_outbox
GRANT SELECT, INSERT, UPDATE, DELETE ON {{schema}}.outbox, {{schema}}.outbox_parked TO {{role}}

-- name: grant_inbox
GRANT SELECT, INSERT, DELETE ON {{schema}}.inbox TO {{role}}
