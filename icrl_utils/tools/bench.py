"""Speed and memory, each measured against its alternative in one run: ``python -m icrl_utils bench NAME``.

Every ``bench_NAME(profile, seed)`` prints one line and returns its figures as a dict.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from icrl_utils.dqn.dqn import polyak_update, q_and_targets, td_loss
from icrl_utils.dqn.replay import make_batch
from icrl_utils.hardware import compile_network, matmul_peak
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.env import FrozenLakeVectorEnv
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.llama.adapters import ONLINE, TARGET, adapter_parameters, add_adapters
from icrl_utils.llama.agent import Agent, load_agent
from icrl_utils.llama.load import new_tiny_llama, parameter_count
from icrl_utils.llama.readout import QNetwork, QReadout
from icrl_utils.paths import ASSETS
from icrl_utils.play.policy import Choice
from icrl_utils.play.rollout import rollout
from icrl_utils.profiles import Profile
from icrl_utils.training.configs import TrainConfig
from icrl_utils.training.data import training_source
from icrl_utils.training.optimizers import make_optimizers
from icrl_utils.training.world_model import observation_positions, world_model_loss

LLAMA_3_VOCABULARY = 128_256


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that tensors allocated in ``call`` held at one time, on the CPU."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler greets otherwise
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


def as_rows(name: str, found: Mapping[str, float] | Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    """What a benchmark returned as rows ``benchmark, figure, value``, the same for all. Where it returned a row per
    way, the figures are named by the way: ``ours: seconds``."""
    rows = [found] if isinstance(found, Mapping) else found
    figures = [
        (f"{row['way']}: {key}" if "way" in row else key, value)
        for row in rows
        for key, value in row.items()
        if isinstance(value, float | int)
    ]
    return [{"benchmark": name, "figure": figure, "value": f"{value:.4g}"} for figure, value in figures]


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

    def start(self, maps, rngs) -> None:
        self.ids, self.choice = np.zeros(0, np.int64), Choice(self.agent.temperature, rngs, self.agent.patience)

    def act(self, step) -> np.ndarray:
        new = self.agent.format.encode_steps(*step)[0]
        self.ids = np.concatenate([self.ids, new if len(self.ids) else new[-1:]])  # no `reset` at the beginning
        return self.choice(self.agent.read(self.ids)[None], step)

    def keep(self, rows) -> None:
        pass


def _some_agent() -> Agent:
    """The shipped agent, or one of its size where none is at hand."""
    folder = ASSETS / "adapters" / "dqn"
    if (folder / "adapter_config.json").exists():
        return cast(Agent, load_agent(folder, device="cpu"))
    history = HistoryFormat("compact")
    return Agent(new_tiny_llama(history.vocab_size, history.action_ids).eval(), history, QReadout())


def bench_readout(profile: Profile | None = None, seed: int = 0) -> dict[str, float]:
    """Q at the decisions from four rows of the output embedding, against full-vocabulary logits at all positions.

    Forward and backward of one history at Llama 3's vocabulary, a decision at every tenth token as in the paper's
    format, through a narrow model (one layer of width 64; a real one adds the same cost to both ways). Both ways
    compute the same values, which is checked. The median of five alternating rounds is reported.

    Returns:
        milliseconds ``rows_ms`` and ``full_ms``, peak megabytes of tensors ``rows_mb`` and ``full_mb``, and the ratios
        ``times_faster`` and ``times_smaller``.
    """
    tokens = 128 if profile and profile.name == "smoke" else 1024
    action_ids = torch.arange(4) * 1000
    model = add_adapters(new_tiny_llama(LLAMA_3_VOCABULARY, action_ids, hidden=64, layers=1, seed=seed), rank=4)
    net = QNetwork(model, action_ids, QReadout())
    ids = torch.from_numpy(np.random.default_rng(seed).integers(LLAMA_3_VOCABULARY, size=(1, tokens)))
    position = torch.arange(9, tokens, 10)[None]

    def rows() -> Tensor:
        return net(ids, position)[0]

    def full() -> Tensor:
        return net.readout.z(model(input_ids=ids).logits[:, position[0]][..., action_ids])

    torch.testing.assert_close(rows(), full(), atol=1e-4, rtol=1e-4)
    ways = [lambda: rows().sum().backward(), lambda: full().sum().backward()]
    times = [[seconds(way) for way in ways] for _ in range(5)]
    rows_ms, full_ms = 1000 * np.median(times, axis=0)
    rows_mb, full_mb = (peak_bytes(way) / 1e6 for way in ways)
    faster, smaller = full_ms / rows_ms, full_mb / rows_mb
    print(
        f"readout: {rows_ms:.1f} ms and {rows_mb:.1f} MB for four rows at {position.shape[1]} decisions, "
        f"{full_ms:.0f} ms and {full_mb:.0f} MB for {LLAMA_3_VOCABULARY:,} logits at {tokens} tokens: "
        f"{faster:.0f} times as fast in 1/{smaller:.0f} of the memory"
    )
    return {
        "rows_ms": float(rows_ms), "full_ms": float(full_ms), "rows_mb": rows_mb, "full_mb": full_mb,
        "times_faster": float(faster), "times_smaller": smaller,
    }  # fmt: skip


def bench_train(profile: Profile | None = None, seed: int = 0) -> dict[str, float]:
    """Tokens per second of a DQN step of the tiny Llama (target and online forward, backward, optimizer, Polyak).

    Three ways in turn, five rounds, the fastest of each: peft's layers, which multiply every token by the adapter;
    the adapter folded into the weights once a step; and that compiled, where a compiler is there. The fraction of the
    peak takes a step as 6 * parameters * tokens floating point operations, the usual convention: attention, the
    adapter and the target's forward pass come on top.

    Returns:
        tokens/s ``peft``, ``folded`` and ``compiled``, and of the fastest its fraction of the matmul peak,
        ``of_peak``.
    """
    config = TrainConfig(seed=seed, **(profile.training if profile else {}))
    history, device = HistoryFormat("compact"), torch.device("cpu")
    base = new_tiny_llama(history.vocab_size, history.action_ids, seed=seed).eval()
    flops = 6 * parameter_count(base) * config.step_tokens
    ids = training_source(config).slices(config.slices, config.slice_tokens, np.random.default_rng(seed))
    batch, action_ids = make_batch(ids, history), torch.as_tensor(history.action_ids)
    model = add_adapters(base, config.adapter, config.rank, seed)
    optimizers = make_optimizers(model, config.optimizer, config.lr, config.lr, config.weight_decay)
    online, target = (adapter_parameters(model, name).values() for name in (ONLINE, TARGET))

    observation = observation_positions(batch.ids)

    def step(net: nn.Module) -> None:
        z, y, logits = q_and_targets(net, model, batch, config.readout, config.gamma, config.consistent, observation)
        loss = td_loss(z, batch.action, y, batch.has_target, config.loss) / batch.has_target.sum()
        (loss + config.world_model * world_model_loss(cast(Tensor, logits), batch.ids, action_ids)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        polyak_update(target, online, config.polyak)

    folds = {"peft": False, "folded": True, "compiled": True}
    ways = {name: QNetwork(model, history.action_ids, config.readout, fold) for name, fold in folds.items()}
    if not compile_network(ways["compiled"], device):
        del ways["compiled"]
    for net in ways.values():
        step(net)  # the first one compiles
    best = {name: min(seconds(lambda: step(net)) for _ in range(2)) for name, net in ways.items()}  # noqa: B023
    for _ in range(3):
        best = {name: min(best[name], seconds(lambda: step(net))) for name, net in ways.items()}  # noqa: B023
    rates = {name: config.step_tokens / time for name, time in best.items()}
    of_peak = flops / min(best.values()) / matmul_peak(device)
    listing = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    print(
        f"train: tokens/s {listing}; the fastest is {max(rates.values()) / rates['peft']:.2f} times the first and "
        f"{of_peak:.0%} of the matmul peak at {torch.get_num_threads()} threads"
    )
    return rates | {"of_peak": of_peak}
