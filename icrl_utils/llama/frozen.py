"""A frozen Llama with LoRA, written out: one function for a layer, so that one sees what is computed, and how often.

transformers and peft compute the same (the tests compare them). Here it is written out for three ways through the same
layers that they have not, and that make a language model trainable on a laptop:

    history             [B, T]            causal, with gradient
    history + branches  [B, T], [B, N]    a branch is one token that continues the history behind some position: it
                                          sees the history up to there, and itself; with gradient or without
    cache + new tokens  [n, 6]            play

Weights of the products are kept in ``dtype`` (bfloat16 where the processor multiplies it, at three to four times the
speed), residual stream, norms and the adapter's own weights in float32. Layers below the first one with an adapter need
no gradient and are the same for every network: `FrozenLlama.lower` runs them once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from icrl_utils.llama.adapters import causal_lm
from icrl_utils.llama.load import parameter_count


class Shape(NamedTuple):
    """The sizes of a Llama: ``heads`` query heads share ``kv_heads`` heads of keys and values, ``head`` wide each."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    eps: float


class Layer(NamedTuple):
    """Weights of one decoder block; products of the same input lie one below the other and are one product."""

    norm1: Tensor
    qkv: Tensor  # [(heads + 2 kv_heads) * head, width]
    o: Tensor
    norm2: Tensor
    gate_up: Tensor  # [2 * inner, width]
    down: Tensor


Pair = tuple[Tensor, Tensor]  # LoRA's A [r, in] and scale * B [out, r]: W x + scale * B A x


class LoraLayer(NamedTuple):
    """The adapter of one block, joined as `Layer` joins the weights, in the dtype of the products."""

    qkv: Pair
    o: Pair
    gate_up: Pair
    down: Pair


Adapter = dict[int, LoraLayer]  # by layer; layers that are not in it are the base's


def project(x: Tensor, weight: Tensor, pair: Pair | None) -> Tensor:
    """W x, or with an adapter W x + scale * B (A x)."""
    y = F.linear(x, weight)
    return y if pair is None else y + F.linear(F.linear(x, pair[0]), pair[1])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [B, heads, tokens, head], cos and sin [B or 1, 1, tokens, head]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def heads_of(
    x: Tensor, layer: Layer, lora: LoraLayer | None, shape: Shape, rotation: Pair
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, heads, t, head], k and v [B, kv_heads, t, head] of the residual stream x [B, t, width]."""
    dtype = layer.qkv.dtype
    y = project(F.rms_norm(x, (shape.width,), layer.norm1, shape.eps).to(dtype), layer.qkv, lora and lora.qkv)
    y = y.unflatten(-1, (-1, shape.head)).transpose(1, 2)
    q, k, v = y.split([shape.heads, shape.kv_heads, shape.kv_heads], 1)
    return rotate(q, *rotation).to(dtype), rotate(k, *rotation).to(dtype), v


def after_attention(x: Tensor, attended: Tensor, layer: Layer, lora: LoraLayer | None, shape: Shape) -> Tensor:
    """The rest of a block: output projection and feed-forward. attended [B, heads, t, head]."""
    x = x + project(attended.transpose(1, 2).flatten(2), layer.o, lora and lora.o)
    normed = F.rms_norm(x, (shape.width,), layer.norm2, shape.eps).to(layer.o.dtype)
    gate, up = project(normed, layer.gate_up, lora and lora.gate_up).chunk(2, -1)
    return x + project(F.silu(gate) * up, layer.down, lora and lora.down)


CHUNK = 192  # queries of causal attention computed together; those of a chunk need no later keys


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention. On a CPU it is written out: in bfloat16 a third of the time of torch's own, there and back."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    tokens = q.shape[2]
    q = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1))  # [B, kv_heads, groups, T, head]
    k, v = k.contiguous().unsqueeze(2), v.contiguous().unsqueeze(2)  # a strided matrix is copied at every product
    mask = torch.full((CHUNK, CHUNK), float("-inf"), dtype=q.dtype).triu(1)
    parts = []
    for first in range(0, tokens, CHUNK):
        last = min(first + CHUNK, tokens)
        score = q[..., first:last, :] @ k[..., :last, :].transpose(-1, -2)
        score = score + F.pad(mask[: last - first, : last - first], (first, 0))
        parts.append(score.softmax(-1) @ v[..., :last, :])
    return torch.cat(parts, -2).flatten(1, 2)


def of_branches(q: Tensor, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor, mask: Tensor) -> Tensor:
    """[B, heads, N, head]: each of N queries sees the keys [B, kv_heads, K, head] that ``mask``, added to the scores
    [B or 1, 1, 1, N or 1, K], lets it see, and its own key [B, kv_heads, N, head]."""
    k, v = k.contiguous(), v.contiguous()
    q = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1))  # [B, kv_heads, groups, N, head]
    seen = (q.flatten(2, 3) @ k.transpose(-1, -2)).view(*q.shape[:4], -1) + mask
    own = (q * k_own.unsqueeze(2)).sum(-1, keepdim=True)
    weight = torch.cat([seen, own], -1).softmax(-1)
    out = (weight[..., :-1].flatten(2, 3) @ v).view(q.shape) + weight[..., -1:] * v_own.unsqueeze(2)
    return out.flatten(1, 2)


class FrozenLlama(nn.Module):
    """The weights of a causal Llama, and the ways through them. Nothing here is ever trained.

    Args:
        model: as transformers loads it, plain; its weights are copied. dtype: of the products.

    Raises ValueError for a Llama with biases, which no checkpoint of the family has, and for one in 4 bits.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype = torch.float32):
        super().__init__()
        llama, config = causal_lm(model), model.config
        state = {name: tensor.detach() for name, tensor in llama.state_dict().items()}
        if strange := [name for name in state if name.endswith(".bias") or "absmax" in name]:
            raise ValueError(
                f"model has {strange[0]}: the written-out Llama has no biases and no 4-bit weights; load the base by "
                "load_llama(name, dtype=torch.float32) without quantization."
            )
        self.dtype, self.config = dtype, config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = Shape(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            head, config.intermediate_size, config.rms_norm_eps,
        )  # fmt: skip
        self.embedding = state["model.embed_tokens.weight"].float()
        self.output = self.embedding if config.tie_word_embeddings else state["lm_head.weight"].float()
        self.norm = state["model.norm.weight"].float()
        self.layers = [self._layer(state, f"model.layers.{i}.") for i in range(self.shape.layers)]
        self.parameter_count = parameter_count(model)
        self._rotary = llama.model.rotary_emb  # the checkpoint's own, so that Llama 3's scaled positions are right

    def _layer(self, state: dict[str, Tensor], prefix: str) -> Layer:
        def join(*names: str) -> Tensor:
            return torch.cat([state[f"{prefix}{name}_proj.weight"] for name in names]).to(self.dtype)

        return Layer(
            state[prefix + "input_layernorm.weight"].float(),
            join("self_attn.q", "self_attn.k", "self_attn.v"),
            join("self_attn.o"),
            state[prefix + "post_attention_layernorm.weight"].float(),
            join("mlp.gate", "mlp.up"),
            join("mlp.down"),
        )

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens int64 [...] -> float32 [..., width]."""
        return self.embedding[tokens]

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """float32 logits [B, K, R] at hidden states x [B, K, width] of the words ``rows``, int64 [R] or [B, R]: no
        other row of the output embedding takes part."""
        x = F.rms_norm(x, (self.shape.width,), self.norm, self.shape.eps)
        return x @ self.output[rows].transpose(-1, -2)

    def rotation(self, position: Tensor) -> Pair:
        """cos, sin: float32 [B or 1, 1, t, head] of int64 positions [B or 1, t]."""
        cos, sin = self._rotary(self.embedding, position)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def history(self, x: Tensor, first: int, last: int, adapter: Adapter) -> Tensor:
        """Layers first .. last - 1 of histories x [B, T, width]."""
        rotation = self.rotation(torch.arange(x.shape[1], device=self.device)[None])
        for i in range(first, last):
            layer, lora = self.layers[i], adapter.get(i)
            q, k, v = heads_of(x, layer, lora, self.shape, rotation)
            x = after_attention(x, causal(q, k, v), layer, lora, self.shape)
        return x

    def branched(
        self, x: Tensor, branches: Tensor, behind: Tensor, first: int, last: int, adapter: Adapter
    ) -> tuple[Tensor, Tensor]:
        """The same of histories x [B, T, width] and their branches [B, N, width], in one go. Branch n continues the
        history behind position behind[., n], int64 [B, N].

        Gradients flow through the histories only: what branches say is a target, never trained towards another one.
        """
        tokens = x.shape[1]
        mask = self.branch_mask(behind, tokens)
        of_history = self.rotation(torch.arange(tokens, device=self.device)[None])
        of_branch = self.rotation(behind + 1)
        for i in range(first, last):
            layer, lora = self.layers[i], adapter.get(i)
            q, k, v = heads_of(x, layer, lora, self.shape, of_history)
            with torch.no_grad():
                own = heads_of(branches, layer, lora, self.shape, of_branch)
                seen = of_branches(own[0], k.detach(), v.detach(), own[1], own[2], mask)
                branches = after_attention(branches, seen, layer, lora, self.shape)
            x = after_attention(x, causal(q, k, v), layer, lora, self.shape)
        return x, branches

    def branch_mask(self, behind: Tensor, tokens: int) -> Tensor:
        """[B, 1, 1, N, T], added to scores: branch n sees the history up to position behind[., n]."""
        hidden = torch.arange(tokens, device=self.device) > behind[:, None, None, :, None]
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill(hidden, float("-inf"))

    @torch.no_grad()
    def lower(self, tokens: Tensor, branch_tokens: Tensor, behind: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Hidden states of histories int64 [B, T] and branches [B, N] below layer ``first``, without an adapter."""
        return self.branched(self.embed(tokens), self.embed(branch_tokens), behind, 0, first, {})
