"""Each module here speaks with one outside system."""
