"""What does an agent believe about moves whose outcome its history has already shown?

After some episodes of random play on a lake, every tile, action and outcome in the history is an edge of a graph. On
this *known graph* values are exact: a look-up, and look-ups of look-ups. An agent that learns in its context must
agree with them; where it does not tells what is missing (place instead of action, near goals only, ...).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from icrl_utils.history.episodes import Episode
from icrl_utils.lake.maps import ACTIONS, LakeMap
from icrl_utils.llama.agent import Agent
from icrl_utils.play.baselines import RandomPolicy
from icrl_utils.play.rollout import rollout

TO_GOAL, TO_HOLE = -1, -2  # graph ends: where an edge leads, if not to a tile on which play goes on
Graph = dict[tuple[int, int], int]  # (tile, action) -> tile, TO_GOAL or TO_HOLE


def known_graph(episodes: Sequence[Episode]) -> Graph:
    """The edges that ``episodes`` show. A last step that was cut off counts: its tile is a real one, if it is told."""
    ends: dict[str | None, int] = {"goal": TO_GOAL, "hole": TO_HOLE}
    graph: Graph = {}
    for episode in episodes:
        for t, (tile, action) in enumerate(zip(episode.tiles[:-1], episode.actions, strict=True), start=1):
            after = ends.get(episode.outcome) if t == episode.steps else None
            after = episode.tiles[t] if after is None else after
            if tile is not None and after is not None:
                graph[tile, action] = after
    return graph


def moves_to_goal(graph: Graph) -> dict[int, int]:
    """For every tile from which a goal is known to be reachable, the moves of the shortest known way."""
    distance, frontier = {TO_GOAL: 0}, [TO_GOAL]
    while frontier:
        before = {tile for (tile, _), after in graph.items() if after in frontier and tile not in distance}
        distance |= {tile: distance[frontier[0]] + 1 for tile in before}
        frontier = list(before)
    del distance[TO_GOAL]
    return distance


def edge_kind(graph: Graph, tile: int, action: int, gamma: float) -> tuple[str, float]:
    """What the history tells about an action, and its exact value on the known graph (nan where it tells none).

    A way to the goal of d moves that begins with this action is worth gamma^(d - 1), a hole 0. A move against a wall is
    worth 0 under the consistent backup (``dqn.td_targets``), as if it were repeated for ever.
    """
    distance = moves_to_goal(graph)
    after = graph.get((tile, action))
    if after is None:
        return "never tried", np.nan
    if after == TO_HOLE:
        return "seen hole", 0.0
    moves = 1 if after == TO_GOAL else 1 + distance[after] if after in distance else None
    if after == tile:
        return "wall", 0.0
    if moves is None:
        return "no way known", np.nan
    kind = "goal next" if moves == 1 else f"goal in {moves}" if moves < 5 else "goal in 5 or more"
    return kind, gamma ** (moves - 1)


KINDS = ("goal next", "goal in 2", "goal in 3", "goal in 4", "goal in 5 or more", "wall", "no way known", "never tried",
         "seen hole")  # fmt: skip


def known_graph_values(
    agent: Agent, maps: Sequence[LakeMap], gamma: float, episodes: int = 8, seed: int = 0
) -> list[dict]:
    """Q of ``agent`` for every tile that random play has shown it, with the exact values, as ``plot_calibration`` rows.

    Each lake is played at random for ``episodes`` episodes. Then the agent is led along known moves to each known
    tile, and asked there. ``gamma`` is the discount that it was trained with.

    Returns:
        rows with ``policy``, ``map``, ``tile``, ``action``, ``kind``, ``q``, ``exact`` (nan: none), sorted by ``kind``.
    """
    played = rollout(RandomPolicy(), maps, [0.0] * episodes, seed=seed)
    rows = []
    for i in range(len(maps)):
        past = played.episodes(i)
        graph = known_graph(past)
        for tile, way in known_ways(graph, int(played.tiles[i, -1, 0])).items():
            q = agent.q_values(agent.format.render([*past, way]))
            for action, value in enumerate(q):
                kind, exact = edge_kind(graph, tile, action, gamma)
                row = {"policy": agent.name, "map": i, "tile": tile, "action": ACTIONS[action], "kind": kind}
                rows.append(row | {"q": float(value), "exact": float(exact)})
    return sorted(rows, key=lambda row: KINDS.index(row["kind"]))


def known_ways(graph: Graph, start: int) -> dict[int, Episode]:
    """Known tile -> the shortest known way there from ``start``, as the beginning of an episode."""
    ways, queue = {start: Episode((start,), ())}, deque([start])
    while queue:
        tile = queue.popleft()
        for action in range(len(ACTIONS)):
            after = graph.get((tile, action), TO_HOLE)
            if after >= 0 and after not in ways:
                ways[after] = Episode((*ways[tile].tiles, after), (*ways[tile].actions, action))
                queue.append(after)
    return ways
