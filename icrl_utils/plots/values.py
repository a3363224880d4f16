"""Pictures of numbers: costs of histories, Q-values, replay and probes, training runs, any curves and intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from icrl_utils.history.episodes import GOAL, HOLE, LIMIT
from icrl_utils.lake.maps import ACTIONS
from icrl_utils.plots.style import (
    ARROWS,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PINK,
    RED,
    SKY,
    WATER_COLOR,
    YELLOW,
    color_of,
    new_figure,
    styled,
)
from icrl_utils.statistics import Interval, median_interval

# ---------------------------------------------------------------------------------------------------------------- costs


@styled
def plot_token_costs(tokens: Mapping[str, Mapping[str, float]], context: int = 8192, title: str = "") -> Figure:
    """Length of a history: player -> way of writing -> tokens; dots on a logarithmic axis (which has no zero from which
    bars could begin), the context as a line."""
    ways = list(dict.fromkeys(way for costs in tokens.values() for way in costs))
    figure, axes = new_figure(8.4, 1.5 + 0.55 * len(tokens))
    ax = axes[0, 0]
    for way, color in zip(ways, cycle((BLUE, ORANGE, GREY, SKY)), strict=False):
        lengths = [costs[way] for costs in tokens.values()]
        ax.plot(lengths, range(len(tokens)), "o", color=color, markersize=10, label=way, zorder=3)
        for place, length in enumerate(lengths):
            style = {"textcoords": "offset points", "ha": "center", "fontsize": 9.5, "color": color}
            ax.annotate(f"{length:,.0f}", (length, place), (0, 9), **style)
    for place, costs in enumerate(tokens.values()):
        ax.hlines(place, min(costs.values()), max(costs.values()), color=PALE, linewidth=4, zorder=1)
    ax.axvline(context, color=RED, linewidth=1.5, zorder=0.5)
    ax.text(context, len(tokens) - 0.55, f" context: {context:,}", color=RED, fontsize=9.5, va="bottom")
    ax.set_yticks(range(len(tokens)), list(tokens))
    ax.set(ylim=(len(tokens) - 0.5, -0.6), xscale="log", xlabel="tokens (logarithmic)")
    ax.set_title(title, pad=20)
    ax.margins(x=0.08)
    ax.legend(fontsize=9.5, loc="lower right", bbox_to_anchor=(1, 1.0), ncols=len(ways))
    return figure


# --------------------------------------------------------------------------------------------------------------- values


@styled
def plot_q_bars(
    q: np.ndarray | Mapping[str, np.ndarray], exact: np.ndarray | None = None, title: str = "", label: str = "Q"
) -> Figure:
    """Four values as bars; the greedy action is the full-coloured one.

    Args:
        q: float [4] in the order left, down, right, up, or name -> float [4] for several groups side by side.
        exact: float [4], drawn as black lines (the same for every group).
        label: of the axis, for example "logit".
    """
    groups = q if isinstance(q, Mapping) else {"": q}
    figure, axes = new_figure(max(3.4, 3.0 * len(groups)), 2.7, 1, len(groups), sharey=True)
    decimals = 2 if min(np.abs(values).max() for values in groups.values()) >= 0.1 else 3  # as many in every group
    for ax, (name, values) in zip(axes[0], groups.items(), strict=True):
        values = np.asarray(values, float)
        if values.shape != (len(ACTIONS),):
            raise ValueError(f"q[{name!r}] has shape {values.shape}: give 4 values, left, down, right, up.")
        is_best = np.arange(4) == values.argmax()
        bars = ax.bar(range(4), values, color=[BLUE if best else "#A9CCE3" for best in is_best], width=0.72)
        ax.bar_label(bars, [f"{value:.{decimals}f}" for value in values], fontsize=8, padding=2)
        if exact is not None:
            ax.hlines(exact, np.arange(4) - 0.42, np.arange(4) + 0.42, color=INK, linewidth=2, label="exact")
        ax.set_xticks(range(4), [f"{ARROWS[action]}\n{action}" for action in ACTIONS], fontsize=8.5)
        ax.margins(y=0.16)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_title(name, fontsize=10)
    axes[0, 0].set_ylabel(label)
    if exact is not None:
        axes[0, -1].legend(fontsize=8, loc="best")
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
        ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal", xlabel="exact Q*")
    axes[0, 0].set_ylabel("learned Q")
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


@styled
def plot_calibration(rows: Iterable[Mapping], title: str = "") -> Figure:
    """Q against the exact value on the graph of transitions that a context has already shown.

    Args:
        rows: one for each (history, action): ``kind`` (for example "goal in 2", "seen hole", "wall", "unseen"; drawn in
            the order of their first row), ``q``, ``exact`` (empty or nan where no exact value exists) and, to compare
            several, ``policy``. Values may be strings, as from a CSV.
    """
    rows = [dict(row) for row in rows]
    if not rows:
        raise ValueError("rows is empty: give at least one row with kind, q and exact.")
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    policies = list(dict.fromkeys(row.get("policy", "agent") for row in rows))
    figure, axes = new_figure(8.4, 0.42 * len(kinds) * max(1, 0.6 * len(policies)) + 1.3)
    ax = axes[0, 0]
    for place, kind in enumerate(kinds):
        told = [row.get("exact") for row in rows if row["kind"] == kind]
        exact = np.array(["nan" if value in ("", None) else value for value in told], float)  # 0 is a value
        exact = exact[~np.isnan(exact)]
        if len(exact):
            ax.vlines(exact.mean(), place - 0.42, place + 0.42, color=INK, linewidth=2.2, zorder=4)
        for i, policy in enumerate(policies):
            q = np.array([
                float(row["q"]) for row in rows if row["kind"] == kind and row.get("policy", "agent") == policy
            ])  # fmt: skip
            if not len(q):
                continue
            y = place + (i - (len(policies) - 1) / 2) * 0.7 / len(policies)
            color = color_of(policy, i)
            low, first, middle, third, high = np.quantile(q, [0.05, 0.25, 0.5, 0.75, 0.95])
            ax.hlines(y, low, high, color=color, linewidth=1.2)
            ax.hlines(y, first, third, color=color, linewidth=5, alpha=0.55)
            ax.plot(middle, y, "o", color=color, markersize=6, zorder=3)
    counts = [sum(row["kind"] == kind for row in rows) // len(policies) for kind in kinds]
    ax.set_yticks(range(len(kinds)), [f"{kind}  (n = {n:,})" for kind, n in zip(kinds, counts, strict=True)])
    ax.set(ylim=(len(kinds) - 0.4, -0.6), xlabel="Q: median, middle half, 5th to 95th percentile", title=title)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    names = [Line2D([], [], color=color_of(policy, i), marker="o", label=policy) for i, policy in enumerate(policies)]
    names.append(Line2D([], [], color=INK, linewidth=2.2, label="exact value"))
    figure.legend(handles=names, loc="outside upper right", ncols=len(names), fontsize=8.5)
    return figure


# ---------------------------------------------------------------------------------------------------- replay and probes

OUTCOME_COLORS = {GOAL: GREEN, HOLE: WATER_COLOR, LIMIT: YELLOW}


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
    for ax in axes[:, 0]:
        ax.set_ylabel("slices")
    for ax in axes[-1]:
        ax.set_xlabel("episode within the slice")
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
    ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-0.06, 1.06), xlabel="Q of “right”", ylabel="probe")
    ax.grid(axis="x")
    handles = [
        Line2D([], [], color=INK, linewidth=2.4, label="wanted"),
        Line2D([], [], color=BLUE, marker="o", linestyle="", markersize=8, label="learned"),
        Line2D([], [], color=RED, marker="X", linestyle="", markersize=8, label="learned, one ingredient broken"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8.5)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


# ------------------------------------------------------------------------------------------------------------- training

_PANELS = {  # panel title -> columns of train_log.csv that it shows, where they are
    "TD error (mean square)": ("td_error",),
    "loss": ("loss", "total_loss", "loss_of_moves"),
    "success on development lakes": ("success_first", "success_last", "greedy_10_14", "greedy_last"),
    "right about moves seen before": ("seen_pair_accuracy", "seen_move_accuracy"),
}
_NAMES = {
    "loss": "loss",
    "total_loss": "with world model",
    "loss_of_moves": "what all four moves lead to",
    "seen_pair_accuracy": "asked after the move",
    "seen_move_accuracy": "asked before it",
    "success_first": "first ten episodes",
    "success_last": "last ten episodes",
    "greedy_10_14": "greedy, episodes 10–14",
    "greedy_last": "greedy, last ten",
}


@styled
def plot_training_log(logs: Sequence[Mapping] | Mapping[str, Sequence[Mapping]], title: str = "") -> Figure:
    """What a training run wrote into ``train_log.csv``, against the tokens seen.

    Args:
        logs: rows as ``csv.DictReader`` reads them (empty where not measured), or name of a run -> rows.
    """
    runs = logs if isinstance(logs, Mapping) else {"": logs}
    runs = {name: [dict(row) for row in rows] for name, rows in runs.items()}
    if not any(runs.values()):
        raise ValueError("logs is empty: give the rows of a train_log.csv.")
    cells = [cell for rows in runs.values() for row in rows for cell in row.items()]
    there = {column for column, value in cells if value not in ("", None)}
    panels = {name: [c for c in columns if c in there] for name, columns in _PANELS.items() if there & set(columns)}
    figure, axes = new_figure(min(10, 3.6 * len(panels) + 0.4), 3.0, 1, len(panels))
    styles = ("-", "--", ":", "-.")
    names = _NAMES | {"loss": "next observation"} if "loss_of_moves" in there else _NAMES
    for ax, (name, columns) in zip(axes[0], panels.items(), strict=True):
        for i, (style, (run, rows)) in enumerate(zip(cycle(styles), runs.items(), strict=False)):
            for color, column in zip((BLUE, ORANGE, GREEN, PINK), columns, strict=False):
                if len(columns) == 1 and run:  # then colours tell the runs apart
                    style, color = "-", color_of(run, i)
                tokens, values = _column(rows, column)
                label = ", ".join(filter(None, (names[column] if len(columns) > 1 else "", run)))
                marker = "o" if len(values) < 25 else None
                ax.plot(tokens / 1e6, values, style, color=color, marker=marker, markersize=4, label=label)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("million tokens")
        ax.grid(axis="y")
        if len(columns) > 1 or len(runs) > 1:
            ax.legend(fontsize=8)
        if "success" in name or "right" in name:
            ax.set_ylim(-0.02, 1.02)
        else:
            ax.set_ylim(bottom=0)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


def _column(rows: Sequence[Mapping], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of the rows that have this column."""
    pairs = [(float(row["tokens"]), float(row[column])) for row in rows if row.get(column) not in ("", None)]
    tokens, values = np.array(pairs, float).reshape(-1, 2).T
    return tokens, values


# ---------------------------------------------------------------------------------------------------------- any numbers

LINE_COLORS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, INK)
Lines = Mapping[str, tuple[np.ndarray, np.ndarray]]


@styled
def plot_lines(
    panels: Mapping[str, Lines],
    xlabel: str | Sequence[str] = "",
    ylabel: str = "",
    reference: Mapping[str, float] | None = None,
    log: str = "",
    ylim: tuple[float, float] | None = None,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Curves in one or more panels with common axes: panel title -> name of a curve -> (x [n], y [n] or [n, runs]).

    Args:
        xlabel: of every panel, or one for each.
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
    each = [xlabel] * len(panels) if isinstance(xlabel, str) else xlabel
    for i, (ax, label) in enumerate(zip(axes.flat, each, strict=False)):
        if i + columns >= len(panels):  # nothing below it
            ax.set_xlabel(label)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    handles: dict[str, Any] = {}
    for ax in axes.flat:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if len(handles) > 1 and len(panels) == 1:
        axes[0, 0].legend(handles.values(), handles.keys(), fontsize=8.5)
    elif len(handles) > 1:
        columns = min(4, len(handles))
        figure.legend(handles.values(), handles.keys(), ncols=columns, fontsize=8.5, loc="outside upper right")
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


@styled
def plot_intervals(
    groups: Mapping[str, Mapping[str, Interval]], xlabel: str = "", title: str = "", colors: Mapping[str, str] = {}
) -> Figure:
    """Estimates as dots with their 95 % intervals: panel title -> name -> Interval of shares. One row a name."""
    names = list(dict.fromkeys(name for rows in groups.values() for name in rows))
    size = 1.6 + (2.6 * len(groups) if len(groups) > 1 else 5.4), 0.38 * len(names) + 1.2
    figure, axes = new_figure(*size, 1, len(groups), sharex=True, sharey=True)
    for ax, (panel, rows) in zip(axes[0], groups.items(), strict=True):
        for name, found in rows.items():
            _interval_dot(ax, names.index(name), found, colors.get(name, BLUE))
        ax.set_title(panel, fontsize=10)
        ax.grid(axis="x")
        ax.margins(x=0.16 if len(groups) > 1 else 0.05)
        ax.set_xlabel(xlabel if len(groups) == 1 else "")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel(xlabel if len(groups) > 1 else "", fontsize=10)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure


def _interval_dot(ax: Axes, place: int, found: Interval, color: str) -> None:
    ax.hlines(place, found.low, found.high, color=color, linewidth=3, alpha=0.5)
    ax.plot(found.estimate, place, "o", color=color, markersize=6)
    at = (found.estimate, place)
    text = f"{float(found.estimate):.2f}"
    ax.annotate(text, at, (0, 6), textcoords="offset points", ha="center", fontsize=9, color=GREY)


# ------------------------------------------------------------------------------------------------- one lake, many ways


@styled
def plot_one_lake(rows: Sequence[Mapping], link: str = "none", replay: bool = False, alpha: float = 0.1) -> Figure:
    """Q-learning on one lake: errors of one way in the course of learning, and where all ways end.

    Args:
        rows: of ``one_lake.csv.gz`` (`dqn.one_lake`), a row for each way, network and look; numbers may be strings.
        link, replay, alpha: the way on the left, ringed on the right.
    """
    ways: dict[tuple[str, bool, float], list[Mapping]] = {}
    for row in rows:
        ways.setdefault((row["link"], bool(int(row["replay"])), float(row["alpha"])), []).append(row)
    if (link, replay, alpha) not in ways:
        raise ValueError(f"link={link!r}, replay={replay!r}, alpha={alpha!r} is not among the rows: see {list(ways)}.")
    figure, axes = new_figure(9.4, 3.7, 1, 3, width_ratios=[1.25, 1, 1])
    course, ends, walks = axes[0]
    chosen = _by_network(ways[link, replay, alpha])
    x, errors = chosen[0]["step"], np.stack([run["error"] for run in chosen], axis=1)
    color = _WAY_COLORS[link, replay]
    course.plot(x, errors, color=color, linewidth=0.7, alpha=0.35)
    course.plot(x, np.median(errors, axis=1), color=color, linewidth=2.4)
    course.axhline(1, color=INK, linestyle="--", linewidth=1)
    course.text(x[-1], 1.12, "largest possible return", fontsize=8.5, ha="right", va="bottom")
    course.set(yscale="log", ylim=(0.008, 3e3), xlabel="gradient steps", ylabel="root mean square error of Q")
    course.set_title(f"{_way_name(link, replay)}, α = {alpha:g}\n{len(chosen)} networks and their median", fontsize=10)
    for (one_link, one_replay), one_color in _WAY_COLORS.items():
        line = sorted(a for lk, rp, a in ways if (lk, rp) == (one_link, one_replay))
        networks = [_by_network(ways[one_link, one_replay, a]) for a in line]
        middle = [median_interval(np.array([run["error"][-1] for run in runs])) for runs in networks]
        place = np.array(line) * (0.94 if one_replay else 1.06)  # side by side, so that no bar hides another
        low_high = np.array([[m.estimate - m.low, m.high - m.estimate] for m in middle]).T
        style: dict[str, Any] = {"color": one_color, "marker": "o", "markersize": 4.5, "linewidth": 1.4}
        ends.errorbar(place, [m.estimate for m in middle], low_high, **style)
        share = [np.mean([run["reaches_goal"] for run in runs]) for runs in networks]
        walks.plot(place, share, **style, label=_way_name(one_link, one_replay))
        if (one_link, one_replay) == (link, replay):
            here = line.index(alpha)
            ring: dict[str, Any] = {"markersize": 13, "color": INK, "fillstyle": "none", "linestyle": "", "zorder": 5}
            ends.plot(place[here], middle[here].estimate, "o", **ring)
            walks.plot(place[here], share[here], "o", **ring)
    ends.axhline(1, color=INK, linestyle="--", linewidth=1)
    ends.set(yscale="log", ylim=(0.008, 3e3))
    ends.set_title("error at the end\nmedian and 95 % interval", fontsize=10)
    walks.set(ylim=(-0.03, 1.03))
    walks.set_title("greedy walk reaches the goal\nshare of the networks", fontsize=10)
    for ax in (ends, walks):
        ax.set(xscale="log", xlabel="α of the slow copy (1: no copy)")
        ax.set_xticks(sorted({a for _, _, a in ways}), [f"{a:g}" for a in sorted({a for _, _, a in ways})])
        ax.minorticks_off()
        ax.grid(axis="y")
    figure.legend(*walks.get_legend_handles_labels(), ncols=4, fontsize=9, loc="outside lower center")
    return figure


_WAY_COLORS = {("none", False): RED, ("none", True): ORANGE, ("sigmoid", False): SKY, ("sigmoid", True): BLUE}


def _way_name(link: str, replay: bool) -> str:
    return f"{'sigmoid' if link == 'sigmoid' else 'no link'}, {'replay' if replay else 'no replay'}"


def _by_network(rows: Sequence[Mapping]) -> list[dict[str, Any]]:
    """For each network: ``step`` and ``error`` [looks], and whether it ``reaches_goal``."""
    networks: dict[str, list[Mapping]] = {}
    for row in rows:
        networks.setdefault(str(row["seed"]), []).append(row)
    return [
        {
            "step": np.array([int(row["step"]) for row in own]),
            "error": np.array([float(row["error"]) for row in own]),
            "reaches_goal": int(own[-1]["reaches_goal"]),
        }
        for own in networks.values()
    ]
