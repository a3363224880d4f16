"""Tabular Q-learning on many maps at once, against tables computed by hand and against exact values."""

import numpy as np
import pytest

from icrl_utils.lake.env import FrozenLakeVectorEnv
from icrl_utils.lake.maps import GOAL_TILE, ICE, PAPER_IN_DISTRIBUTION, LakeMap, LakeTables
from icrl_utils.play.tabular import TabularQ


def one_step(q, tile, action, reward, next_tile, terminated, mask=True):
    """An update of every map with the same numbers."""
    n = len(q.q)
    q.update(*(np.full(n, value) for value in (tile, action, reward, next_tile, terminated, mask)))


def test_updates_by_hand():
    q = TabularQ(1, 3, alpha=0.5, gamma=0.9)
    assert q.q.shape == (1, 3, 4) and q.q.dtype == np.float32
    one_step(q, 1, 2, 1.0, 2, True)  # 0 + .5 (1 - 0)
    assert q.q[0, 1].tolist() == [0, 0, 0.5, 0]
    one_step(q, 0, 3, 0.0, 1, False)  # 0 + .5 (.9 * .5 - 0)
    assert q.q[0, 0] == pytest.approx([0, 0, 0, 0.225])
    one_step(q, 1, 2, 1.0, 2, True)  # .5 + .5 (1 - .5)
    one_step(q, 0, 3, 0.0, 1, False)  # .225 + .5 (.9 * .75 - .225)
    assert q.q[0, 0, 3] == pytest.approx(0.45) and np.count_nonzero(q.q) == 2


def test_nothing_is_bootstrapped_after_the_end():
    q = TabularQ(1, 2, initial_value=1.0)
    one_step(q, 0, 0, 0.0, 1, True)
    assert q.q[0, 0].tolist() == [0, 1, 1, 1]
    one_step(q, 0, 1, 0.0, 1, False)
    assert q.q[0, 0] == pytest.approx([0, 0.9, 1, 1])


def test_maps_are_apart_and_masked_ones_stay():
    q = TabularQ(3, 2, initial_value=np.array([0.0, 0.5, 1.0]))
    assert q.q[:, 1, 3].tolist() == [0, 0.5, 1]
    before = q.q.copy()
    q.update(
        tile=np.array([0, 1, 0]),
        action=np.array([3, 2, 1]),
        reward=np.array([1.0, 0.0, 0.0]),
        next_tile=np.array([1, 0, 1]),
        terminated=np.array([True, False, True]),
        mask=np.array([True, True, False]),
    )
    assert q.q[0, 0, 3] == 1 and q.q[1, 1, 2] == pytest.approx(0.45)
    assert (q.q[2] == before[2]).all() and (q.q != before).sum() == 2


def test_greedy_takes_the_best_and_breaks_ties_evenly():
    n = 6000
    q = TabularQ(n, 2)
    q.q[:, 0] = [0.1, 0.7, 0.3, 0.2]
    q.q[:, 1] = [0.5, 0.2, 0.5, 0.5]
    uniform = np.random.default_rng(0).random((2, n, 4))
    assert (q.greedy(np.zeros(n, int), uniform[0]) == 1).all()
    counts = np.bincount(q.greedy(np.ones(n, int), uniform[1]), minlength=4)
    assert counts[1] == 0 and (np.abs(counts[[0, 2, 3]] - n / 3) < 4 * np.sqrt(n * 2 / 9)).all()


def test_greedy_takes_the_best_of_negative_values():
    q = TabularQ(2, 1, initial_value=-1.0)
    q.q[:, 0, 2] = -0.5
    assert q.greedy(np.zeros(2, int), np.zeros((2, 4))).tolist() == [2, 2]


def test_keep():
    q = TabularQ(4, 2, initial_value=np.arange(4) / 10)
    q.keep(np.array([3, 1]))
    assert q.q[:, 0, 0] == pytest.approx([0.3, 0.1])
    one_step(q, 0, 0, 1.0, 1, True)
    assert q.q[:, 0, 0].tolist() == [1, 1] and q.greedy(np.zeros(2, int), np.zeros((2, 4))).tolist() == [0, 0]


@pytest.mark.parametrize("initial_value", [0.0, 1.0])
def test_learns_the_exact_values(initial_value):
    """Every (tile, action) tried often, in random order, on maps of mixed sizes."""
    maps = PAPER_IN_DISTRIBUTION.sample(30, 0)
    tables = LakeTables(maps)
    q = TabularQ(len(maps), tables.n_tiles, initial_value)
    n_tiles = np.array([lake_map.n_tiles for lake_map in maps])
    rows = np.arange(len(maps))
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        tile, action = rng.integers(n_tiles), rng.integers(4, size=len(maps))
        next_tile = tables.next_tile[rows, tile, action]
        kind = tables.kind[rows, next_tile]
        q.update(tile, action, kind == GOAL_TILE, next_tile, kind != ICE, tables.kind[rows, tile] == ICE)
    for i, lake_map in enumerate(maps):
        walked = tables.kind[i, : lake_map.n_tiles] == ICE
        learned = q.q[i, : lake_map.n_tiles][walked]
        np.testing.assert_allclose(learned, lake_map.optimal_values()[walked], atol=1e-4, err_msg=lake_map.id)


def test_one_look_at_a_hole_is_enough():
    env = FrozenLakeVectorEnv([LakeMap(("SH", "FG"))])
    q = TabularQ(1, 4, initial_value=1.0)
    tile, _ = env.reset(seed=0)
    next_tile, reward, terminated, _, _ = env.step(np.array([2]))
    q.update(tile, np.array([2]), reward, next_tile, terminated, np.array([True]))
    assert q.q[0, 0].tolist() == [1, 1, 0, 1]
