"""Policies to compare with, all under the protocol of ``icrl_utils.play.policy``: they see what the agent sees.

Except for ``OraclePolicy`` none of them looks at a map. Each learns from its own history only, as the agent does:

- ``RandomPolicy``: a fair four-sided die.
- ``TabularPolicy``: Q-learning, plain (Q0 = 0) or optimistic (Q0 = 1: whatever was never tried looks best).
- ``RMaxPolicy``: a model of the transitions seen, used to reach a goal or else the nearest untried action.
- ``OraclePolicy``: shortest paths on the true map.

None knows geometry, so all of them play every game on numbered tiles.

The memory-less baseline is the agent itself with ``memory=False``; posterior sampling, which knows the law of the
maps, has a file of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl_utils.history.episodes import GOAL, HOLE, RESET, RUNNING
from icrl_utils.lake.maps import LakeTables, TileGame
from icrl_utils.play.policy import Dice, Step, check_started
from icrl_utils.play.tabular import TabularQ


class RandomPolicy:
    name = "random"
    _dice: Dice | None = None  # before `start`

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        self._dice = Dice(rngs, 1)

    def act(self, step: Step) -> np.ndarray:
        dice = check_started(self, self._dice)
        return (4 * dice()[:, 0]).astype(np.int64)

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._dice).keep(rows)


class TabularPolicy:
    """Greedy in a Q-table that is updated after every step (`TabularQ`), ties broken at random."""

    _dice: Dice | None = None

    def __init__(self, initial_value: float = 0.0):
        self.initial_value = initial_value
        self.name = "optimistic tabular Q" if initial_value > 0 else "tabular Q"

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        self._dice = Dice(rngs, 4)
        self._table = TabularQ(len(maps), max(lake.n_tiles for lake in maps), self.initial_value)
        self._tile = np.zeros(len(maps), np.int64)

    def act(self, step: Step) -> np.ndarray:
        dice = check_started(self, self._dice)
        moved = step.action != RESET
        self._table.update(
            self._tile,
            np.where(moved, step.action, 0),
            reward=(step.outcome == GOAL).astype(np.float32),
            next_tile=step.tile,
            terminated=(step.outcome == GOAL) | (step.outcome == HOLE),
            mask=moved,
        )
        self._tile = step.tile
        return self._table.greedy(step.tile, dice())

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._dice).keep(rows)
        self._table.keep(rows)
        self._tile = self._tile[rows]


class RMaxPolicy:
    """Follow the shortest known path to a goal; where none is known, the shortest one to an untried (tile, action).

    It knows no geometry: that two tiles are neighbours it learns by moving from one to the other. With d = 0 at what
    is sought, both plans are shortest paths on the graph of the moves seen so far:

        d(tile) = 1 + min over tried actions of d(next tile),   and d = infinity beyond a hole.

    It takes it that a move always leads to the same tile, and that a tile ends every episode or none. Where that is
    not so, it believes what it saw last.
    """

    name = "R-max"
    _FAR = 1_000_000  # longer than any path
    _dice: Dice | None = None

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        n, tiles = len(maps), max(lake.n_tiles for lake in maps)
        self._dice = Dice(rngs, 4)
        self._tile = np.zeros(n, np.int64)
        self._next = np.full((n, tiles, 4), -1, np.int64)  # tile after each action, -1 if it was never tried
        self._to_goal = np.full((n, tiles, 4), self._FAR)  # moves to a goal, this action first
        self._to_new = np.ones((n, tiles, 4), int)  # moves to an untried action, itself included
        self._ends = np.zeros((n, tiles), np.uint8)  # GOAL or HOLE where an episode was seen to end

    def act(self, step: Step) -> np.ndarray:
        dice = check_started(self, self._dice)
        n = np.arange(len(step.tile))
        moved = np.flatnonzero(step.action != RESET)
        at = moved, self._tile[moved], step.action[moved]
        end = np.where((step.outcome == GOAL) | (step.outcome == HOLE), step.outcome, RUNNING)
        is_new = self._ends[n, step.tile] != end
        is_new[moved] |= self._next[at] != step.tile[moved]
        self._next[at] = step.tile[moved]
        self._ends[n, step.tile] = end
        self._plan(np.flatnonzero(is_new))
        self._tile = step.tile
        to_goal, to_new = self._to_goal[n, step.tile], self._to_new[n, step.tile]
        knows_goal = to_goal.min(axis=1, keepdims=True) < self._FAR
        length = np.where(knows_goal, to_goal, to_new)
        return (length + dice() / 2).argmin(axis=1)

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._dice).keep(rows)
        for name in ("_tile", "_next", "_to_goal", "_to_new", "_ends"):
            setattr(self, name, getattr(self, name)[rows])

    def _plan(self, rows: np.ndarray) -> None:
        """Renew both plans of the maps ``rows``."""
        if not len(rows):
            return
        following, ends = self._next[rows], self._ends[rows]
        goal_end = np.select([ends == GOAL, ends == HOLE], [0, self._FAR], -1)
        self._to_goal[rows] = self._shortest(following, self._FAR, goal_end)
        self._to_new[rows] = self._shortest(following, 1, np.where(ends > 0, self._FAR, -1))

    def _shortest(self, following: np.ndarray, untried_cost: int, end_cost: np.ndarray) -> np.ndarray:
        """int64 [m, tiles, 4]: cost of the cheapest plan that begins with each action, by value iteration.

        following: [m, tiles, 4], -1 where untried. end_cost: [m, tiles], -1 where an episode goes on.
        """
        m, tiles, _ = following.shape
        next_place = np.maximum(following, 0) + tiles * np.arange(m)[:, None, None]
        of_tile = np.full((m, tiles), self._FAR)
        while True:
            onward = np.minimum(1 + of_tile.ravel()[next_place], self._FAR)
            of_action = np.where(following < 0, untried_cost, onward)
            new = np.where(end_cost >= 0, end_cost, of_action.min(axis=2))
            if np.array_equal(new, of_tile):
                return of_action
            of_tile = new


class OraclePolicy:
    """Knows the map: always a move that shortens the way to the nearest goal (on ice that slips: the safest one)."""

    name = "oracle"
    _dice: Dice | None = None

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        self._dice = Dice(rngs, 4)
        self._optimal = LakeTables(maps).optimal

    def exchange(self, rows: np.ndarray, maps: Sequence[TileGame]) -> None:
        check_started(self, self._dice)
        optimal = LakeTables(maps).optimal
        self._optimal[rows] = False
        self._optimal[rows, : optimal.shape[1]] = optimal

    def act(self, step: Step) -> np.ndarray:
        dice = check_started(self, self._dice)
        good = self._optimal[np.arange(len(step.tile)), step.tile]
        return (good + dice() / 2).argmax(axis=1)

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._dice).keep(rows)
        self._optimal = self._optimal[rows]
