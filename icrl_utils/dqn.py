"""TD targets, losses and Polyak averaging: pure tensor functions that know no environment and no model.

Shapes: B rows (histories), D decisions in time order within a row, 4 actions. Decision ``d + 1`` of a row is the
successor of decision ``d`` unless ``d`` ended its episode.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("bce", "mse")


def td_targets(
    q_online: Tensor,
    q_target: Tensor,
    reward: Tensor,
    terminated: Tensor,
    gamma: float,
    repeated: Tensor | None = None,
) -> Tensor:
    """Double-DQN targets y_d = r_d + gamma (1 - terminated_d) Q_target(d+1, argmax_a Q_online(d+1, a)).

    The online network *chooses* the next action, the target network *values* it, which removes the upward bias of
    taking one maximum for both (van Hasselt et al. 2016). The maximum runs over the four actions only.

    With ``repeated`` the backup is the *consistent* one (Bellemare et al. 2016): where a move led nowhere (a wall), the
    next value is Q_target(d+1, action_d), as if the agent went on bumping. The best action stays the best, but a wall
    is worth 0 instead of gamma times the tile before it: a gap that a noisy Q cannot overlook.

    Args:
        q_online, q_target: [B, D, 4] values, not logits. reward: [B, D]. terminated: bool [B, D].
        repeated: int64 [B, D], action_d where the move led nowhere and -1 elsewhere; None is the plain backup.
    Returns:
        [B, D] float targets without gradient. The last decision of a row has no successor in the row: its target
        is right only if it terminated, and the caller masks it otherwise.
    """
    with torch.no_grad():
        best = q_online.argmax(dim=-1, keepdim=True)
        if repeated is not None:
            arrived_by = F.pad(repeated[:, :-1], (1, 0), value=-1).unsqueeze(-1)  # the move before each decision
            best = torch.where(arrived_by >= 0, arrived_by, best)
        value = q_target.gather(-1, best).squeeze(-1)
        next_value = F.pad(value[:, 1:], (0, 1))
        return reward + gamma * next_value.masked_fill(terminated, 0.0)


def td_loss(z: Tensor, action: Tensor, target: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Sum over the masked decisions of the loss between Q(d, action_d) and its target: a scalar.

    ``mse``: (z - y)^2, the paper's, with Q = z. ``bce``: -y log Q - (1 - y) log(1 - Q) with Q = sigmoid(z): returns
    lie in [0, 1], so a value can be read as a probability; the gradient with respect to z is Q - y, never flat.
    A sum, not a mean, so that several processes can divide by the number of decisions of all of them.

    Args:
        z: [B, D, 4] read-out before the link function. action: int64 [B, D]. target: [B, D]. mask: bool [B, D].
    """
    taken = z.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    target = target.masked_fill(~mask, 0.0)  # one that is not a number would spoil even a masked gradient
    if kind == "mse":
        loss = (taken - target) ** 2
    elif kind == "bce":
        loss = F.binary_cross_entropy_with_logits(taken, target, reduction="none")
    else:
        raise ValueError(f"loss={kind!r} is unknown; choose 'mse' or 'bce'.")
    return loss.masked_fill(~mask, 0.0).sum()


@torch.no_grad()
def polyak_update(target: Iterable[Tensor], online: Iterable[Tensor], alpha: float) -> None:
    """target <- (1 - alpha) target + alpha online, in place. Both must be float32: in bfloat16 a small step is
    rounded away and the target never moves."""
    torch._foreach_lerp_(list(target), list(online), alpha)
