"""Made-up histories that ask one thing each: one way over random tile numbers, walked so and so often.

On a lake everything happens at once. Here a history tells a single way of d moves to a goal, over tile numbers and
action words drawn at random, and the question is always the same: what is the right first move worth?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from icrl_utils.evaluation.tables import Table, mean_of_seeds, per_map, table_of, training_seed
from icrl_utils.history.episodes import Episode
from icrl_utils.llama.adapters import backbone, causal_lm
from icrl_utils.llama.agent import Agent
from icrl_utils.llama.readout import action_logits
from icrl_utils.play.policy import Policy
from icrl_utils.plots.values import plot_lines

# Chosen before the first look at a result.
DRAWS, DRAWS_SEED = 200, 1309
MOVES = (1, 2, 3, 4, 6, 8)
VISITS = (1, 2, 3, 4, 6)
GAMMA = 0.6  # the discount that the shipped agents were trained with
FORMS = {  # of a history that tells the way ``visits`` times
    "to the goal": "every walk reaches the goal",
    "cut off": "the first walk reaches the goal, the others are cut off one move before it",
    "no reward": "no walk reaches the goal",
}


def draw_way(moves: int, rng: np.random.Generator, tiles: Sequence[int] = tuple(range(64))) -> Episode:
    """A way of so many moves to a goal, over distinct tiles out of ``tiles``, with any actions."""
    chosen = rng.permutation(tiles)[: moves + 1]
    return Episode(tuple(chosen.tolist()), tuple(rng.integers(4, size=moves).tolist()), "goal")


def cut_off(way: Episode) -> Episode:
    """The same walk, but its last move is another one, and it ends by the step limit: nothing new is told."""
    other = (way.actions[-1] + 1) % 4
    return Episode((*way.tiles[:-1], way.tiles[-2]), (*way.actions[:-1], other), "limit")


def asked_at_start(agent: Agent, told: Sequence[Episode], way: Episode) -> np.ndarray:
    """int64 [T]: ids of the episodes ``told``, then of a new one that begins where ``way`` does."""
    return agent.format.tokenize(agent.format.render([*told, Episode(way.tiles[:1], ())]))


@torch.no_grad()
def q_at_end(agent: Agent, ids: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """float64 [n, 4]: Q at the ends of histories int64 [n, T] of equal length."""
    model, tokens = causal_lm(agent.model), torch.from_numpy(np.stack(list(ids))).to(agent.device)
    hidden = backbone(agent.model)(input_ids=tokens, use_cache=False).last_hidden_state[:, -1]
    z = agent.readout.z(action_logits(hidden, model.lm_head, torch.as_tensor(agent.format.action_ids)))
    return agent.readout.q(z).double().cpu().numpy()


def history_of(way: Episode, visits: int, form: str) -> list[Episode]:
    """The episodes of a history of this ``form``, see ``FORMS``, which tells ``way`` so often."""
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown; choose one of: {', '.join(FORMS)}.")
    if form == "to the goal":
        return [way] * visits
    return [way if form == "cut off" else cut_off(way)] + [cut_off(way)] * (visits - 1)


def ways_of_every_length(n: int = DRAWS) -> dict[int, list[Episode]]:
    """moves -> ``n`` ways; what the experiments on made-up histories take for ``maps``."""
    return {moves: _ways(moves, n) for moves in MOVES}


def _ways(moves: int, n: int) -> list[Episode]:
    rng = np.random.default_rng([DRAWS_SEED, moves])
    return [draw_way(moves, rng) for _ in range(n)]


def agents_of(policies: Sequence[Policy]) -> list[Agent]:
    """The agents with a memory. Raises ValueError if there are none: nobody else has anything to look into."""
    agents = [policy for policy in policies if isinstance(policy, Agent) and policy.memory]
    if not agents:
        raise ValueError("policies holds no agent with a memory: pass [load_agent('assets/adapters/dqn')].")
    return agents


def values_by_distance(
    policies: Sequence[Policy],
    maps: dict[int, list[Episode]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Does it plan when it decides, or has it cached while it walked? Value of the right first move by distance.

    Args:
        maps: moves -> ways, as ``ways_of_every_length`` draws them; ``map`` is a way's place in its list.
    Returns:
        Table with ``training_seed``, ``form``, ``moves``, ``visits``, ``map``, ``q``.
    """
    rows = []
    for agent in agents_of(policies):
        for moves, ways in (ways_of_every_length() if maps is None else maps).items():
            for form in FORMS:
                for visits in VISITS if form != "no reward" else (1, 2):
                    asked = [asked_at_start(agent, history_of(way, visits, form), way) for way in ways]
                    first = [way.actions[0] for way in ways]
                    q = q_at_end(agent, asked)[np.arange(len(ways)), first]
                    row = {"training_seed": training_seed(agent), "form": form, "moves": moves, "visits": visits}
                    rows.append(row | {"map": np.arange(len(ways)), "q": q.round(4)})
    return table_of(rows)


def predictions(moves: np.ndarray, visits: int, floor: float, gamma: float = GAMMA) -> dict[str, np.ndarray]:
    """What two ways to compute would say about ways of so many ``moves``, float [n], walked ``visits`` times.

    - *plans at decision time*: gamma^(d - 1), however often the way was walked.
    - *caches while it walks*: as a table under Q-learning. The first walk tells the last move; each later walk, and the
      question at the end, passes values on by one move. So gamma^(d - 1) as far as d = ``visits``, and beyond it
      ``floor``, the value of a way without a known end.
    """
    exact = gamma ** (np.asarray(moves) - 1.0)
    return {
        "plans at decision time": exact,
        "caches while it walks": np.where(np.asarray(moves) <= visits, exact, floor),
    }


def mean_values(table: Table) -> dict[tuple[str, int, int], np.ndarray]:
    """(form, moves, visits) -> Q of each way, mean of the training seeds: float64 [ways]."""
    return per_map(table, ("form", "moves", "visits"), "q")


def describe_values(table: Table) -> str:
    """Mean values as text: a line for each form and number of visits, a column for each distance."""
    values = mean_values(table)
    moves = sorted({key[1] for key in values})
    lines = ["form, visits          " + "".join(f"{d:>6}" for d in moves) + "   moves from the goal"]
    lines.append("exact                 " + "".join(f"{GAMMA ** (d - 1):6.2f}" for d in moves))
    for form, visits in dict.fromkeys((form, visits) for form, _, visits in values):
        cells = "".join(f"{values[form, d, visits].mean():6.2f}" for d in moves)
        lines.append(f"{form:<14}{visits:>2} visits{cells}")
    return "\n".join(lines)


def plot_values(table: Table, title: str) -> Figure:
    """Value against distance, one line for each number of visits: two predictions, and what was measured."""
    values = mean_values(table)
    moves = np.array(sorted({key[1] for key in values}))
    visits = sorted({key[2] for key in values if key[0] == "to the goal"})
    floor = float(np.mean([values["to the goal", d, 1].mean() for d in moves[moves > 1]]))
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name in predictions(moves, 1, floor):
        lines = {f"walked {k} x": (moves, predictions(moves, k, floor)[name]) for k in visits}
        panels[f"prediction: {name}"] = lines
    for form, text in (("to the goal", "every walk to the goal"), ("cut off", "later walks cut off before the goal")):
        panels[f"measured: {text}"] = {
            f"walked {k} x": (moves, np.array([values[form, d, k].mean() for d in moves])) for k in visits
        }
    n = table["map"].max() + 1
    note = f"n = {n} made-up ways of each length, {mean_of_seeds(table['training_seed'])}"
    return plot_lines(
        panels, f"moves from the tile asked about to the goal\n({note})", "value of the right first move",
        ylim=(0, 1.05), columns=2, title=title,
    )  # fmt: skip
