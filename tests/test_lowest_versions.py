"""The oldest versions that requirements.txt allows: every module of the package imports with them."""

import json
import os
import subprocess
import sys
import sysconfig
import venv

import pytest
from packaging.version import Version

from icrl_utils.profiles import ROOT
from icrl_utils.versions import requirements

IMPORT_ALL = """
import importlib, json, pkgutil, sys
from importlib.metadata import version
import icrl_utils
for module in pkgutil.iter_modules(icrl_utils.__path__):
    if module.name != "__main__":
        importlib.import_module(f"icrl_utils.{module.name}")
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def lowest_versions() -> dict[str, str]:
    """name -> lower bound, of all but torch: its oldest build would be another gigabyte."""
    bounds = {r.name: [s.version for s in r.specifier if s.operator == ">="] for r in requirements()}
    return {name: versions[0] for name, versions in bounds.items() if name != "torch"}


def test_every_module_imports_with_the_lowest_versions(tmp_path):
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
    command = [str(python), "-W", "ignore", "-c", IMPORT_ALL, *lowest]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=path)
    assert done.returncode == 0, done.stderr
    imported = {name: Version(version) for name, version in json.loads(done.stdout).items()}
    assert imported == {name: Version(version) for name, version in lowest.items()}  # and not those of this environment
