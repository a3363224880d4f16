"""Tables of experiments: a dict of equally long columns, and what is read off it map by map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl_utils.statistics import Interval

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
    "old_moves": int,  # that only the lake before the change would justify
    "context": str,  # which walks were shown
    "crossing": int,  # what was done there, see `stitching`
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


def parts_of(table: Table, column: str) -> dict[str, Table]:
    """value of ``column`` -> its rows, in the order of their first one."""
    return {
        value: {name: values[table[column] == value] for name, values in table.items()}
        for value in dict.fromkeys(table[column].tolist())
    }


def mean_of_seeds(training_seeds: np.ndarray) -> str:
    """For a note below a figure: over how many training runs its agents are averaged. int [rows of the agents]."""
    n = len(np.unique(training_seeds))
    return f"mean of {n} training seed{'s' * (n != 1)}"


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


def by_policy(table: Table, column: str = "success") -> dict[str, np.ndarray]:
    """policy -> float64 [training seeds, maps, episodes], in the order of the table."""
    result = {}
    for policy in dict.fromkeys(table["policy"].tolist()):
        rows = table["policy"] == policy
        shape = [len(np.unique(table[key][rows])) for key in ("training_seed", "map", "episode")]
        if np.prod(shape) != rows.sum():
            raise ValueError(
                f"table holds {rows.sum()} rows of {policy!r}, not {shape} seeds x maps x episodes; remake it."
            )
        order = np.lexsort([table[key][rows] for key in ("episode", "map", "training_seed")])
        result[policy] = table[column][rows][order].reshape(shape).astype(float)
    return result


def describe(rows: list[dict]) -> str:
    """A summary as a text table, narrow enough for a notebook: estimates and 95 % intervals, three digits each."""
    metrics = [name for name, value in rows[0].items() if isinstance(value, Interval)]
    cells = [[_three_numbers(row[name]) for name in metrics] for row in rows]
    widths = [max(15, 1 + max(map(len, column))) for column in zip(*cells, strict=True)]
    lines = []
    for label, line in [("policy", metrics), *zip([row["policy"] for row in rows], cells, strict=True)]:
        lines.append(f"{label:<21}" + "".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)))
    return "\n".join(line.rstrip() for line in lines)


def _three_numbers(value: Interval) -> str:
    """.974 .968-.979, and with a word between them where one is negative: -.050 -.100 to .000"""
    estimate, low, high = (_three_digits(float(x)) for x in value)
    return f"{estimate} {low}{' to ' if '-' in low + high else '-'}{high}"


def _three_digits(x: float) -> str:
    """.003, .974, -.05, 1.00, 10.5"""
    return f"{x:z.3f}".replace("0.", ".", 1) if abs(x) < 0.9995 else f"{x:#.3g}"
