"""The routing policy: pure, deterministic, without clock, network or randomness of its own."""
