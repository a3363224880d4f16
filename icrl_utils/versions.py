"""Are the right package versions here? The set-up cell of every notebook asks this.

On Colab it installs what is missing and leaves torch and numpy alone: both are loaded before the first cell runs,
and exchanging them kills the session. Everywhere else it installs nothing and says what to do.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from icrl_utils.profiles import ROOT

LOADED_BY_COLAB = ("torch", "numpy")  # never exchanged there
ONLY_LOCAL = {"jupyterlab", "jupytext", "nbclient", "nbformat", "ipykernel"}  # Colab has its own notebook front end
OLDEST_TORCHAO = Version("0.16.0")  # an older torchao makes peft refuse to add an adapter; no torchao is fine


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> list[Requirement]:
    """The lines of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def unmet(wanted: list[Requirement]) -> dict[str, str]:
    """Requirement -> the version found ("none" if not installed), for each that the installed version does not meet."""
    found = {str(requirement): installed_version(requirement.name) or "none" for requirement in wanted}
    return {
        str(requirement): found[str(requirement)]
        for requirement in wanted
        if found[str(requirement)] == "none"
        or not requirement.specifier.contains(found[str(requirement)], prereleases=True)
    }


def on_colab() -> bool:
    return "google.colab" in sys.modules


def set_up() -> None:
    """Make the notebook ready: versions checked, current directory = the repository, so that assets/ is found.

    Raises:
        RuntimeError: a package is missing or has the wrong version, with the command that mends it.
    """
    os.chdir(ROOT)
    if on_colab():
        _install_on_colab()
        return
    wrong = unmet(requirements())
    if wrong:
        listing = ", ".join(f"{requirement} (found: {version})" for requirement, version in wrong.items())
        raise RuntimeError(
            f"{listing}. Run `python -m pip install -r requirements.txt` with the Python of this notebook, "
            f"{sys.executable}, and restart the kernel."
        )


def _install_on_colab() -> None:
    wrong = unmet([requirement for requirement in requirements() if requirement.name not in ONLY_LOCAL])
    fixed = [requirement for requirement in wrong if Requirement(requirement).name in LOADED_BY_COLAB]
    if fixed:
        raise RuntimeError(
            f"Colab's {fixed[0]} is not met (found: {wrong[fixed[0]]}) and must not be exchanged while it is loaded. "
            "Choose another runtime version (Runtime > Change runtime type), or a newer release of this course."
        )
    torchao = installed_version("torchao")
    if torchao and Version(torchao) < OLDEST_TORCHAO:
        _pip("uninstall", "--yes", "torchao")
    if wrong:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as pins:
            pins.writelines(f"{name}=={installed_version(name)}\n" for name in LOADED_BY_COLAB)
        _pip("install", "--constraint", pins.name, *wrong)
    importlib.invalidate_caches()


def _pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--quiet", *arguments], check=True)
