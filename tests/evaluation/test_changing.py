"""A changing lake: what is exchanged, what counts as a move of the old lake, and the table."""

import numpy as np
import pytest

from icrl_utils.evaluation import changing
from icrl_utils.evaluation.changing import (
    CHANGE,
    EPISODES,
    MOVED_GOAL,
    MOVED_HOLE,
    NEW_LAKE,
    PROTOCOL,
    Exchange,
    changing_lake,
    changing_summary,
    describe_changes,
    exchanges,
    old_moves,
    plot_changing,
)
from icrl_utils.evaluation.experiments import EXPERIMENTS, read_table, write_table
from icrl_utils.lake.held_out import development_maps
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, LakeMap
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, RMaxPolicy
from icrl_utils.play.forgetful import ToldRMaxPolicy
from icrl_utils.play.posterior_sampling import PosteriorSamplingPolicy

LAKES = development_maps("in_distribution", 40)


@pytest.fixture(scope="module")
def table():
    players = [RandomPolicy(), RMaxPolicy(), ToldRMaxPolicy(), PosteriorSamplingPolicy(PAPER_IN_DISTRIBUTION)]
    for player in players[:1]:
        player.name = "agent"
    return changing_lake([*players, OraclePolicy()], exchanges(LAKES, 5), seed=2)


def test_what_is_fixed_before_the_first_look():
    assert (CHANGE, EPISODES, changing.CHANGES_SEED, changing.CHANGES_EACH) == (30, 60, 1309, 80)
    np.testing.assert_array_equal(changing.PAPER_TWICE[[0, 2, 29, 30, 32, 59]], [0, 0.1, 1, 0, 0.1, 1])


def test_one_hole_or_the_goal_moves_and_lakes_stay_lawful():
    kinds = exchanges(LAKES, 15)
    assert list(kinds) == [PROTOCOL, NEW_LAKE, MOVED_HOLE, MOVED_GOAL] and kinds[PROTOCOL] == kinds[NEW_LAKE]
    assert kinds[NEW_LAKE] == (LAKES[:15], LAKES[20:35])
    for kind, letter in ((MOVED_HOLE, "H"), (MOVED_GOAL, "G")):
        assert len(kinds[kind].before) == 15
        for before, after in zip(*kinds[kind], strict=True):
            changed = [(a, b) for a, b in zip(before.letters, after.letters, strict=True) if a != b]
            assert sorted(changed) == [("F", letter), (letter, "F")] and before.width == after.width
            assert all(after.distances[start] >= 4 for start in after.starts) and before in LAKES
    assert exchanges(LAKES, 4)[MOVED_GOAL].after == kinds[MOVED_GOAL].after[:4]


def test_a_moved_hole_lies_on_a_shortest_way():
    lake = LakeMap(("SFFFG", "FFFFF", "HFFFF"))  # straight on is the only shortest way
    assert changing._on_shortest_ways(lake) == [1, 2, 3]
    for before, after in zip(*exchanges(LAKES, 15)[MOVED_HOLE], strict=True):
        (hole,) = set(after.holes) - set(before.holes)
        fewer = [start for start in before.starts if before.distances[start] > before.distances[hole] > 0]
        assert fewer


def test_a_lake_with_two_goals_is_left_out():
    assert changing._moved_goals(LakeMap(("SFFFG", "FFFFG"))) == []


def test_old_moves_by_hand():
    """SFFFG becomes GFFFS: right was right, and left is. Behind an end nothing counts."""
    exchange = Exchange([LakeMap(("SFFFG",))], [LakeMap(("GFFFS",))])
    tiles = np.array([[[0, 1, 2, 3, 2, -1], [1, 2, -1, -1, -1, -1]]])
    actions = np.array([[[2, 2, 2, 0, -1], [2, -1, -1, -1, -1]]])
    assert old_moves(tiles, actions, exchange).tolist() == [[3, 1]]
    same = Exchange(exchange.before, exchange.before)
    assert old_moves(tiles, actions, same).tolist() == [[0, 0]]


def test_old_moves_on_a_smaller_new_lake():
    exchange = Exchange([LakeMap(("SFFFG", "FFFFF"))], [LakeMap(("SG",))])
    tiles, actions = np.array([[[0, 1, -1], [5, 6, 7]]]), np.array([[[2, -1], [2, 2]]])
    assert old_moves(tiles, actions, exchange).tolist() == [[0, 2]]  # right from the start is right on both


def test_the_table_and_its_summary(table, tmp_path):
    assert set(table["policy"]) == {"agent", "R-max", "R-max, told", "oracle"}
    assert len(table["map"]) == 4 * 4 * 5 * EPISODES
    forced = table["epsilon"] < 1
    assert set(table["law"][forced]) == {PROTOCOL} and set(table["episode"][forced]) == {*range(20), *range(30, 50)}
    rows = {row["policy"]: row for row in changing_summary(table, NEW_LAKE)}
    oracle = rows["oracle"]
    assert oracle["fresh"].estimate == oracle["after"].estimate == oracle["end"].estimate == 1
    assert oracle["regret"].estimate == oracle["old_moves"].estimate == 0
    assert rows["R-max"]["after"].estimate > rows["R-max"]["fresh"].estimate * 0.5
    part = (table["law"] == NEW_LAKE) & (table["policy"] == "agent") & (table["episode"] >= CHANGE)
    assert rows["agent"]["regret"].estimate == pytest.approx((1 - table["success"][part]).sum() / 5)
    just_after = part & (table["episode"] < CHANGE + 5)
    share = table["old_moves"][just_after].sum() / table["steps"][just_after].sum()
    assert 0 < share < 1 and rows["agent"]["old_moves"].estimate == pytest.approx(share)
    write_table(path := tmp_path / "changing_lake.csv.gz", table)
    for column, values in read_table(path).items():
        np.testing.assert_array_equal(values, table[column])
    assert describe_changes(table).count("old_moves") == 4
    assert len(plot_changing(table, "A title").axes) == 4


def test_the_experiment_plays_held_out_lakes_only():
    drawn = EXPERIMENTS["changing_lake"].maps(3)
    assert [len(exchange.before) for exchange in drawn.values()] == [3] * 4
    assert [exchange.before for exchange in drawn.values()] == [exchange.before for exchange in exchanges(n=3).values()]
