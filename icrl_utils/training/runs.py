"""One training run: its folder, log, checkpoint, clock, and the record of how the weights were made.

A run can be killed at any moment. The checkpoint holds every tensor that training changes and is replaced atomically,
and the data of step k is a pure function of (seed, k): a resumed run ends with the very weights of one that was never
stopped. Finished files are moved into the folder one by one, ``run.json`` last: where it stands, all are there.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from icrl_utils.hardware import device_name, matmul_peak
from icrl_utils.paths import ROOT, atomically, config_sha256, file_sha256, write_csv
from icrl_utils.training.configs import RunConfig
from icrl_utils.training.folder import (
    CHECKPOINT,
    LOG,
    RECORD,
    check_run,
    claim,
    damaged,
    read_log,
    read_progress,
    read_tensors,
    release,
)
from icrl_utils.training.optimizers import learning_rate_factor

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "gymnasium", "numpy")


class Run:
    """The bookkeeping of one training run in the folder ``config.out``.

    Args:
        tensors: every tensor that training changes, by name; optimizer states are added by themselves.
        parameters: number of weights that a token passes through, for the speed: a step counts as
            6 * parameters * tokens floating point operations, the usual convention.
        resume: go on from the folder's checkpoint, if there is one.
        rate: (step from 0, config) -> factor of the learning rate.

    Attributes:
        step: number of the optimizer step at hand, counted from 1; 0 before the first.

    Raises:
        FileExistsError: the folder holds a run, and ``resume`` is False.
        ValueError: it holds a run with another configuration, whose differing fields are named, or a damaged one.
        RuntimeError: another process writes in it.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        tensors: Mapping[str, Tensor],
        optimizers: list[torch.optim.Optimizer],
        parameters: int,
        resume: bool = False,
        progress: bool = True,
        rate: Callable[[int, Any], float] = learning_rate_factor,
    ):
        self.rate = rate
        self.config, self.accelerator, self.tensors, self.optimizers = config, accelerator, tensors, optimizers
        self.main = accelerator.is_main_process
        fewest, _ = config.slice_shape(1)
        if fewest % accelerator.num_processes:
            raise ValueError(
                f"slices={config.slices!r}: the {fewest} slices of a step cannot be shared evenly by "
                f"{accelerator.num_processes} processes; choose a multiple."
            )
        # A disabled scaler hands everything through, so that one code serves all precisions.
        self.scaler = accelerator.scaler or torch.amp.GradScaler(enabled=False)
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.base_rates = [group["lr"] for group in self.groups]
        self.folder = Path(config.out)
        self.checkpoint, self.log_file = self.folder / CHECKPOINT, self.folder / LOG
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.sums: dict[str, Tensor] = {}  # of this step, see `add`
        self.seconds_before = 0.0  # of the sessions before this one
        check_run(config, resume)
        if self.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            claim(self.folder)
        if self.checkpoint.exists():
            self._restore()
        if self.main:
            write_csv(self.log_file, self.rows)
        self.first_step = self.step  # of this session: the last one of those before
        self.made_by = made_by(accelerator)  # now, and not at the end, when files may have changed
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
        self.peak = matmul_peak(accelerator.device, dtype) * accelerator.num_processes
        self.flops_per_token = 6 * parameters
        self.started = time.monotonic()
        self._restart_clock()
        self.bar = tqdm(total=config.steps, initial=self.step, unit="step", disable=not (progress and self.main))

    # -- the loop

    def batches(self, data: Iterable) -> Iterator:
        """The batches of the remaining steps. Around each: learning rate, counting, checkpoints, and the reasons to
        stop early, which are Ctrl-C and ``config.minutes``. ``data`` begins with the batch of step ``self.step + 1``.

        After Ctrl-C the step at hand is finished, a checkpoint is saved and SystemExit(130) ends the program.
        """
        with delayed_interrupt() as interrupt, self.bar:
            for batch in islice(data, self.config.steps - self.step):
                if self._must_stop(interrupt):
                    break
                self.step += 1
                self.sums = {}
                for group, rate in zip(self.groups, self.base_rates, strict=True):
                    group["lr"] = rate * self.rate(self.step - 1, self.config)
                yield batch
                self.bar.update()
                if self.due(self.config.save_every):
                    self.save()
            if self.step < self.config.steps:
                self.save()
            if interrupt.is_set() or self.step < self.config.steps:
                self.bar.close()
                self.say(
                    f"Stopped after step {self.step} of {self.config.steps}; the checkpoint is saved in "
                    f"{self.folder}. Go on with the same command and --resume (in Python: resume=True)."
                )
            if interrupt.is_set():
                release(self.folder)
                sys.exit(130)

    def _must_stop(self, interrupt: threading.Event) -> bool:
        """Whether any process wants to stop: all must leave the loop at the same step."""
        wanted = [float(interrupt.is_set()), float(self.out_of_time())]
        if self.accelerator.num_processes > 1:
            wanted = self.accelerator.reduce(torch.tensor(wanted, device=self.accelerator.device), "sum").tolist()
        if wanted[0]:
            interrupt.set()
        return any(wanted)

    def out_of_time(self) -> bool:
        """Whether this session has had its ``config.minutes``. It makes one step at least: nothing untrained is written
        as trained, and sessions that are too short come to an end, too."""
        return self.step > self.first_step and self._session_seconds() > 60 * self.config.minutes

    def update(self, parameters: Iterable[Tensor]) -> None:
        """One optimizer step on the gradients that ``accelerator.backward`` has summed up since the last one.

        Raises RuntimeError where they, or what was `add`-ed, are not finite, before a weight is changed.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        # A loss scaler skips a step whose gradient is not finite, and scales less.
        self._require_finite(self.sums if self.scaler.is_enabled() else self.sums | {"gradient": norm})
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.add(grad_norm=norm)

    def _require_finite(self, values: Mapping[str, Tensor]) -> None:
        if all(value.isfinite().all() for value in values.values()):
            return
        name = next(name for name, value in values.items() if not value.isfinite().all())
        kept = f"The last checkpoint in {self.folder} is from before." if self.checkpoint.exists() else ""
        raise RuntimeError(
            f"step {self.step}: {name} is not finite, so learning has diverged; choose a smaller learning rate than "
            f"{max(self.base_rates):g}, or a longer warm-up than {self.config.warmup} steps. {kept}".rstrip()
        )

    def mean_count(self, mask: Tensor) -> Tensor:
        """How many entries of ``mask`` are True in all processes together, divided by their number; at least one.

        To divide a sum by: data parallelism averages the gradients of the processes.
        """
        processes = self.accelerator.num_processes
        return self.accelerator.reduce(mask.sum(), "sum").clamp(min=1) / processes

    def add(self, **values: Tensor) -> None:
        """Add to what `log_sums` writes about this step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens after this one; always after the last."""
        return self.step % every == 0 or self.step == self.config.steps

    def say(self, message: str) -> None:
        if self.main:
            print(message, flush=True)

    # -- log

    def log(self, row: dict[str, float]) -> None:
        """Write a row about the step at hand; what is written about the same step later joins it."""
        if not self.main:
            return
        if not self.rows or int(self.rows[-1]["step"]) != self.step:
            seconds = round(self._seconds(), 1)
            self.rows.append({"step": self.step, "tokens": self.step * self.config.step_tokens, "seconds": seconds})
            self.rows[-1] |= self._speed()
        self.rows[-1] |= {k: format(v, ".6g") if isinstance(v, float) else v for k, v in row.items()}
        try:
            write_csv(self.log_file, self.rows)
        except OSError as error:  # a spreadsheet has it open on Windows: the next row writes this one, too
            self.say(f"{self.log_file} could not be written ({error.strerror}); training goes on.")
        shown = {k: v for k, v in self.rows[-1].items() if k not in ("step", "tokens", "seconds")}
        self.bar.set_postfix({k: format(float(v), ".3g") for k, v in shown.items()})

    def log_sums(self) -> None:
        """Write what was added up in this step, as the mean of all processes."""
        self.log({name: self.accelerator.reduce(value, "mean").item() for name, value in self.sums.items()})

    def log_aside(self, measure: Callable[[], dict[str, float]]) -> None:
        """Write what ``measure`` returns, in the main process, and leave its time out of the training speed."""
        if self.main:
            with self.off_the_clock():
                self.log(measure())

    def _session_seconds(self) -> float:
        return time.monotonic() - self.started

    def _seconds(self) -> float:
        return self.seconds_before + self._session_seconds()

    def _speed(self) -> dict[str, str]:
        """Since the last row, evaluations and checkpoints left out."""
        steps, seconds = self.step - self.clock[0], time.monotonic() - self.clock[1]
        self._restart_clock()
        if not steps:
            return {}
        rate = steps * self.config.step_tokens / seconds
        return {
            "tokens_per_s": format(rate, ".0f"),
            "of_matmul_peak": format(rate * self.flops_per_token / self.peak, ".3g"),
        }

    def _restart_clock(self) -> None:
        self.clock = self.step, time.monotonic()

    @contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Time spent inside is not counted into the training speed."""
        try:
            yield
        finally:
            self._restart_clock()

    # -- checkpoint

    def save(self) -> None:
        """Replace the checkpoint by one of the step at hand."""
        if not self.main:
            return
        self._require_finite(self.tensors)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{key}": value.detach().cpu().clone() for key, value in state.items()}
        progress = {
            "step": self.step,
            "seconds": self._seconds(),
            "scaler": self.scaler.state_dict(),
            "config": self.config.decisive(),
        }
        with atomically(self.checkpoint) as part:
            save_file(tensors, part, metadata={"progress": json.dumps(progress)})
        self._restart_clock()

    def _restore(self) -> None:
        progress, saved = read_progress(self.checkpoint), read_tensors(self.checkpoint)
        if missing := self.tensors.keys() - saved.keys():
            raise damaged(self.checkpoint, f"{min(missing)} is missing")
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(saved[name])
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in saved.items():
                if name.startswith(f"optimizer.{i}."):
                    j, key = name.split(".")[2:]
                    state.setdefault(int(j), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.scaler.load_state_dict(progress["scaler"])
        self.step, self.seconds_before = progress["step"], progress["seconds"]
        self.rows = read_log(self.log_file, self.step)  # rows after the checkpoint will be written again

    # -- the end

    def finish(self, write: Callable[[Path], object], weights: str, **facts) -> Path:
        """Let ``write(folder)`` write the finished files, move them into the run's folder and add run.json, which
        says how they came about. Returns the folder. The checkpoint goes when all steps are done."""
        if self.accelerator.num_processes > 1:
            # gloo's threads need Python's lock to let go of what they have reduced. Sleeping gives it away: without,
            # a process that ends at once may join threads that wait for its lock, for ever.
            time.sleep(1)
        self.accelerator.end_training()  # the processes part here
        if not self.main:
            return self.folder
        record = self.folder / RECORD
        record.unlink(missing_ok=True)  # until all files are new there is no record of them
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(exist_ok=True)
        write(unfinished)
        facts = self._facts() | facts | {"sha256": file_sha256(unfinished / weights)}
        facts["config_sha256"] = config_sha256(unfinished)
        files = sorted(unfinished.iterdir())
        (unfinished / record.name).write_text(json.dumps(facts, indent=1) + "\n")
        for file in [*files, unfinished / record.name]:
            with suppress(OSError):  # safetensors makes files that only their owner can read; some disks know no modes
                file.chmod(0o644)
            os.replace(file, self.folder / file.name)
        with suppress(OSError):  # an empty folder that stays does no harm
            unfinished.rmdir()
        if self.step >= self.config.steps:
            with suppress(OSError):  # nor does a checkpoint: to resume from it is to finish once more
                self.checkpoint.unlink()
        release(self.folder)
        return self.folder

    def _facts(self) -> dict:
        speeds = [float(row["tokens_per_s"]) for row in self.rows if "tokens_per_s" in row]
        speed = statistics.median(speeds) if speeds else 0.0
        return {
            "command": self.config.command(),
            "config": self.config.record(),
            "steps_done": self.step,
            "tokens": self.step * self.config.step_tokens,
            "seconds": round(self._seconds(), 1),
            "tokens_per_s": round(speed),
            "of_matmul_peak": round(speed * self.flops_per_token / self.peak, 3),
            "flops_per_token": self.flops_per_token,
            "matmul_peak_flops": float(f"{self.peak:.3g}"),
        } | self.made_by


def made_by(accelerator: Accelerator) -> dict[str, object]:
    """The machine, the libraries and the code of a run."""
    return {
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(),
    }


@contextmanager
def delayed_interrupt() -> Iterator[threading.Event]:
    """Inside the block Ctrl-C sets the event and no more: a step is never cut in two. Pressed again (later than a
    second: launchers repeat it at once), it interrupts as usual."""
    event = threading.Event()
    pressed = math.inf

    def on_interrupt(number, frame):
        nonlocal pressed
        if time.monotonic() > pressed + 1:
            raise KeyboardInterrupt
        pressed = time.monotonic()
        event.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield event
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def git_commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` where the package differs from it; None without git, and for a copy
    inside another repository, whose commit says nothing about it."""
    # A hook that calls us has its own repository in GIT_DIR and the like.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*command: str) -> str:
        call = subprocess.run(["git", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return call.stdout.strip()

    try:
        if not ROOT.samefile(git("rev-parse", "--show-toplevel")):
            return None
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "icrl_utils")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


# ---------------------------------------------------------------------------------------------------- optimizers
