"""A changing lake: sixty episodes in one context, and after thirty the lake is another one. Nobody is told.

The paper starts its schedule anew at the change, so that moves are forced again and every player's success falls,
whatever it remembers. The clean experiment lets the player decide throughout, and changes all, one hole, or the goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.evaluation.tables import Table, by_policy, describe, parts_of, table_of, training_seed
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, LakeMap, LakeTables
from icrl_utils.play.policy import Policy
from icrl_utils.play.posterior_sampling import PosteriorSamplingPolicy
from icrl_utils.play.rollout import PAPER_SCHEDULE, Records, rollout
from icrl_utils.plots.changes import plot_changes
from icrl_utils.statistics import episodes_to_first_streak, interval

# Chosen before the first look at a result.
CHANGE, EPISODES = 30, 60  # the lake is exchanged before this episode, of so many
CHANGES_SEED = 1309  # draws what moves where
CHANGES_EACH = 80  # histories of each kind of change
JUST_AFTER, LAST_TEN = slice(CHANGE, CHANGE + 5), slice(-10, None)
PROTOCOL, NEW_LAKE, MOVED_HOLE, MOVED_GOAL = "the paper's protocol", "new lake", "moved hole", "moved goal"
PAPER_TWICE = np.tile(PAPER_SCHEDULE, 2)


class Exchange(NamedTuple):
    """Lakes of n histories before and after the change."""

    before: list[LakeMap]
    after: list[LakeMap]


def exchanges(lakes: Sequence[LakeMap] | None = None, n: int = CHANGES_EACH) -> dict[str, Exchange]:
    """kind of change -> at most ``n`` pairs of lakes, from ``lakes`` (by default the held-out ones).

    A new lake is another one of the list. A moved hole goes to a tile on a shortest way from a start; a lake's only
    goal goes anywhere. Lakes stay lawful: every start at least four moves from its goal. Where nothing can move so, the
    lake is left out.
    """
    lakes = held_out_maps("in_distribution") if lakes is None else list(lakes)
    new = Exchange(list(lakes[: len(lakes) // 2][:n]), list(lakes[len(lakes) // 2 :][:n]))
    kinds = {PROTOCOL: new, NEW_LAKE: new}
    for number, (kind, moved) in enumerate({MOVED_HOLE: _moved_holes, MOVED_GOAL: _moved_goals}.items()):
        kinds[kind] = before, after = Exchange([], [])
        for i, lake in enumerate(lakes):
            if len(before) == n:
                break
            if found := [other for other in moved(lake) if _is_lawful(other)]:
                before.append(lake)
                after.append(found[np.random.default_rng([CHANGES_SEED, number, i]).integers(len(found))])
    return kinds


def _moved_holes(lake: LakeMap) -> list[LakeMap]:
    """Every lake with one hole less and another one on a shortest way."""
    on_way = _on_shortest_ways(lake)
    return [_moved(lake, hole, tile) for hole in lake.holes for tile in on_way]


def _moved_goals(lake: LakeMap) -> list[LakeMap]:
    """Every lake with the goal somewhere else; none if it has several."""
    if len(lake.goals) > 1:
        return []
    return [_moved(lake, lake.goals[0], tile) for tile, letter in enumerate(lake.letters) if letter == "F"]


def _on_shortest_ways(lake: LakeMap) -> list[int]:
    """The frozen tiles that a player who goes from a start to its goal by a shortest way may step on."""
    frontier, reached = set(lake.starts), set(lake.starts)
    while frontier:
        nearer = {(tile, int(after)) for tile in frontier for after in lake.next_tile[tile]}
        frontier = {after for tile, after in nearer if lake.distances[after] == lake.distances[tile] - 1} - reached
        reached |= frontier
    return [tile for tile in sorted(reached) if lake.letters[tile] == "F"]


def _moved(lake: LakeMap, tile: int, to: int) -> LakeMap:
    letters = list(lake.letters)
    letters[to], letters[tile] = letters[tile], "F"
    width = lake.width
    return LakeMap(tuple("".join(letters[k : k + width]) for k in range(0, lake.n_tiles, width)))


def _is_lawful(lake: LakeMap) -> bool:
    return all(lake.distances[start] >= PAPER_IN_DISTRIBUTION.min_hops for start in lake.starts)


def changing_lake(
    policies: Sequence[Policy],
    maps: Mapping[str, Exchange] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Does it notice that the lake has changed? Thirty episodes on one, thirty on another, in one context.

    Args:
        policies: posterior sampling is left out: it knows a law under which lakes do not change.
        maps: kind of change -> lakes before and after, see ``exchanges``.
    Returns:
        Table with ``law`` (the kind of change), ``policy``, ``training_seed``, ``map``, ``episode``, ``epsilon``,
        ``success``, ``steps``, and ``old_moves``: the moves of the episode that were on a shortest way on the lake
        before the change and are not on the one after it.
    """
    rows = []
    for kind, exchange in (exchanges() if maps is None else maps).items():
        schedule = (PAPER_TWICE if kind == PROTOCOL else np.ones(EPISODES)).tolist()
        for policy in policies:
            if not isinstance(policy, PosteriorSamplingPolicy):
                changes = {CHANGE: exchange.after}
                records = rollout(policy, exchange.before, schedule, seed, progress=progress, changes=changes)
                rows.append(_columns(records, exchange, kind, policy))
    return table_of(rows)


def _columns(records: Records, exchange: Exchange, kind: str, policy: Policy) -> dict:
    n, episodes = records.success.shape
    return {
        "law": kind,
        "policy": policy.name,
        "training_seed": training_seed(policy),
        "map": np.repeat(np.arange(n), episodes),
        "episode": np.tile(np.arange(episodes), n),
        "epsilon": np.tile(records.epsilon, n),
        "success": records.success.ravel().astype(int),
        "steps": records.steps.ravel(),
        "old_moves": old_moves(records.tiles, records.actions, exchange).ravel(),
    }


def old_moves(tiles: np.ndarray, actions: np.ndarray, exchange: Exchange) -> np.ndarray:
    """int64 [n, E]: the moves that bring one nearer to the goal on the lake before, and do not on the one after.

    tiles: int [n, E, T + 1], where the player stood; actions: int [n, E, T], -1 behind the end.
    """
    n = len(tiles)
    optimal = LakeTables([*exchange.before, *exchange.after]).optimal
    only_old = optimal[:n] & ~optimal[n:]
    return (only_old[np.arange(n)[:, None, None], tiles[:, :, :-1], actions] & (actions >= 0)).sum(axis=2)


def changing_summary(table: Table, kind: str) -> list[dict]:
    """Per policy, with 95 % intervals over histories, training seeds averaged.

    ``fresh`` and ``after``: episodes until the first of two successes in a row, on the first lake and on the second one
    (31 where there is none). ``regret``: episodes after the change that the oracle would have won and the player did
    not. ``old_moves``: the share of moves in the first five episodes after the change that only the old lake would
    justify. ``end``: success in the last ten episodes.
    """
    part = parts_of(table, "law")[kind]
    old, steps, won = (by_policy(part, name) for name in ("old_moves", "steps", "success"))
    summary = []
    for policy, success in won.items():
        first, second = (
            np.mean([episodes_to_first_streak(run[:, half], 2) for run in success], axis=0)
            for half in (slice(CHANGE), slice(CHANGE, None))
        )
        lost = (won["oracle"] - success)[:, :, CHANGE:].sum(axis=2).mean(axis=0)
        moves = [array[policy][:, :, JUST_AFTER].sum(axis=2).mean(axis=0) for array in (old, steps)]
        summary.append(
            {
                "policy": policy,
                "training_seeds": len(success),
                "maps": success.shape[1],
                "fresh": interval(first),
                "after": interval(second),
                "regret": interval(lost),
                "old_moves": interval(*moves),
                "end": interval(success[:, :, LAST_TEN].mean(axis=(0, 2))),
            }
        )
    return summary


def describe_changes(table: Table) -> str:
    """The summaries of all kinds of change, one below the other."""
    kinds = dict.fromkeys(table["law"].tolist())
    return "\n\n".join(f"{kind}\n{describe(changing_summary(table, kind))}" for kind in kinds)


def plot_changing(table: Table, title: str) -> Figure:
    """Success by episode of every player, one panel a kind of change."""
    panels, epsilon = {}, {}
    for kind, part in parts_of(table, "law").items():
        panels[kind] = by_policy(part)
        epsilon[kind] = next(iter(by_policy(part, "epsilon").values()))[0, 0]
    note = f"at most {table['map'].max() + 1} lakes of each kind; agent: mean of its training seeds"
    return plot_changes(panels, epsilon, CHANGE, title=title, note=note)
