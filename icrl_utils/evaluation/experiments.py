"""The experiments, their tables on disk, and the summaries and figures drawn from them.

One function an experiment: it lets policies play the same maps with the same luck and returns one tidy table, a dict
of equally long columns with one row per policy, training seed, map and episode (see ``COLUMNS``); a table of several
laws of games has a column ``law`` before them. ``EXPERIMENTS`` lists all experiments. The shipped tables in
``assets/results/`` are remade by ``python -m icrl_utils evaluate NAME --write``.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.history.episodes import HOLE
from icrl_utils.lake.games import GAMES
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, PAPER_OUT_OF_DISTRIBUTION, MapDistribution, TileGame
from icrl_utils.llama.agent import load_agent
from icrl_utils.paths import ASSETS, BUILD, check_writable, write_csv
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.play.policy import Policy
from icrl_utils.play.posterior_sampling import PosteriorSamplingPolicy
from icrl_utils.play.rollout import rollout
from icrl_utils.plots.curves import plot_learning_curves, plot_panels
from icrl_utils.profiles import Profile, get_profile
from icrl_utils.ranges import checked_seed
from icrl_utils.statistics import (
    Interval,
    Ratio,
    episodes_to_first_success,
    interval,
    repeat_deaths,
    retention,
    shortest_path_rate,
)

Table = dict[str, np.ndarray]
COLUMNS = {
    "policy": str,
    "training_seed": int,  # -1: nothing was trained
    "map": int,  # place in the list of maps
    "episode": int,  # 0, 1, ...
    "epsilon": float,  # probability that the policy acted
    "success": int,
    "steps": int,
    "optimal_steps": int,
    "repeat_death": int,  # died on a (tile, action) that had killed on this map before
}
COLUMNS_WITH_LAW = {"law": str, **COLUMNS}

# Of the experiment ``games``, chosen before the first look at its results; its laws are in lake/games.py.
GAMES_SEED = 1307  # draws the games
GAMES_EACH = 200  # of each law
GAMES_EPISODES = 25
FIRST_FIVE, LAST_FIVE = slice(5), slice(-5, None)  # the statistic: success in these episodes


def in_distribution(policies: Sequence[Policy], maps: Sequence[TileGame] | None = None, **options) -> Table:
    """Does it learn on lakes of the training sizes, 3..5, that it never saw? The paper's schedule (its Fig. 3)."""
    return compare(policies, held_out_maps("in_distribution") if maps is None else maps, "paper", **options)


def out_of_distribution(policies: Sequence[Policy], maps: Sequence[TileGame] | None = None, **options) -> Table:
    """And on larger lakes, 6..7? The paper's schedule (its Fig. 4). DQN never saw these sizes; the tiny Llama's
    pretraining saw random play on them."""
    return compare(policies, held_out_maps("out_of_distribution") if maps is None else maps, "paper", **options)


def exploration(policies: Sequence[Policy], maps: Sequence[TileGame] | None = None, **options) -> Table:
    """Does it explore on its own? In-distribution lakes, the policy acts from the first step on (section 4.6)."""
    return compare(policies, held_out_maps("in_distribution") if maps is None else maps, "greedy", **options)


def games(policies: Sequence[Policy], maps: Mapping[str, Sequence[TileGame]] | None = None, **options) -> Table:
    """Do the same weights play other games? Eight laws, told in the same words; the policy acts from the first step on.

    ``maps``: law -> its games. Posterior sampling plays lakes only: of the other laws it knows nothing. Where moves do
    not always end alike (bandits, slippery lakes) success alone says something: there a repeated death is no mistake,
    and the shortest path not the best.
    """
    parts = []
    for law, drawn in (games_of_every_law() if maps is None else maps).items():
        players = [policy for policy in policies if law == "lakes" or not isinstance(policy, PosteriorSamplingPolicy)]
        table = compare(players, drawn, "greedy", episodes=GAMES_EPISODES, **options)
        parts.append({"law": np.full(len(table["map"]), law), **table})
    return _joined(parts, COLUMNS_WITH_LAW)


def games_of_every_law(n: int = GAMES_EACH) -> dict[str, Sequence[TileGame]]:
    """law -> the first ``n`` games that the experiment plays."""
    return {name: law.sample(n, GAMES_SEED) for name, law in GAMES.items()}


def compare(
    policies: Sequence[Policy],
    maps: Sequence[TileGame],
    schedule: str | Sequence[float] = "paper",
    seed: int = 0,
    progress: bool = False,
    episodes: int | None = None,
) -> Table:
    """``rollout`` of every policy on the same maps, schedule and seed, as one table."""
    if not isinstance(policies, Sequence) or not policies:
        raise ValueError(f"policies={policies!r}: pass a list of at least one policy, for example [RandomPolicy()].")
    parts: list[Table] = []
    for policy in policies:
        records = rollout(policy, maps, schedule, seed, episodes, progress=progress)
        shape = (n, played) = records.success.shape
        trained = getattr(policy, "training_seed", None)
        died_again = repeat_deaths(records.tiles, records.actions, records.steps, records.outcome == HOLE)
        columns = {
            "policy": np.full(shape, records.policy),
            "training_seed": np.full(shape, -1 if trained is None else trained),
            "map": np.broadcast_to(np.arange(n)[:, None], shape),
            "episode": np.broadcast_to(np.arange(played), shape),
            "epsilon": np.broadcast_to(records.epsilon, shape),
            "success": records.success,
            "steps": records.steps,
            "optimal_steps": records.optimal_steps,
            "repeat_death": died_again,
        }
        parts.append({name: values.ravel().astype(COLUMNS[name]) for name, values in columns.items()})
    return _joined(parts, COLUMNS)


def _joined(parts: Sequence[Table], columns: Iterable[str]) -> Table:
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def by_law(table: Table) -> dict[str, Table]:
    """law -> its part of the table, as a table of one experiment, in the order of the table."""
    laws = dict.fromkeys(table["law"].tolist())
    return {law: {name: table[name][table["law"] == law] for name in COLUMNS} for law in laws}


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


def summary(table: Table, episodes: slice = slice(-10, None)) -> list[dict]:
    """Per policy the metrics of ``statistics`` with 95 % intervals over maps, averaged over training seeds.

    Success, repeat deaths and shortest paths count ``episodes`` only (by default the last ten), retention and the
    first success all of them.
    """
    columns = {name: by_policy(table, name) for name in ("success", "steps", "optimal_steps", "repeat_death")}
    rows = []
    for policy in columns["success"]:
        success, steps, optimal, died_again = (values[policy] for values in columns.values())
        part = (slice(None), slice(None), episodes)

        def over_seeds(metric, *arrays):
            return Ratio(*np.mean([metric(*run) for run in zip(*arrays, strict=True)], axis=0))

        rows.append(
            {
                "policy": policy,
                "training_seeds": len(success),
                "maps": success.shape[1],
                "success": interval(success[part].mean((0, 2))),
                "repeat_death": interval(died_again[part].mean((0, 2))),
                "shortest_path": interval(*over_seeds(shortest_path_rate, success[part], steps[part], optimal[part])),
                "retention": interval(*over_seeds(retention, success)),
                "first_success": interval(np.mean([episodes_to_first_success(run) for run in success], axis=0)),
            }
        )
    return rows


def lead(table: Table, policy: str, other: str, episodes: slice) -> Interval:
    """By how much ``policy`` succeeds more often than ``other`` in ``episodes``: paired, both met the same luck."""
    success = by_policy(table)
    ours, theirs = (success[name][:, :, episodes].mean((0, 2)) for name in (policy, other))
    return interval(ours - theirs)


def summary_of_law(table: Table) -> list[dict]:
    """Per policy the success in the first and in the last five episodes of one law, and the agent's lead in both, with
    95 % intervals over games; training seeds are averaged game by game."""
    return [
        {
            "policy": policy,
            "training_seeds": len(success),
            "maps": success.shape[1],
            "first_five": interval(success[:, :, FIRST_FIVE].mean((0, 2))),
            "last_five": interval(success[:, :, LAST_FIVE].mean((0, 2))),
            "lead_first": lead(table, "agent", policy, FIRST_FIVE),
            "lead_last": lead(table, "agent", policy, LAST_FIVE),
        }
        for policy, success in by_policy(table).items()
    ]


def write_table(path: str | Path, table: Table) -> None:
    """Write a table as csv, gzipped where ``path`` ends in .gz."""
    kinds = COLUMNS_WITH_LAW if "law" in table else COLUMNS
    columns = [[f"{x:g}" for x in table[name]] if kind is float else table[name] for name, kind in kinds.items()]
    write_csv(path, (dict(zip(kinds, row, strict=True)) for row in zip(*columns, strict=True)), list(kinds))


def read_table(path: str | Path) -> Table:
    """A table as ``write_table`` wrote it."""
    path = Path(path)
    if not path.exists():
        name, write = path.name.removesuffix(".gz").removesuffix(".csv"), " --write" * path.is_relative_to(ASSETS)
        raise FileNotFoundError(
            f"path={str(path)!r} does not exist; make it with `python -m icrl_utils evaluate {name}{write}`."
        )
    data = path.read_bytes()
    header, *rows = csv.reader(io.StringIO((gzip.decompress(data) if path.suffix == ".gz" else data).decode()))
    kinds = COLUMNS_WITH_LAW if "law" in header else COLUMNS
    if header != list(kinds):
        raise ValueError(f"path={str(path)!r} has columns {header}, not {list(COLUMNS)}; make it again.")
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    return {name: np.array(column, dtype=kind) for (name, kind), column in zip(kinds.items(), columns, strict=True)}


def results_path(name: str, folder: Path = ASSETS / "results") -> Path:
    """Where the table of an experiment is. Gzipped: half a megabyte instead of four."""
    return folder / f"{name}.csv.gz"


def run_experiment(name: str, profile: Profile | None = None, seed: int = 0, write: bool = False) -> Path:
    """``python -m icrl_utils evaluate NAME``: all shipped agents and all baselines on the maps of the experiment.

    The ``smoke`` profile plays a few maps, the others all. The table goes to ``build/results``, with ``write`` to
    ``assets/results``, where the committed one is. Prints the summary and returns the file.
    """
    seed = checked_seed(seed)
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment={name!r} is unknown; choose one of: {', '.join(EXPERIMENTS)}.")
    profile = get_profile() if profile is None else profile
    is_smoke = profile.name == "smoke"
    if write and is_smoke:
        raise ValueError(f"--write with profile {profile.name!r}: committed records show all lakes, use --profile cpu.")
    if profile.adapter is None:
        raise ValueError(
            f"profile={profile.name!r} ships no trained adapter to evaluate; use --profile cpu, or train one and call "
            f"icrl_utils.evaluation.experiments.{name}([load_agent(FOLDER)])."
        )
    path = results_path(name, (ASSETS if write else BUILD) / "results")
    check_writable(path.parent, "results")
    experiment = EXPERIMENTS[name]
    policies = [*shipped_agents(profile.adapter), *baselines(experiment.law)]
    maps = experiment.maps(profile.maps if is_smoke else None)
    table = experiment.play(policies, maps, seed=seed, progress=True)
    write_table(path, table)
    print(experiment.describe(table))
    print(f"written: {path}")
    return path


def shipped_agents(adapter: str) -> list[Policy]:
    """The main agent, its other training seeds (``assets/adapters/ADAPTER*``) and its memory-less twin."""
    folders = sorted(file.parent for file in (ASSETS / "adapters").glob(f"{adapter}*/adapter_config.json"))
    main = ASSETS / "adapters" / adapter
    others = [load_agent(folder) for folder in folders if folder != main]
    return [load_agent(main), *others, load_agent(main, memory=False)]


def baselines(law: MapDistribution) -> list[Policy]:
    """Fresh ones; only posterior sampling knows the ``law`` that the maps come from."""
    learners: list[Policy] = [TabularPolicy(), TabularPolicy(1.0), RMaxPolicy(), PosteriorSamplingPolicy(law)]
    return [RandomPolicy(), *learners, OraclePolicy()]


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


def describe_maps(table: Table) -> str:
    return describe(summary(table))


def describe_laws(table: Table) -> str:
    """The summaries of all laws, one below the other."""
    return "\n\n".join(f"{law}\n{describe(summary_of_law(part))}" for law, part in by_law(table).items())


def plot_success(table: Table, title: str) -> Figure:
    """Success by episode of every policy."""
    first = (table["map"] == 0) & (table["policy"] == table["policy"][0])
    first &= table["training_seed"] == table["training_seed"][first][0]
    epsilon = table["epsilon"][first][np.argsort(table["episode"][first])]
    return plot_learning_curves(by_policy(table), epsilon, title=title, failures=True)


def plot_success_by_law(table: Table, title: str) -> Figure:
    """Success by episode of every policy, one panel a law."""
    panels = {law: by_policy(part) for law, part in by_law(table).items()}
    seeds = len(np.unique(table["training_seed"][table["policy"] == "agent"]))
    note = f"{len(np.unique(table['map']))} games of each law; agent: mean of {seeds} training seed{'s' * (seeds != 1)}"
    return plot_panels(panels, title=title, note=note)


class Experiment(NamedTuple):
    """A row of the table of experiments. Its players are all shipped agents and all baselines."""

    play: Callable[..., Table]  # (policies, maps, seed, progress) -> table; it says the schedule
    maps: Callable[[int | None], object]  # the first n of the maps that ``play`` takes; None: all of them
    law: MapDistribution  # of the lakes: posterior sampling is told it
    title: str  # of the figure
    plot: Callable[[Table, str], Figure] = plot_success  # (table, title) -> figure
    describe: Callable[[Table], str] = describe_maps  # (table) -> what is printed


EXPERIMENTS = {
    "in_distribution": Experiment(
        in_distribution,
        lambda n: held_out_maps("in_distribution")[:n],
        PAPER_IN_DISTRIBUTION,
        "On lakes never seen, of the training sizes (3 to 5 wide and high)",
    ),
    "out_of_distribution": Experiment(
        out_of_distribution,
        lambda n: held_out_maps("out_of_distribution")[:n],
        PAPER_OUT_OF_DISTRIBUTION,
        "On larger lakes (6 to 7; DQN never saw these sizes, pretraining saw random play on them)",
    ),
    "exploration": Experiment(
        exploration,
        lambda n: held_out_maps("in_distribution")[:n],
        PAPER_IN_DISTRIBUTION,
        "The player decides from the first move on (lakes 3 to 5 wide and high)",
    ),
    "games": Experiment(
        games,
        lambda n: games_of_every_law(GAMES_EACH if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "Other games, the same weights (the player decides from the first move on)",
        plot_success_by_law,
        describe_laws,
    ),
}


def plot_experiment(table: Table, name: str) -> Figure:
    """The figure of the experiment ``name``, from its table."""
    return EXPERIMENTS[name].plot(table, EXPERIMENTS[name].title)


def draw(table_file: Path) -> Path:
    """``.../results/NAME.csv.gz`` -> ``.../figures/NAME.png``. Returns the picture's path."""
    name = table_file.name.split(".")[0]
    picture = table_file.parent.parent / "figures" / f"{name}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_experiment(read_table(table_file), name).savefig(picture, dpi=110, metadata={"Software": None})
    print(f"written: {picture}")
    return picture


def draw_shipped() -> None:
    """The figures of all shipped tables, without playing."""
    for name in EXPERIMENTS:
        for table_file in (ASSETS / "results").glob(f"{name}.csv.gz"):
            draw(table_file)
