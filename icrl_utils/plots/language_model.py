"""Pictures of what a language model knows about a history."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icrl_utils.plots.style import BLUE, GREY, ORANGE, PINK, new_figure, styled
from icrl_utils.statistics import Interval

MODEL_COLORS = (BLUE, GREY, ORANGE, PINK)
_AXES = {
    "shown": "how often the history has shown the move before",
    "distance": "tokens since it has shown it last",
    "outcome": "what a move seen before leads to",
}
Rates = Mapping[str, Mapping[str, Mapping[str, Interval]]]


@styled
def plot_zero_shot(rates: Rates, odds: Mapping[str, Mapping[str, np.ndarray]], title: str = "") -> Figure:
    """Shares of moves that a model is right about, with 95 % intervals, and log-odds of goal against hole.

    Args:
        rates: question (``shown``, ``distance``, ``outcome``) -> model -> group -> Interval.
        odds: model -> outcome -> float [moves].
    """
    figure, axes = new_figure(9.2, 6.0, 2, 2)
    panels = axes.flat
    for ax, (question, models) in zip(panels, rates.items(), strict=False):
        names = list(next(iter(models.values())))
        for place, (groups, color) in enumerate(zip(models.values(), MODEL_COLORS, strict=False)):
            x = np.arange(len(names)) + _shift(place, len(models))
            found = [groups[name] for name in names]
            ax.vlines(x, [r.low for r in found], [r.high for r in found], color=color, linewidth=2.5, alpha=0.5)
            ax.plot(x, [r.estimate for r in found], "o-" if question != "outcome" else "o", color=color, linewidth=1)
        ax.set_xticks(range(len(names)), names)
        ax.set(ylim=(-0.03, 1.03), xlabel=_AXES[question], ylabel="share it is right about")
        ax.grid(axis="y")
    _draw_odds(axes[1, 1], odds)
    handles = [Line2D([], [], color=c, marker="o", label=name) for name, c in zip(odds, MODEL_COLORS, strict=False)]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=8.5)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


def _draw_odds(ax: Axes, odds: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Median, middle half, and 5th to 95th percentile."""
    names = list(next(iter(odds.values())))
    for place, (groups, color) in enumerate(zip(odds.values(), MODEL_COLORS, strict=False)):
        for i, name in enumerate(names):
            if len(groups[name]):
                x = i + _shift(place, len(odds))
                low, first, middle, third, high = np.quantile(groups[name], [0.05, 0.25, 0.5, 0.75, 0.95])
                ax.vlines(x, low, high, color=color, linewidth=1.2)
                ax.vlines(x, first, third, color=color, linewidth=5, alpha=0.55)
                ax.plot(x, middle, "o", color=color)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_xticks(range(len(names)), names)
    ax.set(xlabel=_AXES["outcome"], ylabel="log-odds of goal against hole")
    ax.set_title("median, middle half, 5th to 95th percentile of moves", fontsize=9)
    ax.grid(axis="y")


def _shift(place: int, n: int) -> float:
    """Models beside each other."""
    return (place - (n - 1) / 2) * 0.16
