"""Learning curves: success by episode of several players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icrl_utils.play.rollout import Records, epsilon_schedule
from icrl_utils.plots.style import GREY, INK, PALE, color_of, new_figure, styled, without_leading_zero
from icrl_utils.statistics import interval

Curves = Mapping[str, "Records | np.ndarray"] | Sequence[Records] | Records


@styled
def plot_learning_curves(
    curves: Curves,
    schedule: str | Sequence[float] | None = None,
    smooth: int = 1,
    title: str = "",
    resamples: int = 2_000,
    seed: int = 0,
    failures: bool = False,
) -> Figure:
    """Success by episode, one curve a policy, with 95 % bootstrap bands over maps.

    Episodes in which the policy is not always the one who acts (epsilon < 1) are shaded; the strip below the axis
    says how often it does.

    Args:
        curves: ``Records``, a list of them (equal names are numbered), or name -> ``Records`` or success, bool or 0..1,
            [maps, episodes] or [training seeds, maps, episodes] (averaged over training seeds).
        schedule: epsilon of the episodes, as in ``rollout``; by default that of the records, ``greedy`` for arrays.
        smooth: each point is the mean of the last ``smooth`` episodes up to it.
        resamples: bootstrap samples of maps for a band; 0 draws none.
        failures: below, the share of failures on a logarithmic axis, which tells players apart that nearly always
            succeed; each point there is the mean of five episodes or ``smooth``, whichever is more.
    """
    success = success_by_policy(curves)
    episodes = {values.shape[1] for values in success.values()}
    if len(episodes) != 1:
        raise ValueError(f"curves have {sorted(episodes)} episodes: plot only such as have equally many.")
    n_episodes = episodes.pop()
    epsilon = _epsilon_of(curves, schedule, n_episodes)
    has_warm_up = bool((epsilon < 1).any())

    heights = [14] + [10] * failures + [1] * has_warm_up
    size = 4.0 + 2.9 * failures + 0.3 * has_warm_up
    figure, axes = new_figure(8.4, size, len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    ax = axes[0, 0]
    ends = _draw_curves(ax, {name: trailing_mean(values, smooth) for name, values in success.items()}, resamples, seed)
    _label_ends(ax, ends, n_episodes - 1)
    maps = sorted({len(values) for values in success.values()})
    note = f"mean of {'–'.join(map(str, dict.fromkeys((maps[0], maps[-1]))))} lakes"
    note += ", band: 95 % bootstrap interval" if resamples else ""
    note += f", mean of {smooth} episodes" if smooth > 1 else ""
    ax.set(ylim=(-0.02, 1.02), xlim=(-0.5, n_episodes - 0.5), ylabel="success rate")
    ax.set_title(title or "Success by episode", pad=20)
    ax.text(0, 1.025, note, transform=ax.transAxes, fontsize=9.5, color=GREY, va="bottom")
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    if failures:
        _show_failures(axes[1, 0], success, max(5, smooth), resamples, seed)
    if has_warm_up:
        _show_epsilon(ax, axes[-1, 0], epsilon)
    axes[-1, 0].set_xlabel("episode on the same lake (counted from 0)")
    return figure


def _draw_curves(
    ax: Axes, values: Mapping[str, np.ndarray], resamples: int, seed: int, floor: float = -np.inf
) -> dict[str, tuple[float, str]]:
    """A mean and its band for each policy. Returns the mean of each one's last five points, and its colour."""
    ends = {}
    for i, (name, of_maps) in enumerate(values.items()):
        mean, color, x = of_maps.mean(axis=0), color_of(name, i), np.arange(of_maps.shape[1])
        if resamples:
            band = interval(of_maps, resamples=resamples, seed=seed)
            low, high = (np.maximum(end, floor) for end in (band.low, band.high))
            ax.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        width = 2.4 if name == "agent" else 1.7
        ax.plot(x, np.maximum(mean, floor), color=color, linewidth=width, label=name, zorder=3)
        ends[name] = (max(float(mean[-5:].mean()), floor), color)
    return ends


def _show_failures(ax: Axes, success: Mapping[str, np.ndarray], window: int, resamples: int, seed: int) -> None:
    """Shares of failures, means of ``window`` episodes, on a logarithmic axis whose lowest line says: none."""
    failed = {name: trailing_mean(1 - values, window) for name, values in success.items()}
    least = min(values.mean(axis=0)[values.mean(axis=0) > 0].min(initial=1) for values in failed.values())
    floor = 10.0 ** np.floor(np.log10(least) - 0.3)
    ends = _draw_curves(ax, failed, resamples, seed, floor)
    ax.set(yscale="log", ylim=(0.8 * floor, 1.15), ylabel="share of failures (log)")
    powers = 10.0 ** np.arange(round(np.log10(floor)), 1)
    ax.set_yticks(powers, ["none", *(without_leading_zero(f"{power:g}") for power in powers[1:])])
    ax.minorticks_off()
    ax.set_title(f"Failures, mean of {window} episodes", fontsize=10)
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    _label_ends(ax, ends, len(next(iter(success.values()))[0]) - 1, gap=0.085, log=True)


@styled
def plot_panels(
    panels: Mapping[str, Curves],
    title: str = "",
    note: str = "",
    columns: int = 4,
    resamples: int = 2_000,
    seed: int = 0,
) -> Figure:
    """Success by episode in small multiples, with 95 % bootstrap bands over maps; one legend for all.

    Args:
        panels: panel title -> what `plot_learning_curves` takes. A policy may be missing from some.
        note: below the title, for example how many games were played.
        resamples: bootstrap samples of maps for a band; 0 draws none.
    """
    success = {name: success_by_policy(curves) for name, curves in panels.items()}
    policies = list(dict.fromkeys(policy for group in success.values() for policy in group))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(10, 2.5 * rows + 1.1, rows, min(columns, len(panels)), sharex=True, sharey=True)
    lines = {}
    for ax, (name, group) in zip(axes.flat, success.items(), strict=False):
        for policy, values in group.items():
            x, color = np.arange(values.shape[1]), color_of(policy, policies.index(policy))
            if resamples:
                band = interval(values, resamples=resamples, seed=seed)
                ax.fill_between(x, band.low, band.high, color=color, alpha=0.16, linewidth=0)
            width = 2.2 if policy in ("agent", "SmolLM2") else 1.4
            (lines[policy],) = ax.plot(x, values.mean(axis=0), color=color, linewidth=width, label=policy, zorder=3)
        ax.set_title(name, fontsize=10)
        ax.set_ylim(-0.02, 1.02)
        ax.grid(axis="y")
        ax.set_axisbelow(True)
    note += ("; " if note else "") + "mean" + (" and 95 % bootstrap interval" if resamples else "") + " over games"
    figure.suptitle(f"{title}\n{note}" if title else note, x=0.02, ha="left", fontsize=10.5)
    finish_panels(axes, len(panels), "episode on the same game", {policy: lines[policy] for policy in policies}, 4)
    return figure


def finish_panels(axes: np.ndarray, panels: int, xlabel: str, lines: Mapping[str, Line2D], columns: int) -> None:
    """What small multiples of success end with: empty axes [rows, columns] taken away, names of the axes, one legend of
    at most ``columns`` columns."""
    for ax in axes.flat[panels:]:
        ax.axis("off")
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    for ax in axes[:, 0]:
        ax.set_ylabel("success rate")
    axes[0, 0].figure.legend(
        lines.values(), lines.keys(), ncols=min(columns, len(lines)), fontsize=8.5, loc="outside lower center"
    )


def success_by_policy(curves: Curves) -> dict[str, np.ndarray]:
    """name -> success float [maps, episodes], from everything that ``plot_learning_curves`` takes.

    Raises:
        ValueError: no curve, an array that is not [maps, episodes], or values outside [0, 1].
    """
    if isinstance(curves, Records):
        curves = [curves]
    if not isinstance(curves, Mapping):
        curves = _by_distinct_name(curves)
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


def _by_distinct_name(several: Sequence[Records]) -> dict[str, Records]:
    """By the policy's name. Records of the same name, for example of two seeds, become ``agent``, ``agent (2)``, ..."""
    several, named = list(several), {}
    taken = {records.policy for records in several}
    for records in several:
        name, number = records.policy, 1
        while name in named or (number > 1 and name in taken):
            number += 1
            name = f"{records.policy} ({number})"
        named[name] = records
    return named


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
        text = without_leading_zero(f"{value:.2g}")
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


def _label_ends(
    ax: Axes, ends: Mapping[str, tuple[float, str]], last: float, gap: float = 0.062, log: bool = False
) -> None:
    """Names at the right end of their curves, moved apart where they would cover each other: ``gap`` is a share of the
    axis, which is linear or logarithmic."""
    names = sorted(ends, key=lambda name: ends[name][0])
    bottom, top = np.log10(ax.get_ylim()) if log else (0.0, 1.0)
    heights = np.array([np.log10(ends[name][0]) if log else ends[name][0] for name in names])
    gap *= top - bottom
    for _ in range(200):
        for i in range(len(names) - 1):
            overlap = gap - (heights[i + 1] - heights[i])
            if overlap > 0:
                heights[i] -= overlap / 2
                heights[i + 1] += overlap / 2
    for name, height in zip(names, 10**heights if log else heights, strict=True):
        end, color = ends[name]
        ax.annotate(
            name, (last + 0.5, end), (last + 1.3, height), xycoords="data", textcoords="data", color=color, va="center",
            fontsize=9.5, fontweight="bold" if name == "agent" else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
