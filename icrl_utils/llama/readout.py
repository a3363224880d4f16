"""Read Q(history, action) for the four actions, at the decisions and nowhere else, out of a Llama.

The logit of an action word at the position just before it is read as that action's value. Only four rows of the
output embedding and only the hidden states at decisions take part: the 128,256 x tokens logits of a full forward
pass are never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from icrl_utils.llama.adapters import backbone, bare_backbone, causal_lm, folded_weights
from icrl_utils.llama.frozen import FrozenLlama


@dataclass(frozen=True)
class QReadout:
    """From an action word's logit to a Q-value: z = scale * logit - offset, then Q = sigmoid(z) or Q = z.

    A pretrained logit is not a return: it may sit near +22 where returns lie in [0, 1]. One positive scale and one
    offset, the same for all four actions, put it in range without ever changing which action is greedy.
    """

    link: str = "sigmoid"  # "sigmoid" goes with the bce loss, "identity" with mse
    scale: float = 1.0
    offset: float = 1.0

    def __post_init__(self):
        if self.link not in ("sigmoid", "identity"):
            raise ValueError(f"link={self.link!r} is unknown; choose 'sigmoid' or 'identity'.")
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale!r} must be positive: a negative one would reverse the greedy action.")

    def z(self, logits: Tensor) -> Tensor:
        """float32 read-out before the link function, any shape."""
        return self.scale * logits.float() - self.offset

    def q(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z) if self.link == "sigmoid" else z


def action_logits(hidden: Tensor, lm_head: nn.Linear, action_ids: Tensor) -> Tensor:
    """hidden [..., d] times the four action rows of the output embedding -> [..., 4]."""
    return hidden @ lm_head.weight[action_ids].to(hidden.dtype).T


class QNetwork(nn.Module):
    """The module that training calls (and that data-parallel training wraps): token ids in, z at decisions out.

    Args:
        model: a causal Llama, plain or with adapters (the active one counts). action_ids: int [4].
        fold: compute with the adapter folded into the weights; faster for a small float32 model, see `folded_weights`.
    """

    action_ids: Tensor

    def __init__(self, model: nn.Module, action_ids: np.ndarray | Tensor, readout: QReadout, fold: bool = False):
        super().__init__()
        self.model = model
        self.readout = readout
        self.register_buffer("action_ids", torch.as_tensor(action_ids), persistent=False)
        self._bare = (bare_backbone(model),) if fold else None  # in a tuple: a submodule would be trained and wrapped

    def forward(self, ids: Tensor, position: Tensor, observation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            ids: int64 [B, T] token ids. position: int64 [B, D] decisions (padding may repeat any position).
            observation: int64 [B, K] positions whose next token is an observation word, for the auxiliary loss.
        Returns:
            z: float32 [B, D, 4]; and, if asked for, next-token logits [B, K, vocabulary].
        """
        hidden = self._hidden(ids)
        lm_head = causal_lm(self.model).lm_head
        z = self.readout.z(action_logits(take(hidden, position), lm_head, self.action_ids))
        return z, None if observation is None else lm_head(take(hidden, observation))

    def _hidden(self, ids: Tensor) -> Tensor:
        """Hidden states [B, T, d] after the last layer. No position ids: any that do not rise by one at each token
        would make the library hide the episodes of a history from each other."""
        inputs = {"input_ids": ids, "use_cache": False}
        if self._bare:
            return functional_call(self._bare[0], folded_weights(self.model), (), inputs).last_hidden_state
        return backbone(self.model)(**inputs).last_hidden_state


def take(hidden: Tensor, position: Tensor) -> Tensor:
    """hidden [B, T, d] at position [B, D] -> [B, D, d]."""
    return hidden.gather(1, position.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


@dataclass(frozen=True)
class OddsReadout:
    """The value of a move, read *after* its action word: how much likelier is the word goal than the word hole?

        z = scale * (logit of goal - logit of hole) - offset, Q(history, a) = sigmoid(z) behind the word of a

    Read before the move, four logits have to look up four outcomes at once. After the action word the model only has to
    continue a text, which is what language models do; and the log-odds are a value of one move before any reinforcement
    learning: a seen goal is likely, a seen hole is not. The offset says that little else is worth anything yet.
    """

    scale: float = 0.5
    offset: float = 2.0

    def __post_init__(self):
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale!r} must be positive: a negative one would prefer holes.")

    def z(self, llama: FrozenLlama, hidden: Tensor, goal: int, hole: int) -> Tensor:
        """float32 [B, K] of hidden states [B, K, width] at action words; ``goal`` and ``hole`` are tokens."""
        row = llama.output[goal] - llama.output[hole]
        normed = F.rms_norm(hidden, (llama.shape.width,), llama.norm, llama.shape.eps)
        return self.scale * (normed @ row) - self.offset
