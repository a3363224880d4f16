"""TD targets and losses against tables worked out by hand, and Polyak averaging in two precisions."""

import math

import pytest
import torch

from icrl_utils.dqn.dqn import polyak_update, td_loss, td_targets

# One row of five decisions: two moves of an episode that ends in a hole, a truncated step, two of a cut-off episode.
# Columns are left, down, right, up. The networks disagree about the best action of decisions 1 and 3.
Q_ONLINE = torch.tensor([[[0.1, 0.2, 0.3, 0.0], [0.5, 0.4, 0.0, 0.0], [0.0, 0.0, 0.0, 0.9], [0.2, 0.3, 0.1, 0.0],
                          [0.0, 0.0, 0.6, 0.0]]])  # fmt: skip
Q_TARGET = torch.tensor([[[0.9, 0.9, 0.9, 0.9], [0.3, 0.8, 0.0, 0.0], [0.7, 0.0, 0.0, 0.2], [0.6, 0.5, 0.0, 0.0],
                          [1.0, 0.0, 0.4, 0.0]]])  # fmt: skip
REWARD = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
TERMINATED = torch.tensor([[False, True, False, False, False]])


def test_td_targets_table():
    y = td_targets(Q_ONLINE, Q_TARGET, REWARD, TERMINATED, gamma=0.9)
    by_hand = [
        0.9 * 0.3,  # online prefers left at decision 1, where the target network says .3 (its own maximum is .8)
        0.0,  # into a hole: no next value
        0.9 * 0.5,  # truncated: the caller masks it; by itself it points at the next row entry, .5 of down
        0.9 * 0.4,  # right at decision 4
        1.0,  # the last of the row has no successor
    ]
    torch.testing.assert_close(y, torch.tensor([by_hand]))


def test_gamma_is_applied_once_and_rewards_are_not_discounted():
    reward = torch.tensor([[0.25, 0.5]])
    y = td_targets(Q_ONLINE[:, :2], Q_TARGET[:, :2], reward, torch.zeros(1, 2, dtype=bool), gamma=0.5)
    torch.testing.assert_close(y, torch.tensor([[0.25 + 0.5 * 0.3, 0.5]]))


def test_rows_do_not_leak_into_each_other():
    two = [torch.cat([x, x.flip(1)]) for x in (Q_ONLINE, Q_TARGET, REWARD, TERMINATED)]
    together = td_targets(*two, gamma=0.9)
    torch.testing.assert_close(together[:1], td_targets(Q_ONLINE, Q_TARGET, REWARD, TERMINATED, gamma=0.9))
    alone = td_targets(*(x.flip(1) for x in (Q_ONLINE, Q_TARGET, REWARD, TERMINATED)), gamma=0.9)
    torch.testing.assert_close(together[1:], alone)


def test_a_terminal_step_ignores_even_an_infinite_next_value():
    q = torch.full((1, 2, 4), torch.inf)
    y = td_targets(q, q, torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]), gamma=0.9)
    assert y.tolist() == [[1.0, 0.0]]


def test_no_gradient_flows_through_targets():
    online, target = Q_ONLINE.clone().requires_grad_(), Q_TARGET.clone().requires_grad_()
    y = td_targets(online, target, REWARD, TERMINATED, gamma=0.9)
    assert not y.requires_grad
    mask = torch.ones(1, 5, dtype=bool)
    td_loss(online, torch.zeros(1, 5, dtype=int), y, mask, "mse").backward()
    assert target.grad is None
    # Only the actions taken (left, column 0) move: a gradient through the next value would show elsewhere.
    assert (online.grad[..., 1:] == 0).all() and (online.grad[..., 0] != 0).all()


Z = torch.tensor([[[9.0, 0.5, 9.0, 9.0], [-2.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 7.0]]])
ACTION = torch.tensor([[1, 0, 3]])
TARGET = torch.tensor([[0.9, 0.0, 0.3]])
MASK = torch.tensor([[True, True, False]])


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        ("mse", (0.5 - 0.9) ** 2 + (-2.0) ** 2),
        ("bce", -0.9 * math.log(sigmoid(0.5)) - 0.1 * math.log(1 - sigmoid(0.5)) - math.log(1 - sigmoid(-2.0))),
    ],
)
def test_loss_is_the_sum_over_masked_decisions(kind, by_hand):
    assert td_loss(Z, ACTION, TARGET, MASK, kind).item() == pytest.approx(by_hand, rel=1e-6)


def test_loss_of_a_masked_decision_has_no_gradient_whatever_its_target():
    z, target = Z.clone().requires_grad_(), TARGET.clone()
    target[0, 2] = torch.nan
    for kind in ("bce", "mse"):
        loss = td_loss(z, ACTION, target, MASK, kind)
        (gradient,) = torch.autograd.grad(loss, z)
        assert math.isfinite(loss.item()) and (gradient[0, 2] == 0).all()


def test_bce_gradient_is_q_minus_y():
    z = Z.clone().requires_grad_()
    td_loss(z, ACTION, TARGET, MASK, "bce").backward()
    expected = torch.zeros_like(z)
    expected[0, 0, 1] = sigmoid(0.5) - 0.9
    expected[0, 1, 0] = sigmoid(-2.0) - 0.0
    torch.testing.assert_close(z.grad, expected)


def test_bce_gradient_never_vanishes_where_mse_of_a_sigmoid_would():
    z = torch.tensor([[[-30.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    td_loss(z, torch.tensor([[0]]), torch.tensor([[1.0]]), torch.tensor([[True]]), "bce").backward()
    assert z.grad[0, 0, 0].item() == pytest.approx(-1)


def test_unknown_loss_names_the_known_ones():
    with pytest.raises(ValueError, match="loss='huber' is unknown.*'mse' or 'bce'"):
        td_loss(Z, ACTION, TARGET, MASK, "huber")


def test_polyak_by_hand():
    target = [torch.tensor([1.0, -2.0]), torch.tensor([[4.0]])]
    online = [torch.tensor([2.0, 2.0]), torch.tensor([[0.0]])]
    polyak_update(target, online, 0.1)
    torch.testing.assert_close(target, [torch.tensor([1.1, -1.6]), torch.tensor([[3.6]])])
    torch.testing.assert_close(online, [torch.tensor([2.0, 2.0]), torch.tensor([[0.0]])])
    polyak_update(target, online, 0.1)
    torch.testing.assert_close(target, [torch.tensor([1.19, -1.24]), torch.tensor([[3.24]])])


@pytest.mark.parametrize("alpha", [0.1, 0.01])
def test_polyak_reaches_the_online_network_in_float32(alpha):
    target, online = [torch.ones(3)], [torch.tensor([1.3, 0.7, 1.0])]
    for _ in range(int(10 / alpha)):
        polyak_update(target, online, alpha)
    assert (target[0] - online[0]).abs().max() < 3e-4  # (1 - alpha)^(10 / alpha) is below e^-10 of the way


def test_polyak_in_bfloat16_stalls_at_alpha_001():
    """As in the paper, whose target is bfloat16: near 1 its numbers are 1/128 apart, and a step of .01 x .3 is lost."""
    target, online = [torch.ones(1, dtype=torch.bfloat16)], [torch.full((1,), 1.3, dtype=torch.bfloat16)]
    for _ in range(1000):
        polyak_update(target, online, 0.01)
    assert target[0].item() == 1.0
    for _ in range(1000):
        polyak_update(target, online, 0.1)
    assert 1.2 < target[0].item() < 1.3  # it moves at .1, though not all the way


def test_polyak_leaves_no_gradient_trace():
    target, online = [torch.ones(1)], [torch.ones(1, requires_grad=True)]
    polyak_update(target, online, 0.5)
    assert not target[0].requires_grad


def test_consistent_backup_repeats_a_move_that_led_nowhere():
    """y_1 = gamma Q_target(2, action_1) where move 1 hit a wall; all other decisions keep the double-DQN target."""
    plain = td_targets(Q_ONLINE, Q_TARGET, REWARD, TERMINATED, gamma=0.9)
    repeated = torch.full(REWARD.shape, -1)
    assert torch.equal(td_targets(Q_ONLINE, Q_TARGET, REWARD, TERMINATED, 0.9, repeated), plain)
    free = (~TERMINATED[:, :-1]).nonzero()
    assert len(free)
    for row, d in free.tolist():
        for action in range(4):
            repeated = torch.full(REWARD.shape, -1)
            repeated[row, d] = action
            wanted = plain.clone()
            wanted[row, d] = REWARD[row, d] + 0.9 * Q_TARGET[row, d + 1, action]
            assert torch.equal(td_targets(Q_ONLINE, Q_TARGET, REWARD, TERMINATED, 0.9, repeated), wanted)
