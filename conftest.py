"""What every test of the project has in common."""

from hypothesis import settings

# A property that holds late still holds: speed is judged in benchmarks, not by a busy machine.
settings.register_profile("gamekeeper", deadline=None)
settings.load_profile("gamekeeper")
