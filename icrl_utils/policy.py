"""What a policy sees and answers: the protocol between ``rollout`` and everything that can play a lake.

One policy object plays n lakes in lock-step. At each step it is told what just happened on every lake and names the
next action for every lake. The first step, and the step after an episode's end, is a reset: no action was taken and a
new episode begins on ``tile`` (gymnasium's next-step autoreset).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from icrl_utils.lake import LakeMap


class Step(NamedTuple):
    """What just happened on n lakes; the constants are those of `icrl_utils.history`."""

    action: np.ndarray  # int64 [n]: 0..3 in the order left, down, right, up; RESET where an episode begins
    tile: np.ndarray  # int64 [n]: the tile that the agent stands on now
    outcome: np.ndarray  # uint8 [n]: RUNNING, GOAL, HOLE or LIMIT


class Policy(Protocol):
    name: str

    def start(self, maps: list[LakeMap], rngs: list[np.random.Generator]) -> None:
        """Begin n = len(maps) fresh histories, each with its own random generator. A policy that learns may use nothing
        of ``maps`` but their number and the size of the largest; only the oracle looks at a map, only posterior
        sampling knows the law of maps."""

    def act(self, step: Step) -> np.ndarray:
        """int64 [n]: the action that the policy itself would take now. Rows whose episode has just ended need no
        action: their answer is ignored."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only (int64, increasing): the others have played all their episodes."""
