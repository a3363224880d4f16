"""Pretraining in the ``paper`` format: what is asked of the base, and that DQN can train on it."""

import csv
import json
import math
import types

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer

from icrl_utils.dqn.replay import make_batch
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.llama.load import load_history, load_llama, new_tiny_llama
from icrl_utils.training import runs, training
from icrl_utils.training.configs import PretrainConfig, TrainConfig
from icrl_utils.training.pretraining import pretrain
from icrl_utils.training.runs import Run
from icrl_utils.training.training import train
from icrl_utils.training.world_model import (
    NOT_TRIED,
    WorldModel,
    observation_positions,
    observed_words,
    outcomes_of_moves,
    seen_pair_accuracy,
    world_model_loss,
)

TOKENIZER = make_paper_tokenizer()
HISTORY = HistoryFormat("paper", TOKENIZER)
ACTION_IDS = torch.from_numpy(HISTORY.action_ids)
HEADER = torch.from_numpy(HISTORY.observation_header)
LEFT, DOWN, RIGHT, UP = range(4)
SMALL = dict(
    history="paper", relabel=0.0, steps=4, slices=4, slice_tokens=128, steps_per_chunk=2, warmup=1,
    hidden=16, layers=1, heads=2, log_every=1, eval_every=2, save_every=100, device="cpu",
)  # fmt: skip
PLAYED = [
    Episode((8, 9, 13), (RIGHT, DOWN), "hole"),
    Episode((8, 8, 8), (UP, UP), "limit"),
    Episode((8, 9, 10), (RIGHT, RIGHT), "goal"),
    Episode((8, 9), (RIGHT,)),
]
# decisions: 0 8 right, 1 9 down | 2 8 up, 3 8 up | 4 8 right, 5 9 right | 6 8 right (the row ends before 9's decision)


@pytest.fixture(autouse=True)
def no_stop_watch(monkeypatch):
    monkeypatch.setattr(runs, "matmul_peak", lambda *_: 1e12)


def pretrained(folder, resume=False, **changes):
    return pretrain(PretrainConfig(out=str(folder), **SMALL | changes), resume=resume, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "matmul_peak", lambda *_: 1e12)
        return pretrained(tmp_path_factory.mktemp("paper") / "base")


def played(episodes=PLAYED):
    return make_batch(HISTORY.tokenize(HISTORY.render(episodes))[None], HISTORY)


def words(ids):
    return TOKENIZER.convert_ids_to_tokens(ids)


# -------------------------------------------------------------------------------------------------- what is asked


def test_three_tokens_of_an_observation_tell_anything():
    ids = played([Episode((8, 9, 13), (RIGHT, DOWN), "goal"), Episode((10, 15), (UP,), "hole")]).ids
    observation = observation_positions(ids, HEADER)
    assert observation.shape == (1, ids.shape[1] // 2) and (observation.diff() >= 0).all()
    labels = observed_words(ids, observation)[0]
    told = labels[labels != NOT_TRIED]
    begin, end, header = "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"
    assert words(told) == [
        "8", header, "action", "9", header, "action", "13", header, "reward", "10", header, "action", "15", end,
    ]  # fmt: skip
    assert begin not in words(told) and not torch.isin(told, ACTION_IDS).any()


def test_the_step_limit_and_the_next_episode_are_told_too():
    ids = played([Episode((8, 8), (UP,), "limit"), Episode((7, 6), (LEFT,), "hole"), Episode((5,), ())]).ids
    labels = observed_words(ids, observation_positions(ids, HEADER))[0]
    told = words(labels[labels != NOT_TRIED])
    assert told[3:6] == ["8", "<|start_header_id|>", "edit"]
    assert told[9:13] == ["6", "<|end_of_text|>", "<|begin_of_text|>", "5"]


def test_the_loss_by_hand_counts_no_padding_and_no_action_words():
    ids = played([Episode((8, 15), (UP,), "hole")]).ids
    observation = observation_positions(ids, HEADER)
    count = int((observed_words(ids, observation) != NOT_TRIED).sum())
    assert count == 5 < observation.shape[1]
    logits = torch.zeros(1, observation.shape[1], HISTORY.vocab_size)
    logits[..., ACTION_IDS] = 50.0
    logits[0, 0, HISTORY.tokenize("<|begin_of_text|>")] = 3.0  # where the truth is 8
    logits[0, count:] = 100 * torch.randn(observation.shape[1] - count, HISTORY.vocab_size)
    others = HISTORY.vocab_size - 4
    by_hand = (math.log(math.exp(3) + others - 1) + (count - 1) * math.log(others)) / count
    assert world_model_loss(logits, ids, ACTION_IDS, observation).item() == pytest.approx(by_hand, rel=1e-5)


def test_actions_carry_no_loss_and_observations_do():
    model = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, 16, 1, 2)
    world, batch = WorldModel(model), played()
    observation = observation_positions(batch.ids, HEADER)
    following, moves = world(batch.ids, batch.position, observation)
    assert moves.shape == (*batch.position.shape, 4, 72)
    world_model_loss(following, batch.ids, ACTION_IDS, observation).backward()
    gradient = model.lm_head.weight.grad
    assert (gradient[ACTION_IDS] == 0).all() and gradient[HISTORY.tokenize(HISTORY.render([PLAYED[-1]]))].any()


def test_outcomes_of_moves():
    found = outcomes_of_moves(played())[0]
    _, goal, hole = NOT_TRIED, *HistoryFormat("compact").tokenize("goal hole").tolist()
    assert found[0].tolist() == [NOT_TRIED, NOT_TRIED, 9, NOT_TRIED]  # a decision's own move counts
    assert found[1].tolist() == [NOT_TRIED, hole, NOT_TRIED, NOT_TRIED]  # not 13, where the hole is
    assert found[3].tolist() == [NOT_TRIED, NOT_TRIED, 9, 8]  # the limit ended this step up: the one before it counts
    assert found[5].tolist() == [NOT_TRIED, hole, goal, NOT_TRIED]
    assert found[6].tolist() == [NOT_TRIED, NOT_TRIED, 9, 8]
    assert (found[7:] == NOT_TRIED).all()  # padding


def test_both_formats_ask_the_same():
    compact = HistoryFormat("compact")
    expected = outcomes_of_moves(make_batch(compact.tokenize(compact.render(PLAYED))[None], compact))[0]
    assert outcomes_of_moves(played())[0, :7].tolist() == expected[:7].tolist()


class Oracle(nn.Module):
    """Predicts the next token of the very text it reads, but at ``wrong`` positions something else."""

    def __init__(self, wrong=()):
        super().__init__()
        self.wrong = list(wrong)
        self.model = self.read

    def read(self, input_ids, use_cache):
        following = input_ids.roll(-1, 1)
        following[:, self.wrong] = 60
        return types.SimpleNamespace(last_hidden_state=nn.functional.one_hot(following, HISTORY.vocab_size).float())

    def get_output_embeddings(self):
        return nn.Identity()


def test_seen_pair_accuracy():
    """Seen before: (8, right) at decisions 4 and 6, (9, down) at 7, and (8, up) at 3, which the step limit ended."""
    batch = played([*PLAYED[:3], PLAYED[0]])  # ends with the end of the text, behind which nothing is told

    def accuracy(*wrong):
        return seen_pair_accuracy(Oracle(wrong), batch, ACTION_IDS, HEADER)

    assert accuracy() == (1.0, 3)
    first, second = batch.position[0, [4, 6]].tolist()
    for shift in (5, 7, 8):  # asked where the tile, the header and the role come next
        assert accuracy(first + shift) == (pytest.approx(2 / 3), 3)
        assert accuracy(first + shift, second + shift) == (pytest.approx(1 / 3), 3)
    elsewhere = {*range(batch.ids.shape[1] - 1)} - {p + s for p in batch.position[0].tolist() for s in (5, 7, 8)}
    assert accuracy(*elsewhere) == (1.0, 3)
    unknown = [p + s for p in batch.position[0, [0, 1, 2, 3, 5]].tolist() for s in (5, 7, 8)]
    assert accuracy(*unknown) == (1.0, 3)


def test_relabelling_needs_compact_histories():
    with pytest.raises(ValueError, match="history='paper' with relabel=0.5: .* set relabel to 0"):
        PretrainConfig(history="paper")


# -------------------------------------------------------------------------------------------------------- the run


def test_a_finished_base_is_complete(base):
    with (base / "train_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(math.isfinite(float(row["loss_of_moves"])) for row in rows)
    assert float(rows[0]["loss"]) == pytest.approx(math.log(HISTORY.vocab_size), rel=0.1)
    for exam in ("seen_pair_accuracy", "seen_move_accuracy"):
        assert 0 <= json.loads((base / "run.json").read_text())[exam] <= 1
    assert "--history=paper" in json.loads((base / "run.json").read_text())["command"]
    assert "lm_head_of_moves.weight" not in load_file(base / "model.safetensors")


def test_it_loads_as_a_real_llama_does_and_its_action_rows_were_never_moved(base):
    model, text = load_llama(base, device="cpu"), load_history(base, "paper")
    assert text.name == "paper" and text.action_ids.tolist() == HISTORY.action_ids.tolist()
    rows = model.lm_head.weight[ACTION_IDS].detach()
    untrained = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, 16, 1, 2)
    decay = rows / untrained.lm_head.weight[ACTION_IDS].detach()
    assert decay.std() < 1e-4  # weight decay shrinks them all alike, and no gradient turns them


def test_dqn_trains_on_it(base, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "evaluate_in_training", lambda *_, **__: {})
    config = TrainConfig(
        base=str(base), out=str(tmp_path / "run"), history="paper", steps=1, slices=2, slice_tokens=96,
        steps_per_chunk=1, warmup=1, rank=2, relabel=0.0, world_model=0.0, centred=True, device="cpu",
    )  # fmt: skip
    weights = load_file(train(config, progress=False) / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights.items())


def test_a_resumed_run_ends_with_the_same_weights(base, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "out_of_time", lambda self: self.step == 2)
        pretrained(out)
    assert runs.read_progress(out / "checkpoint.safetensors")["step"] == 2
    pretrained(out, resume=True)
    one, two = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_base_that_pretraining_goes_on_from_keeps_its_own_tokens(tmp_path):
    tokenizer = make_paper_tokenizer(special_tokens=("<|endoftext|>",))  # without Llama 3's header tokens
    history = HistoryFormat("paper", tokenizer)
    new_tiny_llama(history.vocab_size, history.action_ids, 16, 1, 2).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = SMALL | dict(base=str(tmp_path / "base"), out=str(tmp_path / "on"), steps=1)
    after = pretrain(PretrainConfig(**options), progress=False)
    assert AutoTokenizer.from_pretrained(after).get_vocab() == tokenizer.get_vocab() != TOKENIZER.get_vocab()
