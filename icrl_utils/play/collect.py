"""Who plays in the training data, and collecting their episodes in bulk.

A *set* is what one behaviour policy did on one map: 20 to 40 episodes. `collect` is a pure function of its arguments
and the random generator that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, RESET, RUNNING
from icrl_utils.lake.env import FrozenLakeVectorEnv
from icrl_utils.lake.held_out import reject_held_out
from icrl_utils.lake.maps import LakeTables, TileGame
from icrl_utils.play.tabular import TabularQ
from icrl_utils.ranges import real_number, whole_number


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
    """Episodes of many maps, flattened in order: map after map, episode after episode.

    For training data, where maps have unequally many episodes and millions of steps are never looked at one by one:
    ``HistoryFormat.encode_episodes`` takes the first four fields as they are and makes tokens of all episodes at once,
    the same tokens that `Episode` objects of them would have.
    """

    tiles: np.ndarray  # int64 [sum(steps + 1)], every episode's terminal tile included
    actions: np.ndarray  # int64 [sum(steps)]
    steps: np.ndarray  # int64 [episodes]
    outcome: np.ndarray  # uint8 [episodes]: GOAL, HOLE or LIMIT
    episodes_per_map: np.ndarray  # int64 [maps]


def collect(
    maps: Sequence[TileGame],
    behaviour: Behaviour,
    rng: np.random.Generator,
    episodes: tuple[int, int] = (20, 40),
    min_tokens: int = 0,
    step_tokens: int = 2,
) -> Play:
    """Play all ``maps`` in lock-step: U{episodes} episodes each, and on until their text has ``min_tokens`` tokens.

    ``step_tokens``: so many a step, or the start of an episode, adds at least (`HistoryFormat.min_step_tokens`).

    Raises ValueError when a map belongs to the held-out evaluation sets.
    """
    reject_held_out(maps)
    fewest, most = episodes
    whole_number("episodes[1]", most, whole_number("episodes[0]", fewest, 1))
    whole_number("min_tokens", min_tokens, 0)
    whole_number("step_tokens", step_tokens, 1)
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
        played, tokens = played + ended, tokens + step_tokens
        done = ended & (played >= n_episodes) & (tokens >= min_tokens)
        if done.any():
            go_on = np.flatnonzero(~done)
            env.keep(go_on)
            learner.keep(go_on)
            row, tile, ended, played, tokens = row[go_on], tile[go_on], ended[go_on], played[go_on], tokens[go_on]
            low, high, n_episodes = low[go_on], high[go_on], n_episodes[go_on]
            is_habit, is_expert, habit = is_habit[go_on], is_expert[go_on], habit[go_on]
    rows, actions, tiles, outcomes = (np.concatenate(column) for column in zip(*log, strict=True))
    return _as_play(rows, actions, tiles, outcomes, n)


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
