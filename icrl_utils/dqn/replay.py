"""The replay buffer that DQN learns from: slices of what was played, as tokens and as decisions.

A *set* is what one behaviour policy did on one map: 20 to 40 episodes. The buffer cuts sets into *slices*: token
sequences of equal length, one map to a slice unless asked otherwise.

    SliceSource: maps -> collect -> Play -> ReplayBuffer -> slices -> make_batch -> Batch

Everything here is a pure function of its arguments and the random generator it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from icrl_utils.history.compact import COMPACT_TILES
from icrl_utils.history.episodes import GOAL
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.held_out import reject_held_out, training_maps
from icrl_utils.lake.maps import LakeMap, MapDistribution
from icrl_utils.play.collect import Behaviour, Play, collect
from icrl_utils.ranges import real_number, whole_number

ORDERS = ("as_played", "shuffled")
SUCCESS_WEIGHT = {"low": 0.2, "mid": 1.0, "hi": 5.0}  # how much likelier a successful episode is drawn (the paper's 5)


class ReplayBuffer:
    """Tokenized episodes of many sets, ready to be cut into slices.

    Attributes:
        ids: int64 [all tokens]. bounds: int64 [episodes + 1] token offsets. first_episode: int64 [sets + 1].
    """

    def __init__(self, play: Play, history: HistoryFormat):
        self.history = history
        self.ids, self.bounds = history.encode_episodes(play.tiles, play.actions, play.steps, play.outcome)
        self.first_episode = np.concatenate([[0], np.cumsum(play.episodes_per_map)])
        self.success = play.outcome == GOAL

    def __len__(self) -> int:
        return len(self.first_episode) - 1

    def slices(
        self,
        sets: np.ndarray,
        tokens: int,
        rng: np.random.Generator,
        order: str = "as_played",
        quality: str = "mid",
        relabel: float = 0.0,
    ) -> np.ndarray:
        """One slice of ``tokens`` tokens from the beginning of each of ``sets`` -> int64 [len(sets), tokens].

        Args:
            order: ``as_played`` keeps the rising skill, ``shuffled`` hides it (the paper's way).
            quality: ``hi`` / ``low`` draw successful episodes 5 times as likely / a fifth as likely as failures.
            relabel: share of sets whose tile numbers are permuted at random. Then geometry says nothing ("9 lies to
                the right of 8"), and only looking up what happened before helps.
        """
        streams = self._streams(sets, rng, order, quality, relabel)
        for index, stream in zip(sets, streams, strict=True):
            if len(stream) < tokens:
                raise ValueError(
                    f"tokens={tokens} is longer than set {index} ({len(stream)} tokens); collect with "
                    f"min_tokens={tokens}."
                )
        return np.stack([stream[:tokens] for stream in streams])

    def crossing_slices(
        self,
        n: int,
        tokens: int,
        rng: np.random.Generator,
        order: str = "as_played",
        quality: str = "mid",
        relabel: float = 0.0,
    ) -> np.ndarray:
        """``n`` slices cut anywhere out of all sets laid end to end -> int64 [n, tokens].

        They begin anywhere (in ``compact`` at any observation) and cross map changes, which the text does not mark
        (the paper's way).
        """
        text = np.concatenate(self._streams(np.arange(len(self)), rng, order, quality, relabel))
        if len(text) < tokens:
            raise ValueError(
                f"tokens={tokens} is longer than the whole buffer ({len(text)} tokens); collect more sets."
            )
        grid = 2 if self.history.name == "compact" else 1  # there even positions hold observations
        start = grid * rng.integers((len(text) - tokens) // grid + 1, size=n)
        return text[start[:, None] + np.arange(tokens)]

    def _streams(
        self, sets: np.ndarray, rng: np.random.Generator, order: str, quality: str, relabel: float
    ) -> list[np.ndarray]:
        """The whole text of each of ``sets``, int64 [its tokens]."""
        check_order(order, quality, relabel)
        if relabel and self.history.name != "compact":
            raise ValueError(f"relabel={relabel!r}: only compact histories have one token for each tile; pass 0.")
        relabelled = rng.random(len(sets)) < relabel if relabel else np.zeros(len(sets), bool)
        streams = []
        for index, is_relabelled in zip(sets, relabelled, strict=True):
            first, last = self.first_episode[index], self.first_episode[index + 1]
            if order == "as_played":
                stream = self.ids[self.bounds[first] : self.bounds[last]]
            else:
                chosen = first + _weighted_order(self.success[first:last], SUCCESS_WEIGHT[quality], rng)
                stream = np.concatenate([self.ids[self.bounds[e] : self.bounds[e + 1]] for e in chosen])
            if is_relabelled:
                words = np.arange(self.history.vocab_size)
                words[:COMPACT_TILES] = rng.permutation(COMPACT_TILES)
                stream = words[stream]
            streams.append(stream)
        return streams


def check_order(order: str, quality: str, relabel: float = 0.0) -> None:
    real_number("relabel", relabel, 0, 1)
    if order not in ORDERS or quality not in SUCCESS_WEIGHT or (order == "as_played" and quality != "mid"):
        raise ValueError(
            f"order={order!r} with quality={quality!r}: order is one of {', '.join(ORDERS)}, quality one of "
            f"{', '.join(SUCCESS_WEIGHT)}, and episodes can be weighted only when they are shuffled."
        )


def _weighted_order(success: np.ndarray, success_weight: float, rng: np.random.Generator) -> np.ndarray:
    """All episodes in random order, likely ones first: drawing without replacement (Efraimidis and Spirakis 2006)."""
    weight = np.where(success, success_weight, 1.0)
    return np.argsort(rng.exponential(size=len(success)) / weight)


class SliceSource:
    """Makes training slices from nothing: draws maps, plays them, cuts the episodes into slices.

    Args:
        maps: a law, from which every set gets a fresh map, or a fixed pool of maps, which are drawn with replacement.
        behaviour: who plays. order, quality, relabel: see `ReplayBuffer.slices`.
        crossing: slices may cross map changes, see `ReplayBuffer.crossing_slices`.
        history: how the slices are written; by default ``compact``.

    Raises ValueError at once when a map of the pool is held out for evaluation, or order and quality do not fit.
    """

    def __init__(
        self,
        maps: MapDistribution | Sequence[LakeMap],
        behaviour: Behaviour,
        order: str = "as_played",
        quality: str = "mid",
        relabel: float = 0.0,
        crossing: bool = False,
        history: HistoryFormat | None = None,
    ):
        check_order(order, quality, relabel)
        if not isinstance(maps, MapDistribution):
            reject_held_out(maps)
        self.maps, self.behaviour, self.crossing = maps, behaviour, crossing
        self.cut: dict[str, Any] = {"order": order, "quality": quality, "relabel": relabel}
        self.history = HistoryFormat("compact") if history is None else history
        if not self.history.min_step_tokens:
            raise ValueError("history has no tokenizer: pass HistoryFormat('paper', tokenizer), or leave it out.")

    def slices(self, n: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
        """int64 [n, tokens], from ``n`` sets."""
        n, tokens = whole_number("n", n, 1), whole_number("tokens", tokens, 1)
        maps, step_tokens = self._draw_maps(n, rng), self.history.min_step_tokens
        play = collect(maps, self.behaviour, rng, min_tokens=tokens, step_tokens=step_tokens)
        buffer = ReplayBuffer(play, self.history)
        if self.crossing:
            return buffer.crossing_slices(n, tokens, rng, **self.cut)
        return buffer.slices(np.arange(n), tokens, rng, **self.cut)

    def _draw_maps(self, n: int, rng: np.random.Generator) -> list[LakeMap]:
        if isinstance(self.maps, MapDistribution):
            return training_maps(self.maps, n, rng)
        return [self.maps[i] for i in rng.integers(len(self.maps), size=n)]


class Batch(NamedTuple):
    """What one optimizer step sees: B slices of T tokens with D decisions, see `history.episodes.Decisions`."""

    ids: torch.Tensor  # int64 [B, T]
    position: torch.Tensor  # int64 [B, D]
    action: torch.Tensor  # int64 [B, D]
    reward: torch.Tensor  # float32 [B, D]
    terminated: torch.Tensor  # bool [B, D]
    has_target: torch.Tensor  # bool [B, D]
    tile: torch.Tensor  # int64 [B, D], where the agent stands; -1 where the slice does not tell

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(x.to(device, non_blocking=True) for x in self))

    def parts(self, size: int) -> Iterator[Batch]:
        """The same slices in batches of at most ``size``."""
        for first in range(0, len(self.ids), size):
            yield Batch(*(x[first : first + size] for x in self))


def make_batch(ids: np.ndarray, history: HistoryFormat) -> Batch:
    d = history.decisions(ids)
    columns = ids, d.position, d.action, d.reward, d.terminated, d.has_target, history.tiles(ids, d.position)
    return Batch(*map(torch.from_numpy, columns))
