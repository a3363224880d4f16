"""Calibration: which edges a history tells, what they are worth, and what an agent is asked about them."""

import numpy as np
import pytest

from icrl_utils.evaluation.calibration import (
    TO_GOAL,
    TO_HOLE,
    edge_kind,
    known_graph,
    known_graph_values,
    moves_to_goal,
)
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.play.baselines import RandomPolicy

LEFT, DOWN, RIGHT, UP = range(4)

PAST = [
    Episode((0, 1, 2, 3), (RIGHT, RIGHT, RIGHT), "goal"),
    Episode((0, 0, 4), (UP, DOWN), "hole"),
    Episode((1, 5, 5), (DOWN, LEFT), "limit"),
]


def test_known_graph():
    assert known_graph(PAST) == {
        (0, RIGHT): 1, (1, RIGHT): 2, (2, RIGHT): TO_GOAL, (0, UP): 0, (0, DOWN): TO_HOLE, (1, DOWN): 5, (5, LEFT): 5,
    }  # fmt: skip


def test_a_last_tile_that_the_text_does_not_tell_is_no_edge():
    assert known_graph([Episode((1, 5, None), (DOWN, LEFT), "limit")]) == {(1, DOWN): 5}


def test_moves_to_goal_on_the_known_graph():
    assert moves_to_goal(known_graph(PAST)) == {2: 1, 1: 2, 0: 3}


@pytest.mark.parametrize(
    "tile, action, kind, value",
    [
        (2, RIGHT, "goal next", 1.0),
        (1, RIGHT, "goal in 2", 0.9),
        (0, RIGHT, "goal in 3", 0.81),
        (0, DOWN, "seen hole", 0.0),
        (0, UP, "wall", 0.0),
        (5, LEFT, "wall", 0.0),
        (1, DOWN, "no way known", np.nan),
        (1, UP, "never tried", np.nan),
    ],
)
def test_kinds_of_moves_and_their_exact_values(tile, action, kind, value):
    found, exact = edge_kind(known_graph(PAST), tile, action, gamma=0.9)
    assert found == kind
    assert exact == pytest.approx(value, nan_ok=True)


def test_known_graph_values_asks_the_agent_where_it_stands(monkeypatch):
    """An agent that answers from the text alone, by looking up the graph, is perfectly calibrated."""

    class LooksUp:
        name, format = "looks up", HistoryFormat("compact")

        def q_values(self, text):
            *past, running = self.format.parse(text)
            graph = known_graph(past)
            return np.array([edge_kind(graph, running.tiles[-1], action, gamma=0.7)[1] for action in range(4)])

    rows = known_graph_values(LooksUp(), PAPER_IN_DISTRIBUTION.sample(4, 0), gamma=0.7, episodes=6)
    assert {"seen hole", "wall", "never tried"} <= {row["kind"] for row in rows}
    np.testing.assert_allclose([row["q"] for row in rows], [row["exact"] for row in rows])
    assert RandomPolicy.name not in {row["policy"] for row in rows}
