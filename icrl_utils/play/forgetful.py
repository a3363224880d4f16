"""R-max for lakes that change: one that forgets old episodes, and one that is told when to forget all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl_utils.history.episodes import RESET, RUNNING
from icrl_utils.lake.maps import TileGame
from icrl_utils.play.baselines import RMaxPolicy
from icrl_utils.play.policy import Step, check_started
from icrl_utils.ranges import whole_number


class RecentRMaxPolicy(RMaxPolicy):
    """R-max that remembers its last ``episodes`` episodes only, the running one included."""

    def __init__(self, episodes: int = 10):
        self.episodes = whole_number("episodes", episodes, 1)
        self.name = f"R-max, last {episodes}"

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        super().start(maps, rngs)
        self._episode = np.full(len(maps), -1)
        self._tried_in = np.full(self._next.shape, -1)  # the last episode that showed each move
        self._seen_in = np.full(self._ends.shape, -1)  # and each tile

    def act(self, step: Step) -> np.ndarray:
        check_started(self, self._dice)
        self._forget(step.action == RESET)
        moved = np.flatnonzero(step.action != RESET)
        self._tried_in[moved, self._tile[moved], step.action[moved]] = self._episode[moved]
        self._seen_in[np.arange(len(step.tile)), step.tile] = self._episode
        return super().act(step)

    def keep(self, rows: np.ndarray) -> None:
        super().keep(rows)
        self._episode, self._tried_in, self._seen_in = (
            array[rows] for array in (self._episode, self._tried_in, self._seen_in)
        )

    def _forget(self, begins: np.ndarray) -> None:
        """Where a new episode begins (bool [n]), drop what only an episode too long ago has shown."""
        self._episode += begins
        oldest = self._episode - self.episodes + 1
        too_old = (self._next >= 0) & (self._tried_in < oldest[:, None, None])
        self._next[too_old] = -1
        self._ends[self._seen_in < oldest[:, None]] = RUNNING
        self._plan(np.flatnonzero(too_old.any((1, 2))))


class ToldRMaxPolicy(RMaxPolicy):
    """R-max that is told when its game is exchanged, and then begins anew: what a notice of the change is worth."""

    name = "R-max, told"

    def exchange(self, rows: np.ndarray, maps: Sequence[TileGame]) -> None:
        check_started(self, self._dice)
        self._next[rows], self._ends[rows] = -1, RUNNING
        self._plan(rows)
