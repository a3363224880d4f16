"""Context surgery: the history is the agent's only memory, so operate on it and see what the agent believes.

Each operation is a function from episodes to episodes. The agent is asked about the same move before and after it:
one that leads onto a goal, into a hole, or to a goal in two moves, all of them shown by the history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.evaluation.calibration import edge_kind, known_graph, known_ways
from icrl_utils.evaluation.made_up import GAMMA, agents_of
from icrl_utils.evaluation.tables import Table, mean_of_seeds, parts_of, per_map, table_of, training_seed
from icrl_utils.history.episodes import Episode, Outcome
from icrl_utils.lake.games import HeldOutLakes
from icrl_utils.lake.maps import TileGame
from icrl_utils.play.baselines import RandomPolicy
from icrl_utils.play.policy import Policy
from icrl_utils.play.rollout import rollout
from icrl_utils.plots.values import plot_intervals
from icrl_utils.statistics import Interval, interval

# Chosen before the first look at a result.
SURGERY_LAKES, SURGERY_SEED = 200, 1310
EPISODES = 12  # of random play before the question
ASKED = ("goal next", "goal in 2", "seen hole")  # kinds of moves
Edge = tuple[int, int]  # tile, action
Episodes = Sequence[Episode]


def leave_alone(past: Episodes, edge: Edge, other: Episodes) -> list[Episode]:
    return list(past)


def delete_outcome(past: Episodes, edge: Edge, other: Episodes) -> list[Episode]:
    """The word ``limit`` in place of ``goal`` or ``hole`` wherever an episode ended by this edge."""
    return [replace(e, outcome="limit") if (e.tiles[-2], e.actions[-1]) == edge else e for e in past]


def exchange_outcomes(past: Episodes, edge: Edge, other: Episodes) -> list[Episode]:
    """Goals become holes and holes goals, everywhere."""
    exchanged: dict[Outcome | None, Outcome] = {"goal": "hole", "hole": "goal"}
    return [replace(e, outcome=exchanged.get(e.outcome, e.outcome)) for e in past]


def remove_rewards(past: Episodes, edge: Edge, other: Episodes) -> list[Episode]:
    """``limit`` in place of every ``goal``."""
    return [replace(e, outcome="limit") if e.outcome == "goal" else e for e in past]


def another_lake(past: Episodes, edge: Edge, other: Episodes) -> list[Episode]:
    """The history of another lake, whose tiles have the same numbers."""
    return list(other)


SURGERIES: dict[str, Callable[[Episodes, Edge, Episodes], list[Episode]]] = {
    "untouched": leave_alone,
    "this outcome deleted": delete_outcome,
    "outcomes exchanged": exchange_outcomes,
    "all rewards removed": remove_rewards,
    "another lake's history": another_lake,
}


def edges_to_ask(past: Episodes, start: int, rng: np.random.Generator) -> dict[str, tuple[Edge, Episode]]:
    """kind -> a move of this kind that ``past`` shows, and a known way from ``start`` to its tile; kinds that it does
    not show are missing."""
    graph = known_graph(past)
    ways = known_ways(graph, start)
    found: dict[str, list[tuple[Edge, Episode]]] = {}
    for tile, way in ways.items():
        for action in range(4):
            kind = edge_kind(graph, tile, action, GAMMA)[0]
            found.setdefault(kind, []).append(((tile, action), way))
    return {kind: found[kind][rng.integers(len(found[kind]))] for kind in ASKED if kind in found}


def context_surgery(
    policies: Sequence[Policy], maps: Sequence[TileGame] | None = None, seed: int = 0, progress: bool = False
) -> Table:
    """What does the agent believe when its history was altered? Twelve episodes of random play, one operation, one
    question for each kind of move.

    Returns:
        Table with ``training_seed``, ``surgery``, ``kind``, ``map`` and ``q``. A lake whose history shows no move of a
        kind has no rows of it.
    """
    lakes = HeldOutLakes().sample(SURGERY_LAKES, SURGERY_SEED) if maps is None else maps
    played = rollout(RandomPolicy(), lakes, [0.0] * EPISODES, seed=seed)
    rows = []
    for i in range(len(lakes)):
        past, other = played.episodes(i), played.episodes((i + 1) % len(lakes))
        asked = edges_to_ask(past, int(played.tiles[i, -1, 0]), np.random.default_rng([seed, i]))
        for kind, ((tile, action), way) in asked.items():
            for name, operate in SURGERIES.items():
                told = [*operate(past, (tile, action), other), way]
                for agent in agents_of(policies):
                    q = float(agent.q_values(agent.format.render(told))[action])
                    row = {"training_seed": training_seed(agent), "surgery": name, "kind": kind, "map": i}
                    rows.append(row | {"q": round(q, 4)})
    return table_of(rows)


def beliefs(table: Table) -> dict[str, dict[str, Interval]]:
    """kind -> surgery -> mean value with its 95 % interval over the lakes whose history shows such a move."""
    result: dict[str, dict[str, Interval]] = {}
    for kind in [kind for kind in ASKED if kind in table["kind"]]:
        part = parts_of(table, "kind")[kind]
        part["map"] = np.unique(part["map"], return_inverse=True)[1]  # lakes without such a move are left out
        result[kind] = {name: interval(q) for (name,), q in per_map(part, ("surgery",), "q").items()}
    return result


def _lakes_with(table: Table) -> dict[str, int]:
    """kind -> number of lakes whose history shows such a move."""
    return {kind: len(np.unique(part["map"])) for kind, part in parts_of(table, "kind").items()}


def describe_surgery(table: Table) -> str:
    """Mean values as text, a line for each operation, a column for each kind of move."""
    found = beliefs(table)
    counts = _lakes_with(table)
    lines = [" " * 26 + "".join(f"{f'{kind} (n = {counts[kind]})':<24}" for kind in found).rstrip()]
    for name in SURGERIES:
        cells = [found[kind][name] for kind in found]
        lines.append(f"{name:<26}" + "".join(f"{f'{v.estimate:.2f} [{v.low:.2f}, {v.high:.2f}]':<24}" for v in cells))
    return "\n".join(line.rstrip() for line in lines)


def plot_surgery(table: Table, title: str) -> Figure:
    """Mean values, one panel a kind of move, one row an operation."""
    found = beliefs(table)
    counts = _lakes_with(table)
    note = f"held-out lakes after {EPISODES} episodes of random play; {mean_of_seeds(table['training_seed'])}"
    panels = {f"{kind} (n = {counts[kind]})": rows for kind, rows in found.items()}
    return plot_intervals(panels, "Q of the move with its 95 % interval over lakes", f"{title}\n{note}")
