"""Shared by all tests: reproducible property tests, and torch threads that leave room for parallel workers."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Workers of pytest-xdist would fight for cores; a child process (kernel, accelerate) inherits this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: how long an example takes depends on the machine. Derandomized: the same examples everywhere.
settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")


@pytest.fixture(scope="session")
def llama3_folder(tmp_path_factory) -> Path:
    """A small random checkpoint that is saved as Llama 3 is: bfloat16, grouped heads, scaled RoPE, byte-level BPE."""
    from icrl_utils.llama.load import save_small_llama

    return save_small_llama(tmp_path_factory.mktemp("llama3"))
