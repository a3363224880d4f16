"""Speed and memory, each measured against its alternative in one run: ``python -m icrl_utils bench NAME``.

Every ``bench_NAME(profile, seed)`` prints one line and returns its figures as a dict.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gymnasium
import numpy as np

from icrl_utils.history import HistoryFormat
from icrl_utils.lake import PAPER_IN_DISTRIBUTION, FrozenLakeVectorEnv
from icrl_utils.models import new_tiny_llama
from icrl_utils.profiles import ASSETS, Profile
from icrl_utils.qvalues import QReadout
from icrl_utils.rollout import Agent, load_agent, rollout


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def bench_env(profile: Profile | None = None, seed: int = 0) -> dict[str, float]:
    """One step of one map: ``FrozenLakeVectorEnv`` on 256 maps against gymnasium's environment in a loop over them.

    Both play the same random actions on the same maps and begin a new episode after an end. The median of seven
    alternating rounds is reported, so that a busy machine slows both down alike.

    Returns:
        microseconds per step of one map ``ours_us`` and ``gymnasium_us``, and their ``ratio``.
    """
    n, steps = 256, 100
    maps = PAPER_IN_DISTRIBUTION.sample(n, seed)
    actions = np.random.default_rng(seed).integers(4, size=(steps, n))
    ours = FrozenLakeVectorEnv(maps)
    theirs = [gymnasium.make("FrozenLake-v1", desc=lake.desc, is_slippery=False) for lake in maps]

    def play_ours():
        for action in actions:
            ours.step(action)

    def play_theirs():
        for i, env in enumerate(theirs):
            for action in actions[:, i].tolist():
                if over[i]:
                    env.reset()
                    over[i] = False
                else:
                    _, _, terminated, truncated, _ = env.step(action)
                    over[i] = terminated or truncated

    over = [False] * n
    ours.reset(seed=seed)
    for i, env in enumerate(theirs):
        env.reset(seed=seed + i)
    rounds = [(seconds(play_ours), seconds(play_theirs)) for _ in range(7)]
    ours_us, gymnasium_us = np.median(rounds, axis=0) / (n * steps) * 1e6
    ratio = gymnasium_us / ours_us
    print(
        f"env: {ours_us:.3f} us per step and map for {n} maps at once, "
        f"{gymnasium_us:.2f} us for gymnasium's in a loop: {ratio:.0f} times as fast"
    )
    return {"ours_us": float(ours_us), "gymnasium_us": float(gymnasium_us), "ratio": float(ratio)}


def bench_rollout(profile: Profile | None = None, seed: int = 0) -> dict[str, float]:
    """Episodes per second: all maps at once with a cache, against one map at a time that reads its history anew.

    Thirty episodes of random moves (epsilon 0; the agent is asked all the same), so that the work does not depend on
    how good the agent is. The slow way plays two maps only, the very ones that the fast way begins with.

    Returns:
        episodes per second ``cached`` and ``uncached``, and their ``ratio``.
    """
    agent = _some_agent()
    maps = PAPER_IN_DISTRIBUTION.sample(agent.batch_maps, seed)
    schedule = [0.0] * 30
    rollout(agent, maps[:2], schedule[:2], seed)  # the first forward pass of a process is slow
    cached = len(maps) * len(schedule) / seconds(lambda: rollout(agent, maps, schedule, seed))
    uncached = 2 * len(schedule) / seconds(lambda: rollout(Rereader(agent), maps[:2], schedule, seed))
    ratio = cached / uncached
    print(
        f"rollout: {cached:.1f} episodes/s for {len(maps)} maps at once with a cache, "
        f"{uncached:.2f} episodes/s for one map at a time without: {ratio:.0f} times as fast"
    )
    return {"cached": cached, "uncached": uncached, "ratio": ratio}


class Rereader:
    """The same agent on one map, without a cache: a forward pass over the whole history for every step."""

    name, batch_maps = "rereader", 1

    def __init__(self, agent: Agent):
        self.agent = agent

    def start(self, maps, rng) -> None:
        self.ids = np.zeros(0, np.int64)

    def act(self, step) -> np.ndarray:
        new = self.agent.format.encode_steps(*step)[0]
        self.ids = np.concatenate([self.ids, new if len(self.ids) else new[-1:]])  # no `reset` at the beginning
        return self.agent.read(self.ids)[None].argmax(1)

    def keep(self, rows) -> None:
        pass


def _some_agent() -> Agent:
    """The shipped agent, or one of its size where none is at hand."""
    folder = ASSETS / "adapters" / "dqn"
    if (folder / "adapter_config.json").exists():
        return load_agent(folder, device="cpu")
    history = HistoryFormat("compact")
    return Agent(new_tiny_llama(history.vocab_size, history.action_ids).eval(), history, QReadout())
