"""What both ends of a connection agree on: message and metadata sizes, streams a connection.

A module of its own, so that a client learns the limits without loading the server.
"""

__all__ = [
    "MAXIMUM_MESSAGE_BYTES",
    "MAXIMUM_METADATA_BYTES",
    "MAXIMUM_RESPONSE_BYTES",
    "STREAMS_PER_CONNECTION",
]

MAXIMUM_MESSAGE_BYTES = 1024 * 1024
"""The largest request a server reads."""

MAXIMUM_RESPONSE_BYTES = 16 * 1024 * 1024
"""The largest message a client reads."""

MAXIMUM_METADATA_BYTES = 8 * 1024
"""The most metadata either end reads with one call."""

STREAMS_PER_CONNECTION = 100
"""How many calls, unary or streamed, a server takes at once on one connection (HTTP/2's
SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113 §6.5.2). Further ones wait in the client."""
