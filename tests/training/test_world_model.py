"""The world model: its losses and its exams, on hand-made histories."""

import math
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from icrl_utils.dqn.replay import make_batch
from icrl_utils.history.format import HistoryFormat
from icrl_utils.llama.load import new_tiny_llama
from icrl_utils.training.world_model import (
    NOT_TRIED,
    WorldModel,
    latest_try,
    observation_positions,
    outcomes_of_moves,
    seen_move_accuracy,
    seen_pair_accuracy,
    world_model_loss,
)

HISTORY = HistoryFormat("compact")
ACTION_IDS = torch.from_numpy(HISTORY.action_ids)
LEFT, DOWN, RIGHT, UP = range(4)


def tokens(text):
    return torch.from_numpy(HISTORY.tokenize(text))[None]


def play(*texts):
    return make_batch(torch.cat([tokens(text) for text in texts]).numpy(), HISTORY)


def test_world_model_loss_by_hand():
    ids = tokens("8 right 9 down hole")
    assert observation_positions(ids).tolist() == [[1, 3]]
    logits = torch.zeros(1, 2, HISTORY.vocab_size)
    logits[0, 0, 9] = 3.0  # after "right" the truth is 9
    logits[0, 1, ACTION_IDS] = 50.0  # action words are no observations: whatever they say does not count
    uniform = math.log(HISTORY.vocab_size - 4)
    by_hand = (math.log(math.exp(3) + HISTORY.vocab_size - 5) - 3 + uniform) / 2
    assert world_model_loss(logits, ids, ACTION_IDS).item() == pytest.approx(by_hand, rel=1e-5)


def test_actions_carry_no_loss_in_pretraining():
    """So the base cannot imitate anybody, and the read-out rows stay where they were put."""
    model = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, 16, 1, 2)
    world = WorldModel(model)
    batch = play("8 right 9 down hole reset 8 left 8 left 8")
    following, moves = world(batch.ids, batch.position)
    loss_of_moves = F.cross_entropy(moves.flatten(0, 2), outcomes_of_moves(batch).flatten())
    (world_model_loss(following, batch.ids, ACTION_IDS) + loss_of_moves).backward()
    gradient = model.lm_head.weight.grad
    assert (gradient[ACTION_IDS] == 0).all() and gradient[9].abs().sum() > 0


class Oracle(nn.Module):
    """Predicts the next word of the very text it reads, but at ``wrong`` positions something else."""

    def __init__(self, wrong=()):
        super().__init__()
        self.wrong = wrong
        self.model = self.read

    def read(self, input_ids, use_cache):
        following = input_ids.roll(-1, 1)
        following[:, list(self.wrong)] = 60
        return types.SimpleNamespace(last_hidden_state=nn.functional.one_hot(following, HISTORY.vocab_size).float())

    def get_output_embeddings(self):
        return nn.Identity()


#      0 1     2 3    4    5     6 7     8 9    10   11    12 13  14 15    16 17   18    19    20
EXAM = "8 right 9 down hole reset 8 right 9 down hole reset 8 up 8 right 9 left limit reset 8"


def test_seen_pair_accuracy_of_a_perfect_model_is_one():
    assert seen_pair_accuracy(Oracle(), play(EXAM), ACTION_IDS) == (1.0, 3)


def test_seen_pair_accuracy_counts_repeated_pairs_only():
    """Seen before: (8, right) at 7 and 15, (9, down) at 9. Not asked: the first time, resets, the step limit."""
    exam = play(EXAM)
    assert seen_pair_accuracy(Oracle(wrong=[1, 3, 5, 11, 13, 17, 19]), exam, ACTION_IDS) == (1.0, 3)
    for position in (7, 9, 15):
        assert seen_pair_accuracy(Oracle(wrong=[position]), exam, ACTION_IDS)[0] == pytest.approx(2 / 3)
    twice = play(EXAM, EXAM)  # rows are histories of their own: nothing was seen in another row
    assert seen_pair_accuracy(Oracle(wrong=[7]), twice, ACTION_IDS) == (pytest.approx(2 / 3), 6)


def test_seen_pair_accuracy_leaves_out_a_seen_pair_that_the_clock_ended():
    assert seen_pair_accuracy(Oracle(), play("8 up 8 up limit reset 8 up 8 left"), ACTION_IDS)[1] == 1


def test_latest_try_and_what_it_led_to():
    batch = play("8 right 9 down hole reset 8 up 8 up limit reset 8 right 9 left")
    # decisions:   0       1                  2    3                 4       5 (what left led to is not told)
    tried = latest_try(batch)[0]
    assert tried[0].tolist() == [-1, -1, 0, -1]  # a decision's own move counts
    assert tried[1].tolist() == [-1, 1, -1, -1]  # nothing is known about 9 from what was done on 8
    assert tried[2].tolist() == [-1, -1, 0, 2]
    assert tried[3].tolist() == [-1, -1, 0, 2]  # the limit ended this step up: the one before it counts
    assert tried[4].tolist() == [-1, -1, 4, 2]
    assert tried[5].tolist() == [-1, 1, -1, -1]
    word = outcomes_of_moves(batch)[0]
    assert word[4, RIGHT] == 9 and word[4, UP] == 8 and word[4, LEFT] == NOT_TRIED
    assert word[5, DOWN] == HISTORY.tokenize("hole")[0]


def test_padded_decisions_are_no_tries_and_are_not_asked():
    """Rows with fewer decisions are padded with a position that is real elsewhere."""
    many, few = "8 right 8 right 8 right 8 right 8", "8 up hole reset 8 up hole reset 8"
    batch = play(many, few)
    assert int(batch.has_target[0].sum()) == 3 and int(batch.has_target[1].sum()) == 2
    assert (latest_try(batch)[1, 2:] == -1).all()
    assert latest_try(batch)[1, 1].tolist() == [-1, -1, -1, 1]


class Knows(WorldModel):
    """Answers what each move leads to as ``answers`` has it: {(tile, move): word}; ``goal`` where it has nothing."""

    def __init__(self, answers):
        nn.Module.__init__(self)
        self.answers = answers

    def forward(self, ids, position):
        tile = ids.gather(1, position)
        logits = torch.zeros(*position.shape, 4, HISTORY.vocab_size)
        for row, d in torch.cartesian_prod(*map(torch.arange, position.shape)):
            for move in range(4):
                word = self.answers.get((int(tile[row, d]), move), "goal")
                logits[row, d, move, HISTORY.tokenize(word)[0]] = 1.0
        return None, logits


def test_seen_move_accuracy_asks_about_the_other_moves_made_before():
    batch = play("8 right 9 down hole reset 8 up 8 right 9 right 10")
    # asked: before "up" right, before the second "right" up, before the second move on 9 down
    truth = {(8, RIGHT): "9", (8, UP): "8", (9, DOWN): "hole"}
    assert seen_move_accuracy(Knows(truth), batch) == (1.0, 3)
    for move in truth:
        accuracy, count = seen_move_accuracy(Knows(truth | {move: "10"}), batch)
        assert accuracy == pytest.approx(2 / 3) and count == 3
    assert seen_move_accuracy(Knows(truth | {(9, RIGHT): "8", (10, UP): "8"}), batch) == (1.0, 3)  # not made before


def test_the_same_seed_makes_the_same_world_model():
    def weights(seed):
        llama = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, 16, 1, 2)
        return WorldModel(llama, seed).lm_head_of_moves.weight

    assert weights(1).equal(weights(1)) and not weights(1).equal(weights(2))
