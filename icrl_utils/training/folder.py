"""The folder of a run: looked at before any work, written by one process at a time, and never read by halves."""

from __future__ import annotations

import atexit
import csv
import json
import os
import platform
import time
from pathlib import Path

import psutil
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from icrl_utils.paths import check_writable, read_json
from icrl_utils.training.configs import RunConfig

CHECKPOINT, RECORD, LOG, LOCK = "checkpoint.safetensors", "run.json", "train_log.csv", "train.lock"


def check_folder(config: RunConfig, resume: bool) -> None:
    """Raises the errors of `Run` that concern its folder; looked at before any model is loaded."""
    check_writable(config.out, "out")
    if owner := other_owner(Path(config.out)):
        raise _is_owned(Path(config.out), owner)
    check_run(config, resume)


def check_run(config: RunConfig, resume: bool) -> None:
    """Raises FileExistsError or ValueError where the folder holds a run that ``config`` cannot go on with."""
    checkpoint, record = Path(config.out) / CHECKPOINT, Path(config.out) / RECORD
    if not (checkpoint.exists() or record.exists()):
        return
    if not resume:
        raise FileExistsError(
            f"out={config.out!r} already holds a run; go on with it by --resume (in Python: resume=True), choose "
            "another --out (in Python: out=...), or remove the folder."
        )
    before = read_progress(checkpoint) if checkpoint.exists() else read_json(record, "config", "steps_done")
    before, now = before["config"], json.loads(json.dumps(config.decisive()))
    different = [
        f"{name}={before.get(name)!r} there, {value!r} here" for name, value in now.items() if before.get(name) != value
    ]
    if different:
        raise ValueError(
            f"out={config.out!r} holds a run with another configuration ({'; '.join(different)}); resume with the same "
            "options, or choose another --out (in Python: out=...)."
        )


def is_finished(config: RunConfig) -> bool:
    """Whether the folder holds a run that went through all its steps."""
    folder = Path(config.out)
    if (folder / CHECKPOINT).exists() or not (folder / RECORD).exists():
        return False
    return read_json(folder / RECORD, "steps_done")["steps_done"] >= config.steps


# ------------------------------------------------------------------------------------------------------ ownership


def claim(folder: Path) -> None:
    """Make this process the only one that writes in ``folder``, until `release` or its end.

    The lock of a process that was killed is taken over. Raises RuntimeError where another process owns the folder.
    """
    lock, entry = folder / LOCK, json.dumps(_this_process())
    while True:
        try:
            with lock.open("x", encoding="utf-8") as file:  # "x": of two that try, one makes it
                file.write(entry)
            atexit.register(release, folder)
            return
        except FileExistsError:
            if owner := other_owner(folder):
                raise _is_owned(folder, owner) from None
            lock.unlink(missing_ok=True)


def release(folder: Path) -> None:
    try:
        if json.loads((folder / LOCK).read_text(encoding="utf-8"))["pid"] == os.getpid():
            (folder / LOCK).unlink()
    except (OSError, ValueError):  # removed with its folder, or not ours any more
        pass


def other_owner(folder: Path) -> str | None:
    """The other live process that writes in ``folder``, in words; None where there is none."""
    try:
        age = time.time() - (folder / LOCK).stat().st_mtime
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:  # being written now; an older one is of a process that was killed in the midst of it
        return "just starting" if age < 10 else None
    if found["host"] != platform.node():
        return f"process {found['pid']} on {found['host']}"
    if found["pid"] == os.getpid() or not _is_alive(found):
        return None
    return f"process {found['pid']}"


def _this_process() -> dict[str, object]:
    return {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": platform.node()}


def _is_alive(found: dict) -> bool:
    try:
        process = psutil.Process(found["pid"])
        # A number is given away again: the process that has it now may be another one.
        return process.create_time() == found["started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_owned(folder: Path, owner: str) -> RuntimeError:
    return RuntimeError(
        f"out={str(folder)!r} is written by another run ({owner}): wait until it ends or stop it, or choose another "
        f"--out (in Python: out=...). If it is no longer running, remove {folder / LOCK}."
    )


# ---------------------------------------------------------------------------------------------------------- files


def read_progress(checkpoint: Path) -> dict:
    """What a checkpoint says about its run: step, seconds, config, loss scale."""
    try:
        with safe_open(checkpoint, "pt") as file:
            return json.loads(file.metadata()["progress"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise damaged(checkpoint, str(error)) from error


def read_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Read into memory, not mapped: Windows does not replace a file that somebody has mapped."""
    try:
        tensors = load(checkpoint.read_bytes())
    except SafetensorError as error:
        raise damaged(checkpoint, str(error)) from error
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise damaged(checkpoint, "it holds values that are not finite")
    return tensors


def damaged(checkpoint: Path, fault: str) -> ValueError:
    return ValueError(
        f"{checkpoint} is no whole checkpoint ({fault}): restore it from a copy, or remove it, and --resume (in "
        "Python: resume=True) begins this run anew."
    )


def read_log(path: Path, last_step: int) -> list[dict[str, str]]:
    """The rows of a log up to ``last_step``. A last line that was cut is left out: half a number is another number."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    rows = [row for row in csv.DictReader(whole.splitlines()) if None not in row.values()]
    return [{k: v for k, v in row.items() if v != ""} for row in rows if int(row["step"]) <= last_step]
