"""Fine-tuning end to end on the tiny Llama: it learns, it can be stopped and resumed, its files are peft's."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from icrl_utils.history.tokenizers import make_compact_tokenizer
from icrl_utils.history.words import Words
from icrl_utils.llama.frozen import FrozenLlama
from icrl_utils.llama.load import load_base
from icrl_utils.llama.lora import WEIGHTS, Lora
from icrl_utils.training.configs import FinetuneConfig
from icrl_utils.training.finetuning import asked_batches, finetune, values_and_targets
from icrl_utils.training.folder import read_log
from icrl_utils.training.optimizers import two_stage_factor

CPU = torch.device("cpu")


def small(tmp_path, name="run", **changes):
    options = {
        "base": "assets/tiny-llama", "out": str(tmp_path / name), "stage_one": 2, "steps": 5, "slice_tokens": 64,
        "steps_per_chunk": 2, "eval_maps": 2, "eval_step_limit": 5, "precision": "no", "rank": 2, "log_every": 1,
        "save_every": 1,
    }  # fmt: skip
    return FinetuneConfig(**options | changes)


def test_both_stages_learn(tmp_path):
    """Stage one makes the outcomes likelier, DQN makes the values of seen goals rise above those of seen holes."""
    config = small(
        tmp_path, stage_one=0, steps=60, slice_tokens=192, slices=4, rank=8, lr=5e-3, warmup=4, log_every=20,
        save_every=60,
    )  # fmt: skip
    log = read_log(finetune(config, progress=False) / "train_log.csv", config.steps)
    first, last = log[0], log[2]
    assert float(last["td_error"]) < 0.8 * float(first["td_error"])
    assert float(last["q_seen_goal"]) > float(last["q_seen_hole"]) + 0.3


def test_stopped_and_resumed_it_ends_with_the_same_weights(tmp_path):
    whole = finetune(small(tmp_path, "whole"), progress=False)
    config = small(tmp_path, "parts")
    for stop in (1, 3):  # in stage one, and in DQN
        stopping = replace(config, minutes=1e-9)
        finetune(stopping, resume=stop > 1, progress=False)
    parts = finetune(config, resume=True, progress=False)
    expected, found = load_file(whole / WEIGHTS), load_file(parts / WEIGHTS)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not (parts / "checkpoint.safetensors").exists()
    steps = [row["step"] for row in read_log(parts / "train_log.csv", 5)]
    assert [int(step) for step in steps] == [1, 2, 3, 4, 5]


def test_the_record_says_what_decides_how_it_plays(tmp_path):
    run = json.loads((finetune(small(tmp_path), progress=False) / "run.json").read_text())
    assert run["history"] == "words" and run["base"] == "assets/tiny-llama" and run["steps_done"] == 5
    assert run["readout"] == {"row": "goal - hole, after the action word", "scale": 0.5, "offset": 2.0}
    assert run["play"]["temperature"] == 0.5
    assert run["command"].startswith("python -m icrl_utils finetune ")
    PeftModel.from_pretrained(load_base("assets/tiny-llama"), tmp_path / "run")


def test_a_finished_run_is_left_as_it_is_whatever_precision_the_machine_chose(tmp_path):
    config = small(tmp_path, precision="auto")
    folder = finetune(config, progress=False)
    before = (folder / "run.json").read_text()
    assert finetune(config, resume=True, progress=False) == folder
    assert (folder / "run.json").read_text() == before and json.loads(before)["precision"] in ("bf16", "no")


def test_an_adapter_can_be_gone_on_from(tmp_path):
    first = finetune(small(tmp_path), progress=False)
    config = small(tmp_path, "more", start=str(first), stage_one=0, steps=1, lr=1e-9, warmup=0)
    more = finetune(config, progress=False)
    before, after = load_file(first / WEIGHTS), load_file(more / WEIGHTS)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-3, rtol=1e-2)
    assert "start_sha256" in json.loads((more / "run.json").read_text())


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    config, words = small(tmp_path, slices=2, stretch=2), Words(make_compact_tokenizer())
    all_of_them = list(asked_batches(config, words, 0, CPU))
    later = list(asked_batches(config, words, 3, CPU))
    for a, b in zip(all_of_them[3:], later, strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.branch_tokens, b.branch_tokens)
    assert [tuple(b.tokens.shape) for b in all_of_them] == [(2, 64), (2, 64), (1, 128), (1, 128), (2, 64)]
    other = next(asked_batches(replace(config, seed=1), words, 0, CPU))
    assert not torch.equal(all_of_them[0].tokens, other.tokens)


def test_targets_come_from_the_network_that_was_asked_for(tmp_path):
    """Online and averaged adapter differ: with ``target`` the targets follow the averaged one."""
    config, words = small(tmp_path, slices=2), Words(make_compact_tokenizer())
    llama = FrozenLlama(load_base("assets/tiny-llama"))
    online, average = (Lora(llama.shape, range(4), 2, seed) for seed in (1, 2))
    for lora in (online, average):
        draw = torch.Generator().manual_seed(int(lora is average))
        lora.copy_({n: 0.3 * torch.randn(t.shape, generator=draw) for n, t in lora.tensors.items()})
    batch = next(asked_batches(config, words, 0, CPU))

    def targets(target, first, second):
        return values_and_targets(llama, words, first, second, batch, replace(config, target=target, trace=0.0))[1:]

    z, own = targets(False, online, average)
    _, theirs = targets(True, online, average)
    z_average, expected = targets(False, average, online)
    torch.testing.assert_close(theirs, expected)
    assert not torch.allclose(own, theirs) and not torch.allclose(z, z_average)


def test_the_learning_rate_of_two_stages():
    config = FinetuneConfig(stage_one=4, steps=24, warmup=2, decay=0.5)
    factors = [two_stage_factor(step, config) for step in range(24)]
    assert factors[:6] == [0.5, 1.0, 1.0, 1.0, 0.5, 1.0]  # both stages warm up
    assert factors[14] == 1.0  # half of DQN's 20 steps
    np.testing.assert_allclose(factors[15:17], [0.1 + 0.9 * 0.9, 0.1 + 0.9 * 0.8])
    assert factors[-1] == pytest.approx(0.1 + 0.9 * 0.1)
    constant = replace(config, schedule="constant")
    assert {two_stage_factor(step, constant) for step in range(6, 24)} == {1.0}


def test_bad_configurations_are_refused_before_any_work(tmp_path):
    for changes, message in [
        ({"stage_one": 6}, "stage_one=6 is more than steps=5"),
        ({"slices": 3}, "stretch=2 must divide slices=3"),
        ({"relabel": 0.5}, "relabel=0.5"),
        ({"compile": True}, "compile=True"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"asked": 1.5}, "asked"),
        ({"trace": -0.1}, "trace"),
        ({"schedule": "cosine"}, "schedule='cosine'"),
    ]:
        with pytest.raises(ValueError, match=message):
            small(tmp_path, **changes)
    with pytest.raises(ValueError, match="first_adapted=4: the base has layers 0 to 3"):
        finetune(small(tmp_path, first_adapted=4), progress=False)
    with pytest.raises(FileNotFoundError, match="no/such/base"):
        finetune(small(tmp_path, base="no/such/base"), progress=False)
