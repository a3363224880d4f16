"""What holds for every player: each history has its own luck, and play begins with ``start``."""

from types import SimpleNamespace

import numpy as np
import pytest

from icrl_utils.evaluation.experiments import baselines
from icrl_utils.history.episodes import GOAL, HOLE, RESET, RUNNING
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.games import GAMES, RelabelledLake
from icrl_utils.lake.held_out import development_maps
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, LakeMap
from icrl_utils.llama.agent import load_agent
from icrl_utils.play.baselines import RMaxPolicy
from icrl_utils.play.memoryless import MemorylessTablePolicy
from icrl_utils.play.policy import Dice, Step
from icrl_utils.play.rollout import rollout

MAPS = development_maps("in_distribution", 8)
SCHEDULE = [0.5, 1, 0.7, 1]
TABLE = MemorylessTablePolicy(np.random.default_rng(3).normal(size=(64, 4)))
BASELINES = [*baselines(PAPER_IN_DISTRIBUTION), TABLE]
LEARNERS = [policy for policy in BASELINES if policy.name in ("random", "tabular Q", "optimistic tabular Q", "R-max")]
NO_LAKES = [law.sample(1, 3)[0] for law in GAMES.values()]  # the control is a lake


@pytest.fixture(params=[*BASELINES, "agent", "memory-less"], ids=lambda p: getattr(p, "name", p))
def player(request):
    """Every player of the experiments, the trained agents (which draw their moves, too) included."""
    if isinstance(request.param, str):
        return load_agent("assets/adapters/dqn", memory=request.param == "agent")
    return request.param


@pytest.mark.slow
def test_a_lake_alone_is_played_as_among_others(player):
    among_all = rollout(player, MAPS, SCHEDULE, seed=5)
    for batch_maps in (1, 3):
        in_parts = rollout(player, MAPS, SCHEDULE, seed=5, batch_maps=batch_maps)
        np.testing.assert_array_equal(in_parts.tiles, among_all.tiles)
        np.testing.assert_array_equal(in_parts.actions, among_all.actions)
    first_alone = rollout(player, MAPS[:1], SCHEDULE, seed=5)
    np.testing.assert_array_equal(first_alone.actions, among_all.actions[:1])
    # Other company, and lakes of another size: more padding, and other histories that end earlier or later.
    others = [MAPS[0], *development_maps("in_distribution", 40)[30:]]
    np.testing.assert_array_equal(rollout(player, others, SCHEDULE, seed=5).actions[0], among_all.actions[0])


def test_every_player_plays_every_game(player):
    """All laws side by side; posterior sampling knows the law of lakes, so it plays lakes only."""
    games = MAPS[:2] if player.name == "posterior sampling" else NO_LAKES
    among_all = rollout(player, games, [1, 0.5, 1], seed=5, step_limit=20)
    in_parts = rollout(player, games, [1, 0.5, 1], seed=5, step_limit=20, batch_maps=1)
    np.testing.assert_array_equal(in_parts.actions, among_all.actions)
    np.testing.assert_array_equal(in_parts.tiles, among_all.tiles)
    assert (among_all.outcome > 0).all() and (among_all.optimal_steps > 0).all()
    for i, game in enumerate(games):
        episodes = among_all.episodes(i)
        HistoryFormat("compact").render(episodes)  # the compact text has words for it
        for episode in episodes:
            kind = {"goal": "G", "hole": "H"}.get(episode.outcome)
            assert kind is None or game.letters[episode.tiles[-1]] == kind
            for tile, action, after in zip(episode.tiles, episode.actions, episode.tiles[1:], strict=False):
                assert after in game.next_tile[tile, game.slip[action] > 0]


class Blind:
    """Shows a player nothing of the games but their number and sizes."""

    def __init__(self, player):
        self.player, self.name, self.act, self.keep = player, player.name, player.act, player.keep

    def start(self, maps, rngs):
        self.player.start([SimpleNamespace(n_tiles=game.n_tiles) for game in maps], rngs)


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda policy: policy.name)
def test_learners_look_at_no_game(learner):
    seen, blind = (rollout(player, NO_LAKES, [1] * 6, step_limit=30) for player in (learner, Blind(learner)))
    np.testing.assert_array_equal(seen.actions, blind.actions)


@pytest.mark.parametrize("learner", [*LEARNERS, BASELINES[-2]], ids=lambda policy: policy.name)
def test_baselines_know_no_geometry(learner):
    """Tile numbers are mere names to them: on a renumbered lake they make the very same moves."""
    rng = np.random.default_rng(0)
    renumbered = [RelabelledLake(lake, rng.permutation(lake.n_tiles)) for lake in MAPS]
    lakes, names = (rollout(learner, games, [1, 0.6, 1, 1, 1, 1], seed=2) for games in (MAPS, renumbered))
    np.testing.assert_array_equal(lakes.actions, names.actions)
    np.testing.assert_array_equal(lakes.outcome, names.outcome)


def test_r_max_believes_what_it_saw_last():
    """A move that was right once and deadly since is avoided, and the other way round."""
    player = RMaxPolicy()
    player.start([SimpleNamespace(n_tiles=3)], [np.random.default_rng(0)])

    def told(*steps):
        for step in steps:
            (chosen,) = player.act(Step(*(np.array([value]) for value in step)))
        return chosen

    assert told((RESET, 0, RUNNING), (0, 1, GOAL), (RESET, 0, RUNNING)) == 0
    assert told((0, 2, HOLE), (RESET, 0, RUNNING)) != 0
    assert told((0, 1, GOAL), (RESET, 0, RUNNING)) == 0


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda policy: policy.name)
def test_equal_lakes_have_their_own_luck(baseline):
    """Twenty times one lake with two equally short ways: nobody does the same on all of them."""
    played = rollout(baseline, [LakeMap(("SFF", "FFF", "FFG"))] * 20, [1], seed=5)
    assert len(np.unique(played.actions[:, 0], axis=0)) > 2


@pytest.mark.parametrize("name", [policy.name for policy in BASELINES])
def test_playing_before_the_start_is_named(name):
    unused = MemorylessTablePolicy(TABLE.logits)
    fresh = {policy.name: policy for policy in [*baselines(PAPER_IN_DISTRIBUTION), unused]}[name]
    with pytest.raises(RuntimeError, match=rf"policy '{name}': act\(\) before start\(\): call start"):
        fresh.act(Step(np.array([RESET]), np.array([0]), np.array([RUNNING], np.uint8)))


def test_an_agent_that_plays_before_the_start_is_named():
    with pytest.raises(RuntimeError, match=r"policy 'agent': act\(\) before start\(\)"):
        load_agent("assets/adapters/dqn").act(Step(np.array([RESET]), np.array([0]), np.array([RUNNING], np.uint8)))


def test_dice_of_a_row_depend_on_its_generator_alone():
    def dice(rows):
        return Dice([np.random.default_rng([7, row]) for row in rows], 3)

    together, alone = dice(range(5)), dice([2])
    for step in range(200):
        if step == 70:
            together.keep(np.array([0, 2, 4]))
        row = 2 if step < 70 else 1
        numbers = together()
        assert numbers.shape == (5 if step < 70 else 3, 3) and (numbers >= 0).all() and (numbers < 1).all()
        np.testing.assert_array_equal(numbers[row], alone()[0])


def test_dice_never_show_a_number_twice():
    dice = Dice([np.random.default_rng(0)], 4)
    assert len(np.unique([dice() for _ in range(300)])) == 1200
