"""With the oldest versions that requirements.txt allows the course does what it does with those of the lock."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from packaging.version import Version

from icrl_utils.paths import ROOT
from icrl_utils.versions import requirements

SCRIPT = Path(__file__).with_name("every_library.py")


def lowest_versions() -> dict[str, str]:
    """name -> lower bound, of all but torch: its oldest build would be another gigabyte."""
    bounds = {r.name: [s.version for s in r.specifier if s.operator == ">="] for r in requirements()}
    return {name: versions[0] for name, versions in bounds.items() if name != "torch"}


def every_library(python, names):
    """What tests/every_library.py prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), "-W", "ignore", str(SCRIPT), *names], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_course_works_with_the_lowest_versions(tmp_path):
    """In an environment laid over this one, from which come torch and whatever else fits."""
    environment = tmp_path / "old"
    venv.create(environment, with_pip=False)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (site,) = environment.rglob("site-packages")
    (site / "here.pth").write_text(sysconfig.get_path("purelib"))
    lowest = lowest_versions()
    pins = [f"{name}=={version}" for name, version in lowest.items()]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *pins]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"pip could not fetch old versions: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    old, here = every_library(python, lowest), every_library(sys.executable, lowest)
    imported = {name: Version(version) for name, version in old["versions"].items()}
    assert imported == {name: Version(version) for name, version in lowest.items()}  # and not those of this environment
    assert old["trained"] == here["trained"] == 2
    assert old["actions"] == here["actions"]
