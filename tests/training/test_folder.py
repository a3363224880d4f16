"""The folder of a run: owned by one process, looked at before work, and told from a damaged one."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from icrl_utils import paths
from icrl_utils.__main__ import main
from icrl_utils.history.format import HistoryFormat
from icrl_utils.llama.load import new_tiny_llama
from icrl_utils.paths import ROOT, check_writable, file_sha256, portable_path, read_json
from icrl_utils.training import folder as run_folder
from icrl_utils.training import runs, training
from icrl_utils.training.configs import TrainConfig
from icrl_utils.training.folder import claim, other_owner, read_log, read_progress, read_tensors, release
from icrl_utils.training.runs import Run, git_commit
from icrl_utils.training.training import train

HISTORY = HistoryFormat("compact")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runs, "matmul_peak", lambda *_: 1e12)
    monkeypatch.setattr(training, "evaluate_in_training", lambda *_, **__: {"success_last": 0.4375})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "base"
    new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, hidden=16, layers=1, heads=2).save_pretrained(folder)
    return folder


def config(base, out, **changes):
    small = dict(steps=4, slices=2, slice_tokens=32, warmup=1, steps_per_chunk=2, log_every=1, eval_every=1,
                 eval_maps=1, save_every=1, rank=2, device="cpu")  # fmt: skip
    return TrainConfig(**small | {"base": str(base), "out": str(out)} | changes)


def go(base, out, resume=False, **changes):
    return train(config(base, out, **changes), resume=resume, progress=False)


@pytest.fixture(scope="module")
def stopped_once(base, tmp_path_factory):
    """A run that the clock stopped after two of its four steps."""
    out = tmp_path_factory.mktemp("folder") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "matmul_peak", lambda *_: 1e12)
        patch.setattr(training, "evaluate_in_training", lambda *_, **__: {"success_last": 0.4375})
        patch.setattr(Run, "out_of_time", lambda self: self.step == 2)
        return go(base, out)


@pytest.fixture
def stopped(stopped_once, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for file in stopped_once.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "matmul_peak", lambda *_: 1e12)
        patch.setattr(training, "evaluate_in_training", lambda *_, **__: {"success_last": 0.4375})
        return go(base, tmp_path_factory.mktemp("folder") / "whole")


def weights(folder):
    return file_sha256(folder / "adapter_model.safetensors")


# ------------------------------------------------------------------------------------------------------ ownership

OWNER = """
import sys
from pathlib import Path
from icrl_utils.training.folder import claim
claim(Path(sys.argv[1]))
print("mine", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(stopped):
    """Another process that goes on with the run."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(stopped)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdout.readline().strip() == b"mine"
    yield child
    child.kill()
    child.communicate()


def test_of_two_that_resume_one_folder_the_second_is_told(base, stopped, owner, whole):
    before = {file.name: file.read_bytes() for file in stopped.iterdir()}
    with pytest.raises(RuntimeError, match=rf"out=.*is written by another run \(process {owner.pid}\).*train.lock"):
        go(base, stopped, resume=True)
    with pytest.raises(RuntimeError, match="is written by another run"):
        claim(stopped)
    assert {file.name: file.read_bytes() for file in stopped.iterdir()} == before
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (stopped / "train.lock").exists()  # left behind by the process that was killed, and taken over
    go(base, stopped, resume=True)
    assert weights(stopped) == weights(whole) and not (stopped / "train.lock").exists()


def test_a_lock_goes_with_its_process(stopped, owner):
    owner.communicate(b"")
    assert owner.returncode == 0 and not (stopped / "train.lock").exists()


def test_a_number_that_another_process_has_now_does_not_own(tmp_path):
    lock = tmp_path / "train.lock"
    entry = {"pid": os.getppid(), "started": 1.0, "host": run_folder.platform.node()}
    lock.write_text(json.dumps(entry))
    assert other_owner(tmp_path) is None
    lock.write_text(json.dumps(entry | {"host": "elsewhere"}))
    with pytest.raises(RuntimeError, match=rf"process {os.getppid()} on elsewhere.*remove .*train.lock"):
        claim(tmp_path)
    lock.write_text("")
    assert other_owner(tmp_path) == "just starting"
    os.utime(lock, (0, 0))  # killed while it wrote
    claim(tmp_path)
    assert json.loads(lock.read_text())["pid"] == os.getpid()
    claim(tmp_path)  # a cell that is run again
    release(tmp_path)
    assert not lock.exists()
    release(tmp_path)


# --------------------------------------------------------------------------------------------------------- damage


def test_a_line_of_the_log_that_was_cut_is_no_row(tmp_path):
    log = tmp_path / "log.csv"
    for text in ("step,loss,success\n1,0.5,0.4375\n2,0.5,", "step,loss,success\n1,0.5,0.4375\n2,0.5,4",
                 "step,loss,success\n1,0.5,0.4375\n2,0.\n", "step,loss,success\n1,0.5,0.4375\n3,1,1\n"):  # fmt: skip
        log.write_text(text)
        assert read_log(log, last_step=2) == [{"step": "1", "loss": "0.5", "success": "0.4375"}]
    for text in ("", "ste", "step,loss\n"):
        log.write_text(text)
        assert read_log(log, last_step=2) == []
    assert read_log(tmp_path / "none", last_step=2) == []


def test_a_run_goes_on_from_a_log_that_was_cut(base, stopped, whole):
    log = stopped / "train_log.csv"
    log.write_text(log.read_text()[:-5])
    go(base, stopped, resume=True)
    kept = read_log(log, 4)
    assert [row["step"] for row in kept] == ["1", "3", "4"] and {row["success_last"] for row in kept} == {"0.4375"}
    assert weights(stopped) == weights(whole)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def empty(file):
    file.write_bytes(b"")


def without_a_tensor(file):
    tensors, progress = load_file(file), read_progress(file)
    tensors.pop(min(name for name in tensors if name.startswith("online.")))
    save_file(tensors, file, metadata={"progress": json.dumps(progress)})


def not_a_number(file):
    tensors, progress = load_file(file), read_progress(file)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, file, metadata={"progress": json.dumps(progress)})


@pytest.mark.parametrize("damage", [cut, empty, without_a_tensor, not_a_number])
def test_a_damaged_checkpoint_is_named_and_a_new_beginning_offered(damage, base, stopped, whole):
    damage(stopped / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is no whole checkpoint \(.*remove it, and --resume"):
        go(base, stopped, resume=True)
    (stopped / "checkpoint.safetensors").unlink()  # the record of two steps is not that of a finished run
    go(base, stopped, resume=True)
    assert weights(stopped) == weights(whole) and read_json(stopped / "run.json")["steps_done"] == 4


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null"])
def test_a_damaged_record_is_named(text, base, stopped, capsys):
    (stopped / "checkpoint.safetensors").unlink()
    (stopped / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json is damaged .*remove its folder"):
        go(base, stopped, resume=True)


def test_a_checkpoint_is_read_and_not_mapped(stopped):
    """Windows does not replace a file that is mapped into memory, and a resumed run keeps its tensors."""
    checkpoint = stopped / "checkpoint.safetensors"
    kept = read_tensors(checkpoint)
    if (maps := pathlib.Path("/proc/self/maps")).exists():
        assert str(checkpoint) not in maps.read_text()
        mapped = load_file(checkpoint)
        assert str(checkpoint) in maps.read_text() and kept.keys() == mapped.keys()


# --------------------------------------------------------------------------------------------- places and last steps


def test_a_place_that_cannot_be_written_is_named_before_work(base, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(PermissionError, match=r"out='.*run': no file can be written in .*file \(Not a directory\)"):
        go(base, tmp_path / "file" / "run")

    def read_only(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(paths.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(training, "make_accelerator", lambda *_: pytest.fail("work began"))
    assert main(["train", "--out", str(tmp_path / "new" / "run"), "--profile", "cpu"]) == 1
    assert "error: out=" in (said := capsys.readouterr().err) and "Read-only file system" in said
    assert not (tmp_path / "new").exists()
    for command in ("evaluate in_distribution --profile smoke", "course 00 --profile smoke"):
        assert main(command.split()) == 1
        assert f"no file can be written in {ROOT}" in capsys.readouterr().err
    with pytest.raises(PermissionError, match="choose a folder of your own, or copy the course"):
        check_writable(tmp_path, "out")


def test_no_last_step_that_only_tidies_up_can_undo_the_work(base, tmp_path, monkeypatch, whole):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    unlink = pathlib.Path.unlink
    monkeypatch.setattr(pathlib.Path, "chmod", refuse)
    monkeypatch.setattr(pathlib.Path, "rmdir", refuse)
    monkeypatch.setattr(
        pathlib.Path, "unlink", lambda self, **how: refuse() if self.name == "README.md" else unlink(self, **how)
    )
    monkeypatch.setattr(os.path, "relpath", lambda *_: (_ for _ in ()).throw(ValueError("path is on mount 'D:'")))
    folder = go(base, tmp_path / "run")
    assert weights(folder) == weights(whole)
    assert read_json(folder / "run.json")["base"] == base.resolve().as_posix()
    assert not (folder / "checkpoint.safetensors").exists()


def test_a_path_on_another_drive_is_absolute(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "relpath", lambda *_: (_ for _ in ()).throw(ValueError("path is on mount 'D:'")))
    assert portable_path(tmp_path) == tmp_path.resolve().as_posix()


def test_a_log_that_somebody_has_open_stops_nothing(base, tmp_path, monkeypatch, capsys, whole):
    real = runs.write_csv

    def write(path, rows):
        if len(rows) == 2:
            raise PermissionError(errno.EACCES, "The file is used by another process")
        real(path, rows)

    monkeypatch.setattr(runs, "write_csv", write)
    folder = go(base, tmp_path / "run")
    assert "train_log.csv could not be written (The file is used by another process)" in capsys.readouterr().out
    assert [row["step"] for row in read_log(folder / "train_log.csv", 4)] == ["1", "2", "3", "4"]
    assert weights(folder) == weights(whole)


# --------------------------------------------------------------------------------------------------------- finite


def test_a_run_that_diverges_ends_with_an_error_and_without_an_adapter(base, tmp_path, capsys):
    options = dict(base=base, out=tmp_path / "run", lr=1e6, steps=30, slices=2, slice_tokens=32, warmup=0, rank=2,
                   log_every=1, eval_every=99, save_every=2, device="cpu")  # fmt: skip
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert main(["train", "--profile", "cpu", *argv]) == 1
    said = capsys.readouterr()
    assert "is not finite, so learning has diverged; choose a smaller learning rate than 1e+06" in said.err
    assert "Trained adapter" not in said.out and not (tmp_path / "run" / "adapter_model.safetensors").exists()
    log = (tmp_path / "run" / "train_log.csv").read_text()
    assert "nan" not in log and "inf" not in log


@pytest.mark.parametrize("last", [True, False])
def test_weights_that_are_not_finite_are_never_saved(last, base, tmp_path, monkeypatch):
    """The update after the last gradient that is looked at, too."""
    real = training.polyak_update

    def spoil(target, online, alpha):
        target = list(target)
        real(target, online, alpha)
        spoil.calls += 1
        if spoil.calls == (4 if last else 2):
            target[0].view(-1)[0] = torch.inf

    spoil.calls = 0
    monkeypatch.setattr(training, "polyak_update", spoil)
    with pytest.raises(RuntimeError, match=r"step \d: target\..* is not finite.*The last checkpoint .* is from before"):
        go(base, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    assert read_progress(checkpoint)["step"] == (3 if last else 1)
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint).values())


# ----------------------------------------------------------------------------------------------------- provenance


def git(folder, *command):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_that_of_this_checkout_and_of_no_other(tmp_path, monkeypatch):
    git(tmp_path, "init")
    (tmp_path / "icrl_utils").mkdir()
    (tmp_path / "icrl_utils" / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    commit = git_commit()
    assert len(commit) == 40
    (tmp_path / "icrl_utils" / "code.py").write_text("2")
    assert git_commit() == f"{commit}-dirty"
    monkeypatch.setattr(runs, "ROOT", tmp_path / "icrl_utils")  # a copy without .git, inside another repository
    assert git_commit() is None
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    git(tmp_path / "other", "init")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as inside a hook of another repository
    assert git_commit() == f"{commit}-dirty"
