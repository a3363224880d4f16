"""What a way to write histories must be able to do, and what it asks of a tokenizer: two protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from icrl_utils.history.episodes import Decisions, Episode


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers, which histories get along without."""

    @property
    def unk_token_id(self) -> int | None: ...

    def __len__(self) -> int: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> Any: ...


class HistoryText(Protocol):
    """One text format; `icrl_utils.history.format.HistoryFormat` checks arguments, and explains names and methods."""

    separator: str  # between episodes
    vocab_size: int
    action_ids: np.ndarray
    min_step_tokens: int
    observation_header: np.ndarray | None

    def render_episode(self, episode: Episode) -> str: ...

    def parse(self, text: str) -> list[Episode]: ...

    def tokenize(self, text: str) -> np.ndarray: ...

    def encode_action(self, action: int) -> np.ndarray:
        """int64, the tokens that an action adds whose result is not known yet."""

    def encode_steps(self, action: np.ndarray, tile: np.ndarray, outcome: np.ndarray) -> np.ndarray: ...

    def join_steps(self, steps: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `encode_steps`, one episode beginning at each of ``starts`` -> ids and offsets, see
        `HistoryFormat.encode_episodes`."""

    def decisions(self, ids: np.ndarray) -> Decisions: ...

    def tiles(self, ids: np.ndarray, position: np.ndarray) -> np.ndarray: ...
