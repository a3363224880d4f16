"""One step of double DQN, whole: token ids -> Q of both networks -> TD targets -> loss -> Polyak averaging.

    batch.ids --target network--> z_target --+
    batch.ids --online network--> z ---------+--> td_targets --> td_loss --backward--> adapter --polyak--> target

Everything but `q_and_targets`, which makes the two forward passes, is a pure tensor function that knows no environment
and no model. Shapes: B rows (histories), D decisions in time order within a row, 4 actions. Decision ``d + 1`` of a
row is the successor of decision ``d`` unless ``d`` ended its episode.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from icrl_utils.dqn.replay import Batch
from icrl_utils.llama.adapters import target_network
from icrl_utils.llama.readout import QReadout


def q_and_targets(
    net: nn.Module,
    model: PeftModel,
    batch: Batch,
    readout: QReadout,
    gamma: float,
    consistent: bool = False,
    observation: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The two forward passes of a step, and what the first says about the second.

    The target network comes first: between the online forward and its backward no adapter may be switched, since
    activation checkpointing would recompute with the wrong one.

    Args:
        net: a `QNetwork` around ``model``, as it is or wrapped for several processes.
        observation: int64 [B, K], positions whose next-token logits are wanted too, for an auxiliary loss.
    Returns:
        z: float32 [B, D, 4] of the online network, with gradient. y: float32 [B, D] TD targets, without. And the
        next-token logits [B, K, vocabulary] at ``observation``, or None.
    """
    with target_network(model):
        z_target, _ = net(batch.ids, batch.position)
    z, logits = net(batch.ids, batch.position, observation)
    q, q_target = readout.q(z.detach()), readout.q(z_target)
    repeated = moves_that_led_nowhere(batch) if consistent else None
    y = td_targets(q, q_target, batch.reward, batch.terminated, gamma, repeated)
    return z, y, logits


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


def moves_that_led_nowhere(batch: Batch) -> Tensor:
    """int64 [B, D]: the action where the agent then stood on the same tile as before, -1 elsewhere."""
    stayed = F.pad(batch.tile[:, 1:] == batch.tile[:, :-1], (0, 1)) & (batch.tile >= 0)
    stayed &= batch.has_target & ~batch.terminated
    return torch.where(stayed, batch.action, -1)


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


def squared_td_error(q: Tensor, batch: Batch, y: Tensor) -> Tensor:
    """Sum of squared TD errors over the decisions with a target, in units of return whatever the loss."""
    taken = q.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    return ((taken - y) ** 2).masked_fill(~batch.has_target, 0).sum()


@torch.no_grad()
def polyak_update(target: Iterable[Tensor], online: Iterable[Tensor], alpha: float) -> None:
    """target <- (1 - alpha) target + alpha online, in place. Both must be float32: in bfloat16 a small step is
    rounded away and the target never moves."""
    for old, new in zip(target, online, strict=True):
        old.lerp_(new, alpha)
