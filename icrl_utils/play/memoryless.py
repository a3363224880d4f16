"""The best that one can do without memory: one table of move probabilities for all lakes, trained by policy gradient.

Where nothing is remembered, the tile number is all there is to decide by, and a policy is a table pi(a | tile). It is
trained on many lakes at once to reach their goals, with exact gradients: on a known lake nothing needs to be sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl_utils.history.compact import COMPACT_TILES
from icrl_utils.lake.held_out import reject_held_out
from icrl_utils.lake.maps import FAR_SIGHTED, GOAL_TILE, ICE, LakeMap, LakeTables, TileGame
from icrl_utils.play.policy import Dice, Step, check_started
from icrl_utils.ranges import checked_seed

RANDOM_STARTS, CLIMB_STEPS, LEARNING_RATE = 6, 100, 0.2  # of the training of a table


def success_and_gradient(logits: np.ndarray, lakes: LakeTables) -> tuple[float, np.ndarray]:
    """How well the table plays ``lakes`` (firm ones), and how that changes with each of its numbers.

    With pi = softmax(logits), P its moves between tiles of ice and r the probability that the next move reaches a goal:

        v = (1 - gamma P)^-1 r,   m = (1 - gamma P^T)^-1 m_0,   q(s, a) = r(s, a) + gamma v(next)
        J = m_0 . v,   dJ / dlogit(s, a) = m(s) pi(a | s) (q(s, a) - v(s))        (policy gradient theorem)

    m_0 is where episodes begin, m how often each tile is stood on. gamma is so near to 1 that a hundred moves count.

    Args:
        logits: float64 [tiles, 4] for the tiles of the largest lake.
    Returns:
        J averaged over the lakes, and its gradient, float64 [tiles, 4].
    """
    n, tiles = lakes.kind.shape
    pi = np.exp(logits - logits.max(axis=1, keepdims=True))
    pi /= pi.sum(axis=1, keepdims=True)
    row, tile = np.arange(n)[:, None, None], np.arange(tiles)[None, :, None]
    after, is_ice = lakes.next_tile.astype(np.int64), (lakes.kind == ICE)[:, :, None]
    reward = is_ice * (lakes.kind[row, after] == GOAL_TILE)
    goes_on = pi * is_ice * (lakes.kind[row, after] == ICE)
    moves = np.bincount(((row * tiles + tile) * tiles + after).ravel(), goes_on.ravel(), n * tiles * tiles)
    inverse = np.linalg.inv(np.eye(tiles) - FAR_SIGHTED * moves.reshape(n, tiles, tiles))
    begins = np.zeros((n, tiles))
    for i, starts in enumerate(lakes.starts):
        begins[i, starts[: lakes.n_starts[i]]] = 1 / lakes.n_starts[i]
    value = (inverse @ (pi * reward).sum(axis=2)[:, :, None])[:, :, 0]
    visits = (begins[:, None] @ inverse)[:, 0]
    of_action = reward + FAR_SIGHTED * is_ice * (lakes.kind[row, after] == ICE) * value[row, after]
    gradient = visits[:, :, None] * pi * (of_action - value[:, :, None]) * is_ice
    return float((begins * value).sum(axis=1).mean()), gradient.mean(axis=0)


def train_memoryless_table(maps: Sequence[LakeMap], seed: int = 0) -> np.ndarray:
    """float64 [64, 4], logits of the moves for each tile number, by Adam uphill on ``maps``.

    The hill has many tops, so it is climbed from several random starts, and the best table on ``maps`` is kept. Tiles
    that no lake of ``maps`` has stay at 0, a fair die.

    Raises:
        ValueError: a held-out lake is among ``maps``, or none at all.
    """
    reject_held_out(maps)
    lakes, rng = LakeTables(maps), np.random.default_rng(checked_seed(seed))
    climbed = [_climb(rng.normal(size=(lakes.n_tiles, 4)), lakes) for _ in range(RANDOM_STARTS)]
    best = max(climbed, key=lambda logits: success_and_gradient(logits, lakes)[0])
    return np.pad(best, ((0, COMPACT_TILES - lakes.n_tiles), (0, 0)))


def _climb(logits: np.ndarray, lakes: LakeTables) -> np.ndarray:
    mean, square = np.zeros((2, *logits.shape))
    for step in range(1, CLIMB_STEPS + 1):
        _, gradient = success_and_gradient(logits, lakes)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        logits = logits + LEARNING_RATE * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.99**step)) + 1e-6)
    return logits


class MemorylessTablePolicy:
    """Plays a table of `train_memoryless_table`: draws each move from softmax(logits[tile]).

    Args:
        logits: float [64, 4].
        greedy: play the largest entry instead. Who remembers nothing then does the same at each visit, for ever.
    """

    _dice: Dice | None = None  # before `start`

    def __init__(self, logits: np.ndarray, greedy: bool = False):
        self.logits = np.asarray(logits, float)
        if self.logits.shape != (COMPACT_TILES, 4):
            raise ValueError(
                f"logits has shape {self.logits.shape}: pass [{COMPACT_TILES}, 4], as train_memoryless_table makes it."
            )
        self.greedy = greedy
        self.name = "memory-less table, argmax" if greedy else "memory-less table"

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        self._dice = Dice(rngs, 4)

    def act(self, step: Step) -> np.ndarray:
        dice = check_started(self, self._dice)()
        z = self.logits[step.tile]
        return (z if self.greedy else z - np.log(-np.log(dice))).argmax(axis=1)  # Gumbel noise draws from the softmax

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._dice).keep(rows)
