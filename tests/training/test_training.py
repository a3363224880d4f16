"""The two training loops: the same weights whatever interrupts them, and a record that can be trusted."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import types
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from icrl_utils import hardware
from icrl_utils.__main__ import build_parser, main, make_config
from icrl_utils.dqn.dqn import moves_that_led_nowhere
from icrl_utils.dqn.replay import SliceSource, make_batch
from icrl_utils.hardware import compile_network, make_accelerator, matmul_peak, resolve_precision
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.held_out import development_maps, held_out_maps
from icrl_utils.lake.maps import TRAINING_MAPS
from icrl_utils.llama.adapters import ONLINE, TARGET, adapter_parameters, add_adapters
from icrl_utils.llama.agent import Agent, load_agent
from icrl_utils.llama.load import load_base, new_tiny_llama
from icrl_utils.llama.readout import QReadout
from icrl_utils.paths import ROOT, config_sha256, file_sha256
from icrl_utils.play.collect import RANDOM_PLAY, Behaviour
from icrl_utils.play.rollout import rollout
from icrl_utils.profiles import PROFILES
from icrl_utils.training import data, runs, training
from icrl_utils.training.configs import PretrainConfig, TrainConfig
from icrl_utils.training.data import Chunks, batches
from icrl_utils.training.folder import read_progress
from icrl_utils.training.optimizers import learning_rate_factor, make_optimizers
from icrl_utils.training.pretraining import pretrain
from icrl_utils.training.runs import Run, delayed_interrupt
from icrl_utils.training.training import evaluate_in_training, train

HISTORY = HistoryFormat("compact")
ACTION_IDS = torch.from_numpy(HISTORY.action_ids)
SMALL = dict(steps=5, slices=4, slice_tokens=32, warmup=2, steps_per_chunk=2, log_every=1, eval_every=4,
             eval_maps=1, eval_step_limit=1, save_every=2, device="cpu")  # fmt: skip
QUIET = {"progress": False}


def pretrain_config(out, **changes):
    return PretrainConfig(**(SMALL | dict(out=str(out), stretch=2, hidden=16, layers=1, heads=2) | changes))


def train_config(base, out, **changes):
    return TrainConfig(**(SMALL | dict(base=str(base), out=str(out), rank=2) | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pretrain(pretrain_config(tmp_path_factory.mktemp("runs") / "base"), **QUIET)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return train(train_config(base, tmp_path_factory.mktemp("runs") / "adapter"), **QUIET)


def rows(folder):
    """The log without what a clock says."""
    with (Path(folder) / "train_log.csv").open() as file:
        clock = ("seconds", "tokens_per_s", "of_matmul_peak")
        return [{k: v for k, v in row.items() if k not in clock} for row in csv.DictReader(file)]


def tokens(text):
    return torch.from_numpy(HISTORY.tokenize(text))[None]


# ------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": "dora"}, "adapter='dora' is unknown; choose one of lora, ia3"),
        ({"loss": "huber"}, "loss='huber' is unknown; choose one of bce, mse"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown; choose one of muon, adamw"),
        ({"precision": "fp8"}, "precision='fp8' is unknown; choose one of auto, no, bf16, fp16"),
        ({"order": "sorted"}, "order='sorted' is unknown"),
        ({"quality": "best"}, "quality='best' is unknown"),
        ({"steps": 0}, "steps=0: pass a whole number of at least 1"),
        ({"steps": 10.0}, "steps=10.0: pass a whole number"),
        ({"slice_tokens": 33}, "slice_tokens=33 must be even"),
        ({"relabel": 1.5}, "relabel=1.5: pass a number from 0.0 to 1.0"),
        ({"gamma": 1.1}, "gamma=1.1: pass a number from 0.0 to 1.0"),
        ({"polyak": 0.0}, "polyak=0.0: pass a number above 0, at most 1.0"),
        ({"polyak": 1.5}, "polyak=1.5: pass a number"),
        ({"temperature": -0.5}, "temperature=-0.5: pass a number of at least 0.0"),
        ({"lr": -1.0}, "lr=-1.0: pass a number above 0"),
        ({"lr": math.nan}, "lr=nan: pass a finite number"),
        ({"clip": 0.0}, "clip=0.0: pass a number above 0"),
        ({"minutes": -1.0}, "minutes=-1.0: pass a number above 0"),
        ({"minutes": 0.0}, "minutes=0.0: pass a number above 0"),
        ({"minutes": math.nan}, "minutes=nan"),
        ({"warmup": -1}, "warmup=-1: pass a whole number of at least 0"),
        ({"map_pool": -1}, "map_pool=-1: pass a whole number of at least 0"),
        ({"workers": -1}, "workers=-1"),
        ({"seed": -1}, "seed=-1: pass a whole number from 0 to 18,446,744,073,709,551,615"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"world_model": -0.1}, "world_model=-0.1"),
        ({"scale": -1.0}, "scale=-1.0: pass a number above 0"),
        ({"offset": math.inf}, "offset=inf: pass a finite number"),
        ({"eval_step_limit": 40_000}, "eval_step_limit=40000: pass a whole number from 1 to 32,767"),
        ({"micro_tokens": 0}, "micro_tokens=0"),
        ({"compile": "no"}, "compile='no': pass True or False"),
        ({"rank": 0}, "rank=0"),
    ],
)
def test_impossible_values_are_named_before_anything_is_done(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


@pytest.mark.parametrize("config_class", [TrainConfig, PretrainConfig])
def test_every_number_of_a_config_has_its_range(config_class):
    for name, hint in typing.get_type_hints(config_class).items():
        if hint in (int, float):
            with pytest.raises(ValueError, match=f"^{name}=-inf: pass a"):
                config_class(**{name: -math.inf})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("train --behaviour-habit-share 2", "habit_share=2.0: pass a number from 0 to 1"),
        ("train --behaviour-low 5", "low=5.0: pass a number from 0 to 1"),
        ("train --lr -1", "lr=-1.0: pass"),
        ("train --clip 0", "clip=0.0: pass"),
        ("train --minutes -1", "minutes=-1.0: pass"),
        ("train --map-pool -1", "map_pool=-1: pass"),
        ("train --seed -1", "seed=-1: pass"),
        ("pretrain --seed 18446744073709551616", "seed=18446744073709551616: pass"),
        ("pretrain --warmup -1", "warmup=-1: pass"),
        ("pretrain --hidden 10", "hidden=10 with heads=4: .* choose a multiple of 8"),
    ],
)
def test_the_command_line_answers_in_one_line(options, message, capsys, tmp_path):
    assert main([*options.split(), "--out", str(tmp_path / "out"), "--profile", "cpu"]) == 1
    said = capsys.readouterr().err
    assert re.match(f"error: {message}", said) and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base": "no/such/base"}, FileNotFoundError, "base='no/such/base' holds no config.json"),
        ({"quality": "hi"}, ValueError, "order='as_played' with quality='hi'"),
        ({"precision": "fp16"}, ValueError, "precision='fp16' needs a CUDA GPU"),
    ],
)
def test_what_cannot_work_fails_before_a_folder_is_made(base, tmp_path, changes, error, message):
    config = train_config(base, tmp_path / "out")
    with pytest.raises(error, match=message):
        train(dataclasses.replace(config, **changes))
    assert not (tmp_path / "out").exists()


def test_a_pool_of_maps_is_drawn_once_and_never_held_out():
    config = TrainConfig(map_pool=5, seed=3)
    pool = data.training_source(config).maps
    assert len(pool) == 5 and pool == data.training_source(config).maps
    assert pool != data.training_source(TrainConfig(map_pool=5, seed=4)).maps
    with pytest.raises(ValueError, match="is a held-out map"):
        SliceSource([*pool, held_out_maps("in_distribution")[0]], RANDOM_PLAY)


def test_the_command_of_a_config_gives_that_config():
    config = TrainConfig(out="build/x", seed=3, steps=7, compile=True, order="shuffled", quality="hi", lr=1e-3,
                         behaviour=Behaviour(low=0.25), adapter="ia3")  # fmt: skip
    for given in (config, PretrainConfig(out="build/y", layers=2)):
        argv = given.command().split()
        assert argv[:3] == ["python", "-m", "icrl_utils"]
        parsed = vars(build_parser(argv[3]).parse_args(argv[3:]))
        assert make_config(type(given), parsed, PROFILES["cpu"].training) == given


# -------------------------------------------------------------------------------------------------- small parts


def test_learning_rate_by_hand():
    config = PretrainConfig(steps=12, warmup=4)
    factors = [learning_rate_factor(step, config) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5) and factors[12] == pytest.approx(0)
    assert factors[6] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate_factor(0, PretrainConfig(warmup=0)) == 1


def groups(model, kind):
    """{parameter name: (optimizer, learning rate, weight decay)}"""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (type(optimizer).__name__, group["lr"], group["weight_decay"])
        for optimizer in make_optimizers(model, kind, 0.02, 0.003, 0.1)
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_muon_gets_the_matrices_inside_and_adamw_the_rest():
    model = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, hidden=16, layers=1, heads=2)
    assigned = groups(model, "muon")
    assert set(assigned) == {name for name, _ in model.named_parameters()}
    for name, choice in assigned.items():
        assert choice == (("Muon", 0.02, 0.1) if "proj" in name else ("AdamW", 0.003, 0.0)), name


@pytest.mark.parametrize(("adapter", "decay"), [("lora", 0.1), ("ia3", 0.0)])
def test_adamw_decays_matrices_and_no_ia3_scale(adapter, decay):
    """Decay pulls to 0, which is LoRA's start and far from IA3's 1: the paper's recipe decays IA3's factors, too."""
    rate = 0.02 if adapter == "lora" else 0.003  # matrices and the rest have rates of their own, whatever the optimizer
    model = add_adapters(new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, 16, 1, 2), adapter, rank=2)
    online = {name for name, p in model.named_parameters() if p.requires_grad}
    assert groups(model, "adamw") == dict.fromkeys(online, ("AdamW", rate, decay))
    assert set(groups(model, "muon").values()) == {("Muon", 0.02, 0.1) if adapter == "lora" else ("AdamW", 0.003, 0.0)}


def test_adamw_has_the_rates_of_muon():
    model = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, hidden=16, layers=1, heads=2)
    for name, choice in groups(model, "adamw").items():
        inner, decay = "proj" in name, 0.0 if "norm" in name else 0.1
        assert choice == ("AdamW", 0.02 if inner else 0.003, decay), name


def test_moves_that_led_nowhere():
    text = "8 left 8 right 9 down hole reset 9 up 9 left limit reset 9 up 9"
    batch = make_batch(tokens(text).numpy(), HISTORY)
    # 8 left 8: yes. A new episode on the old tile, a limit, and the end of the slice: no.
    assert moves_that_led_nowhere(batch)[0, :6].tolist() == [0, -1, -1, 3, -1, -1]


# --------------------------------------------------------------------------------------------------------- data


def some_batches(config, first_step, processes=1, index=0):
    accelerator = types.SimpleNamespace(process_index=index, num_processes=processes, device="cpu")
    return list(batches(Chunks(config, SliceSource(TRAINING_MAPS, Behaviour(), relabel=0.5)), first_step, accelerator))


def test_the_batch_of_a_step_depends_on_seed_and_step_alone():
    config = TrainConfig(**SMALL)
    all_of_them = some_batches(config, 0)
    assert len(all_of_them) == 6  # whole chunks; `Run.batches` takes as many as there are steps
    for first in (1, 2, 3):
        later = some_batches(config, first)
        assert all(a.ids.equal(b.ids) for a, b in zip(all_of_them[first:], later, strict=True))
    assert not all_of_them[0].ids.equal(all_of_them[1].ids)
    assert not some_batches(TrainConfig(**SMALL | {"seed": 1}), 0)[0].ids.equal(all_of_them[0].ids)


def test_short_and_long_slices_take_turns():
    config = pretrain_config("unused")
    shapes = [tuple(batch.ids.shape) for batch in some_batches(config, 0)]
    assert shapes == [(4, 32), (4, 32), (2, 64), (2, 64), (4, 32), (4, 32)]  # chunks of two steps
    one_length = some_batches(dataclasses.replace(config, stretch=1), 0)
    assert {tuple(batch.ids.shape) for batch in one_length} == {(4, 32)}
    assert one_length[0].ids.equal(some_batches(config, 0)[0].ids)


def test_processes_share_the_slices_of_a_step():
    config = TrainConfig(**SMALL)
    whole, first, second = some_batches(config, 1), some_batches(config, 1, 2, 0), some_batches(config, 1, 2, 1)
    for one, a, b in zip(whole, first, second, strict=True):
        assert one.ids[0::2].equal(a.ids) and one.ids[1::2].equal(b.ids)


def test_workers_that_are_spawned_make_the_same_paper_text(llama3_folder):
    """As on macOS and Windows: they get a pickled copy of the source, tokenizer and all."""
    config = TrainConfig(**SMALL | dict(base=str(llama3_folder), history="paper", relabel=0.0, world_model=0.0,
                                        quantization="nf4", slice_tokens=96, map_pool=3))  # fmt: skip
    source = Chunks(config, data.training_source(config))
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again[1], source[1]) and torch.equal(pickle.loads(pickle.dumps(source))[0], source[0])
    loader = DataLoader(source, sampler=[1], batch_size=None, num_workers=1, multiprocessing_context="spawn")
    made = list(loader)
    assert len(made) == 1 and torch.equal(made[0], source[1])


def test_worker_processes_make_the_same_data():
    ahead = some_batches(TrainConfig(**SMALL | {"workers": 1}), 1)
    assert all(a.ids.equal(b.ids) for a, b in zip(ahead, some_batches(TrainConfig(**SMALL), 1), strict=True))


# ------------------------------------------------------------------------------------------------ what is written


def test_pretrained_folder_is_complete(base):
    assert {f.name for f in base.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "run.json", "train_log.csv",
    }  # fmt: skip
    facts = json.loads((base / "run.json").read_text())
    assert facts["sha256"] == file_sha256(base / "model.safetensors")
    assert facts["steps_done"] == 5 and facts["tokens"] == 5 * 4 * 32
    log = rows(base)
    assert [int(row["step"]) for row in log] == [1, 2, 3, 4, 5]
    for exam in ("seen_pair_accuracy", "seen_move_accuracy"):
        assert [bool(row[exam]) for row in log] == [False, False, False, True, True]
        assert float(log[-1][exam]) == pytest.approx(facts[exam], abs=1e-5)


def test_pretraining_goes_on_from_a_base(base, tmp_path):
    """A second stage: the weights of the first, other rotary positions, longer slices."""
    options = dict(base=str(base), rope_theta=500.0, stretch=4, hidden=999)  # the size is the base's
    still = pretrain_config(tmp_path / "still", **options, lr_matrix=0.0, lr_other=0.0)
    config = json.loads((pretrain(still, **QUIET) / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 500.0 and config["hidden_size"] == 16
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "still"))
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    facts = json.loads((pretrain(pretrain_config(tmp_path / "on", **options), **QUIET) / "run.json").read_text())
    assert facts["base_sha256"] == file_sha256(base / "model.safetensors") != facts["sha256"]
    assert (ROOT / facts["config"]["base"]).samefile(base)


def test_stretch_must_divide_the_slices():
    with pytest.raises(ValueError, match="stretch=4 must divide slices=10"):
        PretrainConfig(stretch=4)


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        ("no/such/base", FileNotFoundError, "base='no/such/base' holds no config.json"),
        ("assets/tiny-llama", ValueError, "unknown tokens|splits the action words"),
    ],
)
def test_pretraining_cannot_go_on_from_what_it_cannot_read(tmp_path, base, error, message):
    config = pretrain_config(tmp_path / "run", base=base, history="paper", relabel=0.0)
    with pytest.raises(error, match=message):
        pretrain(config, **QUIET)
    assert not (tmp_path / "run").exists()


ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "run.json", "train_log.csv"}


def test_adapter_folder_is_complete(adapter):
    """No checkpoint any more, no half-filled model card, no target adapter."""
    assert {f.name for f in adapter.iterdir()} == ADAPTER_FILES
    log = rows(adapter)
    assert set(log[0]) == {
        "step", "tokens", "loss", "total_loss", "td_error", "grad_norm", "success_first", "success_last",
        "greedy_10_14", "greedy_last",
    }  # fmt: skip
    assert [int(row["tokens"]) for row in log] == [128 * step for step in range(1, 6)]
    assert log[0]["success_last"] == "" and log[3]["success_last"] != "" and log[-1]["greedy_last"] != ""


def test_run_json_says_how_the_weights_came_about(adapter, base):
    facts = json.loads((adapter / "run.json").read_text())
    assert facts["sha256"] == file_sha256(adapter / "adapter_model.safetensors")
    assert facts["base_sha256"] == file_sha256(base / "model.safetensors")
    assert facts["readout"] == {"link": "sigmoid", "scale": 1.0, "offset": 1.0} and facts["history"] == "compact"
    assert facts["play"] == {"temperature": 0.5, "patience": 25, "max_tokens": 8192}
    assert facts["config_sha256"] == config_sha256(adapter) and facts["base_config_sha256"] == config_sha256(base)
    assert facts["config"]["seed"] == 0 and facts["config"]["behaviour"]["high"] == 1.0
    assert set(facts["versions"]) >= {"python", "torch", "transformers", "peft", "numpy"}
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["steps_done"] == 5 and facts["tokens"] == 640 and facts["seconds"] > 0 and facts["processes"] == 1
    assert facts["flops_per_token"] == 6 * sum(p.numel() for p in load_base(base).parameters())
    assert facts["precision"] == "no" and facts["device"]
    assert facts["command"].startswith("python -m icrl_utils train ")
    assert facts["git_commit"] is None or len(facts["git_commit"].removesuffix("-dirty")) == 40
    with (adapter / "train_log.csv").open() as file:
        for row in csv.DictReader(file):
            fraction = float(row["tokens_per_s"]) * facts["flops_per_token"] / facts["matmul_peak_flops"]
            assert float(row["of_matmul_peak"]) == pytest.approx(fraction, rel=0.02)


def test_shipped_files_hold_no_absolute_path_and_can_be_read_by_everybody(adapter, base):
    for folder in (adapter, base):
        for file in folder.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o044 == 0o044, file
            if file.suffix == ".json":
                texts = [value for value in flatten(json.loads(file.read_text())) if isinstance(value, str)]
                assert not [text for text in texts if text.startswith("/") or str(ROOT) in text], file
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (ROOT / config["base_model_name_or_path"]).samefile(base)
    assert (ROOT / json.loads((adapter / "run.json").read_text())["base"]).samefile(base)


def flatten(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from flatten(inner)
    else:
        yield value


def test_the_base_in_the_repository_is_named_relative_to_it():
    assert TrainConfig(base=str(ROOT / "assets" / "tiny-llama")).record()["base"] == "assets/tiny-llama"


def test_load_agent_loads_what_was_trained(adapter):
    agent = load_agent(adapter, device="cpu")
    assert agent.training_seed == 0 and agent.readout == QReadout()
    q = agent.q_values("8 right 9 down hole reset 8 ")
    assert q.shape == (4,) and np.isfinite(q).all()


# ---------------------------------------------------------------------------------- interruption and resumption


EVALUATED = ("seen_pair_accuracy", "seen_move_accuracy", "success_first", "success_last", "greedy_10_14", "greedy_last")


def stop_after(monkeypatch, step):
    """The clock strikes after ``step`` steps."""
    monkeypatch.setattr(Run, "_must_stop", lambda self, interrupt: self.step == step)


@pytest.mark.parametrize(
    ("kind", "step"), [("pretrain", 1), ("pretrain", 4), ("lora", 1), ("lora", 2), ("lora", 3), ("ia3", 3)]
)
@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights_and_log(kind, step, base, adapter, tmp_path, monkeypatch):
    if kind == "pretrain":
        go, config, weights = pretrain, pretrain_config(tmp_path / "run"), "model.safetensors"
        whole = base
    else:
        go, config, weights = train, train_config(base, tmp_path / "run", adapter=kind), "adapter_model.safetensors"
        whole = adapter if kind == "lora" else train(train_config(base, tmp_path / "whole", adapter=kind), **QUIET)
    with monkeypatch.context() as patched:
        stop_after(patched, step)
        go(config, **QUIET)
    assert read_progress(tmp_path / "run" / "checkpoint.safetensors")["step"] == step
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps_done"] == step
    assert file_sha256(tmp_path / "run" / weights) != file_sha256(whole / weights)
    go(config, resume=True, **QUIET)
    assert file_sha256(tmp_path / "run" / weights) == file_sha256(whole / weights)  # equal to the last bit
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    resumed, uninterrupted = rows(tmp_path / "run"), rows(whole)
    for row in resumed[:-1]:  # the stop itself was evaluated: more than the uninterrupted run knows about that step
        assert uninterrupted[int(row["step"]) - 1].items() <= row.items() or row["step"] == str(step)
    assert resumed[-1] == uninterrupted[-1] and [row["step"] for row in resumed] == [
        row["step"] for row in uninterrupted
    ]


@pytest.mark.slow
def test_minutes_stop_a_session_with_finished_files_and_a_checkpoint(base, adapter, tmp_path, capsys):
    """After one step, however short they are: nothing untrained is written as trained."""
    config = train_config(base, tmp_path / "run", minutes=1e-9)
    train(config, **QUIET)
    assert "Stopped after step 1 of 5" in capsys.readouterr().out
    assert load_agent(tmp_path / "run", device="cpu")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps_done"] == 1
    train(config, resume=True, **QUIET)
    assert read_progress(tmp_path / "run" / "checkpoint.safetensors")["step"] == 2
    train(train_config(base, tmp_path / "run"), resume=True, **QUIET)  # minutes do not decide the result
    assert file_sha256(tmp_path / "run" / "adapter_model.safetensors") == file_sha256(
        adapter / "adapter_model.safetensors"
    )


@pytest.mark.slow
def test_rows_after_the_checkpoint_are_written_again(base, adapter, tmp_path, monkeypatch):
    config = train_config(base, tmp_path / "run", save_every=3)

    class Killed(BaseException):
        pass

    def save(self, was=Run.save):
        if self.step == 5:
            raise Killed  # the log knows of steps 4 and 5, the checkpoint of step 3
        was(self)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Run, "save", save)
        train(config, **QUIET)
    assert [row["step"] for row in rows(tmp_path / "run")] == ["1", "2", "3", "4", "5"]
    assert read_progress(tmp_path / "run" / "checkpoint.safetensors")["step"] == 3
    train(config, resume=True, **QUIET)
    assert rows(tmp_path / "run") == rows(adapter)


def test_a_run_without_checkpoint_begins_anew(base, adapter, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train_log.csv").write_text("step,loss\n1,0.5\n")  # killed before the first checkpoint
    train(train_config(base, tmp_path / "run"), resume=True, **QUIET)
    assert rows(tmp_path / "run") == rows(adapter)


@pytest.mark.slow
def test_killed_between_any_two_files_a_run_can_be_resumed(base, tmp_path, monkeypatch):
    """Every file is replaced in one stroke. Whichever strokes happened, a checkpoint or a finished run is there, and a
    record stands only beside the weights that it describes. The run is one that was stopped and written out before."""

    class Killed(BaseException):
        pass

    monkeypatch.setattr(training, "evaluate_in_training", lambda *_, **__: {"success_last": 0.5})  # twenty runs
    monkeypatch.setattr(runs, "matmul_peak", lambda *args: 1e11)
    real, endings = os.replace, set()
    train(train_config(base, tmp_path / "stopped", steps=2, minutes=1e-9), **QUIET)
    for survived in range(30):
        folder = tmp_path / str(survived)
        shutil.copytree(tmp_path / "stopped", folder)
        config, strokes, finished = train_config(base, folder, steps=2), iter(range(survived)), False

        def replace(source, target, strokes=strokes):
            if next(strokes, None) is None:
                raise Killed
            real(source, target)

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(os, "replace", replace)
            train(config, resume=True, **QUIET)
            finished = True
        if (folder / "run.json").exists():
            facts = json.loads((folder / "run.json").read_text())
            assert facts["sha256"] == file_sha256(folder / "adapter_model.safetensors")
        train(config, resume=True, **QUIET)
        assert {f.name for f in folder.iterdir()} == ADAPTER_FILES
        endings.add(file_sha256(folder / "adapter_model.safetensors"))
        if finished:
            break
    assert finished and survived > 5 and len(endings) == 1


WORKER = """
import os, signal, sys
from icrl_utils.training import runs, training
real = runs.save_file
def save_file(tensors, path, metadata):
    real(tensors, path, metadata)
    if '"step": 4' in metadata["progress"]:
        with open(path, "r+b") as file:
            file.truncate(1000)  # in the midst of writing the second checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
runs.save_file = save_file
training.train(training.TrainConfig(**eval(sys.argv[1])), progress=False)
"""


def in_child(*argv, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=environment, text=True, **options)


@pytest.mark.slow
def test_kill_9_in_the_midst_of_a_checkpoint(base, adapter, tmp_path):
    config = SMALL | dict(base=str(base), out=str(tmp_path / "run"), rank=2)
    child = in_child("-W", "ignore", "-c", WORKER, repr(config))
    assert child.wait(timeout=300) == -signal.SIGKILL
    assert read_progress(tmp_path / "run" / "checkpoint.safetensors")["step"] == 2
    assert load_file(tmp_path / "run" / "checkpoint.safetensors")
    train(TrainConfig(**config), resume=True, **QUIET)
    weights = "adapter_model.safetensors"
    assert file_sha256(tmp_path / "run" / weights) == file_sha256(adapter / weights)
    assert rows(tmp_path / "run") == rows(adapter)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(base, tmp_path):
    out = tmp_path / "run"
    options = dict(base=base, out=out, rank=2, steps=100_000, slices=4, slice_tokens=32, log_every=1, save_every=10_000)
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    child = in_child("-W", "ignore", "-m", "icrl_utils", "train", *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (out / "train_log.csv").exists() or len((out / "train_log.csv").read_text().splitlines()) < 4:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    printed, errors = child.communicate(timeout=300)
    assert child.returncode == 130 and "Traceback" not in errors
    step = read_progress(out / "checkpoint.safetensors")["step"]
    (line,) = printed.splitlines()
    assert line.startswith(f"Stopped after step {step} of 100000") and "--resume" in line
    assert rows(out)[-1]["step"] == str(step)


def test_interrupts_wait_for_the_end_of_a_step_and_a_second_one_does_not(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    now = 0.0
    monkeypatch.setattr(runs.time, "monotonic", lambda: now)
    with pytest.raises(KeyboardInterrupt), delayed_interrupt() as interrupt:
        assert not interrupt.is_set()
        signal.raise_signal(signal.SIGINT)
        assert interrupt.is_set()
        signal.raise_signal(signal.SIGINT)  # launchers send it again at once
        now = 2.0
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_folder_in_use_is_not_overwritten(base, adapter):
    with pytest.raises(FileExistsError, match="already holds a run; go on with it by --resume .in Python: resume=True"):
        train(train_config(base, adapter), **QUIET)
    with pytest.raises(FileExistsError, match="already holds a run"):
        pretrain(pretrain_config(base), **QUIET)


def test_a_finished_run_stays_as_it_is(base, adapter):
    before = {file.name: file.stat().st_mtime_ns for file in adapter.iterdir()}
    assert train(train_config(base, adapter), resume=True, **QUIET) == adapter
    assert {file.name: file.stat().st_mtime_ns for file in adapter.iterdir()} == before


def test_resuming_with_another_configuration_names_the_fields(base, adapter, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\(steps=5 there, 6 here; lr=0.004 there, 0.1 here\)"):
        train(train_config(base, adapter, steps=6, lr=0.1, log_every=3), resume=True, **QUIET)
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        train(train_config(base, tmp_path / "run"), **QUIET)
    changed = Behaviour(habit_share=0.1)
    with pytest.raises(ValueError, match="behaviour={'habit_share': 0.25"):
        train(train_config(base, tmp_path / "run", behaviour=changed), resume=True, **QUIET)


# --------------------------------------------------------------------------------------------------- machinery


def test_fp16_scaling_leaves_the_update_of_two_optimizers_as_it_is(tmp_path):
    """Muon and AdamW share one loss scale; taking it off twice would shrink the gradients of the second."""
    results = []
    for enabled in (False, True):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4))
        nn.init.eye_(model[0].weight)
        optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.5) for i in range(2)]
        accelerator = make_accelerator(device="cpu")
        if enabled:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        config = PretrainConfig(**SMALL | {"out": str(tmp_path / str(enabled)), "warmup": 0, "clip": 0.3})
        run = Run(config, accelerator, {}, optimizers, 1, progress=False)
        accelerator.backward((model(torch.arange(4.0)) ** 3).sum())
        run.update(model.parameters())
        results.append((run.sums["grad_norm"], *model.parameters()))
        assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(*results)


def test_every_step_has_its_learning_rate_also_after_a_resumption(base, tmp_path, monkeypatch):
    rates = []

    def update(self, *args, was=Run.update):
        rates.append([group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups])
        return was(self, *args)

    monkeypatch.setattr(Run, "update", update)
    config = pretrain_config(tmp_path / "run", lr_matrix=0.5, lr_other=0.25)
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        pretrain(config, **QUIET)
    pretrain(config, resume=True, **QUIET)
    factors = [learning_rate_factor(step, config) for step in range(5)]
    np.testing.assert_allclose(rates, [[0.5 * factor, 0.25 * factor] for factor in factors])


def test_gradients_are_clipped_to_their_norm(tmp_path):
    weight = nn.Parameter(torch.zeros(2))
    config = PretrainConfig(**SMALL | {"out": str(tmp_path), "clip": 1.0})
    accelerator = make_accelerator(device="cpu")
    run = Run(config, accelerator, {}, [torch.optim.SGD([weight], lr=1.0)], 1, progress=False)
    accelerator.backward((weight * torch.tensor([30.0, 40.0])).sum())
    run.update([weight])
    assert run.sums["grad_norm"].item() == pytest.approx(50)
    torch.testing.assert_close(weight.detach(), -torch.tensor([0.6, 0.8]))


def test_automatic_precision(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_precision("auto", cpu) == "no"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))  # a T4
    assert resolve_precision("auto", gpu) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert resolve_precision("auto", gpu) == "bf16"
    assert resolve_precision("no", gpu) == "no" and resolve_precision("bf16", cpu) == "bf16"


def test_bf16_on_a_card_that_only_emulates_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(ValueError, match="precision='bf16': Tesla T4 has no bfloat16 .* leave it out"):
        resolve_precision("bf16", torch.device("cuda"))
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize(
    ("name", "value"),
    [("GRADIENT_ACCUMULATION_STEPS", "4"), ("DYNAMO_BACKEND", "INDUCTOR"), ("USE_FSDP", "true"),
     ("USE_DEEPSPEED", "true"), ("USE_MEGATRON_LM", "true"), ("USE_PARALLELISM_CONFIG", "true")],
)  # fmt: skip
def test_the_environment_cannot_change_a_run_unrecorded(name, value, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(ValueError, match=f"ACCELERATE_{name}='{value}' changes what training computes.*unset it"):
        make_accelerator(device="cpu")


def test_the_environment_of_accelerate_launch_changes_nothing(monkeypatch):
    for name, value in {"MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "no", "GRADIENT_ACCUMULATION_STEPS": "1"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    accelerator = make_accelerator("no", "cpu")
    assert accelerator.mixed_precision == "no" and accelerator.gradient_accumulation_steps == 1
    weight = nn.Parameter(torch.ones(1))
    accelerator.backward((3 * weight).sum())
    assert weight.grad.item() == 3


def test_two_runs_of_one_python_may_differ_in_precision():
    assert make_accelerator("bf16", "cpu").mixed_precision == "bf16"
    assert make_accelerator("no", "cpu").mixed_precision == "no"


def test_bf16_on_the_cpu_trains(base, tmp_path):
    train(train_config(base, tmp_path / "run", precision="bf16", steps=2), **QUIET)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["precision"] == "bf16"
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}  # autocast computes in bf16 and keeps nothing in it


def test_without_a_compiler_one_line_says_so(monkeypatch):
    def no_compiler(function):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand many more lines")

    monkeypatch.setattr(hardware.torch, "compile", no_compiler)
    net, said = nn.Linear(2, 2), []
    compile_network(net, torch.device("cpu"), said.append)
    (line,) = said
    assert "No working C++ compiler found" in line and "goes on without" in line and "\n" not in line
    assert net._compiled_call_impl is None


def test_matmul_peak_is_a_speed():
    assert 1e8 < matmul_peak() < 1e15


@pytest.mark.slow
def test_evaluation_plays_the_online_adapter_and_leaves_the_model_alone(base):
    model = add_adapters(load_base(base), rank=2)
    with torch.no_grad():
        for parameter in adapter_parameters(model, ONLINE).values():
            parameter.add_(0.3)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    config = train_config(base, "unused", eval_maps=3, eval_step_limit=8)
    row = evaluate_in_training(model, HISTORY, QReadout(), config, greedy=True)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and p.requires_grad == before[name][1]
    assert model.active_adapter == ONLINE
    agent = Agent(model, HISTORY, QReadout(), temperature=config.temperature)
    maps = development_maps("in_distribution", 3)
    paper, greedy = (rollout(agent, maps, schedule, seed=1, step_limit=8).success for schedule in ("paper", "greedy"))
    assert row == {
        "success_first": paper[:, :10].mean(), "success_last": paper[:, -10:].mean(),
        "greedy_10_14": greedy[:, 10:15].mean(), "greedy_last": greedy[:, -10:].mean(),
    }  # fmt: skip


def test_training_moves_both_adapters_and_nothing_else(base, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(training, "add_adapters", lambda *a: seen.setdefault("model", add_adapters(*a)))
    train(train_config(base, tmp_path / "run"), **QUIET)
    model, plain = seen["model"], dict(load_base(base).named_parameters())
    for name, parameter in model.get_base_model().named_parameters():
        if name.replace(".base_layer", "") in plain:
            assert torch.equal(parameter, plain[name.replace(".base_layer", "")])
    online, target = (adapter_parameters(model, name) for name in (ONLINE, TARGET))
    start = adapter_parameters(add_adapters(load_base(base), rank=2), ONLINE)
    for name in online:
        way, lag = (online[name] - start[name]).norm(), (online[name] - target[name]).norm()
        assert 0 < lag < way or way == lag == 0 or "lora_B" not in name


# ------------------------------------------------------------------------------------------------- two processes


IN_4_BITS = dict(
    history="paper", quantization="nf4", relabel=0.0, world_model=0.0, slice_tokens=96, optimizer="adamw", lr=1e-3
)  # fmt: skip


@pytest.mark.parametrize("changes", [{}, IN_4_BITS], ids=["tiny", "nf4, paper text"])
@pytest.mark.slow
def test_two_processes_make_the_update_of_one_with_all_slices(changes, base, llama3_folder, tmp_path):
    """Through `accelerate launch`: data parallelism wraps the Q-network, adapters are switched beneath it."""
    here = str(llama3_folder if changes else base)
    options = SMALL | dict(base=here, rank=2, steps=3, eval_every=100) | changes
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    launch = (
        "-W ignore -m accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no"
    )
    launch += " --dynamo_backend=no --main_process_port=0 -m icrl_utils train"
    # Each process takes its two slices one by one, and gradients are shared at the second.
    argv = [*launch.split(), *argv, f"--micro-tokens={options['slice_tokens']}", f"--out={tmp_path / 'two'}"]
    child = in_child(*argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    printed, _ = child.communicate(timeout=300)
    assert child.returncode == 0, printed
    train(TrainConfig(**options | {"out": str(tmp_path / "one")}), **QUIET)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
    half = train(TrainConfig(**options | {"out": str(tmp_path / "half"), "slices": 2}), **QUIET)
    difference = [(two[name] - p).abs().max() for name, p in load_file(half / "adapter_model.safetensors").items()]
    assert max(difference) > 1e-3  # one process with its share of the slices would have gone elsewhere
    for alone, shared in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("loss", "total_loss", "td_error", "grad_norm"):
            assert float(shared[name]) == pytest.approx(float(alone[name]), rel=1e-3)
