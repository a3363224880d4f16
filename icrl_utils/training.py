"""The two training loops: pretraining a world model, and double DQN on an adapter.

Both are short because everything that can interrupt them lives elsewhere in this file: ``Run`` keeps the log and an
atomic checkpoint, the data of step k is a pure function of (seed, k). A run that is killed and resumed ends with the
same weights as one that was not.
"""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from icrl_utils import dqn
from icrl_utils.history import HistoryFormat
from icrl_utils import lake
from icrl_utils.models import (
    ONLINE,
    TARGET,
    adapter_parameters,
    add_adapters,
    file_sha256,
    load_base,
    new_tiny_llama,
    target_network,
)
from icrl_utils.qvalues import QNetwork, QReadout, backbone
from icrl_utils.replay import RANDOM_PLAY, Batch, Behaviour, ReplayBuffer, collect, make_batch


@dataclass
class RunConfig:
    """What both loops share. Tokens of an optimizer step = slices * slice_tokens, over all processes."""

    out: str
    seed: int = 0
    steps: int = 1000
    slices: int = 16
    slice_tokens: int = 512
    warmup: int = 100  # optimizer steps of linear warm-up; then cosine to 0
    clip: float = 1.0  # gradient norm
    weight_decay: float = 0.01
    relabel: float = 0.5  # share of slices with permuted tile numbers
    steps_per_chunk: int = 8  # optimizer steps whose maps are sampled and played together
    workers: int = 0  # processes that make data ahead of time
    precision: str = "bf16"  # autocast: "bf16", "fp16" or "no"
    compile: bool = False
    log_every: int = 20
    eval_every: int = 200
    eval_maps: int = 64
    save_every: int = 200
    minutes: float = math.inf  # stop cleanly, with a checkpoint, after this much wall time
    device: str = "auto"


@dataclass
class PretrainConfig(RunConfig):
    """Next-observation prediction on random play. Action words carry no loss: the base learns how lakes work."""

    out: str = "build/tiny-llama"
    hidden: int = 128
    layers: int = 6
    heads: int = 4
    lr_matrix: float = 0.02  # Muon, on the projections
    lr_other: float = 3e-3  # AdamW, on embedding, head and norms


@dataclass
class TrainConfig(RunConfig):
    """Double DQN on an adapter. The base stays frozen; rewards are the only teacher of actions."""

    base: str = "assets/tiny-llama"
    out: str = "build/dqn"
    adapter: str = "lora"
    rank: int = 32
    optimizer: str = "muon"
    lr: float = 4e-3
    loss: str = "bce"
    gamma: float = 0.9
    polyak: float = 0.1
    offset: float = 1.0  # read-out, see QReadout
    scale: float = 1.0
    world_model: float = 0.1  # weight of the auxiliary next-observation loss
    order: str = "as_played"
    quality: str = "mid"
    crossing: bool = False  # slices may cross map changes
    map_pool: int = 0  # 0: fresh maps all the time; n: always the same n maps
    behaviour: Behaviour = field(default_factory=Behaviour)


# ---------------------------------------------------------------------------------------------------------- data


class Chunks(Dataset):
    """Chunk c holds the slices of optimizer steps c * steps_per_chunk and following: a pure function of (seed, c)."""

    def __init__(self, config: RunConfig, maps: lake.MapDistribution, behaviour: Behaviour, history: HistoryFormat):
        self.config, self.maps, self.behaviour, self.history = config, maps, behaviour, history

    def __len__(self) -> int:
        return math.ceil(self.config.steps / self.config.steps_per_chunk)

    def __getitem__(self, chunk: int) -> np.ndarray:
        """int16 [steps_per_chunk, slices, slice_tokens]"""
        c = self.config
        rng = np.random.default_rng([c.seed, chunk])
        n = c.steps_per_chunk * c.slices
        play = collect(self._sample_maps(n, rng), self.behaviour, rng, min_tokens=c.slice_tokens)
        buffer = ReplayBuffer(play, self.history)
        if getattr(c, "crossing", False):
            ids = buffer.crossing_slices(n, c.slice_tokens, rng)
        else:
            order, quality = getattr(c, "order", "as_played"), getattr(c, "quality", "mid")
            ids = buffer.slices(np.arange(n), c.slice_tokens, rng, order, quality, c.relabel)
        return ids.reshape(c.steps_per_chunk, c.slices, c.slice_tokens).astype(np.int16)

    def _sample_maps(self, n: int, rng: np.random.Generator):
        pool_size = getattr(self.config, "map_pool", 0)
        if not pool_size:
            return lake.training_maps(self.maps, n, rng)
        pool = lake.training_maps(self.maps, pool_size, np.random.default_rng([self.config.seed, 2**31]))
        return [pool[i] for i in rng.integers(pool_size, size=n)]


def batches(data: Chunks, first_step: int, accelerator: Accelerator) -> Iterator[Batch]:
    """Batches of steps first_step, first_step + 1, ...; each process gets every n-th slice."""
    c = data.config
    first_chunk = first_step // c.steps_per_chunk
    loader = DataLoader(
        data,
        sampler=range(first_chunk, len(data)),
        batch_size=None,
        num_workers=c.workers,
        prefetch_factor=2 if c.workers else None,
        collate_fn=lambda chunk: chunk,
    )
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    skip = first_step % c.steps_per_chunk
    for chunk in loader:
        for ids in np.asarray(chunk)[skip:]:
            yield make_batch(ids[mine].astype(np.int64), data.history).to(accelerator.device)
        skip = 0


# ------------------------------------------------------------------------------------------------- shared machinery


def make_accelerator(config: RunConfig) -> Accelerator:
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(cpu=cpu, mixed_precision=config.precision)


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(model: nn.Module, kind: str, lr_matrix: float, lr_other: float, weight_decay: float) -> list:
    """``muon``: Muon for the matrices between embedding and head, AdamW for the rest. ``adamw``: AdamW for all."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_matrix = {n: p.ndim == 2 and min(p.shape) > 1 and "embed" not in n and "lm_head" not in n for n, p in trainable}
    if kind == "adamw":
        is_matrix = dict.fromkeys(is_matrix, False)
        lr_other = lr_matrix
    elif kind != "muon":
        raise ValueError(f"optimizer={kind!r} is unknown; choose 'muon' or 'adamw'.")
    matrices = [p for n, p in trainable if is_matrix[n]]
    others = [p for n, p in trainable if not is_matrix[n]]
    optimizers = []
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=lr_matrix, weight_decay=weight_decay))
    if others:
        # Decay pulls to 0, which is the identity of neither a norm nor an IA3 scale: matrices only.
        decay = weight_decay if kind == "adamw" and all(p.ndim == 2 and min(p.shape) > 1 for p in others) else 0.0
        optimizers.append(torch.optim.AdamW(others, lr=lr_other, weight_decay=decay))
    return optimizers


class Run:
    """Log, checkpoint and clock of one training run in the folder ``config.out``.

    ``checkpoint.safetensors`` holds every tensor that training changes and the step; it is replaced atomically.
    """

    def __init__(self, config: RunConfig, tensors: dict[str, torch.Tensor], optimizers: list, resume: bool, main: bool):
        self.config, self.tensors, self.optimizers, self.main = config, tensors, optimizers, main
        self.folder = Path(config.out)
        self.step, self.seconds = 0, 0.0
        if resume and self.checkpoint.exists():
            self._restore()
        elif self.checkpoint.exists():
            raise FileExistsError(
                f"out={config.out!r} already holds a run; pass --resume to go on with it, or choose another --out."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic() - self.seconds
        for group in self._groups():
            group["base_lr"] = group.get("base_lr", group["lr"])

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def log_file(self) -> Path:
        return self.folder / "train_log.csv"

    def _groups(self) -> Iterator[dict]:
        return (group for optimizer in self.optimizers for group in optimizer.param_groups)

    def set_learning_rate(self) -> None:
        for group in self._groups():
            group["lr"] = group["base_lr"] * learning_rate_factor(self.step, self.config)

    def out_of_time(self) -> bool:
        return time.monotonic() - self.started > 60 * self.config.minutes

    def save(self) -> None:
        if not self.main:
            return
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{key}": v.detach().cpu().clone() for key, v in state.items()}
        self.seconds = time.monotonic() - self.started
        progress = {"step": str(self.step), "seconds": f"{self.seconds:.1f}", "config": config_json(self.config)}
        temporary = self.checkpoint.with_suffix(".tmp")
        save_file(tensors, temporary, metadata=progress)
        os.replace(temporary, self.checkpoint)

    def _restore(self) -> None:
        from safetensors import safe_open

        with safe_open(self.checkpoint, "pt") as f:
            progress = f.metadata()
        if progress["config"] != config_json(self.config):
            raise ValueError(
                f"out={self.config.out!r} holds a run with another configuration; choose another --out, or resume with:\n"
                f"{progress['config']}"
            )
        saved = load_file(self.checkpoint)
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(saved[name])
        for i, optimizer in enumerate(self.optimizers):
            state: dict = {}
            for name, tensor in saved.items():
                if name.startswith(f"optimizer.{i}."):
                    j, key = name.split(".")[2:]
                    state.setdefault(int(j), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step, self.seconds = int(progress["step"]), float(progress["seconds"])
        if self.log_file.exists():  # rows after the checkpoint will be written again
            with self.log_file.open() as f:
                rows = [r for r in csv.DictReader(f) if int(r["step"]) <= self.step]
            write_log(self.log_file, rows)

    def log(self, row: dict) -> None:
        if self.main:
            row = {"step": self.step, "seconds": round(time.monotonic() - self.started, 1)} | row
            rows = list(csv.DictReader(self.log_file.open())) if self.log_file.exists() else []
            write_log(self.log_file, [*rows, {k: format(v, ".6g") if isinstance(v, float) else v for k, v in row.items()}])

    def finish(self, weights: Path, **facts) -> None:
        """run.json: everything needed to trust and to remake the weights."""
        facts = {
            "config": json.loads(config_json(self.config)),
            "steps_done": self.step,
            "tokens": self.step * self.config.slices * self.config.slice_tokens,
            "seconds": round(time.monotonic() - self.started, 1),
            "sha256": file_sha256(weights),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU",
        } | facts
        temporary = self.folder / "run.json.tmp"
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
        os.replace(temporary, self.folder / "run.json")


def write_log(path: Path, rows: list[dict]) -> None:
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as f:
        writer = csv.DictWriter(f, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def config_json(config: RunConfig) -> str:
    """Everything that decides the result; not where it is written, on what, or how often it is looked at."""
    skip = {"out", "minutes", "device", "workers", "compile", "log_every", "eval_every", "eval_maps", "save_every"}
    return json.dumps({k: v for k, v in asdict(config).items() if k not in skip})


# ------------------------------------------------------------------------------------------------------ pretraining


def world_model_loss(logits: torch.Tensor, ids: torch.Tensor, action_ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next observation word, given that it is no action word.

    Args: logits [B, K, vocabulary] at the odd positions 1, 3, ... of compact slices ids [B, T]. Returns a scalar.
    """
    logits = logits.float().index_fill(-1, action_ids, float("-inf"))
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 2::2].flatten())


def observation_positions(ids: torch.Tensor) -> torch.Tensor:
    """Odd positions of compact slices: an action word or ``reset`` stands there, an observation follows. [B, K]"""
    return torch.arange(1, ids.shape[1] - 1, 2, device=ids.device).expand(len(ids), -1)


@torch.no_grad()
def seen_pair_accuracy(model: nn.Module, ids: torch.Tensor, action_ids: torch.Tensor) -> tuple[float, int]:
    """How often the likeliest next observation after a (tile, action) pair already seen in the context is the true one.

    Lakes do not slip, so a perfect in-context world model scores 1. Returns (accuracy, number of such pairs).
    """
    tile, action, outcome = (ids[:, i::2][:, : (ids.shape[1] - 1) // 2] for i in range(3))
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[:, 1:-1:2]
    logits = model.get_output_embeddings()(hidden).index_fill(-1, action_ids, float("-inf"))
    right = (logits.argmax(-1) == outcome).cpu().numpy()
    key = (tile * 1000 + action).cpu().numpy()
    seen = np.ones(key.shape, bool)
    for line, keys in enumerate(key):
        seen[line, np.unique(keys, return_index=True)[1]] = False
    seen &= np.isin(action.cpu().numpy(), action_ids.cpu().numpy())
    return float(right[seen].mean()), int(seen.sum())


def pretrain(config: PretrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Train a tiny Llama from scratch to predict the next observation of random play. Returns the checkpoint folder."""
    from icrl_utils.tokenizers import make_compact_tokenizer

    accelerator = make_accelerator(config)
    history = HistoryFormat("compact")
    action_ids = torch.as_tensor(history.action_ids, device=accelerator.device)
    model = new_tiny_llama(history.vocab_size, history.action_ids, config.hidden, config.layers, config.heads, config.seed)
    net = QNetwork(model, history.action_ids, QReadout())
    optimizers = make_optimizers(model, "muon", config.lr_matrix, config.lr_other, config.weight_decay)
    if config.compile:
        net.compile()
    net, *optimizers = accelerator.prepare(net, *optimizers)
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    run = Run(config, tensors, optimizers, resume, accelerator.is_main_process)
    data = Chunks(config, lake.PRETRAINING_MAPS, RANDOM_PLAY, history)
    exam = development_transcripts(config, history).to(accelerator.device)

    bar = tqdm(total=config.steps, initial=run.step, desc="pretrain", unit="step", disable=not (progress and run.main))
    for batch in batches(data, run.step, accelerator):
        run.set_learning_rate()
        _, logits = net(batch.ids, batch.position[:, :1], observation_positions(batch.ids))
        loss = world_model_loss(logits, batch.ids, action_ids)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        run.step += 1
        bar.update()
        last = run.step >= config.steps or run.out_of_time()
        if run.step % config.log_every == 0 or last:
            row = {"tokens": run.step * config.slices * config.slice_tokens, "loss": loss.item(), "grad_norm": norm.item()}
            if run.step % config.eval_every == 0 or last:
                row["seen_pair_accuracy"], _ = seen_pair_accuracy(model, exam, action_ids)
            run.log(row)
            bar.set_postfix({k: f"{v:.3g}" for k, v in row.items()})
        if run.step % config.save_every == 0 or last:
            run.save()
        if last:
            break
    bar.close()
    if run.main:
        # Not safe_serialization of a training object: the plain weights, as from_pretrained expects them.
        model.save_pretrained(run.folder)
        make_compact_tokenizer().save_pretrained(run.folder)
        accuracy, pairs = seen_pair_accuracy(model, exam, action_ids)
        run.finish(run.folder / "model.safetensors", seen_pair_accuracy=accuracy, seen_pairs=pairs)
    return run.folder


def development_transcripts(config: RunConfig, history: HistoryFormat, n: int = 64) -> torch.Tensor:
    """Random play on development maps (never trained on): int64 [n, slice_tokens]."""
    rng = np.random.default_rng(2_000_000_011)
    play = collect(lake.development_maps("in_distribution", n), RANDOM_PLAY, rng, min_tokens=config.slice_tokens)
    return torch.from_numpy(ReplayBuffer(play, history).slices(np.arange(n), config.slice_tokens, rng))


# -------------------------------------------------------------------------------------------------------------- DQN


def train(config: TrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Double DQN with a Polyak target adapter on a frozen base. Returns the folder of the finished adapter."""
    accelerator = make_accelerator(config)
    history = HistoryFormat("compact")
    action_ids = torch.as_tensor(history.action_ids, device=accelerator.device)
    model = add_adapters(load_base(config.base), config.adapter, config.rank, config.seed)
    readout = QReadout("sigmoid" if config.loss == "bce" else "identity", config.scale, config.offset)
    net = QNetwork(model, history.action_ids, readout)
    optimizers = make_optimizers(model, config.optimizer, config.lr, config.lr, config.weight_decay)
    if config.compile:
        net.compile()
    net, *optimizers = accelerator.prepare(net, *optimizers)
    online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
    tensors = {f"online.{n}": p for n, p in online.items()} | {f"target.{n}": p for n, p in target.items()}
    run = Run(config, tensors, optimizers, resume, accelerator.is_main_process)
    data = Chunks(config, lake.TRAINING_MAPS, config.behaviour, history)

    bar = tqdm(total=config.steps, initial=run.step, desc="DQN", unit="step", disable=not (progress and run.main))
    for batch in batches(data, run.step, accelerator):
        run.set_learning_rate()
        with target_network(model):
            z_target, _ = net(batch.ids, batch.position)
        observation = observation_positions(batch.ids) if config.world_model else None
        z, logits = net(batch.ids, batch.position, observation)
        y = dqn.td_targets(readout.q(z.detach()), readout.q(z_target), batch.reward, batch.terminated, config.gamma)
        count = accelerator.reduce(batch.has_target.sum(), "sum") / accelerator.num_processes  # DDP averages gradients
        loss = dqn.td_loss(z, batch.action, y, batch.has_target, config.loss) / count
        total = loss + config.world_model * world_model_loss(logits, batch.ids, action_ids) if config.world_model else loss
        accelerator.backward(total)
        norm = accelerator.clip_grad_norm_(online.values(), config.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        dqn.polyak_update(target.values(), online.values(), config.polyak)
        run.step += 1
        bar.update()
        last = run.step >= config.steps or run.out_of_time()
        if run.step % config.log_every == 0 or last:
            row = {"tokens": run.step * config.slices * config.slice_tokens, "loss": loss.item(), "total_loss": total.item(),
                   "td_error": td_error(readout.q(z), batch, y), "grad_norm": norm.item()}  # fmt: skip
            if run.step % config.eval_every == 0 or last:
                row |= evaluate_in_training(model, readout, config)
            run.log(row)
            bar.set_postfix({k: f"{v:.3g}" for k, v in row.items()})
        if run.step % config.save_every == 0 or last:
            run.save()
        if last:
            break
    bar.close()
    if run.main:
        export_adapter(model, run, readout, config)
    return run.folder


def td_error(q: torch.Tensor, batch: Batch, y: torch.Tensor) -> float:
    """Mean squared TD error of the masked decisions, in units of return, whatever the loss."""
    taken = q.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    return ((taken - y)[batch.has_target] ** 2).mean().item()


def evaluate_in_training(model: nn.Module, readout: QReadout, config: TrainConfig) -> dict[str, float]:
    """Success on development maps: first and last ten of the paper's thirty episodes, and the last ten, greedy."""
    from icrl_utils.rollout import Agent, rollout

    maps = lake.development_maps("in_distribution", config.eval_maps)
    agent = Agent(model, HistoryFormat("compact"), readout)
    paper, greedy = rollout(agent, maps, "paper", seed=1), rollout(agent, maps, "greedy", seed=1)
    return {
        "success_first": paper.success[:, :10].mean().item(),
        "success_last": paper.success[:, -10:].mean().item(),
        "greedy_10_14": greedy.success[:, 10:15].mean().item(),
        "greedy_last": greedy.success[:, -10:].mean().item(),
    }


def export_adapter(model: nn.Module, run: Run, readout: QReadout, config: TrainConfig) -> None:
    """The online adapter as ``PeftModel.from_pretrained`` reads it, and its run.json."""
    model.save_pretrained(run.folder, selected_adapters=[ONLINE])
    shutil.rmtree(run.folder / TARGET, ignore_errors=True)
    run.finish(
        run.folder / "adapter_model.safetensors",
        readout=asdict(readout),
        history="compact",
        base=config.base,
        base_sha256=file_sha256(Path(config.base) / "model.safetensors"),
    )


CONFIG_FIELDS = {cls.__name__: [f.name for f in fields(cls)] for cls in (PretrainConfig, TrainConfig)}
