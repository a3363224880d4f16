"""Metrics of many maps and how sure we are of them: pure array functions that know no environment and no model.

Maps are the independent units: episodes of one map share its history. Every metric therefore first becomes one number,
or one numerator and denominator, per map; intervals come from drawing *maps* anew with replacement:

    interval(success)                    # mean success by episode, with its 95 % interval
    interval(*retention(success))        # a ratio of sums over maps
    interval(success_a - success_b)      # paired: both policies played the same maps with the same luck

Shapes: n maps, E episodes in the order played. Results of several training seeds on the same maps are averaged per map
first; the spread between training seeds is another question than the spread between maps.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from icrl_utils.ranges import checked_seed, real_number, whole_number


class Interval(NamedTuple):
    """Estimates with the ends of their intervals; all three have the shape of one map's value."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Ratio(NamedTuple):
    """Per map a numerator and a denominator, float64 [n]; the metric is sum(numerator) / sum(denominator)."""

    numerator: np.ndarray
    denominator: np.ndarray


def interval(
    values: np.ndarray,
    denominator: np.ndarray | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean over maps, or ratio of sums over maps, with a percentile bootstrap interval.

    In each resample b the maps count c_b ~ Multinomial(n, 1/n) times:

        estimate_b = sum_i c_bi values_i / sum_i c_bi denominator_i

    and the interval holds the middle ``level`` of all estimate_b. If all maps agree it has no width: then the sample
    says nothing about rarer maps.

    Args:
        values: [n, ...], one value (or numerator) per map; further axes, such as episodes, are kept.
        denominator: broadcastable to ``values``; 1 by default, which makes the estimate a mean.
    Returns:
        Interval of float64 [...]; NaN where all denominators are 0.
    """
    values = np.asarray(values, float)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"values has shape {values.shape}; give one value per map, [maps, ...].")
    resamples, seed = whole_number("resamples", resamples, 1), checked_seed(seed)
    if not 0 < real_number("level", level) < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, for example 0.95.")
    weight = np.broadcast_to(np.asarray(1 if denominator is None else denominator, float), values.shape)
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    ends = [(1 - level) / 2, (1 + level) / 2]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        estimate = values.sum(0) / weight.sum(0)
        # A resample in which nothing was eligible has no estimate; the others have.
        low, high = np.nanquantile(np.tensordot(counts, values, 1) / np.tensordot(counts, weight, 1), ends, axis=0)
    return Interval(estimate, low, high)


def median_interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Median of n independent values with an interval that holds for every law: two of the values in order.

    Their ranks k and n + 1 - k are as narrow as they can be with P(median between them) >= ``level``, where the number
    of values below the median is Binomial(n, 1/2). Below six values there is none at .95: it spans them all.

    Args:
        values: [n, ...]; further axes are kept.
    """
    ordered = np.sort(np.asarray(values, float), axis=0)
    if ordered.ndim == 0 or len(ordered) == 0:
        raise ValueError(f"values has shape {ordered.shape}; give one value per run, [runs, ...].")
    n = len(ordered)
    at_most = np.cumsum([math.comb(n, k) / 2**n for k in range(n + 1)])  # P(at most k values below the median)
    cut = max(int((at_most <= (1 - real_number("level", level, 0, 1)) / 2).sum()), 1)
    return Interval(np.median(ordered, axis=0), ordered[cut - 1], ordered[n - cut])


def episodes_to_first_success(success: np.ndarray) -> np.ndarray:
    """int64 [n]: 1 if the first episode succeeded, ...; E + 1 (a lower bound) where none of E episodes did."""
    success = np.asarray(success, bool)
    return np.where(success.any(1), success.argmax(1) + 1, success.shape[1] + 1)


def episodes_to_first_streak(success: np.ndarray, length: int = 2) -> np.ndarray:
    """int64 [n]: the number, from 1, of the episode that begins the first ``length`` successes in a row; E + 1 (a lower
    bound) where E episodes have none. Success is bool [n, E]."""
    success = np.asarray(success, bool)
    windows = np.asarray(np.lib.stride_tricks.sliding_window_view(success, length, axis=1).all(axis=2))
    return np.where(windows.any(1), windows.argmax(1) + 1, success.shape[1] + 1)


def never_solved(success: np.ndarray) -> np.ndarray:
    """bool [n, E]: no episode up to this one has succeeded. Success is bool [n, E]."""
    return ~np.logical_or.accumulate(np.asarray(success, bool), axis=1)


def new_pairs(tiles: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """int64 [n, E]: the (tile, action) pairs tried in the episode that no earlier episode of the map had tried.

    Args:
        tiles: int [n, E, T + 1], where the agent stood; actions: int [n, E, T], -1 behind an episode's end.
    """
    n, episodes, _ = actions.shape
    tried = np.zeros((n, int(tiles.max()) + 1, 4), bool)
    new = np.zeros((n, episodes), np.int64)
    for e in range(episodes):
        row, step = np.nonzero(actions[:, e] >= 0)
        before = tried.sum(axis=(1, 2))
        tried[row, tiles[row, e, step], actions[row, e, step]] = True
        new[:, e] = tried.sum(axis=(1, 2)) - before
    return new


def retention(success: np.ndarray) -> Ratio:
    """P(success | the episode before was a success): episodes 2..E of each map. Success is bool [n, E]."""
    success = np.asarray(success, bool)
    before, after = success[:, :-1], success[:, 1:]
    return Ratio((before & after).sum(1).astype(float), before.sum(1).astype(float))


def shortest_path_rate(success: np.ndarray, steps: np.ndarray, optimal_steps: np.ndarray) -> Ratio:
    """P(no step more than a shortest path needs | success). All arrays [n, E]."""
    success = np.asarray(success, bool)
    shortest = success & (np.asarray(steps) == np.asarray(optimal_steps))
    return Ratio(shortest.sum(1).astype(float), success.sum(1).astype(float))


def repeat_deaths(tiles: np.ndarray, actions: np.ndarray, steps: np.ndarray, died: np.ndarray) -> np.ndarray:
    """bool [n, E]: the episode ended in a hole through a (tile, action) that had killed on this map before.

    A policy that remembers never does this on a lake without slipping. The mean over episodes is the repeat-death
    rate.

    Args:
        tiles: int [n, E, T + 1], where the agent stood; actions: int [n, E, T], what it did there.
        steps: int [n, E], actions of each episode; died: bool [n, E], it ended in a hole.
    """
    died = np.asarray(died, bool)
    last = (np.asarray(steps) - 1)[:, :, None].astype(np.int64)
    tile = np.take_along_axis(np.asarray(tiles), last, 2)[:, :, 0].astype(np.int64)
    edge = np.where(died, 4 * tile + np.take_along_axis(np.asarray(actions), last, 2)[:, :, 0], -1)
    same_before = np.tril(edge[:, :, None] == edge[:, None, :], -1)
    return died & same_before.any(2)
