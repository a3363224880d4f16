"""The rollout loop: the protocol that policies see, the luck that they share, and the records."""

import gymnasium
import numpy as np
import pytest

from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, RESET, RUNNING, Episode
from icrl_utils.lake.maps import LakeMap, MapDistribution
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.play.rollout import epsilon_schedule, rollout

MAPS = MapDistribution(3, 5).sample(12, 3)


class Scripted:
    """Always the same action; remembers all that it was told."""

    name = "scripted"

    def __init__(self, action):
        self.action = action

    def start(self, maps, rngs):
        self.n = len(maps)
        self.told = []

    def act(self, step):
        assert len(step.tile) == self.n
        self.told.append(step)
        return np.full(self.n, self.action)

    def keep(self, rows):
        self.n = len(rows)


def test_paper_schedule():
    warm_up = [0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.9, 0.9]
    np.testing.assert_allclose(epsilon_schedule("paper"), warm_up + [1] * 10)
    np.testing.assert_array_equal(epsilon_schedule("greedy", 5), np.ones(5))
    assert len(epsilon_schedule("greedy")) == 30


@pytest.mark.parametrize(
    ("schedule", "episodes", "message"),
    [
        ("peper", None, "schedule='peper'"),
        ([0.5, 1.5], None, "probabilities"),
        ([], None, "non-empty"),
        ("paper", 12, "episodes=12"),
        ([1, 1], 3, "episodes=3"),
    ],
)
def test_bad_schedules(schedule, episodes, message):
    with pytest.raises(ValueError, match=message):
        epsilon_schedule(schedule, episodes)


def test_bad_maps_and_batches():
    with pytest.raises(ValueError, match="maps=\\[\\]"):
        rollout(RandomPolicy(), [])
    with pytest.raises(ValueError, match=r"maps=LakeMap.* is one lake: pass a list of lakes, for example \[lake\]"):
        rollout(RandomPolicy(), MAPS[0])
    with pytest.raises(ValueError, match=r"maps holds 'SFG': pass LakeMap"):
        rollout(RandomPolicy(), ["SFG"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_maps": -1}, "batch_maps=-1"),
        ({"batch_maps": 0}, "batch_maps=0: pass a whole number of at least 1"),
        ({"batch_maps": 2.5}, "batch_maps=2.5"),
        ({"episodes": 0}, "episodes=0: pass a whole number from 1 to 32,767"),
        ({"episodes": 0, "schedule": "greedy"}, "episodes=0"),
        ({"episodes": 32_768, "schedule": "greedy"}, "episodes=32768"),
        ({"episodes": True, "schedule": "greedy"}, "episodes=True"),
        ({"schedule": ["0.5"]}, "schedule=.*probabilities"),
        ({"schedule": [True]}, "schedule=.*probabilities"),
        ({"schedule": [float("nan")]}, "schedule=.*probabilities"),
        ({"schedule": [[1], [1, 1]]}, "schedule=.*probabilities"),
        ({"schedule": 0.5}, "schedule=0.5.*probabilities"),
        ({"seed": -1}, "seed=-1: pass a whole number from 0"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"step_limit": 0}, "step_limit=0"),
        ({"step_limit": 32_768}, "step_limit=32768: pass a whole number from 1 to 32,767"),
    ],
)
def test_numbers_that_cannot_work_are_named_before_play(arguments, message):
    policy = Scripted(0)
    with pytest.raises(ValueError, match=message):
        rollout(policy, MAPS, **arguments)
    assert not hasattr(policy, "told")


def test_records_of_the_largest_lake_keep_their_numbers():
    far, near = LakeMap(("S" + "F" * 32_765 + "G",)), LakeMap(("F" * 32_765 + "SG",))
    records = rollout(Scripted(2), [far, near], [1], step_limit=3)
    assert records.optimal_steps.tolist() == [[32_766], [1]]
    assert records.tiles[:, 0].tolist() == [[0, 1, 2, 3], [32_765, 32_766, -1, -1]]


def test_what_a_policy_is_told():
    """right, right onto the goal; then a reset, and the next episode."""
    policy = Scripted(2)
    records = rollout(policy, [LakeMap(("SFG",))], "greedy", episodes=2)
    told = [tuple(int(column[0]) for column in step) for step in policy.told]
    assert told == [(RESET, 0, RUNNING), (2, 1, RUNNING), (2, 2, GOAL), (RESET, 0, RUNNING), (2, 1, RUNNING)]
    assert [episode.tiles for episode in records.episodes(0)] == [(0, 1, 2)] * 2
    assert [episode.actions for episode in records.episodes(0)] == [(2, 2)] * 2


def test_outcomes_steps_and_returns():
    maps = [LakeMap(("SFG",)), LakeMap(("SHG", "FFF")), LakeMap(("GFS",))]  # right: goal; hole; against the wall
    records = rollout(Scripted(2), maps, "greedy", episodes=3, step_limit=7)
    np.testing.assert_array_equal(records.outcome, [[GOAL] * 3, [HOLE] * 3, [LIMIT] * 3])
    np.testing.assert_array_equal(records.steps, [[2] * 3, [1] * 3, [7] * 3])
    np.testing.assert_array_equal(records.optimal_steps, [[2] * 3, [4] * 3, [2] * 3])
    np.testing.assert_array_equal(records.success, [[True] * 3, [False] * 3, [False] * 3])
    assert records.episodes(2)[0].tiles == (2,) * 8 and records.episodes(2)[0].outcome == "limit"
    assert (records.tiles[1, :, 2:] == -1).all() and (records.actions[1, :, 1:] == -1).all()


def test_reaching_the_goal_at_the_step_limit_is_a_success():
    assert rollout(Scripted(2), [LakeMap(("SFG",))], [1], step_limit=2).success.all()


def test_traces_are_what_gymnasium_does():
    records = rollout(TabularPolicy(), MAPS, [0, 0.5, 1])
    for i, lake in enumerate(MAPS):
        env = gymnasium.make("FrozenLake-v1", desc=lake.desc, is_slippery=False).unwrapped
        for episode in records.episodes(i):
            env.reset()
            env.s = episode.tiles[0]
            assert episode.tiles[0] in lake.starts
            for action, tile in zip(episode.actions, episode.tiles[1:], strict=True):
                observed, reward, terminated, *_ = env.step(action)
                assert observed == tile
            assert episode.outcome == ("goal" if reward else "hole" if terminated else "limit")


def test_luck_is_the_same_for_every_policy():
    """Start tiles of every episode, and all of an episode in which the policy never acts."""
    first, second = (rollout(policy, MAPS, [0, 1, 0, 0.5, 0]) for policy in (Scripted(0), OraclePolicy()))
    np.testing.assert_array_equal(first.tiles[:, :, 0], second.tiles[:, :, 0])
    assert len(np.unique(first.tiles[:, :, 0])) > 3
    for episode in (0, 2, 4):
        np.testing.assert_array_equal(first.tiles[:, episode], second.tiles[:, episode])
        np.testing.assert_array_equal(first.actions[:, episode], second.actions[:, episode])
    assert (first.actions[:, 1] != second.actions[:, 1]).any()
    np.testing.assert_array_equal(first.optimal_steps, second.optimal_steps)


def test_luck_depends_on_the_seed_and_not_on_the_batch():
    luck = ((0, None), (0, 5), (1, None))
    runs = [rollout(Scripted(1), MAPS, [0, 0.5], seed=seed, batch_maps=batch) for seed, batch in luck]
    np.testing.assert_array_equal(runs[0].tiles, runs[1].tiles)
    np.testing.assert_array_equal(runs[0].actions, runs[1].actions)
    assert (runs[0].actions != runs[2].actions).any() and (runs[0].tiles[:, :, 0] != runs[2].tiles[:, :, 0]).any()
    shorter = rollout(Scripted(1), MAPS[:4], [0, 0.5])
    np.testing.assert_array_equal(shorter.actions, runs[0].actions[:4])


def test_epsilon_is_the_probability_that_the_policy_acts():
    lake = LakeMap(("GFFS",))  # right is a step against the wall: with epsilon 1 every episode hits the limit
    actions = rollout(Scripted(2), [lake] * 40, [0, 0.3, 1], step_limit=50).actions
    share = [(actions[:, e] == 2).sum() / (actions[:, e] >= 0).sum() for e in range(3)]
    assert share[0] == pytest.approx(0.25, abs=0.03)
    assert share[1] == pytest.approx(0.3 + 0.7 / 4, abs=0.03)
    assert share[2] == 1


# Games exchanged in one context


def test_games_are_exchanged_without_notice():
    """Right: onto the goal of the first lake, into the hole of the second one. The player is told steps as ever."""
    policy = Scripted(2)
    records = rollout(policy, [LakeMap(("SFG",))], [1] * 4, changes={1: [LakeMap(("FSH", "FFG"))], 3: MAPS[:1]})
    assert records.outcome[0, :3].tolist() == [GOAL, HOLE, HOLE] and records.steps[0, :3].tolist() == [2, 1, 1]
    assert records.optimal_steps[0].tolist()[:3] == [2, 2, 2] and records.tiles[0, 3, 0] in MAPS[0].starts
    told = [tuple(int(column[0]) for column in step) for step in policy.told]
    assert told[2:6] == [(2, 2, GOAL), (RESET, 1, RUNNING), (2, 2, HOLE), (RESET, 1, RUNNING)]


def test_changes_leave_the_episodes_before_and_the_luck_alone():
    plain, changed = (rollout(TabularPolicy(), MAPS, [0.5] * 6, 4, changes=c) for c in (None, {3: MAPS[::-1]}))
    np.testing.assert_array_equal(plain.actions[:, :3], changed.actions[:, :3])
    np.testing.assert_array_equal(plain.tiles[:, :3], changed.tiles[:, :3])
    again = rollout(TabularPolicy(), MAPS, [0.5] * 6, 4, changes={3: MAPS[::-1]}, batch_maps=5)
    np.testing.assert_array_equal(again.actions, changed.actions)
    for i, lake in enumerate(MAPS[::-1]):
        assert set(changed.tiles[i, 3:, 0].tolist()) <= set(lake.starts)


def test_the_oracle_is_told_of_changes_to_smaller_and_larger_lakes():
    larger = MapDistribution(6, 7).sample(len(MAPS), 0)
    for first, then in ((MAPS, larger), (larger, MAPS)):
        records = rollout(OraclePolicy(), first, [1] * 4, changes={2: then})
        np.testing.assert_array_equal(records.steps, records.optimal_steps)
        assert records.success.all()
        assert all(records.tiles[i, 2, 0] in lake.starts for i, lake in enumerate(then))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: MAPS}, "changes' episode=0: pass a whole number from 1 to 2"),
        ({3: MAPS}, "changes' episode=3"),
        ({1: MAPS[:3]}, r"changes\[1\] holds 3 games for 12 maps"),
        ({1: ["SFG"] * 12}, r"changes\[1\] holds 'SFG'"),
    ],
)
def test_bad_changes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        rollout(RandomPolicy(), MAPS, [1] * 3, changes=changes)


# Episodes shown before play

SHOWN = Episode((2, 1, 0), (0, 0), "hole"), Episode((1, 2), (2,), "goal")


def test_shown_episodes_are_told_before_play_and_not_recorded():
    policy = Scripted(2)
    records = rollout(policy, [LakeMap(("SFG",))], [1], shown=[SHOWN])
    told = [tuple(int(column[0]) for column in step) for step in policy.told]
    assert told == [
        (RESET, 2, RUNNING), (0, 1, RUNNING), (0, 0, HOLE), (RESET, 1, RUNNING), (2, 2, GOAL),
        (RESET, 0, RUNNING), (2, 1, RUNNING),
    ]  # fmt: skip
    assert records.episodes(0) == [Episode((0, 1, 2), (2, 2), "goal")]


def test_histories_with_unequal_demonstrations_are_played_as_alone():
    """Some are told longer than others, while those already play."""
    own = rollout(OraclePolicy(), MAPS, [1, 1])
    shown = [own.episodes(i)[: i % 3] for i in range(len(MAPS))]
    for policy in (TabularPolicy(1.0), RMaxPolicy()):
        together = rollout(policy, MAPS, [1, 0.7, 1], 2, shown=shown)
        split = rollout(policy, MAPS, [1, 0.7, 1], 2, shown=shown, batch_maps=1)
        np.testing.assert_array_equal(together.actions, split.actions)
        plain = rollout(policy, MAPS, [1, 0.7, 1], 2)
        np.testing.assert_array_equal(together.tiles[:, :, 0], plain.tiles[:, :, 0])  # the same starts
        np.testing.assert_array_equal(together.actions[::3], plain.actions[::3])  # nothing was shown there
        assert (together.actions != plain.actions).any()


def test_who_was_shown_the_way_goes_it():
    records = rollout(OraclePolicy(), MAPS, [1])
    first = rollout(RMaxPolicy(), MAPS, [1], shown=[records.episodes(i) for i in range(len(MAPS))])
    same_start = first.tiles[:, 0, 0] == records.tiles[:, 0, 0]
    assert same_start.all() and first.success.all() and (first.steps == first.optimal_steps).all()


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ([SHOWN] * 3, "shown holds 3 histories for 1 maps"),
        ([[Episode((0, 1), (2,))]], r"shown\[0\] holds .*finished episodes"),
        ([[Episode((0, None), (2,), "goal")]], "all their tiles"),
        ([[Episode((0, 3), (2,), "goal")]], "numbers below 3"),
    ],
)
def test_bad_demonstrations_are_named(shown, message):
    with pytest.raises(ValueError, match=message):
        rollout(RandomPolicy(), [LakeMap(("SFG",))], [1], shown=shown)
