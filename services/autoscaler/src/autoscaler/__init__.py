"""How many GPUs each tier needs, getting them, and saying why."""
