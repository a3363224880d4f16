"""Which token reads which, and where in the network the value of a way comes to be: cuts and patches.

Two tools, both hooks on public modules of the network:

- `attention_cut`: single heads must not look from some tokens at some earlier ones (attention knock-out).
- `patched`: what a layer has written at one token is replaced by what it wrote there in another run (activation
  patching).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from icrl_utils.evaluation.made_up import (
    DRAWS,
    DRAWS_SEED,
    agents_of,
    asked_at_start,
    cut_off,
    draw_way,
    q_at_end,
)
from icrl_utils.evaluation.tables import Table, mean_of_seeds, per_map, table_of, training_seed
from icrl_utils.history.episodes import Episode
from icrl_utils.llama.adapters import causal_lm
from icrl_utils.llama.agent import Agent
from icrl_utils.play.policy import Policy
from icrl_utils.plots.matrices import Grid, plot_cuts, plot_matrices
from icrl_utils.statistics import Interval, interval

# The tools


@contextmanager
def attention_cut(model: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Within this block no head attends where ``hidden``, bool [n, layers, heads, T, T], is True at (query, key).

    Every token goes on to see itself: a row without any key would be NaN. Takes n histories of T tokens, no cache.
    """
    tokens = hidden.shape[-1]
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden.device).tril()
    visible = earlier & (~hidden | torch.eye(tokens, dtype=torch.bool, device=hidden.device))

    def hook(layer: int):
        return lambda _, args, kwargs: (args, kwargs | {"attention_mask": visible[:, layer]})

    handles = [
        layer.self_attn.register_forward_pre_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(causal_lm(model).model.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def states_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """The residual stream of the forward pass in this block: a list of [n, T, d], first the embedding, then the result
    of each layer."""
    states: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, output: states.append(output)) for module in _stages(model)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patched(model: nn.Module, stage: int, position: int, state: Tensor) -> Iterator[None]:
    """Within this block the residual stream after ``stage`` (0: embedding, l: layer l) is ``state`` [n, T, d] at
    ``position``."""

    def exchange(_, __, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, position] = state[:, position]
        return output

    handle = _stages(model)[stage].register_forward_hook(exchange)
    try:
        yield
    finally:
        handle.remove()


def _stages(model: nn.Module) -> list[nn.Module]:
    body = causal_lm(model).model
    return [body.embed_tokens, *body.layers]


# Cutting attention

# A way of two moves is walked to the goal, and again as far as the last tile before it; between and after lie two other
# ways, which end in holes. Then the value of the right first move is asked. Two tokens a step:
STORY = (
    "tile", "right move", "next tile", "its move", "goal", "reset",
    "other way", "other way", "other way", "other way", "hole", "reset",
    "tile again", "right move", "next tile again", "another move", "limit", "reset",
    "other way", "other way", "other way", "other way", "hole", "reset",
    "question",
)  # fmt: skip
QUESTION, NEXT_AGAIN, GOAL_WORD = STORY.index("question"), STORY.index("next tile again"), STORY.index("goal")
CUTS: dict[str, tuple[int, tuple[int, ...]]] = {  # who must not look (query), at what (keys)
    "question, at the goal": (QUESTION, (GOAL_WORD,)),
    "question, at earlier visits": (QUESTION, (0, 1, 12, 13)),
    "question, at the next tile, first visit": (QUESTION, (2,)),
    "question, at the next tile, later visit": (QUESTION, (NEXT_AGAIN,)),
    "later visit, at the goal": (NEXT_AGAIN, (GOAL_WORD,)),
    "later visit, at the first one": (NEXT_AGAIN, (2, 3)),
}
CONTROLS = {  # equally many keys, drawn at random from all others that the query sees
    "question, at 1 random token": (QUESTION, 1),
    "question, at 4 random tokens": (QUESTION, 4),
    "later visit, at 1 random token": (NEXT_AGAIN, 1),
    "later visit, at 2 random tokens": (NEXT_AGAIN, 2),
}


def draw_stories(n: int = DRAWS) -> list[tuple[Episode, Episode, Episode]]:
    """``n`` times a way of two moves and two other ones over other tiles."""
    rng = np.random.default_rng([DRAWS_SEED, 100])
    stories = []
    for _ in range(n):
        tiles = rng.permutation(64)
        way, first, second = (draw_way(2, rng, tiles[i : i + 3].tolist()) for i in (0, 3, 6))
        stories.append((way, replace(first, outcome="hole"), replace(second, outcome="hole")))
    return stories


def story_ids(agent: Agent, story: tuple[Episode, Episode, Episode], rewarded: bool = True) -> np.ndarray:
    """int64 [25]: what ``STORY`` names, token by token. Without ``rewarded`` the first walk is cut off, too."""
    way, first, second = story
    return asked_at_start(agent, [way if rewarded else cut_off(way), first, cut_off(way), second], way)


def cut_pairs(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """bool [n, T, T]: which (query, key) the cut ``name`` hides in each of n stories. ``rng`` draws the controls'."""
    hidden = np.zeros((n, len(STORY), len(STORY)), bool)
    if name in CUTS:
        query, keys = CUTS[name]
        hidden[:, query, keys] = True
        return hidden
    query, count = CONTROLS[name]
    meant = {key for asker, keys in CUTS.values() if asker == query for key in keys}
    others = [key for key in range(query) if key not in meant]
    for row in hidden:
        row[query, rng.choice(others, count, replace=False)] = True
    return hidden


def attention_cuts(
    policies: Sequence[Policy],
    maps: Sequence[tuple[Episode, Episode, Episode]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Who reads what? Value of the right first move with some attention cut, in all heads and in each of them.

    Args:
        maps: stories, as ``draw_stories`` draws them. seed: draws the random cuts.
    Returns:
        Table with ``training_seed``, ``cut`` (``CUTS``, ``CONTROLS``, "nothing", and "no goal in the story"), ``layer``
        and ``head`` (-1: all), ``map`` and ``q``.
    """
    stories = draw_stories() if maps is None else maps
    n, right = len(stories), [way.actions[0] for way, _, _ in stories]
    rows = []
    for agent in agents_of(policies):
        layers, heads = _layers_and_heads(agent)

        def q_of(ids: np.ndarray, asked: Agent = agent) -> np.ndarray:
            return q_at_end(asked, ids)[np.arange(n), right].round(4)

        row = {"training_seed": training_seed(agent), "layer": -1, "head": -1, "map": np.arange(n)}
        ids = np.stack([story_ids(agent, story) for story in stories])
        rows.append(row | {"cut": "nothing", "q": q_of(ids)})
        rewardless = np.stack([story_ids(agent, story, rewarded=False) for story in stories])
        rows.append(row | {"cut": "no goal in the story", "q": q_of(rewardless)})
        for number, name in enumerate((*CUTS, *CONTROLS)):
            pairs = torch.from_numpy(cut_pairs(name, n, np.random.default_rng([seed, number])))
            for layer, head in [(-1, -1), *np.ndindex(layers, heads)]:
                hidden = torch.zeros(n, layers, heads, *pairs.shape[1:], dtype=torch.bool)
                part = (slice(None), slice(None) if layer < 0 else layer, slice(None) if head < 0 else head)
                hidden[part] = pairs[:, None, None] if layer < 0 else pairs
                with attention_cut(agent.model, hidden.to(agent.device)):
                    rows.append(row | {"cut": name, "layer": layer, "head": head, "q": q_of(ids)})
    return table_of(rows)


def _layers_and_heads(agent: Agent) -> tuple[int, int]:
    config = causal_lm(agent.model).config
    return config.num_hidden_layers, config.num_attention_heads


def value_lost(table: Table) -> dict[str, np.ndarray]:
    """cut -> float64 [layers, heads]: the mean value lost when this head alone does not look."""
    values = per_map(table, ("cut", "layer", "head"), "q")
    intact = values["nothing", -1, -1]
    shape = tuple(1 + max(key[axis] for key in values) for axis in (1, 2))
    names = dict.fromkeys(key[0] for key in values if key[1] >= 0)
    return {
        name: np.reshape([(intact - values[name, *place]).mean() for place in np.ndindex(*shape)], shape)
        for name in names
    }


def mean_with_cut(table: Table) -> dict[str, Interval]:
    """cut -> mean value of the right first move, cut in all heads, with its 95 % interval over stories."""
    values = per_map(table, ("cut", "layer", "head"), "q")
    return {cut: interval(q) for (cut, layer, _), q in values.items() if layer < 0}


HEADS_SHOWN = ("question, at the next tile, later visit", "later visit, at the goal", "later visit, at 1 random token")


def plot_attention_cuts(table: Table, title: str) -> Figure:
    """Mean values with each cut, and single heads of three of them."""
    n = table["map"].max() + 1
    note = f"n = {n} made-up histories, {mean_of_seeds(table['training_seed'])}, 95 % intervals"
    lost = value_lost(table)
    return plot_cuts(mean_with_cut(table), {name: lost[name] for name in HEADS_SHOWN}, f"{title}\n{note}")


def describe_cuts(table: Table) -> str:
    """Mean value with each cut in all heads, and the head whose cut alone lowers it most."""
    lost = value_lost(table)
    lines = ["attention cut                              value                one head alone, largest loss"]
    for name, found in mean_with_cut(table).items():
        line = f"{name:<43}{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
        if name in lost:
            layer, head = np.unravel_index(lost[name].argmax(), lost[name].shape)
            line += f"    layer {layer + 1}, head {head + 1}: {lost[name].max():.2f}"
        lines.append(line)
    return "\n".join(lines)


# Patching activations

PATCHED_MOVES = (1, 2)  # from the tile asked about to the goal


def patch_pair(agent: Agent, way: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Two histories, int64 [T] each, that differ in one word: the way ends on a goal, or in a hole.

    It is walked once. A way of two moves is then walked again and cut off before the end, and the question is asked
    where it began; a way of one move is asked about at once.
    """
    hole = Episode(way.tiles, way.actions, "hole")
    again = [cut_off(way)] if way.steps > 1 else []
    goal_ids, hole_ids = (asked_at_start(agent, [end, *again], way) for end in (way, hole))
    return goal_ids, hole_ids


def activation_patching(
    policies: Sequence[Policy],
    maps: Mapping[int, Sequence[Episode]] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Table:
    """Where is the value kept? The run that saw a hole, with one state from the run that saw a goal.

    Args:
        maps: moves -> ways (1 and 2 moves are meant).
    Returns:
        Table with ``training_seed``, ``moves``, ``run`` ("goal", "hole": untouched; "patched"), ``layer`` (0: the
        embedding; -1: untouched), ``position`` (-1: untouched), ``map``, ``q`` (of the right first move).
    """
    rows = []
    for agent in agents_of(policies):
        for moves, ways in (draw_patch_ways() if maps is None else maps).items():
            n, right = len(ways), [way.actions[0] for way in ways]
            goal_ids, hole_ids = (np.stack(ids) for ids in zip(*(patch_pair(agent, w) for w in ways), strict=True))
            row: dict = {"training_seed": training_seed(agent), "moves": moves, "layer": -1, "position": -1}
            row["map"] = np.arange(n)
            with states_of(agent.model) as states:
                q_goal = q_at_end(agent, goal_ids)[np.arange(n), right]
            rows.append(row | {"run": "goal", "q": q_goal.round(4)})
            rows.append(row | {"run": "hole", "q": q_at_end(agent, hole_ids)[np.arange(n), right].round(4)})
            for stage, state in enumerate(states):
                for position in range(goal_ids.shape[1]):
                    with patched(agent.model, stage, position, state):
                        q = q_at_end(agent, hole_ids)[np.arange(n), right].round(4)
                    rows.append(row | {"run": "patched", "layer": stage, "position": position, "q": q})
    return table_of(rows)


def draw_patch_ways(n: int = DRAWS) -> dict[int, list[Episode]]:
    """moves -> ``n`` ways, for 1 and 2 moves."""
    return {
        moves: [draw_way(moves, rng) for _ in range(n)]
        for moves in PATCHED_MOVES
        for rng in [np.random.default_rng([DRAWS_SEED, 200 + moves])]
    }


def recovered(table: Table) -> dict[int, np.ndarray]:
    """moves -> float64 [stages, T]: which part of the difference between the goal's run and the hole's one state brings
    back, (patched - hole) / (goal - hole) of mean values."""
    values = {key: value.mean() for key, value in per_map(table, ("moves", "run", "layer", "position"), "q").items()}
    result = {}
    for moves in dict.fromkeys(key[0] for key in values):
        hole, goal = (values[moves, run, -1, -1] for run in ("hole", "goal"))
        shape = tuple(1 + max(key[axis] for key in values if key[0] == moves) for axis in (2, 3))
        found = [values[moves, "patched", stage, position] for stage, position in np.ndindex(*shape)]
        result[moves] = (np.reshape(found, shape) - hole) / (goal - hole)
    return result


PATCH_WORDS = {  # moves -> what stands at each position
    1: ("tile", "move", "GOAL / hole", "reset", "question"),
    2: ("tile", "move", "next tile", "its move", "GOAL / hole", "reset",
        "tile again", "move", "next again", "other move", "limit", "reset", "question"),
}  # fmt: skip


def describe_patching(table: Table) -> str:
    """For each stage the positions that bring back at least a tenth of the difference."""
    lines = []
    for moves, shares in recovered(table).items():
        lines.append(f"goal {moves} move{'s' * (moves > 1)} away; part of the value that one patched state brings back")
        for stage, row in enumerate(shares):
            name = f"layer {stage}" if stage else "embedding"
            cells = [f"{PATCH_WORDS[moves][i]} {row[i]:.2f}" for i in np.flatnonzero(np.abs(row) >= 0.1)]
            lines.append(f"  {name:<11}" + (", ".join(cells) or "none above .1"))
    return "\n".join(lines)


def plot_patching(table: Table, title: str) -> Figure:
    """Stages against tokens: which part of the value one patched state brings back, for both lengths of a way."""
    panels = {}
    for moves, shares in recovered(table).items():
        stages = ["embedding", *[f"layer {i}" for i in range(1, len(shares))]]
        panels[f"goal {moves} move{'s' * (moves > 1)} away"] = Grid(shares, stages, PATCH_WORDS[moves])
    n = table["map"].max() + 1
    note = f"n = {n} made-up ways of each length, {mean_of_seeds(table['training_seed'])}"
    return plot_matrices(panels, f"{title}\n{note}", "token whose state is taken from the run with the goal", "")
