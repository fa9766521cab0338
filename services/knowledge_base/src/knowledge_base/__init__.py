"""The lasting memory of the storyteller: PostgreSQL, pgvector and BM25."""
