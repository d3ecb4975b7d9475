"""Settings of the tests of data."""

from hypothesis import settings

settings.register_profile("relook", deadline=None)  # a busy machine is no failure
settings.load_profile("relook")
