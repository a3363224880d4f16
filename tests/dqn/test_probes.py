"""Probe environments: decision problems of a few words, each needing one ingredient of the training step.

The real step (`q_and_targets`, `td_loss`, `polyak_update`) trains a small adapter on a random Llama until the values
are exact. Every probe is also run with its ingredient broken, and must then be far off: a probe that cannot fail
proves nothing.
"""

import numpy as np
import pytest
import torch

from icrl_utils.dqn import dqn
from icrl_utils.dqn.dqn import q_and_targets
from icrl_utils.dqn.replay import make_batch
from icrl_utils.history.format import HistoryFormat
from icrl_utils.llama.adapters import ONLINE, TARGET, adapter_parameters, add_adapters, backbone, target_network
from icrl_utils.llama.load import new_tiny_llama
from icrl_utils.llama.readout import QNetwork, QReadout

HISTORY = HistoryFormat("compact")
LEFT, DOWN, RIGHT, UP = range(4)
GAMMA = 0.9


class Learner:
    """A one-layer Llama of width 32 with a LoRA adapter, trained on a handful of texts."""

    def __init__(
        self, texts, loss="bce", network=QNetwork, polyak=0.1, gamma=GAMMA, consistent=False, damage=lambda batch: batch
    ):
        base = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, hidden=32, layers=1, heads=2).eval()
        self.model = add_adapters(base, rank=16)
        # With four rows of length .5 and 32 dimensions logits stay below 3: the scale lets Q come near 1.
        self.readout = QReadout("sigmoid" if loss == "bce" else "identity", scale=4.0, offset=1.0)
        self.net = network(self.model, HISTORY.action_ids, self.readout, fold=network is QNetwork)
        self.loss, self.polyak, self.gamma, self.consistent = loss, polyak, gamma, consistent
        ids = [HISTORY.tokenize(text) for text in texts]
        padded = np.stack([np.pad(i, (0, max(map(len, ids)) - len(i)), constant_values=-1) for i in ids])
        batch = make_batch(padded, HISTORY)
        self.batch = damage(batch._replace(ids=batch.ids.clamp(min=0)))  # padding is at the end: no one looks there

    def train(self, steps=100):
        online, target = (adapter_parameters(self.model, name).values() for name in (ONLINE, TARGET))
        adam = torch.optim.AdamW(online, lr=1e-2, weight_decay=0.0)
        for step in range(steps):
            adam.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            batch = self.batch
            z, y, _ = q_and_targets(self.net, self.model, batch, self.readout, self.gamma, consistent=self.consistent)
            loss = dqn.td_loss(z, batch.action, y, batch.has_target, self.loss) / batch.has_target.sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            if self.polyak:
                dqn.polyak_update(target, online, self.polyak)
        return self

    @torch.no_grad()
    def q(self, text):
        """The four values at the end of ``text``."""
        ids = torch.from_numpy(HISTORY.tokenize(text))[None]
        return self.readout.q(self.net(ids, torch.tensor([[ids.shape[1] - 1]]))[0])[0, 0]


def learned(texts, question, action, **options):
    return Learner(texts, **options).train().q(question)[action].item()


def near(value):
    return pytest.approx(value, abs=0.02)


# --------------------------------------------------------------------------------------------------------- probes

REWARD = ["0 right goal reset", "0 left hole reset"]


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_reward_only(loss):
    learner = Learner(REWARD, loss=loss).train()
    assert learner.q("0")[RIGHT].item() == near(1.0) and learner.q("0")[LEFT].item() == near(0.0)


def test_reward_only_fails_with_the_wrong_action_or_no_reward():
    shifted = Learner(REWARD, damage=lambda b: b._replace(action=(b.action + 1) % 4)).train()
    assert shifted.q("0")[UP].item() == near(1.0) and abs(shifted.q("0")[RIGHT] - 1) > 0.2
    assert learned(REWARD, "0", RIGHT, damage=lambda b: b._replace(reward=0 * b.reward)) == near(0.0)


DISCOUNT = ["0 right 1 right goal reset"]


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_discounting_over_one_step(loss):
    learner = Learner(DISCOUNT, loss=loss).train()
    assert learner.q("0 right 1")[RIGHT].item() == near(1.0)
    assert learner.q("0")[RIGHT].item() == near(GAMMA)


def test_discounting_fails_with_another_gamma():
    assert learned(DISCOUNT, "0", RIGHT, gamma=0.0) == near(0.0)
    assert learned(DISCOUNT, "0", RIGHT, gamma=0.5) == near(0.5)


TWO_ACTIONS = ["0 right 1 left hole reset", "0 right 1 up goal reset", "0 right 1 left hole reset"]


def test_the_best_next_action_counts_and_not_the_one_taken():
    """Two of three went left and died; up would have been right."""
    assert learned(TWO_ACTIONS, "0", RIGHT) == near(GAMMA)


def test_the_best_next_action_fails_when_the_one_taken_counts(monkeypatch):
    def sarsa(q_online, q_target, reward, terminated, gamma, repeated):
        actions = torch.tensor([[RIGHT, LEFT], [RIGHT, UP], [RIGHT, LEFT]])
        taken = q_target[:, :2].gather(-1, actions[..., None])[..., 0]
        following = torch.nn.functional.pad(taken[:, 1:], (0, reward.shape[1] - 1))
        return reward + gamma * following.masked_fill(terminated, 0)

    monkeypatch.setattr(dqn, "td_targets", sarsa)
    assert learned(TWO_ACTIONS, "0", RIGHT) == near(GAMMA / 3)


def frozen_target_values():
    """What the untrained network says about tile 1: with polyak = 0 the target network says so for ever."""
    return Learner(DISCOUNT, polyak=0).q("0 right 1")


def rewarded(action_word):
    return [f"0 right 1 {word} {'goal' if word == action_word else 'hole'} reset" for word in ("left", "down", "up")]


def test_the_target_network_values_what_the_online_network_chooses():
    """The online network learns that the action which the frozen target likes *least* leads to the goal."""
    frozen = frozen_target_values()
    worst = min((LEFT, DOWN, UP), key=lambda a: frozen[a])
    assert frozen.max() - frozen[worst] > 0.15
    learner = Learner(rewarded(("left", "down", "right", "up")[worst]), polyak=0).train()
    assert learner.q("0 right 1").argmax().item() == worst
    assert learner.q("0")[RIGHT].item() == near(GAMMA * frozen[worst].item())


def test_that_fails_with_values_from_the_online_network_and_with_choices_of_the_target(monkeypatch):
    frozen, right_way = frozen_target_values(), dqn.td_targets
    worst = min((LEFT, DOWN, UP), key=lambda a: frozen[a])
    texts, wanted = rewarded(("left", "down", "right", "up")[worst]), GAMMA * frozen[worst].item()
    monkeypatch.setattr(dqn, "td_targets", lambda online, target, *rest: right_way(online, online, *rest))
    assert learned(texts, "0", RIGHT, polyak=0) == near(GAMMA)
    monkeypatch.setattr(dqn, "td_targets", lambda online, target, *rest: right_way(target, target, *rest))
    assert learned(texts, "0", RIGHT, polyak=0) == near(GAMMA * frozen.max().item())
    assert abs(frozen.max().item() - frozen[worst].item()) * GAMMA > 0.08 and abs(wanted - GAMMA) > 0.08


def test_the_target_network_is_the_target_adapter():
    learner = Learner(DISCOUNT, polyak=0).train(40)
    with target_network(learner.model):
        torch.testing.assert_close(learner.q("0 right 1"), frozen_target_values())


ENDS = ["0 right hole reset 1 right goal reset"]


def test_nothing_is_bootstrapped_across_the_end_of_an_episode():
    assert learned(ENDS, "0", RIGHT) == near(0.0)


def test_that_fails_when_ends_are_ignored():
    def forget(batch):
        return batch._replace(terminated=batch.terminated & (batch.reward > 0))

    assert learned(ENDS, "0", RIGHT, damage=forget) == near(GAMMA)


WALL = ["0 left 0 right goal reset", "0 left 0 left 0 right goal reset", "0 left 1 up goal reset"]


@pytest.mark.slow
def test_a_wall_is_worth_nothing_in_the_consistent_backup_and_a_detour_in_the_plain_one():
    """After a first bump against the wall: going left again costs a step of the plain backup."""
    assert learned(WALL[:2], "0 left 0", LEFT) == near(GAMMA)
    assert learned(WALL[:2], "0 left 0", LEFT, consistent=True, polyak=1.0) == near(0.0)
    assert learned(WALL[:2], "0 left 0", RIGHT, consistent=True) == near(1.0)
    assert learned(WALL[2:], "0", LEFT, consistent=True) == near(
        GAMMA
    )  # a move that led somewhere is backed up as ever


TRUNCATION = ["0 right limit reset 1 left hole reset", "0 right 2 right goal reset"]


def test_a_truncated_step_says_nothing():
    """Half of the moves onto tile 2 were cut off by the clock. Their value is that of the others."""
    assert learned(TRUNCATION, "0", RIGHT) == near(GAMMA)


def test_that_fails_when_truncation_counts_as_an_end():
    def clock_kills(batch):
        cut_off = ~batch.has_target & (batch.action == RIGHT)
        return batch._replace(terminated=batch.terminated | cut_off, has_target=batch.has_target | cut_off)

    assert learned(TRUNCATION, "0", RIGHT, damage=clock_kills) == near(GAMMA / 2)


MEMORY = [
    "5 left hole reset 0 right goal reset",
    "6 left hole reset 0 right hole reset",
]


def test_the_same_tile_has_another_value_after_another_history():
    """In-context learning in its smallest form: a word of the *first* episode decides about the second."""
    learner = Learner(MEMORY).train()
    assert learner.q("5 left hole reset 0")[RIGHT].item() == near(1.0)
    assert learner.q("6 left hole reset 0")[RIGHT].item() == near(0.0)


class EpisodesApart(QNetwork):
    """The packed-sequence trap: positions that begin anew in every episode."""

    def _hidden(self, ids):
        is_reset = ids == HISTORY.tokenize("reset")[0]
        begins = torch.nn.functional.pad(is_reset, (1, -1))
        index = torch.arange(ids.shape[1]).expand_as(ids)
        position = index - (index * begins).cummax(1).values
        return backbone(self.model)(input_ids=ids, position_ids=position, use_cache=False).last_hidden_state


def test_that_fails_when_episodes_do_not_see_each_other():
    learner = Learner(MEMORY, network=EpisodesApart).train()
    assert learner.q("5 left hole reset 0")[RIGHT].item() == near(0.5)
    assert learner.q("6 left hole reset 0")[RIGHT].item() == near(0.5)
