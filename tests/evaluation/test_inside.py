"""Cuts and patches: the tools on a small random network, the stories token by token, the metrics on made-up tables."""

import numpy as np
import pytest
import torch

from icrl_utils.evaluation.inside import (
    CONTROLS,
    CUTS,
    PATCH_WORDS,
    STORY,
    activation_patching,
    attention_cut,
    attention_cuts,
    cut_pairs,
    describe_cuts,
    describe_patching,
    draw_patch_ways,
    draw_stories,
    mean_with_cut,
    patch_pair,
    patched,
    recovered,
    states_of,
    story_ids,
    value_lost,
)
from icrl_utils.evaluation.made_up import q_at_end
from icrl_utils.evaluation.tables import table_of
from icrl_utils.history.compact import COMPACT_WORDS
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.maps import ACTIONS
from icrl_utils.llama.agent import Agent
from icrl_utils.llama.load import new_tiny_llama
from icrl_utils.llama.readout import QReadout

COMPACT = HistoryFormat("compact")
LAYERS = HEADS = 2


@pytest.fixture(scope="module")
def agent():
    """Larger weights than at birth: what it says depends on everything it reads."""
    model = new_tiny_llama(COMPACT.vocab_size, COMPACT.action_ids, hidden=32, layers=LAYERS, heads=HEADS).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "embed" in name:
                parameter.mul_(8)
    return Agent(model, COMPACT, QReadout(), training_seed=0)


def word(i):
    return COMPACT_WORDS[int(i)]


def ids_of(*texts):
    return np.stack([COMPACT.tokenize(text) for text in texts])


def nothing_hidden(n, tokens):
    return torch.zeros(n, LAYERS, HEADS, tokens, tokens, dtype=torch.bool)


# Cuts


def test_a_cut_of_nothing_changes_nothing_and_leaves_nothing_behind(agent):
    ids = ids_of("8 right 9 down 13", "4 up 0 left 0")
    before = q_at_end(agent, ids)
    with attention_cut(agent.model, nothing_hidden(2, 5)):
        np.testing.assert_allclose(q_at_end(agent, ids), before, atol=1e-6)
    hidden = nothing_hidden(2, 5)
    hidden[..., 4, :4] = True
    with pytest.raises(RuntimeError, match="stop"), attention_cut(agent.model, hidden):
        raise RuntimeError("stop")
    np.testing.assert_array_equal(q_at_end(agent, ids), before)


def test_who_must_not_see_anything_reads_itself_alone(agent):
    ids = ids_of("8 right 9 down 13", "4 up 0 left 13")
    hidden = nothing_hidden(2, 5)
    hidden[..., 4, :] = True  # itself, too: it is seen all the same
    with attention_cut(agent.model, hidden):
        q = q_at_end(agent, ids)
    np.testing.assert_allclose(q, np.repeat(q_at_end(agent, ids_of("13")), 2, axis=0), atol=1e-6)


def test_a_token_that_nobody_may_see_might_as_well_be_another_one(agent):
    ids = ids_of("8 right 9 down 13", "8 right 31 down 13")
    hidden = nothing_hidden(2, 5)
    hidden[..., 3:, 2] = True
    assert np.abs(np.diff(q_at_end(agent, ids), axis=0)).max() > 1e-3
    with attention_cut(agent.model, hidden):
        assert np.abs(np.diff(q_at_end(agent, ids), axis=0)).max() < 1e-6


def test_each_history_layer_and_head_is_cut_by_itself(agent):
    ids = ids_of("8 right 9 down 13", "8 right 9 down 13")
    whole = q_at_end(agent, ids)[0]
    found = []
    for layer, head in np.ndindex(LAYERS, HEADS):
        hidden = nothing_hidden(2, 5)
        hidden[1, layer, head, 4, :4] = True
        with attention_cut(agent.model, hidden):
            untouched, cut = q_at_end(agent, ids)
        np.testing.assert_allclose(untouched, whole, atol=1e-6)
        found.append(cut)
    assert all(np.abs(a - b).max() > 1e-5 for i, a in enumerate([whole, *found]) for b in found[i:])


def test_the_story_is_told_token_by_token(agent):
    (story,) = draw_stories(1)
    way, first, second = story
    words = [word(i) for i in story_ids(agent, story)]
    assert len(words) == len(STORY) and len({*way.tiles, *first.tiles, *second.tiles}) == 9
    by_name = dict(zip(STORY, words, strict=True))
    assert by_name["tile"] == by_name["tile again"] == by_name["question"] == str(way.tiles[0])
    assert by_name["next tile"] == by_name["next tile again"] == str(way.tiles[1])
    assert by_name["right move"] == ACTIONS[way.actions[0]] and by_name["its move"] == ACTIONS[way.actions[1]]
    assert by_name["another move"] not in (by_name["its move"],)
    assert (by_name["goal"], by_name["hole"], by_name["limit"]) == ("goal", "hole", "limit")
    rewardless = [word(i) for i in story_ids(agent, story, rewarded=False)]
    assert "goal" not in rewardless and rewardless[6:] == words[6:]


def test_cuts_hide_what_their_names_say():
    for name, (query, keys) in CUTS.items():
        asker, *_ = name.split(",")
        assert STORY[query] == {"question": "question", "later visit": "next tile again"}[asker]
        hidden = cut_pairs(name, 2, np.random.default_rng(0))
        assert {tuple(pair) for pair in np.argwhere(hidden[0])} == {(query, key) for key in keys}
        assert all(key < query for key in keys)
    named = {STORY[key] for key in CUTS["question, at earlier visits"][1]}
    assert named == {"tile", "right move", "tile again"}
    assert STORY[CUTS["later visit, at the goal"][1][0]] == STORY[CUTS["question, at the goal"][1][0]] == "goal"


def test_controls_cut_other_tokens_at_random():
    for name, (query, count) in CONTROLS.items():
        hidden = cut_pairs(name, 50, np.random.default_rng(1))
        np.testing.assert_array_equal(hidden.sum((1, 2)), count)
        queries, keys = np.argwhere(hidden)[:, 1:].T
        assert set(queries) == {query} and keys.max() < query
        meant = {key for asker, cut in CUTS.values() if asker == query for key in cut}
        assert not meant & set(keys.tolist()) and len(set(keys.tolist())) > 5
        np.testing.assert_array_equal(hidden, cut_pairs(name, 50, np.random.default_rng(1)))


def test_the_table_of_cuts_has_every_head_of_every_cut(agent):
    table = attention_cuts([agent], draw_stories(2), seed=3)
    keys = list(zip(*(table[name].tolist() for name in ("cut", "layer", "head", "map")), strict=True))
    assert len(set(keys)) == len(keys) == 2 * (2 + len([*CUTS, *CONTROLS]) * (1 + LAYERS * HEADS))
    assert "question, at the goal" in describe_cuts(table)
    again = attention_cuts([agent], draw_stories(2), seed=3)
    np.testing.assert_array_equal(table["q"], again["q"])


def test_value_lost_by_hand():
    row = {"training_seed": 0, "map": np.arange(2)}
    table = table_of([
        row | {"cut": "nothing", "layer": -1, "head": -1, "q": np.array([0.5, 0.7])},
        row | {"cut": "x", "layer": -1, "head": -1, "q": np.array([0.1, 0.1])},
        row | {"cut": "x", "layer": 0, "head": 0, "q": np.array([0.5, 0.7])},
        row | {"cut": "x", "layer": 0, "head": 1, "q": np.array([0.4, 0.4])},
        row | {"cut": "x", "layer": 1, "head": 0, "q": np.array([0.6, 0.7])},
        row | {"cut": "x", "layer": 1, "head": 1, "q": np.array([0.0, 0.0])},
    ])  # fmt: skip
    np.testing.assert_allclose(value_lost(table)["x"], [[0, 0.2], [-0.05, 0.6]], atol=1e-12)
    means = mean_with_cut(table)
    assert list(means) == ["nothing", "x"] and means["nothing"].estimate == pytest.approx(0.6)
    assert describe_cuts(table).splitlines()[-1].endswith("layer 2, head 2: 0.60")


# Patches


def test_a_patch_with_its_own_state_changes_nothing(agent):
    ids = ids_of("8 right 9 down 13", "4 up 0 left 0")
    before = q_at_end(agent, ids)
    with states_of(agent.model) as states:
        q_at_end(agent, ids)
    assert [tuple(state.shape) for state in states] == [(2, 5, 32)] * (1 + LAYERS)
    for stage in range(1 + LAYERS):
        with patched(agent.model, stage, 2, states[stage]):
            np.testing.assert_allclose(q_at_end(agent, ids), before, atol=1e-6)
    np.testing.assert_array_equal(q_at_end(agent, ids), before)


def test_patches_put_another_word_and_another_answer(agent):
    """After the embedding a patch is another word; after the last layer, at the end, it is the other run's answer."""
    ids, other = ids_of("8 right 9 down 13"), ids_of("8 right 31 down 13")
    with states_of(agent.model) as states:
        wanted = q_at_end(agent, other)
    assert np.abs(wanted - q_at_end(agent, ids)).max() > 1e-3
    for stage, position in ((0, 2), (LAYERS, 4)):
        with patched(agent.model, stage, position, states[stage]):
            np.testing.assert_allclose(q_at_end(agent, ids), wanted, atol=1e-6)
    with patched(agent.model, LAYERS, 3, states[LAYERS]):  # nobody reads it any more
        np.testing.assert_allclose(q_at_end(agent, ids), q_at_end(agent, ids), atol=1e-6)


@pytest.mark.parametrize("moves", [1, 2])
def test_the_two_histories_of_a_patch_differ_in_one_word(agent, moves):
    (way,) = draw_patch_ways(1)[moves]
    goal, hole = patch_pair(agent, way)
    (place,) = np.flatnonzero(goal != hole)
    assert len(goal) == len(PATCH_WORDS[moves]) and PATCH_WORDS[moves][place] == "GOAL / hole"
    assert (word(goal[place]), word(hole[place])) == ("goal", "hole")


def test_the_table_of_patches_and_what_is_recovered(agent):
    table = activation_patching([agent], draw_patch_ways(3))
    shares = recovered(table)
    assert {moves: share.shape for moves, share in shares.items()} == {1: (1 + LAYERS, 5), 2: (1 + LAYERS, 13)}
    for moves, share in shares.items():
        assert share[0, PATCH_WORDS[moves].index("GOAL / hole")] == pytest.approx(1, abs=1e-2)
        assert share[-1, -1] == pytest.approx(1, abs=1e-2)
        np.testing.assert_allclose(share[:, 0], 0, atol=1e-2)  # before the word nothing differs
    assert "goal 2 moves away" in describe_patching(table)


def test_recovered_by_hand():
    row = {"training_seed": 0, "moves": 1, "layer": -1, "position": -1, "map": np.arange(2)}
    rows = [row | {"run": "goal", "q": np.array([0.9, 0.7])}, row | {"run": "hole", "q": np.array([0.1, 0.1])}]
    for layer, position, q in ((0, 0, 0.1), (0, 1, 0.8), (1, 0, 0.45), (1, 1, 0.1)):
        rows.append(row | {"run": "patched", "layer": layer, "position": position, "q": np.array([q, q])})
    np.testing.assert_allclose(recovered(table_of(rows))[1], [[0, 1], [0.5, 0]], atol=1e-12)
