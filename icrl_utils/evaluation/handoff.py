"""Who explores, who plays? One player finds out about a lake, another one goes on with what was found.

Success mixes two abilities: to find out what one needs, and to use it. Here they are taken apart. The explorer decides
in the first six episodes, the player in the next three; both are told every step from the first on. Each explorer
finds the same things whoever plays after it, so that a column of the matrix compares explorers and a row players.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.evaluation.tables import Table, mean_of_seeds, per_map, table_of, training_seed
from icrl_utils.history.episodes import RESET
from icrl_utils.lake.games import HeldOutLakes
from icrl_utils.lake.held_out import held_out_law
from icrl_utils.lake.maps import TileGame
from icrl_utils.play.baselines import RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.play.policy import Policy, Step
from icrl_utils.play.posterior_sampling import PosteriorSamplingPolicy
from icrl_utils.play.rollout import rollout
from icrl_utils.plots.matrices import Grid, plot_matrices
from icrl_utils.statistics import Interval, interval

# Chosen before the first look at a result.
LAKES_OF_SIZE = {"3 to 5": "in_distribution", "6 and 7": "out_of_distribution"}  # name of the held-out list
LAKES, LAKES_SEED = 200, 1308  # of each size; the seed says which of the held-out lakes, and in which order
EXPLORED, PLAYED = 6, 3  # episodes
PLAYERS = ("agent", "R-max", "optimistic tabular Q")


class HandOff:
    """A policy of two: ``explorer`` decides in the first ``episodes`` of a history, ``player`` in all later ones.

    Each has a random stream of its own, so that the explorer does the same whoever comes next. They may be one object:
    then it just goes on.
    """

    def __init__(self, explorer: Policy, player: Policy, episodes: int = EXPLORED):
        self.explorer, self.player, self.episodes = explorer, player, episodes
        self.name = f"{explorer.name}, then {player.name}"
        self.batch_maps = min(getattr(policy, "batch_maps", 2**15) for policy in (explorer, player))

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        first, second = zip(*(rng.spawn(2) for rng in rngs), strict=True)
        self.explorer.start(maps, list(first))
        if self.player is not self.explorer:
            self.player.start(maps, list(second))
        self._episode = np.full(len(maps), -1)

    def act(self, step: Step) -> np.ndarray:
        self._episode += step.action == RESET
        explores = self._episode < self.episodes
        chosen = self.player.act(step)
        if self.player is not self.explorer and explores.any():  # afterwards the explorer need not listen any more
            chosen = np.where(explores, self.explorer.act(step), chosen)
        return chosen

    def keep(self, rows: np.ndarray) -> None:
        self._episode = self._episode[rows]
        for policy in {id(policy): policy for policy in (self.explorer, self.player)}.values():
            policy.keep(rows)


def lakes_of_every_size(n: int = LAKES, seed: int = LAKES_SEED) -> dict[str, Sequence[TileGame]]:
    """sizes -> ``n`` held-out lakes."""
    return {sizes: HeldOutLakes(name).sample(n, seed) for sizes, name in LAKES_OF_SIZE.items()}


def hand_off(
    policies: Sequence[Policy],
    maps: Mapping[str, Sequence[TileGame]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Does it explore better, or plan better? Six episodes by one, the next three by another.

    Args:
        policies: the agents among them take part, one a training seed; the others are made here, anew for each size.
        maps: sizes, a key of ``LAKES_OF_SIZE`` -> lakes.
    Returns:
        Table of the three episodes that the player decides: ``sizes``, ``explorer``, ``player``, ``training_seed`` (-1
        where no agent takes part), ``map``, ``episode``, ``success``, ``steps``, ``optimal_steps``.
    """
    agents = [policy for policy in policies if policy.name == "agent"]
    if not agents:
        raise ValueError("policies holds no agent: pass [load_agent('assets/adapters/dqn')].")
    rows = []
    for sizes, lakes in (lakes_of_every_size() if maps is None else maps).items():
        law = held_out_law(LAKES_OF_SIZE[sizes])
        others: list[Policy] = [RandomPolicy(), TabularPolicy(1.0), RMaxPolicy(), PosteriorSamplingPolicy(law)]
        for explorer, player in _pairs(others):
            rows.append(_played(explorer, player, sizes, lakes, seed, progress))
        for agent in agents:
            for explorer, player in _pairs([*others, agent]):
                if agent in (explorer, player):
                    rows.append(_played(explorer, player, sizes, lakes, seed, progress))
    return table_of(rows)


def _pairs(policies: Sequence[Policy]) -> list[tuple[Policy, Policy]]:
    """All (explorer, player)."""
    return [(explorer, player) for explorer in policies for player in policies if player.name in PLAYERS]


def _played(explorer: Policy, player: Policy, sizes: str, lakes: Sequence[TileGame], seed: int, progress: bool) -> dict:
    records = rollout(HandOff(explorer, player), lakes, "greedy", seed, EXPLORED + PLAYED, progress=progress)
    n, played = len(lakes), slice(EXPLORED, None)
    return {
        "sizes": sizes,
        "explorer": explorer.name,
        "player": player.name,
        "training_seed": max(training_seed(explorer), training_seed(player)),
        "map": np.repeat(np.arange(n), PLAYED),
        "episode": np.tile(np.arange(EXPLORED, EXPLORED + PLAYED), n),
        "success": records.success[:, played].ravel().astype(int),
        "steps": records.steps[:, played].ravel(),
        "optimal_steps": records.optimal_steps[:, played].ravel(),
    }


def matrix(table: Table) -> dict[str, dict[tuple[str, str], Interval]]:
    """sizes -> (explorer, player) -> success in the player's episodes, with its 95 % interval over lakes."""
    parts = per_map(table, ("sizes", "explorer", "player"), "success")
    result: dict[str, dict[tuple[str, str], Interval]] = {}
    for (sizes, explorer, player), success in parts.items():
        result.setdefault(sizes, {})[explorer, player] = interval(success)
    return result


def differences(table: Table) -> list[tuple[str, str, Interval]]:
    """Paired differences on the same lakes, as (sizes, what, Interval): the agent as explorer against each other
    explorer, summed over who plays; and the agent as player against each other player, over who explores."""
    found = []
    for role, other_role in (("explorer", "player"), ("player", "explorer")):
        parts = per_map(table, ("sizes", role, other_role), "success")
        for sizes in dict.fromkeys(key[0] for key in parts):
            names = dict.fromkeys(key[1] for key in parts if key[0] == sizes)
            mean = {
                name: np.mean([value for key, value in parts.items() if key[:2] == (sizes, name)], axis=0)
                for name in names
            }
            for name in names:
                if name != "agent":
                    found.append((sizes, f"{role}: agent minus {name}", interval(mean["agent"] - mean[name])))
    return found


def describe_hand_off(table: Table) -> str:
    """The matrix and its paired differences as text."""
    lines = []
    for sizes, cells in matrix(table).items():
        players = list(dict.fromkeys(player for _, player in cells))
        lines.append(f"lakes {sizes}; explored by, played by {', '.join(players)}")
        for explorer in dict.fromkeys(explorer for explorer, _ in cells):
            values = [cells[explorer, player] for player in players]
            texts = [f"{v.estimate:.2f} [{v.low:.2f}, {v.high:.2f}]" for v in values]
            lines.append(f"  {explorer:<22}" + "  ".join(f"{text:<18}" for text in texts).rstrip())
    for sizes, what, found in differences(table):
        lines.append(f"lakes {sizes}; as {what:<46}{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
    return "\n".join(lines)


def plot_hand_off(table: Table, title: str) -> Figure:
    """The matrix of each size of lakes, with the intervals."""
    panels = {}
    for sizes, cells in matrix(table).items():
        rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
        parts = [np.array([[float(cells[row, column][i]) for column in columns] for row in rows]) for i in range(3)]
        panels[f"lakes {sizes}"] = Grid(parts[0], rows, columns, *parts[1:])
    n, of_agents = table["map"].max() + 1, table["training_seed"] != -1
    note = f"success in episodes {EXPLORED} to {EXPLORED + PLAYED - 1}, 95 % intervals over n = {n} lakes of each size"
    note += f"\nagent: {mean_of_seeds(table['training_seed'][of_agents])}"
    return plot_matrices(panels, f"{title}\n{note}", "who plays the next three episodes", "who explores for six")
