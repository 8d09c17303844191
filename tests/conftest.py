"""What holds for all tests."""

import os

from hypothesis import settings

# Configuration files of tests hold secrets, and one that others may read is refused.
os.umask(0o077)

# Nothing is timed in a test: machines differ, and a slow one is no fault of the code.
settings.register_profile("wsgate", deadline=None, print_blob=True)
settings.load_profile("wsgate")
