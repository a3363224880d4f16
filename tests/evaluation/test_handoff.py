"""Hand-off: who decides when, what both are told, and the matrix on a hand-made table."""

import numpy as np
import pytest

from icrl_utils.evaluation.handoff import (
    EXPLORED,
    LAKES_OF_SIZE,
    PLAYED,
    HandOff,
    describe_hand_off,
    differences,
    hand_off,
    lakes_of_every_size,
    matrix,
)
from icrl_utils.evaluation.tables import table_of
from icrl_utils.history.episodes import RESET
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.play.rollout import rollout

MAPS = PAPER_IN_DISTRIBUTION.sample(5, 0)


class Always:
    """Makes one move for ever, and notes what it is told about the history that is left longest."""

    def __init__(self, action):
        self.action, self.name = action, f"always {action}"

    def start(self, maps, rngs):
        self.told, self.n = [], len(maps)

    def act(self, step):
        self.told.append((int(step.action[-1]), int(step.tile[-1]), int(step.outcome[-1])))
        return np.full(len(step.tile), self.action)

    def keep(self, rows):
        pass


def agent_without_network():
    policy = TabularPolicy(0.5)
    policy.name, policy.training_seed = "agent", 3
    return policy


def test_both_are_told_everything_and_one_decides():
    first, second = Always(1), Always(2)
    records = rollout(HandOff(first, second, 2), MAPS[:1], "greedy", episodes=4, step_limit=7)
    for episode in range(4):
        steps = records.steps[0, episode]
        assert set(records.actions[0, episode, :steps].tolist()) == {1 if episode < 2 else 2}
    assert sum(action == RESET for action, _, _ in second.told) == 4
    begun = [i for i, (action, _, _) in enumerate(second.told) if action == RESET]
    assert first.told == second.told[: begun[2]]  # afterwards the explorer need not listen any more


def test_an_explorer_does_the_same_whoever_plays_next():
    parts = []
    for player in (RMaxPolicy(), TabularPolicy(1.0), RandomPolicy()):
        records = rollout(HandOff(RandomPolicy(), player, 3), MAPS, "greedy", seed=4, episodes=5)
        parts.append(records)
    for other in parts[1:]:
        np.testing.assert_array_equal(parts[0].actions[:, :3], other.actions[:, :3])
        assert (parts[0].actions[:, 3:] != other.actions[:, 3:]).any()


def test_a_player_that_explored_itself_just_goes_on():
    class Counting(RMaxPolicy):
        calls = 0

        def act(self, step):
            self.calls += 1
            return super().act(step)

    policy = Counting()
    records = rollout(HandOff(policy, policy, 2), MAPS[:1], "greedy", seed=1, episodes=4)
    assert policy.calls == records.steps.sum() + 4 - 1  # one answer a step, none after the last


def test_what_the_player_knows_is_what_the_explorer_found():
    """R-max goes straight to the goal wherever the explorer has been on a shortest way."""
    records = rollout(HandOff(OraclePolicy(), RMaxPolicy(), 6), [m for m in MAPS if len(m.starts) == 1], "greedy",
                      seed=0, episodes=9)  # fmt: skip
    assert records.success[:, 6:].all()
    np.testing.assert_array_equal(records.steps[:, 6:], records.optimal_steps[:, 6:])


def test_the_experiment_has_every_pair_once_and_keeps_the_players_episodes():
    table = hand_off([agent_without_network(), RandomPolicy()], {"3 to 5": MAPS}, seed=2)
    keys = list(zip(*(table[name].tolist() for name in ("explorer", "player", "map", "episode")), strict=True))
    assert len(set(keys)) == len(keys) == 5 * 3 * 5 * PLAYED
    assert set(table["episode"]) == set(range(EXPLORED, EXPLORED + PLAYED))
    with_agent = (table["explorer"] == "agent") | (table["player"] == "agent")
    assert set(table["training_seed"][with_agent]) == {3} and set(table["training_seed"][~with_agent]) == {-1}
    assert "lakes 3 to 5; explored by, played by" in describe_hand_off(table)
    with pytest.raises(ValueError, match="policies holds no agent"):
        hand_off([RandomPolicy()], {"3 to 5": MAPS})


def test_the_lakes_were_fixed_before_the_first_look():
    drawn = lakes_of_every_size()
    assert list(drawn) == list(LAKES_OF_SIZE) and {len(lakes) for lakes in drawn.values()} == {200}
    assert lakes_of_every_size(7)["6 and 7"] == drawn["6 and 7"][:7]


def made_by_hand():
    """Two lakes, one episode: success of every pair, as [lake 0, lake 1]; two training seeds of the agent."""
    cells = {
        ("R-max", "R-max", -1): [1, 1],
        ("R-max", "agent", 0): [1, 0], ("R-max", "agent", 1): [0, 0],
        ("agent", "R-max", 0): [1, 1], ("agent", "R-max", 1): [1, 0],
        ("agent", "agent", 0): [0, 0], ("agent", "agent", 1): [0, 1],
    }  # fmt: skip
    return table_of(
        [
            {"sizes": "3 to 5", "explorer": explorer, "player": player, "training_seed": seed,
             "map": np.arange(2), "success": np.array(success)}
            for (explorer, player, seed), success in cells.items()
        ]
    )  # fmt: skip


def test_the_matrix_by_hand():
    cells = matrix(made_by_hand())["3 to 5"]
    found = {pair: float(value.estimate) for pair, value in cells.items()}
    assert found == {("R-max", "R-max"): 1.0, ("R-max", "agent"): 0.25, ("agent", "R-max"): 0.75,
                     ("agent", "agent"): 0.25}  # fmt: skip
    low, high = cells["R-max", "agent"][1:]
    assert low == 0 and high == 0.5  # on lake 1 it never succeeds, on lake 0 half of the time


def test_differences_are_paired_by_hand():
    found = {what: value for _, what, value in differences(made_by_hand())}
    explorer, player = found["explorer: agent minus R-max"], found["player: agent minus R-max"]
    # explorer, by lake: agent (1 + 0) / 2, (.5 + .5) / 2; R-max (1 + .5) / 2, (1 + 0) / 2
    assert explorer.estimate == pytest.approx(((0.5 - 0.75) + (0.5 - 0.5)) / 2)
    assert explorer.low == pytest.approx(-0.25) and explorer.high == pytest.approx(0)
    # player, by lake: agent (.5 + 0) / 2, (0 + .5) / 2; R-max (1 + 1) / 2, (1 + .5) / 2
    assert player.estimate == pytest.approx(((0.25 - 1) + (0.25 - 0.75)) / 2)
