"""Maps, their law, the environments against gymnasium's FrozenLake-v1, and the lists of held-out maps."""

import dataclasses
import json
import warnings
from collections import deque

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from icrl_utils.lake import held_out
from icrl_utils.lake.env import ENV_ID, FrozenLakeEnv, FrozenLakeVectorEnv
from icrl_utils.lake.held_out import development_maps, held_out_maps, reject_held_out, training_maps
from icrl_utils.lake.maps import (
    GOAL_TILE,
    HOLE_TILE,
    ICE,
    PAPER_IN_DISTRIBUTION,
    PAPER_OUT_OF_DISTRIBUTION,
    PRETRAINING_MAPS,
    TRAINING_MAPS,
    LakeMap,
    LakeTables,
    MapDistribution,
)
from icrl_utils.play.baselines import RandomPolicy
from icrl_utils.play.rollout import rollout
from icrl_utils.tools.bench import bench_env

LEFT, DOWN, RIGHT, UP = range(4)
SMALL = LakeMap(("SFF", "FHF", "FFG"))
WIDE = LakeMap(("GHSF", "SFFF"))
MIXED = PRETRAINING_MAPS.sample(40, 11) + PAPER_OUT_OF_DISTRIBUTION.sample(20, 12)


def walked_distances(lake_map: LakeMap, start: int) -> int | None:
    """Moves to the nearest goal, by a search written independently of the package (forwards, letter by letter)."""
    rows, queue, seen = lake_map.rows, deque([(*divmod(start, lake_map.width), 0)]), set()
    while queue:
        r, c, moves = queue.popleft()
        if (r, c) in seen or not (0 <= r < len(rows) and 0 <= c < len(rows[0])) or rows[r][c] == "H":
            continue
        if rows[r][c] == "G":
            return moves
        seen.add((r, c))
        queue.extend((r + dr, c + dc, moves + 1) for dr, dc in ((0, -1), (1, 0), (0, 1), (-1, 0)))
    return None


# Maps


def test_a_map_knows_its_tiles():
    assert (WIDE.height, WIDE.width, WIDE.n_tiles) == (2, 4, 8)
    assert (WIDE.starts, WIDE.goals, WIDE.holes) == ((2, 4), (0,), (1,))
    assert WIDE.desc == ["GHSF", "SFFF"] and WIDE.id == "GHSF/SFFF"
    assert LakeMap(WIDE.id.split("/")) == WIDE


def test_maps_are_values():
    from_list = LakeMap(["SFF", "FHF", "FFG"])
    assert from_list == SMALL and hash(from_list) == hash(SMALL) and len({from_list, SMALL, WIDE}) == 2
    assert from_list.rows == ("SFF", "FHF", "FFG")
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.rows = ("SG",)
    with pytest.raises(ValueError, match="read-only"):
        SMALL.distances[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        SMALL.next_tile[0, 0] = 1


def test_moves_and_distances_of_a_known_map():
    assert SMALL.next_tile.dtype == np.int16 and SMALL.distances.dtype == np.int16
    expected = [
        [0, 3, 1, 0],
        [0, 4, 2, 1],
        [1, 5, 2, 2],
        [3, 6, 4, 0],
        [4] * 4,
        [4, 8, 5, 2],
        [6, 6, 7, 3],
        [6, 7, 8, 4],
    ]
    assert SMALL.next_tile.tolist() == [*expected, [8] * 4]
    assert SMALL.distances.tolist() == [4, 3, 2, 3, -1, 1, 2, 1, 0]
    assert SMALL.optimal_steps(0) == 4
    # A goal is no way through: behind it there is no other.
    assert LakeMap(("SFGFH", "HHHHF")).distances.tolist() == [2, 1, 0, 1, -1, -1, -1, -1, -1, -1]


def test_distances_equal_an_independent_search():
    for lake_map in MIXED:
        for tile, distance in enumerate(lake_map.distances):
            if tile not in lake_map.holes:
                assert walked_distances(lake_map, tile) == (None if distance < 0 else distance), lake_map.id


def test_optimal_values_of_a_known_map():
    values = SMALL.optimal_values(gamma=0.9)
    assert values.dtype == np.float64
    # From the start four moves: .9 ** 3; a wall costs one move more; the hole is worth nothing.
    np.testing.assert_allclose(values[0], [0.9**4, 0.9**3, 0.9**3, 0.9**4], rtol=1e-12)
    np.testing.assert_allclose(values[5], [0, 1, 0.9, 0.9**2], rtol=1e-12)
    assert not values[4].any() and not values[8].any()
    np.testing.assert_allclose(SMALL.optimal_values(gamma=0.5)[0].max(), 0.5**3)


def test_optimal_values_on_slippery_ice_by_hand():
    # Right, down and up all move east with 1/3 and else stay: V = 1/3 + 2/3 * .9 V. Left never moves: .9 V.
    value = (1 / 3) / (1 - 0.6)
    expected = [0.9 * value, value, value, value]
    np.testing.assert_allclose(LakeMap(("SG",)).optimal_values(0.9, slippery=True)[0], expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("SFF", "FG"), r"rows=\('SFF', 'FG'\) is not rectangular"),
        (("SFX", "FFG"), r"unknown letters \['X'\]: use only"),
        (("FFF", "FFG"), "has no start: put at least one S"),
        (("SFF", "FFF"), "has no goal: put at least one G"),
        ((), "has no start"),
        ("SFG", "rows='SFG' is one string: pass a sequence of rows"),
        ((b"SG",), "every row must be a string"),
    ],
)
def test_bad_maps_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        LakeMap(rows)


def test_bad_gamma_is_named():
    with pytest.raises(ValueError, match="gamma=1.5"):
        SMALL.optimal_values(gamma=1.5)


# The map law


@pytest.mark.parametrize(
    ("law", "acceptance", "path", "holes", "starts", "goals"),
    [(PAPER_IN_DISTRIBUTION, 0.050, 4.8, 3.0, 1.4, 1.3), (PAPER_OUT_OF_DISTRIBUTION, 0.040, 5.5, 7.4, 2.5, 2.3)],
)
def test_the_law_has_the_papers_figures(law, acceptance, path, holes, starts, goals):
    rng = np.random.default_rng(0)
    chunks = [law._accepted_of_one_chunk(rng) for _ in range(30)]
    candidates = len(chunks) * law._CHUNK
    maps = [lake_map for chunk in chunks for lake_map in chunk]
    error = 4 * np.sqrt(acceptance * (1 - acceptance) / candidates)
    assert abs(len(maps) / candidates - acceptance) < error + 0.0005  # the published figures are rounded
    columns = [
        ([np.mean([m.optimal_steps(s) for s in m.starts]) for m in maps], path),
        ([len(m.holes) for m in maps], holes),
        ([len(m.starts) for m in maps], starts),
        ([len(m.goals) for m in maps], goals),
    ]
    for column, published in columns:
        assert abs(np.mean(column) - published) < 4 * np.std(column) / np.sqrt(len(maps)) + 0.05
    assert {m.height for m in maps} == {m.width for m in maps} == set(range(law.min_size, law.max_size + 1))


def test_tiles_are_drawn_with_the_given_probabilities():
    # Of 1 x 2 maps with min_hops 1 exactly SG and GS are accepted: 2 * .3 * (.7 * .4) of all candidates.
    law = MapDistribution(1, 2, hole_prob=0.5, start_prob=0.3, goal_prob=0.4, min_hops=1)
    rng = np.random.default_rng(1)
    chunks = [law._accepted_of_one_chunk(rng) for _ in range(40)]
    share = sum(m.n_tiles == 2 for chunk in chunks for m in chunk) / (40 * law._CHUNK)
    expected = 0.5 * 2 * 0.3 * 0.7 * 0.4  # half of the candidates are 1 x 2 or 2 x 1
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / (40 * law._CHUNK))


@pytest.mark.parametrize("law", [PAPER_IN_DISTRIBUTION, PAPER_OUT_OF_DISTRIBUTION, TRAINING_MAPS, PRETRAINING_MAPS])
def test_every_start_is_far_enough(law):
    for lake_map in law.sample(300, 3):
        moves = [walked_distances(lake_map, start) for start in lake_map.starts]
        assert moves and all(n is not None and n >= law.min_hops for n in moves), lake_map.id
    assert min(lake_map.optimal_steps(s) for lake_map in law.sample(300, 3) for s in lake_map.starts) == law.min_hops


def test_a_seed_decides_the_maps():
    law = PAPER_IN_DISTRIBUTION
    assert law.sample(50, 1) == law.sample(50, 1) == law.sample(400, 1)[:50] == law.sample(50, np.random.default_rng(1))
    assert law.sample(50, 1) != law.sample(50, 2)
    assert len(set(law.sample(50, 1))) > 40
    assert law.sample(0, 1) == []


def test_excluded_maps_are_left_out():
    first = PAPER_IN_DISTRIBUTION.sample(20, 1)
    excluded = set(first[::2])
    rest = [lake_map for lake_map in PAPER_IN_DISTRIBUTION.sample(40, 1) if lake_map not in excluded]
    assert PAPER_IN_DISTRIBUTION.sample(len(rest), 1, exclude=excluded) == rest


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"min_size": 4, "max_size": 3}, "min_size=4, max_size=3"),
        ({"min_size": 0}, "min_size=0"),
        ({"min_size": 3.5}, "min_size=3.5"),
        ({"hole_prob": 1.5}, "hole_prob=1.5 is no probability"),
        ({"min_hops": 0}, "min_hops=0"),
        ({"min_hops": 2.5}, "min_hops=2.5"),
        ({"max_size": 182}, "max_size=182: pass a whole number from 1 to 181"),
        ({"hole_prob": float("nan")}, "hole_prob=nan"),
        ({"start_prob": "0.1"}, "start_prob='0.1'"),
    ],
)
def test_bad_laws_are_named(law, message):
    with pytest.raises(ValueError, match=message):
        MapDistribution(**law)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PAPER_IN_DISTRIBUTION.sample(-3, 0), "n=-3: pass a whole number of at least 0"),
        (lambda: PAPER_IN_DISTRIBUTION.sample(2.5, 0), "n=2.5"),
        (lambda: PAPER_IN_DISTRIBUTION.sample(2, -1), "seed=-1: pass a whole number from 0"),
        (lambda: PAPER_IN_DISTRIBUTION.sample(2, 2**64), "seed=18446744073709551616"),
        (lambda: PAPER_IN_DISTRIBUTION.sample(2, None), "seed=None"),
        (lambda: development_maps("in_distribution", n=-3), "n=-3"),
        (lambda: training_maps(TRAINING_MAPS, -3, 0), "n=-3"),
        (lambda: training_maps("in_distribution", 3, 0), "distribution='in_distribution'"),
        (lambda: LakeMap(("SG",)).optimal_steps(-1), "start=-1: pass a whole number from 0 to 1"),
        (lambda: LakeMap(("SG",)).optimal_steps(2), "start=2"),
        (lambda: reject_held_out(SMALL), "is one lake"),
        (lambda: reject_held_out([], argument="pool"), r"pool=\[\] is empty"),
    ],
)
def test_numbers_that_cannot_work_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_largest_map_keeps_its_numbers_and_a_larger_one_is_refused():
    largest = LakeMap(("S" + "F" * 32_765 + "G",))
    assert largest.distances[0] == largest.n_tiles - 1 == 32_766 and largest.next_tile[32_765, 2] == 32_766
    with pytest.raises(ValueError, match="182 x 182 = 33,124 tiles are too many"):
        LakeMap(("S" + "F" * 180 + "G",) * 182)


def test_training_lakes_are_easier_than_those_of_the_evaluation():
    """The figures beside ``TRAINING_MAPS``."""
    maps = training_maps(TRAINING_MAPS, 3000, 0)
    near = [[lake.optimal_steps(start) == 3 for start in lake.starts] for lake in maps]
    assert np.mean([any(starts) for starts in near]) == pytest.approx(0.56, abs=0.03)
    assert np.mean([np.mean(starts) for starts in near]) == pytest.approx(0.47, abs=0.03)
    training, held_out = (
        rollout(RandomPolicy(), lakes, [0.0] * 20).success for lakes in (maps, held_out_maps("in_distribution"))
    )
    assert training.mean() == pytest.approx(0.233, abs=0.02) and held_out.mean() == pytest.approx(0.16, abs=0.02)


def test_an_impossible_law_ends_with_a_message(monkeypatch):
    monkeypatch.setattr(MapDistribution, "_MAX_BARREN", 3)
    with pytest.raises(ValueError, match=r"min_hops=50\) accepted none of 6,144 candidates: lower min_hops"):
        MapDistribution(min_hops=50).sample(1, 0)


# Many maps as arrays


def test_tables_hold_every_map():
    tables = LakeTables(MIXED)
    assert len(tables) == len(MIXED) and tables.n_tiles == max(m.n_tiles for m in MIXED)
    for i, m in enumerate(MIXED):
        assert (tables.next_tile[i, : m.n_tiles] == m.next_tile).all()
        assert (tables.distances[i, : m.n_tiles] == m.distances).all()
        assert (tables.distances[i, m.n_tiles :] == -1).all() and (tables.kind[i, m.n_tiles :] == ICE).all()
        assert (tables.next_tile[i, m.n_tiles :] == np.arange(m.n_tiles, tables.n_tiles)[:, None]).all()
        assert tuple(np.flatnonzero(tables.kind[i] == GOAL_TILE)) == m.goals
        assert tuple(np.flatnonzero(tables.kind[i] == HOLE_TILE)) == m.holes
        assert tuple(tables.starts[i, : tables.n_starts[i]]) == m.starts
        # An action is optimal exactly where its exact value is the largest one, and not 0.
        values = m.optimal_values()
        best = np.isclose(values, values.max(axis=1, keepdims=True), rtol=1e-9) & (values > 0)
        assert (tables.optimal[i, : m.n_tiles] == best).all() and not tables.optimal[i, m.n_tiles :].any()
    types = (np.int16, np.uint8, np.int16, np.int16, np.int16, bool)
    names = ("next_tile", "kind", "starts", "n_starts", "distances", "optimal")
    assert all(getattr(tables, name).dtype == dtype for name, dtype in zip(names, types, strict=True))


def test_tables_of_some_maps():
    tables = LakeTables(MIXED)
    tables.optimal  # noqa: B018  (computed before, it must not be carried over to other rows)
    part = tables.take(np.array([7, 3]))
    assert len(part) == 2 and len(tables) == len(MIXED)
    for name in ("next_tile", "kind", "starts", "n_starts", "distances", "optimal"):
        assert (getattr(part, name) == getattr(tables, name)[[7, 3]]).all()


# Environments


def gymnasium_copies(maps, slippery, step_limit):
    return [
        gymnasium.make("FrozenLake-v1", desc=m.desc, is_slippery=slippery, max_episode_steps=step_limit) for m in maps
    ]


def test_steps_equal_gymnasiums():
    """60 mixed maps, 400 random steps: tile, reward, terminated and truncated (a limit of 12 truncates often)."""
    env = FrozenLakeVectorEnv(MIXED, step_limit=12)
    theirs = gymnasium_copies(MIXED, slippery=False, step_limit=12)
    tiles, info = env.reset(seed=0)
    assert tiles.dtype == np.int64 and info == {}
    for other, tile in zip(theirs, tiles, strict=True):
        other.reset()
        other.unwrapped.s = tile  # which start it is, is the one thing left to chance
    rng = np.random.default_rng(0)
    over = np.zeros(len(MIXED), bool)
    seen = {"goal": 0, "hole": 0, "limit": 0, "both": 0}
    for _ in range(400):
        actions = rng.integers(4, size=len(MIXED))
        tiles, reward, terminated, truncated, info = env.step(actions)
        assert (tiles.dtype, reward.dtype, terminated.dtype, truncated.dtype) == (np.int64, np.float64, bool, bool)
        for i, other in enumerate(theirs):
            if over[i]:
                other.reset()
                assert tiles[i] in MIXED[i].starts and (reward[i], terminated[i], truncated[i]) == (0, False, False)
                other.unwrapped.s = tiles[i]
            else:
                expected = other.step(actions[i])[:4]
                assert (tiles[i], reward[i], terminated[i], truncated[i]) == expected
        over = terminated | truncated
        seen["goal"] += (reward == 1).sum()
        seen["hole"] += (terminated & (reward == 0)).sum()
        seen["limit"] += (truncated & ~terminated).sum()
        seen["both"] += (truncated & terminated).sum()
    assert min(seen.values()) > 10, seen


@pytest.mark.parametrize("slippery", [False, True])
def test_transition_probabilities_equal_gymnasiums(slippery):
    for m, other in zip(MIXED, gymnasium_copies(MIXED, slippery, 100), strict=True):
        expected = np.zeros((m.n_tiles, 4, m.n_tiles))
        for tile, actions in other.unwrapped.P.items():
            for action, outcomes in actions.items():
                for probability, next_tile, reward, terminated in outcomes:
                    expected[tile, action, next_tile] += probability
                    if tile not in m.goals + m.holes:
                        assert (reward == 1) == (next_tile in m.goals)
                        assert terminated == (next_tile in m.goals + m.holes)
        np.testing.assert_allclose(m.transition_probabilities(slippery), expected, atol=1e-12)


def test_slippery_moves_have_gymnasiums_frequencies():
    m = LakeMap(("SFFF", "FFHF", "FFFG"))
    probabilities = m.transition_probabilities(slippery=True)
    env = FrozenLakeVectorEnv([m] * 2000, slippery=True)
    tile, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    counts = np.zeros((m.n_tiles, 4, m.n_tiles))
    over = np.zeros(2000, bool)
    for _ in range(150):
        action = rng.integers(4, size=2000)
        next_tile, _, terminated, truncated, _ = env.step(action)
        np.add.at(counts, (tile[~over], action[~over], next_tile[~over]), 1)
        tile, over = next_tile, terminated | truncated
    total = counts.sum(axis=2, keepdims=True)
    walked = [t for t in range(m.n_tiles) if t not in m.goals + m.holes]
    assert total[walked].min() > 500
    assert not counts[probabilities == 0].any()
    error = np.abs(counts / np.maximum(total, 1) - probabilities)[walked]
    deviation = np.sqrt(probabilities * (1 - probabilities) / np.maximum(total, 1))[walked]
    assert (error <= 4.5 * deviation + 1e-12).all()


def test_random_play_reaches_the_goal_as_often_as_published():
    for law, published in ((PAPER_IN_DISTRIBUTION, 0.155), (PAPER_OUT_OF_DISTRIBUTION, 0.076)):
        env = FrozenLakeVectorEnv(law.sample(3000, 4))
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        first_return, running = np.zeros(3000), np.ones(3000, bool)
        while running.any():  # the first episode of every map
            _, reward, terminated, truncated, _ = env.step(rng.integers(4, size=3000))
            first_return += reward * running
            running &= ~(terminated | truncated)
        assert abs(first_return.mean() - published) < 4 * first_return.std() / np.sqrt(3000) + 0.0005


@pytest.mark.parametrize("slippery", [False, True])
def test_the_vector_environment_equals_single_ones(slippery):
    singles = [gymnasium.make(ENV_ID, lake_map=m, slippery=slippery) for m in MIXED]
    env = FrozenLakeVectorEnv(MIXED, slippery=slippery)
    tiles, _ = env.reset(seed=30)
    assert tiles.tolist() == [single.reset(seed=30 + i)[0] for i, single in enumerate(singles)]
    rng = np.random.default_rng(0)
    over = np.zeros(len(MIXED), bool)
    for _ in range(250):
        actions = rng.integers(4, size=len(MIXED))
        step = env.step(actions)
        for i, single in enumerate(singles):
            ours = tuple(array[i] for array in step[:4])
            assert ours == ((single.reset()[0], 0, False, False) if over[i] else single.step(actions[i])[:4])
        over = step[2] | step[3]


@pytest.mark.parametrize("slippery", [False, True])
def test_make_vec_equals_gymnasiums_vectorizer(slippery):
    many_starts = max(MIXED, key=lambda m: len(m.starts))
    arguments = {"num_envs": 16, "lake_map": many_starts, "slippery": slippery}
    ours = gymnasium.make_vec(ENV_ID, **arguments)
    theirs = gymnasium.make_vec(ENV_ID, vectorization_mode="sync", **arguments)
    assert isinstance(ours.unwrapped, FrozenLakeVectorEnv) and not isinstance(theirs.unwrapped, FrozenLakeVectorEnv)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    rng = np.random.default_rng(0)
    truncations = 0
    for seed in (7, None):  # without a seed the streams go on
        tiles = ours.reset(seed=seed)[0]
        assert (tiles == theirs.reset(seed=seed)[0]).all() and ours.observation_space.contains(tiles)
        for step in range(400):
            actions = rng.integers(4, size=16) if step < 200 else np.full(16, LEFT)  # the second half finds walls
            for mine, other in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
                assert (mine == other).all() and mine.dtype == other.dtype
            truncations += ours.unwrapped._over.sum()
    assert truncations > 0


def test_registration():
    env = gymnasium.make(ENV_ID, lake_map=SMALL, max_episode_steps=3, render_mode="ansi")
    assert env.reset(seed=0)[0] == 0 and env.spec.id == ENV_ID
    assert env.render() == "[S] F  F \n F  H  F \n F  F  G "
    assert [env.step(LEFT)[3] for _ in range(3)] == [False, False, True]
    assert gymnasium.spec(ENV_ID).max_episode_steps == 100
    vector = gymnasium.make_vec(ENV_ID, num_envs=2, maps=[SMALL, WIDE], max_episode_steps=2)
    assert vector.unwrapped.maps == [SMALL, WIDE] and vector.unwrapped.step_limit == 2
    assert gymnasium.make_vec(ENV_ID, num_envs=3).reset(seed=0)[0].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="num_envs=3 but maps holds 2 maps: pass num_envs=2"):
        gymnasium.make_vec(ENV_ID, num_envs=3, maps=[SMALL, WIDE])


@pytest.mark.parametrize("slippery", [False, True])
def test_gymnasiums_checker_is_content(slippery):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(ENV_ID, lake_map=WIDE, slippery=slippery).unwrapped)


def test_the_step_limit_truncates():
    env = FrozenLakeVectorEnv([SMALL])
    env.reset(seed=0)
    steps = [env.step(np.array([LEFT])) for _ in range(101)]
    assert [bool(truncated[0]) for _, _, _, truncated, _ in steps] == [False] * 99 + [True, False]
    assert not any(terminated[0] for _, _, terminated, _, _ in steps)


def test_autoreset_ignores_the_action():
    env = FrozenLakeVectorEnv([SMALL, SMALL])
    env.reset(seed=0)
    for action in (RIGHT, RIGHT, DOWN):
        env.step(np.array([action, LEFT]))
    tile, reward, terminated, _, _ = env.step(np.array([DOWN, LEFT]))
    assert (tile.tolist(), reward.tolist(), terminated.tolist()) == ([8, 0], [1, 0], [True, False])
    tile, reward, terminated, truncated, _ = env.step(np.array([99, DOWN]))  # 99: nothing is asked of an ended episode
    assert (tile.tolist(), reward.tolist()) == ([0, 3], [0, 0]) and not (terminated | truncated).any()
    tile, *_ = env.step(np.array([DOWN, DOWN]))
    assert tile.tolist() == [3, 6]


def starts_by_episode(maps, rng, steps, seed=0):
    """The start tiles that random play with ``rng`` meets, one list per map."""
    env = FrozenLakeVectorEnv(maps)
    tile, _ = env.reset(seed=seed)
    starts = [[t] for t in tile.tolist()]
    over = np.zeros(len(maps), bool)
    for _ in range(steps):
        tile, _, terminated, truncated, _ = env.step(rng.integers(4, size=len(maps)))
        for i in np.flatnonzero(over):
            starts[i].append(int(tile[i]))
        over = terminated | truncated
    return starts


def test_starts_do_not_depend_on_the_play():
    maps = [m for m in MIXED if len(m.starts) > 1]
    one = starts_by_episode(maps, np.random.default_rng(1), 300)
    two = starts_by_episode(maps, np.random.default_rng(2), 300)
    other_seed = starts_by_episode(maps, np.random.default_rng(1), 300, seed=1)
    lengths = [min(len(a), len(b)) for a, b in zip(one, two, strict=True)]
    assert len(maps) > 10 and min(lengths) > 3 and any(len(a) != len(b) for a, b in zip(one, two, strict=True))
    assert all(a[:n] == b[:n] for a, b, n in zip(one, two, lengths, strict=True))
    assert other_seed != one


def test_starts_are_drawn_evenly():
    m = LakeMap(("SSS", "HHG"))
    env = FrozenLakeVectorEnv([m] * 3000)
    for seed in (0, None):  # over maps, and over the episodes of a map
        counts = np.bincount(env.reset(seed=seed)[0], minlength=3)
        assert counts.sum() == 3000 and (np.abs(counts - 1000) < 4 * np.sqrt(3000 * 2 / 9)).all()
    tiles = np.array([env.reset()[0][:20] for _ in range(600)])
    counts = np.stack([(tiles == start).sum(axis=0) for start in m.starts])
    assert (np.abs(counts - 200) < 4.5 * np.sqrt(600 * 2 / 9)).all()
    follows = np.histogram2d(tiles[:-1].ravel(), tiles[1:].ravel(), bins=3)[0]  # no memory from one to the next
    assert (np.abs(follows / follows.sum() - 1 / 9) < 4.5 * np.sqrt(8 / 81 / follows.sum())).all()


@pytest.mark.parametrize("slippery", [False, True])
def test_seeds(slippery):
    actions = np.random.default_rng(0).integers(4, size=(200, len(MIXED)))

    def play(env, seed):
        return [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)]

    env = FrozenLakeVectorEnv(MIXED, slippery=slippery)
    first = np.array(play(env, 5))
    assert (first == play(env, 5)).all() and (first == play(FrozenLakeVectorEnv(MIXED, slippery=slippery), 5)).all()
    assert (first != play(env, 6)).any()
    assert (first[0] != np.array([env.reset()[0] for _ in range(20)])).any()
    shifted = FrozenLakeVectorEnv(MIXED[10:], slippery=slippery)  # map i has the stream of seed + i
    assert (shifted.reset(seed=15)[0] == first[0, 10:]).all()


@pytest.mark.parametrize("slippery", [False, True])
def test_keep_leaves_the_other_maps_alone(slippery):
    rows = np.array([i for i, m in enumerate(MIXED) if len(m.starts) > 2])[[4, 1, 2]]
    actions = np.random.default_rng(0).integers(4, size=(200, len(MIXED)))
    whole = FrozenLakeVectorEnv(MIXED, slippery=slippery, step_limit=20)
    part = FrozenLakeVectorEnv(MIXED, slippery=slippery, step_limit=20)
    whole.reset(seed=3), part.reset(seed=3)
    for action in actions[:73]:
        whole.step(action), part.step(action)
    part.keep(rows)
    assert part.num_envs == 3 and part.maps == [MIXED[row] for row in rows] and len(part.tables) == 3
    for action in actions[73:]:
        for all_maps, kept in zip(whole.step(action)[:4], part.step(action[rows])[:4], strict=True):
            assert (all_maps[rows] == kept).all()
    assert (part.reset()[0] == whole.reset()[0][rows]).all()
    part.reset(seed=9), whole.reset(seed=9)  # the streams stay with their maps
    for action in actions:
        assert (whole.step(action)[0][rows] == part.step(action[rows])[0]).all()
    part.keep(np.array([False, True, True]))
    assert part.maps == [MIXED[rows[1]], MIXED[rows[2]]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda env: env.step(np.array([0, 4])), ValueError, r"actions holds 4: pass 0 \(left\)"),
        (lambda env: env.step(np.array([-1, 0])), ValueError, "actions holds -1"),
        (lambda env: env.step(np.array([0])), ValueError, r"actions has shape \(1,\): pass one for each of 2 maps"),
        (lambda env: FrozenLakeVectorEnv([SMALL]).step(np.array([0])), RuntimeError, r"call reset\(seed=...\) first"),
        (lambda env: env.step(np.array([1.7, 0.0])), ValueError, r"actions=array\(\[1.7, 0. \]\): pass whole numbers"),
        (lambda env: env.step([0, 1.7]), ValueError, r"actions=\[0, 1.7\]"),
        (lambda env: env.step(["1", "2"]), ValueError, r"actions=\['1', '2'\]"),
        (lambda env: env.step([0, True]), ValueError, r"actions=\[0, True\]"),
        (lambda env: env.step(np.array([True, False])), ValueError, "actions=array"),
        (lambda env: env.step(None), ValueError, "actions=None"),
        (lambda env: env.step(np.array([0, 2**64 - 1], np.uint64)), ValueError, "pass 0"),
        (lambda env: env.reset(seed=-1), ValueError, "seed=-1: pass a whole number from 0"),
        (lambda env: env.reset(seed=2**64), ValueError, "seed=18446744073709551616"),
        (lambda env: FrozenLakeEnv(SMALL).reset(seed=-1), ValueError, "seed=-1"),
        (lambda env: gymnasium.make_vec(ENV_ID, num_envs=0), ValueError, "num_envs=0"),
        (lambda env: FrozenLakeVectorEnv(SMALL), ValueError, r"maps=LakeMap.* is one lake: pass a list"),
        (lambda env: FrozenLakeVectorEnv(7), ValueError, "maps=7: pass a list"),
        (lambda env: FrozenLakeVectorEnv([SMALL], step_limit=1.5), ValueError, "step_limit=1.5"),
        (lambda env: FrozenLakeVectorEnv([]), ValueError, r"maps=\[\] is empty"),
        (lambda env: FrozenLakeVectorEnv([("SG",)]), ValueError, r"maps holds \('SG',\): pass LakeMap"),
        (lambda env: FrozenLakeVectorEnv([SMALL], step_limit=0), ValueError, "step_limit=0"),
        (lambda env: FrozenLakeEnv(("SG",)), ValueError, r"lake_map=\('SG',\): pass a LakeMap"),
        (lambda env: FrozenLakeEnv(SMALL).step(0), RuntimeError, r"call reset\(seed=...\) first"),
    ],
)
def test_wrong_use_of_the_environments_is_named(call, error, message):
    env = FrozenLakeVectorEnv([SMALL, WIDE])
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        call(env)


def test_a_single_environment_names_a_wrong_action():
    env = FrozenLakeEnv(SMALL)
    env.reset(seed=0)
    for action in (4, -1, 1.0, 1.7, "1", True, None, np.array([1]), np.array([1, 2])):
        with pytest.raises(ValueError, match=r"action=.*: pass 0 \(left\)"):
            env.step(action)
    for action in (1, np.int64(1), np.array(1)):
        env.step(action)


@pytest.mark.slow
def test_bench_env_reports_what_it_measured(capsys):
    figures = bench_env()
    assert figures["ratio"] == pytest.approx(figures["gymnasium_us"] / figures["ours_us"])
    assert f"{figures['ratio']:.0f} times" in capsys.readouterr().out


# Held-out, development and training maps


@pytest.mark.parametrize(
    ("name", "law"),
    [("in_distribution", PAPER_IN_DISTRIBUTION), ("out_of_distribution", PAPER_OUT_OF_DISTRIBUTION)],
)
def test_held_out_and_development_maps(name, law):
    held_out, development = held_out_maps(name), development_maps(name)
    assert len(held_out) == len(set(held_out)) == 500
    assert len(development) == len(set(development)) == 200
    assert not set(held_out) & set(development)
    assert development_maps(name, n=700)[:200] == development and len(set(development_maps(name, n=700))) == 700
    for m in held_out + development:
        assert law.min_size <= min(m.height, m.width) and max(m.height, m.width) <= law.max_size
        assert min(m.optimal_steps(start) for start in m.starts) >= law.min_hops


def test_training_maps_leave_out_held_out_and_development_maps():
    law = MapDistribution(3, 3)  # so few maps that plain sampling meets the held-out ones
    forbidden = {*held_out_maps("in_distribution"), *development_maps("in_distribution")}
    assert forbidden & set(law.sample(500, 0))
    maps = training_maps(law, 500, 0)
    assert len(maps) == 500 and not forbidden & set(maps) and maps == training_maps(law, 500, 0)
    reject_held_out(maps)


def test_held_out_maps_are_rejected():
    maps = [SMALL, *held_out_maps("out_of_distribution")[:2]]
    with pytest.raises(ValueError, match=rf"collect_maps\[1\]='{maps[1].id}' is a held-out map \(2 of 3 are\)"):
        reject_held_out(maps, argument="collect_maps")
    reject_held_out([SMALL, WIDE])


def test_unknown_list_of_maps_is_named():
    for function in (held_out_maps, development_maps):
        with pytest.raises(ValueError, match="name='test': unknown list of maps; choose one of in_distribution, out"):
            function("test")


@pytest.fixture
def fresh_cache():
    """The file is read once per process; forget it before and after."""
    held_out._held_out.cache_clear()
    yield
    held_out._held_out.cache_clear()


def test_a_missing_or_altered_file_is_named(fresh_cache, tmp_path, monkeypatch):
    text = held_out.HELD_OUT_FILE.read_text(encoding="utf-8")
    monkeypatch.setattr(held_out, "HELD_OUT_FILE", tmp_path / "held_out_maps.json")
    with pytest.raises(FileNotFoundError, match="held_out_maps.json is missing: restore it with 'git checkout"):
        held_out_maps("in_distribution")
    lists = json.loads(text)
    lists["in_distribution"][0] = SMALL.id
    held_out.HELD_OUT_FILE.write_text(json.dumps(lists, indent=0) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="held_out_maps.json was altered .*: restore it with 'git checkout"):
        held_out_maps("in_distribution")
    held_out.HELD_OUT_FILE.write_bytes(text.replace("\n", "\r\n").encode())  # what git makes of it on Windows
    assert len(held_out_maps("in_distribution")) == 500


def test_the_maker_never_publishes_other_maps(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "HELD_OUT_FILE", tmp_path / "held_out_maps.json")
    monkeypatch.setattr(held_out, "_HELD_OUT_SEEDS", {"in_distribution": 1, "out_of_distribution": 2})
    with pytest.raises(SystemExit, match="draws other maps .* nothing written"):
        held_out.make_held_out_file()
    assert list(tmp_path.iterdir()) == []


# Other games in the same environment


def test_a_row_goes_on_with_another_lake_and_its_own_luck():
    """Exchanged where an episode has ended; the other row and the random streams go on as they would have."""
    first, second, larger = LakeMap(("SFG", "SFG")), LakeMap(("SFG", "SFG")), LakeMap(("FSFG", "FSFG", "FSFG"))
    plain, exchanged = (FrozenLakeVectorEnv([first, second]) for _ in range(2))
    seen = []
    for env in (plain, exchanged):
        tiles = [env.reset(seed=3)[0]]
        for t in range(40):
            if env is exchanged and t == 2:
                env.exchange(np.array([0]), [larger])
            tiles.append(env.step(np.array([2, 2]))[0])
        seen.append(np.array(tiles))
    np.testing.assert_array_equal(seen[0][:, 1], seen[1][:, 1])
    np.testing.assert_array_equal(seen[0][:3], seen[1][:3])
    assert exchanged.maps == [larger, second] and exchanged.tables.n_tiles == 12
    assert set(seen[1][3:, 0].tolist()) == {1, 2, 3, 5, 6, 7, 9, 10, 11}


def test_a_running_episode_keeps_its_lake():
    env = FrozenLakeVectorEnv([LakeMap(("SFG",))] * 2)
    with pytest.raises(RuntimeError, match=r"exchange\(\) while an episode is running"):
        env.exchange(np.array([0]), [LakeMap(("SG",))])
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match=r"exchange\(\) while an episode is running"):
        env.exchange(np.array([1]), [LakeMap(("SG",))])


def test_a_rewound_row_begins_its_first_episode_again():
    lake = LakeMap(("SFFG", "SFFF", "SFFF", "SFFF"))
    env = FrozenLakeVectorEnv([lake] * 6)
    begin, _ = env.reset(seed=5)
    for _ in range(3):
        env.step(np.full(6, 2))
    env.rewind(np.array([0, 4]))
    tile, reward, terminated, truncated, _ = env.step(np.full(6, 2))
    np.testing.assert_array_equal(tile[[0, 4]], begin[[0, 4]])
    assert not reward.any() and not terminated[[0, 4]].any() and not truncated.any()
    assert env._episode[[0, 4]].tolist() == [0, 0] and env._steps[[0, 4]].tolist() == [0, 0]
