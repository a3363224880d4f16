"""Rehearsal: imagined walks by hand, how the agent begins with them, and the two metrics on a made-up table."""

import numpy as np
import pytest

from icrl_utils.evaluation.calibration import TO_GOAL, TO_HOLE
from icrl_utils.evaluation.rehearsal import (
    COUNTED,
    FILLERS,
    describe_rehearsal,
    effects,
    elsewhere,
    gains,
    imagine,
    lakes_to_rehearse,
    play_rehearsing,
    rehearsal,
)
from icrl_utils.evaluation.tables import table_of
from icrl_utils.history.compact import COMPACT_TILES, COMPACT_WORDS
from icrl_utils.history.episodes import Episode
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.llama.agent import load_agent

LEFT, DOWN, RIGHT, UP = range(4)
CORRIDOR = {(0, RIGHT): 1, (0, UP): 0, (0, DOWN): TO_HOLE, (1, RIGHT): 2, (2, RIGHT): TO_GOAL}
MAPS = PAPER_IN_DISTRIBUTION.sample(3, 0)


def test_imagined_walks_follow_known_moves_to_the_goal():
    walks = {imagine(CORRIDOR, np.random.default_rng(seed)) for seed in range(30)}
    assert walks == {
        Episode((0, 1, 2, None), (RIGHT,) * 3, "goal"),
        Episode((1, 2, None), (RIGHT,) * 2, "goal"),
        Episode((2, None), (RIGHT,), "goal"),
    }  # never against a wall, never into the hole


def test_imagined_walks_end_where_nothing_is_known_or_they_grow_long():
    dead_end = imagine({(0, RIGHT): 1}, np.random.default_rng(0))
    assert dead_end == Episode((0, 1), (RIGHT,), "limit")
    circle = imagine({(0, RIGHT): 1, (1, LEFT): 0}, np.random.default_rng(0), longest=4)
    assert circle.steps == 4 and circle.outcome == "limit"
    assert imagine({(0, UP): 0, (0, DOWN): TO_HOLE}, np.random.default_rng(0)) is None
    assert imagine({}, np.random.default_rng(0)) is None


def test_walks_elsewhere_are_as_long_over_tiles_that_the_lake_does_not_have():
    walk = Episode((0, 1, 2, None), (RIGHT,) * 3, "goal")
    other = elsewhere(walk, 12)
    assert other == Episode((12, 13, 14, None), (RIGHT,) * 3, "goal")
    large = elsewhere(Episode((48, 30), (UP,), "limit"), 49)
    assert all(49 <= tile < COMPACT_TILES for tile in large.tiles)


def test_the_lakes_were_fixed_before_the_first_look():
    drawn = lakes_to_rehearse()
    assert {sizes: len(lakes) for sizes, lakes in drawn.items()} == {"3 to 5": 100, "6 and 7": 100}
    assert lakes_to_rehearse(4)["3 to 5"] == drawn["3 to 5"][:4]


@pytest.fixture(scope="module")
def agent():
    return load_agent("assets/adapters/dqn")


class Noting:
    """An agent that notes what it is told to begin with."""

    def __init__(self, agent):
        self.agent, self.told = agent, []

    def __getattr__(self, name):
        return getattr(self.agent, name)

    def recall(self, histories):
        self.told.append([self.agent.format.parse(" ".join(map(word, ids))) for ids in histories])
        self.agent.recall(histories)


def word(i):
    return COMPACT_WORDS[int(i)]


@pytest.mark.parametrize(("walks", "filler"), [(0, "none"), (2, FILLERS[0]), (2, FILLERS[1])])
def test_what_was_imagined_is_told_once_and_what_was_played_stays(agent, walks, filler):
    noting = Noting(agent)
    played = play_rehearsing(noting, MAPS, walks, filler, seed=1, episodes=3)
    for i, lake in enumerate(MAPS):
        real = [told_in_text(records.episodes(i)[0]) for records in played]
        for number in range(3):
            told = noting.told[number][i]
            assert told[:number] == real[:number]
            assert len(told) <= number + walks and (len(told) == number or number > 0)
            for walk in told[number:]:
                tiles = {tile for tile in walk.tiles if tile is not None}
                assert (min(tiles) >= lake.n_tiles) == (filler == "elsewhere")


def told_in_text(episode):
    return Episode((*episode.tiles[:-1], None), episode.actions, episode.outcome)


def test_the_table_of_rehearsal(agent, monkeypatch):
    monkeypatch.setattr("icrl_utils.evaluation.rehearsal.EPISODES", 6)
    table = rehearsal([agent], {"3 to 5": MAPS[:2]}, seed=1)
    keys = list(zip(*(table[name].tolist() for name in ("walks", "filler", "map", "episode")), strict=True))
    assert len(set(keys)) == len(keys) and {(0, "none"), (1, FILLERS[0]), (4, FILLERS[1])} <= {key[:2] for key in keys}
    assert "known moves minus elsewhere" in describe_rehearsal(table)


def test_effects_and_gains_by_hand():
    """Two lakes; an episode that is not counted, and two that are."""
    counted = COUNTED.start
    rows = []
    for filler, success in (("known moves", [[0, 1, 1], [0, 1, 0]]), ("elsewhere", [[1, 0, 1], [1, 0, 0]])):
        for i, of_lake in enumerate(success):
            for episode, won in zip((counted - 1, counted, counted + 1), of_lake, strict=True):
                row = {"training_seed": 0, "sizes": "3 to 5", "walks": 2, "filler": filler, "map": i}
                steps = 4 if episode == counted else 6
                rows.append(row | {"episode": episode, "success": won, "steps": steps, "optimal_steps": 4})
    table = table_of(rows)
    found = effects(table)
    assert found["3 to 5", "success"]["known moves", 2].estimate == pytest.approx(0.75)
    assert found["3 to 5", "success"]["elsewhere", 2].estimate == pytest.approx(0.25)
    assert found["3 to 5", "shortest path"]["known moves", 2].estimate == pytest.approx(0.5)
    assert found["3 to 5", "shortest path"]["elsewhere", 2].estimate == 0
    assert gains(table)["3 to 5", "success", 2] == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
