"""Which attention kernel a Llama runs in, through transformers' public registries.

``"sdpa"`` is torch's scaled dot-product attention. Where query heads share keys and values, the library asks torch to
let them. Only flash attention can: on cards from Ampere on, in half precision. Elsewhere torch falls back, without a
word, to the kernel that keeps all N x N scores. `SEPARATE_HEADS` writes keys and values out for all heads instead.

The one private name used here is ``config._attn_implementation``, the only place where a model says what it runs in.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from icrl_utils.hardware import has_ampere

SEPARATE_HEADS = "sdpa_separate_heads"


def separate_heads(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_,
) -> tuple[Tensor, None]:
    """Attention of query [B, heads, N, c] over key and value [B, key-value heads, M, c] -> [B, N, heads, c].

    Without a mask every token sees itself and all earlier ones.
    """
    share = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(share, dim=1) for states in (key, value))
    causal = attention_mask is None and query.shape[2] > 1
    attended = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout, causal, scale=scaling)
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(SEPARATE_HEADS, separate_heads)
AttentionMaskInterface.register(SEPARATE_HEADS, AttentionMaskInterface()["sdpa"])


def attention_for(device: torch.device, dtype: torch.dtype) -> str:
    """The kernel to load a model with: the fastest on ``device`` that never keeps all scores."""
    shares = device.type != "cuda" or (dtype != torch.float32 and has_ampere(device))
    return "sdpa" if shares else SEPARATE_HEADS


def attention_of(model: nn.Module) -> str:
    """The kernel that ``model`` runs in."""
    return cast(PreTrainedConfig, model.config)._attn_implementation


def check_attention(model: nn.Module) -> None:
    """Raises ValueError if ``model`` does not take bool masks [n, 1, new tokens, tokens]."""
    if attention_of(model) not in ("sdpa", SEPARATE_HEADS):
        raise ValueError(f"model uses attn_implementation={attention_of(model)!r}; load it with 'sdpa'.")
