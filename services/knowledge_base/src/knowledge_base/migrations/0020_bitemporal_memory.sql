-- Concepts and relationships get two times, and players their own layer; facts and contradictions.
--
-- Two times, each a half-open period, are kept for everything the story knows:
--   valid_from .. valid_until          when it holds in the story
--   record_time .. superseded_time     when the knowledge base believed so
-- What is recorded later supersedes what it overlaps in the story: the overlapped rows get a
-- superseded_time, and what remains of them before and after is recorded anew. No row is deleted and
-- no column but superseded_time changes (Snodgrass 2000, "Developing Time-Oriented Database
-- Applications in SQL", chapter 10, sequenced modification of bitemporal tables).
--
-- Periods are two columns and not ranges: range operators are not leakproof, so row-level security
-- would keep them from every index. Open ends are infinities, so that every comparison has a result.
-- "Now" is a moment after all others that is no infinity: it lies in every open period.
--
-- Layers: what a player is told (player_id) overrides what is so in the world, which overrides what
-- all worlds share. The empty player id means everybody.

-- For which player the present statement works: '' for what everybody knows, NULL for a statement
-- that works for the world as a whole (a copy, an export). The setting has a colon in front.
CREATE FUNCTION current_player() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN substr(nullif(current_setting('knowledge_base.player_id', true), ''), 2);

-- The moment "now" in either time.
CREATE FUNCTION latest() RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '294276-01-01T00:00:00Z'::timestamptz;

-- Stands in indexes for a text that may be longer than an entry. The server's encoding never changes.
CREATE FUNCTION text_digest(p_text text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sha256(convert_to(p_text, 'UTF8'));

-- Concepts --------------------------------------------------------------------------------------

ALTER TABLE narrative_concepts
    ADD COLUMN player_id text NOT NULL DEFAULT '',
    ADD CHECK (player_id = '' OR world_id <> '00000000-0000-0000-0000-000000000000'),
    DROP CONSTRAINT narrative_concepts_world_id_name_key,
    ADD UNIQUE (world_id, name, player_id);

-- A version never changes; valid_from and valid_until are what its writer said.
ALTER TABLE concept_versions
    ADD COLUMN player_id text NOT NULL DEFAULT '',
    ADD COLUMN source text NOT NULL DEFAULT '',
    ADD COLUMN valid_from timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN valid_until timestamptz NOT NULL DEFAULT 'infinity',
    ADD CHECK (valid_from < valid_until);

-- Which version of a concept holds when, as it was believed when. At no pair of moments does more
-- than one version of a concept hold.
CREATE TABLE concept_periods (
    world_id uuid NOT NULL,
    concept_id uuid NOT NULL,
    version integer NOT NULL,
    player_id text NOT NULL,
    valid_from timestamptz NOT NULL,
    valid_until timestamptz NOT NULL,
    record_time timestamptz NOT NULL,
    superseded_time timestamptz NOT NULL DEFAULT 'infinity',
    PRIMARY KEY (world_id, concept_id, record_time, valid_from),
    FOREIGN KEY (world_id, concept_id, version) REFERENCES concept_versions ON DELETE CASCADE,
    CHECK (valid_from < valid_until),
    CHECK (record_time < superseded_time)
);

-- Until now each version replaced the one before for all story time. Times that did not grow (two
-- writers whose clocks differed) are moved by microseconds, so that each version had its time.
WITH grown AS (
    SELECT
        v.world_id, v.concept_id, v.version,
        max(v.record_time - v.version * interval '1 microsecond')
            OVER (PARTITION BY v.world_id, v.concept_id ORDER BY v.version)
            + v.version * interval '1 microsecond' AS record_time
    FROM concept_versions v
)
UPDATE concept_versions v SET record_time = g.record_time
FROM grown g
WHERE g.world_id = v.world_id AND g.concept_id = v.concept_id AND g.version = v.version
    AND g.record_time <> v.record_time;

INSERT INTO concept_periods (
    world_id, concept_id, version, player_id, valid_from, valid_until, record_time, superseded_time
)
SELECT
    v.world_id, v.concept_id, v.version, '', '-infinity', 'infinity', v.record_time,
    coalesce(
        lead(v.record_time) OVER (PARTITION BY v.world_id, v.concept_id ORDER BY v.version),
        'infinity'
    )
FROM concept_versions v;

-- Relationships ---------------------------------------------------------------------------------

-- One relationship (a pair, a kind, a layer) now has a row for each period. Ends are matched by
-- name, which is what a concept is known by in every layer.
ALTER TABLE concept_relationships
    ADD COLUMN player_id text NOT NULL DEFAULT '',
    ADD COLUMN from_name text,
    ADD COLUMN to_name text,
    ADD COLUMN valid_from timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN valid_until timestamptz NOT NULL DEFAULT 'infinity',
    ADD COLUMN superseded_time timestamptz NOT NULL DEFAULT 'infinity',
    DROP CONSTRAINT concept_relationships_pkey,
    DROP CONSTRAINT concept_relationships_world_id_from_concept_id_to_concept_i_key;

UPDATE concept_relationships r SET from_name = f.name, to_name = t.name
FROM narrative_concepts f, narrative_concepts t
WHERE f.world_id = r.from_world_id AND f.concept_id = r.from_concept_id
    AND t.world_id = r.to_world_id AND t.concept_id = r.to_concept_id;

-- A world that made its own concept of a shared one's name could have two ties of one pair and
-- kind; the one recorded later was shown.
WITH numbered AS (
    SELECT
        r.world_id, r.relationship_id, r.from_name, r.to_name, r.kind, r.record_time,
        row_number() OVER pairs AS number,
        last_value(r.relationship_id) OVER (
            pairs ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
        ) AS shown_id
    FROM concept_relationships r
    WINDOW pairs AS (
        PARTITION BY r.world_id, r.from_name, r.to_name, r.kind
        ORDER BY r.record_time, r.relationship_id
    )
), grown AS (
    SELECT
        n.*,
        max(n.record_time - n.number * interval '1 microsecond') OVER (
            PARTITION BY n.world_id, n.shown_id ORDER BY n.number
        ) + n.number * interval '1 microsecond' AS grown_time
    FROM numbered n
), ended AS (
    SELECT
        g.*,
        lead(g.grown_time) OVER (PARTITION BY g.world_id, g.shown_id ORDER BY g.number) AS end_time
    FROM grown g
)
UPDATE concept_relationships r SET
    relationship_id = e.shown_id, record_time = e.grown_time,
    superseded_time = coalesce(e.end_time, 'infinity')
FROM ended e
WHERE e.world_id = r.world_id AND e.relationship_id = r.relationship_id;

ALTER TABLE concept_relationships
    ALTER COLUMN from_name SET NOT NULL,
    ALTER COLUMN to_name SET NOT NULL,
    ADD PRIMARY KEY (world_id, relationship_id, record_time, valid_from),
    ADD CHECK (player_id = '' OR world_id <> '00000000-0000-0000-0000-000000000000'),
    ADD CHECK (valid_from < valid_until),
    ADD CHECK (record_time < superseded_time);
CREATE INDEX concept_relationships_from_name ON concept_relationships (world_id, from_name);
CREATE INDEX concept_relationships_to_name ON concept_relationships (world_id, to_name);
-- Two writers cannot both begin one relationship's period, and what hides a tie is found at once.
CREATE UNIQUE INDEX concept_relationships_believed ON concept_relationships (
    world_id, from_name, to_name, kind, player_id, valid_from
) WHERE superseded_time = 'infinity';

-- Facts -----------------------------------------------------------------------------------------

CREATE TABLE story_facts (
    world_id uuid NOT NULL REFERENCES worlds,
    -- Of one subject, predicate and object in one layer, through all its periods.
    fact_id uuid NOT NULL,
    player_id text NOT NULL,
    subject text NOT NULL,
    predicate text NOT NULL,
    object text NOT NULL,
    -- Whether the object is a concept's name and not a text.
    object_is_concept boolean NOT NULL,
    -- Whether no other object can hold at the same time.
    single_valued boolean NOT NULL,
    source text NOT NULL,
    source_event_id uuid,
    valid_from timestamptz NOT NULL,
    valid_until timestamptz NOT NULL,
    record_time timestamptz NOT NULL,
    superseded_time timestamptz NOT NULL DEFAULT 'infinity',
    PRIMARY KEY (world_id, fact_id, record_time, valid_from),
    CHECK (player_id = '' OR world_id <> '00000000-0000-0000-0000-000000000000'),
    CHECK (valid_from < valid_until),
    CHECK (record_time < superseded_time)
);
CREATE INDEX story_facts_subject ON story_facts (world_id, subject, predicate);
-- The object may be longer than an index entry; its digest is not.
CREATE UNIQUE INDEX story_facts_believed ON story_facts (
    world_id, subject, predicate, text_digest(object), object_is_concept, player_id,
    valid_from
) WHERE superseded_time = 'infinity';

-- Contradictions --------------------------------------------------------------------------------

CREATE TABLE contradictions (
    world_id uuid NOT NULL REFERENCES worlds,
    contradiction_id uuid NOT NULL,
    player_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('fact', 'attribute', 'canon')),
    subject text NOT NULL,
    -- The predicate of the facts, or the name of the attribute.
    predicate text NOT NULL,
    -- The side that was there: its layer, the fact or concept (and version) it is, what it says.
    earlier_layer text NOT NULL CHECK (earlier_layer IN ('shared', 'world', 'player')),
    earlier_id uuid NOT NULL,
    earlier_version integer,
    earlier_value text NOT NULL,
    earlier_source text NOT NULL,
    -- The side that came and contradicted it; its layer is that of this row.
    later_id uuid NOT NULL,
    later_version integer,
    later_value text NOT NULL,
    later_source text NOT NULL,
    -- The story time in which both were said to hold.
    valid_from timestamptz NOT NULL,
    valid_until timestamptz NOT NULL,
    record_time timestamptz NOT NULL,
    resolve_time timestamptz,
    resolution text NOT NULL DEFAULT '',
    PRIMARY KEY (world_id, contradiction_id),
    CHECK (valid_from < valid_until)
);
CREATE INDEX contradictions_record_time
    ON contradictions (world_id, record_time DESC, contradiction_id DESC);
-- One contradiction is open once, whichever side is told again.
CREATE UNIQUE INDEX contradictions_open ON contradictions (
    world_id, player_id, kind, subject, predicate,
    text_digest(least(earlier_value, later_value)),
    text_digest(greatest(earlier_value, later_value))
) WHERE resolve_time IS NULL;

-- Isolation -------------------------------------------------------------------------------------

ALTER TABLE concept_periods ENABLE ROW LEVEL SECURITY;
ALTER TABLE story_facts ENABLE ROW LEVEL SECURITY;
ALTER TABLE contradictions ENABLE ROW LEVEL SECURITY;

CREATE POLICY own_world ON concept_periods USING (world_id = (SELECT current_world()));
CREATE POLICY own_world ON story_facts USING (world_id = (SELECT current_world()));
CREATE POLICY own_world ON contradictions USING (world_id = (SELECT current_world()));
CREATE POLICY shared ON concept_periods FOR SELECT
    USING ((SELECT current_world()) IS NOT NULL AND world_id = shared_world());
CREATE POLICY shared ON story_facts FOR SELECT
    USING ((SELECT current_world()) IS NOT NULL AND world_id = shared_world());

-- Within a world, a statement for a player sees what everybody knows and what this player knows.
CREATE POLICY own_player ON narrative_concepts AS RESTRICTIVE
    USING ((SELECT current_player()) IS NULL OR player_id IN ('', (SELECT current_player())));
CREATE POLICY own_player ON concept_versions AS RESTRICTIVE
    USING ((SELECT current_player()) IS NULL OR player_id IN ('', (SELECT current_player())));
CREATE POLICY own_player ON concept_periods AS RESTRICTIVE
    USING ((SELECT current_player()) IS NULL OR player_id IN ('', (SELECT current_player())));
CREATE POLICY own_player ON concept_relationships AS RESTRICTIVE
    USING ((SELECT current_player()) IS NULL OR player_id IN ('', (SELECT current_player())));
CREATE POLICY own_player ON story_facts AS RESTRICTIVE
    USING ((SELECT current_player()) IS NULL OR player_id IN ('', (SELECT current_player())));
CREATE POLICY own_player ON contradictions AS RESTRICTIVE
    USING ((SELECT current_player()) IS NULL OR player_id IN ('', (SELECT current_player())));

-- Enters p_world to read it for p_player. Raises KB001 when it does not exist.
CREATE FUNCTION enter_view(p_world uuid, p_player text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    PERFORM enter_existing_world(p_world);
    PERFORM set_config('knowledge_base.player_id', ':' || p_player, true);
END $$;

-- What the service's role may do with these tables: append, and say that a row is superseded.
CREATE FUNCTION grant_lasting_memory(p_role text) RETURNS void
LANGUAGE plpgsql
SET search_path = knowledge_base, public, pg_temp
AS $$
BEGIN
    EXECUTE format(
        'REVOKE UPDATE ON concept_relationships FROM %1$I;'
        'GRANT INSERT, UPDATE (superseded_time)'
        ' ON concept_periods, concept_relationships, story_facts TO %1$I;'
        'GRANT INSERT, UPDATE (resolve_time, resolution) ON contradictions TO %1$I;',
        p_role
    );
END $$;
