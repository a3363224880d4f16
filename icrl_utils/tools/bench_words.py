"""Fine-tuning a language model in its own words against the straightforward way: ``python -m icrl_utils bench
finetune``.

The shape of SmolLM2-135M with random weights: time does not depend on what a model has learnt. Process time counts, not
wall time, so that other processes disturb little.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from icrl_utils.dqn.branches import NOTHING, AskedBatch, make_asked_batch
from icrl_utils.dqn.replay import SliceSource
from icrl_utils.hardware import faster_in_bfloat16, matmul_peak
from icrl_utils.history.compact import COMPACT_WORDS, FIRST_ACTION, GOAL_WORD, HOLE_WORD, OBSERVED
from icrl_utils.history.words import Words
from icrl_utils.lake.maps import TRAINING_MAPS
from icrl_utils.llama.adapters import PROJECTIONS, TARGET
from icrl_utils.llama.frozen import FrozenLlama
from icrl_utils.llama.lora import Lora
from icrl_utils.llama.memory import SHAPES
from icrl_utils.llama.readout import take
from icrl_utils.play.collect import Behaviour
from icrl_utils.profiles import Profile
from icrl_utils.training.configs import FinetuneConfig
from icrl_utils.training.finetuning import dqn_loss, prediction_loss

SMOLLM2 = SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"]
SMALL = LlamaConfig(
    vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, tie_word_embeddings=True,
)  # fmt: skip
RANK = 16


def bench_finetune(profile: Profile | None = None, seed: int = 0) -> dict[str, float]:
    """Tokens a second of both stages, ours in float32 and in the faster precision, against transformers and peft.

    Straightforward is: float32, logits of the whole vocabulary at every position, three branches at every decision
    under one attention mask, the target network a second adapter that is run whole. The update is AdamW's in all.

    Returns:
        ``stage_one`` and ``dqn`` (ours, tokens a second of process time), ``times_stage_one`` and ``times_dqn`` (as
        many times as straightforward), ``of_peak`` (DQN's share of the matmul peak of one thread, at 4 operations per
        weight and token: forward, and backward to the activations).
    """
    small = profile is not None and profile.name == "smoke"
    shape, slices, tokens = (SMALL, 2, 64) if small else (SMOLLM2, 2, 384)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape).eval()
    batch, every = (random_batch(shape.vocab_size, slices, tokens, asked, seed) for asked in (0.5, 1.0))
    size, fast = slices * tokens, torch.bfloat16 if faster_in_bfloat16("cpu") else torch.float32
    rates = {}
    for name, steps in {
        "straightforward": straightforward(model, every),
        "ours, float32": ours(model, batch, torch.float32),
        "ours": ours(model, batch, fast),
    }.items():
        rates[name] = [size / process_seconds(step) for step in steps]
    weights = sum(p.numel() for p in model.parameters())
    result = {
        "stage_one": rates["ours"][0],
        "dqn": rates["ours"][1],
        "times_stage_one": rates["ours"][0] / rates["straightforward"][0],
        "times_dqn": rates["ours"][1] / rates["straightforward"][1],
        "of_peak": rates["ours"][1] * 4 * weights / matmul_peak("cpu", fast),
    }
    for name, (one, two) in rates.items():
        print(f"finetune, {name}: {one:,.0f} tokens/s in stage one, {two:,.0f} in DQN (process time)")
    print(
        f"finetune: {result['times_stage_one']:.1f} and {result['times_dqn']:.1f} times straightforward; DQN at "
        f"{result['of_peak']:.0%} of the matmul peak of {torch.get_num_threads()} threads in {str(fast)[6:]}"
    )
    return result


def process_seconds(step: Callable[[], object], repeats: int = 2) -> float:
    """The least process time of a call, after one that warms up."""
    step()
    spent = []
    for _ in range(repeats):
        begin = time.process_time()
        step()
        spent.append(time.process_time() - begin)
    return min(spent)


def random_batch(vocabulary: int, slices: int, tokens: int, asked: float, seed: int) -> AskedBatch:
    """Real play on training lakes, in random words."""
    rng, source = np.random.default_rng(seed), SliceSource(TRAINING_MAPS, Behaviour())
    dictionary = np.stack([rng.choice(vocabulary, len(COMPACT_WORDS), replace=False) for _ in range(slices)])
    return make_asked_batch(source.slices(slices, tokens, rng), dictionary, source.history, asked, rng)


class _TwoWords:
    """The words that the read-out needs."""

    def __init__(self, batch: AskedBatch):
        self.goal, self.hole = (int(batch.dictionary[0, word]) for word in (GOAL_WORD, HOLE_WORD))


def ours(model: LlamaForCausalLM, batch: AskedBatch, dtype: torch.dtype) -> list[Callable[[], None]]:
    """A step of stage one and one of DQN, as `finetune` makes them."""
    llama, config, words = FrozenLlama(model, dtype), FinetuneConfig(rank=RANK), _TwoWords(batch)
    online = Lora(llama.shape, range(llama.shape.layers), RANK).requires_grad_()
    update = _updater(online.parameters())

    def dqn() -> None:
        update(dqn_loss(llama, cast(Words, words), online, online, batch, config)[0])

    return [lambda: update(prediction_loss(llama, online, batch)[0]), dqn]


def straightforward(model: LlamaForCausalLM, batch: AskedBatch) -> list[Callable[[], None]]:
    """The same two steps by transformers and peft alone."""
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(PROJECTIONS))
    peft = get_peft_model(copy.deepcopy(model), config)
    peft.add_adapter(TARGET, config)
    peft.set_adapter("default")
    update = _updater([p for p in peft.parameters() if p.requires_grad])
    ids, (rows, tokens) = batch.tokens, batch.batch.ids.shape
    outcome = torch.tensor(OBSERVED)[batch.outcome.clamp(min=0)]  # compact ids
    label = torch.where(batch.outcome >= 0, batch.dictionary.gather(1, outcome), NOTHING)
    moves = (batch.batch.action[:, :, None] + torch.arange(1, 4)) % 4  # three branches at every decision
    behind = batch.batch.position[:, :, None].expand(-1, -1, 3).reshape(rows, -1)
    branches = batch.dictionary.gather(1, FIRST_ACTION + moves.flatten(1))
    place = torch.cat([torch.arange(tokens).expand(rows, -1), behind + 1], 1)
    n = tokens + branches.shape[1]
    seen = torch.zeros(rows, 1, n, n, dtype=torch.bool)
    seen[:, :, :tokens, :tokens] = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    seen[:, 0, tokens:, :tokens] = torch.arange(tokens) <= behind[:, :, None]
    seen[:, :, tokens:, tokens:] = torch.eye(n - tokens, dtype=torch.bool)

    def logits() -> Tensor:
        return take(peft(input_ids=ids, use_cache=False).logits, batch.read_at)

    def prediction(z: Tensor) -> Tensor:
        return F.cross_entropy(z.flatten(0, 1), label.flatten(), ignore_index=NOTHING)

    def dqn() -> None:
        peft.set_adapter(TARGET)
        with torch.no_grad():
            both = torch.cat([ids, branches], 1)
            peft(input_ids=both, position_ids=place, attention_mask=seen, use_cache=False)
        peft.set_adapter("default")
        found = logits()
        z = found[..., 0] - found[..., 1]
        update(F.binary_cross_entropy_with_logits(z, torch.zeros_like(z)) + 0.1 * prediction(found))

    return [lambda: update(prediction(logits())), dqn]


def _updater(parameters: list) -> Callable[[Tensor], None]:
    optimizer = torch.optim.AdamW(parameters, 1e-4)

    def update(loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update
