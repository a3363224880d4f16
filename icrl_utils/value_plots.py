"""Pictures of values, costs and training runs; ``plots.py`` passes on all names of this file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icrl_utils.lake import ACTIONS
from icrl_utils.lake_plots import ARROWS, BLUE, GREEN, GREY, INK, ORANGE, PINK, RED, SKY, new_figure, styled

POLICY_COLORS = {  # the same policy has the same colour in every figure
    "agent": BLUE,
    "memory-less": ORANGE,
    "random": GREY,
    "tabular Q": GREEN,
    "optimistic tabular Q": SKY,
    "R-max": PINK,
    "posterior sampling": RED,
    "oracle": INK,
    "base": "#7A5195",
    "this run": BLUE,  # the agent, where there are two
    "this run, memory-less": ORANGE,
    "shipped run": "#8C6D1F",
}
_MORE_COLORS = ("#3B8EA5", "#A23B72", "#4D7C0F", "#B5651D", "#5B5EA6")


def color_of(policy: str, index: int = 0) -> str:
    """The colour of a policy; ``index`` chooses one for names that no other figure has."""
    return POLICY_COLORS.get(policy) or _MORE_COLORS[index % len(_MORE_COLORS)]


# ------------------------------------------------------------------------------------------------------------- costs


@styled
def plot_token_costs(tokens: Mapping[str, Mapping[str, float]], context: int = 8192, title: str = "") -> Figure:
    """Length of a history: player -> way of writing -> tokens; bars on a logarithmic axis, the context as a line."""
    ways = list(dict.fromkeys(way for costs in tokens.values() for way in costs))
    figure, axes = new_figure(8.4, 0.5 + 0.3 * len(tokens) * len(ways))
    ax = axes[0, 0]
    share = min(0.26, 0.78 / len(ways))  # of the height of a player
    for i, (way, color) in enumerate(zip(ways, cycle((BLUE, ORANGE, GREY, SKY)), strict=False)):
        place = np.arange(len(tokens)) + (i - (len(ways) - 1) / 2) * share
        bars = ax.barh(place, [costs[way] for costs in tokens.values()], height=0.85 * share, color=color, label=way)
        label_box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        labels = [f"{costs[way]:,.0f}" for costs in tokens.values()]
        ax.bar_label(bars, labels, fontsize=8, padding=3, zorder=3, bbox=label_box)
    ax.axvline(context, color=RED, linewidth=1.5, zorder=0.5)
    ax.text(context, -0.66, f" context: {context:,}", color=RED, fontsize=8.5, va="bottom")
    ax.set_yticks(range(len(tokens)), list(tokens))
    ax.set(ylim=(len(tokens) - 0.45, -0.65), xscale="log", xlabel="tokens (logarithmic)")
    ax.set_title(title, pad=20)
    ax.margins(x=0.12)
    ax.legend(fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1.05), ncols=len(ways))
    return figure


# ------------------------------------------------------------------------------------------------------------ values


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
    for ax, (name, values) in zip(axes[0], groups.items(), strict=True):
        values = np.asarray(values, float)
        if values.shape != (len(ACTIONS),):
            raise ValueError(f"q[{name!r}] has shape {values.shape}: give 4 values, left, down, right, up.")
        is_best = np.arange(4) == values.argmax()
        bars = ax.bar(range(4), values, color=[BLUE if best else "#A9CCE3" for best in is_best], width=0.72)
        decimals = 2 if np.abs(values).max() >= 0.1 else 3
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
        exact = [row.get("exact") for row in rows if row["kind"] == kind]
        exact = np.array(["nan" if value in ("", None) else value for value in exact], float)  # 0 is a value
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


# ---------------------------------------------------------------------------------------------------------- training

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
    return tuple(np.array(pairs, float).reshape(-1, 2).T)
