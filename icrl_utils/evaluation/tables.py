"""Tables of experiments: a dict of equally long columns, and what is read off it map by map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Table = dict[str, np.ndarray]
KINDS: dict[str, type] = {  # of the columns that tables of single questions have beside those of `experiments`
    "sizes": str,  # of the lakes, for example "3 to 5"
    "explorer": str,  # who played the first episodes
    "player": str,  # who played the next ones
    "form": str,  # of a made-up history
    "moves": int,  # from the tile asked about to the goal
    "visits": int,  # how often the way was walked before the question
    "cut": str,  # which attention was cut
    "run": str,  # "goal", "hole" or "patched"
    "layer": int,  # -1: all
    "head": int,  # -1: all
    "position": int,  # of a token in its history, -1: none
    "surgery": str,  # what was done to a history
    "kind": str,  # of a move, see `calibration.KINDS`
    "walks": int,  # imagined ones before an episode
    "filler": str,  # what the imagined walks tell
    "q": float,
}


def training_seed(policy: object) -> int:
    """Of the run that made the policy; -1 where nothing was trained, or live."""
    seed = getattr(policy, "training_seed", None)
    return -1 if seed is None else seed


def table_of(rows: Sequence[dict]) -> Table:
    """Rows with the same keys as one table; a value may be an array [n], and then its row stands for n of them."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in rows[0]}
    for row in rows:
        columns = np.broadcast_arrays(*map(np.atleast_1d, row.values()))
        for name, column in zip(row, columns, strict=True):
            parts[name].append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def per_map(table: Table, names: Sequence[str], value: str) -> dict[tuple, np.ndarray]:
    """For each combination of the columns ``names`` the mean of ``value`` on each map: float64 [maps].

    The mean is over everything else, training seeds and episodes above all. Combinations come in the order of their
    first row. Raises ValueError where a map has no row: remake such a table.
    """
    found = list(zip(*(table[name].tolist() for name in names), strict=True))
    numbers = {key: i for i, key in enumerate(dict.fromkeys(found))}
    n = int(table["map"].max()) + 1
    place = np.array([numbers[key] for key in found]) * n + table["map"]
    count = np.bincount(place, minlength=len(numbers) * n).reshape(-1, n)
    total = np.bincount(place, table[value].astype(float), len(numbers) * n).reshape(-1, n)
    if not count.all():
        key = list(numbers)[int((count == 0).any(1).argmax())]
        raise ValueError(f"table has no row of {dict(zip(names, key, strict=True))} on some of {n} maps; remake it.")
    return dict(zip(numbers, total / count, strict=True))
