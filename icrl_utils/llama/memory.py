"""How many bytes a real Llama will need, from shapes alone: before any download or allocation.

    print(plan("meta-llama/Llama-3.1-8B-Instruct", quantization="nf4", checkpointing=True).table())

Notation of the formulas: N = slices x slice_tokens tokens of one micro-batch, d hidden size, f intermediate size, L
layers, H heads, q = heads x head size, k = key-value heads x head size, V vocabulary, r LoRA's rank, P parameters of
one adapter, and c bytes of one activation (4 in float32, 2 in the half precisions, which run under autocast).

What the formulas leave out: token ids and other integers, rows of size 1, the CUDA context, and what the allocator
holds but does not use. `torch.cuda.max_memory_allocated` and `tools.bench.peak_bytes` do not count those two.

Attention is taken to run in a kernel that never keeps its N x N scores. Cards before Ampere (T4) have one only if keys
and values are written out for all heads first, which `attention.attention_for` asks for there. That keeps
2 c N (q - k) more for each layer (with checkpointing: for one) than predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, PreTrainedConfig

from icrl_utils.llama.adapters import check_adapter
from icrl_utils.llama.load import check_checkpoint
from icrl_utils.ranges import whole_number

GIB = 2**30
BLOCK, BLOCKS_OF_BLOCKS = 64, 256  # bitsandbytes: weights that share a scale, scales that share a scale of their own
CODES = 4 * (16 + 256 + 1)  # and per matrix two tables of code values and one offset, float32


def _llama(hidden, intermediate, layers, heads, key_value_heads, head, vocabulary, tied, **more) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_value_heads, head_dim=head, vocab_size=vocabulary, tie_word_embeddings=tied, **more,
    )  # fmt: skip


SHAPES = {  # largest first: what the ladder steps down
    "meta-llama/Llama-3.1-8B-Instruct": _llama(4096, 14336, 32, 32, 8, 128, 128_256, False),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(3072, 8192, 28, 24, 8, 128, 128_256, True),
    "meta-llama/Llama-3.2-1B-Instruct": _llama(2048, 8192, 16, 32, 8, 64, 128_256, True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _llama(960, 2560, 32, 15, 5, 64, 49_152, True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama(576, 1536, 30, 9, 3, 64, 49_152, True),
}


@dataclass(frozen=True)
class Settings:
    """What decides the memory of training and of a rollout, besides the model. Raises ValueError when unknown."""

    slices: int = 1  # in one micro-batch
    slice_tokens: int = 4096
    logit_positions: int = 0  # of a micro-batch, where the auxiliary loss reads logits of the whole vocabulary
    adapter: str = "lora"
    rank: int = 32  # LoRA's
    optimizer: str = "adamw"
    quantization: str | None = None  # "nf4": 4-bit projections with double quantization
    dtype: torch.dtype = torch.bfloat16  # of weights that are not quantized, and of activations
    checkpointing: bool = False
    maps: int = 1  # played at once in a rollout
    history_tokens: int = 4096  # of each at its end

    def __post_init__(self) -> None:
        check_adapter(self.adapter, self.rank)
        choices = {
            "optimizer": ("adamw", "muon"), "quantization": (None, "nf4"),
            "dtype": (torch.float32, torch.bfloat16, torch.float16),
        }  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {allowed}.")
        for name in ("slices", "slice_tokens", "maps", "history_tokens"):
            whole_number(name, getattr(self, name), 1)
        whole_number("logit_positions", self.logit_positions, 0)


def plan(model: str | PreTrainedConfig, **settings) -> Plan:
    """The plan of a model in ``SHAPES``, in a folder, on the Hub (reads its config.json only), or of a config.

    Raises ValueError for settings that do not exist, see `Settings`, and the errors of `load.check_checkpoint`.
    """
    known = [f.name for f in fields(Settings)]
    if unknown := settings.keys() - set(known):
        raise ValueError(f"settings {', '.join(sorted(unknown))} are unknown; choose among {', '.join(known)}.")
    if isinstance(model, PreTrainedConfig):
        return Plan(model, Settings(**settings))
    config = SHAPES.get(model) or LlamaConfig.from_dict(check_checkpoint(model, "model"))
    return Plan(config, Settings(**settings), str(model))


@dataclass(frozen=True)
class Plan:
    """Predicted bytes, all properties ints."""

    config: PreTrainedConfig = field(repr=False)
    settings: Settings
    name: str = "this model"

    # -- shapes

    @property
    def _head(self) -> int:
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def _widths(self) -> tuple[int, int, int, int]:
        """d, f, q, k"""
        c = self.config
        q, k = c.num_attention_heads * self._head, c.num_key_value_heads * self._head
        return c.hidden_size, c.intermediate_size, q, k

    @property
    def _projections(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of q, k, v, o, gate, up and down in one layer."""
        d, f, q, k = self._widths
        return [(d, q), (d, k), (d, k), (q, d), (d, f), (d, f), (f, d)]

    @property
    def projection_weights(self) -> int:
        """Number of weights in the projections of all layers."""
        return self.config.num_hidden_layers * sum(map(math.prod, self._projections))

    @property
    def _tokens(self) -> int:
        return self.settings.slices * self.settings.slice_tokens

    # -- what stays

    @property
    def weights(self) -> int:
        """c (V d [twice if embedding and head are not tied] + (2 L + 1) d) + L x projections.

        A projection of n = inputs x outputs weights takes c n bytes; in nf4 n / 2, one byte for each 64 weights (the
        quantized scale of a block), 4 bytes for each 256 such blocks, and 1,092 bytes of tables. Embedding, head and
        norms are not quantized.
        """
        config, size, d = self.config, self.settings.dtype.itemsize, self._widths[0]
        rows = config.vocab_size * (1 if config.tie_word_embeddings else 2)
        outside = size * d * (rows + 2 * config.num_hidden_layers + 1)
        return outside + config.num_hidden_layers * sum(self._matrix(n) for n in map(math.prod, self._projections))

    def _matrix(self, n: int) -> int:
        if self.settings.quantization is None:
            return self.settings.dtype.itemsize * n
        blocks = math.ceil(n / BLOCK)
        return math.ceil(n / 2) + blocks + 4 * math.ceil(blocks / BLOCKS_OF_BLOCKS) + CODES

    @property
    def adapter_parameters(self) -> int:
        """P of one adapter. LoRA: L r (inputs + outputs) over the seven projections. IA3: L (2 k + f)."""
        _, f, _, k = self._widths
        if self.settings.adapter == "ia3":
            return self.config.num_hidden_layers * (2 * k + f)
        return self.config.num_hidden_layers * self.settings.rank * sum(map(sum, self._projections))

    @property
    def adapters(self) -> int:
        """8 P: online and target, float32 whatever the base is."""
        return 8 * self.adapter_parameters

    @property
    def gradients(self) -> int:
        """4 P: of the online adapter. From the second micro-batch on all of it is there during the backward pass."""
        return 4 * self.adapter_parameters

    @property
    def optimizer(self) -> int:
        """8 P: AdamW's two averages. 4 P: Muon's momentum; IA3's vectors are AdamW's even then."""
        one_average = self.settings.optimizer == "muon" and self.settings.adapter == "lora"
        return (4 if one_average else 8) * self.adapter_parameters

    @property
    def resident(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer

    # -- one micro-batch

    @property
    def saved_layer(self) -> int:
        """What autograd keeps of one decoder layer whose input has a gradient.

        - Two RMSNorms: their inputs in float32 and a root mean square per token, 2 (4 N d + 4 N). In float32 the
          input is the residual stream itself; in half precision it is an extra copy.
        - Attention: rotated queries and keys, values, the result, c N (2 q + 2 k), and a log-sum-exp per token and
          head, 4 N H. Never the N x N scores: SDPA computes them again.
        - SwiGLU: gate, silu(gate) and up, 3 c N f.
        - LoRA: the inputs of the seven A, and their outputs, 7 c N r. q, k and v share one input, so do gate and up,
          o's is the attention's result: c N (2 d + f). Where peft casts inputs to float32 and autocast casts them back
          (half precision without 4 bit) each A has a copy of its own: c N (5 d + q + f). Half precision also keeps
          A and B in it, c P / L.
        - IA3: what it scales: c N 2 k and down's input, N f of c bytes (float32 where peft casts it).

        Frozen projections keep nothing: the gradient of their input needs only their weights.
        """
        s, n, c = self.settings, self._tokens, self.settings.dtype.itemsize
        d, f, q, k = self._widths
        half, quantized = c < 4, s.quantization is not None
        norms = 2 * (4 * n * d + 4 * n)
        attention = c * n * (2 * q + 2 * k) + 4 * n * self.config.num_attention_heads
        swiglu = 3 * c * n * f
        if s.adapter == "ia3":
            adapter = c * n * 2 * k + (c if quantized else 4) * n * f
        else:
            own_copies = half and not quantized
            adapter = c * n * ((5 * d + q if own_copies else 2 * d) + f + 7 * s.rank)
            adapter += c * self.adapter_parameters // self.config.num_hidden_layers if half else 0
        return norms + attention + swiglu + adapter

    @property
    def saved(self) -> int:
        """What is kept when the backward pass reaches the last layer: L x `saved_layer` and the rotary cosines and
        sines, 2 c slice_tokens x head size. Less the first norm's share: the embedding is frozen.

        With checkpointing: the L layers' inputs, c N d each, and `saved_layer` of the one layer that is computed
        again. In float32 its first norm keeps the layer's input itself, which is not counted twice.
        """
        n, c, layers, d = self._tokens, self.settings.dtype.itemsize, self.config.num_hidden_layers, self._widths[0]
        rotary = 2 * c * self.settings.slice_tokens * self._head
        if self.settings.checkpointing:
            return layers * c * n * d + self.saved_layer + rotary - (4 * n * d if c == 4 else 0)
        return layers * self.saved_layer + rotary - 4 * n * d - 4 * n

    @property
    def working(self) -> int:
        """What is needed besides `saved` at the moment when most is alive: in the SwiGLU of the last layer.

        - Backward: the residual stream's gradient, c N d, and three tensors N x f: LoRA's and the frozen projection's
          gradients of down's input and their sum, and next the gradients of the product, silu(gate) and up. By then
          LoRA has released down's input, c N f. IA3 has not, and its gradients are float32.
        - Backward in 4 bits: down's whole matrix, c d f, and its scales, 4 bytes for each 64 weights, beside two of
          those three tensors.
        - Forward, where peft casts inputs to float32: down's input as it was and in float32, 6 N f, and seven tensors
          of c N d: embedding, layer input, residual stream, its norm, and the projection's, LoRA's and its scaled
          result. When a checkpointed layer is computed again, four: residual stream and its gradient, norm, result.
        """
        s, n, c = self.settings, self._tokens, self.settings.dtype.itemsize
        d, f, _, _ = self._widths
        if s.adapter == "ia3":
            backward, beside_matrix = 12 * n * f, 2 * c * n * f
        else:
            backward, beside_matrix = 2 * c * n * f, c * n * f
        matrix = beside_matrix + c * d * f + 4 * math.ceil(d * f / BLOCK) if s.quantization else 0
        casts = s.adapter == "lora" and c < 4 and not s.quantization
        forward = 6 * n * f + (3 if s.checkpointing else 6) * c * n * d if casts else 0
        return c * n * d + max(backward, matrix, forward)

    @property
    def logits(self) -> int:
        """16 V bytes at each logit position: float32 logits, their log-softmax, and the gradients of both. Q-values
        need none of it: they are read from four rows, at decisions only."""
        return 16 * self.settings.logit_positions * self.config.vocab_size

    @property
    def step(self) -> int:
        """Peak of a training step: `resident` and the most of `saved` and `working`, the logits (with the last norm's
        input and output beside them), or the optimizer's square roots, 4 P."""
        last_norm = (4 + self.settings.dtype.itemsize) * self._tokens * self._widths[0]
        moments = [self.saved + self.working, 4 * self.adapter_parameters]
        if self.logits:
            moments.append(self._saved_after_forward + last_norm + self.logits)
        return self.resident + max(moments)

    @property
    def _saved_after_forward(self) -> int:
        """`saved`, before the backward pass has computed a checkpointed layer again."""
        if not self.settings.checkpointing:
            return self.saved
        return self.config.num_hidden_layers * self.settings.dtype.itemsize * self._tokens * self._widths[0]

    # -- rollout

    @property
    def cache(self) -> int:
        """Keys and values, 2 c maps x tokens x k in each layer, in buffers that double when they are full: at worst
        twice what is in them."""
        s = self.settings
        return 4 * s.dtype.itemsize * s.maps * s.history_tokens * self._widths[3] * self.config.num_hidden_layers

    @property
    def attention(self) -> int:
        """2 c maps x tokens x q: keys and values of one layer, written out for all heads where heads share them; where
        they do not, the old buffers of one layer beside its new ones."""
        s = self.settings
        return 2 * s.dtype.itemsize * s.maps * s.history_tokens * self._widths[2]

    @property
    def rollout(self) -> int:
        """Peak of a rollout between two training steps: there are no gradients then, but the optimizer's state."""
        return self.resident - self.gradients + self.cache + self.attention

    @property
    def peak(self) -> int:
        return max(self.step, self.rollout)

    # -- answers

    def table(self) -> str:
        """All terms, in GiB, as text."""
        s = self.settings
        rows = [
            ("weights", self.weights),
            ("adapters, online and target", self.adapters),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            (f"kept for the backward pass, {s.slices} x {s.slice_tokens:,} tokens", self.saved),
            ("worked with in one layer", self.working),
            (f"logits at {s.logit_positions:,} positions", self.logits),
            ("TRAINING STEP, PEAK", self.step),
            (f"key-value cache, {s.maps} x {s.history_tokens:,} tokens", self.cache),
            ("keys and values of one layer besides", self.attention),
            ("ROLLOUT, PEAK", self.rollout),
        ]
        lines = [f"{label:<52}{size / GIB:>9.3f} GiB" for label, size in rows]
        return "\n".join([f"{self.name}: {self._how()}", *lines])

    def _how(self) -> str:
        s = self.settings
        adapter = f"LoRA rank {s.rank}" if s.adapter == "lora" else "IA3"
        dtype = str(s.dtype).removeprefix("torch.")
        measures = [dtype, s.quantization, adapter, s.optimizer, "checkpointing" if s.checkpointing else None]
        return ", ".join(filter(None, measures))

    def ladder(self) -> Iterator[tuple[str, Plan]]:
        """What to give up when memory is short, least painful first: (measure, plan with it and all before it).
        Measures that would not lower the peak are left out."""
        s, best = self.settings, self
        measures = [
            ("micro-batches of 1 slice", {"slices": 1, "logit_positions": math.ceil(s.logit_positions / s.slices)}),
            ("activation checkpointing", {"checkpointing": True}),
            ("1 map at a time in rollouts", {"maps": 1}),
            ("4-bit weights (nf4)", {"quantization": "nf4"}),
            (f"slices of {s.slice_tokens // 2:,} tokens", {"slice_tokens": s.slice_tokens // 2}),
            ("LoRA of rank 8", {"rank": min(8, s.rank)}),
        ]
        rungs: list[tuple[str, dict[str, Any]]] = [(text, {"settings": change}) for text, change in measures]
        rungs += [(f"the smaller model {name}", {"config": c, "name": name}) for name, c in SHAPES.items()]
        for text, change in rungs:
            if "settings" in change:
                change = {"settings": replace(best.settings, **change["settings"])}
            if (candidate := replace(best, **change)).peak < best.peak:
                best = candidate
                yield text, best

    def next_rung(self, available: float) -> tuple[str, Plan] | None:
        """The first rung of the ladder that fits into ``available`` bytes, its measures joined; None: no rung does."""
        measures = []
        for text, candidate in self.ladder():
            measures.append(text)
            if candidate.peak <= available:
                return ", ".join(measures), candidate
        return None


def check_memory(plan: Plan, available: float) -> None:
    """Raises ValueError with the plan's table and the next rung when ``plan`` needs more than ``available`` bytes."""
    if plan.peak <= available:
        return
    rung = plan.next_rung(available)
    step = f"{rung[0]} (peak {rung[1].peak / GIB:.2f} GiB)" if rung else "more memory: no rung of the ladder fits"
    raise ValueError(
        f"too little memory for the plan: it needs {plan.peak / GIB:.2f} GiB, {available / GIB:.2f} GiB are "
        f"there.\n{plan.table()}\nNext step: {step}."
    )


def check_main_memory(needed: float, what: str) -> None:
    """Raises ValueError where ``what`` needs more bytes than main memory has left. A CPU can swap, but not work so."""
    if needed > (free := psutil.virtual_memory().available):
        raise ValueError(
            f"too little memory: {what} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; close other "
            "programs, or name a smaller model."
        )
