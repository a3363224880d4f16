"""Double DQN with a Polyak target adapter on a frozen Llama: `train` reads top to bottom.

What can interrupt it (Ctrl-C, kill, the clock) and what is written about it is in `icrl_utils.training.runs`; where its
data come from is in `icrl_utils.training.data`; what one step computes is in `icrl_utils.dqn.dqn`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from icrl_utils.dqn.dqn import polyak_update, q_and_targets, squared_td_error, td_loss
from icrl_utils.dqn.replay import Batch, make_batch
from icrl_utils.hardware import DTYPES, compile_network, free_memory, make_accelerator
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.held_out import development_maps
from icrl_utils.llama.adapters import ONLINE, TARGET, adapter_parameters, add_adapters, checkpoint_activations
from icrl_utils.llama.agent import Agent, maps_at_once
from icrl_utils.llama.load import CONTEXT, checkpoint_id, load_base, load_llama, parameter_count
from icrl_utils.llama.memory import check_memory, plan
from icrl_utils.llama.readout import QNetwork, QReadout
from icrl_utils.paths import config_sha256, in_repository, portable_path
from icrl_utils.play.policy import PATIENCE, Policy
from icrl_utils.play.rollout import rollout
from icrl_utils.training.configs import RunConfig, TrainConfig
from icrl_utils.training.data import Chunks, batches, training_source
from icrl_utils.training.folder import check_folder, is_finished
from icrl_utils.training.optimizers import make_optimizers
from icrl_utils.training.runs import Run
from icrl_utils.training.world_model import observation_positions, world_model_loss


def train(config: TrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Double DQN on an adapter (arXiv 2501.14176, section 3). Returns the folder of the finished adapter."""
    check_folder(config, resume)
    if resume and is_finished(config):
        return Path(config.out)
    accelerator = make_accelerator(config.precision, config.device)
    data = Chunks(config, training_source(config))
    action_ids = torch.as_tensor(data.history.action_ids, device=accelerator.device)
    facts = facts_of_base(config) | {"history": data.history.name}
    base = load_frozen(config, accelerator)
    parameters = parameter_count(base)
    model = add_adapters(base, config.adapter, config.rank, config.seed)
    online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
    optimizers = make_optimizers(model, config.optimizer, config.lr, config.lr, config.weight_decay)
    net, readout = q_network(model, data, config, accelerator)
    tensors = {f"online.{n}": p for n, p in online.items()} | {f"target.{n}": p for n, p in target.items()}
    run = Run(config, accelerator, tensors, optimizers, parameters, resume, progress)

    for batch in run.batches(batches(data, run.step, accelerator)):
        decisions = run.mean_count(batch.has_target)
        for part, share in micro_batches(batch, net, config, accelerator):
            observation = observation_positions(part.ids) if config.world_model else None
            z, y, logits = q_and_targets(net, model, part, readout, config.gamma, config.consistent, observation)
            loss = td_loss(z, part.action, y, part.has_target, config.loss) / decisions
            error = squared_td_error(readout.q(z.detach()), part, y) / decisions
            total = loss
            if logits is not None:
                total = loss + config.world_model * share * world_model_loss(logits, part.ids, action_ids)
            accelerator.backward(total)
            run.add(loss=loss, total_loss=total, td_error=error)
        run.update(online.values())
        polyak_update(target.values(), online.values(), config.polyak)
        if run.due(config.log_every):
            run.log_sums()
        if run.due(config.eval_every) and run.step < config.steps:
            run.log_aside(lambda: evaluate_in_training(model, data.history, readout, config))

    run.log_aside(lambda: evaluate_in_training(model, data.history, readout, config, greedy=True))
    return run.finish(
        lambda folder: write_adapter(model, config, folder),
        "adapter_model.safetensors",
        **facts,
        readout=asdict(readout),
        play={"temperature": config.temperature, "patience": PATIENCE, "max_tokens": CONTEXT},
    )


def facts_of_base(config: TrainConfig) -> dict[str, object]:
    """What run.json says about the base, and `load_agent` compares. Read before training: later it may have changed."""
    folder = in_repository(config.base)
    return {
        "base": portable_path(config.base),
        "base_sha256": checkpoint_id(config.base),  # on the Hub the commit, which stands for all files
        "base_config_sha256": config_sha256(folder) if folder.is_dir() else None,
        "quantization": None if config.quantization == "none" else config.quantization,
    }


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


def q_network(
    model: PeftModel, data: Chunks, config: TrainConfig, accelerator: Accelerator
) -> tuple[nn.Module, QReadout]:
    """The network that a step calls, made ready for this machine, and its read-out."""
    fold = config.may_fold and accelerator.mixed_precision == "no"
    net = QNetwork(model, data.history.action_ids, config.readout, fold=fold)
    if config.centred:
        first = make_batch(data[0][0, :1].long().numpy(), data.history).to(accelerator.device)
        net.readout = centred(net.to(accelerator.device), first)
    readout = net.readout
    if config.checkpointing:
        checkpoint_activations(model)
    if config.compile:
        compile_network(net, accelerator.device, accelerator.print)
    return accelerator.prepare(net), readout


@torch.no_grad()
def centred(net: QNetwork, batch: Batch) -> QReadout:
    """The read-out of ``net`` with an offset that counts from the mean action logit at the decisions of ``batch``.

    Action words may have logits near 20 in one pretrained Llama and near 5 in another, where returns lie in [0, 1].
    Rounded to tenths, so that a resumed run measures the same.
    """
    z, _ = net(batch.ids, batch.position)
    level = z[batch.has_target].mean().item() + net.readout.offset
    return replace(net.readout, offset=round(net.readout.offset + level, 1))


def micro_batches(
    batch: Batch, net: nn.Module, config: TrainConfig, accelerator: Accelerator
) -> Iterator[tuple[Batch, float]]:
    """``batch`` in parts of `TrainConfig.slices_at_once` slices, each with its share of the slices.

    The gradients of their losses add up to that of the batch. Data parallelism adds up those of all processes in the
    backward pass of the last part only.
    """
    *parts, last = batch.parts(config.slices_at_once)
    for part in parts:
        with accelerator.no_sync(net):
            yield part, len(part.ids) / len(batch.ids)
    yield last, len(last.ids) / len(batch.ids)


def evaluate_in_training(
    model: PeftModel, history: HistoryFormat, readout: QReadout, config: TrainConfig, greedy: bool = False
) -> dict[str, float]:
    """Success on development maps: first and last ten of the paper's thirty episodes, and two phases of a greedy run.

    Loops cost the most, so episodes are cut off after ``eval_step_limit`` steps: what is reported is a lower bound.
    """
    if history.name == "compact":
        model = copy.deepcopy(model).merge_and_unload()  # the function that load_agent will load, and faster
    agent = Agent(model, history, readout, temperature=config.temperature)
    row = success_on_development_maps(agent, config)
    if greedy:
        maps = development_maps("in_distribution", config.eval_maps)
        alone = rollout(agent, maps, "greedy", seed=1, step_limit=config.eval_step_limit).success
        row |= {"greedy_10_14": alone[:, 10:15].mean().item(), "greedy_last": alone[:, -10:].mean().item()}
    return row


def success_on_development_maps(agent: Policy, config: RunConfig) -> dict[str, float]:
    """The first and the last ten of the paper's thirty episodes."""
    maps = development_maps("in_distribution", config.eval_maps)
    success = rollout(agent, maps, "paper", seed=1, step_limit=config.eval_step_limit).success
    return {"success_first": success[:, :10].mean().item(), "success_last": success[:, -10:].mean().item()}


def write_adapter(model: PeftModel, config: TrainConfig, folder: Path) -> None:
    """The online adapter, as ``PeftModel.from_pretrained`` reads it."""
    model.peft_config[ONLINE].base_model_name_or_path = portable_path(config.base)
    model.save_pretrained(str(folder), selected_adapters=[ONLINE], save_embedding_layers=False)
    with suppress(OSError):
        (folder / "README.md").unlink(missing_ok=True)  # peft's model card: a form with nothing filled in
