"""The whole suite on one machine: embedded PostgreSQL, local AWS, simulated GPU fleet."""
