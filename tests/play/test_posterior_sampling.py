"""Posterior sampling: every drawn lake fits what was seen, and lakes are drawn as often as the posterior says."""

import collections
import itertools

import numpy as np
import pytest

from icrl_utils.history.episodes import GOAL, HOLE, RESET, RUNNING
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, LakeMap, MapDistribution
from icrl_utils.play.policy import Step
from icrl_utils.play.posterior_sampling import PosteriorSamplingPolicy
from icrl_utils.play.rollout import rollout

LAW = MapDistribution(1, 2, min_hops=1)


def told(policy, n, *steps):
    """A policy that was told the same steps (action, tile, outcome) on n rows."""
    policy.start([None] * n, [np.random.default_rng([0, row]) for row in range(n)])
    for action, tile, outcome in steps:
        policy.act(Step(np.full(n, action), np.full(n, tile), np.full(n, outcome, np.uint8)))
    return policy


def drawn_lakes(policy):
    lakes = []
    for size, letters in zip(policy._size, policy._letters, strict=True):
        height, width = policy._height[size], policy._width[size]
        lakes.append(LakeMap(tuple(bytes(row[:width]).decode() for row in letters[:height])))
    return lakes


def exact_posterior(episode_starts, moves):
    """P(lake | seen) under LAW, by going through all its lakes. A lake with s starts draws a given one with 1 / s."""
    share = {"S": 0.1, "G": 0.9 * 0.1, "H": 0.9 * 0.9 * 0.2, "F": 0.9 * 0.9 * 0.8}
    weights = {}
    for height, width in itertools.product((1, 2), repeat=2):
        for letters in map("".join, itertools.product("SGHF", repeat=height * width)):
            if not {"S", "G"} <= set(letters):
                continue
            lake = LakeMap(tuple(letters[i : i + width] for i in range(0, len(letters), width)))
            lawful = all(lake.optimal_steps(start) >= 1 for start in lake.starts)
            fits = set(episode_starts) <= set(lake.starts) and all(
                tile < lake.n_tiles and lake.next_tile[tile, action] == led_to and letters[led_to] in kinds
                for tile, action, led_to, kinds in moves
            )
            if lawful and fits:
                weights[lake] = np.prod([share[letter] for letter in letters]) / len(lake.starts) ** len(episode_starts)
    total = sum(weights.values())
    return {lake: weight / total for lake, weight in weights.items()}


AGAIN = (RESET, 0, RUNNING)


@pytest.mark.parametrize(
    ("steps", "episode_starts", "moves"),
    [
        ([(RESET, 1, RUNNING)], [1], []),
        ([AGAIN, (2, 1, RUNNING)], [0], [(0, 2, 1, "SF")]),
        # right against a wall; the same start again and again makes lakes with few starts likelier
        (
            [AGAIN, (2, 0, RUNNING), (1, 1, GOAL), AGAIN, AGAIN, AGAIN],
            [0, 0, 0, 0],
            [(0, 2, 0, "S"), (0, 1, 1, "G")],
        ),
        # down from 0 leads to 2, so the lake is two wide; then a hole
        (
            [AGAIN, (1, 2, RUNNING), (2, 3, HOLE), (RESET, 2, RUNNING)],
            [0, 2],
            [(0, 1, 2, "SF"), (2, 2, 3, "H")],
        ),
    ],
)
@pytest.mark.slow
def test_lakes_are_drawn_from_the_posterior(steps, episode_starts, moves):
    truth = exact_posterior(episode_starts, moves)
    n = 20_000
    drawn = collections.Counter(drawn_lakes(told(PosteriorSamplingPolicy(LAW), n, *steps)))
    assert set(drawn) <= set(truth)
    for lake, probability in truth.items():
        error = np.sqrt(probability * (1 - probability) / n)
        assert drawn[lake] / n == pytest.approx(probability, abs=4.5 * error + 1e-12)


class Witness(PosteriorSamplingPolicy):
    """Asserts that the lake it follows agrees with all that it was told."""

    def start(self, maps, rngs):
        super().start(maps, rngs)
        self.maps = list(maps)
        self.memory = [[] for _ in maps]  # (tile, action, led to, outcome) of each row
        self.starts_seen = [set() for _ in maps]

    def act(self, step):
        before = self._tile.copy()
        action = super().act(step)
        for i, lake in enumerate(drawn_lakes(self)):
            if step.action[i] == RESET:
                self.starts_seen[i].add(int(step.tile[i]))
            else:
                self.memory[i].append((int(before[i]), int(step.action[i]), int(step.tile[i]), int(step.outcome[i])))
            if step.outcome[i] != RUNNING:
                continue
            letters = "".join(lake.rows)
            assert self.starts_seen[i] <= set(lake.starts)
            assert all(self.law.min_hops <= lake.optimal_steps(start) for start in lake.starts)
            for tile, taken, led_to, outcome in self.memory[i]:
                assert lake.next_tile[tile, taken] == led_to
                assert letters[led_to] in {GOAL: "G", HOLE: "H"}.get(outcome, "SF")
            here = int(step.tile[i])
            assert lake.distances[lake.next_tile[here, action[i]]] == lake.distances[here] - 1
        return action

    def keep(self, rows):
        super().keep(rows)
        for name in ("memory", "starts_seen"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])


def test_the_followed_lake_always_fits_everything_seen():
    rollout(Witness(PAPER_IN_DISTRIBUTION), PAPER_IN_DISTRIBUTION.sample(10, 4), [0.3, 1, 0.5, 1, 1, 1], step_limit=30)


def test_it_explores_better_than_anything_without_a_prior():
    maps = PAPER_IN_DISTRIBUTION.sample(100, 6)
    success = rollout(PosteriorSamplingPolicy(PAPER_IN_DISTRIBUTION), maps, "greedy", episodes=10).success
    assert success[:, :5].mean() > 0.55 and success[:, 5:].mean() > 0.9


@pytest.mark.parametrize(
    ("law", "rows"),
    [
        (MapDistribution(3, 3), ("SFFFG", "FFFFF", "FFFFF")),  # moves that no lake of the law has
        (MapDistribution(3, 3), ("FFFFF", "FFFFF", "FFFFS", "FFFFG")),  # a tile number that none has
        (MapDistribution(2, 2, min_hops=2), ("SG", "FF")),  # a goal too near
    ],
)
def test_a_wrong_law_is_named(law, rows):
    with pytest.raises(ValueError, match="law=MapDistribution"):
        rollout(PosteriorSamplingPolicy(law), [LakeMap(rows)], "greedy", episodes=10)
