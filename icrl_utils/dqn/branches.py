"""The DQN step for values that are read after the action word: one history, and a branch for each move not made.

    apple left river down hole          the history: what was done, read at `left` and at `down`
    apple right | up | down             branches behind `apple`: what else could have been done there

The moves that were made stand in the history. To take the maximum over four moves at the next decision the other three
are asked, as branches of one token each, which see the history up to there and not each other. Their values are targets
only, so no gradient flows through them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icrl_utils.dqn.replay import Batch, make_batch
from icrl_utils.history.compact import COMPACT_TILES, FIRST_ACTION
from icrl_utils.history.format import HistoryFormat
from icrl_utils.ranges import real_number

NOTHING = -100  # the label that cross-entropy ignores
LATE = 0.7  # share of slices that are asked about in their last part, where the history knows most; else in the first
PAD = 64  # the number of branches is rounded up to a multiple, so that there are few shapes


class AskedBatch(NamedTuple):
    """B slices of T tokens with D decisions and N branches; index tensors int64."""

    batch: Batch  # in compact ids; its has_target is False where a target was not asked for
    dictionary: Tensor  # [B, 72] the token of each compact id
    outcome: (
        Tensor  # [B, D] what the move led to, as its place in `compact.OBSERVED`; NOTHING where the slice does not tell
    )
    seen: Tensor  # bool [B, D] the slice has shown before what this move leads to here
    repeated: Tensor  # [B, D] the move where it led nowhere, -1 elsewhere
    branch_decision: Tensor  # [B, N] which decision is asked
    branch_action: Tensor  # [B, N] about which move
    branch_valid: Tensor  # bool [B, N] False is padding

    def to(self, device: torch.device | str) -> AskedBatch:
        return AskedBatch(self.batch.to(device), *(x.to(device) for x in self[1:]))

    @property
    def tokens(self) -> Tensor:
        """int64 [B, T]: what the model reads."""
        return self.dictionary.gather(1, self.batch.ids)

    @property
    def read_at(self) -> Tensor:
        """int64 [B, D]: the positions of the action words, where values and outcomes are read."""
        return self.batch.position + 1

    @property
    def branch_behind(self) -> Tensor:
        """int64 [B, N]: the positions that the branches continue."""
        return self.batch.position.gather(1, self.branch_decision)

    @property
    def branch_tokens(self) -> Tensor:
        """int64 [B, N]: the action words of the branches."""
        return self.dictionary.gather(1, FIRST_ACTION + self.branch_action)


def make_asked_batch(
    ids: np.ndarray, dictionary: np.ndarray, history: HistoryFormat, asked: float, rng: np.random.Generator
) -> AskedBatch:
    """int64 [B, T] compact slices of one map each, and their dictionaries [B, 72] -> the batch of an optimizer step.

    Args:
        asked: share in (0, 1] of the decisions that get a target from the moves that follow them; ``rng`` draws for
            each slice whether its last or its first ones do. Branches cost about as much as the history; where little
            is known there is little to back up.
    """
    real_number("asked", asked, 0, 1)
    batch = make_batch(ids, history)
    _, position, action, _, terminated, has_target, tile = (x.numpy() for x in batch)
    told = np.take_along_axis(np.pad(ids, ((0, 0), (0, 2))), position + 2, 1)  # behind the action word
    outcome = np.where(has_target, np.where(told < COMPACT_TILES, told, told - 4), NOTHING)
    seen = _seen_before(tile, action, has_target)
    goes_on = has_target & ~terminated
    if asked < 1:
        left_out = goes_on & ~_asked_decisions(goes_on.shape, asked, rng)
        goes_on, has_target = goes_on & ~left_out, has_target & ~left_out
    repeated = np.where(goes_on & (told == tile), action, -1)
    asked_at, asked_move, valid = _branches(action, goes_on, repeated)
    columns = dictionary, outcome, seen, repeated, asked_at, asked_move, valid > 0
    return AskedBatch(batch._replace(has_target=torch.from_numpy(has_target)), *map(torch.from_numpy, columns))


def _asked_decisions(shape: tuple[int, ...], asked: float, rng: np.random.Generator) -> np.ndarray:
    """bool [B, D]: of each slice the last or the first part."""
    length = round(asked * shape[1])
    first = np.where(rng.random((shape[0], 1)) < LATE, shape[1] - length, 0)
    place = np.arange(shape[1])
    inside: np.ndarray = (place >= first) & (place < first + length)
    return inside


def _seen_before(tile: np.ndarray, action: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool [B, D]: an earlier decision of the slice, whose outcome is told, was the same move on the same tile."""
    pair = np.where(known, 4 * tile + action, -1 - np.arange(tile.shape[1]))
    same = (pair[:, :, None] == pair[:, None, :]) & np.tri(tile.shape[1], k=-1, dtype=bool)
    seen: np.ndarray = same.any(-1)
    return seen


def _branches(action: np.ndarray, goes_on: np.ndarray, repeated: np.ndarray) -> np.ndarray:
    """int64 [3, B, N]: decision, action, and 1 for a branch (0 is padding).

    The successor of decision d is d + 1. There all moves are asked but the one that was made, which stands in the
    history; after a move that led nowhere only the same move again (the consistent backup).
    """
    moves = np.arange(4)
    asked = np.zeros((*action.shape, 4), bool)
    before = repeated[:, :-1, None]
    asked[:, 1:] = goes_on[:, :-1, None] & ((before < 0) | (before == moves))
    asked &= action[:, :, None] != moves
    count = asked.sum((1, 2))
    row, decision, move = np.nonzero(asked)
    column = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    branch = np.zeros((3, len(action), -(-count.max() // PAD) * PAD), np.int64)
    branch[:, row, column] = np.stack([decision, move, np.ones_like(move)])
    return branch


@torch.no_grad()
def branch_targets(z_made: Tensor, z_asked: Tensor, b: AskedBatch, gamma: float, trace: float = 0.0) -> Tensor:
    """float32 [B, D]: y_d = r_d + gamma max_a Q(d + 1, a), 0 behind an end, without gradient.

    Where a move led nowhere the next value is that of the same move again (`dqn.td_targets` explains). With ``trace``
    > 0 it is Watkins' Q(lambda): as long as the moves that follow are greedy ones, the target of the next decision
    counts for that share, so that a goal is felt several moves before it in one step.

    Args:
        z_made: [B, D], the read-out at the moves that were made. z_asked: [B, N], at the branches.
    """
    batch = b.batch
    q = torch.full((*batch.action.shape, 4), -1.0, device=z_made.device)  # -1: not asked
    q.scatter_(2, batch.action.unsqueeze(-1), z_made.sigmoid().unsqueeze(-1))
    row, column = b.branch_valid.nonzero(as_tuple=True)
    place = 4 * b.branch_decision[row, column] + b.branch_action[row, column]
    q.view(len(q), -1)[row, place] = z_asked[row, column].sigmoid()

    following = F.pad(q[:, 1:], (0, 0, 0, 1))
    again = following.gather(-1, b.repeated.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    led_on = b.repeated < 0
    goes_on = batch.has_target & ~batch.terminated
    value = torch.where(led_on, following.amax(-1), again).masked_fill(~goes_on, 0.0)
    y = batch.reward + gamma * value
    greedy = (q.argmax(-1) == batch.action) & batch.has_target & led_on
    for d in range(y.shape[1] - 2, -1, -1) if trace else ():
        mixed = batch.reward[:, d] + gamma * ((1 - trace) * value[:, d] + trace * y[:, d + 1])
        y[:, d] = torch.where(goes_on[:, d] & led_on[:, d] & greedy[:, d + 1], mixed, y[:, d])
    return y


def odds_loss(z: Tensor, y: Tensor, b: AskedBatch) -> Tensor:
    """Mean over the decisions with a target of -y log Q - (1 - y) log(1 - Q), Q = sigmoid(z); z, y [B, D]."""
    loss = F.binary_cross_entropy_with_logits(z, y, reduction="none")
    return loss.masked_fill(~b.batch.has_target, 0.0).sum() / b.batch.has_target.sum().clamp(min=1)


def outcome_loss(logits: Tensor, b: AskedBatch) -> Tensor:
    """Mean cross-entropy of what the moves led to. logits [B, D, 66] of the words of `compact.OBSERVED`."""
    return F.cross_entropy(logits.flatten(0, 1), b.outcome.flatten(), ignore_index=NOTHING)


def value_report(z: Tensor, y: Tensor, b: AskedBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """What the values say about the moves that were made, each as (values, mask) [B, D]: the squared TD error, and the
    values of seen and new holes, of seen goals and of moves against a wall."""
    q, batch = z.detach().sigmoid(), b.batch
    hole, goal = batch.terminated & (batch.reward == 0), batch.reward > 0
    return {
        "td_error": ((q - y) ** 2, batch.has_target),
        "q_seen_hole": (q, hole & b.seen),
        "q_new_hole": (q, hole & ~b.seen),
        "q_seen_goal": (q, goal & b.seen),
        "q_wall": (q, b.repeated >= 0),
    }


def outcome_report(logits: Tensor, b: AskedBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Whether the likeliest outcome is the true one, for moves seen before and for new ones, as (right, mask)."""
    right, told = (logits.detach().argmax(-1) == b.outcome).float(), b.outcome >= 0
    return {"seen_accuracy": (right, told & b.seen), "new_accuracy": (right, told & ~b.seen)}
