"""Which optimizer gets which weights, and how the learning rate moves."""

from __future__ import annotations

import math

import torch
from torch import nn

from icrl_utils.training.configs import FinetuneConfig, RunConfig


def make_optimizers(
    model: nn.Module, kind: str, lr_matrix: float, lr_other: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """``muon``: Muon for the matrices between embedding and head, AdamW for the rest. ``adamw``: AdamW for all.

    ``lr_matrix`` is the learning rate of those matrices, ``lr_other`` that of the rest. Decay pulls to 0, which is the
    identity of neither a norm nor an IA3 scale: only matrices decay, and with ``muon`` only the inner ones.
    """
    if kind not in ("muon", "adamw"):
        raise ValueError(f"optimizer={kind!r} is unknown; choose 'muon' or 'adamw'.")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {name: p for name, p in trainable.items() if p.ndim == 2 and min(p.shape) > 1}
    inner = [p for name, p in matrices.items() if "embed" not in name and "lm_head" not in name]
    outer = [p for name, p in matrices.items() if "embed" in name or "lm_head" in name]
    vectors = [p for name, p in trainable.items() if name not in matrices]
    muon, adamw = torch.optim.Muon, torch.optim.AdamW
    if kind == "muon":
        groups = [(muon, inner, lr_matrix, weight_decay), (adamw, outer + vectors, lr_other, 0.0)]
    else:
        groups = [(adamw, inner, lr_matrix, weight_decay), (adamw, outer, lr_other, weight_decay)]
        groups += [(adamw, vectors, lr_other, 0.0)]
    return [optimizer(parameters, lr, weight_decay=decay) for optimizer, parameters, lr, decay in groups if parameters]


def learning_rate_factor(step: int, config: RunConfig) -> float:
    """Factor of the learning rate after ``step`` steps: linear warm-up, then 1 or a cosine to zero at the last step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def two_stage_factor(step: int, config: FinetuneConfig) -> float:
    """The same for `finetune`: a warm-up in both stages, then 1, and in the last share ``decay`` of DQN's steps, with
    the schedule ``linear``, evenly down to a tenth: small steps average out the noise of large ones."""
    in_stage = step if step < config.stage_one else step - config.stage_one
    rising = min(1.0, (in_stage + 1) / max(1, config.warmup))
    falling = config.decay * (config.steps - config.stage_one)
    if config.schedule == "constant" or not falling:
        return rising
    return rising * min(1.0, 0.1 + 0.9 * (config.steps - step) / falling)
