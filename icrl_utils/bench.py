"""Speed and memory, each measured against its alternative in one run: ``python -m icrl_utils bench NAME``.

Every ``bench_NAME(profile, seed)`` prints one line and returns its figures as a dict.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gymnasium
import numpy as np

from icrl_utils.lake import PAPER_IN_DISTRIBUTION, FrozenLakeVectorEnv
from icrl_utils.profiles import Profile


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
