"""Behaviour policies, collecting their episodes in bulk, and the replay buffer that DQN learns from.

A *set* is what one behaviour policy did on one map: 20 to 40 episodes. The buffer cuts sets into *slices*: token
sequences of equal length, one map to a slice unless asked otherwise.

    SliceSource: maps -> collect -> Play -> ReplayBuffer -> slices -> make_batch -> Batch

Everything here is a pure function of its arguments and the random generator it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from icrl_utils.history import COMPACT_TILES, GOAL, HOLE, LIMIT, RESET, RUNNING, HistoryFormat
from icrl_utils.lake import (
    FrozenLakeVectorEnv,
    LakeMap,
    LakeTables,
    MapDistribution,
    reject_held_out,
    training_maps,
)
from icrl_utils.ranges import real_number, whole_number
from icrl_utils.tabular import TabularQ

ORDERS = ("as_played", "shuffled")
SUCCESS_WEIGHT = {"low": 0.2, "mid": 1.0, "hi": 5.0}  # how much likelier a successful episode is drawn (the paper's 5)


@dataclass(frozen=True)
class Behaviour:
    """Who acts in the training data. Each map gets one policy: with probability ``skill`` a skilled move, else random.

    ``skill`` rises evenly over the episodes of a set, from U(0, low) to U(0, high). The skilled move is the greedy move
    of a tabular Q-learner with initial values U(0, 1), which like the agent we want knows its history only.

    On a share ``habit_share`` of the maps it is a habit instead: one move for each tile, drawn anew for each episode.
    Habits walk in circles, as a poor agent does and the learner never would; in them Q learns what circles are worth.

    On a share ``expert_share`` it is a shortest-path move. That policy knows the map, and what it knows beyond the
    history confounds the values of moves that the history has not shown (notebook 03, section 3).
    """

    habit_share: float = 0.25
    expert_share: float = 0.0
    low: float = 0.5
    high: float = 1.0

    def __post_init__(self) -> None:
        for name in ("habit_share", "expert_share", "low", "high"):
            real_number(name, getattr(self, name), 0, 1)
        if self.habit_share + self.expert_share > 1:
            raise ValueError(
                f"habit_share={self.habit_share!r} and expert_share={self.expert_share!r} are more than all maps "
                "together: pass shares whose sum is at most 1."
            )


RANDOM_PLAY = Behaviour(low=0.0, high=0.0)


class Play(NamedTuple):
    """Episodes of many maps, flattened in order: map after map, episode after episode."""

    tiles: np.ndarray  # int64 [sum(steps + 1)], every episode's terminal tile included
    actions: np.ndarray  # int64 [sum(steps)]
    steps: np.ndarray  # int64 [episodes]
    outcome: np.ndarray  # uint8 [episodes]: GOAL, HOLE or LIMIT
    episodes_per_map: np.ndarray  # int64 [maps]


def collect(
    maps: list[LakeMap],
    behaviour: Behaviour,
    rng: np.random.Generator,
    episodes: tuple[int, int] = (20, 40),
    min_tokens: int = 0,
) -> Play:
    """Play all ``maps`` in lock-step: U{episodes} episodes each, and on until two tokens a step fill ``min_tokens``.

    Raises ValueError when a map belongs to the held-out evaluation sets.
    """
    reject_held_out(maps)
    fewest, most = episodes
    whole_number("episodes[1]", most, whole_number("episodes[0]", fewest, 1))
    whole_number("min_tokens", min_tokens, 0)
    n = len(maps)
    env = FrozenLakeVectorEnv(maps)
    tile, _ = env.reset(seed=int(rng.integers(2**31)))
    n_episodes = rng.integers(fewest, most + 1, size=n)
    low, high = rng.uniform(0, behaviour.low, n), rng.uniform(0, behaviour.high, n)
    kind = rng.random(n)
    is_habit = kind < behaviour.habit_share
    is_expert = ~is_habit & (kind < behaviour.habit_share + behaviour.expert_share)
    habit = rng.integers(4, size=env.tables.kind.shape)
    learner = TabularQ(n, env.tables.kind.shape[1], initial_value=rng.random(n).astype(np.float32))

    row = np.arange(n)
    played, tokens, ended = np.zeros(n, int), np.zeros(n, int), np.zeros(n, bool)
    log = [(row, np.full(n, RESET), tile, np.zeros(n, np.uint8))]
    while len(row):
        skill = low + (high - low) * np.minimum(played / n_episodes, 1)
        habit[ended] = rng.integers(4, size=(ended.sum(), habit.shape[1]))
        shortest = expert_move(env.tables, tile, rng)
        move = np.where(is_expert, shortest, learner.greedy(tile, rng.random((len(row), 4), np.float32)))
        move = np.where(is_habit, habit[np.arange(len(row)), tile], move)
        action = np.where(rng.random(len(row)) < skill, move, rng.integers(4, size=len(row)))
        new_tile, reward, terminated, truncated, _ = env.step(action)
        learner.update(tile, action, reward, new_tile, terminated, mask=~ended)
        outcome = np.select([reward > 0, terminated, truncated], [GOAL, HOLE, LIMIT], RUNNING).astype(np.uint8)
        log.append((row, np.where(ended, RESET, action), new_tile, outcome))

        tile, ended = new_tile, outcome != RUNNING
        played, tokens = played + ended, tokens + 2
        done = ended & (played >= n_episodes) & (tokens >= min_tokens)
        if done.any():
            go_on = np.flatnonzero(~done)
            env.keep(go_on), learner.keep(go_on)
            row, tile, ended, played, tokens = row[go_on], tile[go_on], ended[go_on], played[go_on], tokens[go_on]
            low, high, n_episodes = low[go_on], high[go_on], n_episodes[go_on]
            is_habit, is_expert, habit = is_habit[go_on], is_expert[go_on], habit[go_on]
    return _as_play(*(np.concatenate(column) for column in zip(*log, strict=True)), n)


def _as_play(row: np.ndarray, action: np.ndarray, tile: np.ndarray, outcome: np.ndarray, n: int) -> Play:
    """Lock-step logs to map-by-map order."""
    order = np.argsort(row, kind="stable")
    row, action, tile, outcome = row[order], action[order], tile[order], outcome[order]
    starts = np.flatnonzero(action == RESET)
    steps = np.diff(np.append(starts, len(action))) - 1
    return Play(tile, action[action != RESET], steps, outcome[starts + steps], np.bincount(row[starts], minlength=n))


def expert_move(tables: LakeTables, tile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A move that shortens the way to the goal, ties broken at random; any move where there is none. [n] -> [n]"""
    score = tables.optimal[np.arange(len(tile)), tile] + rng.random((len(tile), 4)) * 0.5
    return score.argmax(axis=1)


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
        self.cut = {"order": order, "quality": quality, "relabel": relabel}
        self.history = HistoryFormat("compact") if history is None else history
        if self.history.min_step_tokens is None:
            raise ValueError("history has no tokenizer: pass HistoryFormat('paper', tokenizer), or leave it out.")

    def slices(self, n: int, tokens: int, rng: np.random.Generator) -> np.ndarray:
        """int64 [n, tokens], from ``n`` sets."""
        n, tokens = whole_number("n", n, 1), whole_number("tokens", tokens, 1)
        steps = -(-tokens // self.history.min_step_tokens)
        play = collect(self._draw_maps(n, rng), self.behaviour, rng, min_tokens=2 * steps)
        buffer = ReplayBuffer(play, self.history)
        if self.crossing:
            return buffer.crossing_slices(n, tokens, rng, **self.cut)
        return buffer.slices(np.arange(n), tokens, rng, **self.cut)

    def _draw_maps(self, n: int, rng: np.random.Generator) -> list[LakeMap]:
        if isinstance(self.maps, MapDistribution):
            return training_maps(self.maps, n, rng)
        return [self.maps[i] for i in rng.integers(len(self.maps), size=n)]


class Batch(NamedTuple):
    """What one optimizer step sees; B slices, T tokens, D decisions, K observations. See history.Decisions."""

    ids: torch.Tensor  # int64 [B, T]
    position: torch.Tensor  # int64 [B, D]
    action: torch.Tensor  # int64 [B, D]
    reward: torch.Tensor  # float32 [B, D]
    terminated: torch.Tensor  # bool [B, D]
    has_target: torch.Tensor  # bool [B, D]
    tile: torch.Tensor  # int64 [B, D], where the agent stands; -1 where the slice does not tell

    def to(self, device) -> Batch:
        return Batch(*(x.to(device, non_blocking=True) for x in self))

    def parts(self, size: int) -> Iterator[Batch]:
        """The same slices in batches of at most ``size``."""
        for first in range(0, len(self.ids), size):
            yield Batch(*(x[first : first + size] for x in self))


def make_batch(ids: np.ndarray, history: HistoryFormat) -> Batch:
    d = history.decisions(ids)
    columns = ids, d.position, d.action, d.reward, d.terminated, d.has_target, history.tiles(ids, d.position)
    return Batch(*map(torch.from_numpy, columns))
