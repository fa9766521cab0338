-- Events on their way out, events that could not go, and events that had their effect.
--
-- The tables live in the schema of the service that owns the data the events speak about: they are
-- only worth something when they change in that data's own transactions.

-- What the topic has not accepted yet. An accepted event's row is deleted.
CREATE TABLE outbox (
    -- Drawn in order, committed in any order: readers take what they see and keep no position.
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- A serialised gaming.events.GameEvent.
    event bytea NOT NULL,
    enqueue_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How often the topic refused this event while it accepted others.
    attempts integer NOT NULL DEFAULT 0,
    -- When to try again after such a refusal; NULL: at once.
    due_time timestamptz
) WITH (
    -- Every row dies within seconds, so the share of dead rows says nothing: count them.
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_scale_factor = 0.0,
    autovacuum_analyze_threshold = 20000
);

-- What the topic will never accept, kept for people to look at.
CREATE TABLE outbox_parked (
    position bigint PRIMARY KEY,
    event_id text NOT NULL,
    event bytea NOT NULL,
    enqueue_time timestamptz NOT NULL,
    attempts integer NOT NULL,
    -- Why it was never accepted.
    reason text NOT NULL,
    park_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX outbox_parked_park_time ON outbox_parked (park_time);

-- Which events had their effect on which consumer.
CREATE TABLE inbox (
    consumer text NOT NULL,
    event_id text NOT NULL,
    effect_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);
CREATE INDEX inbox_effect_time ON inbox (effect_time);
