"""Frozen lakes as environments, one map or thousands at once.

    MapDistribution.sample -> list[LakeMap] -> LakeTables (padded arrays) -> FrozenLakeVectorEnv

The rules are those of gymnasium's FrozenLake-v1: the observation is the tile number ``row * width + column``,
the actions are left, down, right, up, the reward is 1 on a goal tile and 0 elsewhere, goals and holes end the
episode. Maps, their law and their exact values are in ``lake/maps.py``. The vector environment plays every other game
on numbered tiles (``lake/games.py``) as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from icrl_utils.lake.maps import (
    ACTIONS,
    DEFAULT_MAP,
    FIRM,
    GOAL_TILE,
    ICE,
    SLIPPERY,
    LakeMap,
    LakeTables,
    TileGame,
    checked_maps,
)
from icrl_utils.ranges import checked_seed, whole_number, whole_numbers

STEP_LIMIT = 100

# Luck. Every map has its own stream of random numbers, addressed by (episode, step) instead of being
# drawn in order: number (k, 0) is the start of episode k, number (k, t) the slip of its step t. So the starts of
# a map do not depend on who plays it, how long the episodes were, or which other maps are played beside it.


# SplitMix64, vectorised: its increment, and the shifts and factors that mix (made once: a scalar costs as much as a
# short array operation).
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MIX = [
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
]
_U11, _U31, _U32 = np.uint64(11), np.uint64(31), np.uint64(32)


def _mixed(z: np.ndarray) -> np.ndarray:
    """uint64 [n] -> uint64 [n]: near inputs give unrelated outputs."""
    for shift, factor in _MIX:
        z = (z ^ (z >> shift)) * factor
    return z ^ (z >> _U31)


def _stream_keys(seed: int, stream: np.ndarray) -> np.ndarray:
    """uint64 [n]: the keys of the streams of seeds ``seed + stream``, ``stream`` int [n]."""
    return _mixed((np.uint64(seed % 2**64) + stream.astype(np.uint64)) * _INCREMENT + _INCREMENT)


def _uniform(keys: np.ndarray, episode: np.ndarray, step: np.ndarray) -> np.ndarray:
    """float64 [n] in [0, 1): number (episode, step) of the streams ``keys`` uint64 [n]; ``step`` counts from 0."""
    counter = (episode.astype(np.uint64) << _U32) + step.astype(np.uint64)
    return (_mixed(keys + counter * _INCREMENT) >> _U11) * 2.0**-53


_TURNS = (np.arange(4)[:, None] + np.arange(4) - 1) % 4  # of each action: beside it, itself, beside it, opposite


def _turns_below(slip: np.ndarray) -> np.ndarray:
    """float64 [n, 4, 3] from float64 [n, 4, 4]: below which of these numbers a uniform one chooses the turn."""
    return np.take_along_axis(slip, np.broadcast_to(_TURNS, slip.shape), axis=2).cumsum(axis=2)[:, :, :3]


def _slipped(action: np.ndarray, below: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """int64 [n]: how the chosen actions int64 [n] turn out, given what `_turns_below` says and uniform numbers [n]."""
    turn = (uniform[:, None] >= below[np.arange(len(action)), action]).sum(axis=1)
    return _TURNS[action, turn]


class FrozenLakeEnv(gymnasium.Env):
    """One lake with gymnasium's interface; the step limit is ``gymnasium.make``'s TimeLimit.

    ``reset(seed=...)`` starts the map's random stream anew, ``reset()`` goes on with its next episode. Observation:
    the tile number. ``render_mode="ansi"`` draws the map with the agent's tile in brackets.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(self, lake_map: LakeMap = DEFAULT_MAP, slippery: bool = False, render_mode: str | None = None):
        if not isinstance(lake_map, LakeMap):
            raise ValueError(f"lake_map={lake_map!r}: pass a LakeMap, e.g. LakeMap(('SFF', 'FHF', 'FFG')).")
        self.lake_map = lake_map
        self.slippery = slippery
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Discrete(lake_map.n_tiles)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._key = np.array([], np.uint64)  # none before `reset`
        self._tile: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=None if seed is None else checked_seed(seed))
        if seed is None and not self._key.size:
            seed = int(self.np_random.integers(2**62))
        if seed is not None:
            self._key = _stream_keys(seed, np.zeros(1))
            self._episode = -1
        self._episode += 1
        self._steps = 0
        starts = self.lake_map.starts
        self._tile = starts[int(self._random()[0] * len(starts))]
        return self._tile, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if self._tile is None:
            raise RuntimeError("step() before reset(): call reset(seed=...) first.")
        action = whole_number("action", action, 0, 3, fits="0 (left), 1 (down), 2 (right) or 3 (up)")
        self._steps += 1
        slip = SLIPPERY if self.slippery else self.lake_map.slip
        if slip is not FIRM:
            action = int(_slipped(np.array([action]), _turns_below(slip[None]), self._random())[0])
        self._tile = int(self.lake_map.next_tile[self._tile, action])
        on_goal = self._tile in self.lake_map.goals
        return self._tile, float(on_goal), on_goal or self._tile in self.lake_map.holes, False, {}

    def _random(self) -> np.ndarray:
        """float64 [1]: the number of this step."""
        return _uniform(self._key, np.array([self._episode]), np.array([self._steps]))

    def render(self) -> str | None:
        if self.render_mode != "ansi":
            return None
        text = "".join(self.lake_map.rows)
        cells = [f"[{letter}]" if tile == self._tile else f" {letter} " for tile, letter in enumerate(text)]
        width = self.lake_map.width
        return "\n".join("".join(cells[i : i + width]) for i in range(0, len(cells), width))


class FrozenLakeVectorEnv(gymnasium.vector.VectorEnv):
    """Many lakes of mixed sizes, stepped together; map for map the same as ``FrozenLakeEnv``.

    Next-step autoreset: the step after the end of an episode ignores its action and returns the start tile of
    the next episode with reward 0. As with gymnasium's TimeLimit, ``truncated`` is True at the last allowed step
    whether or not that step also terminates: test ``terminated`` first.

    Args:
        maps: the lakes or other games, one per environment.
        slippery: move in the chosen direction or one of the two beside it, each with probability 1/3. False: as each
            game itself says, lakes in the chosen direction.
        step_limit: steps after which an episode is truncated.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, maps: Sequence[TileGame], slippery: bool = False, step_limit: int = STEP_LIMIT):
        self.step_limit = whole_number("step_limit", step_limit, 1)
        self.maps = checked_maps(maps)
        self.slippery = slippery
        self._stream = np.arange(len(self.maps))  # the number of a map stays when others are dropped
        self._keys = np.array([], np.uint64)  # none before `reset`
        self._use(LakeTables(self.maps))

    def _use(self, tables: LakeTables) -> None:
        """Flat tables: a place is ``row of the table * tiles + tile``, so that a step is one look-up."""
        self.tables = tables
        n, tiles = tables.kind.shape
        self.num_envs = n
        self._first = np.arange(n) * tiles
        self._next = (tables.next_tile + self._first[:, None, None]).ravel()
        self._kind = tables.kind.ravel()
        slip = np.broadcast_to(SLIPPERY, tables.slip.shape) if self.slippery else tables.slip
        self._may_slip = bool((slip != FIRM).any())
        self._turns_below = _turns_below(slip)
        self.single_observation_space = gymnasium.spaces.Discrete(tiles)
        self.single_action_space = gymnasium.spaces.Discrete(4)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """New episodes on all maps -> tile int64 [n], {}.

        Map i gets the random stream of seed ``seed + i`` (as in gymnasium's SyncVectorEnv). Without a seed the
        streams go on, each with its next episode; the very first reset then draws a seed.
        """
        super().reset(seed=None if seed is None else checked_seed(seed))
        if seed is None and not self._keys.size:
            seed = int(self.np_random.integers(2**62))
        if seed is not None:
            self._keys = _stream_keys(seed, self._stream)
            self._episode = np.full(self.num_envs, -1)
        self._place = np.empty(self.num_envs, np.int64)
        self._steps = np.zeros(self.num_envs, np.int64)
        self._over = np.zeros(self.num_envs, bool)
        self._begin(np.arange(self.num_envs), self._place)
        return self._place - self._first, {}

    def _begin(self, rows: np.ndarray, place: np.ndarray) -> None:
        """Start the next episode on the maps ``rows``: writes ``place`` there."""
        self._episode[rows] += 1
        self._steps[rows] = 0
        uniform = _uniform(self._keys[rows], self._episode[rows], self._steps[rows])
        chosen = (uniform * self.tables.n_starts[rows]).astype(np.int64)
        place[rows] = self._first[rows] + self.tables.starts[rows, chosen]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """``actions`` int [n] -> tile int64, reward float64, terminated bool, truncated bool, all [n], and {}."""
        if not self._keys.size:
            raise RuntimeError("step() before reset(): call reset(seed=...) first.")
        actions = self._checked_actions(actions)
        self._steps += 1
        if self._may_slip:
            actions = _slipped(actions, self._turns_below, _uniform(self._keys, self._episode, self._steps))
        place = self._next[self._place * 4 + actions]
        kind = self._kind[place]
        reward = (kind == GOAL_TILE).astype(np.float64)
        terminated = kind != ICE
        truncated = self._steps >= self.step_limit
        over = np.flatnonzero(self._over)
        if over.size:
            self._begin(over, place)
            reward[over] = 0
            terminated[over] = truncated[over] = False
        self._place = place
        self._over = terminated | truncated
        return place - self._first, reward, terminated, truncated, {}

    def _checked_actions(self, actions: np.ndarray) -> np.ndarray:
        actions = whole_numbers("actions", actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions has shape {actions.shape}: pass one for each of {self.num_envs} maps.")
        unknown = actions.view(np.uint64) > 3
        if unknown.any():
            wrong = actions[unknown & ~self._over]
            if wrong.size:
                raise ValueError(f"actions holds {wrong[0]}: pass 0 (left), 1 (down), 2 (right) or 3 (up).")
            actions = np.where(unknown, 0, actions)  # ignored: these maps begin a new episode in this step
        return actions

    def rewind(self, rows: np.ndarray) -> None:
        """The next step of the rows (int [k]) begins their first episode, as if they had just been reset."""
        self._episode[rows] = -1
        self._over[rows] = True

    def exchange(self, rows: np.ndarray, maps: Sequence[TileGame]) -> None:
        """From their next episode on the rows (int [k]) play ``maps`` instead; their random streams go on.

        Raises:
            RuntimeError: an episode of one of the rows is still running.
        """
        rows = np.arange(self.num_envs)[rows]
        if not self._keys.size or not self._over[rows].all():
            raise RuntimeError("exchange() while an episode is running: call it when the last step has ended it.")
        tile = self._place - self._first
        tile[rows] = 0  # not read any more: the next step begins an episode
        for row, game in zip(rows, checked_maps(maps), strict=True):
            self.maps[row] = game
        self._use(LakeTables(self.maps))
        self._place = self._first + tile

    def keep(self, rows: np.ndarray) -> None:
        """Go on with the maps ``rows`` (int [k]) only; their episodes and random streams do not change."""
        rows = np.arange(self.num_envs)[rows]
        self.maps = [self.maps[row] for row in rows]
        self._stream = self._stream[rows]
        if self._keys.size:
            tile = (self._place - self._first)[rows]
            self._keys, self._episode, self._steps, self._over = (
                array[rows] for array in (self._keys, self._episode, self._steps, self._over)
            )
        self._use(self.tables.take(rows))
        if self._keys.size:
            self._place = self._first + tile


def make_vector_env(
    num_envs: int = 1,
    lake_map: LakeMap = DEFAULT_MAP,
    maps: Sequence[TileGame] | None = None,
    slippery: bool = False,
    max_episode_steps: int = STEP_LIMIT,
) -> FrozenLakeVectorEnv:
    """What ``gymnasium.make_vec`` calls: ``num_envs`` times ``lake_map``, or one environment for each of ``maps``."""
    num_envs = whole_number("num_envs", num_envs, 1)
    if maps is None:
        maps = [lake_map] * num_envs
    elif num_envs not in (1, len(maps)):  # 1 is what make_vec passes when the caller says nothing
        raise ValueError(f"num_envs={num_envs} but maps holds {len(maps)} maps: pass num_envs={len(maps)}.")
    return FrozenLakeVectorEnv(maps, slippery, max_episode_steps)


ENV_ID = "icrl_utils/FrozenLake-v0"
gymnasium.register(
    ENV_ID,
    entry_point="icrl_utils.lake.env:FrozenLakeEnv",
    vector_entry_point="icrl_utils.lake.env:make_vector_env",
    max_episode_steps=STEP_LIMIT,
)
