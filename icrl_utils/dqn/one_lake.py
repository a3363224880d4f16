"""Q-learning with a small network on one lake of sixteen tiles, where the exact answer is known: what keeps it stable?

Three switches: replay or not, how slowly the copy follows that values the next tile, and the link between what the
network puts out and Q. Many networks, each with its own luck, learn side by side: their weights are stacked.
``python -m icrl_utils remake one-lake`` writes what every way of setting them gives to ``assets/results``.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icrl_utils.dqn.dqn import polyak_update
from icrl_utils.lake.env import FrozenLakeVectorEnv
from icrl_utils.lake.maps import DEFAULT_MAP, LakeMap
from icrl_utils.paths import ASSETS, write_csv

GAMMA = 0.9
STEPS, LOOK_EVERY, BATCH = 2_000, 100, 32
MOVES = 8_000  # of random play, for each network
LINKS = ("none", "sigmoid")
ALPHAS = (1.0, 0.3, 0.1, 0.03, 0.01)  # 1: the copy is the network itself, that is no copy
SEEDS = 32
FILE = ASSETS / "results" / "one_lake.csv.gz"


class Way(NamedTuple):
    """The three switches."""

    link: str  # "none": Q is what the network puts out, squared error; "sigmoid": Q = sigmoid of it, cross-entropy
    replay: bool  # moves drawn from everything played, or the latest ones
    alpha: float  # the copy takes this share of the way to the network at every step


def random_play(env: FrozenLakeVectorEnv, rounds: int, seed: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
    """For each round, on all lakes of ``env``: tile, action, reward, next tile, whether the move ended the episode,
    whether the clock did, and whether it was a move at all (the step after an end only begins a new episode)."""
    rng = np.random.default_rng(seed)
    (tile, _), begins = env.reset(seed=seed), np.zeros(env.num_envs, bool)
    for _ in range(rounds):
        action = rng.integers(4, size=env.num_envs)
        next_tile, reward, terminated, truncated, _ = env.step(action)
        yield tile, action, reward, next_tile, terminated, truncated & ~terminated, ~begins
        tile, begins = next_tile, terminated | truncated


def played(lake: LakeMap, seeds: int, moves: int = MOVES) -> list[Tensor]:
    """The columns of `random_play`, each [seeds, moves]."""
    rounds = random_play(FrozenLakeVectorEnv([lake] * seeds), moves)
    return [torch.from_numpy(np.stack(column, axis=1)) for column in zip(*rounds, strict=True)]


def new_networks(seeds: int, sizes: tuple[int, ...] = (2, 64, 64, 4)) -> list[Tensor]:
    """Matrices and biases of so many small networks."""
    generator = torch.Generator().manual_seed(0)
    weights = []
    for n, m in zip(sizes[:-1], sizes[1:], strict=True):
        matrix = (torch.rand(seeds, n, m, generator=generator) * 2 - 1) / n**0.5
        weights += [matrix.requires_grad_(), torch.zeros(seeds, 1, m, requires_grad=True)]
    return weights


def outputs(weights: list[Tensor], lake: LakeMap) -> Tensor:
    """What every network puts out for every tile, which it is told as row and column: [seeds, tiles, 4]."""
    place = torch.tensor([divmod(tile, lake.width) for tile in range(lake.n_tiles)]) / 3
    hidden = torch.baddbmm(weights[1], place.expand(len(weights[0]), -1, -1), weights[0])
    for matrix, bias in zip(weights[2::2], weights[3::2], strict=True):
        hidden = torch.baddbmm(bias, hidden.relu(), matrix)
    return hidden


def q_tables(weights: list[Tensor], lake: LakeMap, is_bounded: bool) -> Tensor:
    """Q of every tile, for every network: [seeds, tiles, 4]."""
    return torch.sigmoid(outputs(weights, lake)) if is_bounded else outputs(weights, lake)


def losses(way: Way, online: list[Tensor], slow: list[Tensor], moves: list[Tensor], lake: LakeMap) -> Tensor:
    """Of every move, given the networks and their copies: [seeds, moves]. ``moves``: columns of `random_play`."""
    tile, action, reward, next_tile, over, _, is_move = moves
    run, is_bounded = torch.arange(len(tile))[:, None], way.link == "sigmoid"
    best = q_tables(slow, lake, is_bounded).detach().amax(-1)
    y = reward.float() + GAMMA * best[run, next_tile] * ~over
    z = outputs(online, lake)[run, tile, action]
    return is_move * (F.binary_cross_entropy_with_logits(z, y, reduction="none") if is_bounded else (z - y) ** 2)


def learn(way: Way, data: list[Tensor], lake: LakeMap, steps: int = STEPS) -> Tensor:
    """Q-learning from ``data``, columns of `random_play`. Q [looks, seeds, tiles, 4], one look every 100 steps."""
    (seeds, n), draw, looks = data[0].shape, torch.Generator().manual_seed(1), []
    run, online = torch.arange(seeds)[:, None], new_networks(seeds)
    slow, adam = [weight.detach().clone() for weight in online], torch.optim.Adam(online, lr=3e-3)
    for step in range(steps):
        latest = torch.arange(BATCH) + BATCH * step % n
        at = torch.randint(n, (seeds, BATCH), generator=draw) if way.replay else latest
        loss = losses(way, online, slow, [column[run, at] for column in data], lake).mean(1).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # networks do not mix: each has its own loss in the sum
        adam.step()
        polyak_update(slow, online, way.alpha)
        looks += [q_tables(online, lake, way.link == "sigmoid").detach()] if step % LOOK_EVERY == LOOK_EVERY - 1 else []
    return torch.stack(looks)


def reaches_goal(q: Tensor, lake: LakeMap) -> bool:
    """Does the greedy walk by ``q`` [tiles, 4] from the first start end at a goal?"""
    tile = lake.starts[0]
    for _ in range(lake.n_tiles):
        tile = int(lake.next_tile[tile, int(q[tile].argmax())])
    return tile in lake.goals


def root_mean_square_error(q: Tensor, lake: LakeMap) -> np.ndarray:
    """Of Q [..., tiles, 4] against the exact values, over the tiles where play goes on: [...]."""
    ordinary = [tile for tile, letter in enumerate(lake.letters) if letter in "SF"]
    exact = torch.tensor(lake.optimal_values(GAMMA), dtype=q.dtype)
    return ((q - exact)[..., ordinary, :] ** 2).mean((-2, -1)).sqrt().numpy()


def make_file() -> None:
    """Learn in every way, and write one row for each way, network and look."""
    lake, rows = DEFAULT_MAP, []
    data = played(lake, SEEDS)
    for way in itertools.starmap(Way, itertools.product(LINKS, (False, True), ALPHAS)):
        q = learn(way, data, lake)
        errors, largest = root_mean_square_error(q, lake), q.abs().amax((-2, -1)).numpy()
        ends = [reaches_goal(table, lake) for table in q[-1]]
        for look, seed in np.ndindex(errors.shape):
            rows.append({
                "link": way.link, "replay": int(way.replay), "alpha": way.alpha, "seed": seed,
                "step": (look + 1) * LOOK_EVERY, "error": f"{errors[look, seed]:.4g}",
                "largest": f"{largest[look, seed]:.4g}",
                "reaches_goal": int(ends[seed]) if look == len(errors) - 1 else "",
            })  # fmt: skip
        print(f"{way}: median error {np.median(errors[-1]):.3f}, {sum(ends)} of {SEEDS} reach the goal", flush=True)
    write_csv(FILE, rows)
    print(f"Wrote {FILE}.")


def read_file(path: Path = FILE) -> list[dict[str, str]]:
    """The rows of `make_file`."""
    return list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
