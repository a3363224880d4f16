"""Tables of numbers as pictures: who explores against who plays, heads against layers, tokens against layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl_utils.plots.style import BLUE, GREY, INK, new_figure, short_number, styled
from icrl_utils.statistics import Interval


class Grid(NamedTuple):
    """One matrix to draw: float [rows, columns], its names, and the ends of intervals where there are some."""

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@styled
def plot_matrices(
    panels: Mapping[str, Grid],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    limits: tuple[float, float] = (0, 1),
) -> Figure:
    """Matrices of numbers side by side, each number written into its cell, with its interval where there is one.

    Args:
        panels: title -> ``Grid``. limits: the values that are drawn palest and darkest.
    """
    columns = [len(grid.columns) for grid in panels.values()]
    rows = max(len(grid.rows) for grid in panels.values())
    wide = 0.95 if any(grid.low is not None for grid in panels.values()) else 0.58
    size = 2.0 + wide * sum(columns) + 0.5 * len(panels), 1.7 + 0.46 * rows
    figure, axes = new_figure(*size, 1, len(panels), gridspec_kw={"width_ratios": columns})
    for ax, (name, grid) in zip(axes[0], panels.items(), strict=True):
        _draw_grid(ax, grid, limits)
        ax.set_title(name, fontsize=10)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


@styled
def plot_cuts(means: Mapping[str, Interval], heads: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """What a value loses when attention is cut: in all heads (left), and in each head alone (right).

    Args:
        means: name of a cut -> mean value with its interval, all heads cut. heads: name -> float [layers, heads], the
            mean value lost when this head alone is cut.
    """
    ratios = [1.3, *[1] * len(heads)]
    size = 4.4 + 2.3 * len(heads), 1.5 + 0.27 * len(means)
    figure, axes = new_figure(*size, 1, len(ratios), gridspec_kw={"width_ratios": ratios})
    ax = axes[0, 0]
    for place, found in enumerate(means.values()):
        ax.hlines(place, found.low, found.high, color=BLUE, linewidth=4, alpha=0.5)
        ax.plot(found.estimate, place, "o", color=BLUE, markersize=5)
    ax.set_yticks(range(len(means)), list(means), fontsize=8.5)
    ax.set(ylim=(len(means) - 0.5, -0.5), xlim=(-0.03, 1.03), xlabel="value of the right first move")
    ax.set_title("cut in all heads", fontsize=10)
    ax.grid(axis="x")
    for ax, (name, lost) in zip(axes[0, 1:], heads.items(), strict=True):
        layers = [f"layer {i + 1}" for i in range(lost.shape[0])]
        _draw_grid(ax, Grid(lost, layers, [str(i + 1) for i in range(lost.shape[1])]), (0, 0.3))
        ax.set(xlabel="head")
        ax.set_title("value lost, one head cut:\n" + name.replace(", ", ",\n", 1), fontsize=8.5)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


def _draw_grid(ax: Axes, grid: Grid, limits: tuple[float, float]) -> None:
    values = np.asarray(grid.values, float)
    if values.shape != (len(grid.rows), len(grid.columns)):
        raise ValueError(f"values has shape {values.shape}: give [{len(grid.rows)}, {len(grid.columns)}], as named.")
    ax.imshow(values, cmap="Blues", vmin=limits[0], vmax=limits[1] + 0.15 * (limits[1] - limits[0]), aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        is_dark = (value - limits[0]) / (limits[1] - limits[0]) > 0.62
        color = "white" if is_dark else INK
        text = short_number(float(value))
        if grid.low is not None and grid.high is not None:
            ends = float(grid.low[row, column]), float(grid.high[row, column])
            text += "\n" + "–".join(map(short_number, ends))
        ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color, linespacing=1.25)
    is_long = max(map(len, grid.columns)) > 5
    ax.set_xticks(range(len(grid.columns)), grid.columns, fontsize=8.5)
    if is_long:
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(grid.rows)), grid.rows, fontsize=8.5)
    ax.tick_params(length=0, colors=GREY, labelcolor=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
