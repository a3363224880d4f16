"""Context surgery: each operation on a history made by hand, the moves that are asked about, the mean beliefs."""

import numpy as np
import pytest

from icrl_utils.evaluation.surgery import (
    ASKED,
    SURGERIES,
    beliefs,
    context_surgery,
    describe_surgery,
    edges_to_ask,
)
from icrl_utils.evaluation.tables import table_of
from icrl_utils.history.episodes import Episode
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.llama.agent import load_agent

LEFT, DOWN, RIGHT, UP = range(4)
WIN, DIE = Episode((0, 1, 2), (RIGHT, RIGHT), "goal"), Episode((0, 4), (DOWN,), "hole")
OTHER_WIN, LOST = Episode((5, 2), (UP,), "goal"), Episode((0, 0), (UP,), "limit")
PAST = [WIN, DIE, OTHER_WIN, LOST, WIN]
GOAL_EDGE, HOLE_EDGE = (1, RIGHT), (0, DOWN)


def outcomes(name, edge=GOAL_EDGE):
    told = SURGERIES[name](PAST, edge, [LOST])
    assert [e.tiles for e in told] == [e.tiles for e in PAST] and [e.actions for e in told] == [e.actions for e in PAST]
    return [e.outcome for e in told]


def test_operations_by_hand():
    assert outcomes("untouched") == ["goal", "hole", "goal", "limit", "goal"]
    assert outcomes("this outcome deleted") == ["limit", "hole", "goal", "limit", "limit"]
    assert outcomes("this outcome deleted", HOLE_EDGE) == ["goal", "limit", "goal", "limit", "goal"]
    assert outcomes("this outcome deleted", (0, RIGHT)) == ["goal", "hole", "goal", "limit", "goal"]  # no last move
    assert outcomes("outcomes exchanged") == ["hole", "goal", "hole", "limit", "hole"]
    assert outcomes("all rewards removed") == ["limit", "hole", "limit", "limit", "limit"]
    assert SURGERIES["another lake's history"](PAST, GOAL_EDGE, [LOST]) == [LOST]
    assert [e.outcome for e in PAST] == ["goal", "hole", "goal", "limit", "goal"]  # nothing was changed in place


def test_edges_to_ask_by_hand():
    asked = edges_to_ask(PAST, 0, np.random.default_rng(0))
    assert set(asked) == set(ASKED)
    assert asked["goal next"] == ((1, RIGHT), Episode((0, 1), (RIGHT,)))  # 5 is not known to be reachable from 0
    assert asked["goal in 2"] == ((0, RIGHT), Episode((0,), ()))
    assert asked["seen hole"] == ((0, DOWN), Episode((0,), ()))
    assert edges_to_ask([LOST], 0, np.random.default_rng(0)) == {}


def test_beliefs_by_hand():
    rows = []
    for kind, lakes in (("goal next", [0, 3]), ("seen hole", [0, 1, 3])):
        for surgery, q in (("untouched", 0.5), ("outcomes exchanged", 0.25)):
            for seed in (0, 1):
                row = {"training_seed": seed, "surgery": surgery, "kind": kind, "map": np.array(lakes)}
                rows.append(row | {"q": q * seed * np.arange(len(lakes))})
    found = beliefs(table_of(rows))
    assert list(found) == ["goal next", "seen hole"]
    assert found["goal next"]["untouched"].estimate == pytest.approx(0.125)
    assert found["seen hole"]["untouched"].estimate == pytest.approx(0.25)
    assert found["seen hole"]["outcomes exchanged"].high == pytest.approx(0.25)


def test_the_shipped_agent_believes_what_the_operated_history_says():
    agent = load_agent("assets/adapters/dqn")
    table = context_surgery([agent], PAPER_IN_DISTRIBUTION.sample(8, 5), seed=1)
    found = beliefs(table)
    assert found["seen hole"]["untouched"].estimate < 0.1 < 0.7 < found["seen hole"]["outcomes exchanged"].estimate
    assert found["goal next"]["untouched"].estimate > 0.9 > 0.3 > found["goal next"]["outcomes exchanged"].estimate
    assert all(name in describe_surgery(table) for name in SURGERIES)
