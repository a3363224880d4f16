"""Games that are no lakes: every law on cases made by hand, and what holds for all games."""

import dataclasses
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_utils.history.compact import COMPACT_TILES
from icrl_utils.lake import games
from icrl_utils.lake.env import FrozenLakeEnv, FrozenLakeVectorEnv
from icrl_utils.lake.games import (
    GAMES,
    Bandits,
    HeldOutLakes,
    KeyAndDoor,
    RandomGraphs,
    RelabelledLake,
    RelabelledLakes,
    Rivers,
    SlipperyLake,
    TableGame,
    bandit,
    key_and_door,
    river,
)
from icrl_utils.lake.held_out import held_out_maps, reject_held_out, training_maps
from icrl_utils.lake.maps import (
    FIRM,
    GOAL_TILE,
    HOLE_TILE,
    ICE,
    PAPER_IN_DISTRIBUTION,
    SLIPPERY,
    TRAINING_MAPS,
    LakeMap,
    LakeTables,
)
from icrl_utils.play.baselines import OraclePolicy
from icrl_utils.play.collect import RANDOM_PLAY, collect
from icrl_utils.play.rollout import rollout

LEFT, DOWN, RIGHT, UP = range(4)
LAKE = LakeMap(("SFG", "FFF"))
names = st.sampled_from(sorted(GAMES))
seeds = st.integers(0, 2**63)
few = settings(max_examples=25)


def walked(game, start):
    """Moves to the nearest goal that any turn of luck allows, by a search written independently of the package."""
    queue, seen = deque([(start, 0)]), set()
    while queue:
        tile, moves = queue.popleft()
        if tile in game.goals:
            return moves
        if tile in seen or tile in game.holes:
            continue
        seen.add(tile)
        queue.extend((int(after), moves + 1) for after in game.next_tile[tile])
    return -1


# What holds for every game


@few
@given(names, seeds)
def test_games_are_tables_that_hang_together(name, seed):
    (game,) = GAMES[name].sample(1, seed)
    n = game.n_tiles
    assert n == len(game.letters) <= COMPACT_TILES and set(game.letters) <= set("SFHG")
    assert game.next_tile.shape == (n, 4) and game.next_tile.dtype == np.int16
    assert game.next_tile.min() >= 0 and game.next_tile.max() < n
    assert game.kind.tolist() == [{"G": GOAL_TILE, "H": HOLE_TILE}.get(letter, ICE) for letter in game.letters]
    for tile in (*game.goals, *game.holes):
        assert (game.next_tile[tile] == tile).all()
    assert sorted(game.starts) == [tile for tile, letter in enumerate(game.letters) if letter == "S"] != []
    assert game.slip.shape == (4, 4) and np.allclose(game.slip.sum(axis=1), 1)
    assert (game.slip == FIRM).all() == (name not in ("bandits", "slippery lakes"))


@few
@given(names, seeds)
def test_games_are_values(name, seed):
    law = GAMES[name]
    three, again, four = law.sample(3, seed), law.sample(3, seed), law.sample(4, seed)
    assert list(three) == list(again) == list(four[:3]) and list(map(hash, three)) == list(map(hash, again))
    assert len({game.id for game in four}) == len(set(four))
    for array in (three[0].next_tile, three[0].kind, three[0].slip, three[0].distances):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    field = dataclasses.fields(three[0])[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(three[0], field, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        law.any_field = 0
    assert hash(law) == hash(dataclasses.replace(law))


@few
@given(names, seeds)
def test_distances_and_values_are_exact(name, seed):
    (game,) = GAMES[name].sample(1, seed)
    assert game.distances.tolist() == [-1 if tile in game.holes else walked(game, tile) for tile in range(game.n_tiles)]
    assert min(map(game.optimal_steps, game.starts)) >= (1 if name == "bandits" else 3)
    values, chance = game.optimal_values(0.9), game.transition_probabilities()
    goes_on = (game.kind == ICE)[:, None]
    bellman = goes_on * (chance @ ((game.kind == GOAL_TILE) + 0.9 * values.max(axis=1)))
    np.testing.assert_allclose(values, bellman, atol=1e-12)
    if (game.slip == FIRM).all():
        away = game.distances.astype(float)
        np.testing.assert_allclose(values.max(axis=1), np.where(away > 0, 0.9 ** (away - 1), 0), atol=1e-12)


@few
@given(seeds, st.integers(0, 2**31))
def test_games_of_all_laws_are_played_together(seed, luck):
    """Each moves as its own table says, whatever stands beside it."""
    mixed = [law.sample(1, seed)[0] for law in GAMES.values()]
    tables = LakeTables(mixed)
    env, rng = FrozenLakeVectorEnv(mixed, step_limit=15), np.random.default_rng(luck)
    tile, _ = env.reset(seed=luck)
    over = np.zeros(len(mixed), bool)
    for i, game in enumerate(mixed):
        n = game.n_tiles
        assert (tables.next_tile[i, :n] == game.next_tile).all() and (tables.slip[i] == game.slip).all()
        assert tuple(tables.starts[i, : tables.n_starts[i]]) == game.starts
        assert (tables.distances[i, :n] == game.distances).all() and (tables.distances[i, n:] == -1).all()
        assert tile[i] in game.starts
    for _ in range(30):
        action = rng.integers(4, size=len(mixed))
        new, reward, terminated, truncated, _ = env.step(action)
        for i, game in enumerate(mixed):
            if over[i]:
                assert new[i] in game.starts
                continue
            possible = game.next_tile[tile[i], game.slip[action[i]] > 0]
            assert new[i] in possible and (reward[i] == 1) == (new[i] in game.goals)
            assert terminated[i] == (new[i] in game.goals + game.holes)
        tile, over = new, terminated | truncated


@pytest.mark.parametrize("name", GAMES)
def test_two_hundred_games_of_each_law_can_be_drawn(name):
    drawn = GAMES[name].sample(200, 1)
    assert len(drawn) == 200 and len(set(drawn)) > 190
    assert list(GAMES[name].sample(200, 2)) != list(drawn)


# The same lakes in other words


def test_a_relabelled_lake_by_hand():
    """Tile t is called t + 1 (the last one 0), and every word means the next direction."""
    game = RelabelledLake(LAKE, (1, 2, 3, 4, 5, 0), (1, 2, 3, 0))
    assert game.letters == "FSFGFF" and game.starts == (1,) and game.goals == (3,)
    left, down, right, up = 1, 2, 3, 0  # the words for it
    assert [int(game.next_tile[1, word]) for word in (left, down, right, up)] == [1, 4, 2, 1]
    assert int(game.next_tile[2, right]) == 3 and int(game.next_tile[0, up]) == 3
    assert game.distances.tolist() == [1, 2, 1, 0, 3, 2]


@pytest.mark.parametrize("words", [False, True])
def test_relabelled_lakes_are_isomorphic(words):
    """Renamed back they are the lakes, and the oracle does as well on them, episode by episode."""
    lakes, told = HeldOutLakes().sample(60, 5), RelabelledLakes(words=words).sample(60, 5)
    for lake, game in zip(lakes, told, strict=True):
        numbers, renamed = np.array(game.numbers), np.array(game.words)
        assert game.lake == lake and (words or game.words == (0, 1, 2, 3))
        assert (numbers[lake.next_tile] == game.next_tile[numbers][:, renamed]).all()
        assert (lake.distances == game.distances[numbers]).all()
        assert np.allclose(lake.optimal_values(), game.optimal_values()[numbers][:, renamed])
    played, same = (rollout(OraclePolicy(), games, [1, 0.7, 1, 1], seed=3) for games in (lakes, told))
    for name in ("optimal_steps", "steps", "outcome"):
        np.testing.assert_array_equal(getattr(played, name)[:, 0], getattr(same, name)[:, 0])
        np.testing.assert_array_equal(getattr(played, name)[:, 2:], getattr(same, name)[:, 2:])
    assert sum(game.numbers == tuple(range(game.n_tiles)) for game in told) == 0
    assert len({game.words for game in told}) > (15 if words else 0)


def test_both_ways_of_relabelling_number_the_tiles_alike():
    plain, with_words = (RelabelledLakes(words=words).sample(10, 8) for words in (False, True))
    assert [game.numbers for game in plain] == [game.numbers for game in with_words]


# Key and door


def test_the_door_opens_only_with_the_key():
    game = key_and_door(LAKE, key=4)
    assert game.letters == "SFFFFF" + "FFGFFF" and game.n_tiles == 12
    assert game.next_tile[1, RIGHT] == 1 and game.next_tile[5, UP] == 5  # closed from both sides
    assert game.next_tile[1, DOWN] == game.next_tile[3, RIGHT] == game.next_tile[5, LEFT] == 6 + 4  # the key: upstairs
    assert game.next_tile[7, RIGHT] == game.next_tile[11, UP] == 8 and game.goals == (8,)  # open
    assert game.next_tile[10, LEFT] == 9 and game.next_tile[10, DOWN] == 10  # upstairs it is a tile like any other
    assert game.optimal_steps(0) == 4 and walked(game, 0) == 4
    downstairs = {int(after) for tile in range(6) if tile not in (2, 4) for after in game.next_tile[tile]}
    assert 2 not in downstairs and {tile for tile in downstairs if tile >= 6} == {10}


def test_holes_are_deadly_on_both_floors():
    game = key_and_door(LakeMap(("SFG", "FHF", "FFF")), key=7)
    assert game.holes == (4, 13) and game.next_tile[3, RIGHT] == 4 and game.next_tile[12, RIGHT] == 13


def test_key_and_door_takes_at_least_as_long_as_the_lake():
    for game in KeyAndDoor().sample(50, 3):
        n = game.n_tiles // 2
        assert min(map(game.optimal_steps, game.starts)) >= PAPER_IN_DISTRIBUTION.min_hops
        assert max(game.starts) < n <= min(game.goals)
        keys = {int(after) for after in game.next_tile[:n].ravel() if after >= n}
        assert len(keys) == 1 and all(game.next_tile[tile].min() >= n for tile in range(n, 2 * n))  # no way down


# Random graphs


def test_random_graphs_have_the_stated_numbers():
    drawn = RandomGraphs().sample(300, 4)
    for game in drawn:
        assert (game.n_tiles, len(game.starts), len(game.goals), len(game.holes)) == (12, 1, 1, 3)
        assert walked(game, game.starts[0]) >= 3
    assert min(game.optimal_steps(game.starts[0]) for game in drawn) == 3
    moves = [(game, tile, int(after)) for game in drawn for tile in range(12) for after in game.next_tile[tile]]
    moves = [(game, tile, after) for game, tile, after in moves if game.kind[tile] == ICE]
    back = [tile in game.next_tile[after] for game, tile, after in moves if game.kind[after] == ICE]
    assert np.mean(back) < 0.5  # about 1 - (11 / 12)^4 = .29, and moves that stay
    led_to = np.bincount([after for *_, after in moves], minlength=12) / len(moves)
    assert np.abs(led_to - 1 / 12).max() < 0.015  # no tile is special


# Rivers


def test_the_river_drifts():
    game = river(LakeMap(("SFFFH", "FFFFG")))
    assert game.next_tile[0].tolist() == [1, 6, 2, 1]  # left: a bank, then downstream; down at a slant; right: two on
    assert game.next_tile[6].tolist() == [6, 7, 8, 2]  # left: keeps its place
    assert game.next_tile[8].tolist() == [8, 9, 9, 4]  # right: the step itself lands; up: over the fall
    assert game.optimal_steps(0) == 3
    rock = river(LakeMap(("SFFH", "FHFG")))
    assert rock.next_tile[6].tolist() == [5, 7, 7, 3]  # against the current onto a rock: the step itself ends it
    assert rock.next_tile[1, DOWN] == 5


def test_rivers_lead_one_way():
    for game in Rivers().sample(60, 2):
        width = next(w for w in range(5, 9) if game.letters[w - 1] in "HG" and game.n_tiles % w == 0
                     and all(game.letters[k] in "HG" for k in range(w - 1, game.n_tiles, w)))  # fmt: skip
        column = np.arange(game.n_tiles) % width
        after = game.next_tile.astype(int)
        goes_on = (game.kind[:, None] == ICE) & (game.kind[after] == ICE)
        assert (column[after] >= column[:, None])[goes_on].all()  # never upstream
        assert (column[after] > column[:, None])[goes_on][:, None].mean() > 0.5
        assert column[game.starts[0]] == 0 and column[game.goals[0]] == width - 1 and len(game.goals) == 1
        assert walked(game, game.starts[0]) >= 4


# Games of chance


def test_a_bandits_best_arm():
    game = bandit((0.2, 0.9, 0.5, 0.0))
    np.testing.assert_allclose(game.optimal_values()[0], [0.2, 0.9, 0.5, 0.0])
    assert LakeTables([game]).optimal[0, 0].tolist() == [False, True, False, False]
    assert rollout(OraclePolicy(), [game], [1] * 20).actions[0, :, 0].tolist() == [1] * 20
    assert game.optimal_steps(0) == 1


def test_arms_pay_as_often_as_they_say():
    pays = np.array([0.2, 0.9, 0.5, 0.0])
    env = FrozenLakeVectorEnv([bandit(tuple(pays))] * 4000)
    env.reset(seed=0)
    action = np.arange(4000) % 4
    tile, reward, terminated, *_ = env.step(action)
    won = np.array([reward[action == arm].mean() for arm in range(4)])
    assert (np.abs(won - pays) <= 4 * np.sqrt(pays * (1 - pays) / 1000)).all()
    assert terminated.all() and ((tile == 1) == (reward == 1)).all()


def test_slippery_lakes_slip_as_the_environments_do():
    lakes = HeldOutLakes().sample(20, 0)
    slippery = [SlipperyLake(lake.rows) for lake in lakes]
    told, asked = FrozenLakeVectorEnv(slippery), FrozenLakeVectorEnv(lakes, slippery=True)
    singles = [FrozenLakeEnv(game) for game in slippery]
    tile = told.reset(seed=4)[0]
    assert (tile == asked.reset(seed=4)[0]).all()
    assert tile.tolist() == [single.reset(seed=4 + i)[0] for i, single in enumerate(singles)]
    rng, over = np.random.default_rng(0), np.zeros(20, bool)
    for _ in range(100):
        action = rng.integers(4, size=20)
        tile, *rest = told.step(action)
        assert (tile == asked.step(action)[0]).all()
        alone = [one.reset()[0] if o else one.step(a)[0] for one, o, a in zip(singles, over, action, strict=True)]
        assert tile.tolist() == alone
        over = rest[1] | rest[2]
    game, lake = slippery[0], lakes[0]
    assert game != lake and game.id != lake.id and game.lake == lake
    np.testing.assert_allclose(game.optimal_values(), lake.optimal_values(slippery=True))


def test_on_slippery_ice_the_oracle_knows_the_slip():
    """Beside a hole the shortest way is not the best: it pushes against the wall and waits for a slip."""
    game = SlipperyLake(("SFFF", "FHFH", "FFFH", "HFFG"))
    best = game.optimal_values(0.99)[0].argmax()
    tables = LakeTables([game, LakeMap(game.rows)])
    assert best == LEFT and tables.optimal[0, 0].tolist() == [True, False, False, False]
    assert tables.optimal[1, 0].tolist() == [False, True, True, False]
    success = rollout(OraclePolicy(), [game] * 300, [1], step_limit=400).success.mean()
    assert success == pytest.approx(0.82, abs=0.08)  # the known optimum of gymnasium's 4 x 4 map


# Nothing that is held out is trained on


def test_the_control_lakes_are_held_out():
    lakes = HeldOutLakes().sample(500, 7)
    assert set(lakes) == set(held_out_maps("in_distribution")) and lakes != held_out_maps("in_distribution")
    assert HeldOutLakes().law == PAPER_IN_DISTRIBUTION
    assert not set(lakes) & set(training_maps(TRAINING_MAPS, 3000, 0))
    with pytest.raises(ValueError, match="n=501: pass a whole number from 0 to 500"):
        HeldOutLakes().sample(501, 0)


@pytest.mark.parametrize("name", ["lakes", "numbers permuted", "numbers and words permuted", "slippery lakes"])
def test_held_out_lakes_are_refused_in_whatever_words(name):
    (game,) = GAMES[name].sample(1, 1307)
    with pytest.raises(ValueError, match="is a held-out map"):
        reject_held_out([game])
    with pytest.raises(ValueError, match="is a held-out map"):
        collect([game], RANDOM_PLAY, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["key and door", "random graphs", "rivers", "bandits"])
def test_other_games_may_be_trained_on(name):
    """They are no lakes, so nothing of them is held out: an agent may be trained on graphs and play lakes."""
    drawn = GAMES[name].sample(5, 0)
    assert all(game.lake is None for game in drawn)
    play = collect(list(drawn), RANDOM_PLAY, np.random.default_rng(0), episodes=(2, 3))
    assert len(play.episodes_per_map) == 5


# What makes no game


LOOP = ((1, 0, 0, 0), (1,) * 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TableGame("SX", LOOP), r"tiles='SX' has unknown letters \['X'\]: use only"),
        (lambda: TableGame("SF", LOOP), "tiles='SF' has no goal: put at least one G"),
        (lambda: TableGame("FG", LOOP), "tiles='FG' has no start"),
        (lambda: TableGame(("S", "G"), LOOP), r"tiles=\('S', 'G'\): pass one string"),
        (lambda: TableGame("SG", ((1, 0, 0, 0),)), "pass for each of 2 tiles four tile numbers from 0 to 1"),
        (lambda: TableGame("SG", ((1, 0, 0), (1,) * 4)), "pass for each of 2 tiles four tile numbers"),
        (lambda: TableGame("SG", ((2, 0, 0, 0), (1,) * 4)), "four tile numbers from 0 to 1"),
        (lambda: TableGame("SG", ((0.5, 0, 0, 0), (1,) * 4)), "moves=.*: pass whole numbers"),
        (lambda: TableGame("SG", ((1, 0, 0, 0), (1, 1, 1, 0))), r"moves\[1\]=.*: play ends there"),
        (lambda: TableGame("SG", LOOP, ((1, 0, 0, 0),)), "chances=.*: pass four times four probabilities"),
        (lambda: TableGame("SG", LOOP, ((0.5, 0, 0, 0),) * 4), "whose sum is 1"),
        (lambda: RelabelledLake(LAKE, (0, 1, 2)), r"numbers=\(0, 1, 2\): pass each of 0 to 5 once"),
        (lambda: RelabelledLake(LAKE, range(6), (0, 1, 2, 2)), "words=.*: pass each of 0 to 3 once"),
        (lambda: RelabelledLake("SFG", (0, 1, 2)), "original='SFG': pass a LakeMap"),
        (lambda: key_and_door(LAKE, 2), "key=2 lies on 'G': pass a frozen tile"),
        (lambda: key_and_door(LAKE, 6), "key=6: pass a whole number from 0 to 5"),
        (lambda: bandit((0.1, 0.2, 0.3)), "pays=.*: pass four probabilities"),
        (lambda: bandit((0.1, 0.2, 0.3, 1.4)), "pays=1.4"),
        (lambda: RandomGraphs(holes=11), "holes=11"),
        (lambda: RandomGraphs(min_hops=0), "min_hops=0"),
        (lambda: Rivers(rows=(3, 2)), r"rows\[1\]=2"),
        (lambda: Rivers(rock_prob=2), "rock_prob=2"),
        (lambda: Bandits().sample(-1, 0), "n=-1"),
        (lambda: KeyAndDoor().sample(1, -1), "seed=-1"),
        (lambda: HeldOutLakes("test").sample(1, 0), "name='test': unknown list of maps"),
    ],
)
def test_what_makes_no_game_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_impossible_law_ends_with_a_message(monkeypatch):
    monkeypatch.setattr(games, "_MOST_REJECTED", 30)
    with pytest.raises(ValueError, match=r"RandomGraphs\(.*min_hops=11\) accepted none of 30 games in a row"):
        RandomGraphs(min_hops=11).sample(1, 0)


def test_slip_is_a_probability_for_every_action():
    np.testing.assert_allclose(SLIPPERY.sum(axis=1), 1)
    assert (SLIPPERY > 0).sum(axis=1).tolist() == [3] * 4 and (np.diag(SLIPPERY) > 0).all()
