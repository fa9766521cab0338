"""How every Gamekeeper service runs: settings, server, channels, errors, streams, telemetry."""
