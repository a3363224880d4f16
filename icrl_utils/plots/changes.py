"""Success by episode where the game is exchanged in between, and one lake as a player comes to know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.history.episodes import Episode
from icrl_utils.lake.maps import LakeMap
from icrl_utils.plots.curves import Curves, finish_panels, success_by_policy, trailing_mean
from icrl_utils.plots.lakes import draw_lake, draw_path, tile_places
from icrl_utils.plots.style import GREY, INK, PALE, RED, color_of, new_figure, styled
from icrl_utils.statistics import interval


@styled
def plot_changes(
    panels: Mapping[str, Curves],
    epsilon: Mapping[str, np.ndarray],
    change: int,
    title: str = "",
    note: str = "",
    smooth: int = 3,
    resamples: int = 500,
) -> Figure:
    """Success by episode in small multiples; a line marks the change, shade the episodes with forced moves.

    Args:
        panels: panel title -> what ``plot_learning_curves`` takes.
        epsilon: panel title -> float [episodes], the probability that the player decided.
        change: the first episode on the second game. Points before and after it are not averaged together.
        smooth: each point is the mean of the last ``smooth`` episodes of the same game.
        resamples: bootstrap samples of games for a band; 0 draws none.
    """
    success = {name: success_by_policy(curves) for name, curves in panels.items()}
    policies = list(dict.fromkeys(policy for group in success.values() for policy in group))
    rows = -(-len(panels) // 2)
    figure, axes = new_figure(10, 2.7 * rows + 1.2, rows, min(2, len(panels)), sharex=True, sharey=True)
    lines = {}
    for ax, (name, group) in zip(axes.flat, success.items(), strict=False):
        forced = np.flatnonzero(np.asarray(epsilon[name]) < 1)
        for episode in forced:
            ax.axvspan(episode - 0.5, episode + 0.5, color=PALE, alpha=0.55, linewidth=0, zorder=0)
        ax.axvline(change - 0.5, color=INK, linestyle="--", linewidth=1)
        for policy, values in group.items():
            color = color_of(policy, policies.index(policy))
            halves = [trailing_mean(half, smooth) for half in (values[:, :change], values[:, change:])]
            for first, half in zip((0, change), halves, strict=True):
                x = first + np.arange(half.shape[1])
                if resamples and policy == "agent":
                    band = interval(half, resamples=resamples)
                    ax.fill_between(x, band.low, band.high, color=color, alpha=0.2, linewidth=0)
                width = 2.4 if policy == "agent" else 1.4
                (lines[policy],) = ax.plot(x, half.mean(axis=0), color=color, linewidth=width, zorder=3)
        ax.set_title(name + (" (shaded: moves are forced)" if len(forced) else ""), fontsize=10)
        ax.set_ylim(-0.02, 1.02)
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    mean = f"mean of {smooth} episodes; dashed: the lake is exchanged; band of the agent: 95 % over lakes"
    figure.suptitle("\n".join(filter(None, (title, note, mean))), x=0.02, ha="left", fontsize=10.5)
    finish_panels(axes, len(panels), "episode in one context", {policy: lines[policy] for policy in policies}, 5)
    return figure


@styled
def plot_progress(lake_map: LakeMap, episodes: Sequence[Episode], chosen: Sequence[int]) -> Figure:
    """One lake as its player comes to know it: fog lies on tiles never stood on, a cross marks every death until then.

    Args:
        episodes: all of one history, in the order played.
        chosen: the episodes to draw, one panel each.
    """
    across = min(3, len(chosen))
    down = -(-len(chosen) // across)
    width = min(3.1, 9.3 / across)
    figure, axes = new_figure(width * across, (width * lake_map.height / lake_map.width + 0.6) * down, down, across)
    for ax in axes.flat:
        ax.axis("off")
    centre = tile_places(lake_map) + 0.5
    for ax, number in zip(axes.flat, chosen, strict=False):
        before = episodes[:number]
        known = {tile for episode in episodes[: number + 1] for tile in episode.tiles if tile is not None}
        draw_lake(ax, lake_map, known)
        deaths = {episode.tiles[-2:] for episode in before if episode.outcome == "hole"}
        for tile, hole in deaths:
            ax.plot(*(0.42 * centre[tile] + 0.58 * centre[hole]), "x", color=RED, markersize=9, markeredgewidth=2.4)
        draw_path(ax, lake_map, episodes[number])
        ending = {"goal": "goal", "hole": "hole", "limit": "cut off", None: "running"}[episodes[number].outcome]
        ax.set_title(f"episode {number}: {ending}, {episodes[number].steps} moves", fontsize=10)
    figure.supxlabel("? never stood on   ✕ on an edge: the player has died here before", fontsize=9, color=GREY)
    return figure
