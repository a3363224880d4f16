"""The memory-less table: its gradient, what it can learn, and what it must not see."""

import numpy as np
import pytest

from icrl_utils.lake.held_out import held_out_maps, training_maps
from icrl_utils.lake.maps import FAR_SIGHTED, PAPER_IN_DISTRIBUTION, LakeMap, LakeTables
from icrl_utils.play.baselines import RandomPolicy
from icrl_utils.play.memoryless import MemorylessTablePolicy, success_and_gradient, train_memoryless_table
from icrl_utils.play.rollout import rollout

MIXED = [LakeMap(("SFG",)), LakeMap(("SHF", "FFG", "SFF")), LakeMap(("FSF", "HFG"))]


def test_success_of_a_fair_die_by_hand():
    """S F G: from tile 0 one move in four goes right, three stay; from tile 1 one wins, one goes back, two stay."""
    g = FAR_SIGHTED
    v1_over_v0 = (1 - 0.75 * g) / (0.25 * g)  # v0 = g (.75 v0 + .25 v1)
    v0 = 0.25 / (v1_over_v0 * (1 - 0.5 * g) - 0.25 * g)  # v1 = .25 + g (.25 v0 + .5 v1)
    success, gradient = success_and_gradient(np.zeros((3, 4)), LakeTables(MIXED[:1]))
    assert success == pytest.approx(v0)
    assert (gradient.argmax(axis=1)[:2] == 2).all()
    assert not gradient[2].any()  # at the goal there is nothing to choose


def test_gradient_is_that_of_finite_differences():
    lakes, logits = LakeTables(MIXED), np.random.default_rng(0).normal(size=(9, 4))
    gradient = success_and_gradient(logits, lakes)[1]
    for tile in range(9):
        for action in range(4):
            step = np.zeros_like(logits)
            step[tile, action] = 1e-5
            up, down = (success_and_gradient(logits + sign * step, lakes)[0] for sign in (1, -1))
            assert gradient[tile, action] == pytest.approx((up - down) / 2e-5, abs=1e-8)


def test_where_the_tile_tells_everything_the_table_learns_the_way():
    lake = LakeMap(("SFF", "HHF", "GFF"))
    logits = train_memoryless_table([lake] * 3)
    records = rollout(MemorylessTablePolicy(logits, greedy=True), [lake], "greedy", episodes=2)
    assert records.success.all() and (records.steps == records.optimal_steps).all()
    assert logits.shape == (64, 4) and not logits[lake.n_tiles :].any()


def test_on_lakes_that_contradict_each_other_dice_beat_the_argmax():
    """From the same tile the goal lies to the left or to the right: a fixed move fails on one of the two."""
    lakes = [LakeMap(("GFSFH", "HFFFF")), LakeMap(("HFSFG", "FFFFH"))]
    logits = train_memoryless_table(lakes)
    played, fixed = (
        rollout(MemorylessTablePolicy(logits, greedy), lakes * 50, "greedy", episodes=4).success.mean()
        for greedy in (False, True)
    )
    assert played > 0.3 and fixed <= 0.5
    assert played > rollout(RandomPolicy(), lakes * 50, "greedy", episodes=4).success.mean()


def test_moves_are_drawn_from_the_softmax():
    logits = np.zeros((64, 4))
    logits[0] = np.log([0.1, 0.2, 0.3, 0.4])
    lakes = [LakeMap(("SFG",))] * 4000
    first = rollout(MemorylessTablePolicy(logits), lakes, "greedy", episodes=1).actions[:, 0, 0]
    np.testing.assert_allclose(np.bincount(first, minlength=4) / 4000, [0.1, 0.2, 0.3, 0.4], atol=0.03)


def test_what_cannot_be_a_table_or_be_trained_on_is_named():
    with pytest.raises(ValueError, match=r"logits has shape \(25, 4\): pass \[64, 4\]"):
        MemorylessTablePolicy(np.zeros((25, 4)))
    with pytest.raises(ValueError, match="is a held-out map"):
        train_memoryless_table(held_out_maps("in_distribution")[:2])


@pytest.mark.slow
def test_on_held_out_lakes_it_beats_the_die_and_its_own_argmax():
    lakes = held_out_maps("in_distribution")
    logits = train_memoryless_table(training_maps(PAPER_IN_DISTRIBUTION, 400, 0))
    players = MemorylessTablePolicy(logits), RandomPolicy(), MemorylessTablePolicy(logits, greedy=True)
    success = [rollout(player, lakes, "greedy", episodes=5).success.mean() for player in players]
    assert success[0] > success[1] + 0.05 and success[2] < 0.1
