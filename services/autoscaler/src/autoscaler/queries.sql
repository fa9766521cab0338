-- name: save_decision
-- Writes a decision or its outcome; an outcome once written stays.
INSERT INTO autoscaler.decisions AS d (
    decision_id, tier, decide_time, previous_desired, desired, rule, is_change, outcome,
    decided_by, lease_epoch, record, publication
) VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11,
    CASE WHEN $8::text IS NULL THEN NULL ELSE nextval('autoscaler.decision_publication') END
)
ON CONFLICT (decision_id) DO UPDATE SET
    outcome = excluded.outcome,
    is_change = excluded.is_change,
    record = excluded.record,
    publication = excluded.publication
WHERE d.outcome IS NULL AND excluded.outcome IS NOT NULL

-- name: get_decision
SELECT record FROM autoscaler.decisions WHERE decision_id = $1 AND outcome IS NOT NULL

-- name: list_decisions
SELECT record FROM autoscaler.decisions
WHERE outcome IS NOT NULL
    AND ($1::text IS NULL OR tier = $1)
    AND (NOT $2::boolean OR is_change)
    AND ($3::timestamptz IS NULL OR decide_time >= $3)
    AND ($4::timestamptz IS NULL OR decide_time < $4)
    AND ($5::uuid IS NULL OR decision_id < $5)
ORDER BY decision_id DESC
LIMIT $6

-- name: latest_publication
SELECT coalesce(max(publication), 0) AS position FROM autoscaler.decisions

-- name: tail_decisions
-- Numbers are drawn before they are committed, so the caller looks back a little and skips repeats.
SELECT publication, record FROM autoscaler.decisions
WHERE publication > $1
ORDER BY publication
LIMIT $2

-- name: open_intents
-- Decisions of earlier leaders whose outcome was never written.
SELECT record FROM autoscaler.decisions
WHERE outcome IS NULL AND lease_epoch < $1
ORDER BY decision_id
LIMIT 1000

-- name: delete_decisions
DELETE FROM autoscaler.decisions WHERE decide_time < $1

-- name: delete_answered_requests
DELETE FROM autoscaler.answered_requests WHERE answer_time < $1

-- name: delete_overrides
DELETE FROM autoscaler.overrides o
WHERE o.end_time < $1
    AND NOT EXISTS (
        SELECT FROM autoscaler.answered_requests a WHERE a.override_id = o.override_id
    )

-- name: save_report
INSERT INTO autoscaler.tier_reports (tier, report) VALUES ($1, $2)
ON CONFLICT (tier) DO UPDATE SET report = excluded.report, update_time = clock_timestamp()

-- name: list_reports
SELECT tier, report FROM autoscaler.tier_reports

-- name: save_drain
-- Only in the epoch of the lease. Who takes the lease meanwhile waits for the row's lock, and so
-- sees what was written before it led; who comes later than that finds another epoch.
WITH lead AS (
    SELECT FROM autoscaler.leases WHERE name = $1 AND epoch = $2 FOR SHARE
), kept AS (
    INSERT INTO autoscaler.drains (instance_id, tier, server_ids, start_time, deadline, decision_id)
    SELECT $3, $4, $5, $6, $7, $8 FROM lead
    ON CONFLICT (instance_id) DO NOTHING
)
SELECT EXISTS (SELECT FROM lead)

-- name: end_drain
-- As above: the drain of that instance may be the next leader's by now.
WITH lead AS (
    SELECT FROM autoscaler.leases WHERE name = $1 AND epoch = $2 FOR SHARE
), ended AS (
    DELETE FROM autoscaler.drains WHERE instance_id = $3 AND EXISTS (SELECT FROM lead)
)
SELECT EXISTS (SELECT FROM lead)

-- name: list_drains
SELECT instance_id, tier, server_ids, start_time, deadline, decision_id FROM autoscaler.drains

-- name: list_overrides
SELECT tier, kind, desired, minimum, maximum, expire_time, reason, set_by
FROM autoscaler.overrides
WHERE end_time IS NULL AND expire_time > $1

-- name: lock_request
-- Repeats of one request wait for each other until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('autoscaler-request:' || $1::text, 0))

-- name: lock_overrides
-- Changes of one tier's hold wait for each other until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('autoscaler-override:' || $1::text, 0))

-- name: get_answered_request
SELECT a.request, o.kind, o.desired, o.minimum, o.maximum, o.expire_time, o.reason, o.set_by
FROM autoscaler.answered_requests a
LEFT JOIN autoscaler.overrides o USING (override_id)
WHERE a.request_id = $1

-- name: end_override
UPDATE autoscaler.overrides SET end_time = $2, ended_by = $3
WHERE tier = $1 AND end_time IS NULL
RETURNING override_id, kind, desired, minimum, maximum, expire_time, reason, set_by

-- name: insert_override
INSERT INTO autoscaler.overrides (
    tier, kind, desired, minimum, maximum, expire_time, reason, set_by, set_time
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
RETURNING override_id

-- name: insert_answered_request
INSERT INTO autoscaler.answered_requests (request_id, request, override_id) VALUES ($1, $2, $3)

-- name: report_players
INSERT INTO autoscaler.players AS p (online, count_time, reported_by) VALUES ($1, $2, $3)
ON CONFLICT (only_row) DO UPDATE SET
    online = excluded.online, count_time = excluded.count_time, reported_by = excluded.reported_by
WHERE p.count_time < excluded.count_time

-- name: get_players
-- The report (without a source) and the shares, with the database's present.
SELECT NULL AS source, '' AS world_id, online, count_time, clock_timestamp() AS now
FROM autoscaler.players
UNION ALL
SELECT source, world_id, online, count_time, clock_timestamp() FROM autoscaler.player_shares

-- name: report_share
-- An absolute count, so that repeats and stragglers change nothing.
INSERT INTO autoscaler.player_shares AS s (source, world_id, online, count_time)
VALUES ($1, $2, $3, $4)
ON CONFLICT (source, world_id) DO UPDATE SET
    online = excluded.online, count_time = excluded.count_time
WHERE s.count_time < excluded.count_time

-- name: delete_player_shares
DELETE FROM autoscaler.player_shares WHERE count_time < $1

-- name: acquire_lease
-- The epoch counts changes of hands; a renewal in time keeps it.
INSERT INTO autoscaler.leases AS l (name, holder, epoch, expire_time)
VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE SET
    holder = excluded.holder,
    epoch = CASE
        WHEN l.holder = excluded.holder AND l.expire_time > clock_timestamp() THEN l.epoch
        ELSE l.epoch + 1
    END,
    expire_time = clock_timestamp() + make_interval(secs => $3)
WHERE l.holder = excluded.holder OR l.expire_time <= clock_timestamp()

-- name: get_lease
SELECT holder, epoch FROM autoscaler.leases WHERE name = $1 AND expire_time > clock_timestamp()

-- name: release_lease
UPDATE autoscaler.leases SET expire_time = clock_timestamp() WHERE name = $1 AND holder = $2
