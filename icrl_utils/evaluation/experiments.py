"""The experiments, their tables on disk, and the summaries and figures drawn from them.

One function an experiment: it lets policies play the same maps with the same luck and returns one tidy table, a dict
of equally long columns with one row per policy, training seed, map and episode (see ``COLUMNS``); a table of several
laws of games has a column ``law`` before them, and `zero_shot` has columns of its own. ``EXPERIMENTS`` lists all
experiments. The shipped tables in ``assets/results/`` are remade by ``python -m icrl_utils evaluate NAME --write``.
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

from icrl_utils.evaluation import (
    changing,
    handoff,
    inside,
    language_model,
    made_up,
    rehearsal,
    stitching,
    surgery,
    zero_shot,
)
from icrl_utils.evaluation.tables import KINDS, Table, by_policy, describe, mean_of_seeds, parts_of
from icrl_utils.history.episodes import HOLE
from icrl_utils.lake.games import GAMES, HeldOutLakes
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import (
    PAPER_IN_DISTRIBUTION,
    PAPER_OUT_OF_DISTRIBUTION,
    TRAINING_MAPS,
    MapDistribution,
    TileGame,
)
from icrl_utils.llama.agent import load_agent
from icrl_utils.paths import ASSETS, BUILD, check_writable, write_csv
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.play.forgetful import RecentRMaxPolicy, ToldRMaxPolicy
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
ALL_COLUMNS = KINDS | zero_shot.COLUMNS | COLUMNS_WITH_LAW

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


def language_models(policies: Sequence[Policy], maps: language_model.Lakes | None = None, **options) -> Table:
    """Does a real language model do it, too? Held-out lakes of both sizes, both schedules; see `language_model`.

    ``maps``: name of a setting -> its lakes.
    """
    parts = []
    for name, lakes in (language_model.lakes_of_settings() if maps is None else maps).items():
        setting = language_model.SETTINGS[name]
        for policy in policies:
            played = language_model.plays(policy, name, lakes)
            if len(played):
                table = compare([policy], played, setting.schedule, episodes=setting.episodes, **options)
                parts.append({"law": np.full(len(table["map"]), name), **table})
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
    return {law: {name: part[name] for name in COLUMNS} for law, part in parts_of(table, "law").items()}


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
    kinds = {name: ALL_COLUMNS[name] for name in table}
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
    if unknown := set(header) - set(ALL_COLUMNS):
        raise ValueError(f"path={str(path)!r} has columns {sorted(unknown)}, which no experiment has; make it again.")
    kinds = {name: ALL_COLUMNS[name] for name in header}
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
    players = experiment.players(profile.adapter, experiment.law)
    maps = experiment.maps(profile.maps if is_smoke else None)
    table = experiment.play(players, maps, seed=seed, progress=True)
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


def crossing_agents() -> list[Policy]:
    """The agents trained on slices that cross from one map to another (``assets/adapters/crossing*``), if any."""
    folders = sorted(file.parent for file in (ASSETS / "adapters").glob("crossing*/adapter_config.json"))
    return [load_agent(folder, name="agent, crossing slices") for folder in folders]


def everybody(adapter: str, law: MapDistribution) -> list[Policy]:
    """All shipped agents and all baselines."""
    return [*shipped_agents(adapter), *baselines(law)]


def players_of_changes(adapter: str, law: MapDistribution) -> list[Policy]:
    """The shipped agents, those trained across changes, and learners that forget never, after ten episodes, or when
    they are told."""
    learners: list[Policy] = [TabularPolicy(1.0), RMaxPolicy(), RecentRMaxPolicy(), ToldRMaxPolicy()]
    return [*shipped_agents(adapter), *crossing_agents(), *learners, OraclePolicy()]


def players_of_stitching(adapter: str, law: MapDistribution) -> list[Policy]:
    """The shipped agents and all baselines that can believe in walks that no lake allows."""
    return [*shipped_agents(adapter), RandomPolicy(), TabularPolicy(), TabularPolicy(1.0), RMaxPolicy()]


def baselines(law: MapDistribution) -> list[Policy]:
    """Fresh ones; only posterior sampling knows the ``law`` that the maps come from."""
    learners: list[Policy] = [TabularPolicy(), TabularPolicy(1.0), RMaxPolicy(), PosteriorSamplingPolicy(law)]
    return [RandomPolicy(), *learners, OraclePolicy()]


def describe_maps(table: Table) -> str:
    return describe(summary(table))


def describe_laws(table: Table) -> str:
    """The summaries of all laws, one below the other."""
    return "\n\n".join(f"{law}\n{describe(summary_of_law(part))}" for law, part in by_law(table).items())


def describe_settings(table: Table) -> str:
    """The summaries of all settings: the last ten episodes where random moves are forced before, else the first five
    and the last five of fifteen."""
    texts = []
    for name, part in by_law(table).items():
        if language_model.SETTINGS[name].schedule == "paper":
            texts.append(f"{name}: episodes 20 to 29\n{describe(summary(part))}")
        else:
            texts += [f"{name}: first five\n{describe(summary(part, FIRST_FIVE))}"]
            texts += [f"{name}: episodes 10 to 14\n{describe(summary(part, LAST_FIVE))}"]
    return "\n\n".join(texts)


def plot_settings(table: Table, title: str) -> Figure:
    """Success by episode of every player, one panel a setting."""
    panels = {name: by_policy(part) for name, part in by_law(table).items()}
    lakes = sorted({len(values[0]) for group in panels.values() for values in group.values()}, reverse=True)
    return plot_panels(panels, title=title, note=f"{' or '.join(map(str, lakes))} held-out lakes a player", columns=2)


def plot_success(table: Table, title: str) -> Figure:
    """Success by episode of every policy."""
    first = (table["map"] == 0) & (table["policy"] == table["policy"][0])
    first &= table["training_seed"] == table["training_seed"][first][0]
    epsilon = table["epsilon"][first][np.argsort(table["episode"][first])]
    return plot_learning_curves(by_policy(table), epsilon, title=title, failures=True)


def plot_success_by_law(table: Table, title: str) -> Figure:
    """Success by episode of every policy, one panel a law."""
    panels = {law: by_policy(part) for law, part in by_law(table).items()}
    seeds = mean_of_seeds(table["training_seed"][table["policy"] == "agent"])
    note = f"{len(np.unique(table['map']))} games of each law; agent: {seeds}"
    return plot_panels(panels, title=title, note=note)


class Experiment(NamedTuple):
    """A row of the table of experiments."""

    play: Callable[..., Table]  # (players, maps, seed, progress) -> table; it says the schedule
    maps: Callable[[int | None], object]  # the first n of the maps that ``play`` takes; None: all of them
    law: MapDistribution  # of the lakes: posterior sampling is told it
    title: str  # of the figure
    plot: Callable[[Table, str], Figure] = plot_success  # (table, title) -> figure
    describe: Callable[[Table], str] = describe_maps  # (table) -> what is printed
    players: Callable[[str, MapDistribution], Sequence] = everybody  # (adapter, law) -> whom ``play`` takes


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
    "changing_lake": Experiment(
        changing.changing_lake,
        lambda n: changing.exchanges(n=changing.CHANGES_EACH if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "The lake is exchanged after 30 of 60 episodes, without notice",
        changing.plot_changing,
        changing.describe_changes,
        players_of_changes,
    ),
    "stitching": Experiment(
        stitching.stitching,
        lambda n: stitching.crossings_of_every_kind(n=stitching.CROSSINGS if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "Two walks were shown that share one tile: are they joined?",
        stitching.plot_stitching,
        stitching.describe_stitching,
        players_of_stitching,
    ),
    "hand_off": Experiment(
        handoff.hand_off,
        lambda n: handoff.lakes_of_every_size(handoff.LAKES if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "One explores, another one plays",
        handoff.plot_hand_off,
        handoff.describe_hand_off,
    ),
    "values_by_distance": Experiment(
        made_up.values_by_distance,
        lambda n: made_up.ways_of_every_length(made_up.DRAWS if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "What a way is worth",
        made_up.plot_values,
        made_up.describe_values,
    ),
    "attention_cuts": Experiment(
        inside.attention_cuts,
        lambda n: inside.draw_stories(made_up.DRAWS if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "Who reads what: a goal two moves away, some attention cut",
        inside.plot_attention_cuts,
        inside.describe_cuts,
    ),
    "activation_patching": Experiment(
        inside.activation_patching,
        lambda n: inside.draw_patch_ways(made_up.DRAWS if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "Where the value is: the part that one state of the goal's run brings back",
        inside.plot_patching,
        inside.describe_patching,
    ),
    "context_surgery": Experiment(
        surgery.context_surgery,
        lambda n: HeldOutLakes().sample(surgery.SURGERY_LAKES if n is None else n, surgery.SURGERY_SEED),
        PAPER_IN_DISTRIBUTION,
        "What the agent believes after an operation on its history",
        surgery.plot_surgery,
        surgery.describe_surgery,
    ),
    "rehearsal": Experiment(
        rehearsal.rehearsal,
        lambda n: rehearsal.lakes_to_rehearse(rehearsal.REHEARSAL_LAKES if n is None else n),
        PAPER_IN_DISTRIBUTION,
        "Imagined walks before each episode",
        rehearsal.plot_rehearsal,
        rehearsal.describe_rehearsal,
    ),
    "zero_shot": Experiment(
        zero_shot.zero_shot,
        zero_shot.histories,
        TRAINING_MAPS,
        "Before any training: does it expect again what its context has shown?",
        zero_shot.plot,
        zero_shot.describe,
        lambda adapter, law: zero_shot.subjects(),
    ),
    "language_model": Experiment(
        language_models,
        language_model.lakes_of_settings,
        PAPER_IN_DISTRIBUTION,
        "A real language model beside the tiny Llama",
        plot_settings,
        describe_settings,
        language_model.players,
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
