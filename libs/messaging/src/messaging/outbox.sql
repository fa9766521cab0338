-- name: enqueue_events
INSERT INTO {{schema}}.outbox (event)
SELECT e.event FROM unnest($1::bytea[]) WITH ORDINALITY AS e (event, ordinal) ORDER BY e.ordinal

-- name: bound_transaction
-- A relay that froze with rows in hand loses them to the others after so many milliseconds.
SELECT set_config('idle_in_transaction_session_timeout', $1::text, true)

-- name: take_events
-- The oldest rows that nobody else has in hand: at most $1, and of these as many as have $2 bytes
-- together, at least one. They stay locked until the transaction ends.
WITH taken AS MATERIALIZED (
    SELECT o.position, o.event, o.attempts
    FROM {{schema}}.outbox o
    WHERE o.due_time IS NULL OR o.due_time <= now()
    ORDER BY o.position
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), measured AS (
    SELECT t.*, sum(octet_length(t.event)) OVER (ORDER BY t.position) AS bytes_up_to
    FROM taken t
)
SELECT m.position, m.event, m.attempts
FROM measured m
WHERE m.bytes_up_to - octet_length(m.event) < $2
ORDER BY m.position

-- name: delete_events
DELETE FROM {{schema}}.outbox WHERE position = ANY ($1::bigint[])

-- name: defer_events
UPDATE {{schema}}.outbox o SET
    attempts = o.attempts + 1,
    due_time = clock_timestamp() + make_interval(secs => d.seconds)
FROM unnest($1::bigint[], $2::double precision[]) AS d (position, seconds)
WHERE o.position = d.position

-- name: park_events
WITH gone AS (
    DELETE FROM {{schema}}.outbox o
    USING unnest($1::bigint[], $2::text[], $3::text[]) AS p (position, event_id, reason)
    WHERE o.position = p.position
    RETURNING o.position, p.event_id, o.event, o.enqueue_time, o.attempts, p.reason
)
INSERT INTO {{schema}}.outbox_parked (
    position, event_id, event, enqueue_time, attempts, reason
)
SELECT g.position, g.event_id, g.event, g.enqueue_time, g.attempts, g.reason FROM gone g

-- name: parked_events
SELECT event_id, reason, attempts, park_time
FROM {{schema}}.outbox_parked
ORDER BY position
LIMIT $1

-- name: requeue_parked
-- Puts parked events back in line, behind what waits now.
WITH chosen AS (
    DELETE FROM {{schema}}.outbox_parked p
    WHERE p.position IN (
        SELECT c.position FROM {{schema}}.outbox_parked c
        ORDER BY c.position LIMIT $1 FOR UPDATE SKIP LOCKED
    )
    RETURNING p.position, p.event
)
INSERT INTO {{schema}}.outbox (event) SELECT c.event FROM chosen c ORDER BY c.position

-- name: backlog
-- Seconds that the oldest waiting event has waited, and how many events are parked: counted to
-- 10,000, so that the relay's round stays short however many there are.
SELECT
    coalesce((
        SELECT greatest(0, extract(epoch FROM clock_timestamp() - o.enqueue_time))
        FROM {{schema}}.outbox o ORDER BY o.position LIMIT 1
    ), 0)::double precision AS oldest_wait_seconds,
    (SELECT count(*) FROM (SELECT FROM {{schema}}.outbox_parked LIMIT 10000) AS p) AS parked

-- name: delete_old_parked
DELETE FROM {{schema}}.outbox_parked p
WHERE p.position IN (
    SELECT o.position FROM {{schema}}.outbox_parked o
    WHERE o.park_time < now() - make_interval(secs => $1)
    ORDER BY o.park_time LIMIT $2
)
