"""What the base model is pretrained on: predicting what moves lead to, on lakes that it has never seen before.

Two questions are asked about transcripts of random play. At each action word: what is observed next? And at each tile,
*before* the player moves: what would each of the four moves lead to, as far as the transcript has shown it? A plain
language model is asked the first one only. But values are read at the tile, so whoever plays has to look up four moves
there; a base that has never done so must learn it from rewards, which takes DQN millions of tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from icrl_utils.history import LIMIT, OUTCOMES, HistoryFormat
from icrl_utils.qvalues import backbone, take
from icrl_utils.replay import Batch

NOT_TRIED = -100  # the label that cross-entropy ignores


class WorldModel(nn.Module):
    """The module that pretraining calls: a causal Llama, with a second read-out that is thrown away afterwards.

    The first read-out is the Llama's own, for the word after an action. The second one has a row for each move and
    word, and reads at the tile what each of the four moves would lead to.
    """

    def __init__(self, model: PreTrainedModel, seed: int = 0):
        super().__init__()
        self.model = model
        hidden, vocabulary = model.config.hidden_size, model.config.vocab_size
        self.lm_head_of_moves = nn.Linear(hidden, 4 * vocabulary, bias=False)
        draw = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.lm_head_of_moves.weight, std=model.config.initializer_range, generator=draw)

    def forward(self, ids: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            ids: int64 [B, T] compact slices. position: int64 [B, D] decisions.
        Returns:
            next-token logits [B, K, V] at `observation_positions`, and logits [B, D, 4, V] of what moves lead to.
        """
        hidden = backbone(self.model)(input_ids=ids, use_cache=False).last_hidden_state
        following = self.model.get_output_embeddings()(take(hidden, observation_positions(ids)))
        return following, self.lm_head_of_moves(take(hidden, position)).unflatten(-1, (4, -1))


def observation_positions(ids: Tensor) -> Tensor:
    """int64 [B, K]: the positions 1, 3, ... of compact slices, where an observation follows an action or reset."""
    return torch.arange(1, ids.shape[1] - 1, 2, device=ids.device).expand(len(ids), -1)


def world_model_loss(logits: Tensor, ids: Tensor, action_ids: Tensor) -> Tensor:
    """Cross-entropy of the next observation word, given that it is no action word: a scalar.

    Args:
        logits: [B, K, vocabulary] at the positions of `observation_positions`, of compact slices ``ids`` [B, T].
    """
    logits = logits.float().index_fill(-1, action_ids, float("-inf"))
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 2::2].flatten())


def latest_try(batch: Batch) -> Tensor:
    """int64 [B, D, 4]: for each decision d and move a, the latest decision p <= d on the same tile where a was made
    and did not end in the step limit; -1 where there is none. Compact slices of one map each."""
    tile = batch.ids.gather(1, batch.position)
    is_real = F.pad(batch.position.diff(dim=1) > 0, (1, 0), value=True)  # padding repeats a position
    index = torch.arange(tile.shape[1], device=tile.device)
    counts = (batch.has_target & is_real)[:, None, :] & is_real[:, :, None]
    past = counts & (tile[:, :, None] == tile[:, None, :]) & (index[None, :] <= index[:, None])  # [B, d, p]
    made = batch.action[:, None, :]
    return torch.stack([torch.where(past & (made == move), index, -1).amax(-1) for move in range(4)], dim=-1)


def outcomes_of_moves(batch: Batch) -> Tensor:
    """int64 [B, D, 4]: the word that followed the `latest_try` of each move, ``NOT_TRIED`` where there is none."""
    tried = latest_try(batch)
    after = batch.position.gather(1, tried.clamp(min=0).flatten(1)) + 2
    word = batch.ids.gather(1, after.clamp(max=batch.ids.shape[1] - 1)).view_as(tried)
    return torch.where(tried >= 0, word, NOT_TRIED)


@torch.no_grad()
def seen_pair_accuracy(model: nn.Module, ids: Tensor, action_ids: Tensor) -> tuple[float, int]:
    """How often the likeliest next observation after a (tile, action) pair already seen in the context is the true one.

    Lakes do not slip, so a perfect in-context world model scores 1. Steps that end by the step limit are left out:
    the pair does not tell them. ``ids`` int64 [B, T] are compact slices of one map each.

    Returns:
        accuracy, number of such pairs.
    """
    position = observation_positions(ids)
    tile, action, truth = (ids.gather(1, position + shift).cpu().numpy() for shift in (-1, 0, 1))
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[:, 1:-1:2]
    logits = model.get_output_embeddings()(hidden).index_fill(-1, action_ids, float("-inf"))
    right = logits.argmax(-1).cpu().numpy() == truth
    pair = tile * 1000 + action
    seen = np.ones(pair.shape, bool)
    for row, pairs in enumerate(pair):
        seen[row, np.unique(pairs, return_index=True)[1]] = False  # where each pair stands for the first time
    limit = HistoryFormat("compact").tokenize(OUTCOMES[LIMIT])
    asked = seen & np.isin(action, action_ids.cpu().numpy()) & (truth != limit)
    return float(right[asked].mean()), int(asked.sum())


@torch.no_grad()
def seen_move_accuracy(model: WorldModel, batch: Batch) -> tuple[float, int]:
    """The same question, asked at the tile, about the moves made there before that are not made now, too.

    Returns:
        accuracy, number of such (decision, move).
    """
    tried = latest_try(batch)
    before = (tried >= 0) & (tried < torch.arange(tried.shape[1], device=tried.device)[:, None])
    _, logits = model(batch.ids, batch.position)
    right = logits.argmax(-1) == outcomes_of_moves(batch)
    return right[before].float().mean().item(), int(before.sum())
