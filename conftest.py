"""What every test of the project has in common."""

import structlog
from hypothesis import settings

# A property that holds late still holds: speed is judged in benchmarks, not by a busy machine.
settings.register_profile("gamekeeper", deadline=None)
settings.load_profile("gamekeeper")

# Tracebacks as Python prints them. Those of rich, which structlog takes where it is installed, hold
# up the event loop of a test for a second each.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)
