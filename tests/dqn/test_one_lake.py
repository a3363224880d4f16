"""Q-learning on one lake: the loss by hand, the file, and what it says."""

import numpy as np
import pytest
import torch

from icrl_utils.dqn.one_lake import (
    ALPHAS,
    LINKS,
    SEEDS,
    Way,
    learn,
    losses,
    new_networks,
    played,
    q_tables,
    reaches_goal,
    read_file,
    root_mean_square_error,
)
from icrl_utils.lake.maps import DEFAULT_MAP, LakeMap
from icrl_utils.statistics import median_interval

LAKE = LakeMap(("SFG", "FHF"))


@pytest.mark.parametrize("link", LINKS)
def test_losses_move_by_move(link):
    """Of two networks: y = r + gamma max Q_slow(next) where play goes on; squared error, or cross-entropy with Q."""
    online, slow = new_networks(2), [weight.detach() + 0.1 for weight in new_networks(2)]
    moves = [column[:, :40] for column in played(LAKE, 2)]
    given = losses(Way(link, True, 0.1), online, slow, moves, LAKE).detach()
    q, q_slow = (q_tables(weights, LAKE, link == "sigmoid").detach() for weights in (online, slow))
    for run in range(2):
        for k in range(40):
            tile, action, reward, after, over, _, is_move = (column[run, k] for column in moves)
            y = reward + (0 if over else 0.9 * q_slow[run, after].max())
            mine = q[run, tile, action]
            wanted = -y * mine.log() - (1 - y) * (1 - mine).log() if link == "sigmoid" else (mine - y) ** 2
            assert float(given[run, k]) == pytest.approx(float(wanted * is_move), abs=1e-5)
    assert not moves[-1].all() and moves[4].any()  # resets and ends are among them


def test_networks_side_by_side_do_not_mix():
    """The first of three learns what it learns when it is alone with its own moves."""
    data = played(LAKE, 3)
    way = Way("none", False, 0.1)
    together = learn(way, data, LAKE, steps=100)
    spoiled = [column.clone() for column in data]
    spoiled[2][1:] = 1 - spoiled[2][1:]  # other rewards for the others
    torch.testing.assert_close(learn(way, spoiled, LAKE, steps=100)[:, 0], together[:, 0])
    assert together.shape == (1, 3, 6, 4) and not torch.equal(together[0, 0], together[0, 1])


def test_exact_values_have_no_error_and_reach_the_goal():
    exact = torch.tensor(DEFAULT_MAP.optimal_values(0.9))
    assert root_mean_square_error(torch.stack([exact, exact + 0.5]), DEFAULT_MAP).tolist() == pytest.approx([0, 0.5])
    assert reaches_goal(exact, DEFAULT_MAP) and not reaches_goal(-exact, DEFAULT_MAP)


@pytest.fixture(scope="module")
def ends():
    """(link, replay, alpha) -> error at the end, [seeds]."""
    found = {}
    for row in read_file():
        if row["reaches_goal"] != "":
            found.setdefault((row["link"], row["replay"] == "1", float(row["alpha"])), []).append(float(row["error"]))
    return {way: np.array(errors) for way, errors in found.items()}


def test_the_file_has_every_way_and_says_what_notebook_03_says(ends):
    assert set(ends) == {(link, replay, alpha) for link in LINKS for replay in (False, True) for alpha in ALPHAS}
    assert all(len(errors) == SEEDS for errors in ends.values())
    median = {way: median_interval(errors) for way, errors in ends.items()}
    for replay in (False, True):
        assert median["none", replay, 1.0].low > 1  # naive, replay or not
        assert median["none", replay, 0.1].estimate > 1  # the course's own alpha
        assert median["none", replay, 0.01].high < 0.05
        assert all(median["sigmoid", replay, alpha].high < 0.25 for alpha in ALPHAS)


@pytest.mark.slow
def test_learning_again_gives_what_the_file_says(ends):
    """The same code, fewer networks: its luck is drawn for all networks at once, so other numbers of the same kind."""
    data = played(DEFAULT_MAP, 8)
    naive, bounded = (learn(Way(link, False, 1.0), data, DEFAULT_MAP)[-1] for link in LINKS)
    assert np.median(root_mean_square_error(naive, DEFAULT_MAP)) > 1
    assert np.median(root_mean_square_error(bounded, DEFAULT_MAP)) < 0.25
