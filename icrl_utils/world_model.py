"""What the base model is pretrained on: predicting what moves lead to, on lakes that it has never seen before.

Two questions are asked about transcripts of random play. At each action word: what is observed next? And at each tile,
*before* the player moves: what would each of the four moves lead to, and what two of them in a row, as far as the
transcript has shown it? A plain language model is asked the first one only. But values are read at the tile, so whoever
plays has to look up four moves there, and to see a goal two moves away, where these lead on to; a base that has never
done so must learn it from rewards, which takes DQN millions of tokens.

Both are asked in both history formats. In ``paper`` text an observation is several tokens, of which three tell anything
(`observation_positions`); the answers to the second question are the same words in both, those of ``compact``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from icrl_utils.history import COMPACT_TILES, COMPACT_WORDS, GOAL, HOLE, OUTCOMES
from icrl_utils.qvalues import backbone, take
from icrl_utils.replay import Batch

NOT_TRIED = -100  # the label that cross-entropy ignores


class WorldModel(nn.Module):
    """The module that pretraining calls: a causal Llama, with a second read-out that is thrown away afterwards.

    The first read-out is the Llama's own, for the word after an action. The second one has a row for each word of the
    ``compact`` format and each of 20 questions, and reads at the decision what each of the four moves, and each of the
    sixteen pairs of moves, would lead to.
    """

    def __init__(self, model: PreTrainedModel, seed: int = 0):
        super().__init__()
        self.model = model
        self.lm_head_of_moves = nn.Linear(model.config.hidden_size, 20 * len(COMPACT_WORDS), bias=False)
        draw = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.lm_head_of_moves.weight, std=model.config.initializer_range, generator=draw)

    def forward(
        self, ids: Tensor, position: Tensor, observation: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            ids: int64 [B, T] slices. position: int64 [B, D] decisions. observation: int64 [B, K], their
                `observation_positions`; by default those of compact slices.
        Returns:
            next-token logits [B, K, vocabulary] at ``observation``; logits [B, D, 4, 72 compact words] of what moves
            lead to; and logits [B, D, 16, 72] of what two moves in a row lead to, 4 first + second.
        """
        if observation is None:
            observation = observation_positions(ids)
        hidden = backbone(self.model)(input_ids=ids, use_cache=False).last_hidden_state
        following = self.model.get_output_embeddings()(take(hidden, observation))
        outcomes = self.lm_head_of_moves(take(hidden, position)).unflatten(-1, (20, -1))
        return following, *outcomes.split([4, 16], dim=2)


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


def latest_tries(batch: Batch) -> Tensor:
    """int64 [B, D, 64, 4]: for each decision d, tile and move, the latest decision p <= d at which the move was made on
    that tile and the slice tells what it led to (the step limit tells nothing); -1 where there is none. Slices of one
    map each."""
    index = torch.arange(batch.tile.shape[1], device=batch.tile.device).expand_as(batch.tile)
    tells = batch.has_target & is_decision(batch)
    tries = index.new_full((*batch.tile.shape, COMPACT_TILES * 4), -1)
    edge = batch.tile.clamp(min=0) * 4 + batch.action
    tries.scatter_(2, edge[..., None], torch.where(tells, index, -1)[..., None])
    return tries.cummax(1).values.unflatten(2, (-1, 4))


def is_decision(batch: Batch) -> Tensor:
    """bool [B, D]: not padding, which repeats a position, and the slice tells the tile."""
    return F.pad(batch.position.diff(dim=1) > 0, (1, 0), value=True) & (batch.tile >= 0)


def at_own_tile(tries: Tensor, batch: Batch) -> Tensor:
    """`latest_tries` -> int64 [B, D, 4]: those on the tile of the decision itself."""
    own = batch.tile.clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
    return torch.where(is_decision(batch)[..., None], tries.gather(2, own).squeeze(2), -1)


def before_now(tries: Tensor) -> Tensor:
    """`latest_tries` without the move that is made now."""
    return F.pad(tries[:, :-1], (0, 0, 0, 0, 1, 0), value=-1)


def outcomes(tries: Tensor, batch: Batch) -> Tensor:
    """What the moves made at decisions ``tries`` [B, D, ...] led to: the tile's number, or the compact id of ``goal``
    or ``hole``; ``NOT_TRIED`` where the decision is -1."""
    goal, hole = (COMPACT_WORDS.index(OUTCOMES[outcome]) for outcome in (GOAL, HOLE))
    end = torch.where(batch.reward > 0, goal, hole)
    led_to = torch.where(batch.terminated, end, F.pad(batch.tile[:, 1:], (0, 1)))
    return torch.where(tries >= 0, led_to.gather(1, tries.clamp(min=0).flatten(1)).view_as(tries), NOT_TRIED)


def outcomes_of_moves(tries: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """What moves at each decision would lead to, as far as ``tries`` (`latest_tries`) have shown it.

    Returns:
        int64 [B, D, 4], one move; int64 [B, D, 16], two in a row, 4 first + second. Words as `outcomes` has them.
    """
    one = outcomes(at_own_tile(tries, batch), batch)
    goes_on = (one >= 0) & (one < COMPACT_TILES)
    there = torch.where(goes_on, one, 0)[..., None].expand(-1, -1, -1, 4)
    two = outcomes(torch.where(goes_on[..., None], tries.gather(2, there), -1), batch)
    return one, two.flatten(2)


@torch.no_grad()
def seen_pair_accuracy(
    model: nn.Module, batch: Batch, action_ids: Tensor, header: Tensor | None = None
) -> tuple[float, int]:
    """How often the likeliest next observation after a (tile, action) pair already seen in the context is the true one.

    Lakes do not slip, so a perfect in-context world model scores 1. Steps that end by the step limit are left out:
    the pair does not tell them. ``batch`` are slices of one map each, ``header`` is that of `observation_positions`. In
    the ``paper`` format right is who has the tile and both tokens behind it right, each of them given those before.

    Returns:
        accuracy, number of such pairs.
    """
    observation, telling = observation_positions(batch.ids, header), 1 if header is None else 3
    tried = at_own_tile(before_now(latest_tries(batch)), batch).gather(2, batch.action[..., None]).squeeze(2) >= 0
    asked = tried & batch.has_target & is_decision(batch)
    hidden = backbone(model)(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(take(hidden, observation)).index_fill(-1, action_ids, float("-inf"))
    words = observed_words(batch.ids, observation)
    right = F.pad((logits.argmax(-1) == words) | (words == NOT_TRIED), (0, telling), value=True)
    first = torch.searchsorted(observation.contiguous(), batch.position, right=True)  # the first one after a decision
    all_right = torch.stack([right.gather(1, first + shift) for shift in range(telling)]).all(0)
    return all_right[asked].float().mean().item(), int(asked.sum())


@torch.no_grad()
def seen_move_accuracy(model: WorldModel, batch: Batch) -> tuple[float, float]:
    """The same question, asked at the tile, about what the slice has shown before: about one move, and about two in a
    row that end the episode (a tile two moves away can be guessed from its number, a goal there cannot).

    Returns:
        two accuracies.
    """
    one, two = outcomes_of_moves(before_now(latest_tries(batch)), batch)
    _, logits_of_one, logits_of_two = model(batch.ids, batch.position)
    right_one = (logits_of_one.argmax(-1) == one)[one >= 0]
    right_two = (logits_of_two.argmax(-1) == two)[two >= COMPACT_TILES]
    return right_one.float().mean().item(), right_two.float().mean().item()
