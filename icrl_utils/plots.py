"""``plot_*(data) -> Figure``: what the notebooks, the README and the widgets show. Pure functions of their data.

Here: curves, bars, calibration, training logs. Lakes, paths and token strips are in ``lake_plots.py``; all its
names can be imported from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icrl_utils.lake import ACTIONS
from icrl_utils.lake_plots import (
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
    draw_lake,
    draw_path,
    new_figure,
    plot_history_tokens,
    plot_lake,
    plot_lakes,
    plot_q_lakes,
    plot_trajectories,
    styled,
)
from icrl_utils.rollout import Records, epsilon_schedule
from icrl_utils.statistics import interval
from icrl_utils.training_plots import (
    plot_intervals,
    plot_lines,
    plot_probes,
    plot_sets,
    plot_values_against_exact,
)

__all__ = [
    "POLICY_COLORS",
    "draw_lake",
    "draw_path",
    "new_figure",
    "plot_calibration",
    "plot_history_tokens",
    "plot_intervals",
    "plot_lake",
    "plot_lakes",
    "plot_learning_curves",
    "plot_lines",
    "plot_probes",
    "plot_q_bars",
    "plot_q_lakes",
    "plot_sets",
    "plot_token_costs",
    "plot_training_log",
    "plot_trajectories",
    "plot_values_against_exact",
    "styled",
]

POLICY_COLORS = {  # the same policy has the same colour in every figure
    "agent": BLUE,
    "memory-less": ORANGE,
    "random": GREY,
    "tabular Q": GREEN,
    "optimistic tabular Q": SKY,
    "R-max": PINK,
    "posterior sampling": RED,
    "oracle": INK,
}
_MORE_COLORS = ("#7A5195", "#8C6D1F", "#3B8EA5", "#A23B72", "#4D7C0F")
Curves = Mapping[str, "Records | np.ndarray"] | Sequence[Records] | Records


def color_of(policy: str, index: int = 0) -> str:
    """The colour of a policy; ``index`` chooses one for names that no other figure has."""
    return POLICY_COLORS.get(policy) or _MORE_COLORS[index % len(_MORE_COLORS)]


# ---------------------------------------------------------------------------------------------------- learning curves


@styled
def plot_learning_curves(
    curves: Curves,
    schedule: str | Sequence[float] | None = None,
    smooth: int = 1,
    title: str = "",
    resamples: int = 2_000,
    seed: int = 0,
) -> Figure:
    """Success by episode, one curve a policy, with 95 % bootstrap bands over maps.

    Episodes in which the policy is not always the one who acts (epsilon < 1) are shaded; the strip below the axis
    says how often it does.

    Args:
        curves: ``Records``, a list of them, or name -> ``Records`` or success, bool or 0..1, [maps, episodes] or
            [training seeds, maps, episodes] (averaged over training seeds).
        schedule: epsilon of the episodes, as in ``rollout``; by default that of the records, ``greedy`` for arrays.
        smooth: each point is the mean of the last ``smooth`` episodes up to it.
        resamples: bootstrap samples of maps for a band; 0 draws none.
    """
    success = success_by_policy(curves)
    episodes = {values.shape[1] for values in success.values()}
    if len(episodes) != 1:
        raise ValueError(f"curves have {sorted(episodes)} episodes: plot only such as have equally many.")
    n_episodes = episodes.pop()
    epsilon = _epsilon_of(curves, schedule, n_episodes)
    has_warm_up = bool((epsilon < 1).any())

    heights = [14, 1] if has_warm_up else [1]
    figure, axes = new_figure(8.4, 4.3, len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    ax, x = axes[0, 0], np.arange(n_episodes)
    ends = {}
    for i, (name, values) in enumerate(success.items()):
        values = trailing_mean(values, smooth)
        mean, color = values.mean(axis=0), color_of(name, i)
        if resamples:
            band = interval(values, resamples=resamples, seed=seed)
            ax.fill_between(x, band.low, band.high, color=color, alpha=0.16, linewidth=0)
        ax.plot(x, mean, color=color, linewidth=2.4 if name == "agent" else 1.7, label=name, zorder=3)
        ends[name] = (float(mean[-5:].mean()), color)
    _label_ends(ax, ends, n_episodes - 1)
    maps = sorted({len(values) for values in success.values()})
    note = f"mean of {'–'.join(map(str, dict.fromkeys((maps[0], maps[-1]))))} lakes"
    note += ", band: 95 % bootstrap interval" if resamples else ""
    note += f", mean of {smooth} episodes" if smooth > 1 else ""
    ax.set(ylim=(-0.02, 1.02), xlim=(-0.5, n_episodes - 0.5), ylabel="success rate")
    ax.set_title(title or "Success by episode", pad=20)
    ax.text(0, 1.025, note, transform=ax.transAxes, fontsize=8.5, color=GREY, va="bottom")
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    if has_warm_up:
        _show_epsilon(ax, axes[1, 0], epsilon)
    axes[-1, 0].set_xlabel("episode on the same lake (counted from 0)")
    return figure


def success_by_policy(curves: Curves) -> dict[str, np.ndarray]:
    """name -> success float [maps, episodes], from everything that ``plot_learning_curves`` takes.

    Raises:
        ValueError: no curve, an array that is not [maps, episodes], or values outside [0, 1].
    """
    if isinstance(curves, Records):
        curves = [curves]
    if not isinstance(curves, Mapping):
        curves = {records.policy: records for records in curves}
    if not curves:
        raise ValueError("curves is empty: give at least one policy.")
    success = {}
    for name, values in curves.items():
        values = np.asarray(getattr(values, "success", values), float)
        values = values.mean(axis=0) if values.ndim == 3 else values
        if values.ndim != 2 or not values.size or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"curves[{name!r}] has shape {values.shape}: give success [maps, episodes] within 0..1.")
        success[name] = values
    return success


def trailing_mean(success: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last ``window`` episodes up to each one (fewer at the beginning): [maps, episodes] -> the same."""
    if window < 1:
        raise ValueError(f"smooth={window}: give 1 (no smoothing) or more episodes.")
    total = np.pad(np.cumsum(success, axis=1), ((0, 0), (1, 0)))
    last = np.arange(1, success.shape[1] + 1)
    first = np.maximum(last - window, 0)
    return (total[:, last] - total[:, first]) / (last - first)


def _epsilon_of(curves: Curves, schedule, n_episodes: int) -> np.ndarray:
    if schedule is not None:
        return epsilon_schedule(schedule, n_episodes)
    if isinstance(curves, Records):
        curves = [curves]
    for records in curves.values() if isinstance(curves, Mapping) else curves:
        if isinstance(records, Records):
            return records.epsilon
    return np.ones(n_episodes)


def _show_epsilon(ax: Axes, strip: Axes, epsilon: np.ndarray) -> None:
    """Shade the episodes with forced random moves; below them a strip with the probability that the policy acts."""
    warm_up = np.flatnonzero(epsilon < 1)
    for first, last in _runs(warm_up):
        ax.axvspan(first - 0.5, last + 0.5, color=PALE, alpha=0.55, linewidth=0, zorder=0)
    first, last = _runs(warm_up)[0]
    ax.text((first + last) / 2, -0.005, "warm-up: some moves are forced at random", ha="center", va="bottom",
            fontsize=8.5, color=GREY)  # fmt: skip
    strip.imshow(epsilon[None], aspect="auto", cmap="Greys", vmin=0, vmax=1.6,
                 extent=(-0.5, len(epsilon) - 0.5, 0, 1))  # fmt: skip
    values, starts = _steps(epsilon)
    for value, (first, last) in zip(values, starts, strict=True):
        text = f"{value:.2g}".replace("0.", ".")
        strip.text((first + last) / 2, 0.45, text, ha="center", va="center", fontsize=7.5, color=INK)
    strip.set_yticks([])
    strip.set_ylabel("ε", rotation=0, ha="right", va="center")
    for spine in strip.spines.values():
        spine.set_visible(False)
    ax.tick_params(axis="x", length=0)


def _runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """Consecutive indices as (first, last)."""
    parts = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    return [(int(part[0]), int(part[-1])) for part in parts]


def _steps(values: np.ndarray) -> tuple[list[float], list[tuple[int, int]]]:
    """Equal neighbours joined: their value, and (first, last) index."""
    starts = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    lasts = np.append(starts[1:], len(values)) - 1
    return values[starts].tolist(), list(zip(starts.tolist(), lasts.tolist(), strict=True))


def _label_ends(ax: Axes, ends: Mapping[str, tuple[float, str]], last: float, gap: float = 0.062) -> None:
    """Names at the right end of their curves, moved apart where they would cover each other."""
    names = sorted(ends, key=lambda name: ends[name][0])
    heights = np.array([ends[name][0] for name in names])
    for _ in range(200):
        for i in range(len(names) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    for name, height in zip(names, heights, strict=True):
        end, color = ends[name]
        ax.annotate(
            name, (last + 0.5, end), (last + 1.3, height), xycoords="data", textcoords="data", color=color, va="center",
            fontsize=9, fontweight="bold" if name == "agent" else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0},
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- costs


@styled
def plot_token_costs(tokens: Mapping[str, Mapping[str, float]], context: int = 8192, title: str = "") -> Figure:
    """Length of a history: player -> way of writing -> tokens; bars on a logarithmic axis, the context as a line."""
    ways = list(dict.fromkeys(way for costs in tokens.values() for way in costs))
    figure, axes = new_figure(8.4, 0.5 + 0.3 * len(tokens) * len(ways))
    ax = axes[0, 0]
    for i, (way, color) in enumerate(zip(ways, (BLUE, ORANGE, GREY), strict=False)):
        place = np.arange(len(tokens)) + (i - (len(ways) - 1) / 2) * 0.26
        bars = ax.barh(place, [costs[way] for costs in tokens.values()], height=0.22, color=color, label=way)
        label_box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        labels = [f"{costs[way]:,.0f}" for costs in tokens.values()]
        ax.bar_label(bars, labels, fontsize=8, padding=3, zorder=3, bbox=label_box)
    ax.axvline(context, color=RED, linewidth=1.5, zorder=2)
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
        ax.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=8, padding=2)
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
        exact = np.array([float(row.get("exact") or "nan") for row in rows if row["kind"] == kind])
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
    "loss": ("loss", "total_loss"),
    "success on development lakes": ("success_first", "success_last", "greedy_10_14", "greedy_last"),
    "next observation right, pairs seen": ("seen_pair_accuracy",),
}
_NAMES = {
    "loss": "loss",
    "total_loss": "with world model",
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
    styles = ("-", "--", ":")
    for ax, (name, columns) in zip(axes[0], panels.items(), strict=True):
        for style, (run, rows) in zip(styles, runs.items(), strict=False):
            for color, column in zip((BLUE, ORANGE, GREEN, PINK), columns, strict=False):
                tokens, values = _column(rows, column)
                label = ", ".join(filter(None, (_NAMES.get(column, column) if len(columns) > 1 else "", run)))
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
