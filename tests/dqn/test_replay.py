"""Replay: the slices that the buffer cuts, where they come from, and the batch that is made of them."""

import numpy as np
import pytest

from icrl_utils.dqn.replay import ReplayBuffer, SliceSource, make_batch
from icrl_utils.history.compact import COMPACT_TILES, COMPACT_WORDS
from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, OUTCOMES, RESET
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import ACTIONS, TRAINING_MAPS, MapDistribution
from icrl_utils.play.collect import RANDOM_PLAY, Behaviour, Play, collect

HISTORY = HistoryFormat("compact")
MAPS = MapDistribution(3, 4, min_hops=3).sample(12, 0)


def rng(seed=0):
    return np.random.default_rng(seed)


def words(ids) -> str:
    return " ".join(COMPACT_WORDS[i] for i in ids)


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
