"""Frozen lakes: maps, the law that draws them, exact values, environments for one map or thousands at once.

    MapDistribution.sample -> list[LakeMap] -> LakeTables (padded arrays) -> FrozenLakeVectorEnv

The rules are those of gymnasium's FrozenLake-v1: the observation is the tile number ``row * width + column``,
the actions are left, down, right, up, the reward is 1 on a goal tile and 0 elsewhere, goals and holes end the
episode.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from icrl_utils.profiles import ASSETS

ACTIONS = ("left", "down", "right", "up")  # gymnasium's numbering, 0..3
STEP_LIMIT = 100
LETTERS = "SFHG"  # start, frozen, hole, goal
ORDINARY, GOAL, HOLE = 0, 1, 2  # kinds of tiles in LakeTables.kind
START_LETTER, FROZEN_LETTER, HOLE_LETTER, GOAL_LETTER = (ord(letter) for letter in LETTERS)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class LakeMap:
    """One lake, immutable and hashable: ``LakeMap(("SFF", "FHF", "FFG"))``.

    Args:
        rows: the rows from north to south, any sequence of strings of S (start), F (frozen), H (hole), G (goal).

    Raises:
        ValueError: the rows are not rectangular, hold other letters, or lack a start or a goal.
    """

    rows: tuple[str, ...]

    def __post_init__(self):
        if isinstance(self.rows, str):
            raise ValueError(f"rows={self.rows!r} is one string: pass a sequence of rows, e.g. ('SFF', 'FFG').")
        rows = tuple(self.rows)
        object.__setattr__(self, "rows", rows)
        for row in rows:
            if not isinstance(row, str):
                raise ValueError(f"rows={rows!r} holds {row!r}: every row must be a string such as 'SFHG'.")
            if len(row) != len(rows[0]):
                raise ValueError(f"rows={rows!r} is not rectangular: give every row as many letters.")
        letters = set("".join(rows))
        if unknown := letters.difference(LETTERS):
            raise ValueError(f"rows={rows!r} has unknown letters {sorted(unknown)}: use only S, F, H and G.")
        for letter, name in (("S", "start"), ("G", "goal")):
            if letter not in letters:
                raise ValueError(f"rows={rows!r} has no {name}: put at least one {letter} on the map.")

    @property
    def height(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return len(self.rows[0])

    @property
    def n_tiles(self) -> int:
        return self.height * self.width

    @property
    def id(self) -> str:
        """The rows joined by slashes; ``LakeMap(id.split("/"))`` is the map again."""
        return "/".join(self.rows)

    @property
    def desc(self) -> list[str]:
        """The ``desc`` argument of gymnasium's FrozenLake-v1."""
        return list(self.rows)

    @property
    def starts(self) -> tuple[int, ...]:
        return self._tiles("S")

    @property
    def goals(self) -> tuple[int, ...]:
        return self._tiles("G")

    @property
    def holes(self) -> tuple[int, ...]:
        return self._tiles("H")

    def _tiles(self, letter: str) -> tuple[int, ...]:
        return tuple(tile for tile, here in enumerate("".join(self.rows)) if here == letter)

    # The arrays below are made at their first use: sampling and comparing maps must stay cheap.
    @cached_property
    def _tables(self) -> LakeTables:
        return LakeTables([self])

    @cached_property
    def next_tile(self) -> np.ndarray:
        """int16 [n_tiles, 4]: the tile after each action, without slipping. Goals and holes lead to themselves."""
        return _read_only(self._tables.next_tile[0])

    @cached_property
    def distances(self) -> np.ndarray:
        """int16 [n_tiles]: moves to the nearest goal around the holes; 0 on goals, -1 where there is no way."""
        return _read_only(self._tables.distances[0])

    def optimal_steps(self, start: int) -> int:
        """Moves of a shortest path from ``start`` to a goal, -1 if there is none."""
        return int(self.distances[start])

    def transition_probabilities(self, slippery: bool = False) -> np.ndarray:
        """float64 [n_tiles, 4, n_tiles]: P(next tile | tile, action).

        A slippery lake moves in the chosen direction or one of the two beside it, each with probability 1/3.
        """
        tiles, actions = np.ogrid[: self.n_tiles, :4]
        probabilities = np.zeros((self.n_tiles, 4, self.n_tiles))
        turns = (-1, 0, 1) if slippery else (0,)
        for turn in turns:
            probabilities[tiles, actions, self.next_tile[tiles, (actions + turn) % 4]] += 1 / len(turns)
        terminal = [*self.goals, *self.holes]
        probabilities[terminal] = np.eye(self.n_tiles)[terminal][:, None]  # 1 exactly, not three thirds
        return probabilities

    def optimal_values(self, gamma: float = 0.9, slippery: bool = False) -> np.ndarray:
        """float64 [n_tiles, 4]: the optimal action values, by value iteration until nothing changes any more.

            Q*(s, a) = sum_s' P(s' | s, a) (r(s') + gamma max_a' Q*(s', a'))

        with r = 1 on goals, 0 elsewhere, and Q* = 0 at goals and holes, where the episode is over.
        """
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma!r} is not a discount factor: pass a number from 0 to 1.")
        probabilities = self.transition_probabilities(slippery)
        reward = np.zeros(self.n_tiles)
        reward[list(self.goals)] = 1
        terminal = [*self.goals, *self.holes]
        values = np.zeros((self.n_tiles, 4))
        while True:
            new = probabilities @ (reward + gamma * values.max(axis=1))
            new[terminal] = 0
            if np.abs(new - values).max() < 1e-14:
                return new
            values = new


@dataclass(frozen=True)
class MapDistribution:
    """The paper's map law, by rejection sampling.

    Width and height are drawn independently from ``min_size..max_size``. Each tile is a start with probability
    ``start_prob``, each remaining tile a goal with ``goal_prob``, each tile that still remains a hole with
    ``hole_prob``. The map is kept if it has a start and *every* start can reach a goal, the nearest one in at
    least ``min_hops`` moves.
    """

    min_size: int = 3
    max_size: int = 5
    hole_prob: float = 0.2
    start_prob: float = 0.1
    goal_prob: float = 0.1
    min_hops: int = 4

    # One chunk is drawn whole, whatever n is: sample(10, seed) begins sample(20, seed).
    _CHUNK = 2048
    _MAX_BARREN = 500  # chunks without a single map (a million candidates) before we call the law impossible

    def __post_init__(self):
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(
                f"min_size={self.min_size!r}, max_size={self.max_size!r}: pass 1 <= min_size <= max_size."
            )
        for name in ("hole_prob", "start_prob", "goal_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is no probability: pass a number from 0 to 1.")
        if self.min_hops < 1:
            raise ValueError(f"min_hops={self.min_hops!r}: pass 1 or more (a start is never a goal).")

    def sample(
        self, n: int, seed: int | np.random.Generator, exclude: Collection[LakeMap] = ()
    ) -> list[LakeMap]:
        """``n`` independent maps, not necessarily distinct, none of them in ``exclude`` (best a set).

        A Generator is advanced by whole chunks of candidates.

        Raises:
            ValueError: a million candidates in a row were rejected.
        """
        rng = np.random.default_rng(seed)
        maps: list[LakeMap] = []
        barren = 0
        while len(maps) < n:
            new = [lake for lake in self._accepted_of_one_chunk(rng) if lake not in exclude]
            maps += new
            barren = 0 if new else barren + 1
            if barren == self._MAX_BARREN:
                raise ValueError(
                    f"{self} accepted none of {barren * self._CHUNK:,} candidates: lower min_hops or hole_prob, "
                    "raise max_size, or give start_prob and goal_prob values between 0 and 1."
                )
        return maps[:n]

    def _accepted_of_one_chunk(self, rng: np.random.Generator) -> list[LakeMap]:
        size = self.max_size
        height = rng.integers(self.min_size, size + 1, self._CHUNK)
        width = rng.integers(self.min_size, size + 1, self._CHUNK)
        # One uniform number decides a tile: start, else goal among the rest, else hole among what still remains.
        uniform = rng.random((self._CHUNK, size, size))
        goal_below = self.start_prob + (1 - self.start_prob) * self.goal_prob
        hole_below = goal_below + (1 - goal_below) * self.hole_prob
        bounds = np.array([self.start_prob, goal_below, hole_below])
        letters = np.full(uniform.shape, FROZEN_LETTER, np.uint8)
        letters[uniform < bounds[2]] = HOLE_LETTER
        letters[uniform < bounds[1]] = GOAL_LETTER
        letters[uniform < bounds[0]] = START_LETTER
        line = np.arange(size)
        inside = (line[:, None] < height[:, None, None]) & (line < width[:, None, None])
        letters[~inside] = 0
        has_both = (letters == START_LETTER).any((1, 2)) & (letters == GOAL_LETTER).any((1, 2))
        letters, height, width = letters[has_both], height[has_both], width[has_both]
        distances = _goal_distances(letters)
        too_near_or_cut_off = (letters == START_LETTER) & (distances < self.min_hops)
        kept = np.flatnonzero(~too_near_or_cut_off.any((1, 2)))
        text = letters[kept].tobytes().decode("ascii")
        maps = []
        for i, (h, w) in enumerate(zip(height[kept].tolist(), width[kept].tolist(), strict=True)):
            first = range(i * size * size, i * size * size + h * size, size)
            maps.append(LakeMap(tuple([text[k : k + w] for k in first])))
        return maps


DEFAULT_MAP = LakeMap(("SFFF", "FHFH", "FFFH", "HFFG"))  # gymnasium's 4x4 map
PAPER_IN_DISTRIBUTION = MapDistribution()
PAPER_OUT_OF_DISTRIBUTION = MapDistribution(6, 7)
TRAINING_MAPS = MapDistribution(3, 5, min_hops=3)
PRETRAINING_MAPS = MapDistribution(2, 8, min_hops=1)


def _goal_distances(letters: np.ndarray) -> np.ndarray:
    """int16 [n, height, width] from ``letters`` uint8 of that shape (0 outside a map): breadth-first search.

    A border that is never open lies between the maps, so the whole batch can be shifted as one flat array.
    """
    n, height, width = letters.shape
    grid = np.zeros((n, height + 1, width + 1), np.uint8)
    grid[:, :height, :width] = letters
    grid = grid.ravel()
    unseen = (grid == START_LETTER) | (grid == FROZEN_LETTER)
    distances = np.full(grid.shape, -1, np.int16)
    frontier = grid == GOAL_LETTER
    distance = 0
    while frontier.any():
        distances[frontier] = distance
        beside = np.zeros_like(frontier)
        for shift in (1, width + 1):
            beside[shift:] |= frontier[:-shift]
            beside[:-shift] |= frontier[shift:]
        frontier = beside & unseen
        unseen &= ~frontier
        distance += 1
    return distances.reshape(n, height + 1, width + 1)[:, :height, :width]


class LakeTables:
    """Many maps of mixed sizes as arrays, padded to the largest number of tiles and starts.

    Attributes:
        next_tile: int16 [n, tiles, 4], tile after each action; goals, holes and padding lead to themselves.
        kind: uint8 [n, tiles], ORDINARY, GOAL or HOLE.
        starts: int16 [n, max_starts] in rising order, padded by the first start.
        n_starts: int16 [n].
        distances: int16 [n, tiles], moves to the nearest goal, -1 where there is no way (and on padding).
    """

    _ARRAYS = ("next_tile", "kind", "starts", "n_starts", "distances")

    def __init__(self, maps: Sequence[LakeMap]):
        maps = _checked_maps(maps)
        texts = ["".join(lake.rows) for lake in maps]
        n, tiles = len(maps), max(map(len, texts))
        padded = "".join([text.ljust(tiles, "\0") for text in texts]).encode("ascii")
        letters = np.frombuffer(padded, np.uint8).reshape(n, tiles)
        height = np.array([len(lake.rows) for lake in maps])[:, None]
        width = np.array([len(lake.rows[0]) for lake in maps])[:, None]
        tile = np.arange(tiles)
        row, column = np.divmod(tile, width)

        self.kind = np.zeros((n, tiles), np.uint8)
        self.kind[letters == GOAL_LETTER] = GOAL
        self.kind[letters == HOLE_LETTER] = HOLE
        moves = (self.kind == ORDINARY) & (letters != 0)
        self.next_tile = np.empty((n, tiles, 4), np.int16)
        self.next_tile[:, :, 0] = tile - (moves & (column > 0))
        self.next_tile[:, :, 1] = tile + (moves & (row < height - 1)) * width
        self.next_tile[:, :, 2] = tile + (moves & (column < width - 1))
        self.next_tile[:, :, 3] = tile - (moves & (row > 0)) * width

        is_start = letters == START_LETTER
        self.n_starts = is_start.sum(axis=1).astype(np.int16)
        order = np.argsort(~is_start, axis=1, kind="stable")[:, : self.n_starts.max()]
        is_padding = np.arange(order.shape[1]) >= self.n_starts[:, None]
        self.starts = np.where(is_padding, order[:, :1], order).astype(np.int16)

        inside = letters != 0
        grid = np.zeros((n, height.max(), width.max()), np.uint8)
        at = (np.broadcast_to(np.arange(n)[:, None], inside.shape)[inside], row[inside], column[inside])
        grid[at] = letters[inside]
        self.distances = np.full((n, tiles), -1, np.int16)
        self.distances[inside] = _goal_distances(grid)[at]

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def n_tiles(self) -> int:
        """Tiles of the largest map."""
        return self.kind.shape[1]

    @cached_property
    def optimal(self) -> np.ndarray:
        """bool [n, tiles, 4]: the action brings the agent one move nearer to the nearest goal."""
        after = np.take_along_axis(self.distances[:, :, None], self.next_tile.astype(np.int64), axis=1)
        return (after >= 0) & (after == self.distances[:, :, None] - 1)

    def take(self, rows: np.ndarray) -> LakeTables:
        """The tables of some of the maps, in the order of ``rows`` (padding keeps its width)."""
        part = copy.copy(self)
        part.__dict__.pop("optimal", None)
        for name in self._ARRAYS:
            setattr(part, name, getattr(self, name)[rows])
        return part


def _checked_maps(maps: Sequence[LakeMap]) -> list[LakeMap]:
    maps = [maps] if isinstance(maps, LakeMap) else list(maps)
    if not maps:
        raise ValueError("maps=[] is empty: pass at least one LakeMap.")
    for lake in maps:
        if not isinstance(lake, LakeMap):
            raise ValueError(f"maps holds {lake!r}: pass LakeMap objects, e.g. LakeMap(('SFF', 'FFG')).")
    return maps


# Environments. Every map has its own stream of random numbers, addressed by (episode, step) instead of being
# drawn in order: number (k, 0) is the start of episode k, number (k, t) the slip of its step t. So the starts of
# a map do not depend on who plays it, how long the episodes were, or which other maps are played beside it.


def _mixed(z: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64, uint64 -> uint64: near inputs give unrelated outputs."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


def _stream_keys(seed: int, stream: np.ndarray) -> np.ndarray:
    """uint64 [n]: the keys of the streams of seeds ``seed + stream``, ``stream`` int [n]."""
    return _mixed((np.uint64(seed % 2**64) + stream.astype(np.uint64)) * _GOLDEN + _GOLDEN)


def _uniform(keys: np.ndarray, episode: np.ndarray, step: np.ndarray) -> np.ndarray:
    """float64 [n] in [0, 1): number (episode, step) of the streams ``keys`` uint64 [n]."""
    counter = (episode.astype(np.uint64) << np.uint64(32)) + step.astype(np.uint64) + np.uint64(1)
    return (_mixed(keys + counter * _GOLDEN) >> np.uint64(11)) * 2.0**-53


def _slipped(action: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The direction of the move on slippery ice: the chosen one or one beside it, each with probability 1/3."""
    return (action + (3 * uniform).astype(np.int64) - 1) % 4


class FrozenLakeEnv(gymnasium.Env):
    """One lake with gymnasium's interface; the step limit is ``gymnasium.make``'s TimeLimit.

    ``reset(seed=...)`` starts the map's random stream anew, ``reset()`` goes on with its next episode. Observation:
    the tile number. ``render_mode="ansi"`` draws the map with the agent's tile in brackets.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}

    def __init__(
        self, lake_map: LakeMap = DEFAULT_MAP, slippery: bool = False, render_mode: str | None = None
    ):
        (self.lake_map,) = _checked_maps([lake_map])
        self.slippery = slippery
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Discrete(lake_map.n_tiles)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._key: np.ndarray | None = None
        self._tile: int | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        if seed is None and self._key is None:
            seed = int(self.np_random.integers(2**62))
        if seed is not None:
            self._key = _stream_keys(seed, np.zeros(1))
            self._episode = -1
        self._episode += 1
        self._steps = 0
        starts = self.lake_map.starts
        self._tile = starts[int(self._random() * len(starts))]
        return self._tile, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        if self._tile is None:
            raise RuntimeError("step() before reset(): call reset(seed=...) first.")
        if action not in range(4):
            raise ValueError(f"action={action!r}: pass 0 (left), 1 (down), 2 (right) or 3 (up).")
        self._steps += 1
        if self.slippery:
            action = _slipped(action, self._random())
        self._tile = int(self.lake_map.next_tile[self._tile, action])
        on_goal = self._tile in self.lake_map.goals
        return self._tile, float(on_goal), on_goal or self._tile in self.lake_map.holes, False, {}

    def _random(self) -> np.float64:
        return _uniform(self._key, np.array([self._episode]), np.array([self._steps]))[0]

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
        maps: the lakes, one per environment.
        slippery: move in the chosen direction or one of the two beside it, each with probability 1/3.
        step_limit: steps after which an episode is truncated.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, maps: Sequence[LakeMap], slippery: bool = False, step_limit: int = STEP_LIMIT):
        if step_limit < 1:
            raise ValueError(f"step_limit={step_limit!r}: pass 1 or more.")
        self.maps = _checked_maps(maps)
        self.slippery = slippery
        self.step_limit = step_limit
        self._stream = np.arange(len(self.maps))  # the number of a map stays when others are dropped
        self._keys: np.ndarray | None = None
        self._use(LakeTables(self.maps))

    def _use(self, tables: LakeTables) -> None:
        """Flat tables: a place is ``row of the table * tiles + tile``, so that a step is one look-up."""
        self.tables = tables
        n, tiles = tables.kind.shape
        self.num_envs = n
        self._first = np.arange(n) * tiles
        self._next = (tables.next_tile + self._first[:, None, None]).ravel()
        self._kind = tables.kind.ravel()
        self.single_observation_space = gymnasium.spaces.Discrete(tiles)
        self.single_action_space = gymnasium.spaces.Discrete(4)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """New episodes on all maps -> tile int64 [n], {}.

        Map i gets the random stream of seed ``seed + i`` (as in gymnasium's SyncVectorEnv). Without a seed the
        streams go on, each with its next episode; the very first reset then draws a seed.
        """
        super().reset(seed=seed)
        if seed is None and self._keys is None:
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

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """``actions`` int [n] -> tile int64, reward float64, terminated bool, truncated bool, all [n], and {}."""
        if self._keys is None:
            raise RuntimeError("step() before reset(): call reset(seed=...) first.")
        actions = self._checked_actions(actions)
        self._steps += 1
        if self.slippery:
            actions = _slipped(actions, _uniform(self._keys, self._episode, self._steps))
        place = self._next[self._place * 4 + actions]
        kind = self._kind[place]
        reward = (kind == GOAL).astype(np.float64)
        terminated = kind != ORDINARY
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
        actions = np.asarray(actions, np.int64)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"actions has shape {actions.shape}: pass one for each of {self.num_envs} maps.")
        unknown = actions.view(np.uint64) > 3
        if unknown.any():
            wrong = actions[unknown & ~self._over]
            if wrong.size:
                raise ValueError(f"actions holds {wrong[0]}: pass 0 (left), 1 (down), 2 (right) or 3 (up).")
            actions = np.where(unknown, 0, actions)  # ignored: these maps begin a new episode in this step
        return actions

    def keep(self, rows: np.ndarray) -> None:
        """Go on with the maps ``rows`` (int [k]) only; their episodes and random streams do not change."""
        rows = np.arange(self.num_envs)[rows]
        self.maps = [self.maps[row] for row in rows]
        tile = self._place - self._first if self._keys is not None else None
        self._stream = self._stream[rows]
        self._use(self.tables.take(rows))
        if tile is not None:
            self._keys, self._episode, self._steps, self._over = (
                array[rows] for array in (self._keys, self._episode, self._steps, self._over)
            )
            self._place = self._first + tile[rows]


def make_vector_env(
    num_envs: int = 1,
    lake_map: LakeMap = DEFAULT_MAP,
    maps: Sequence[LakeMap] | None = None,
    slippery: bool = False,
    max_episode_steps: int = STEP_LIMIT,
) -> FrozenLakeVectorEnv:
    """What ``gymnasium.make_vec`` calls: ``num_envs`` times ``lake_map``, or one environment for each of ``maps``."""
    if maps is None:
        maps = [lake_map] * num_envs
    elif num_envs not in (1, len(maps)):  # 1 is what make_vec passes when the caller says nothing
        raise ValueError(f"num_envs={num_envs} but maps holds {len(maps)} maps: pass num_envs={len(maps)}.")
    return FrozenLakeVectorEnv(maps, slippery, max_episode_steps)


ENV_ID = "icrl_utils/FrozenLake-v0"
if ENV_ID not in gymnasium.registry:  # ``python -m icrl_utils.lake`` runs this file a second time
    gymnasium.register(
        ENV_ID,
        entry_point="icrl_utils.lake:FrozenLakeEnv",
        vector_entry_point="icrl_utils.lake:make_vector_env",
        max_episode_steps=STEP_LIMIT,
    )


# Held-out maps: every figure of the course is measured on them and nothing is ever trained on them. They are
# shipped as a file because numpy promises no equal random streams across its versions.

HELD_OUT_FILE = ASSETS / "held_out_maps.json"
HELD_OUT_SHA256 = "72e231988852f4b7b7e8458ab294f0c56e3ae1fe532291257bdfb88893e5ec80"
_LAWS = {"in_distribution": PAPER_IN_DISTRIBUTION, "out_of_distribution": PAPER_OUT_OF_DISTRIBUTION}
_HELD_OUT_SEEDS = {"in_distribution": 2501, "out_of_distribution": 14176}
_DEVELOPMENT_SEEDS = {"in_distribution": 7001, "out_of_distribution": 7002}
_HELD_OUT_SIZE = 500
_DEVELOPMENT_SIZE = 200


def held_out_maps(name: str) -> list[LakeMap]:
    """The 500 distinct maps of ``in_distribution`` (3..5 wide and high) or ``out_of_distribution`` (6..7).

    Raises:
        ValueError: unknown name, or the shipped file was altered.
        FileNotFoundError: the shipped file is missing.
    """
    return list(_held_out()[_checked_name(name)])


def development_maps(name: str, n: int = _DEVELOPMENT_SIZE) -> list[LakeMap]:
    """``n`` distinct maps of the same law as ``held_out_maps(name)``, none of them held out: for tuning."""
    return _distinct(_LAWS[_checked_name(name)], n, _DEVELOPMENT_SEEDS[name], exclude=_all_held_out())


def training_maps(distribution: MapDistribution, n: int, seed: int | np.random.Generator) -> list[LakeMap]:
    """``n`` maps of any law without the held-out maps and without the 200 + 200 default development maps."""
    development = [lake for name in _LAWS for lake in _default_development_maps(name)]
    return distribution.sample(n, seed, exclude=_all_held_out().union(development))


def reject_held_out(maps: Sequence[LakeMap], argument: str = "maps") -> None:
    """Raises a ValueError that names ``argument`` if any of ``maps`` is held out."""
    found = [i for i, lake in enumerate(maps) if lake in _all_held_out()]
    if found:
        raise ValueError(
            f"{argument}[{found[0]}]={maps[found[0]].id!r} is a held-out map ({len(found)} of {len(maps)} are): "
            "train on other maps, for example training_maps(TRAINING_MAPS, n, seed), which leaves them out."
        )


def _checked_name(name: str) -> str:
    if name not in _LAWS:
        raise ValueError(f"name={name!r}: unknown list of maps; choose one of {', '.join(_LAWS)}.")
    return name


def _distinct(
    distribution: MapDistribution, n: int, seed: int, exclude: Collection[LakeMap] = ()
) -> list[LakeMap]:
    """The first ``n`` different maps of ``distribution.sample(..., seed)``."""
    drawn = n
    while len(maps := list(dict.fromkeys(distribution.sample(drawn, seed, exclude)))) < n:
        drawn *= 2
    return maps[:n]


@cache
def _held_out() -> dict[str, tuple[LakeMap, ...]]:
    remedy = (
        "restore it with 'git checkout -- assets/held_out_maps.json' or remake it with 'python -m icrl_utils.lake'."
    )
    try:
        text = HELD_OUT_FILE.read_text(encoding="utf-8")  # line ends are normalised here, git may change them
    except FileNotFoundError:
        raise FileNotFoundError(f"{HELD_OUT_FILE} is missing: {remedy}") from None
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != HELD_OUT_SHA256:
        raise ValueError(
            f"{HELD_OUT_FILE} was altered (sha256 {digest[:12]}..., not {HELD_OUT_SHA256[:12]}...): {remedy}"
        )
    return {name: tuple(LakeMap(id.split("/")) for id in ids) for name, ids in json.loads(text).items()}


@cache
def _all_held_out() -> frozenset[LakeMap]:
    return frozenset(lake for maps in _held_out().values() for lake in maps)


@cache
def _default_development_maps(name: str) -> tuple[LakeMap, ...]:
    return tuple(development_maps(name))


def _make_held_out_file() -> None:
    """Draw the held-out maps again and write the file, if they are still the maps of HELD_OUT_SHA256."""
    lists = {name: _distinct(law, _HELD_OUT_SIZE, _HELD_OUT_SEEDS[name]) for name, law in _LAWS.items()}
    text = json.dumps({name: [lake.id for lake in maps] for name, maps in lists.items()}, indent=0) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != HELD_OUT_SHA256:
        raise SystemExit(
            f"numpy {np.__version__} draws other maps (sha256 {digest}) than those of all published figures "
            f"(sha256 {HELD_OUT_SHA256}): nothing written. Restore {HELD_OUT_FILE.name} from the repository."
        )
    HELD_OUT_FILE.parent.mkdir(parents=True, exist_ok=True)
    part = HELD_OUT_FILE.with_suffix(".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, HELD_OUT_FILE)
    print(f"Wrote {HELD_OUT_FILE}.")


if __name__ == "__main__":
    _make_held_out_file()
