"""Behaviour policies and collecting in bulk: whole episodes by the rules of the lake, and who made which move."""

import numpy as np
import pytest

from icrl_utils.dqn.replay import ReplayBuffer, SliceSource
from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, OUTCOMES
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.env import STEP_LIMIT
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import LakeMap, LakeTables, MapDistribution
from icrl_utils.play.collect import RANDOM_PLAY, Behaviour, Play, collect, expert_move

HISTORY = HistoryFormat("compact")
MAPS = MapDistribution(3, 4, min_hops=3).sample(12, 0)


def rng(seed=0):
    return np.random.default_rng(seed)


def split(play: Play):
    """[(map index, tiles, actions, outcome)] of all episodes."""
    tiles = np.split(play.tiles, np.cumsum(play.steps + 1)[:-1])
    actions = np.split(play.actions, np.cumsum(play.steps)[:-1])
    owner = np.repeat(np.arange(len(play.episodes_per_map)), play.episodes_per_map)
    return list(zip(owner, tiles, actions, play.outcome, strict=True))


def test_every_episode_follows_the_lake_and_ends_as_it_says():
    play = collect(MAPS, Behaviour(), rng(), episodes=(3, 6))
    seen = set()
    for index, tiles, actions, outcome in split(play):
        lake = MAPS[index]
        assert tiles[0] in lake.starts
        for tile, action, after in zip(tiles[:-1], actions, tiles[1:], strict=True):
            assert lake.next_tile[tile, action] == after and tile not in lake.goals + lake.holes
        assert outcome == (GOAL if tiles[-1] in lake.goals else HOLE if tiles[-1] in lake.holes else LIMIT)
        assert (len(actions) == STEP_LIMIT) if outcome == LIMIT else (len(actions) <= STEP_LIMIT)
        seen.add(OUTCOMES[outcome])
    assert {"goal", "hole"} <= seen


def test_a_truncated_episode_has_hundred_steps():
    lake = LakeMap(("SFFFFFFG",))  # up and down lead nowhere: random play seldom arrives
    play = collect([lake] * 8, RANDOM_PLAY, rng(), episodes=(2, 2))
    limits = [len(actions) for _, _, actions, outcome in split(play) if outcome == LIMIT]
    assert limits and set(limits) == {STEP_LIMIT}


def test_number_of_episodes_and_tokens():
    play = collect(MAPS, RANDOM_PLAY, rng(), episodes=(2, 5))
    assert set(play.episodes_per_map) <= {2, 3, 4, 5} and len(set(play.episodes_per_map)) > 1
    assert len(play.tiles) == play.steps.sum() + len(play.steps) and len(play.actions) == play.steps.sum()
    longer = collect(MAPS, RANDOM_PLAY, rng(), episodes=(2, 5), min_tokens=300)
    buffer = ReplayBuffer(longer, HISTORY)
    tokens = np.diff(buffer.bounds[buffer.first_episode])
    assert (tokens >= 300).all() and (longer.episodes_per_map >= play.episodes_per_map).all()
    in_paper_text = collect(MAPS, RANDOM_PLAY, rng(), episodes=(2, 5), min_tokens=300, step_tokens=10)
    sets = np.split(in_paper_text.steps, np.cumsum(in_paper_text.episodes_per_map)[:-1])
    assert all((steps + 1).sum() >= 30 for steps in sets) and len(in_paper_text.tiles) < len(longer.tiles) / 2
    # It goes on only where it must: without the last episode every longer set would have been short.
    last = np.diff(buffer.bounds)[buffer.first_episode[1:] - 1]
    went_on = longer.episodes_per_map > 5
    assert went_on.any() and (tokens - last <= 300)[went_on].all()


def test_collecting_depends_on_the_seed_only():
    first, again, other = (collect(MAPS, Behaviour(), rng(seed), episodes=(2, 4)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.actions[:50], other.actions[:50])


def test_held_out_maps_are_rejected():
    bad = held_out_maps("out_of_distribution")[3]
    with pytest.raises(ValueError, match=rf"maps\[1\]='{bad.id}' is a held-out map"):
        collect([MAPS[0], bad], RANDOM_PLAY, rng())


@pytest.mark.parametrize("maps", [MAPS, [LakeMap(("SFF", "FHF", "FFG"))]])
def test_expert_move_is_on_a_shortest_path_and_ties_are_broken_evenly(maps):
    tables = LakeTables(maps * 200)
    tile = tables.starts[:, 0].astype(int)
    moves = expert_move(tables, tile, rng())
    for row, lake in enumerate(maps * 200):
        assert lake.distances[lake.next_tile[tile[row], moves[row]]] == lake.distances[tile[row]] - 1
    if len(maps) == 1:  # down and right are equally good from the corner
        assert set(moves) == {1, 2} and 60 < (moves == 1).sum() < 140


class AlwaysSkilled(np.random.Generator):
    """Draws the upper end of every range: with the default behaviour, a skill that rises from .5 to 1."""

    def uniform(self, low, high, size):
        return np.full(size, high)


def test_an_expert_of_full_skill_reaches_every_goal_by_the_shortest_way():
    behaviour = Behaviour(habit_share=0.0, expert_share=1.0, low=1.0, high=1.0)
    play = collect(MAPS, behaviour, AlwaysSkilled(np.random.PCG64(0)), episodes=(3, 3))
    for index, tiles, actions, outcome in split(play):
        assert outcome == GOAL and len(actions) == MAPS[index].optimal_steps(int(tiles[0]))


def test_a_full_habit_makes_the_same_move_on_a_tile_all_episode_long_and_another_one_later():
    behaviour = Behaviour(habit_share=1.0, low=1.0, high=1.0)
    play = collect(MAPS, behaviour, AlwaysSkilled(np.random.PCG64(0)), episodes=(20, 20))
    openings = set()  # (first tile, first action) on map 0
    for index, tiles, actions, _ in split(play):
        assert len(set(zip(tiles[:-1], actions, strict=True))) == len(set(tiles[:-1]))
        openings |= {(tiles[0], actions[0])} if index == 0 else set()
    assert len(openings) > len({tile for tile, _ in openings})
    assert (play.outcome == LIMIT).mean() > 0.2  # it walks in circles


def test_skill_rises_within_a_set():
    play = collect(MAPS * 30, Behaviour(habit_share=0.0, expert_share=1.0), rng(), episodes=(20, 20))
    success = (play.outcome == GOAL).reshape(len(MAPS) * 30, 20).mean(0)
    quarters = success.reshape(4, 5).mean(1)
    assert (np.diff(quarters) > 0.02).all()
    random = collect(MAPS * 30, RANDOM_PLAY, rng(), episodes=(20, 20))
    flat = (random.outcome == GOAL).reshape(len(MAPS) * 30, 20).mean(0).reshape(4, 5).mean(1)
    assert np.ptp(flat) < 0.05 and flat.max() < quarters[0]


def test_the_learner_learns_too():
    """With no expert at all the tabular learner makes late episodes better than early ones."""
    play = collect(MAPS * 30, Behaviour(habit_share=0.0), rng(), episodes=(30, 30))
    success = (play.outcome == GOAL).reshape(-1, 30).mean(0)
    assert success[-10:].mean() > success[:5].mean() + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"habit_share": 1.7}, "habit_share=1.7: pass a number from 0 to 1"),
        ({"low": 3, "high": 9}, "low=3"),
        ({"high": 9}, "high=9"),
        ({"expert_share": -0.1}, "expert_share=-0.1"),
        ({"low": float("nan")}, "low=nan"),
        ({"habit_share": 0.6, "expert_share": 0.6}, "habit_share=0.6 and expert_share=0.6 are more than all maps"),
    ],
)
def test_a_behaviour_that_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Behaviour(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collect(MAPS[0], RANDOM_PLAY, rng()), "maps=LakeMap.* is one lake"),
        (lambda: collect([], RANDOM_PLAY, rng()), r"maps=\[\] is empty"),
        (lambda: collect(MAPS, RANDOM_PLAY, rng(), episodes=(0, 3)), r"episodes\[0\]=0"),
        (lambda: collect(MAPS, RANDOM_PLAY, rng(), episodes=(5, 3)), r"episodes\[1\]=3: .* of at least 5"),
        (lambda: collect(MAPS, RANDOM_PLAY, rng(), min_tokens=-1), "min_tokens=-1"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY, relabel=2), "relabel=2"),
        (lambda: SliceSource([], RANDOM_PLAY), r"maps=\[\] is empty"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY).slices(0, 64, rng()), "n=0"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY).slices(4, 0, rng()), "tokens=0"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY, history=HistoryFormat("paper")), "history has no tokenizer"),
    ],
)
def test_collecting_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
