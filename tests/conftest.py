"""What holds for all tests."""

from hypothesis import settings

# Nothing is timed in a test: machines differ, and a slow one is no fault of the code.
settings.register_profile("wsgate", deadline=None, print_blob=True)
settings.load_profile("wsgate")
