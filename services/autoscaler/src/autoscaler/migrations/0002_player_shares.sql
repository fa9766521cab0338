-- Players online as the game's services count them on the event bus.

CREATE TABLE player_shares (
    source text NOT NULL,
    -- Empty where a service counts all the players it knows.
    world_id text NOT NULL,
    online integer NOT NULL CHECK (online >= 0),
    count_time timestamptz NOT NULL,
    PRIMARY KEY (source, world_id)
);
