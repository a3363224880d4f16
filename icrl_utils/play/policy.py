"""What a policy sees and answers: the protocol between ``rollout`` and everything that can play a lake.

One policy object plays n lakes, or other games on numbered tiles, in lock-step. At each step it is told what just
happened on each and names the next action for each. The first step, and the step after an episode's end, is a reset: no
action was taken and a new episode begins on ``tile`` (gymnasium's next-step autoreset).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from icrl_utils.history.episodes import RESET
from icrl_utils.lake.maps import TileGame
from icrl_utils.ranges import real_number

PATIENCE = 25  # moves in an episode until the temperature of a choice is at its height


class Step(NamedTuple):
    """What just happened on n lakes; the constants are those of `icrl_utils.history.episodes`."""

    action: np.ndarray  # int64 [n]: 0..3 in the order left, down, right, up; RESET where an episode begins
    tile: np.ndarray  # int64 [n]: the tile that the agent stands on now
    outcome: np.ndarray  # uint8 [n]: RUNNING, GOAL, HOLE or LIMIT


class Policy(Protocol):
    """What everybody has who plays. Only who is to be told when games are exchanged (the oracle must be) has a fourth
    method, ``exchange(rows, maps)``: from their next episode on the histories ``rows``, int64, play ``maps``."""

    name: str

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        """Begin n = len(maps) fresh histories, each with its own random generator: a lake is played the same alone and
        among others. A policy that learns may use nothing of ``maps`` but their number and the size of the largest;
        only the oracle looks at a map, only posterior sampling knows the law of maps."""

    def act(self, step: Step) -> np.ndarray:
        """int64 [n]: the action that the policy itself would take now. Rows whose episode has just ended need no
        action: their answer is ignored."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only (int64, increasing): the others have played all their episodes."""


class Dice:
    """Uniform numbers for n histories that are played in lock-step, each history's from its own generator.

    They are drawn for many steps ahead: to call n generators at every step would cost more than the play.
    """

    _AHEAD = 64  # steps

    def __init__(self, rngs: Sequence[np.random.Generator], numbers: int):
        self._rngs, self._numbers = list(rngs), numbers
        self._used = self._AHEAD

    def __call__(self) -> np.ndarray:
        """float64 [n, numbers] in [0, 1): those of the next step."""
        if self._used == self._AHEAD:
            self._drawn = np.stack([rng.random((self._AHEAD, self._numbers)) for rng in self._rngs], axis=1)
            self._used = 0
        self._used += 1
        return self._drawn[self._used - 1]

    def keep(self, rows: np.ndarray) -> None:
        self._rngs = [self._rngs[row] for row in rows]
        if self._used < self._AHEAD:
            self._drawn = self._drawn[:, rows]


class Choice:
    """Which moves n histories make, given the read-out z of their four moves.

    Each is drawn from softmax(z / temperature), and the temperature grows evenly with the moves made in the running
    episode, from 0 (the largest z) to the full one after ``patience`` moves. Whoever knows the way has arrived by then.
    Whoever has not may be walking in a circle, which a greedy player never leaves.
    """

    def __init__(self, temperature: float, rngs: Sequence[np.random.Generator], patience: int = PATIENCE):
        self.temperature, self._rngs, self.patience = temperature, rngs, patience  # one generator a history
        self._moves = np.zeros(len(rngs))  # made in the running episode

    def __call__(self, z: np.ndarray, step: Step) -> np.ndarray:
        """int64 [n]: the moves that follow ``step``. z: float32 [n, 4]. The largest of z plus temperature times Gumbel
        noise is a draw from the softmax."""
        self._moves = np.where(step.action == RESET, 0, self._moves + 1)
        if not self.temperature:
            return z.argmax(1)
        temperature = self.temperature * np.minimum(self._moves / self.patience, 1)
        noise = np.stack([rng.gumbel(size=4) for rng in self._rngs])
        return (z + temperature[:, None] * noise).argmax(1)

    def keep(self, rows: np.ndarray) -> None:
        self._rngs, self._moves = [self._rngs[row] for row in rows], self._moves[rows]


def check_temperature(temperature: float) -> None:
    if real_number("temperature", temperature) < 0:
        raise ValueError(f"temperature={temperature!r} must not be negative; pass 0 for greedy play.")


Made = TypeVar("Made")


def check_started(policy: Policy, made_by_start: Made | None) -> Made:
    """``made_by_start``: something that ``policy.start`` makes, None before. Returns it."""
    if made_by_start is None:
        raise RuntimeError(
            f"policy {policy.name!r}: act() before start(): call start(maps, rngs) first, or let rollout(policy, maps) "
            "play."
        )
    return made_by_start
