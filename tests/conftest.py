"""Shared by all tests: reproducible property tests, and torch threads that leave room for parallel workers."""

import os

from hypothesis import settings

# Workers of pytest-xdist would fight for cores; a child process (kernel, accelerate) inherits this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: how long an example takes depends on the machine. Derandomized: the same examples everywhere.
settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")
