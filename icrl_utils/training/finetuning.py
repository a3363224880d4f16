"""A pretrained language model becomes an in-context learner: `finetune` reads top to bottom.

Stage one: what do moves lead to? The adapter learns to predict, behind an action word, what the history has shown.
Stage two, double DQN: what are moves worth? Read in the same place, as the odds of the word goal against the word hole.

    slices -> AskedBatch -> FrozenLlama + Lora -> z of moves made, z of branches -> branch_targets -> odds_loss -> Lora
                                                                                     average of it: plays <-- polyak
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from icrl_utils.dqn.branches import (
    AskedBatch,
    branch_targets,
    make_asked_batch,
    odds_loss,
    outcome_loss,
    outcome_report,
    value_report,
)
from icrl_utils.dqn.dqn import polyak_update
from icrl_utils.dqn.replay import SliceSource
from icrl_utils.hardware import DTYPES, faster_in_bfloat16, make_accelerator
from icrl_utils.history.compact import OBSERVED
from icrl_utils.history.words import Words
from icrl_utils.lake.maps import TRAINING_MAPS
from icrl_utils.llama.frozen import FrozenLlama
from icrl_utils.llama.language_model import language_model
from icrl_utils.llama.load import checkpoint_id
from icrl_utils.llama.lora import WEIGHTS, Lora
from icrl_utils.llama.readout import OddsReadout, take
from icrl_utils.llama.words_agent import WordsAgent, load_frozen
from icrl_utils.paths import config_sha256, file_sha256, in_repository, portable_path
from icrl_utils.play.policy import PATIENCE
from icrl_utils.training.configs import FinetuneConfig
from icrl_utils.training.data import Chunks
from icrl_utils.training.folder import check_folder, is_finished
from icrl_utils.training.optimizers import two_stage_factor
from icrl_utils.training.runs import Run
from icrl_utils.training.training import success_on_development_maps


def finetune(config: FinetuneConfig, resume: bool = False, progress: bool = True) -> Path:
    """Both stages on an adapter. Returns the folder of the finished adapter."""
    check_folder(config, resume)
    if resume and is_finished(config):
        return Path(config.out)
    precision: str = config.precision
    if precision == "auto":
        precision = "bf16" if faster_in_bfloat16(config.device) else "no"
    accelerator = make_accelerator(precision, config.device)
    if accelerator.num_processes > 1:
        raise ValueError(f"{accelerator.num_processes} processes: finetune trains on one device; start one.")
    facts = facts_of_base(config)  # before training: later the files may have changed
    llama, words = load_frozen(config.base, accelerator.device, DTYPES[precision], config.random_base)
    online = new_adapter(config, llama).requires_grad_()
    average = Lora(llama.shape, online.layers, config.rank).to(llama.device)
    average.copy_(online.tensors)
    optimizer = torch.optim.AdamW(online.parameters(), config.lr, weight_decay=config.weight_decay)
    tensors = {f"online.{n}": t for n, t in online.tensors.items()}
    tensors |= {f"average.{n}": t for n, t in average.tensors.items()}
    run = Run(config, accelerator, tensors, [optimizer], llama.parameter_count, resume, progress, two_stage_factor)
    means = Means()

    for batch in run.batches(asked_batches(config, words, run.step, llama.device)):
        if run.step <= config.stage_one:
            loss, report = prediction_loss(llama, online, batch)
        else:
            loss, report = dqn_loss(llama, words, online, average, batch, config)
        loss.backward()
        run.add(loss=loss)
        run.update(online.parameters())
        polyak_update(average.parameters(), online.parameters(), 1.0 if run.step <= config.stage_one else config.polyak)
        means.add(report)
        if run.due(config.log_every) or run.step == config.stage_one:
            run.log(means.take() | {"loss": loss.item()})
        if run.due(config.eval_every) and run.step < config.steps:
            run.log_aside(lambda: evaluate_in_finetuning(llama, words, average, config))

    run.log_aside(lambda: evaluate_in_finetuning(llama, words, average, config))
    return run.finish(
        lambda folder: average.save(folder, portable_path(config.base)),
        WEIGHTS,
        **facts,
        readout={"row": "goal - hole, after the action word"} | asdict(config.odds),
        play={"temperature": config.temperature, "patience": PATIENCE},
    )


def facts_of_base(config: FinetuneConfig) -> dict[str, object]:
    """What run.json says about the base and the text, and `load_agent` compares."""
    folder = in_repository(language_model(config.base))
    facts: dict[str, object] = {
        "base": portable_path(config.base),
        "base_sha256": checkpoint_id(folder),
        "base_config_sha256": config_sha256(folder) if folder.is_dir() else None,
        "history": "words",
    }
    return facts | ({"start_sha256": file_sha256(in_repository(config.start) / WEIGHTS)} if config.start else {})


def new_adapter(config: FinetuneConfig, llama: FrozenLlama) -> Lora:
    """The adapter to train: a new one, or that in ``config.start``."""
    if config.first_adapted >= llama.shape.layers:
        raise ValueError(
            f"first_adapted={config.first_adapted!r}: the base has layers 0 to {llama.shape.layers - 1}; choose one."
        )
    layers = range(config.first_adapted, llama.shape.layers)
    lora = Lora(llama.shape, layers, config.rank, config.seed)
    if config.start:
        lora.copy_(Lora.load(in_repository(config.start), llama.shape).tensors)
    return lora.to(llama.device)


def asked_batches(config: FinetuneConfig, words: Words, first_step: int, device: torch.device) -> Iterator[AskedBatch]:
    """Batches of steps first_step, first_step + 1, ... (from 0); each is a pure function of (seed, step)."""
    chunks = Chunks(config, SliceSource(TRAINING_MAPS, config.behaviour))
    for step in range(first_step, config.steps):
        chunk, place = divmod(step, config.steps_per_chunk)
        if step == first_step or not place:
            slices = chunks[chunk].long().numpy()
        rng = np.random.default_rng([config.seed, chunk, place])
        dictionary = np.stack([words.dictionary(rng) for _ in slices[place]])
        yield make_asked_batch(slices[place], dictionary, chunks.history, config.asked, rng).to(device)


Report = dict[str, tuple[Tensor, Tensor]]  # name -> (values, mask)


def prediction_loss(llama: FrozenLlama, online: Lora, batch: AskedBatch) -> tuple[Tensor, Report]:
    """Stage one: cross-entropy of what follows the action words, and how often the likeliest word is the true one."""
    x = llama.history(llama.embed(batch.tokens), 0, llama.shape.layers, online.layer_weights(llama.dtype))
    logits = outcome_logits(llama, x, batch)
    return outcome_loss(logits, batch), outcome_report(logits, batch)


def dqn_loss(
    llama: FrozenLlama, words: Words, online: Lora, average: Lora, batch: AskedBatch, config: FinetuneConfig
) -> tuple[Tensor, Report]:
    """Stage two: the TD loss, and beside it a share of stage one's."""
    x, z, y = values_and_targets(llama, words, online, average, batch, config)
    logits = outcome_logits(llama, x, batch)
    loss = odds_loss(z, y, batch)
    if config.world_model:
        loss = loss + config.world_model * outcome_loss(logits, batch)
    return loss, value_report(z, y, batch) | outcome_report(logits, batch)


def values_and_targets(
    llama: FrozenLlama, words: Words, online: Lora, average: Lora, batch: AskedBatch, config: FinetuneConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass of the online network through histories and branches, and what it says about itself.

    Returns:
        x: hidden states [B, T, width]; z: float32 [B, D] at the moves that were made, both with gradient; and the TD
        targets y: float32 [B, D], without.
    """
    layers, behind = llama.shape.layers, batch.branch_behind
    below = llama.lower(batch.tokens, batch.branch_tokens, behind, config.first_adapted)
    x, branches = llama.branched(*below, behind, config.first_adapted, layers, online.layer_weights(llama.dtype))
    z = read(llama, words, config.odds, take(x, batch.read_at))
    made = z.detach()
    if config.target:
        with torch.no_grad():
            weights = average.layer_weights(llama.dtype)
            old, branches = llama.branched(*below, behind, config.first_adapted, layers, weights)
            made = read(llama, words, config.odds, take(old, batch.read_at))
    asked = read(llama, words, config.odds, branches)
    return x, z, branch_targets(made, asked, batch, config.gamma, config.trace)


def read(llama: FrozenLlama, words: Words, odds: OddsReadout, hidden: Tensor) -> Tensor:
    return odds.z(llama, hidden, words.goal, words.hole)


def outcome_logits(llama: FrozenLlama, x: Tensor, batch: AskedBatch) -> Tensor:
    """float32 [B, D, 66]: which word of the history's dictionary follows the action: a tile's, goal or hole."""
    return llama.logits(take(x, batch.read_at), batch.dictionary[:, OBSERVED])


class Means:
    """Running means of what reports say, over the steps since the last row of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, report: Report) -> None:
        for name, (values, mask) in report.items():
            total = self.sums.setdefault(name, [0.0, 0.0])
            total[0] += values[mask].sum().item()
            total[1] += mask.sum().item()

    def take(self) -> dict[str, float]:
        """The means; counting begins anew."""
        means = {name: total / count for name, (total, count) in self.sums.items() if count}
        self.sums = {}
        return means


def evaluate_in_finetuning(llama: FrozenLlama, words: Words, lora: Lora, config: FinetuneConfig) -> dict[str, float]:
    """Success on development maps, first and last ten of the paper's thirty episodes, loops cut off: a lower bound."""
    weights = lora.layer_weights(llama.dtype)
    agent = WordsAgent(llama, words, weights, config.odds, temperature=config.temperature)
    return success_on_development_maps(agent, config)
