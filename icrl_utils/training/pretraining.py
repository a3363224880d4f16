"""Pretraining: a Llama learns to predict what moves lead to, on lakes that it has never seen. No reward, no values.

What can interrupt it (Ctrl-C, kill, the clock) and what is written about it is in `icrl_utils.training.runs`; the two
questions that it is asked are in `icrl_utils.training.world_model`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from icrl_utils.dqn.replay import Batch, ReplayBuffer, SliceSource, make_batch
from icrl_utils.hardware import compile_network, make_accelerator
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_compact_tokenizer, make_paper_tokenizer
from icrl_utils.lake import held_out, maps
from icrl_utils.llama.load import (
    base_folder,
    checkpoint_id,
    load_base,
    load_history,
    new_tiny_llama,
    parameter_count,
    rope,
)
from icrl_utils.play.collect import RANDOM_PLAY, collect
from icrl_utils.training.configs import PretrainConfig, RunConfig
from icrl_utils.training.data import Chunks, batches
from icrl_utils.training.folder import check_folder, is_finished
from icrl_utils.training.optimizers import make_optimizers
from icrl_utils.training.runs import Run
from icrl_utils.training.world_model import (
    NOT_TRIED,
    WorldModel,
    observation_positions,
    outcomes_of_moves,
    seen_move_accuracy,
    seen_pair_accuracy,
    world_model_loss,
)


def pretrain(config: PretrainConfig, resume: bool = False, progress: bool = True) -> Path:
    """Train a Llama to predict what moves lead to in random play. Returns the checkpoint folder.

    By default it is the tiny one, from scratch; with ``config.base`` training goes on from a checkpoint. In the
    ``paper`` format it gets the tokenizer of `make_paper_tokenizer`, and the folder is a base as a real Llama is:
    `load.load_llama` loads it and ``train(history="paper")`` trains on it.
    """
    check_folder(config, resume)
    if resume and is_finished(config):
        return Path(config.out)
    accelerator = make_accelerator(config.precision, config.device)
    tokenizer = tokenizer_to_pretrain(config)
    history = HistoryFormat(config.history, tokenizer)
    action_ids = torch.as_tensor(history.action_ids, device=accelerator.device)
    asked = history.observation_header
    header = None if asked is None else torch.as_tensor(asked, device=accelerator.device)
    model = model_to_pretrain(config, history)
    source = {"base_sha256": checkpoint_id(config.base)} if config.base else {}
    world = WorldModel(model, config.seed)
    optimizers = make_optimizers(world, "muon", config.lr_matrix, config.lr_other, config.weight_decay)
    tensors = {**world.state_dict()}
    if config.compile:
        compile_network(world, accelerator.device, accelerator.print)
    net = accelerator.prepare(world)
    run = Run(config, accelerator, tensors, optimizers, parameter_count(model), resume, progress)
    data = Chunks(config, SliceSource(maps.PRETRAINING_MAPS, RANDOM_PLAY, relabel=config.relabel, history=history))
    exam = make_batch(development_transcripts(config, history).numpy(), history).to(accelerator.device)

    for batch in run.batches(batches(data, run.step, accelerator)):
        observation = observation_positions(batch.ids, header)
        following, moves = net(batch.ids, batch.position, observation)
        outcome = outcomes_of_moves(batch)
        loss = world_model_loss(following, batch.ids, action_ids, observation)
        answers = F.cross_entropy(moves.flatten(0, 2), outcome.flatten(), reduction="sum")
        loss_of_moves = answers / run.mean_count(outcome != NOT_TRIED)
        accelerator.backward(loss + loss_of_moves)
        run.add(loss=loss, loss_of_moves=loss_of_moves)
        run.update(world.parameters())
        if run.due(config.log_every):
            run.log_sums()
        if run.due(config.eval_every) and run.step < config.steps:
            run.log_aside(lambda: accuracies(world, exam, action_ids, header))

    result = accuracies(world, exam, action_ids, header)
    run.log(result)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

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
    lakes = held_out.development_maps("in_distribution", n)
    play = collect(lakes, RANDOM_PLAY, rng, min_tokens=tokens, step_tokens=history.min_step_tokens)
    return torch.from_numpy(ReplayBuffer(play, history).slices(np.arange(n), tokens, rng))
