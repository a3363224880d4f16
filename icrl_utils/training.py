"""The two training loops: pretraining a world model, and double DQN on an adapter.

Both read top to bottom. What can interrupt them (Ctrl-C, kill, the clock) and what is written about them is in
`icrl_utils.runs`; where their data come from is in `icrl_utils.replay`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from icrl_utils import dqn, lake
from icrl_utils.agent import Agent, maps_at_once
from icrl_utils.configs import PretrainConfig, RunConfig, TrainConfig
from icrl_utils.hardware import compile_network, free_memory, make_accelerator
from icrl_utils.history import HistoryFormat
from icrl_utils.memory import check_memory, plan
from icrl_utils.models import (
    CONTEXT,
    ONLINE,
    TARGET,
    adapter_parameters,
    add_adapters,
    base_folder,
    checkpoint_activations,
    load_base,
    new_tiny_llama,
    parameter_count,
    portable_path,
    rope,
    target_network,
)
from icrl_utils.qvalues import QNetwork, QReadout
from icrl_utils.real_llama import DTYPES, checkpoint_id, keep_dtype, load_history, load_llama
from icrl_utils.replay import RANDOM_PLAY, Batch, ReplayBuffer, SliceSource, collect, make_batch
from icrl_utils.rollout import rollout
from icrl_utils.runs import Run, check_folder, is_finished
from icrl_utils.tokenizers import make_compact_tokenizer, make_paper_tokenizer
from icrl_utils.world_model import (
    NOT_TRIED,
    WorldModel,
    observation_positions,
    outcomes_of_moves,
    seen_move_accuracy,
    seen_pair_accuracy,
    world_model_loss,
)

# ---------------------------------------------------------------------------------------------------------- data


class Chunks(Dataset):
    """Chunk c holds the slices of optimizer steps c * steps_per_chunk and following: a pure function of (seed, c)."""

    def __init__(self, config: RunConfig, source: SliceSource):
        self.config, self.source = config, source

    def __len__(self) -> int:
        return math.ceil(self.config.steps / self.config.steps_per_chunk)

    def __getitem__(self, chunk: int) -> Tensor:
        """int32 [steps_per_chunk, slices, tokens], see `RunConfig.slice_shape`"""
        steps, (slices, tokens) = self.config.steps_per_chunk, self.config.slice_shape(chunk)
        ids = self.source.slices(steps * slices, tokens, np.random.default_rng([self.config.seed, chunk]))
        return torch.from_numpy(ids.reshape(steps, slices, tokens).astype(np.int32))


def batches(data: Chunks, first_step: int, accelerator: Accelerator) -> Iterator[Batch]:
    """Batches of steps first_step, first_step + 1, ... (from 0); each process gets every n-th slice."""
    config = data.config
    chunk, skip = divmod(first_step, config.steps_per_chunk)
    loader = DataLoader(data, sampler=range(chunk, len(data)), batch_size=None, num_workers=config.workers)
    slices = (ids for steps in loader for ids in steps)
    for ids in islice(slices, skip, None):
        mine = ids[accelerator.process_index :: accelerator.num_processes]
        yield make_batch(mine.long().numpy(), data.source.history).to(accelerator.device)


def training_source(config: TrainConfig) -> SliceSource:
    """What makes the slices. Of the base it reads config.json and the tokenizer, and raises
    `real_llama.load_history`'s errors about them before anything large is downloaded or allocated."""
    maps = lake.TRAINING_MAPS
    if config.map_pool:
        maps = lake.training_maps(maps, config.map_pool, np.random.default_rng([config.seed, 2**31]))
    if config.history == "compact":
        base_folder(config.base)  # the tiny Llama is never looked for on the Hub
    history = load_history(config.base, config.history, "base")
    return SliceSource(maps, config.behaviour, config.order, config.quality, config.relabel, config.crossing, history)


def micro_batches(batch: Batch, net: nn.Module, config: TrainConfig, accelerator: Accelerator) -> Iterator[Batch]:
    """``batch`` in parts of `TrainConfig.slices_at_once` slices; the gradients of their losses add up to its gradient.

    Data parallelism adds up the gradients of all processes in the backward pass of the last part only.
    """
    *parts, last = batch.parts(config.slices_at_once)
    for part in parts:
        with accelerator.no_sync(net):
            yield part
    yield last


# ---------------------------------------------------------------------------------------------------- optimizers


def make_optimizers(
    model: nn.Module, kind: str, lr_matrix: float, lr_other: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """``muon``: Muon for the matrices between embedding and head, AdamW for the rest. ``adamw``: AdamW for all.

    Decay pulls to 0, which is the identity of neither a norm nor an IA3 scale: only matrices decay.
    """
    if kind not in ("muon", "adamw"):
        raise ValueError(f"optimizer={kind!r} is unknown; choose 'muon' or 'adamw'.")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {n: p for n, p in trainable.items() if p.ndim == 2 and min(p.shape) > 1}
    vectors = [p for name, p in trainable.items() if name not in matrices]
    if kind == "adamw":
        optimizers = [torch.optim.AdamW([*matrices.values()], lr_matrix, weight_decay=weight_decay)] if matrices else []
        return optimizers + ([torch.optim.AdamW(vectors, lr_matrix, weight_decay=0.0)] if vectors else [])
    inner = [p for name, p in matrices.items() if "embed" not in name and "lm_head" not in name]
    outer = [p for name, p in matrices.items() if "embed" in name or "lm_head" in name]
    optimizers = [torch.optim.Muon(inner, lr_matrix, weight_decay=weight_decay)] if inner else []
    return optimizers + ([torch.optim.AdamW(outer + vectors, lr_other, weight_decay=0.0)] if outer + vectors else [])


# ------------------------------------------------------------------------------------------------------ pretraining


def pretrain(config: PretrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Train a Llama to predict what moves lead to in random play. Returns the checkpoint folder.

    By default it is the tiny one, from scratch; with ``config.base`` training goes on from a checkpoint. In the
    ``paper`` format it gets the tokenizer of `make_paper_tokenizer`, and the folder is a base as a real Llama is:
    `real_llama.load_llama` loads it and ``train(history="paper")`` trains on it.
    """
    check_folder(config, resume)
    if resume and is_finished(config):
        return Path(config.out)
    accelerator = make_accelerator(config.precision, config.device)
    tokenizer = tokenizer_to_pretrain(config)
    history = HistoryFormat(config.history, tokenizer)
    action_ids = torch.as_tensor(history.action_ids, device=accelerator.device)
    header = history.observation_header
    header = None if header is None else torch.as_tensor(header, device=accelerator.device)
    model = model_to_pretrain(config, history)
    world = WorldModel(model, config.seed)
    optimizers = make_optimizers(world, "muon", config.lr_matrix, config.lr_other, config.weight_decay)
    tensors = {**world.state_dict()}
    if config.compile:
        compile_network(world, accelerator.device, accelerator.print)
    net = accelerator.prepare(world)
    run = Run(config, accelerator, tensors, optimizers, parameter_count(model), resume, progress)
    data = Chunks(config, SliceSource(lake.PRETRAINING_MAPS, RANDOM_PLAY, relabel=config.relabel, history=history))
    exam = make_batch(development_transcripts(config, history).numpy(), history).to(accelerator.device)

    for batch in run.batches(batches(data, run.step, accelerator)):
        observation = observation_positions(batch.ids, header)
        following, moves = net(batch.ids, batch.position, observation)
        outcome = outcomes_of_moves(batch)
        # Of all processes: data parallelism averages their gradients.
        count = accelerator.reduce((outcome != NOT_TRIED).sum(), "sum").clamp(min=1) / accelerator.num_processes
        loss = world_model_loss(following, batch.ids, action_ids, observation)
        loss_of_moves = F.cross_entropy(moves.flatten(0, 2), outcome.flatten(), reduction="sum") / count
        accelerator.backward(loss + loss_of_moves)
        norm = run.update(world.parameters())
        if run.due(config.log_every):
            row = {"loss": loss.detach(), "loss_of_moves": loss_of_moves.detach()}
            row = {name: accelerator.reduce(value, "mean").item() for name, value in row.items()}
            run.log(row | {"grad_norm": norm.item()})
        if run.due(config.eval_every) and run.main and run.step < config.steps:
            with run.off_the_clock():
                run.log(accuracies(world, exam, action_ids, header))

    result = accuracies(world, exam, action_ids, header)
    run.log(result)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    source = {"base_sha256": checkpoint_id(config.base)} if config.base else {}
    return run.finish(write, "model.safetensors", **source, **result)


def tokenizer_to_pretrain(config: PretrainConfig) -> PreTrainedTokenizerBase:
    """That of the history format; in ``paper`` text a base brings its own."""
    folder = base_folder(config.base) if config.base else None
    if config.history == "compact":
        return make_compact_tokenizer()
    return AutoTokenizer.from_pretrained(folder) if folder else make_paper_tokenizer()


def model_to_pretrain(config: PretrainConfig, history: HistoryFormat) -> PreTrainedModel:
    """A new Llama, or the one in ``config.base``, with the rotary positions of ``config``."""
    if config.base:
        load_history(config.base, config.history, "base")  # raises where the base has not these tokens
        return load_base(config.base, rope_parameters=rope(config.rope_theta)).train()
    size = config.hidden, config.layers, config.heads, config.rope_theta
    return new_tiny_llama(history.vocab_size, history.action_ids, *size, seed=config.seed)


def accuracies(world: WorldModel, exam: Batch, action_ids: Tensor, header: Tensor | None = None) -> dict[str, float]:
    """In-context knowledge: what the history has shown about a move, asked after the move, and before it."""
    after, _ = seen_pair_accuracy(world.model, exam, action_ids, header)
    before, _ = seen_move_accuracy(world, exam)
    return {"seen_pair_accuracy": after, "seen_move_accuracy": before}


def development_transcripts(config: RunConfig, history: HistoryFormat, n: int = 64) -> Tensor:
    """Random play on development maps (never trained on), as long as the longest slices of ``config``: int64 [n, T]."""
    rng = np.random.default_rng(2_000_000_011)
    _, tokens = config.slice_shape(1)
    play = collect(lake.development_maps("in_distribution", n), RANDOM_PLAY, rng, min_tokens=tokens)
    return torch.from_numpy(ReplayBuffer(play, history).slices(np.arange(n), tokens, rng))


# -------------------------------------------------------------------------------------------------------------- DQN


def train(config: TrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Double DQN with a Polyak target adapter on a frozen base. Returns the folder of the finished adapter."""
    check_folder(config, resume)
    if resume and is_finished(config):
        return Path(config.out)
    accelerator = make_accelerator(config.precision, config.device)
    data = Chunks(config, training_source(config))
    history, readout = data.source.history, config.readout
    action_ids = torch.as_tensor(history.action_ids, device=accelerator.device)
    base = load_frozen(config, accelerator)
    parameters = parameter_count(base)
    model = add_adapters(base, config.adapter, config.rank, config.seed)
    net = QNetwork(model, history.action_ids, readout, fold=config.may_fold and accelerator.mixed_precision == "no")
    optimizers = make_optimizers(model, config.optimizer, config.lr, config.lr, config.weight_decay)
    keep_dtype(model)
    if config.centred:
        first = make_batch(data[0][0, :1].long().numpy(), history).to(accelerator.device)
        readout = net.readout = centred(net.to(accelerator.device), first)
    if config.checkpointing:
        checkpoint_activations(model)
    if config.compile:
        compile_network(net, accelerator.device, accelerator.print)
    net = accelerator.prepare(net)
    online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
    tensors = {f"online.{n}": p for n, p in online.items()} | {f"target.{n}": p for n, p in target.items()}
    run = Run(config, accelerator, tensors, optimizers, parameters, resume, progress)

    for batch in run.batches(batches(data, run.step, accelerator)):
        # Of all processes: data parallelism averages their gradients.
        count = accelerator.reduce(batch.has_target.sum(), "sum").clamp(min=1) / accelerator.num_processes
        sums = torch.zeros(3, device=accelerator.device)
        for part in micro_batches(batch, net, config, accelerator):
            z, y, logits = q_and_targets(
                net, model, part, readout, config.gamma, bool(config.world_model), config.consistent
            )
            loss = dqn.td_loss(z, part.action, y, part.has_target, config.loss) / count
            total = loss
            if config.world_model:
                share = len(part.ids) / len(batch.ids)
                total = loss + config.world_model * share * world_model_loss(logits, part.ids, action_ids)
            accelerator.backward(total)
            error = squared_td_error(readout.q(z.detach()), part, y) / count
            sums += torch.stack([loss.detach(), total.detach(), error])
        norm = run.update(online.values())
        dqn.polyak_update(target.values(), online.values(), config.polyak)
        if run.due(config.log_every):
            row = zip(("loss", "total_loss", "td_error"), accelerator.reduce(sums, "mean").tolist(), strict=True)
            run.log(dict(row) | {"grad_norm": norm.item()})
        if run.due(config.eval_every) and run.main and run.step < config.steps:
            with run.off_the_clock():
                run.log(evaluate_in_training(model, history, readout, config))

    if run.main:
        run.log(evaluate_in_training(model, history, readout, config, True))
    return run.finish(
        lambda folder: write_adapter(model, config, folder),
        "adapter_model.safetensors",
        history=history.name,
        readout=asdict(readout),
        base=portable_path(config.base),
        base_sha256=checkpoint_id(config.base),
        quantization=None if config.quantization == "none" else config.quantization,
    )


def load_frozen(config: TrainConfig, accelerator: Accelerator) -> PreTrainedModel:
    """The base of ``config``: the tiny Llama in float32, a real one in the precision of the run or in 4 bits.

    Raises ValueError, before weights are loaded, when the GPU has too little free memory for the plan.
    """
    if config.history == "compact":
        return load_base(config.base)
    dtype = DTYPES[accelerator.mixed_precision]
    quantization = None if config.quantization == "none" else config.quantization
    planned = plan(
        config.base, slices=min(config.slices_at_once, math.ceil(config.slices / accelerator.num_processes)),
        slice_tokens=config.slice_tokens, adapter=config.adapter, rank=config.rank, optimizer=config.optimizer,
        quantization=quantization, dtype=dtype, checkpointing=config.checkpointing, history_tokens=CONTEXT,
    )  # fmt: skip
    maps = min(config.eval_maps, maps_at_once(planned.config, dtype))
    check_memory(replace(planned, settings=replace(planned.settings, maps=maps)), free_memory(accelerator.device))
    return load_llama(config.base, quantization, accelerator.device, dtype)


@torch.no_grad()
def centred(net: QNetwork, batch: Batch) -> QReadout:
    """The read-out of ``net`` with an offset that counts from the mean action logit at the decisions of ``batch``.

    Action words may have logits near 20 in one pretrained Llama and near 5 in another, where returns lie in [0, 1].
    Rounded to tenths, so that a resumed run measures the same.
    """
    z, _ = net(batch.ids, batch.position)
    level = z[batch.has_target].mean().item() + net.readout.offset
    return replace(net.readout, offset=round(net.readout.offset + level, 1))


def q_and_targets(
    net: nn.Module,
    model: PeftModel,
    batch: Batch,
    readout: QReadout,
    gamma: float,
    observations: bool = False,
    consistent: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The two forward passes of a DQN step.

    The target network comes first: between the online forward and its backward no adapter may be switched, since
    activation checkpointing would recompute with the wrong one.

    Returns:
        z: float32 [B, D, 4] of the online network, with gradient. y: float32 [B, D] TD targets, without. And with
        ``observations`` the next-token logits [B, K, vocabulary] at `observation_positions`.
    """
    with target_network(model):
        z_target, _ = net(batch.ids, batch.position)
    z, logits = net(batch.ids, batch.position, observation_positions(batch.ids) if observations else None)
    q, q_target = readout.q(z.detach()), readout.q(z_target)
    repeated = moves_that_led_nowhere(batch) if consistent else None
    y = dqn.td_targets(q, q_target, batch.reward, batch.terminated, gamma, repeated)
    return z, y, logits


def moves_that_led_nowhere(batch: Batch) -> Tensor:
    """int64 [B, D]: the action where the agent then stood on the same tile as before, -1 elsewhere."""
    stayed = F.pad(batch.tile[:, 1:] == batch.tile[:, :-1], (0, 1)) & (batch.tile >= 0)
    stayed &= batch.has_target & ~batch.terminated
    return torch.where(stayed, batch.action, -1)


def squared_td_error(q: Tensor, batch: Batch, y: Tensor) -> Tensor:
    """Sum of squared TD errors over the decisions with a target, in units of return whatever the loss."""
    taken = q.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    return ((taken - y) ** 2).masked_fill(~batch.has_target, 0).sum()


def evaluate_in_training(
    model: PeftModel, history: HistoryFormat, readout: QReadout, config: TrainConfig, greedy: bool = False
) -> dict[str, float]:
    """Success on development maps: first and last ten of the paper's thirty episodes, and two phases of a greedy run.

    Loops cost the most, so episodes are cut off after ``eval_step_limit`` steps: what is reported is a lower bound.
    """
    maps = lake.development_maps("in_distribution", config.eval_maps)
    if history.name == "compact":
        model = copy.deepcopy(model).merge_and_unload()  # the function that load_agent will load, and faster
    agent = Agent(model, history, readout, temperature=config.temperature)
    paper = rollout(agent, maps, "paper", seed=1, step_limit=config.eval_step_limit).success
    row = {"success_first": paper[:, :10].mean().item(), "success_last": paper[:, -10:].mean().item()}
    if greedy:
        alone = rollout(agent, maps, "greedy", seed=1, step_limit=config.eval_step_limit).success
        row |= {"greedy_10_14": alone[:, 10:15].mean().item(), "greedy_last": alone[:, -10:].mean().item()}
    return row


def write_adapter(model: PeftModel, config: TrainConfig, folder: Path) -> None:
    """The online adapter, as ``PeftModel.from_pretrained`` reads it."""
    model.peft_config[ONLINE].base_model_name_or_path = portable_path(config.base)
    model.save_pretrained(folder, selected_adapters=[ONLINE], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card: a form with nothing filled in
