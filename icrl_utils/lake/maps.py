"""What a lake is: one map, the law that draws maps, exact values, and many maps as arrays.

    MapDistribution.sample -> list[LakeMap] -> LakeTables

A lake is one of the games on numbered tiles (`TileGame`); games that are no lakes, and their laws, are in
``lake/games.py``. Tiles of a lake are numbered ``row * width + column``. Nothing here moves: the environments are in
``lake/env.py``.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from icrl_utils.ranges import LARGEST_INT16, checked_seed, real_number, whole_number

ACTIONS = ("left", "down", "right", "up")  # gymnasium's numbering, 0..3
LETTERS = "SFHG"  # start, frozen, hole, goal
# Tile kinds, in LakeTables.kind. How an episode ends is another thing, an outcome: history/episodes.py.
ICE, GOAL_TILE, HOLE_TILE = range(3)
START_LETTER, FROZEN_LETTER, HOLE_LETTER, GOAL_LETTER = (ord(letter) for letter in LETTERS)


def read_only(array: np.ndarray) -> np.ndarray:
    """``array`` itself, which nobody can write to any more."""
    array.flags.writeable = False
    return array


# How a chosen action turns out: float64 [4, 4], the probability that the row's action becomes the column's.
FIRM = read_only(np.eye(4))  # as chosen
SLIPPERY = read_only((np.eye(4) + np.roll(np.eye(4), 1, axis=1) + np.roll(np.eye(4), -1, axis=1)) / 3)  # gymnasium's
FAR_SIGHTED = 0.99  # discount of the values that say what is best where moves slip: a hundred moves still count


class TileGame(ABC):
    """A game on numbered tiles with four actions: all that the compact text can tell, and all that players meet.

    A game says what it is by ``letters``, ``next_tile``, ``slip`` and ``id``; everything else follows. Games are
    immutable and hashable. That tiles lie side by side is known to lakes only: nothing here knows geometry.
    """

    @property
    @abstractmethod
    def id(self) -> str:
        """Everything that makes the game, in one line."""

    @property
    @abstractmethod
    def letters(self) -> str:
        """One letter a tile: S (start), F (frozen: play goes on), H (hole, deadly), G (goal)."""

    @property
    @abstractmethod
    def next_tile(self) -> np.ndarray:
        """int16 [n_tiles, 4]: the tile after each move. Goals and holes lead to themselves."""

    @property
    def slip(self) -> np.ndarray:
        """float64 [4, 4]: the probability that the chosen action (row) turns out as another (column)."""
        return FIRM

    @property
    def lake(self) -> LakeMap | None:
        """The lake that the game tells in other words, None if it is no lake: held-out lakes stay held out."""
        return None

    @property
    def n_tiles(self) -> int:
        return len(self.letters)

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
        return tuple(tile for tile, here in enumerate(self.letters) if here == letter)

    # The arrays below are made at their first use: sampling and comparing games must stay cheap.
    @cached_property
    def _tables(self) -> LakeTables:
        return LakeTables([self])

    @property
    def kind(self) -> np.ndarray:
        """uint8 [n_tiles]: ICE, GOAL_TILE or HOLE_TILE."""
        return read_only(self._tables.kind[0])

    @cached_property
    def distances(self) -> np.ndarray:
        """int16 [n_tiles]: moves to the nearest goal around the holes; 0 on goals, -1 where there is no way.

        Where moves slip it is the fewest, with luck."""
        return read_only(self._tables.distances[0])

    def optimal_steps(self, start: int) -> int:
        """Moves of a shortest path from ``start`` to a goal, -1 if there is none."""
        return int(self.distances[whole_number("start", start, 0, self.n_tiles - 1)])

    def transition_probabilities(self, slippery: bool = False) -> np.ndarray:
        """float64 [n_tiles, 4, n_tiles]: P(next tile | tile, action).

        ``slippery``: as on slippery ice, in the chosen direction or one of the two beside it, each with probability
        1/3, whatever the game's own ``slip`` is.
        """
        tiles, actions = np.ogrid[: self.n_tiles, :4]
        probabilities = np.zeros((self.n_tiles, 4, self.n_tiles))
        slip = SLIPPERY if slippery else self.slip
        for happening in range(4):
            probabilities[tiles, actions, self.next_tile[tiles, happening]] += slip[:, happening]
        terminal = [*self.goals, *self.holes]
        probabilities[terminal] = np.eye(self.n_tiles)[terminal][:, None]  # 1 exactly, not three thirds
        return probabilities

    def optimal_values(self, gamma: float = 0.9, slippery: bool = False) -> np.ndarray:
        """float64 [n_tiles, 4]: the optimal action values, by value iteration until nothing changes any more.

            Q*(s, a) = sum_s' P(s' | s, a) (r(s') + gamma max_a' Q*(s', a'))

        with r = 1 on goals, 0 elsewhere, and Q* = 0 at goals and holes, where the episode is over.
        """
        if not 0 <= real_number("gamma", gamma) <= 1:
            raise ValueError(f"gamma={gamma!r} is not a discount factor: pass a number from 0 to 1.")
        tables = self._tables
        slip = SLIPPERY[None] if slippery else tables.slip
        return exact_values(tables.next_tile, tables.kind, slip, gamma)[0]


def exact_values(next_tile: np.ndarray, kind: np.ndarray, slip: np.ndarray, gamma: float) -> np.ndarray:
    """float64 [n, tiles, 4]: Q* of n games; `TileGame.optimal_values` has the equation, `LakeTables` the arguments."""
    n, tiles = kind.shape
    after = next_tile + tiles * np.arange(n)[:, None, None]
    reward, goes_on = (kind == GOAL_TILE).astype(float), kind == ICE
    values = np.zeros((n, tiles, 4))
    while True:
        worth = (reward + gamma * values.max(axis=2)).ravel()[after]  # of what really happens
        new = (worth @ slip.swapaxes(1, 2)) * goes_on[:, :, None]
        if np.abs(new - values).max() < 1e-14:
            return new
        values = new


def check_letters(letters: str, argument: str) -> None:
    """Raises a ValueError that begins with ``argument`` unless ``letters`` make a game: a start, a goal, no others."""
    if unknown := set(letters).difference(LETTERS):
        raise ValueError(f"{argument} has unknown letters {sorted(unknown)}: use only S, F, H and G.")
    for letter, name in (("S", "start"), ("G", "goal")):
        if letter not in letters:
            raise ValueError(f"{argument} has no {name}: put at least one {letter} on the map.")


@dataclass(frozen=True)
class LakeMap(TileGame):
    """One lake, immutable and hashable: ``LakeMap(("SFF", "FHF", "FFG"))``.

    Args:
        rows: the rows from north to south, any sequence of strings of S (start), F (frozen), H (hole), G (goal).

    Raises:
        ValueError: the rows are not rectangular, hold other letters, lack a start or a goal, or have more than 32,767
            tiles.
    """

    rows: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.rows, str):
            raise ValueError(f"rows={self.rows!r} is one string: pass a sequence of rows, e.g. ('SFF', 'FFG').")
        rows = tuple(self.rows)
        object.__setattr__(self, "rows", rows)
        for row in rows:
            if not isinstance(row, str):
                raise ValueError(f"rows={rows!r} holds {row!r}: every row must be a string such as 'SFHG'.")
            if len(row) != len(rows[0]):
                raise ValueError(f"rows={rows!r} is not rectangular: give every row as many letters.")
        check_letters("".join(rows), f"rows={rows!r}")
        if self.n_tiles > LARGEST_INT16:
            raise ValueError(
                f"rows: {self.height} x {self.width} = {self.n_tiles:,} tiles are too many, their numbers would not "
                f"fit into 16 bits: pass a map of at most {LARGEST_INT16:,}."
            )

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
    def letters(self) -> str:
        return "".join(self.rows)

    @property
    def lake(self) -> LakeMap:
        return self

    @cached_property
    def next_tile(self) -> np.ndarray:
        """int16 [n_tiles, 4]: the tile after each action, without slipping. Goals and holes lead to themselves."""
        tile = np.arange(self.n_tiles)
        row, column = np.divmod(tile, self.width)
        goes_on = np.array([letter in "SF" for letter in self.letters])
        has_room = np.stack([column > 0, row < self.height - 1, column < self.width - 1, row > 0], axis=1)
        shift = np.array([-1, self.width, 1, -self.width])
        return read_only((tile[:, None] + shift * (has_room & goes_on[:, None])).astype(np.int16))


@dataclass(frozen=True)
class MapDistribution:
    """The paper's map law, by rejection sampling. The training lakes follow an easier one, see ``TRAINING_MAPS``.

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

    def __post_init__(self) -> None:
        largest = math.isqrt(LARGEST_INT16)
        whole_number("min_size", self.min_size, 1, largest)
        whole_number("max_size", self.max_size, 1, largest)
        if self.min_size > self.max_size:
            raise ValueError(f"min_size={self.min_size}, max_size={self.max_size}: pass min_size <= max_size.")
        for name in ("hole_prob", "start_prob", "goal_prob"):
            if not 0 <= real_number(name, getattr(self, name)) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is no probability: pass a number from 0 to 1.")
        whole_number("min_hops", self.min_hops, 1, fits="1 or more (a start is never a goal)")

    def sample(self, n: int, seed: int | np.random.Generator, exclude: Collection[LakeMap] = ()) -> list[LakeMap]:
        """``n`` independent maps, not necessarily distinct, none of them in ``exclude`` (best a set).

        A Generator is advanced by whole chunks of candidates.

        Raises:
            ValueError: a million candidates in a row were rejected.
        """
        n = whole_number("n", n, 0)
        rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(checked_seed(seed))
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
        distances = goal_distances(letters)
        too_near_or_cut_off = (letters == START_LETTER) & (distances < self.min_hops)
        kept = np.flatnonzero(~too_near_or_cut_off.any((1, 2)))
        text = letters[kept].tobytes().decode("ascii")
        maps = []
        for i, (h, w) in enumerate(zip(height[kept].tolist(), width[kept].tolist(), strict=True)):
            first = range(i * size * size, i * size * size + h * size, size)
            maps.append(LakeMap(tuple([text[k : k + w] for k in first])))
        return maps


DEFAULT_MAP = LakeMap(("SFFF", "FHFH", "FFFH", "HFFG"))  # gymnasium's 4x4 map

# The laws of the course. Evaluation is on the paper's two. Training lakes are of the sizes of the first, but a goal may
# be three moves from a start instead of four, so that they are easier: .56 of them have a start that near (.47 of their
# episodes begin there), and random play succeeds in .23 of its episodes (.23 to .24) against .15 (.14 to .16) under the
# paper's law and .16 (.14 to .18) on the 500 held-out lakes. Of the pretraining's lakes goals may be next to starts.
PAPER_IN_DISTRIBUTION = MapDistribution()
PAPER_OUT_OF_DISTRIBUTION = MapDistribution(6, 7)
TRAINING_MAPS = MapDistribution(3, 5, min_hops=3)
PRETRAINING_MAPS = MapDistribution(2, 8, min_hops=1)


def goal_distances(letters: np.ndarray) -> np.ndarray:
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


def moves_to_goal(next_tile: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """int16 [n, tiles] from int16 [n, tiles, 4] and uint8 [n, tiles]: breadth-first search backwards from the goals.

    All games at once, and no geometry: what leads where is all that is known.
    """
    n, tiles = kind.shape
    after = (next_tile + tiles * np.arange(n)[:, None, None]).ravel()
    edges = np.argsort(after, kind="stable")  # by the place that they lead to; those to place p begin at first[p]
    first = np.concatenate([[0], np.cumsum(np.bincount(after, minlength=n * tiles))])
    distances = np.full(n * tiles, -1, np.int16)
    frontier, distance = np.flatnonzero(kind.ravel() == GOAL_TILE), 0
    while len(frontier):
        distances[frontier] = distance
        counts = first[frontier + 1] - first[frontier]
        begins = np.repeat(first[frontier] - (np.cumsum(counts) - counts), counts)
        before = np.unique(edges[begins + np.arange(counts.sum())] // 4)
        frontier, distance = before[distances[before] < 0], distance + 1
    return distances.reshape(n, tiles)


class LakeTables:
    """Many games, of mixed sizes, as arrays, padded to the largest number of tiles and starts.

    Attributes:
        next_tile: int16 [n, tiles, 4], tile after each action; goals, holes and padding lead to themselves.
        kind: uint8 [n, tiles], ICE, GOAL_TILE or HOLE_TILE.
        starts: int16 [n, max_starts] in the game's order, padded by the first start.
        n_starts: int16 [n].
        slip: float64 [n, 4, 4], the probability that the chosen action turns out as another.
        distances: int16 [n, tiles], moves to the nearest goal, -1 where there is no way (and on padding).
    """

    _ARRAYS = ("next_tile", "kind", "starts", "n_starts", "slip", "distances")

    def __init__(self, maps: Sequence[TileGame]):
        maps = checked_maps(maps)
        texts, starts = [game.letters for game in maps], [game.starts for game in maps]
        n, tiles = len(maps), max(map(len, texts))
        padded = "".join([text.ljust(tiles, "\0") for text in texts]).encode("ascii")
        letters = np.frombuffer(padded, np.uint8).reshape(n, tiles)
        self.kind = np.zeros((n, tiles), np.uint8)
        self.kind[letters == GOAL_LETTER] = GOAL_TILE
        self.kind[letters == HOLE_LETTER] = HOLE_TILE
        self.n_starts = np.array([len(own) for own in starts], np.int16)
        most = int(self.n_starts.max())
        self.starts = np.array([own + own[:1] * (most - len(own)) for own in starts], np.int16)
        self.next_tile = np.empty((n, tiles, 4), np.int16)
        self.next_tile[:] = np.arange(tiles)[:, None]
        for row, game in enumerate(maps):
            self.next_tile[row, : len(texts[row])] = game.next_tile
        self.slip = np.array([game.slip for game in maps])
        self.distances = moves_to_goal(self.next_tile, self.kind)

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def n_tiles(self) -> int:
        """Tiles of the largest game."""
        return self.kind.shape[1]

    @cached_property
    def optimal(self) -> np.ndarray:
        """bool [n, tiles, 4]: the action brings the agent one move nearer to the nearest goal.

        Where moves slip the shortest way may be a dangerous one: there it is an action of the largest exact value.
        """
        after = np.take_along_axis(self.distances[:, :, None], self.next_tile.astype(np.int64), axis=1)
        best = after == self.distances[:, :, None] - 1
        slips = (self.slip != FIRM).any(axis=(1, 2))
        if slips.any():
            values = exact_values(self.next_tile[slips], self.kind[slips], self.slip[slips], FAR_SIGHTED)
            best[slips] = (values > values.max(axis=2, keepdims=True) - 1e-9) & (values > 0)
        return best

    def take(self, rows: np.ndarray) -> LakeTables:
        """The tables of some of the games, in the order of ``rows`` (padding keeps its width)."""
        part = copy.copy(self)
        part.__dict__.pop("optimal", None)
        for name in self._ARRAYS:
            setattr(part, name, getattr(self, name)[rows])
        return part


AnyGame = TypeVar("AnyGame", bound=TileGame)


def checked_maps(maps: Sequence[AnyGame], argument: str = "maps") -> list[AnyGame]:
    """``maps`` as a list. Raises a ValueError that names ``argument`` unless it holds games, and at least one."""
    if isinstance(maps, TileGame):
        raise ValueError(f"{argument}={maps!r} is one lake: pass a list of lakes, for example [lake].")
    if not isinstance(maps, Iterable):
        raise ValueError(f"{argument}={maps!r}: pass a list of LakeMap objects.")
    maps = list(maps)
    if not maps:
        raise ValueError(f"{argument}=[] is empty: pass at least one LakeMap, e.g. held_out_maps('in_distribution').")
    for game in maps:
        if not isinstance(game, TileGame):
            raise ValueError(f"{argument} holds {game!r}: pass LakeMap objects, e.g. LakeMap(('SFF', 'FFG')).")
    return maps
