"""R-max that forgets: after some episodes, or when it is told."""

from types import SimpleNamespace

import numpy as np
import pytest

from icrl_utils.history.episodes import GOAL, HOLE, RESET, RUNNING
from icrl_utils.lake.held_out import development_maps
from icrl_utils.play.baselines import RMaxPolicy
from icrl_utils.play.forgetful import RecentRMaxPolicy, ToldRMaxPolicy
from icrl_utils.play.policy import Step
from icrl_utils.play.rollout import rollout

MAPS = development_maps("in_distribution", 20)


def tell(player, *steps):
    """The move that one history's player chooses after the last of the steps (action, tile, outcome)."""
    for step in steps:
        (chosen,) = player.act(Step(*(np.array([value]) for value in step)))
    return chosen


def begun(player, tiles=4):
    player.start([SimpleNamespace(n_tiles=tiles)], [np.random.default_rng(0)])
    return player


WON = (RESET, 0, RUNNING), (2, 1, GOAL)  # right from tile 0
DIED = (RESET, 0, RUNNING), (1, 2, HOLE)  # down


def test_two_episodes_are_remembered_and_no_third():
    player = begun(RecentRMaxPolicy(2))
    assert tell(player, *WON, (RESET, 0, RUNNING)) == 2  # the episode before
    player = begun(RecentRMaxPolicy(2))
    tell(player, *WON, *DIED, (RESET, 0, RUNNING))
    assert player._next[0, 0].tolist() == [-1, 2, -1, -1] and player._ends[0].tolist() == [0, 0, HOLE, 0]
    tell(player, (0, 0, RUNNING), (0, 0, RUNNING), (3, 1, GOAL), (RESET, 0, RUNNING))
    assert player._next[0, 0].tolist() == [0, -1, -1, 1] and player._ends[0].tolist() == [0, GOAL, 0, 0]


def test_what_is_seen_again_is_remembered_longer():
    player = begun(RecentRMaxPolicy(2))
    for _ in range(5):
        assert tell(player, *WON, (RESET, 0, RUNNING)) == 2


def test_long_memory_is_r_max():
    plain, recent = (rollout(player, MAPS, [0.5, 1, 1, 1, 1], 3) for player in (RMaxPolicy(), RecentRMaxPolicy(5)))
    np.testing.assert_array_equal(plain.actions, recent.actions)
    short = rollout(RecentRMaxPolicy(1), MAPS, [0.5, 1, 1, 1, 1], 3)
    assert short.success[:, -1].mean() < plain.success[:, -1].mean() - 0.2


def test_a_lake_alone_is_played_as_among_others():
    together = rollout(RecentRMaxPolicy(2), MAPS, [1] * 6, 5)
    np.testing.assert_array_equal(
        rollout(RecentRMaxPolicy(2), MAPS, [1] * 6, 5, batch_maps=3).actions, together.actions
    )


def test_who_is_told_begins_anew():
    player = begun(ToldRMaxPolicy())
    assert tell(player, *WON) is not None
    player.exchange(np.array([0]), [None])
    assert (player._next == -1).all() and (player._ends == RUNNING).all()
    player, fresh = begun(ToldRMaxPolicy()), begun(RMaxPolicy())
    player.exchange(np.array([0]), [None])
    assert tell(player, (RESET, 0, RUNNING)) == tell(fresh, (RESET, 0, RUNNING))


def test_a_tile_that_ends_no_episode_any_more_is_no_goal():
    """Else R-max would go back to the old goal for ever."""
    player = begun(RMaxPolicy())
    tell(player, *WON, (RESET, 0, RUNNING), (2, 1, RUNNING))
    assert player._ends[0, 1] == RUNNING and player._to_goal[0, 0].min() == RMaxPolicy._FAR


def test_bad_lengths_are_named():
    with pytest.raises(ValueError, match="episodes=0"):
        RecentRMaxPolicy(0)
