"""What was played, before it becomes text: episodes, the codes that stand for them in arrays, and decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from icrl_utils.lake.maps import ACTIONS
from icrl_utils.ranges import whole_numbers

Outcome = Literal["goal", "hole", "limit"]
ENDS: tuple[Outcome, ...] = ("goal", "hole", "limit")
OUTCOMES = (None, *ENDS)  # how a step ends; the index is the outcome's code in arrays
RUNNING, GOAL, HOLE, LIMIT = range(4)
RESET = 4  # in arrays of actions: not an action, but the beginning of an episode


@dataclass(frozen=True)
class Episode:
    """One episode: ``tiles[t]`` is where the agent stood before ``actions[t]``, ``tiles[-1]`` where it ended.

    For reading and writing single histories, so it is checked, may still be running, and may lack its last tile. What
    was played in bulk is kept in arrays instead, of equally many episodes a map (``play.rollout.Records``, whose
    ``episodes`` are these) or of any number (``play.collect.Play``, which becomes tokens without them).

    ``outcome`` None means that the episode is still running (or was cut off). The last tile is None where the
    text does not tell it: in ``compact`` the outcome stands in its place; in a running episode the last action
    may not have been answered yet.
    """

    tiles: tuple[int | None, ...]
    actions: tuple[int, ...]
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        told = iter(whole_numbers("tiles", [tile for tile in self.tiles if tile is not None]).tolist())
        object.__setattr__(self, "tiles", tuple(None if tile is None else next(told) for tile in self.tiles))
        object.__setattr__(self, "actions", tuple(whole_numbers("actions", list(self.actions)).tolist()))
        if len(self.tiles) != len(self.actions) + 1:
            raise ValueError(
                f"tiles has {len(self.tiles)} entries for {len(self.actions)} actions: give one tile before "
                "each action and one after the last (None if it is not known)"
            )
        known = self.tiles[:-1] if self.actions and self.tiles[-1] is None else self.tiles
        if any(tile is None or tile < 0 for tile in known):
            raise ValueError(
                f"tiles {self.tiles}: give tile numbers, 0 or more; only the one after the last action may be None"
            )
        if not set(self.actions) <= set(range(len(ACTIONS))):
            raise ValueError(f"actions {self.actions}: use 0, 1, 2, 3 for {', '.join(ACTIONS)}")
        if self.outcome not in OUTCOMES or (self.outcome and not self.actions):
            raise ValueError(
                f"outcome {self.outcome!r} after {len(self.actions)} actions: use 'goal', 'hole' or 'limit' "
                "after at least one action, or None while the episode is running"
            )

    @property
    def reward(self) -> float:
        """Return of the episode: 1.0 if it ended on a goal, else 0.0."""
        return float(self.outcome == "goal")

    @property
    def steps(self) -> int:
        """Number of actions."""
        return len(self.actions)


class Decisions(NamedTuple):
    """Where a batch of histories [B, T] decides: arrays [B, D], padded on the right with 0 and ``valid`` False.

    D depends on T only, so that a compiled training step is compiled once. Decision j's successor, whose
    Q-values enter the TD target, is decision j + 1 of the same row; it is not used where ``terminated``.
    """

    position: np.ndarray  # int64: Q is read here; the next token is the action word
    action: np.ndarray  # int64: 0..3, the action that was taken
    reward: np.ndarray  # float32: 1.0 where the action led onto a goal
    terminated: np.ndarray  # bool: it led onto a goal or into a hole, so the target is the reward alone
    has_target: np.ndarray  # bool: False after truncation and where the row ends before the successor
    valid: np.ndarray  # bool: False is padding


def pack_decisions(
    shape: tuple[int, int],
    row: np.ndarray,
    *,
    position: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    has_target: np.ndarray,
) -> Decisions:
    """Spread the values [N] of N decisions, sorted by their ``row`` [N], over arrays of ``shape`` [B, D]."""
    counts = np.bincount(row, minlength=shape[0])
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)

    def spread(values: np.ndarray, dtype: type) -> np.ndarray:
        array: np.ndarray = np.zeros(shape, dtype=dtype)
        array[row, column] = values
        return array

    return Decisions(
        position=spread(position, np.int64),
        action=spread(action, np.int64),
        reward=spread(reward, np.float32),
        terminated=spread(terminated, bool),
        has_target=spread(has_target, bool),
        valid=spread(np.ones(len(row), bool), bool),
    )
