"""Training data, made as they are needed: the batch of a step is a pure function of (seed, step).

training_source -> SliceSource -> Chunks -> batches -> Batch
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from icrl_utils.dqn.replay import Batch, SliceSource, make_batch
from icrl_utils.lake.held_out import training_maps
from icrl_utils.lake.maps import TRAINING_MAPS, LakeMap, MapDistribution
from icrl_utils.llama.load import base_folder, load_history
from icrl_utils.training.configs import RunConfig, TrainConfig


class Chunks(Dataset):
    """Chunk c holds the slices of optimizer steps c * steps_per_chunk and following: a pure function of (seed, c)."""

    def __init__(self, config: RunConfig, source: SliceSource):
        self.config, self.source, self.history = config, source, source.history

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
        yield make_batch(mine.long().numpy(), data.history).to(accelerator.device)


def training_source(config: TrainConfig) -> SliceSource:
    """What makes the slices. Of the base it reads config.json and the tokenizer, and raises
    `load.load_history`'s errors about them before anything large is downloaded or allocated."""
    maps: MapDistribution | list[LakeMap] = TRAINING_MAPS
    if config.map_pool:
        maps = training_maps(TRAINING_MAPS, config.map_pool, np.random.default_rng([config.seed, 2**31]))
    if config.history == "compact":
        base_folder(config.base)  # the tiny Llama is never looked for on the Hub
    history = load_history(config.base, config.history, "base")
    return SliceSource(maps, config.behaviour, config.order, config.quality, config.relabel, config.crossing, history)
