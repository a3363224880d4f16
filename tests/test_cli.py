"""The command line, the profiles and the version check behind the set-up cell."""

import argparse
import ast
import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

import icrl_utils
from icrl_utils import paths, versions
from icrl_utils.__main__ import add_config_options, build_parser, main, make_config
from icrl_utils.course import doctor
from icrl_utils.evaluation import experiments
from icrl_utils.paths import ROOT
from icrl_utils.profiles import PROFILES, get_profile
from icrl_utils.tools.build_notebooks import setup_cell

COMMANDS = ("doctor", "pretrain", "train", "evaluate", "bench", "course", "lab", "remake")


@dataclasses.dataclass
class Inner:
    share: float = 0.5


@dataclasses.dataclass
class Config:
    out: str
    seed: int = 0
    slice_tokens: int = 512
    crossing: bool = False
    rank: int | None = None
    inner: Inner = dataclasses.field(default_factory=Inner)


def parse(*argv: str, defaults=None) -> Config:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    add_config_options(parser, Config)
    return make_config(Config, vars(parser.parse_args(argv)), defaults or {})


def test_config_options_follow_the_dataclass():
    given = parse(*"--out x --slice-tokens 64 --crossing --inner-share 0.25 --rank 8 --seed 3".split())
    assert given == Config("x", seed=3, slice_tokens=64, crossing=True, rank=8, inner=Inner(0.25))
    assert parse("--out", "x") == Config("x")


def test_an_option_beats_the_profile_and_the_profile_beats_the_default():
    assert parse("--out", "x", defaults={"slice_tokens": 32}).slice_tokens == 32
    assert parse("--out", "x", "--slice-tokens", "64", defaults={"slice_tokens": 32}).slice_tokens == 64


def test_profiles_change_only_fields_that_a_config_has():
    from icrl_utils.training.configs import PretrainConfig, TrainConfig

    known = {field.name for cls in (PretrainConfig, TrainConfig) for field in dataclasses.fields(cls)}
    for profile in PROFILES.values():
        assert set(profile.training) <= known


def test_lab_shows_pictures_whatever_backend_the_caller_has(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    calls = []
    monkeypatch.setattr("icrl_utils.__main__.subprocess.run", lambda command, **options: calls.append(options["env"]))
    assert main(["lab", "--profile", "smoke"]) == 0
    (environment,) = calls
    assert (environment["ICRL_PROFILE"], environment["MPLBACKEND"].split(".")[-1]) == ("smoke", "backend_inline")


def test_help_answers_without_torch():
    code = "import sys; from icrl_utils.__main__ import build_parser; build_parser(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("level", ["1", "2"])
@pytest.mark.parametrize("command, wanted", [("--help", "In-context reinforcement learning"), ("doctor", "held-out")])
@pytest.mark.slow
def test_commands_work_without_asserts_and_docstrings(command, wanted, level):
    """PYTHONOPTIMIZE=2 takes docstrings away, from this package and from those that it imports."""
    call = [sys.executable, "-m", "icrl_utils", command]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "PYTHONOPTIMIZE": level}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout


@pytest.mark.slow
def test_a_command_that_needs_the_docstrings_of_libraries_has_them():
    call = [sys.executable, "-OO", "-m", "icrl_utils", "evaluate", "nope"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "in_distribution" in done.stderr


def test_nothing_in_the_package_hangs_on_an_assert_or_a_docstring():
    for path in sorted((ROOT / "icrl_utils").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            assert not isinstance(node, ast.Assert), f"{where}: raise an error instead"
            assert "__doc__" not in (getattr(node, "id", None), getattr(node, "attr", None)), where


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_profile_and_where_it_draws_a_seed(command, capsys):
    with pytest.raises(SystemExit) as end:
        build_parser(command).parse_args([command, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert "--profile" in text
    assert ("--seed" in text) == (command not in ("doctor", "course", "lab", "remake"))


@pytest.mark.parametrize("command", ["pretrain", "train"])
def test_training_commands_resume(command):
    assert build_parser(command).parse_args([command, "--resume"]).resume
    assert not build_parser(command).parse_args([command]).resume


def test_profile_comes_from_option_then_environment_then_cpu(monkeypatch):
    monkeypatch.setenv("ICRL_PROFILE", "smoke")
    assert get_profile("cpu").name == "cpu"
    assert get_profile().name == "smoke"
    monkeypatch.delenv("ICRL_PROFILE")
    assert get_profile().name == "cpu"


def test_unknown_profile_is_named_with_where_it_came_from(monkeypatch):
    with pytest.raises(ValueError, match=r"--profile='gpu': unknown profile; choose one of smoke, cpu, t4, full"):
        get_profile("gpu")
    monkeypatch.setenv("ICRL_PROFILE", "tpu")
    with pytest.raises(ValueError, match=r"ICRL_PROFILE='tpu'"):
        get_profile()


@pytest.mark.parametrize("name", ["t4", "full"])
def test_gpu_profiles_without_gpu_say_what_runs_without(name, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match=rf"'{name}' .* needs a CUDA GPU.*--profile cpu"):
        get_profile(name)


def test_our_errors_are_one_line_and_exit_status_one(capsys):
    assert main(["course", "--profile", "nope"]) == 1
    assert capsys.readouterr().err.startswith("error: --profile='nope'")
    assert main(["course", "77"]) == 1
    assert "notebook='77': unknown" in capsys.readouterr().err
    assert main(["course", "--write", "--profile", "smoke"]) == 1
    assert "committed notebooks show the cpu profile" in capsys.readouterr().err


def test_unknown_benchmark_and_experiment_list_the_known_ones(capsys):
    assert main(["bench", "nope"]) == 1
    assert "env" in capsys.readouterr().err
    assert main(["evaluate", "nope"]) == 1
    assert "in_distribution" in capsys.readouterr().err


def test_errors_of_libraries_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("icrl_utils.course.doctor.report", lambda profile: int("no number"))
    with pytest.raises(ValueError, match="no number"):
        main(["doctor"])


def test_doctor_names_versions_device_and_assets(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("python", "torch", "transformers", "cpu", "memory", "gpu", "compiler", "held-out maps"):
        assert any(line[2:].startswith(name) for line in lines)


def test_records_that_were_made_are_kept_where_no_figure_can_be(monkeypatch, tmp_path, capsys):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(experiments, "run_experiment", lambda *_, **__: tmp_path / "in_distribution.csv.gz")
    monkeypatch.setattr(experiments, "draw", no_space)
    assert main(["evaluate", "in_distribution"]) == 0
    assert "no figure: [Errno 28] No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_a_bench_names_a_seed_that_cannot_be(seed, capsys):
    assert main(["bench", "env", f"--seed={seed}"]) == 1
    assert f"seed={seed}" in capsys.readouterr().err


def test_doctor_finds_what_was_altered_in_the_assets(monkeypatch, tmp_path):
    for name in ("dqn", "dqn-seed1", "dqn-seed2"):
        shutil.copytree(ROOT / "assets" / "adapters" / name, tmp_path / name)
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    config = tmp_path / "dqn" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 64', '"lora_alpha": 65'))
    (tmp_path / "dqn-seed1" / "run.json").write_text("")
    found = {name: state for name, state, fine in doctor._assets() if not fine}
    assert found["dqn"] == "config altered; restore it with git checkout"
    assert "run.json is damaged" in found["dqn-seed1"] and set(found) == {"dqn", "dqn-seed1"}
    (tmp_path / "dqn-seed2" / "adapter_model.safetensors").write_bytes(b"")
    assert ("dqn-seed2", "weights missing or altered; restore it with git checkout", False) in doctor._assets()


def test_doctor_marks_what_needs_attention(capsys, monkeypatch):
    found = {"peft": "0.1", "gymnasium": None}
    monkeypatch.setattr(versions, "installed_version", lambda name: found.get(name, "99"))
    main(["doctor", "--profile", "nope"])
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("!")]
    mend = "python -m pip install --constraint requirements.lock"
    assert any(f"peft 0.1 is older than tested (<0.22,>=0.20): {mend} peft" in line for line in marked)
    assert any("gymnasium is missing" in line and f"{mend} gymnasium" in line for line in marked)
    assert any("numpy 99 is newer than tested" in line for line in marked)
    assert any("profile" in line and "'nope'" in line for line in marked)


# What Colab had installed on 2026-08-19 (torch with a local build suffix, as there).
COLAB = {
    "torch": "2.11.0+cu128", "transformers": "5.15.0", "peft": "0.20.0", "accelerate": "1.14.0", "gymnasium": "1.3.0",
    "numpy": "2.1.3", "matplotlib": "3.10.0", "ipywidgets": "7.7.1", "safetensors": "0.8.0", "tqdm": "4.67.3",
    "packaging": "26.0", "psutil": "5.9.5", "torchao": "0.10.0",
}  # fmt: skip


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A pretended Colab; what pip would have been asked for is collected."""
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr(versions, "installed_version", lambda name: COLAB.get(name))
    monkeypatch.setattr(versions, "_pip", lambda *arguments: calls.append(arguments))
    return calls


def test_set_up_on_colab_installs_only_bitsandbytes_and_removes_the_old_torchao(colab):
    versions.set_up()
    uninstall, install = colab
    assert uninstall == ("uninstall", "--yes", "torchao")
    assert install[:2] == ("install", "--constraint")
    assert [Requirement(line).name for line in install[3:]] == ["bitsandbytes"]
    with open(install[2]) as pins:
        assert pins.read() == "torch==2.11.0+cu128\nnumpy==2.1.3\n"


def test_set_up_on_colab_never_exchanges_torch(colab, monkeypatch):
    monkeypatch.setitem(COLAB, "torch", "2.9.0+cu126")
    with pytest.raises(RuntimeError, match=r"torch 2.9.0\+cu126 is older than tested.*would end the session"):
        versions.set_up()
    assert colab == []


def test_set_up_on_colab_is_quiet_when_everything_is_there(colab, monkeypatch):
    monkeypatch.setitem(COLAB, "bitsandbytes", "0.50.2")
    monkeypatch.setitem(COLAB, "torchao", "0.17.0")
    versions.set_up()
    assert colab == []


def test_set_up_elsewhere_installs_nothing_and_names_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(versions, "_pip", lambda *arguments: pytest.fail("set_up must not install outside Colab"))
    versions.set_up()
    assert (paths.ROOT / "requirements.txt").samefile("requirements.txt")  # the current directory is the repository
    assert "! " not in capsys.readouterr().out
    monkeypatch.setattr(versions, "installed_version", lambda name: "99")
    versions.set_up()  # newer than tested: it says so, and goes on
    said = capsys.readouterr().out.splitlines()
    assert f"icrl_utils {icrl_utils.__version__} in {paths.ROOT}" in said
    for requirement in versions.requirements():
        assert any(line.startswith(f"! {requirement.name} 99 is newer than tested") for line in said)
    monkeypatch.setattr(versions, "installed_version", lambda name: None if name == "gymnasium" else "0.1")
    with pytest.raises(RuntimeError, match="peft 0.1 is older than tested") as error:
        versions.set_up()
    assert "--constraint requirements.lock --editable ." in str(error.value)
    assert "gymnasium is missing" in str(error.value) and sys.executable in str(error.value)


def test_the_set_up_cell_runs_the_code_of_the_repository_around_it(tmp_path):
    """Also where another checkout is installed, as this one is here, and after the folder was renamed."""
    shutil.copytree(paths.ROOT / "icrl_utils", tmp_path / "icrl_utils")
    shutil.copy(paths.ROOT / "requirements.txt", tmp_path)
    notebooks_folder = tmp_path / "build" / "notebooks"
    notebooks_folder.mkdir(parents=True)
    for folder in (tmp_path, notebooks_folder):
        command = [sys.executable, "-c", setup_cell()]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.stdout.startswith(f"icrl_utils {icrl_utils.__version__} in {tmp_path}"), done.stderr


@pytest.mark.parametrize(("said", "used"), [(None, "passive"), ("active", "active")])
def test_threads_wait_passively_unless_told_otherwise(said, used, monkeypatch):
    """Set before torch loads, or it has no effect."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if said:
        monkeypatch.setenv("OMP_WAIT_POLICY", said)
    code = "import sys, os, icrl_utils; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [used, "False"], done.stderr


def test_a_copy_without_the_repository_says_what_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="a copy without the files of the course.*--editable ."):
        versions.set_up()
