"""Behaviour policies, collecting in bulk, and the slices that the replay buffer cuts."""

import numpy as np
import pytest

from icrl_utils.dqn.replay import ReplayBuffer, SliceSource, make_batch
from icrl_utils.history.compact import COMPACT_TILES, COMPACT_WORDS
from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, OUTCOMES, RESET
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.env import STEP_LIMIT
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import ACTIONS, TRAINING_MAPS, LakeMap, LakeTables, MapDistribution
from icrl_utils.play.collect import RANDOM_PLAY, Behaviour, Play, collect, expert_move

HISTORY = HistoryFormat("compact")
MAPS = MapDistribution(3, 4, min_hops=3).sample(12, 0)


def rng(seed=0):
    return np.random.default_rng(seed)


def split(play: Play):
    """[(map index, tiles, actions, outcome)] of all episodes."""
    tiles = np.split(play.tiles, np.cumsum(play.steps + 1)[:-1])
    actions = np.split(play.actions, np.cumsum(play.steps)[:-1])
    owner = np.repeat(np.arange(len(play.episodes_per_map)), play.episodes_per_map)
    return list(zip(owner, tiles, actions, play.outcome, strict=True))


def words(ids) -> str:
    return " ".join(COMPACT_WORDS[i] for i in ids)


# --------------------------------------------------------------------------------------------------- collecting


def test_every_episode_follows_the_lake_and_ends_as_it_says():
    play = collect(MAPS, Behaviour(), rng(), episodes=(3, 6))
    seen = set()
    for index, tiles, actions, outcome in split(play):
        lake = MAPS[index]
        assert tiles[0] in lake.starts
        for tile, action, after in zip(tiles[:-1], actions, tiles[1:], strict=True):
            assert lake.next_tile[tile, action] == after and tile not in lake.goals + lake.holes
        assert outcome == (GOAL if tiles[-1] in lake.goals else HOLE if tiles[-1] in lake.holes else LIMIT)
        assert (len(actions) == STEP_LIMIT) if outcome == LIMIT else (len(actions) <= STEP_LIMIT)
        seen.add(OUTCOMES[outcome])
    assert {"goal", "hole"} <= seen


def test_a_truncated_episode_has_hundred_steps():
    lake = LakeMap(("SFFFFFFG",))  # up and down lead nowhere: random play seldom arrives
    play = collect([lake] * 8, RANDOM_PLAY, rng(), episodes=(2, 2))
    limits = [len(actions) for _, _, actions, outcome in split(play) if outcome == LIMIT]
    assert limits and set(limits) == {STEP_LIMIT}


def test_number_of_episodes_and_tokens():
    play = collect(MAPS, RANDOM_PLAY, rng(), episodes=(2, 5))
    assert set(play.episodes_per_map) <= {2, 3, 4, 5} and len(set(play.episodes_per_map)) > 1
    assert len(play.tiles) == play.steps.sum() + len(play.steps) and len(play.actions) == play.steps.sum()
    longer = collect(MAPS, RANDOM_PLAY, rng(), episodes=(2, 5), min_tokens=300)
    buffer = ReplayBuffer(longer, HISTORY)
    tokens = np.diff(buffer.bounds[buffer.first_episode])
    assert (tokens >= 300).all() and (longer.episodes_per_map >= play.episodes_per_map).all()
    in_paper_text = collect(MAPS, RANDOM_PLAY, rng(), episodes=(2, 5), min_tokens=300, step_tokens=10)
    sets = np.split(in_paper_text.steps, np.cumsum(in_paper_text.episodes_per_map)[:-1])
    assert all((steps + 1).sum() >= 30 for steps in sets) and len(in_paper_text.tiles) < len(longer.tiles) / 2
    # It goes on only where it must: without the last episode every longer set would have been short.
    last = np.diff(buffer.bounds)[buffer.first_episode[1:] - 1]
    went_on = longer.episodes_per_map > 5
    assert went_on.any() and (tokens - last <= 300)[went_on].all()


def test_collecting_depends_on_the_seed_only():
    first, again, other = (collect(MAPS, Behaviour(), rng(seed), episodes=(2, 4)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.actions[:50], other.actions[:50])


def test_held_out_maps_are_rejected():
    bad = held_out_maps("out_of_distribution")[3]
    with pytest.raises(ValueError, match=rf"maps\[1\]='{bad.id}' is a held-out map"):
        collect([MAPS[0], bad], RANDOM_PLAY, rng())


@pytest.mark.parametrize("maps", [MAPS, [LakeMap(("SFF", "FHF", "FFG"))]])
def test_expert_move_is_on_a_shortest_path_and_ties_are_broken_evenly(maps):
    tables = LakeTables(maps * 200)
    tile = tables.starts[:, 0].astype(int)
    moves = expert_move(tables, tile, rng())
    for row, lake in enumerate(maps * 200):
        assert lake.distances[lake.next_tile[tile[row], moves[row]]] == lake.distances[tile[row]] - 1
    if len(maps) == 1:  # down and right are equally good from the corner
        assert set(moves) == {1, 2} and 60 < (moves == 1).sum() < 140


class AlwaysSkilled(np.random.Generator):
    """Draws the upper end of every range: with the default behaviour, a skill that rises from .5 to 1."""

    def uniform(self, low, high, size):
        return np.full(size, high)


def test_an_expert_of_full_skill_reaches_every_goal_by_the_shortest_way():
    behaviour = Behaviour(habit_share=0.0, expert_share=1.0, low=1.0, high=1.0)
    play = collect(MAPS, behaviour, AlwaysSkilled(np.random.PCG64(0)), episodes=(3, 3))
    for index, tiles, actions, outcome in split(play):
        assert outcome == GOAL and len(actions) == MAPS[index].optimal_steps(int(tiles[0]))


def test_a_full_habit_makes_the_same_move_on_a_tile_all_episode_long_and_another_one_later():
    behaviour = Behaviour(habit_share=1.0, low=1.0, high=1.0)
    play = collect(MAPS, behaviour, AlwaysSkilled(np.random.PCG64(0)), episodes=(20, 20))
    openings = set()  # (first tile, first action) on map 0
    for index, tiles, actions, _ in split(play):
        assert len(set(zip(tiles[:-1], actions, strict=True))) == len(set(tiles[:-1]))
        openings |= {(tiles[0], actions[0])} if index == 0 else set()
    assert len(openings) > len({tile for tile, _ in openings})
    assert (play.outcome == LIMIT).mean() > 0.2  # it walks in circles


def test_skill_rises_within_a_set():
    play = collect(MAPS * 30, Behaviour(habit_share=0.0, expert_share=1.0), rng(), episodes=(20, 20))
    success = (play.outcome == GOAL).reshape(len(MAPS) * 30, 20).mean(0)
    quarters = success.reshape(4, 5).mean(1)
    assert (np.diff(quarters) > 0.02).all()
    random = collect(MAPS * 30, RANDOM_PLAY, rng(), episodes=(20, 20))
    flat = (random.outcome == GOAL).reshape(len(MAPS) * 30, 20).mean(0).reshape(4, 5).mean(1)
    assert np.ptp(flat) < 0.05 and flat.max() < quarters[0]


def test_the_learner_learns_too():
    """With no expert at all the tabular learner makes late episodes better than early ones."""
    play = collect(MAPS * 30, Behaviour(habit_share=0.0), rng(), episodes=(30, 30))
    success = (play.outcome == GOAL).reshape(-1, 30).mean(0)
    assert success[-10:].mean() > success[:5].mean() + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"habit_share": 1.7}, "habit_share=1.7: pass a number from 0 to 1"),
        ({"low": 3, "high": 9}, "low=3"),
        ({"high": 9}, "high=9"),
        ({"expert_share": -0.1}, "expert_share=-0.1"),
        ({"low": float("nan")}, "low=nan"),
        ({"habit_share": 0.6, "expert_share": 0.6}, "habit_share=0.6 and expert_share=0.6 are more than all maps"),
    ],
)
def test_a_behaviour_that_cannot_be_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Behaviour(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: collect(MAPS[0], RANDOM_PLAY, rng()), "maps=LakeMap.* is one lake"),
        (lambda: collect([], RANDOM_PLAY, rng()), r"maps=\[\] is empty"),
        (lambda: collect(MAPS, RANDOM_PLAY, rng(), episodes=(0, 3)), r"episodes\[0\]=0"),
        (lambda: collect(MAPS, RANDOM_PLAY, rng(), episodes=(5, 3)), r"episodes\[1\]=3: .* of at least 5"),
        (lambda: collect(MAPS, RANDOM_PLAY, rng(), min_tokens=-1), "min_tokens=-1"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY, relabel=2), "relabel=2"),
        (lambda: SliceSource([], RANDOM_PLAY), r"maps=\[\] is empty"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY).slices(0, 64, rng()), "n=0"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY).slices(4, 0, rng()), "tokens=0"),
        (lambda: SliceSource(MAPS, RANDOM_PLAY, history=HistoryFormat("paper")), "history has no tokenizer"),
    ],
)
def test_collecting_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------------- slices


def hand_made(outcomes=(GOAL, HOLE, GOAL, HOLE, HOLE, HOLE), sets=1) -> ReplayBuffer:
    """Episode e of set s is ``s right e`` (ended by its outcome): four tokens, recognisable by the tile s + 8 e."""
    n = len(outcomes)
    tiles = np.array([[s + 8 * e, 63] for s in range(sets) for e in range(n)]).ravel()
    steps = np.ones(sets * n, int)
    play = Play(tiles, np.full(sets * n, 2), steps, np.tile(np.array(outcomes, np.uint8), sets), np.full(sets, n))
    return ReplayBuffer(play, HISTORY)


def test_a_slice_as_played_is_the_beginning_of_its_set():
    buffer = hand_made(sets=2)
    assert len(buffer) == 2
    two = buffer.slices(np.array([1, 0]), 10, rng())
    assert two.dtype == np.int64
    assert words(two[0]) == "1 right goal reset 9 right hole reset 17 right"
    assert words(two[1]) == "0 right goal reset 8 right hole reset 16 right"


def test_shuffled_slices_are_permutations_of_whole_episodes():
    buffer = hand_made()
    orders = set()
    for seed in range(40):
        ids = buffer.slices(np.array([0]), 24, rng(seed), order="shuffled")[0].reshape(6, 4)
        assert sorted(ids[:, 0]) == [0, 8, 16, 24, 32, 40]
        for tile, *rest in ids:  # each keeps its own end
            assert words(rest) == f"right {OUTCOMES[(GOAL, HOLE, GOAL, HOLE, HOLE, HOLE)[tile // 8]]} reset"
        orders.add(tuple(ids[:, 0]))
    assert len(orders) > 30


@pytest.mark.parametrize(("quality", "weight"), [("low", 0.2), ("mid", 1.0), ("hi", 5.0)])
def test_quality_weighs_successful_episodes(quality, weight):
    """Two of six episodes succeed: the first one drawn is a success with probability 2 w / (2 w + 4)."""
    buffer, draws = hand_made(), 4000
    first = buffer.slices(np.zeros(draws, int), 4, rng(), order="shuffled", quality=quality)[:, 0]
    share = np.isin(first, [0, 16]).mean()
    expected = 2 * weight / (2 * weight + 4)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)
    counts = np.unique(first, return_counts=True)[1]
    assert len(counts) == 6  # nothing is left out


@pytest.mark.parametrize(
    ("order", "quality"), [("played", "mid"), ("shuffled", "best"), ("as_played", "hi"), ("as_played", "low")]
)
def test_unknown_or_idle_order_and_quality_are_rejected(order, quality):
    with pytest.raises(ValueError, match=f"order='{order}' with quality='{quality}'.*only when they are shuffled"):
        hand_made().slices(np.array([0]), 4, rng(), order, quality)
    with pytest.raises(ValueError, match=f"order='{order}'"):  # before anything is played
        SliceSource(TRAINING_MAPS, RANDOM_PLAY, order, quality)


def test_relabel_is_one_permutation_of_tiles_per_slice():
    buffer = ReplayBuffer(collect(MAPS, Behaviour(), rng(), min_tokens=200), HISTORY)
    sets = np.arange(len(MAPS))
    plain, relabelled = (buffer.slices(sets, 200, rng(), relabel=share) for share in (0.0, 1.0))
    renamed = []
    for before, after in zip(plain, relabelled, strict=True):
        names = dict(zip(before.tolist(), after.tolist(), strict=True))
        assert [names[i] for i in before.tolist()] == after.tolist()  # one name for one tile
        assert len(set(names.values())) == len(names)  # and no name for two
        assert all((a == b) if a >= COMPACT_TILES else (b < COMPACT_TILES) for a, b in names.items())
        renamed.append(tuple(names.items()))
    assert len(set(renamed)) == len(MAPS)  # every slice has its own
    one, two = (make_batch(ids, HISTORY) for ids in (plain, relabelled))
    for name in ("position", "action", "reward", "terminated", "has_target"):  # all but the names of tiles
        assert getattr(one, name).equal(getattr(two, name))
    assert not one.tile.equal(two.tile)


def test_relabel_is_a_share_of_the_slices():
    buffer = hand_made(sets=8)
    sets = np.arange(400) % 8
    changed = (buffer.slices(sets, 8, rng(), relabel=0.25) != buffer.slices(sets, 8, rng())).any(1)
    assert 60 < changed.sum() < 140


@pytest.mark.parametrize("tokens", [4, 6, 24])
def test_slices_have_exactly_as_many_tokens_as_asked(tokens):
    for order in ("as_played", "shuffled"):
        assert hand_made(sets=3).slices(np.arange(3), tokens, rng(), order).shape == (3, tokens)
    assert hand_made(sets=3).crossing_slices(5, tokens, rng()).shape == (5, tokens)


def test_too_short_sets_name_the_remedy():
    with pytest.raises(ValueError, match=r"tokens=26 is longer than set 0 \(24 tokens\); collect with min_tokens=26"):
        hand_made().slices(np.array([0]), 26, rng())
    with pytest.raises(ValueError, match=r"tokens=26 is longer than the whole buffer \(24 tokens\)"):
        hand_made().crossing_slices(1, 26, rng())
    assert hand_made().crossing_slices(2, 24, rng()).tolist() == [hand_made().ids.tolist()] * 2


def test_crossing_slices_cross_map_changes_and_begin_anywhere():
    buffer = hand_made(sets=8)
    ids = buffer.crossing_slices(200, 24, rng())
    owner = np.where(ids[:, ::2] < 63, ids[:, ::2] % 8, -1)  # the set that a tile number belongs to
    maps = [set(row[ids[i, ::2] < 48]) for i, row in enumerate(owner)]
    assert {1, 2} == {len(m) for m in maps}  # 24 tokens are as long as one set: one map, or two
    assert sum(len(m) == 2 for m in maps) > 150
    assert {words(row[:2]).split()[1] for row in ids} == {"right", "reset"}  # in the middle of an episode, too
    assert all(row[0] < COMPACT_TILES or COMPACT_WORDS[row[0]] in ("goal", "hole") for row in ids)
    assert len({tuple(row) for row in ids}) > 50


def test_crossing_slices_shuffle_weigh_and_relabel_each_set_by_itself():
    buffer = hand_made(sets=8)
    text = buffer.crossing_slices(1, 8 * 24, rng(), order="shuffled")[0].reshape(8, 6, 4)
    assert all(set(text[s, :, 0] % 8) == {s} for s in range(8))
    assert any(list(text[s, :, 0]) != sorted(text[s, :, 0]) for s in range(8))
    relabelled = buffer.crossing_slices(1, 8 * 24, rng(), relabel=1.0)[0]
    plain = buffer.ids
    assert (relabelled != plain).any() and np.array_equal(relabelled >= 64, plain >= 64)


# ----------------------------------------------------------------------------------------------- source and batch


@pytest.mark.parametrize("crossing", [False, True])
def test_a_source_is_a_function_of_the_seed(crossing):
    source = SliceSource(TRAINING_MAPS, Behaviour(), relabel=0.5, crossing=crossing)
    first, again, other = (source.slices(6, 64, rng(seed)) for seed in (3, 3, 4))
    assert first.shape == (6, 64) and np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_source_draws_fresh_maps_or_from_a_pool(monkeypatch):
    played = []
    monkeypatch.setattr(
        "icrl_utils.dqn.replay.collect", lambda maps, *a, **k: played.append(maps) or collect(maps, *a, **k)
    )
    SliceSource(TRAINING_MAPS, RANDOM_PLAY).slices(8, 32, rng(1))
    SliceSource(MAPS[:3], RANDOM_PLAY).slices(40, 32, rng(1))
    fresh, pooled = played
    assert len(set(fresh)) == 8 and set(pooled) == set(MAPS[:3]) and len(pooled) == 40


def test_a_pool_with_a_held_out_map_is_rejected_before_any_play():
    with pytest.raises(ValueError, match="is a held-out map"):
        SliceSource([MAPS[0], held_out_maps("in_distribution")[0]], RANDOM_PLAY)


def test_batch_by_hand():
    ids = HISTORY.tokenize("8 right 9 down hole reset 8 left limit reset 0 up goal reset 5 down")[None]
    batch = make_batch(ids, HISTORY)
    valid = slice(0, 5)
    assert batch.ids.tolist() == ids.tolist()
    assert batch.position[0, valid].tolist() == [0, 2, 6, 10, 14]
    assert [ACTIONS[a] for a in batch.action[0, valid]] == ["right", "down", "left", "up", "down"]
    assert batch.reward[0, valid].tolist() == [0, 0, 0, 1, 0]
    assert batch.terminated[0, valid].tolist() == [False, True, False, True, False]
    assert batch.has_target[0, valid].tolist() == [True, True, False, True, False]  # truncated; end of the slice
    assert not batch.has_target[0, 5:].any()
    assert str(batch.reward.dtype) == "torch.float32" and batch.to("cpu").ids.equal(batch.ids)


def test_no_step_is_lost_between_play_and_batch():
    """Every action of a slice that shows its outcome is a decision, in order, and every goal a reward."""
    play = collect(MAPS[:4], Behaviour(), rng(), episodes=(3, 3))
    buffer = ReplayBuffer(play, HISTORY)
    firsts = np.concatenate([[0], np.cumsum(play.episodes_per_map)])
    for s in range(4):
        tokens = int(buffer.bounds[firsts[s + 1]] - buffer.bounds[firsts[s]])
        batch = make_batch(buffer.slices(np.array([s]), tokens, rng()), HISTORY)
        mine = slice(firsts[s], firsts[s + 1])
        steps = play.steps[mine].sum()
        begin = play.steps[: firsts[s]].sum()
        assert batch.action[0, :steps].tolist() == play.actions[begin : begin + steps].tolist()
        assert batch.reward.sum() == (play.outcome[mine] == GOAL).sum()
        assert (~batch.has_target[0, :steps]).sum() == (play.outcome[mine] == LIMIT).sum()
    assert RESET not in play.actions
