"""Made-up ways: what is told, what two ways to compute predict, and what a network is asked."""

import numpy as np
import pytest

from icrl_utils.evaluation import made_up
from icrl_utils.evaluation.made_up import (
    FORMS,
    MOVES,
    asked_at_start,
    cut_off,
    describe_values,
    draw_way,
    history_of,
    mean_values,
    predictions,
    q_at_end,
    values_by_distance,
    ways_of_every_length,
)
from icrl_utils.evaluation.tables import table_of
from icrl_utils.history.episodes import Episode
from icrl_utils.llama.agent import load_agent
from icrl_utils.paths import ASSETS, read_json
from icrl_utils.play.baselines import RandomPolicy

WAY = Episode((8, 9, 13), (2, 1), "goal")


@pytest.fixture(scope="module")
def agent():
    return load_agent("assets/adapters/dqn")


def test_a_drawn_way_has_distinct_tiles_and_its_length():
    rng = np.random.default_rng(0)
    for moves in MOVES:
        way = draw_way(moves, rng)
        assert way.steps == moves and len(set(way.tiles)) == moves + 1 and way.outcome == "goal"
    assert set(draw_way(2, rng, [5, 6, 7]).tiles) == {5, 6, 7}


def test_ways_are_the_same_for_any_number_of_them():
    assert ways_of_every_length(3)[4] == ways_of_every_length(5)[4][:3]
    assert list(ways_of_every_length(1)) == list(MOVES)


def test_histories_say_what_their_form_says(agent):
    def text(form, visits):
        return agent.format.render(history_of(WAY, visits, form))

    assert text("to the goal", 2) == "8 right 9 down goal reset 8 right 9 down goal reset"
    assert text("cut off", 2) == "8 right 9 down goal reset 8 right 9 right limit reset"
    assert text("no reward", 2) == "8 right 9 right limit reset 8 right 9 right limit reset"
    assert cut_off(Episode((8, 9), (3,), "goal")) == Episode((8, 8), (0,), "limit")
    with pytest.raises(ValueError, match="form='often'.*to the goal, cut off, no reward"):
        history_of(WAY, 1, "often")


def test_the_question_is_asked_on_the_first_tile(agent):
    ids = asked_at_start(agent, [WAY], WAY)
    np.testing.assert_array_equal(ids, agent.format.tokenize("8 right 9 down goal reset 8"))
    np.testing.assert_allclose(q_at_end(agent, [ids, ids])[1], agent.q_values("8 right 9 down goal reset 8"), atol=1e-6)


def test_predictions_by_hand():
    found = predictions(np.array([1, 2, 3, 4]), 2, floor=0.1, gamma=0.5)
    assert found["plans at decision time"].tolist() == [1, 0.5, 0.25, 0.125]
    assert found["caches while it walks"].tolist() == [1, 0.5, 0.1, 0.1]


def test_the_prediction_of_a_cache_is_what_a_table_does():
    """Q-learning with a learning rate of 1, walked step by step, and one look-up at the question."""
    moves, gamma = 5, 0.6
    for visits in range(1, 7):
        table = np.zeros(moves + 1)  # value of the right move d moves from the goal
        for _ in range(visits):
            for d in range(moves, 0, -1):
                table[d] = 1 if d == 1 else gamma * table[d - 1]
        wanted = predictions(np.arange(1, moves + 1), visits, floor=0.0, gamma=gamma)["caches while it walks"]
        np.testing.assert_allclose(table[1:], wanted)


def test_values_by_distance_asks_every_question_once(agent):
    ways = {1: ways_of_every_length(3)[1], 2: ways_of_every_length(3)[2]}
    table = values_by_distance([RandomPolicy(), agent], ways)
    keys = list(zip(*(table[name].tolist() for name in ("form", "moves", "visits", "map")), strict=True))
    assert len(set(keys)) == len(keys) and set(table["form"]) == set(FORMS) and set(table["moves"]) == {1, 2}
    values = mean_values(table)
    way = ways[2][1]
    asked = agent.format.render([way, way, Episode(way.tiles[:1], ())])
    assert values["to the goal", 2, 2][1] == pytest.approx(agent.q_values(asked)[way.actions[0]], abs=1e-4)
    assert values["to the goal", 1, 1].min() > 0.9 > values["no reward", 1, 1].max()
    assert "exact" in describe_values(table)
    with pytest.raises(ValueError, match="no agent with a memory"):
        values_by_distance([RandomPolicy()], ways)


def test_mean_values_by_hand():
    row = {"form": "cut off", "moves": 2, "visits": 1, "map": np.arange(2)}
    table = table_of([row | {"training_seed": 0, "q": np.array([0.2, 0.4])},
                      row | {"training_seed": 1, "q": np.array([0.4, 0.8])}])  # fmt: skip
    np.testing.assert_allclose(mean_values(table)["cut off", 2, 1], [0.3, 0.6])


def test_what_was_fixed_before_the_first_look():
    assert (made_up.DRAWS, made_up.DRAWS_SEED) == (200, 1309)


def test_the_discount_is_that_of_the_shipped_agents():
    for folder in (ASSETS / "adapters").glob("dqn*"):
        assert read_json(folder / "run.json", "config")["config"]["gamma"] == made_up.GAMMA
