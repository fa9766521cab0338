-- The decision journal, what outlives a leader, and who leads.

CREATE SEQUENCE decision_publication;

CREATE TABLE decisions (
    decision_id uuid PRIMARY KEY,
    tier text NOT NULL CHECK (tier IN ('gold', 'silver', 'bronze')),
    decide_time timestamptz NOT NULL,
    previous_desired integer NOT NULL,
    desired integer NOT NULL,
    rule text NOT NULL,
    is_change boolean NOT NULL,
    outcome text CHECK (outcome IN ('APPLIED', 'NO_CHANGE', 'DRY_RUN', 'FAILED')),
    decided_by text NOT NULL,
    lease_epoch bigint NOT NULL,
    -- The whole record as the service reads it back; the columns above are for finding it.
    record jsonb NOT NULL,
    -- Set once the outcome is known, in the order in which outcomes became known.
    publication bigint UNIQUE
);

CREATE INDEX decisions_by_tier ON decisions (tier, decision_id DESC) WHERE outcome IS NOT NULL;
CREATE INDEX decisions_changes ON decisions (decision_id DESC) WHERE is_change;
CREATE INDEX decisions_by_time ON decisions (decide_time);
CREATE INDEX decisions_intents ON decisions (lease_epoch) WHERE outcome IS NULL;

-- One row a tier, overwritten: what a replica that does not lead answers.
CREATE TABLE tier_reports (
    tier text PRIMARY KEY CHECK (tier IN ('gold', 'silver', 'bronze')),
    report jsonb NOT NULL,
    update_time timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

CREATE TABLE drains (
    instance_id text PRIMARY KEY,
    tier text NOT NULL CHECK (tier IN ('gold', 'silver', 'bronze')),
    server_ids text[] NOT NULL,
    start_time timestamptz NOT NULL,
    deadline timestamptz NOT NULL,
    decision_id uuid NOT NULL
);

CREATE TABLE overrides (
    override_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tier text NOT NULL CHECK (tier IN ('gold', 'silver', 'bronze')),
    kind text NOT NULL CHECK (kind IN ('pin', 'bounds', 'freeze')),
    desired integer,
    minimum integer,
    maximum integer,
    expire_time timestamptz NOT NULL,
    reason text NOT NULL,
    set_by text NOT NULL,
    set_time timestamptz NOT NULL,
    end_time timestamptz,
    ended_by text
);

-- At most one hold a tier; a new one ends the old one first.
CREATE UNIQUE INDEX overrides_in_force ON overrides (tier) WHERE end_time IS NULL;

-- Answers to requests that may be repeated, so that a repeat changes nothing.
CREATE TABLE answered_requests (
    request_id uuid PRIMARY KEY,
    request jsonb NOT NULL,
    override_id bigint REFERENCES overrides (override_id),
    answer_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE players (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    online integer NOT NULL CHECK (online >= 0),
    count_time timestamptz NOT NULL,
    reported_by text NOT NULL
);

CREATE TABLE leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    epoch bigint NOT NULL,
    expire_time timestamptz NOT NULL
);
