"""The look of every figure: colours, one for each player, how a figure begins and ends, how it writes numbers.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; none carries a meaning alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from icrl_utils.lake.maps import ACTIONS

ARROWS = dict(zip(ACTIONS, "←↓→↑", strict=True))
BLUE, ORANGE, GREEN, SKY, PINK, RED, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#F0E442",
)  # fmt: skip
INK, GREY, PALE = "#222222", "#767676", "#E9ECEF"
ICE_COLOR, WATER_COLOR, START_COLOR, GOAL_COLOR, FOG_COLOR = "#EAF4FA", "#33475B", "#FFF3C4", "#C8EBDC", "#D5D8DC"
STYLE: dict[Any, Any] = {  # keys are names of matplotlib's settings
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": False,
    "grid.color": PALE,
    "legend.frameon": False,
    "figure.dpi": 90,
    "savefig.dpi": 90,
}


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the style of the course and closes the figure, which pyplot would show a second time."""

    @wraps(plot)
    def draw(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = plot(*args, **kwargs)
        plt.close(figure)
        return figure

    return draw


def new_figure(width: float, height: float, *args, **kwargs) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches and its axes [rows, columns]; other arguments are those of ``plt.subplots``."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.1)  # titles of two lines need more room than the default
    return plt.subplots(*args, figsize=(width, height), squeeze=False, layout=layout, **kwargs)


POLICY_COLORS = {  # the same policy has the same colour in every figure
    "agent": BLUE,
    "memory-less": ORANGE,
    "memory-less table": "#A0522D",
    "memory-less table, argmax": "#D9A066",
    "random": GREY,
    "tabular Q": GREEN,
    "optimistic tabular Q": SKY,
    "R-max": PINK,
    "posterior sampling": RED,
    "oracle": INK,
    "SmolLM2": "#5E3C99",
    "SmolLM2 stage one": "#8073AC",
    "SmolLM2 untouched": "#B2ABD2",
    "SmolLM2 memory-less": ORANGE,
    "tiny Llama": BLUE,
    "base": "#7A5195",
    "this run": BLUE,  # the agent, where there are two
    "this run, memory-less": ORANGE,
    "shipped run": "#8C6D1F",
}
_MORE_COLORS = ("#3B8EA5", "#A23B72", "#4D7C0F", "#B5651D", "#5B5EA6")


def color_of(policy: str, index: int = 0) -> str:
    """The colour of a policy; ``index`` chooses one for names that no other figure has."""
    return POLICY_COLORS.get(policy) or _MORE_COLORS[index % len(_MORE_COLORS)]


def short_number(value: float) -> str:
    """Two decimals, and no zero before the point: ``.50``, ``-.05``, ``10.25``. From 1,000 on, where decimals have no
    room, ``1234``, and from 100,000 on ``1.2e+05``."""
    size = abs(value)
    text = f"{value:z.2f}" if size < 999.995 else f"{value:.0f}" if size < 99_999.5 else f"{value:.1e}"
    return without_leading_zero(text)


def without_leading_zero(text: str) -> str:
    """``0.5`` -> ``.5``, ``-0.5`` -> ``-.5``; the zero of ``10.5`` and a lone ``0`` stay."""
    return re.sub(r"^(-?)0\.", r"\1.", text)
