"""Rehearsal: if walking is what passes values on, imagined walks should do it, too.

Before each episode some walks over moves that the history has shown are written behind it, as if they had been made.
Nothing in them is new: where each move leads is looked up in the history. After the episode they are taken out again;
only what was really played stays. The control has equally many tokens: the same walks over tiles of no lake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.evaluation.calibration import TO_GOAL, TO_HOLE, Graph, known_graph
from icrl_utils.evaluation.handoff import lakes_of_every_size
from icrl_utils.evaluation.made_up import agents_of
from icrl_utils.evaluation.tables import Table, mean_of_seeds, per_map, table_of, training_seed
from icrl_utils.history.compact import COMPACT_TILES
from icrl_utils.history.episodes import Episode
from icrl_utils.lake.maps import TileGame
from icrl_utils.llama.agent import Agent
from icrl_utils.play.policy import Policy, Step
from icrl_utils.play.rollout import Records, rollout
from icrl_utils.plots.style import BLUE, GREY, ORANGE
from icrl_utils.plots.values import plot_intervals
from icrl_utils.statistics import Interval, interval

# Chosen before the first look at a result.
REHEARSAL_LAKES, REHEARSAL_SEED = 100, 1311
EPISODES, COUNTED = 10, slice(5, 10)  # the statistic: success, and shortest paths, in these episodes
WALKS = (0, 1, 2, 4)
FILLERS = ("known moves", "elsewhere")  # what the walks tell
LONGEST_WALK = 10  # moves
METRICS = ("success", "shortest path")
AT_ONCE = 50  # lakes: bounds the memory


def imagine(graph: Graph, rng: np.random.Generator, longest: int = LONGEST_WALK) -> Episode | None:
    """A random walk over the known moves of ``graph`` that lead to another tile or onto a goal, from a random tile.

    It ends on a goal, else as if it were cut off. None where no such move is known.
    """
    moves: dict[int, list[tuple[int, int]]] = {}
    for (tile, action), after in graph.items():
        if after not in (tile, TO_HOLE):
            moves.setdefault(tile, []).append((action, after))
    if not moves:
        return None
    tiles: list[int | None] = [int(rng.choice(list(moves)))]
    actions: list[int] = []
    here = tiles[0]
    while here in moves and len(actions) < longest:
        action, here = moves[here][rng.integers(len(moves[here]))]
        actions.append(action)
        tiles.append(None if here == TO_GOAL else here)
    return Episode(tuple(tiles), tuple(actions), "goal" if here == TO_GOAL else "limit")


def elsewhere(walk: Episode, n_tiles: int) -> Episode:
    """The same walk over tile numbers that a lake of ``n_tiles`` does not have."""
    other = COMPACT_TILES - n_tiles
    tiles = tuple(None if tile is None else n_tiles + tile % other for tile in walk.tiles)
    return Episode(tiles, walk.actions, walk.outcome)


class Recalling:
    """The agent, as it plays when its histories begin with ``told``: int64 token ids [T] each, one a map."""

    def __init__(self, agent: Agent, told: Sequence[np.ndarray]):
        self.agent, self.told, self.name, self.batch_maps = agent, told, agent.name, len(told)

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        self.agent.start(maps, rngs)
        self.agent.recall(self.told)

    def act(self, step: Step) -> np.ndarray:
        return self.agent.act(step)

    def keep(self, rows: np.ndarray) -> None:
        self.agent.keep(rows)


def play_rehearsing(
    agent: Agent, lakes: Sequence[TileGame], walks: int, filler: str, seed: int = 0, episodes: int = EPISODES
) -> list[Records]:
    """One ``Records`` an episode: the agent decides all moves, with ``walks`` imagined walks behind its history."""
    past: list[list[Episode]] = [[] for _ in lakes]
    played = []
    for number in range(episodes):
        told = []
        for i, (lake, known) in enumerate(zip(lakes, past, strict=True)):
            rng, graph = np.random.default_rng([seed, number, i]), known_graph(known)
            walked = [walk for walk in (imagine(graph, rng) for _ in range(walks)) if walk]
            if filler == "elsewhere":
                walked = [elsewhere(walk, lake.n_tiles) for walk in walked]
            told.append(agent.format.tokenize(agent.format.render([*known, *walked])))
        records = rollout(Recalling(agent, told), lakes, "greedy", 1_000 * seed + number, episodes=1)
        for i, known in enumerate(past):
            known += records.episodes(i)
        played.append(records)
    return played


def lakes_to_rehearse(n: int = REHEARSAL_LAKES) -> dict[str, Sequence[TileGame]]:
    """sizes -> ``n`` held-out lakes."""
    return lakes_of_every_size(n, REHEARSAL_SEED)


def rehearsal(
    policies: Sequence[Policy],
    maps: Mapping[str, Sequence[TileGame]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Do imagined walks before each episode make it a better planner?

    Returns:
        Table with ``training_seed``, ``sizes``, ``walks``, ``filler`` ("none" where there are no walks), ``map``,
        ``episode``, ``success``, ``steps`` and ``optimal_steps``.
    """
    rows = []
    for agent in agents_of(policies):
        for sizes, lakes in (lakes_to_rehearse() if maps is None else maps).items():
            for filler, walks in [("none", 0), *((filler, walks) for filler in FILLERS for walks in WALKS if walks)]:
                row = {"training_seed": training_seed(agent), "sizes": sizes, "walks": walks, "filler": filler}
                for first in range(0, len(lakes), AT_ONCE):
                    part = lakes[first : first + AT_ONCE]
                    places = row | {"map": first + np.arange(len(part))}
                    for number, records in enumerate(play_rehearsing(agent, part, walks, filler, seed + first)):
                        columns = ("success", "steps", "optimal_steps")
                        found = {name: getattr(records, name)[:, 0].astype(int) for name in columns}
                        rows.append(places | {"episode": number} | found)
    return table_of(rows)


def _counted(table: Table) -> Table:
    """The rows of the counted episodes, with the column "shortest path": 1 where the goal was reached by one."""
    counted = (table["episode"] >= COUNTED.start) & (table["episode"] < COUNTED.stop)
    part = {name: column[counted] for name, column in table.items()}
    return part | {"shortest path": part["success"] * (part["steps"] == part["optimal_steps"])}


def effects(table: Table) -> dict[tuple[str, str], dict[tuple[str, int], Interval]]:
    """(sizes, metric) -> (filler, walks) -> mean over the counted episodes, with its 95 % interval over lakes.

    Metrics: "success", and "shortest path": the share of all episodes that reach the goal by a shortest path.
    """
    part = _counted(table)
    result: dict[tuple[str, str], dict[tuple[str, int], Interval]] = {}
    for metric in METRICS:
        for (sizes, filler, walks), values in per_map(part, ("sizes", "filler", "walks"), metric).items():
            result.setdefault((sizes, metric), {})[filler, walks] = interval(values)
    return result


def gains(table: Table) -> dict[tuple[str, str, int], Interval]:
    """(sizes, metric, walks) -> known moves minus elsewhere, paired by lakes, in the counted episodes."""
    part = _counted(table)
    found = {}
    for metric in METRICS:
        values = per_map(part, ("sizes", "filler", "walks"), metric)
        for sizes, filler, walks in values:
            if filler == FILLERS[0]:
                ours, control = (values[sizes, name, walks] for name in FILLERS)
                found[sizes, metric, walks] = interval(ours - control)
    return found


def describe_rehearsal(table: Table) -> str:
    """Both metrics as text, and the paired difference to the control."""
    lines = []
    for (sizes, metric), cells in effects(table).items():
        lines.append(f"lakes {sizes}, {metric}, episodes {COUNTED.start} to {COUNTED.stop - 1}")
        for (filler, walks), found in cells.items():
            lines.append(f"  {walks} walks, {filler:<14}{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]")
    for (sizes, metric, walks), found in gains(table).items():
        what = f"lakes {sizes}, {metric}, {walks} walks: known moves minus elsewhere"
        lines.append(f"{what:<70}{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
    return "\n".join(lines)


def plot_rehearsal(table: Table, title: str) -> Figure:
    """Success and shortest paths by number of imagined walks, for both sizes of lakes."""
    panels, colors = {}, {}
    for (sizes, metric), cells in effects(table).items():
        rows = {}
        for (filler, walks), found in sorted(cells.items(), key=lambda cell: cell[0][1]):
            name = f"{walks} walk{'s' * (walks != 1)}, {filler}" if walks else "no walks"
            rows[name] = found
            colors[name] = {FILLERS[0]: BLUE, FILLERS[1]: ORANGE}.get(filler, GREY)
        panels[f"{metric}, lakes {sizes}"] = rows
    n = table["map"].max() + 1
    note = f"episodes {COUNTED.start} to {COUNTED.stop - 1}, the agent decides; n = {n} held-out lakes of each size"
    note += f", {mean_of_seeds(table['training_seed'])}"
    return plot_intervals(panels, "share of episodes, with its 95 % interval over lakes", f"{title}\n{note}", colors)
