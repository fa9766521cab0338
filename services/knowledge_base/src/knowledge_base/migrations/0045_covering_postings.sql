-- The words of a search are read from their index alone. A stem's postings lie next to each other
-- there; in the table they lie wherever their events were recorded, a page each.

ALTER TABLE story_event_terms
    DROP CONSTRAINT story_event_terms_pkey,
    ADD PRIMARY KEY (world_id, term, sequence) INCLUDE (frequency, term_count);

ALTER TABLE chunk_terms
    DROP CONSTRAINT chunk_terms_pkey,
    ADD PRIMARY KEY (term, chunk_id) INCLUDE (collection, frequency, term_count);
