"""Stitching: two walks on one lake, neither of which is the way from the start to the goal; both together are.

One walk begins where play will begin and ends in a hole. The other one begins elsewhere and ends at the goal. They
share one tile, the crossing. A player that joins them goes along the first walk to the crossing and switches to the
second one there. Only its *first* attempt tells: every later one may have learned from the attempts before it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.evaluation.tables import Table, by_policy, describe, table_of, training_seed
from icrl_utils.history.episodes import Episode
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import LakeMap
from icrl_utils.play.policy import Policy
from icrl_utils.play.rollout import Records, rollout
from icrl_utils.plots.style import POLICY_COLORS
from icrl_utils.plots.values import plot_intervals
from icrl_utils.statistics import Interval, interval

# Chosen before the first look at a result.
CROSSINGS_SEED = 1310  # draws the walks
CROSSINGS = 300
ATTEMPTS = 5
FEWEST_MOVES = 4  # from the start to the nearest goal, as on all lakes of the evaluation
PAPER_HISTORIES = 10  # of the paper's one lake: equal but for the luck of their players
PAPER_LAKE, GENERATED = "the paper's lake", "generated crossings"
CONTEXTS = ("both walks", "only the walk to the goal", "only the walk to the hole", "outcomes exchanged")
NEVER_THERE, TO_HOLE, TO_GOAL, ELSEWHERE = range(4)  # what was done at the first visit to the crossing


@dataclass(frozen=True)
class Crossing:
    """A lake whose only start is where ``to_hole`` begins; ``to_goal`` begins elsewhere; both visit ``tile``."""

    lake: LakeMap
    to_hole: Episode
    to_goal: Episode
    tile: int

    def shown(self, context: str) -> list[Episode]:
        """The demonstrations of one of ``CONTEXTS``, the walk to the goal first, as in the paper."""
        walks = {
            "both walks": [self.to_goal, self.to_hole],
            "only the walk to the goal": [self.to_goal],
            "only the walk to the hole": [self.to_hole],
            "outcomes exchanged": [
                Episode(self.to_goal.tiles, self.to_goal.actions, "hole"),
                Episode(self.to_hole.tiles, self.to_hole.actions, "goal"),
            ],
        }
        if context not in walks:
            raise ValueError(f"context={context!r} is unknown; choose one of: {', '.join(walks)}.")
        return walks[context]


PAPER_CROSSING = Crossing(
    LakeMap(("HHFF", "FFFF", "SFFH", "HFFF", "HFFF", "HFGF")),
    to_hole=Episode((8, 9, 10, 11), (2, 2, 2), "hole"),
    to_goal=Episode((2, 6, 10, 14, 18, 22), (1, 1, 1, 1, 1), "goal"),
    tile=10,
)


def crossings(lakes: Sequence[LakeMap], n: int = CROSSINGS) -> list[Crossing]:
    """One crossing on each of the first ``n`` of ``lakes`` that have room for one.

    The walk to the goal is a shortest one from a random tile. The other one comes from at least two moves away, shares
    one of its inner tiles, and goes on from there by a shortest way into a hole; it begins at least four moves from the
    nearest goal, so that nobody stumbles on one.
    """
    found = (_crossing(lake, np.random.default_rng([CROSSINGS_SEED, i])) for i, lake in enumerate(lakes))
    return list(islice(filter(None, found), n))


class _Ways(NamedTuple):
    """Shortest ways from one tile around the tiles of ``closed``: moves to each tile, -1 where there is none."""

    moves: np.ndarray  # int64 [n_tiles]
    before: dict[int, tuple[int, int]]  # tile -> the tile before it on the way, and the move there

    @classmethod
    def search(cls, lake: LakeMap, start: int, closed: Collection[int], rng: np.random.Generator) -> _Ways:
        moves = np.full(lake.n_tiles, -1)
        moves[start] = 0
        before, frontier = {}, [start]
        while frontier:
            reached = []
            for tile in rng.permutation(frontier).tolist():
                for action in rng.permutation(4).tolist():
                    after = int(lake.next_tile[tile, action])
                    if moves[after] < 0 and after not in closed:
                        moves[after], before[after] = moves[tile] + 1, (tile, action)
                        reached.append(after)
            frontier = reached
        return cls(moves, before)

    def to(self, tile: int) -> tuple[list[int], list[int]]:
        """Tiles and actions of the way there."""
        tiles: list[int] = [tile]
        actions: list[int] = []
        while tile in self.before:
            tile, action = self.before[tile]
            tiles.insert(0, tile)
            actions.insert(0, action)
        return tiles, actions


def _crossing(lake: LakeMap, rng: np.random.Generator) -> Crossing | None:
    """None where fifty draws found none."""
    ice = [tile for tile, letter in enumerate(lake.letters) if letter in "SF"]
    ends = {*lake.holes, *lake.goals}
    for _ in range(50):
        begin, goal = int(rng.choice(ice)), int(rng.choice(lake.goals))
        ways = _Ways.search(lake, begin, ends - {goal}, rng)
        if ways.moves[goal] < 2:
            continue
        tiles, actions = ways.to(goal)
        tile, hole = int(rng.choice(tiles[1:-1])), int(rng.choice(lake.holes)) if lake.holes else None
        closed = {*tiles, *ends} - {tile}
        onward = _Ways.search(lake, tile, closed - {hole}, rng)
        if hole is None or onward.moves[hole] < 1:
            continue
        last_tiles, last_actions = onward.to(hole)
        starts = [t for t in ice if t not in closed | {*last_tiles} and lake.distances[t] >= FEWEST_MOVES]
        reach = {t: _Ways.search(lake, t, (closed | {*last_tiles}) - {tile}, rng) for t in starts}
        starts = [t for t in starts if reach[t].moves[tile] >= 2]
        if not starts:
            continue
        start = int(rng.choice(starts))
        first_tiles, first_actions = reach[start].to(tile)
        return Crossing(
            _with_one_start(lake, start),
            Episode((*first_tiles, *last_tiles[1:]), (*first_actions, *last_actions), "hole"),
            Episode(tuple(tiles), tuple(actions), "goal"),
            tile,
        )
    return None


def _with_one_start(lake: LakeMap, start: int) -> LakeMap:
    letters = list(lake.letters.replace("S", "F"))
    letters[start] = "S"
    width = lake.width
    return LakeMap(tuple("".join(letters[k : k + width]) for k in range(0, lake.n_tiles, width)))


def crossings_of_every_kind(lakes: Sequence[LakeMap] | None = None, n: int = CROSSINGS) -> dict[str, list[Crossing]]:
    """law -> crossings: the paper's one, equal ones, and those of ``lakes`` (by default the held-out ones)."""
    lakes = held_out_maps("in_distribution") if lakes is None else lakes
    return {PAPER_LAKE: [PAPER_CROSSING] * min(n, PAPER_HISTORIES), GENERATED: crossings(lakes, n)}


def stitching(
    policies: Sequence[Policy],
    maps: Mapping[str, Sequence[Crossing]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Does it join two halves of a way that it was only shown? Five attempts after the demonstrations.

    Args:
        policies: the memory-less one plays with both walks only: its context is cleared before the first attempt.
        maps: law -> crossings, by default the paper's lake and 300 generated ones.
    Returns:
        Table with ``law``, ``context`` (see ``CONTEXTS``), ``policy``, ``training_seed``, ``map``, ``episode`` (0: the
        first attempt), ``success``, ``steps``, ``optimal_steps`` and ``crossing``, what was done there.
    """
    rows = []
    for law, drawn in (crossings_of_every_kind() if maps is None else maps).items():
        lakes = [crossing.lake for crossing in drawn]
        for context in CONTEXTS:
            shown = [crossing.shown(context) for crossing in drawn]
            for policy in policies:
                if context == CONTEXTS[0] or getattr(policy, "memory", True):
                    records = rollout(policy, lakes, "greedy", seed, ATTEMPTS, progress=progress, shown=shown)
                    rows.append(_columns(records, drawn, law, context, policy))
    return table_of(rows)


def _columns(records: Records, drawn: Sequence[Crossing], law: str, context: str, policy: Policy) -> dict:
    n = len(drawn)
    return {
        "law": law,
        "context": context,
        "policy": policy.name,
        "training_seed": training_seed(policy),
        "map": np.repeat(np.arange(n), ATTEMPTS),
        "episode": np.tile(np.arange(ATTEMPTS), n),
        "success": records.success.ravel().astype(int),
        "steps": records.steps.ravel(),
        "optimal_steps": records.optimal_steps.ravel(),
        "crossing": done_at_crossing(records.tiles, records.actions, drawn).ravel(),
    }


def done_at_crossing(tiles: np.ndarray, actions: np.ndarray, drawn: Sequence[Crossing]) -> np.ndarray:
    """int64 [n, E]: the move made at the first visit to the crossing: on to the hole, to the goal, elsewhere, or
    NEVER_THERE. tiles: int [n, E, T + 1]; actions: int [n, E, T], -1 behind the end."""
    there = (tiles[:, :, :-1] == np.array([crossing.tile for crossing in drawn])[:, None, None]) & (actions >= 0)
    first = there.argmax(axis=2)
    move = np.take_along_axis(actions, first[:, :, None], axis=2)[:, :, 0]
    to_hole, to_goal = (
        np.array([walk.actions[walk.tiles.index(crossing.tile)] for crossing, walk in zip(drawn, walks, strict=True)])
        for walks in ([crossing.to_hole for crossing in drawn], [crossing.to_goal for crossing in drawn])
    )
    known = [~there.any(axis=2), move == to_hole[:, None], move == to_goal[:, None]]
    return np.select(known, [NEVER_THERE, TO_HOLE, TO_GOAL], ELSEWHERE)


def stitching_summary(table: Table, law: str = GENERATED) -> list[dict]:
    """Per context and policy, with 95 % intervals over crossings, training seeds averaged: in the first attempt how
    often the goal was reached, the goal was reached by a switch at the crossing (``joins``), the crossing was reached,
    and, where it was, the player switched to the walk to the goal or went on to the hole; and success in the later
    attempts."""
    summary = []
    for context in CONTEXTS:
        rows = (table["law"] == law) & (table["context"] == context)
        part = {name: values[rows] for name, values in table.items()}
        done = by_policy(part, "crossing")
        for policy, success in by_policy(part).items():
            first, there = done[policy][:, :, 0], (done[policy][:, :, 0] != NEVER_THERE).mean(0)
            summary.append(
                {
                    "policy": policy,
                    "context": context,
                    "arrives": interval(success[:, :, 0].mean(0)),
                    "joins": interval(((first == TO_GOAL) * success[:, :, 0]).mean(0)),
                    "at_crossing": interval(there),
                    "switches": interval((first == TO_GOAL).mean(0), there),
                    "to_hole": interval((first == TO_HOLE).mean(0), there),
                    "later": interval(success[:, :, 1:].mean((0, 2))),
                }
            )
    return summary


def gain_of_both(table: Table, policy: str = "agent", law: str = GENERATED) -> Interval:
    """By how much a first attempt arrives more often with both walks than with the better one of the two alone: paired
    over crossings. Who joins walks gains; who follows the one to the goal, once it meets it, does not."""
    first = {}
    for context in CONTEXTS[:3]:
        rows = (table["law"] == law) & (table["context"] == context) & (table["policy"] == policy)
        part = {name: values[rows] for name, values in table.items()}
        first[context] = by_policy(part)[policy][:, :, 0].mean(0)
    alone = max((first[context] for context in CONTEXTS[1:3]), key=np.mean)
    return interval(first[CONTEXTS[0]] - alone)


def describe_stitching(table: Table) -> str:
    """The paper's lake, run by run, and the summary of the generated crossings, context by context."""
    lines = []
    for context in CONTEXTS:
        rows = (table["law"] == PAPER_LAKE) & (table["context"] == context)
        for policy, success in by_policy({name: values[rows] for name, values in table.items()}).items():
            runs = "  ".join(" ".join(f"{share:.1f}" for share in run.mean(0)) for run in success)
            lines.append(f"{PAPER_LAKE}, {context}: {policy:<22}{runs}")
    for context in CONTEXTS:
        part = [row for row in stitching_summary(table) if row["context"] == context]
        lines += ["", f"{GENERATED}, {context}", describe(part)]
    return "\n".join(lines)


def plot_stitching(table: Table, title: str) -> Figure:
    """First attempts on the generated crossings: arrives, switches at the crossing; and the later ones."""
    rows = stitching_summary(table)
    panels = {"arrives, first attempt": "arrives", "switches at the crossing": "switches", "arrives, later": "later"}
    groups: dict[str, dict[str, Interval]] = {panel: {} for panel in panels}
    colors = {}
    for row in rows:
        if row["context"] != CONTEXTS[0] and row["policy"] not in ("agent", "R-max"):
            continue
        name = f"{row['policy']}: {row['context']}"
        colors[name] = POLICY_COLORS.get(row["policy"], POLICY_COLORS["agent"])
        for panel, metric in panels.items():
            groups[panel][name] = row[metric]
    n = len(np.unique(table["map"][table["law"] == GENERATED]))
    note = f"share with its 95 % interval over n = {n} crossings; agent: mean of its training seeds"
    return plot_intervals(groups, xlabel=note, title=title, colors=colors)
