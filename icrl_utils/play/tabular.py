"""Tabular Q-learning on many maps at once, in numpy: the behaviour policy of the data and a baseline."""

from __future__ import annotations

import numpy as np

from icrl_utils.ranges import real_number


class TabularQ:
    """One Q-table per map, all updated together.

    Args:
        n_maps: number of maps n.
        n_tiles: tiles of the largest map.
        initial_value: value of every entry at first, one number or one per map (float [n]). 0 gives plain Q-learning,
            1 (the largest return) the optimistic kind that tries everything once.
        alpha: learning rate. 1 is right for a lake without slipping: one look at a transition tells all.
        gamma: discount factor.

    Attributes:
        q: float32 [n, tiles, 4].
    """

    def __init__(
        self,
        n_maps: int,
        n_tiles: int,
        initial_value: float | np.ndarray = 0.0,
        alpha: float = 1.0,
        gamma: float = 0.9,
    ):
        self.alpha = real_number("alpha", alpha, 0, 1)
        self.gamma = real_number("gamma", gamma, 0, 1)
        self.q = np.empty((n_maps, n_tiles, 4), np.float32)
        self.q[:] = np.reshape(np.asarray(initial_value, np.float32), (-1, 1, 1))
        self._rows = np.arange(n_maps)

    def update(
        self,
        tile: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_tile: np.ndarray,
        terminated: np.ndarray,
        mask: np.ndarray,
    ) -> None:
        """One step of Q-learning on the maps where ``mask`` is True; all arguments are arrays [n].

            Q(s, a) <- Q(s, a) + alpha (r + gamma (1 - terminated) max_a' Q(s', a') - Q(s, a))

        Leave out (mask False) the steps that only began a new episode: nothing was tried there. A truncated step is
        learned from like any other, since its next tile is a real one.
        """
        best_next = self._values(next_tile).max(axis=1)
        target = reward + self.gamma * best_next * ~terminated
        old = self.q[self._rows, tile, action]
        self.q[self._rows, tile, action] = np.where(mask, old + self.alpha * (target - old), old)

    def greedy(self, tile: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """int64 [n]: an action of the largest value at ``tile`` int [n]. ``uniform`` float [n, 4], random numbers in
        [0, 1), breaks ties."""
        values = self._values(tile)
        tie = values == values.max(axis=1, keepdims=True)
        return (tie * (1 - uniform)).argmax(axis=1)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with the maps ``rows`` (int [k]) only."""
        self.q = self.q[rows]
        self._rows = np.arange(len(self.q))

    def _values(self, tile: np.ndarray) -> np.ndarray:
        return self.q[self._rows, tile]
