"""Pictures of how values are learned (notebooks 03 to 05); ``plots.py`` passes on all names of this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from icrl_utils.history import GOAL, HOLE, LIMIT
from icrl_utils.lake_plots import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PINK,
    RED,
    SKY,
    WATER,
    YELLOW,
    new_figure,
    styled,
)
from icrl_utils.statistics import Interval

LINE_COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, INK)
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]


@styled
def plot_lines(
    panels: Mapping[str, Lines],
    xlabel: str = "",
    ylabel: str = "",
    reference: Mapping[str, float] | None = None,
    log: str = "",
    ylim: tuple[float, float] | None = None,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Curves in one or more panels with common axes: panel title -> name of a curve -> (x [n], y [n] or [n, runs]).

    Args:
        reference: name -> height of a dashed line, in every panel.
        log: axes with a logarithmic scale: "", "x", "y" or "xy".
        columns: panels in a row, by default all.
    Several runs of one curve are drawn as thin lines, their median as a thick one.
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    width = min(9.4, 5.4 if columns == 1 else 0.6 + 4.2 * columns)
    figure, axes = new_figure(width, 0.5 + 2.5 * rows, rows, columns, sharex=True, sharey=True)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colors = dict(zip(names, LINE_COLORS * (len(names) // len(LINE_COLORS) + 1), strict=False))
    for ax, (panel, lines) in zip(axes.flat, panels.items(), strict=False):
        for name, (x, y) in lines.items():
            y = np.asarray(y, float)
            if y.ndim == 2:
                ax.plot(x, y, color=colors[name], linewidth=0.9, alpha=0.4)
                y = np.median(y, axis=1)
            ax.plot(x, y, color=colors[name], linewidth=2, marker="o" if len(y) < 9 else None, markersize=4, label=name)
        for name, height in (reference or {}).items():
            ax.axhline(height, color=INK, linestyle="--", linewidth=1, label=name)
        ax.set_title(panel, fontsize=10)
        ax.grid(axis="y")
        if "x" in log:
            ax.set_xscale("log")
        if "y" in log:
            ax.set_yscale("log")
    if ylim:
        axes[0, 0].set_ylim(*ylim)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    handles = {}
    for ax in axes.flat:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if len(handles) > 1 and len(panels) == 1:
        axes[0, 0].legend(handles.values(), handles.keys(), fontsize=8.5)
    elif len(handles) > 1:
        names = {"ncols": min(4, len(handles)), "fontsize": 8.5, "loc": "outside upper right"}
        figure.legend(handles.values(), handles.keys(), **names)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


OUTCOME_COLORS = {GOAL: GREEN, HOLE: WATER, LIMIT: YELLOW}


@styled
def plot_sets(panels: Mapping[str, Sequence[Sequence[int]]], title: str = "") -> Figure:
    """Slices of replay as rows of episodes, coloured by how they ended: panel title -> per slice its outcomes."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    height = max(len(slices) for slices in panels.values())
    figure, axes = new_figure(9.2, 0.6 + rows * (0.45 + 0.145 * height), rows, columns, sharex=True)
    for ax, (panel, slices) in zip(axes.flat, panels.items(), strict=False):
        for line, outcomes in enumerate(slices):
            colors = [OUTCOME_COLORS[int(outcome)] for outcome in outcomes]
            ax.barh([line] * len(outcomes), 0.86, left=np.arange(len(outcomes)), height=0.78, color=colors)
        goals = np.mean([outcome == GOAL for slice_ in slices for outcome in slice_])
        ax.set_title(f"{panel}: {goals:.0%} reach the goal", fontsize=10)
        ax.set(ylim=(len(slices) - 0.4, -0.6), yticks=[])
        ax.spines["left"].set_visible(False)
    figure.supxlabel("episode within the slice (a row is one slice: one lake, one player)", fontsize=9.5)
    handles = [Patch(color=OUTCOME_COLORS[code], label=name) for code, name in
               ((GOAL, "goal"), (HOLE, "hole"), (LIMIT, "step limit"))]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8.5)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


@styled
def plot_probes(rows: Sequence[Mapping], title: str = "") -> Figure:
    """Probe environments: the value wanted, the value learned, and the one learned with one ingredient broken.

    Args:
        rows: each with ``probe``, ``wanted``, ``learned``, ``broken`` (values) and ``damage`` (what was broken).
    """
    figure, axes = new_figure(8.8, 0.62 * len(rows) + 1.1)
    ax = axes[0, 0]
    for place, row in enumerate(rows):
        ax.vlines(row["wanted"], place - 0.32, place + 0.32, color=INK, linewidth=2.4, zorder=2)
        ax.plot(row["learned"], place, "o", color=BLUE, markersize=9, zorder=4)
        ax.plot(row["broken"], place, "X", color=RED, markersize=9, zorder=3)
        side, gap = ("right", -0.03) if row["broken"] > 0.5 else ("left", 0.03)
        ax.text(row["broken"] + gap, place + 0.3, row["damage"], ha=side, va="center", fontsize=8.5, color=RED)
    ax.set_yticks(range(len(rows)), [row["probe"] for row in rows])
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.06, 1.06), xlabel="Q")
    ax.grid(axis="x")
    handles = [
        Line2D([], [], color=INK, linewidth=2.4, label="wanted"),
        Line2D([], [], color=BLUE, marker="o", linestyle="", markersize=8, label="learned"),
        Line2D([], [], color=RED, marker="X", linestyle="", markersize=8, label="learned, one ingredient broken"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8.5)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


@styled
def plot_values_against_exact(learned: Mapping[str, np.ndarray], exact: np.ndarray, title: str = "") -> Figure:
    """Learned values against exact ones, one panel a moment: panel title -> float [...] of the shape of ``exact``."""
    figure, axes = new_figure(0.5 + 2.75 * len(learned), 3.1, 1, len(learned), sharex=True, sharey=True)
    for ax, (panel, values) in zip(axes[0], learned.items(), strict=True):
        error = float(np.sqrt(np.mean((np.asarray(values) - exact) ** 2)))
        ax.plot([0, 1], [0, 1], color=PALE, linewidth=5, zorder=1, solid_capstyle="round")
        ax.plot(np.ravel(exact), np.ravel(values), "o", color=BLUE, alpha=0.55, markersize=5, markeredgewidth=0)
        ax.set_title(f"{panel}\nroot mean square error {error:.3f}", fontsize=9.5)
        ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
    axes[0, 0].set_ylabel("learned Q")
    figure.supxlabel("exact Q*", fontsize=10)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


@styled
def plot_intervals(
    groups: Mapping[str, Mapping[str, Interval]], xlabel: str = "", title: str = "", colors: Mapping[str, str] = {}
) -> Figure:
    """Estimates as dots with their 95 % intervals: panel title -> name -> Interval of shares. One row a name."""
    names = list(dict.fromkeys(name for rows in groups.values() for name in rows))
    size = 1.6 + 2.6 * len(groups), 0.34 * len(names) + 1.2
    figure, axes = new_figure(*size, 1, len(groups), sharex=True, sharey=True)
    for ax, (panel, rows) in zip(axes[0], groups.items(), strict=True):
        for name, found in rows.items():
            _interval_dot(ax, names.index(name), found, colors.get(name, BLUE))
        ax.set_title(panel, fontsize=10)
        ax.grid(axis="x")
        ax.margins(x=0.16)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel(xlabel, fontsize=10)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


def _interval_dot(ax: Axes, place: int, found: Interval, color: str) -> None:
    ax.hlines(place, found.low, found.high, color=color, linewidth=3, alpha=0.5)
    ax.plot(found.estimate, place, "o", color=color, markersize=6)
    at = (found.estimate, place)
    text = f"{float(found.estimate):.2f}"
    ax.annotate(text, at, (0, 6), textcoords="offset points", ha="center", fontsize=8, color=GREY)
