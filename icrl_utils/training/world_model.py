"""What the base model is pretrained on: predicting what moves lead to, on lakes that it has never seen before.

Two questions are asked about transcripts of random play. At each action word: what is observed next? And at each tile,
*before* the player moves: what would each of the four moves lead to, as far as the transcript has shown it? A plain
language model is asked the first one only. But values are read at the tile, so whoever plays has to look up four moves
there; a base that has never done so must learn it from rewards, which takes DQN millions of tokens.

Both are asked in both history formats. In ``paper`` text an observation is several tokens, of which three tell anything
(`observation_positions`); the answers to the second question are the same words in both, those of ``compact``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from icrl_utils.dqn.replay import Batch
from icrl_utils.history.compact import COMPACT_WORDS, GOAL_WORD, HOLE_WORD
from icrl_utils.llama.adapters import backbone
from icrl_utils.llama.readout import take

NOT_TRIED = -100  # the label that cross-entropy ignores


class WorldModel(nn.Module):
    """The module that pretraining calls: a causal Llama, with a second read-out that is thrown away afterwards.

    The first read-out is the Llama's own, for the word after an action. The second one has a row for each move and
    word of the ``compact`` format, and reads at the decision what each of the four moves would lead to.
    """

    def __init__(self, model: PreTrainedModel, seed: int = 0):
        super().__init__()
        self.model = model
        self.lm_head_of_moves = nn.Linear(model.config.hidden_size, 4 * len(COMPACT_WORDS), bias=False)
        draw = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.lm_head_of_moves.weight, std=model.config.initializer_range, generator=draw)

    def forward(self, ids: Tensor, position: Tensor, observation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Args:
            ids: int64 [B, T] slices. position: int64 [B, D] decisions. observation: int64 [B, K], their
                `observation_positions`; by default those of compact slices.
        Returns:
            next-token logits [B, K, vocabulary] at ``observation``, and logits [B, D, 4, 72 compact words] of what
            moves lead to.
        """
        if observation is None:
            observation = observation_positions(ids)
        hidden = backbone(self.model)(input_ids=ids, use_cache=False).last_hidden_state
        following = self.model.get_output_embeddings()(take(hidden, observation))
        return following, self.lm_head_of_moves(take(hidden, position)).unflatten(-1, (4, -1))


def observation_positions(ids: Tensor, header: Tensor | None = None) -> Tensor:
    """int64 [B, K]: the positions whose next token is an observation's.

    In compact slices they are 1, 3, ..., after an action or reset. In ``paper`` slices, whose observations begin with
    ``header`` [H] (`HistoryFormat.observation_header`), three tokens tell anything: the tile, and behind the end of the
    message two that say how the episode goes on (the header of an action, a reward or an edit, or the end of the text).
    A tile is one token, as with Llama 3. K is T / 2 in both; what is left over is padded with T - 1, which has no next
    token.
    """
    length = ids.shape[1]
    if header is None:
        return torch.arange(1, length - 1, 2, device=ids.device).expand(len(ids), -1)
    begins = (ids.unfold(1, len(header), 1) == header).all(-1)
    before = torch.zeros_like(ids, dtype=torch.bool)
    for shift in (len(header) - 1, len(header) + 1, len(header) + 2):
        before[:, shift:-1] |= begins[:, : length - 1 - shift]
    index = torch.arange(length, device=ids.device)
    return torch.where(before, index, length - 1).sort(1).values[:, : length // 2]


def observed_words(ids: Tensor, observation: Tensor) -> Tensor:
    """int64 [B, K]: the tokens that follow `observation_positions`, ``NOT_TRIED`` where those are padding."""
    return F.pad(ids, (0, 1), value=NOT_TRIED).gather(1, observation + 1)


def world_model_loss(logits: Tensor, ids: Tensor, action_ids: Tensor, observation: Tensor | None = None) -> Tensor:
    """Cross-entropy of the next observation word, given that it is no action word: a scalar.

    Args:
        logits: [B, K, vocabulary] at ``observation`` [B, K], the `observation_positions` of ``ids`` [B, T]; by default
            those of compact slices.
    """
    words = observed_words(ids, observation_positions(ids) if observation is None else observation)
    logits = logits.float().index_fill(-1, action_ids, float("-inf"))
    return F.cross_entropy(logits.flatten(0, 1), words.flatten(), ignore_index=NOT_TRIED)


def same_tile_before(batch: Batch) -> Tensor:
    """bool [B, D, D]: whether decision [., d, p] was made on the tile of d, at p <= d, and the slice tells what it led
    to (the step limit tells nothing). Slices of one map each."""
    tile = batch.tile
    is_real = F.pad(batch.position.diff(dim=1) > 0, (1, 0), value=True)  # padding repeats a position
    index = torch.arange(tile.shape[1], device=tile.device)
    counts = (batch.has_target & is_real)[:, None, :] & (is_real & (tile >= 0))[:, :, None]
    return counts & (tile[:, :, None] == tile[:, None, :]) & (index[None, :] <= index[:, None])


def latest_try(batch: Batch) -> Tensor:
    """int64 [B, D, 4]: for each decision d and move a, the latest decision p <= d on the same tile where a was made
    and did not end in the step limit; -1 where there is none. Slices of one map each."""
    past, made = same_tile_before(batch), batch.action[:, None, :]
    index = torch.arange(past.shape[1], device=past.device)
    return torch.stack([torch.where(past & (made == move), index, -1).amax(-1) for move in range(4)], dim=-1)


def outcomes_of_moves(batch: Batch) -> Tensor:
    """int64 [B, D, 4]: what the `latest_try` of each move led to, ``NOT_TRIED`` where there is none: the tile's number,
    or the compact id of ``goal`` or ``hole``."""
    tried = latest_try(batch)
    end = torch.where(batch.reward > 0, GOAL_WORD, HOLE_WORD)
    led_to = torch.where(batch.terminated, end, F.pad(batch.tile[:, 1:], (0, 1)))
    return torch.where(tried >= 0, led_to.gather(1, tried.clamp(min=0).flatten(1)).view_as(tried), NOT_TRIED)


@torch.no_grad()
def seen_pair_accuracy(
    model: PreTrainedModel, batch: Batch, action_ids: Tensor, header: Tensor | None = None
) -> tuple[float, int]:
    """How often the likeliest next observation after a (tile, action) pair already seen in the context is the true one.

    Lakes do not slip, so a perfect in-context world model scores 1. Steps that end by the step limit are left out:
    the pair does not tell them. ``batch`` are slices of one map each, ``header`` is that of `observation_positions`. In
    the ``paper`` format right is who has the tile and both tokens behind it right, each of them given those before.

    Returns:
        accuracy, number of such pairs.
    """
    observation, telling = observation_positions(batch.ids, header), 1 if header is None else 3
    past = same_tile_before(batch) & (batch.action[:, :, None] == batch.action[:, None, :])
    asked = past.diagonal(dim1=1, dim2=2) & (past.sum(-1) > 1)  # a decision with a known end, not the first of its pair
    hidden = backbone(model)(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(take(hidden, observation)).index_fill(-1, action_ids, float("-inf"))
    words = observed_words(batch.ids, observation)
    right = F.pad((logits.argmax(-1) == words) | (words == NOT_TRIED), (0, telling), value=True)
    first = torch.searchsorted(observation.contiguous(), batch.position, right=True)  # the first one after a decision
    all_right = torch.stack([right.gather(1, first + shift) for shift in range(telling)]).all(0)
    return all_right[asked].float().mean().item(), int(asked.sum())


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
