"""Batches with branches and their targets, against tables worked out by hand."""

import numpy as np
import pytest
import torch

from icrl_utils.dqn.branches import (
    NOTHING,
    branch_targets,
    make_asked_batch,
    odds_loss,
    outcome_loss,
    outcome_report,
    value_report,
)
from icrl_utils.dqn.dqn import moves_that_led_nowhere, td_targets
from icrl_utils.history.compact import COMPACT_WORDS, OBSERVED
from icrl_utils.history.format import HistoryFormat

COMPACT = HistoryFormat("compact")
LEFT, DOWN, RIGHT, UP = range(4)
GAMMA = 0.5
#       decision   0        1       2          3        4         5        6
STORY = "8 right 9 up 9 down hole reset 8 right 9 left 8 down goal reset 8 left"


def asked(text=STORY, share=1.0, rng=None):
    ids = COMPACT.tokenize(text)[None]
    dictionary = np.arange(72)[None] + 1000
    return make_asked_batch(ids, dictionary, COMPACT, share, rng or np.random.default_rng(0))


def branches(b):
    """{decision: moves that are asked there}"""
    found = {}
    for decision, move, valid in zip(b.branch_decision[0], b.branch_action[0], b.branch_valid[0], strict=True):
        if valid:
            found.setdefault(int(decision), set()).add(int(move))
    return found


def test_branches_ask_the_moves_that_were_not_made():
    assert branches(asked()) == {
        1: {LEFT, DOWN, RIGHT},  # up was made
        2: {UP},  # after the bump only the same move again
        4: {DOWN, RIGHT, UP},  # 3 begins an episode: nothing leads there
        5: {LEFT, RIGHT, UP},
    }  # 6 has no target: the slice ends


def test_where_branches_stand_and_what_they_say():
    b = asked()
    ids = COMPACT.tokenize(STORY)
    for behind, token, decision, move, valid in zip(
        b.branch_behind[0], b.branch_tokens[0], b.branch_decision[0], b.branch_action[0], b.branch_valid[0], strict=True
    ):
        if valid:
            assert ids[behind] < 64 and ids[behind + 1] == 64 + b.batch.action[0, decision]
            assert token == 1064 + move
    assert b.tokens[0].tolist() == (ids + 1000).tolist()
    assert [COMPACT_WORDS[ids[i]] for i in b.read_at[0, :7]] == ["right", "up", "down", "right", "left", "down", "left"]


def test_outcomes_and_what_was_seen_before():
    b = asked()
    words = [COMPACT_WORDS[i] for i in OBSERVED]
    named = [words[i] if i >= 0 else None for i in b.outcome[0, :7]]
    assert named == ["9", "9", "hole", "9", "8", "goal", None]
    assert b.seen[0, :7].tolist() == [False, False, False, True, False, False, False]
    assert b.repeated[0, :7].tolist() == [-1, UP, -1, -1, -1, -1, -1]


def table_of_q(b, value):
    """Read-outs of which Q(decision, move) = value(decision, move)."""
    logit = torch.logit
    decisions = b.batch.action.shape[1]
    made = torch.tensor([[value(d, int(b.batch.action[0, d])) for d in range(decisions)]])
    branch = torch.tensor(
        [[value(int(d), int(a)) for d, a in zip(b.branch_decision[0], b.branch_action[0], strict=True)]]
    )
    return logit(made), logit(branch)


def some_value(decision, move):
    return 0.1 + 0.08 * ((3 * decision + 2 * move) % 9)


def test_targets_by_hand():
    b = asked()
    y = branch_targets(*table_of_q(b, some_value), b, GAMMA)
    best = {d: max(some_value(d, a) for a in range(4)) for d in range(7)}
    by_hand = [GAMMA * best[1], GAMMA * some_value(2, UP), 0.0, GAMMA * best[4], GAMMA * best[5], 1.0]
    torch.testing.assert_close(y[0, :6], torch.tensor(by_hand))
    assert not y.requires_grad


def test_with_all_moves_asked_they_are_the_targets_of_plain_consistent_dqn():
    """The four-value table of `td_targets`, for one network in both roles."""
    rng = np.random.default_rng(3)
    moves = [(("left", "right", "up")[rng.integers(3)], str(rng.integers(4, 7))) for _ in range(20)]
    text = " ".join(["4", *(word for move in moves for word in move), "down goal reset"])
    b = asked(text)
    z_made, z_asked = table_of_q(b, some_value)
    q = torch.tensor([[[some_value(d, a) for a in range(4)] for d in range(b.batch.action.shape[1])]])
    expected = td_targets(q, q, b.batch.reward, b.batch.terminated, GAMMA, moves_that_led_nowhere(b.batch))
    mask = b.batch.has_target
    torch.testing.assert_close(branch_targets(z_made, z_asked, b, GAMMA)[mask], expected[mask])
    assert (b.repeated >= 0).sum() > 2


def test_a_trace_carries_a_goal_back_along_greedy_moves_only():
    text = "1 right 2 right 3 right 4 right goal reset 1 left"
    b = asked(text)

    def along_the_way(decision, move):
        return 0.5 if move == RIGHT else 0.2

    y = branch_targets(*table_of_q(b, along_the_way), b, GAMMA, trace=1.0)
    torch.testing.assert_close(y[0, :4], torch.tensor([0.125, 0.25, 0.5, 1.0]))
    half = branch_targets(*table_of_q(b, along_the_way), b, GAMMA, trace=0.5)
    third = GAMMA * (0.5 * 0.5 + 0.5 * 1.0)
    torch.testing.assert_close(half[0, 1:4], torch.tensor([GAMMA * (0.25 + 0.5 * third), third, 1.0]))

    def detour_at_two(decision, move):
        return 0.9 if (decision, move) == (2, UP) else along_the_way(decision, move)

    y = branch_targets(*table_of_q(b, detour_at_two), b, GAMMA, trace=1.0)
    torch.testing.assert_close(y[0, :4], torch.tensor([GAMMA * 0.45, 0.45, 0.5, 1.0]))  # cut at decision 2


def test_a_trace_does_not_cross_the_end_of_an_episode_or_a_bump():
    b = asked()
    y = branch_targets(*table_of_q(b, some_value), b, GAMMA, trace=0.9)
    assert y[0, 2] == 0  # into the hole, whatever comes after
    torch.testing.assert_close(y[0, 1], torch.tensor(GAMMA * some_value(2, UP)))


def test_half_of_the_decisions_are_asked_and_ends_keep_their_targets():
    text = " ".join(["1 right 2 left"] * 20) + " 1 down hole reset 3 up goal reset 1"
    counts = []
    for seed in range(30):
        b = asked(text, 0.5, np.random.default_rng(seed))
        whole = asked(text)
        ends = whole.batch.terminated & whole.batch.has_target
        assert b.batch.has_target[ends].all()
        counts.append(int((b.batch.has_target & ~b.batch.terminated).sum()))
        assert (b.outcome == whole.outcome).all() and (b.seen == whole.seen).all()
        assert b.batch.has_target[0, :5].any() != b.batch.has_target[0, 35:40].any()  # first part or last
    total = int((whole.batch.has_target & ~whole.batch.terminated).sum())
    assert all(0.4 * total < count < 0.6 * total for count in counts)


def test_losses_by_hand():
    b = asked()
    z = torch.linspace(-2, 2, b.batch.action.shape[1])[None]
    y = branch_targets(*table_of_q(b, some_value), b, GAMMA)
    q = 1 / (1 + np.exp(-z[0].numpy()))
    terms = [-(t * np.log(p) + (1 - t) * np.log(1 - p)) for t, p in zip(y[0].numpy(), q, strict=True)]
    mask = b.batch.has_target[0].numpy()
    assert float(odds_loss(z, y, b)) == pytest.approx(np.array(terms)[mask].mean(), abs=1e-6)
    logits = torch.randn(1, b.batch.action.shape[1], 66, generator=torch.Generator().manual_seed(0))
    told = [d for d in range(7) if b.outcome[0, d] != NOTHING]
    by_hand = [-torch.log_softmax(logits[0, d], 0)[b.outcome[0, d]] for d in told]
    assert float(outcome_loss(logits, b)) == pytest.approx(float(torch.stack(by_hand).mean()), abs=1e-6)


def test_reports():
    b = asked()
    z, y = torch.zeros(b.batch.action.shape), torch.zeros(b.batch.action.shape)
    report = {name: values[mask].tolist() for name, (values, mask) in value_report(z, y, b).items()}
    assert report["td_error"] == [0.25] * 6
    assert (report["q_new_hole"], report["q_seen_hole"], report["q_seen_goal"], report["q_wall"]) == (
        [0.5],
        [],
        [],
        [0.5],
    )
    logits = torch.nn.functional.one_hot(b.outcome.clamp(min=0), 66).float()
    logits[0, 0] = 0  # a new pair, wrong: the likeliest of equals is word 0
    accuracy = {name: right[mask].tolist() for name, (right, mask) in outcome_report(logits, b).items()}
    assert accuracy == {"seen_accuracy": [1.0], "new_accuracy": [0.0, 1.0, 1.0, 1.0, 1.0]}


def test_the_share_is_checked():
    with pytest.raises(ValueError, match="asked"):
        asked(share=1.5)
