"""Each request to the right tier and model server, never lost silently."""
