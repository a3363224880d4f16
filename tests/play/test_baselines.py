"""The baselines on lakes small enough to know what each must do, and against their reference figures."""

import numpy as np
import pytest

from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, LakeMap
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.play.rollout import rollout

CORRIDOR = LakeMap(("SFFG",))
MAPS = PAPER_IN_DISTRIBUTION.sample(100, 5)


def paths(policy, lake, episodes, **options):
    return [episode.tiles for episode in rollout(policy, [lake], "greedy", episodes=episodes, **options).episodes(0)]


def test_oracle_takes_shortest_paths():
    records = rollout(OraclePolicy(), MAPS, "greedy", episodes=3)
    assert records.success.all()
    np.testing.assert_array_equal(records.steps, records.optimal_steps)


def test_plain_tabular_q_keeps_a_path_that_it_found():
    """A success makes the last step greedy; then the value creeps back towards the start, one tile an episode."""
    records = rollout(TabularPolicy(), [CORRIDOR] * 50, "greedy", episodes=12)
    np.testing.assert_array_equal(records.steps[:, -1], 3)
    assert records.steps[:, 0].mean() > 6


def test_plain_tabular_q_does_not_learn_from_resets():
    """From a goal to the next start is no transition: the row of the goal stays untouched."""
    policy = TabularPolicy()
    rollout(policy, [CORRIDOR] * 5, "greedy", episodes=12)
    np.testing.assert_allclose(policy._table.q[:, 0].max(axis=1), 0.81)
    assert policy._table.q[:, 3].max() == 0


def test_optimistic_tabular_q_tries_everything_once():
    """After a hole it never steps into the same hole from the same tile again."""
    lake = LakeMap(("SH", "FF", "FG"))
    deaths = [path[-2:] for path in paths(TabularPolicy(1.0), lake, 10) if path[-1] == 1]
    assert len(deaths) == len(set(deaths)) <= 2


def test_r_max_prefers_a_known_goal_to_an_untried_action():
    played = paths(RMaxPolicy(), LakeMap(("SFFF", "FHFF", "FFFG")), 30)
    edges = [set(zip(path, path[1:], strict=False)) for path in played]
    first = next(i for i, path in enumerate(played) if path[-1] == 11)
    known = set().union(*edges[: first + 1])
    for path, taken in zip(played[first + 1 :], edges[first + 1 :], strict=True):
        assert path[-1] == 11 and taken <= known


def test_r_max_goes_to_the_nearest_untried_action():
    """Stuck against walls it would stay for ever; instead no (tile, action) is tried twice on the way to new ones."""
    lake = LakeMap(("SF", "FF", "FG"))
    episode = rollout(RMaxPolicy(), [lake], "greedy", episodes=1).episodes(0)[0]
    pairs = list(zip(episode.tiles, episode.actions, strict=False))
    assert len(set(pairs)) >= 0.6 * len(pairs)
    assert episode.outcome == "goal"


def test_r_max_never_dies_twice_on_an_edge():
    records = rollout(RMaxPolicy(), MAPS, "greedy", episodes=15)
    for i in range(len(MAPS)):
        deaths = [(e.tiles[-2], e.actions[-1]) for e in records.episodes(i) if e.outcome == "hole"]
        assert len(deaths) == len(set(deaths))


def test_r_max_plans_around_holes():
    policy = RMaxPolicy()
    policy.start([LakeMap(("SHG", "FFF"))], [np.random.default_rng(0)])
    following = np.full((1, 6, 4), -1)
    following[0, 0, [1, 2]] = 3, 1  # down to 3, right into the hole 1
    following[0, 3, 2], following[0, 4, 2], following[0, 5, 3] = 4, 5, 2
    following[0, 1] = 1
    policy._next, policy._ends = following, np.array([[0, 2, 1, 0, 0, 0]], np.uint8)
    policy._plan(np.array([0]))
    assert policy._to_goal[0, 0, 1] == 4 and policy._to_goal[0, 4, 2] == 2 and policy._to_goal[0, 5, 3] == 1
    assert policy._to_goal[0, 0, 2] == policy._FAR and policy._to_goal[0, 0, 0] == policy._FAR
    assert policy._to_new[0, 0, 0] == 1 and policy._to_new[0, 0, 1] == 2 and policy._to_new[0, 0, 2] == policy._FAR


@pytest.mark.parametrize(
    ("policy", "schedule", "last_ten"),
    [
        (RandomPolicy(), "paper", 0.16),
        (TabularPolicy(), "paper", 0.52),
        (TabularPolicy(1.0), "paper", 0.97),
        (RMaxPolicy(), "paper", 1.00),
        (TabularPolicy(), "greedy", 0.53),
        (TabularPolicy(1.0), "greedy", 1.00),
        (OraclePolicy(), "paper", 1.00),
    ],
)
def test_reference_figures(policy, schedule, last_ten):
    """Known figures of 100 to 200 maps; 300 maps here, tolerance about three standard errors of both."""
    maps = PAPER_IN_DISTRIBUTION.sample(300, 9)
    success = rollout(policy, maps, schedule).success[:, -10:].mean()
    assert success == pytest.approx(last_ten, abs=0.09 if 0.1 < last_ten < 0.9 else 0.03)


def test_more_maps_than_one_batch():
    """Learning policies begin again for every batch and keep the right rows within one."""
    whole, parts = (rollout(RMaxPolicy(), MAPS[:30], [1] * 15, batch_maps=b) for b in (None, 7))
    assert whole.success[:, -1].mean() > 0.9 and parts.success[:, -1].mean() > 0.9
