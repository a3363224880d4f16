"""The training step and the rollout of a real Llama against the paper's way: ``python -m icrl_utils bench NAME``.

True shapes with random weights: time and memory do not depend on what a model has learnt, so no checkpoint is
needed. A profile that trains on a GPU is measured there, at the shape of the model and of the steps that it trains
(``--profile full``: Llama 3.1 8B, ``--profile t4``: SmolLM2-135M). Every other profile measures a small twin with Llama
3's vocabulary on the CPU. On a GPU the rows are kept in build/results/bench_gpu.csv.
"""

from __future__ import annotations

import csv
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from icrl_utils.dqn.dqn import polyak_update, q_and_targets, td_loss, td_targets
from icrl_utils.dqn.replay import Batch
from icrl_utils.hardware import compute_dtype, device_name, matmul_peak
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, LakeMap
from icrl_utils.llama.adapters import (
    ONLINE,
    TARGET,
    adapter_parameters,
    add_adapters,
    causal_lm,
    checkpoint_activations,
    keep_dtype,
    target_network,
)
from icrl_utils.llama.agent import Agent
from icrl_utils.llama.load import load_llama
from icrl_utils.llama.memory import GIB, SHAPES, plan
from icrl_utils.llama.readout import QNetwork, QReadout, take
from icrl_utils.paths import BUILD, write_csv
from icrl_utils.play.policy import Policy
from icrl_utils.play.rollout import rollout
from icrl_utils.profiles import Profile
from icrl_utils.tools.bench import LLAMA_3_VOCABULARY, peak_bytes, seconds
from icrl_utils.training.optimizers import make_optimizers

RESULTS = BUILD / "results" / "bench_gpu.csv"
COLUMNS = (
    "bench", "shape", "way", "device", "work", "seconds", "peak_bytes", "planned_bytes", "per_second", "of_peak",
)  # fmt: skip
GAMMA = 0.9
TOKENS_PER_STEP = 10  # of the environment, in the paper's format


@dataclass(frozen=True)
class Workload:
    """What one bench measures. A step takes ``slices`` x ``slice_tokens`` tokens, the paper's in micro-batches of
    ``slices_at_once``."""

    shape: str
    config: LlamaConfig
    slices: int
    slices_at_once: int
    slice_tokens: int
    maps: int = 50
    episodes: int = 3


TWIN = LlamaConfig(
    vocab_size=LLAMA_3_VOCABULARY, hidden_size=128, intermediate_size=448, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=1, tie_word_embeddings=False,
)  # fmt: skip
SMALL = Workload("small", TWIN, slices=4, slices_at_once=2, slice_tokens=128)


def workload_and_device(profile: Profile | None) -> tuple[Workload, torch.device]:
    """On a GPU what the profile itself trains. The paper takes half of a step at once: 5 of its 10 slices."""
    if profile is None or profile.device == "cpu":
        return SMALL, torch.device("cpu")
    shape, half = profile.base.rpartition("/")[-1], max(1, profile.slices // 2)
    return Workload(shape, SHAPES[profile.base], profile.slices, half, profile.slice_tokens), torch.device("cuda")


# ---------------------------------------------------------------------------------------------------- training step


@dataclass(frozen=True)
class Way:
    """One way to make a DQN step."""

    loss: Callable[[QNetwork, Batch], Tensor]  # sum over a micro-batch
    quantization: str | None
    checkpointing: bool
    slices_at_once: int


def our_loss(net: QNetwork, batch: Batch) -> Tensor:
    """Hidden states at decisions times four rows, see `dqn.q_and_targets`."""
    z, y, _ = q_and_targets(net, cast(PeftModel, net.model), batch, net.readout, GAMMA)
    return td_loss(z, batch.action, y, batch.has_target, "mse")


def paper_loss(net: QNetwork, batch: Batch) -> Tensor:
    """The paper's way, written from its description: logits of the whole vocabulary at every position, of both
    networks; the bootstrap's maximum runs over all words; the language-modelling losses of actions and of
    observations have weight 0, yet their log-softmax takes part in the backward pass."""
    model = cast(PeftModel, net.model)
    with target_network(model):
        q_target = model(input_ids=batch.ids, use_cache=False).logits
    q = model(input_ids=batch.ids, use_cache=False).logits
    z = take(q, batch.position).float()
    y = td_targets(z.detach(), take(q_target, batch.position).float(), batch.reward, batch.terminated, GAMMA)
    loss = td_loss(z, net.action_ids[batch.action], y, batch.has_target, "mse")
    surprise = -torch.log_softmax(q[:, :-1], -1, dtype=torch.float32).gather(-1, batch.ids[:, 1:, None])
    is_action = torch.isin(batch.ids[:, 1:], net.action_ids)[..., None]
    return loss + 0.0 * (surprise * is_action).sum() + 0.0 * (surprise * ~is_action).sum()


def ways(workload: Workload, device: torch.device) -> dict[str, Way]:
    """All with the same adapter, attention kernel and batch. Smallest and the paper's both recompute activations."""
    quantization = "nf4" if device.type == "cuda" else None
    return {
        "paper": Way(paper_loss, None, True, workload.slices_at_once),
        "smallest": Way(our_loss, quantization, True, 1),
        "fastest": Way(our_loss, None, False, 1),
    }


def bench_step_real(profile: Profile | None = None, seed: int = 0) -> list[dict]:
    """One optimizer step of double DQN with LoRA: ours at two settings against the paper's way (`paper_loss`).

    ``smallest``: 4-bit base on a GPU, activation checkpointing, micro-batches of one slice. ``fastest``: half
    precision, nothing computed twice. Of three steps the fastest counts; the peak is that of all tensors, weights and
    optimizer state included. The fraction of the matmul peak takes a step as 6 floating point operations per
    projection weight and token, for every way, so that work done twice or in vain does not count.

    Returns:
        a row per way with the columns ``COLUMNS``; ``planned_bytes`` is what `icrl_utils.llama.memory` predicts.
    """
    workload, device = workload_and_device(profile)
    dtype = compute_dtype(device)
    history = HistoryFormat("paper", make_paper_tokenizer())
    batch = make_random_batch(workload, history.action_ids, seed).to(device)
    peak, tokens = matmul_peak(device, dtype), batch.ids.numel()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as checkpoint:
        save_random_llama(workload.config, checkpoint, dtype, device, seed)
        for name, way in ways(workload, device).items():
            model = add_adapters(load_llama(checkpoint, way.quantization, device, dtype), "lora", seed=seed)
            step, held = make_step(model, way, batch, history.action_ids)
            step()  # the first one also allocates the optimizer's state
            elapsed = min(seconds(step) for _ in range(3))
            planned = plan(
                workload.config, slices=way.slices_at_once, slice_tokens=workload.slice_tokens, dtype=dtype,
                quantization=way.quantization, checkpointing=way.checkpointing,
            )  # fmt: skip
            rows.append({
                "bench": "step-real", "shape": workload.shape, "way": name, "device": device_name(device),
                "work": tokens, "seconds": elapsed, "peak_bytes": step_peak(step, held, device),
                "planned_bytes": planned.step if way.loss is our_loss else "", "per_second": tokens / elapsed,
                "of_peak": 6 * planned.projection_weights * tokens / elapsed / peak,
            })  # fmt: skip
            del model, step, held
            gc.collect()
            torch.cuda.empty_cache()
    paper = rows[0]
    for row in rows:
        print(
            f"step-real {row['shape']} {row['way']}: {row['seconds']:.2f} s, {row['peak_bytes'] / GIB:.2f} GiB, "
            f"{row['per_second']:,.0f} tokens/s, {row['of_peak']:.0%} of the matmul peak; "
            f"{row['seconds'] / paper['seconds']:.2f} times the paper's time, "
            f"{row['peak_bytes'] / paper['peak_bytes']:.2f} times its memory"
        )
    keep_gpu_rows(rows, device)
    return rows


def make_random_batch(workload: Workload, action_ids: np.ndarray, seed: int) -> Batch:
    """Random words with an action at every tenth position, a goal after every tenth action."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(max(action_ids) + 1, workload.config.vocab_size, (workload.slices, workload.slice_tokens))
    position = np.arange(TOKENS_PER_STEP - 2, workload.slice_tokens - 1, TOKENS_PER_STEP)
    action = rng.integers(4, size=(workload.slices, len(position)))
    ids[:, position + 1] = action_ids[action]
    terminated = rng.random(action.shape) < 0.1
    has_target = terminated | (np.arange(len(position)) < len(position) - 1)
    columns = ids, np.tile(position, (len(ids), 1)), action, terminated.astype(np.float32), terminated, has_target
    no_tiles = np.zeros_like(action)  # no loss here asks for them
    return Batch(*map(torch.from_numpy, (*columns, no_tiles)))


def save_random_llama(config: LlamaConfig, folder: str, dtype: torch.dtype, device: torch.device, seed: int) -> None:
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)


def make_step(
    model: PeftModel, way: Way, batch: Batch, action_ids: np.ndarray, optimizer: str = "adamw"
) -> tuple[Callable[[], None], Callable[[], int]]:
    """One optimizer step on ``batch``, and the bytes that are held between two steps (without the batch)."""
    keep_dtype(model).train()
    dtype, device = model.dtype, batch.ids.device
    if way.checkpointing:
        checkpoint_activations(model)
    net = QNetwork(model, action_ids, QReadout("identity", offset=0.0)).to(device)
    optimizers = make_optimizers(model, optimizer, 1e-4, 1e-4, 0.01)
    online, target = (adapter_parameters(model, name).values() for name in (ONLINE, TARGET))
    count = batch.has_target.sum()

    def step() -> None:
        for part in batch.parts(way.slices_at_once):
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = way.loss(net, part) / count
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        polyak_update(target, online, 0.1)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, lambda: held_bytes(model, optimizers)


def held_bytes(model: PeftModel, optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes of all weights, adapters and optimizer states."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [x for optimizer in optimizers for state in optimizer.state.values() for x in state.values()]
    for weight in model.parameters():
        if quantized := getattr(weight, "quant_state", None):
            nested = quantized.state2
            tensors += [quantized.absmax, quantized.code, quantized.offset, nested.absmax, nested.code]
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def step_peak(step: Callable[[], None], held: Callable[[], int], device: torch.device) -> int:
    """Most bytes of tensors at one time in ``step``, everything that is there before it included."""
    if device.type == "cpu":
        return held() + peak_bytes(step)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device)


# ---------------------------------------------------------------------------------------------------------- rollout


class Generator:
    """The paper's way to play: one map at a time, one call of ``generate`` for one new token at every step, which
    reads the whole history anew. A word that is no action counts as the first one."""

    name, batch_maps = "generate", 1

    def __init__(self, model: LlamaForCausalLM, history: HistoryFormat):
        self.model, self.history = model, history

    def start(self, maps, rngs) -> None:
        self.ids = np.zeros(0, np.int64)

    def act(self, step) -> np.ndarray:
        self.ids = np.concatenate([self.ids, self.history.encode_steps(*step)[0]])
        ids = torch.from_numpy(self.ids)[None].to(self.model.device)
        word = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False, pad_token_id=0
        )[0, -1]
        return np.array([(self.history.action_ids == word.item()).argmax()])

    def keep(self, rows) -> None:
        pass


def bench_rollout_real(profile: Profile | None = None, seed: int = 0) -> list[dict]:
    """Moves per second in the paper's format: all maps at once with a cache, against `Generator`.

    The first episodes of a rollout with random moves (the agent is asked all the same); the longer a history, the
    more there is to read anew, so thirty episodes differ by more. `Generator` plays the first of the maps only.

    Returns:
        a row per way with the columns ``COLUMNS``; ``work`` counts moves.
    """
    workload, device = workload_and_device(profile)
    dtype = compute_dtype(device)
    history = HistoryFormat("paper", make_paper_tokenizer())
    maps, schedule = PAPER_IN_DISTRIBUTION.sample(workload.maps, seed), [0.0] * workload.episodes
    with tempfile.TemporaryDirectory() as checkpoint:
        save_random_llama(workload.config, checkpoint, dtype, device, seed)
        model = load_llama(checkpoint, None, device, dtype)
    policies: dict[str, tuple[Policy, list[LakeMap]]] = {
        "ours": (Agent(model, history, QReadout()), maps),
        "generate": (Generator(causal_lm(model), history), maps[:1]),
    }
    rows: list[dict[str, Any]] = []
    for name, (policy, lakes) in policies.items():
        rollout(policy, lakes[:1], [0.0], seed)  # the first forward pass of a process is slow
        begin = time.perf_counter()
        records = rollout(policy, lakes, schedule, seed, batch_maps=len(lakes))
        elapsed, moves = time.perf_counter() - begin, int(records.steps.sum())
        rows.append({
            "bench": "rollout-real", "shape": workload.shape, "way": name, "device": device_name(device),
            "work": moves, "seconds": elapsed, "per_second": moves / elapsed,
        })  # fmt: skip
    ours, theirs = (row["per_second"] for row in rows)
    print(
        f"rollout-real {workload.shape}: {ours:.1f} moves/s for {len(maps)} maps at once with a cache, "
        f"{theirs:.2f} moves/s for one map and one generate call a step: {ours / theirs:.0f} times as fast"
    )
    keep_gpu_rows(rows, device)
    return rows


def keep_gpu_rows(rows: list[dict], device: torch.device, path: Path = RESULTS) -> None:
    """Put ``rows`` into the table at ``path`` in place of those of the same bench and shape; never without a GPU."""
    if device.type != "cuda":
        return
    same = rows[0]["bench"], rows[0]["shape"]
    old = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    rows = [row for row in old if (row["bench"], row["shape"]) != same] + rows
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, [{name: row.get(name, "") for name in COLUMNS} for row in rows])
