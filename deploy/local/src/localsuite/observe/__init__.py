"""What a run shows and reports: read from the services' own RPCs, as any operator could."""
