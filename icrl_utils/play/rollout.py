"""Play many lakes at once with one policy, and keep everything that happened.

All random choices of the protocol (start tiles, the coins of epsilon and the random actions) are drawn before play
and indexed by (map, episode, step). Two policies that play the same maps with the same seed therefore meet the same
luck, whatever they do and however the maps are batched: their differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, OUTCOMES, RESET, RUNNING, Episode
from icrl_utils.lake.env import STEP_LIMIT, FrozenLakeVectorEnv
from icrl_utils.lake.maps import TileGame, checked_maps
from icrl_utils.play.policy import Policy, Step
from icrl_utils.ranges import LARGEST_INT16, checked_seed, whole_number

Changes = Mapping[int, Sequence[TileGame]]  # first episode -> the games that are played from it on

PAPER_SCHEDULE = np.concatenate([np.arange(10).repeat(2) / 10, np.ones(10)])


def epsilon_schedule(schedule: str | Sequence[float] = "paper", episodes: int | None = None) -> np.ndarray:
    """float64 [episodes]: for each episode the probability epsilon that the *policy* acts (else uniformly random).

    ``"paper"``: 20 warm-up episodes with epsilon 0, 0, .1, .1, ... .9, .9, then 10 at 1 (arXiv 2501.14176).
    ``"greedy"``: the policy acts from the first step on, for ``episodes`` episodes (30 unless given).
    A sequence of probabilities is taken as it is.
    """
    if episodes is not None:
        episodes = whole_number("episodes", episodes, 1, LARGEST_INT16)
    if isinstance(schedule, str):
        if schedule not in ("paper", "greedy"):
            raise ValueError(f"schedule={schedule!r} is unknown; choose 'paper', 'greedy' or give a list of epsilons.")
        if schedule == "greedy":
            return np.ones(30 if episodes is None else episodes)
        epsilon = PAPER_SCHEDULE
    else:
        epsilon = _probabilities(schedule)
        if not 0 < len(epsilon) <= LARGEST_INT16:
            raise ValueError(f"schedule={schedule!r} must be a non-empty list of at most {LARGEST_INT16:,} episodes.")
    if episodes not in (None, len(epsilon)):
        raise ValueError(
            f"episodes={episodes} does not fit this schedule of {len(epsilon)} episodes; leave `episodes` out, "
            "use schedule='greedy' or give a list of that length."
        )
    return epsilon.copy()


def _probabilities(schedule: Sequence[float]) -> np.ndarray:
    try:
        epsilon = np.asarray(schedule)
    except ValueError:  # rows of different lengths
        epsilon = np.array("ragged")
    if epsilon.ndim == 1 and len(epsilon) == 0:
        return epsilon
    if epsilon.ndim != 1 or epsilon.dtype.kind not in "iuf" or not ((epsilon >= 0) & (epsilon <= 1)).all():
        raise ValueError(f"schedule={schedule!r} must be a non-empty list of probabilities in [0, 1].")
    return epsilon.astype(float)


class Luck(NamedTuple):
    """Every random choice of the protocol for n maps (the environment draws the start tiles), whatever the policy."""

    env_seed: int  # map i gets the stream env_seed + i
    coin: np.ndarray  # float32 [n, episodes, step_limit] in [0, 1): the policy acts where coin < epsilon
    action: np.ndarray  # int8 [n, episodes, step_limit]: the random action where it does not

    @classmethod
    def draw(cls, n: int, episodes: int, step_limit: int, seed: int) -> Luck:
        # One stream per kind of choice: the first maps of a longer list meet the same luck as in a shorter one.
        starts, coins, actions = (np.random.default_rng([seed, kind]) for kind in range(3))
        shape = (n, episodes, step_limit)
        return cls(
            env_seed=int(starts.integers(2**62)),
            coin=coins.random(shape, dtype=np.float32),
            action=actions.integers(4, size=shape, dtype=np.int8),
        )


@dataclass(frozen=True)
class Records:
    """All episodes of one policy on n maps, equally many on each, as arrays [map, episode].

    For statistics, which compare the k-th episodes of many maps; so every map has as many, and what is known about the
    game but not to the player stands beside them (epsilon, shortest paths). `episodes` makes `Episode` objects of them,
    for histories. Steps beyond an episode's end hold -1.
    """

    policy: str
    maps: list[TileGame]  # the first of each history, where games are exchanged
    epsilon: np.ndarray  # float64 [episodes]: probability that the policy acted
    seed: int
    outcome: np.ndarray  # uint8 [n, episodes]: GOAL, HOLE or LIMIT
    steps: np.ndarray  # int16 [n, episodes]: actions taken
    optimal_steps: np.ndarray  # int16 [n, episodes]: moves of a shortest path from the episode's start
    tiles: np.ndarray  # int16 [n, episodes, step_limit + 1]
    actions: np.ndarray  # int8 [n, episodes, step_limit]

    @property
    def success(self) -> np.ndarray:
        """bool [n, episodes]: the goal was reached."""
        return self.outcome == GOAL

    def episodes(self, map_index: int) -> list[Episode]:
        """The full traces of one map, in the order played."""
        traces = []
        for episode, steps in enumerate(self.steps[map_index]):
            tiles = self.tiles[map_index, episode, : steps + 1].tolist()
            actions = self.actions[map_index, episode, :steps].tolist()
            traces.append(Episode(tuple(tiles), tuple(actions), OUTCOMES[int(self.outcome[map_index, episode])]))
        return traces


def rollout(
    policy: Policy,
    maps: Sequence[TileGame],
    schedule: str | Sequence[float] = "paper",
    seed: int = 0,
    episodes: int | None = None,
    batch_maps: int | None = None,
    step_limit: int = STEP_LIMIT,
    progress: bool = False,
    *,
    changes: Changes | None = None,
    shown: Sequence[Sequence[Episode]] | None = None,
) -> Records:
    """Let ``policy`` play the same number of episodes on every map, its history running on from episode to episode.

    Args:
        maps: the lakes or other games; each is one independent history.
        schedule, episodes: see ``epsilon_schedule``.
        seed: start tiles, coins and random actions; the same for every policy. Not the seed of the maps.
        batch_maps: lakes played at once; by default what the policy asks for (an agent: what fits its cache budget).
        step_limit: an episode is cut off after this many steps (gymnasium's FrozenLake-v1: 100).
        changes: first episode -> one game a history, played from that episode on instead of the game before. Nobody is
            told but a policy that has a method ``exchange``, see ``Policy``.
        shown: for each history the episodes that it begins with: the policy is told them step by step, as if it had
            played them, before its first episode. They are no part of the records, and need not be possible.
    Returns:
        Records of all maps and episodes.
    Raises:
        ValueError: an argument that cannot work, by its name, before anything is played.
    """
    games, seed = checked_maps(maps), checked_seed(seed)
    epsilon = epsilon_schedule(schedule, episodes)
    step_limit = whole_number("step_limit", step_limit, 1, LARGEST_INT16)
    n, episodes = len(games), len(epsilon)
    changes = _checked_changes(changes, n, episodes)
    stories = _as_steps(shown, [games, *changes.values()])
    if batch_maps is None:
        batch_maps = getattr(policy, "batch_maps", n)  # an agent knows how many it has memory for
    batch_maps = whole_number("batch_maps", batch_maps, 1)
    luck = Luck.draw(n, episodes, step_limit, seed)
    records = Records(
        policy.name, games, epsilon, seed,
        outcome=np.zeros((n, episodes), np.uint8),
        steps=np.zeros((n, episodes), np.int16),
        optimal_steps=np.zeros((n, episodes), np.int16),
        tiles=np.full((n, episodes, step_limit + 1), -1, np.int16),
        actions=np.full((n, episodes, step_limit), -1, np.int8),
    )  # fmt: skip
    with tqdm(total=n * episodes, desc=policy.name, unit="episode", disable=not progress) as bar:
        for first in range(0, n, batch_maps):
            rows = np.arange(first, min(first + batch_maps, n))
            _start(policy, rows, games, changes, [np.random.default_rng([seed, 3, int(row)]) for row in rows])
            _play(policy, rows, luck, records, changes, [stories[row] for row in rows], step_limit, bar)
    return records


def _checked_changes(changes: Changes | None, n: int, episodes: int) -> dict[int, list[TileGame]]:
    checked = {}
    for first, games in sorted((changes or {}).items()):
        checked[whole_number("changes' episode", first, 1, episodes - 1)] = checked_maps(games, f"changes[{first}]")
        if len(checked[first]) != n:
            raise ValueError(f"changes[{first}] holds {len(games)} games for {n} maps: pass one for each.")
    return checked


def _as_steps(
    shown: Sequence[Sequence[Episode]] | None, games: Sequence[Sequence[TileGame]]
) -> list[list[tuple[int, int, int]]]:
    """For each history what its policy is told before play, as (action, tile, outcome)."""
    n = len(games[0])
    if shown is None:
        return [[]] * n
    if len(shown) != n:
        raise ValueError(f"shown holds {len(shown)} histories for {n} maps: pass a list of episodes for each.")
    stories = []
    for row, episodes in enumerate(shown):
        story = []
        tiles = max(part[row].n_tiles for part in games)
        for episode in episodes:
            known = [tile for tile in episode.tiles if tile is not None]
            if len(known) < len(episode.tiles) or episode.outcome is None or max(known) >= tiles:
                raise ValueError(
                    f"shown[{row}] holds {episode}: give finished episodes with all their tiles, of numbers below "
                    f"{tiles}, as many as the game has."
                )
            outcomes = [RUNNING] * (episode.steps - 1) + [OUTCOMES.index(episode.outcome)]
            story.append((RESET, known[0], RUNNING))
            story.extend(zip(episode.actions, known[1:], outcomes, strict=True))
        stories.append(story)
    return stories


def _start(
    policy: Policy,
    rows: np.ndarray,
    games: Sequence[TileGame],
    changes: Mapping[int, Sequence[TileGame]],
    rngs: list[np.random.Generator],
) -> None:
    """Begin the histories ``rows``. Learners must have room for the largest game that is still to come."""
    largest = [max((part[row] for part in (games, *changes.values())), key=lambda game: game.n_tiles) for row in rows]
    policy.start(largest, rngs)
    if changes:
        _tell(policy, np.arange(len(rows)), [games[row] for row in rows])


def _tell(policy: Policy, rows: np.ndarray, games: Sequence[TileGame]) -> None:
    """Tell a policy that wants to know which games its ``rows`` play from their next episode on."""
    if exchange := getattr(policy, "exchange", None):
        exchange(rows, games)


def _play(
    policy: Policy,
    rows: np.ndarray,
    luck: Luck,
    records: Records,
    changes: Mapping[int, Sequence[TileGame]],
    stories: Sequence[Sequence[tuple[int, int, int]]],
    step_limit: int,
    bar: tqdm,
) -> None:
    """Play the maps ``rows`` (consecutive) to their last episode and write what happened into ``records``."""
    env = FrozenLakeVectorEnv([records.maps[row] for row in rows], step_limit=step_limit)
    tile, _ = env.reset(seed=luck.env_seed + int(rows[0]))
    distances = env.tables.distances
    step = Step(np.full(len(rows), RESET), tile, np.zeros(len(rows), np.uint8))
    story, to_tell = _padded(stories)
    clock = 0  # steps told; a history is played from its step ``to_tell`` on
    step = _told(step, story, to_tell, clock)
    episode, time = np.zeros((2, len(rows)), np.int64)  # of each map: the running episode, actions taken in it
    while True:
        # As long as a history is told its story, episode and time stay 0 and what is written there is written again.
        plays = clock >= to_tell
        begins = step.action == RESET
        records.tiles[rows, episode, time] = step.tile
        records.optimal_steps[rows[begins], episode[begins]] = distances[begins, step.tile[begins]]
        ended = plays & (step.outcome != RUNNING)
        records.outcome[rows[ended], episode[ended]] = step.outcome[ended]
        records.steps[rows[ended], episode[ended]] = time[ended]
        bar.update(int(ended.sum()))

        done = ended & (episode == len(records.epsilon) - 1)
        if done.any():
            go_on = np.flatnonzero(~done)
            if not len(go_on):
                return
            env.keep(go_on)
            policy.keep(go_on)
            step = Step(*(column[go_on] for column in step))
            rows, episode, time, ended = rows[go_on], episode[go_on], time[go_on], ended[go_on]
            distances, plays, story, to_tell = distances[go_on], plays[go_on], story[go_on], to_tell[go_on]

        chosen = policy.act(step)
        for first, games in changes.items():
            leaves = np.flatnonzero(ended & (episode + 1 == first))
            if len(leaves):
                new = [games[row] for row in rows[leaves]]
                env.exchange(leaves, new)
                _tell(policy, leaves, new)
                distances = env.tables.distances
        at = rows, episode, np.minimum(time, step_limit - 1)  # after an end the action is ignored
        action = np.where(luck.coin[at] < records.epsilon[episode], chosen, luck.action[at]).astype(np.int64)
        env.rewind(np.flatnonzero(~plays))
        tile, reward, terminated, truncated, _ = env.step(action)
        outcome = np.select([reward > 0, terminated, truncated], [GOAL, HOLE, LIMIT], RUNNING).astype(np.uint8)
        records.actions[rows[~ended], episode[~ended], time[~ended]] = action[~ended]
        resets = ended | ~plays
        episode, time = episode + ended, np.where(resets, 0, time + 1)
        clock += 1
        step = _told(Step(np.where(resets, RESET, action), tile, outcome), story, to_tell, clock)


def _padded(stories: Sequence[Sequence[tuple[int, int, int]]]) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n, steps, 3], padded with 0, and int64 [n]: how many of them there are."""
    lengths = np.array([len(story) for story in stories])
    padded = np.zeros((len(stories), lengths.max(), 3), np.int64)
    for row, story in enumerate(stories):
        padded[row, : len(story)] = np.reshape(story, (-1, 3))
    return padded, lengths


def _told(step: Step, story: np.ndarray, to_tell: np.ndarray, clock: int) -> Step:
    """``step``, but step ``clock`` of its story where a history still has one."""
    rows = np.flatnonzero(clock < to_tell)
    if len(rows):
        for column, values in zip(step, story[rows, clock].T, strict=True):
            column[rows] = values
    return step
