"""What a bug report needs: versions, device, memory, compiler and the state of the assets."""

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from icrl_utils import versions
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.paths import (
    ASSETS,
    LANGUAGE_MODEL,
    ROOT,
    config_sha256,
    converted_from,
    file_sha256,
    portable_path,
    read_json,
)
from icrl_utils.profiles import get_profile

Finding = tuple[str, str, bool]  # name, what was found, and whether it is as it should be


def report(profile: str | None = None) -> str:
    """One line for each finding; those that need attention begin with ``!``."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    findings = [("python", python, True), *_packages(), *_hardware(), _profile(profile), *_assets(), _language_model()]
    return "\n".join(f"{' ' if fine else '!'} {name:24s} {found}" for name, found, fine in findings)


def _packages() -> Iterator[Finding]:
    for package in versions.packages():
        yield package.requirement.name, str(package if package.fault else package.installed), package.fault is None


def _hardware() -> Iterator[Finding]:
    import torch

    memory = psutil.virtual_memory()
    yield "cpu", f"{os.cpu_count()} logical cores, {torch.get_num_threads()} torch threads, {_cpu_features()}", True
    yield "memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free", True
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        # A T4 emulates bf16 and calls that supported; emulated bf16 is slower than fp32.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        yield "gpu", f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, native bf16: {_yes(native)}", True
    else:
        yield "gpu", "none: the profiles smoke and cpu run without one", True
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "cl"))), None)
    yield "compiler", Path(compiler).name if compiler else "none: training runs without torch.compile, slower", True


def _cpu_features() -> str:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return f"{capability}, native bf16: {_yes(native)}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _profile(name: str | None) -> Finding:
    try:
        return "profile", get_profile(name).name, True
    except (ValueError, RuntimeError) as error:
        return "profile", str(error), False


def _assets() -> Iterator[Finding]:
    """The held-out maps, and weights and config beside every run.json against the sha256 that stand in it."""
    try:
        held_out_maps("in_distribution")
        yield "held-out maps", "unaltered", True
    except (ValueError, FileNotFoundError) as error:
        yield "held-out maps", str(error), False
    runs = sorted(ASSETS.rglob("run.json"))
    if not runs:
        yield "weights", f"none found in {ASSETS.name}/: run from a clone of the repository", False
    for run in runs:
        fault = _fault(run)
        state = f"{fault}; restore it with git checkout" if fault else "unaltered"
        yield run.parent.relative_to(ROOT).as_posix(), state, not fault


def _fault(run: Path) -> str | None:
    """What is wrong with the folder of a run.json, None where it is as it was written."""
    try:
        wanted = read_json(run, "sha256", "config_sha256")
        if [file_sha256(weights) for weights in run.parent.glob("*model.safetensors")] != [wanted["sha256"]]:
            return "weights missing or altered"
        return None if config_sha256(run.parent) == wanted["config_sha256"] else "config altered"
    except (ValueError, OSError) as error:
        return str(error)


def _language_model() -> Finding:
    """The extra that only lesson 05 takes, and only where it is there."""
    try:
        found = converted_from(LANGUAGE_MODEL)
        none = "none (an extra); `python -m icrl_utils language-model` says how"
        state = f"{portable_path(LANGUAGE_MODEL)}, unaltered" if found else none
        return "language model", state, True
    except (ValueError, OSError) as error:
        return "language model", str(error), False
