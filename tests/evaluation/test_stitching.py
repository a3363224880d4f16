"""Stitching: generated crossings are crossings, and what was done there is read off the traces."""

import numpy as np
import pytest

from icrl_utils.evaluation import stitching
from icrl_utils.evaluation.experiments import EXPERIMENTS, read_table, write_table
from icrl_utils.evaluation.stitching import (
    CONTEXTS,
    ELSEWHERE,
    GENERATED,
    NEVER_THERE,
    PAPER_CROSSING,
    PAPER_LAKE,
    TO_GOAL,
    TO_HOLE,
    crossings,
    crossings_of_every_kind,
    describe_stitching,
    done_at_crossing,
    gain_of_both,
    plot_stitching,
    stitching_summary,
)
from icrl_utils.lake.held_out import development_maps
from icrl_utils.play.baselines import RandomPolicy, RMaxPolicy

LAKES = development_maps("in_distribution", 60)


class Forgetful(RandomPolicy):
    """A policy without memory, as the memory-less agent is one."""

    name, memory = "memory-less", False


@pytest.fixture(scope="module")
def table():
    agent = RMaxPolicy()
    agent.name = "agent"
    return stitching.stitching([agent, RandomPolicy(), Forgetful()], crossings_of_every_kind(LAKES, 12), seed=1)


def test_what_is_fixed_before_the_first_look():
    fixed = stitching.CROSSINGS_SEED, stitching.CROSSINGS, stitching.ATTEMPTS, stitching.PAPER_HISTORIES
    assert fixed == (1310, 300, 5, 10)


@pytest.mark.parametrize("crossing", [PAPER_CROSSING, *crossings(LAKES, 30)], ids=lambda crossing: crossing.lake.id)
def test_two_walks_that_lakes_allow_share_one_tile(crossing):
    lake, to_hole, to_goal, tile = crossing.lake, crossing.to_hole, crossing.to_goal, crossing.tile
    for walk, letter in ((to_hole, "H"), (to_goal, "G")):
        assert len(set(walk.tiles)) == len(walk.tiles) and lake.letters[walk.tiles[-1]] == letter
        for before, action, after in zip(walk.tiles, walk.actions, walk.tiles[1:], strict=False):
            assert lake.next_tile[before, action] == after and lake.letters[before] in "SF"
    assert set(to_hole.tiles) & set(to_goal.tiles) == {tile}
    assert lake.starts == (to_hole.tiles[0],) and to_goal.tiles[0] != tile and to_hole.tiles.index(tile) >= 2
    assert lake.distances[to_hole.tiles[0]] >= 4


def test_each_lake_has_its_own_crossing_whatever_the_others_are():
    assert crossings(LAKES, 5) == crossings(LAKES[:30], 30)[:5] == crossings(LAKES, 30)[:5]
    assert len(crossings(LAKES, 30)) == 30


def test_the_four_contexts():
    both, goal, hole, exchanged = (PAPER_CROSSING.shown(context) for context in CONTEXTS)
    assert [walk.outcome for walk in both] == ["goal", "hole"] and goal == both[:1] and hole == both[1:]
    assert [walk.outcome for walk in exchanged] == ["hole", "goal"]
    assert [walk.tiles for walk in exchanged] == [walk.tiles for walk in both]
    with pytest.raises(ValueError, match="context='none' is unknown; choose one of: both walks"):
        PAPER_CROSSING.shown("none")


def test_what_was_done_at_the_crossing_by_hand():
    """Crossing 10: on to the hole, down to the goal (and later right), back left, never there."""
    traces = [((8, 9, 10, 11), (2, 2, 2)), ((9, 10, 14, 10, 11), (2, 1, 3, 2)), ((10, 9), (0,)), ((8, 10), (2,))]
    tiles, actions = np.full((1, 4, 6), -1), np.full((1, 4, 5), -1)
    for i, (walked, moved) in enumerate(traces):
        tiles[0, i, : len(walked)], actions[0, i, : len(moved)] = walked, moved
    found = done_at_crossing(tiles, actions, [PAPER_CROSSING])
    assert found.tolist() == [[TO_HOLE, TO_GOAL, ELSEWHERE, NEVER_THERE]]  # the last one ended there


def test_r_max_joins_the_walks_and_believes_exchanged_outcomes(table, tmp_path):
    rows = {(row["policy"], row["context"]): row for row in stitching_summary(table)}
    both, exchanged = rows["agent", CONTEXTS[0]], rows["agent", CONTEXTS[3]]
    assert both["arrives"].estimate == both["joins"].estimate == both["switches"].estimate == 1
    assert exchanged["to_hole"].estimate == 1 and exchanged["arrives"].estimate == 0
    assert gain_of_both(table).low > 0 and abs(gain_of_both(table, "random").estimate) < 0.3
    assert ("memory-less", CONTEXTS[0]) in rows and ("memory-less", CONTEXTS[1]) not in rows
    first = (table["law"] == GENERATED) & (table["context"] == CONTEXTS[2]) & (table["episode"] == 0)
    first &= table["policy"] == "agent"
    assert rows["agent", CONTEXTS[2]]["arrives"].estimate == table["success"][first].mean() < 1
    write_table(path := tmp_path / "stitching.csv.gz", table)
    for column, values in read_table(path).items():
        np.testing.assert_array_equal(values, table[column])
    text = describe_stitching(table)
    assert f"{PAPER_LAKE}, both walks: agent" in text and f"{GENERATED}, outcomes exchanged" in text
    assert len(plot_stitching(table, "A title").axes) == 3


def test_the_experiment_plays_held_out_lakes():
    drawn = EXPERIMENTS["stitching"].maps(3)
    assert drawn[PAPER_LAKE] == [PAPER_CROSSING] * 3 and drawn[GENERATED] == crossings_of_every_kind(n=3)[GENERATED]
