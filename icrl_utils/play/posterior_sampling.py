"""Posterior sampling (PSRL): believe in one lake at a time, drawn from all that could still be the true one.

This baseline knows the law that lakes are drawn from, and geometry: a mark for what such prior knowledge is worth. At
every episode it draws a lake from the exact posterior and walks a shortest path on it (Thompson sampling, Osband et
al. 2013); it draws anew as soon as the drawn lake is contradicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl_utils.history.episodes import GOAL, HOLE, RESET, RUNNING
from icrl_utils.lake.maps import (
    FROZEN_LETTER,
    GOAL_LETTER,
    HOLE_LETTER,
    START_LETTER,
    MapDistribution,
    TileGame,
    goal_distances,
)
from icrl_utils.play.policy import Dice, Step, check_started

UNKNOWN, STANDABLE, IS_START, IS_GOAL, IS_HOLE = range(5)  # what is known about a tile; more never becomes less
LETTERS = np.array([START_LETTER, GOAL_LETTER, HOLE_LETTER, FROZEN_LETTER], np.uint8)
ROW_STEP, COLUMN_STEP = np.array([[0, 1, 0, -1], [-1, 0, 1, 0]])  # left, down, right, up


class PosteriorSamplingPolicy:
    """Shortest paths on a lake drawn from P(lake | everything seen) under ``law``.

    What is seen: moves (they tell the width and where the walls are), where episodes begin and end, and how often each
    start came up: a lake with s starts makes k given starts s^-k likely. Candidates with the right known tiles are
    drawn tile by tile and kept with exactly the probability that makes the kept ones samples of the posterior.
    """

    name = "posterior sampling"
    _CANDIDATES = (16, 4096)  # per lake in the first attempt, twice as many in each further one, at most
    _ATTEMPTS = 500
    _AT_ONCE = 2**16  # candidates of all lakes: bounds the memory
    _dice: Dice | None = None  # before `start`

    def __init__(self, law: MapDistribution):
        self.law = law
        line = np.arange(law.min_size, law.max_size + 1)
        self._height, self._width = (axis.ravel() for axis in np.meshgrid(line, line, indexing="ij"))
        row, column = np.ogrid[: law.max_size, : law.max_size]
        inside = (row < self._height[:, None, None]) & (column < self._width[:, None, None])
        tiles = law.max_size**2
        # From the order of tile numbers to that of a grid, for every size; outside is the entry behind the last tile.
        self._tile_at = np.where(inside, row * self._width[:, None, None] + column, tiles)
        start, goal = law.start_prob, (1 - law.start_prob) * law.goal_prob
        hole = (1 - start - goal) * law.hole_prob
        frozen = 1 - start - goal - hole
        self._below = np.zeros((5, 3))  # a uniform number below [start, goal, hole] decides, else frozen
        self._below[UNKNOWN] = np.cumsum([start, goal, hole])
        self._below[STANDABLE] = start / (start + frozen)
        self._below[IS_START] = 1
        self._below[IS_GOAL] = 0, 1, 1
        self._below[IS_HOLE] = 0, 0, 1

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        n, size = len(maps), self.law.max_size
        self._rngs, self._dice = list(rngs), Dice(rngs, 4)
        self._tile = np.zeros(n, np.int64)
        self._known = np.zeros((n, size**2), np.int64)
        self._possible = np.ones((n, len(self._height)), bool)  # sizes
        self._episodes = np.zeros(n, np.int64)
        self._size = np.zeros(n, np.int64)  # of the drawn lake: index into _height and _width
        self._letters = np.zeros((n, size, size), np.uint8)
        self._distances = np.full((n, size + 2, size + 2), -1)  # with a border, so that neighbours always exist

    def act(self, step: Step) -> np.ndarray:
        dice = check_started(self, self._dice)
        self._learn(step)
        awaits = step.outcome == RUNNING
        self._draw(np.flatnonzero(awaits & ((step.action == RESET) | self._contradicts(step))))
        self._tile = step.tile
        row, column = np.divmod(np.where(awaits, step.tile, 0), self._width[self._size])
        n = np.arange(len(row))
        here = self._distances[n, row + 1, column + 1]
        beside = self._distances[n[:, None], row[:, None] + 1 + ROW_STEP, column[:, None] + 1 + COLUMN_STEP]
        nearer = beside == here[:, None] - 1
        return (nearer + dice() / 2).argmax(1)

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._dice).keep(rows)
        self._rngs = [self._rngs[row] for row in rows]
        for name in ("_tile", "_known", "_possible", "_episodes", "_size", "_letters", "_distances"):
            setattr(self, name, getattr(self, name)[rows])

    def _learn(self, step: Step) -> None:
        n, begins = np.arange(len(step.tile)), step.action == RESET
        if (step.tile >= self._known.shape[1]).any():
            self._reject(n[step.tile >= self._known.shape[1]])
        self._episodes += begins
        kind = np.select([begins, step.outcome == GOAL, step.outcome == HOLE], [IS_START, IS_GOAL, IS_HOLE], STANDABLE)
        self._known[n, step.tile] = np.maximum(self._known[n, step.tile], kind)
        self._possible &= step.tile[:, None] < self._height * self._width
        led_to = self._move(self._tile[:, None], step.action[:, None], self._height, self._width)
        self._possible &= begins[:, None] | (led_to == step.tile[:, None])
        if not self._possible.any(1).all():
            self._reject(n[~self._possible.any(1)])

    def _contradicts(self, step: Step) -> np.ndarray:
        """bool [n]: the lake drawn before is not the true one."""
        height, width = self._height[self._size], self._width[self._size]
        elsewhere = self._move(self._tile, step.action, height, width) != step.tile
        drawn = self._letters[np.arange(len(width)), np.minimum(step.tile // width, height - 1), step.tile % width]
        return elsewhere | (drawn == GOAL_LETTER) | (drawn == HOLE_LETTER)  # only asked where the episode goes on

    @staticmethod
    def _move(tile: np.ndarray, action: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
        row, column = np.divmod(tile, width)
        row = np.clip(row + ROW_STEP[action % 4], 0, height - 1)
        return row * width + np.clip(column + COLUMN_STEP[action % 4], 0, width - 1)

    def _draw(self, rows: np.ndarray) -> None:
        """A lake of the posterior for each of ``rows``, by rejection: many candidates at a time, the first kept one.

        How many candidates an attempt has depends on nothing but how many attempts went before: a row's lake must not
        depend on the other rows.
        """
        candidates, most = self._CANDIDATES
        for _ in range(self._ATTEMPTS):
            if not len(rows):
                return
            at_once = max(1, self._AT_ONCE // candidates)
            parts = [rows[first : first + at_once] for first in range(0, len(rows), at_once)]
            rows = np.concatenate([part[~self._attempt(part, candidates)] for part in parts])
            candidates = min(2 * candidates, most)
        self._reject(rows)

    def _attempt(self, rows: np.ndarray, candidates: int) -> np.ndarray:
        """bool [len(rows)]: one of so many candidates was kept, and is from now on the row's lake."""
        size, shape = self.law.max_size, (len(rows), candidates)
        sizes = self._possible.shape[1]
        # Of each candidate a number for each size, for each tile, and one that decides whether it is kept.
        uniform = np.stack([self._rngs[row].random((candidates, sizes + size**2 + 1)) for row in rows])
        chosen = (uniform[..., :sizes] * self._possible[rows][:, None]).argmax(2)
        letter = LETTERS[(uniform[..., sizes:-1, None] >= self._below[self._known[rows]][:, None]).sum(3)]
        letter = np.concatenate([letter, np.zeros((*shape, 1), np.uint8)], 2)
        grid = np.take_along_axis(letter, self._tile_at[chosen].reshape(*shape, -1), 2).reshape(-1, size, size)
        distances = goal_distances(grid)
        is_start = grid == START_LETTER
        lawful = ~(is_start & (distances < self.law.min_hops)).any((1, 2))
        seen = (self._known[rows] == IS_START).sum(1)[:, None]
        likelihood = (seen / is_start.sum((1, 2)).reshape(shape)) ** self._episodes[rows][:, None]
        kept = lawful.reshape(shape) & (uniform[..., -1] < likelihood)
        found, first = kept.any(1), kept.argmax(1)
        to, at = rows[found], np.flatnonzero(found) * candidates + first[found]
        self._size[to], self._letters[to] = chosen.ravel()[at], grid[at]
        self._distances[to, 1:-1, 1:-1] = distances[at]
        return found

    def _reject(self, maps: np.ndarray) -> None:
        raise ValueError(
            f"law={self.law} hardly ever draws what was seen on {len(maps)} of the maps; give the law that they come "
            "from."
        )
