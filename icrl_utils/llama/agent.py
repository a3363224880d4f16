"""The Llama as a policy: many histories in lock-step, one forward pass per step, a choice among four Q-values.

Each step appends a few tokens to every history (two in the compact format). Keys and values of all earlier tokens
are kept in buffers that double when they are full, so that no step copies them. Which earlier tokens a history may
still see is decided per row by a mask: rotary positions are relative, so a hidden prefix is as good as a cleared
context, without moving anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig

from icrl_utils.history.episodes import RESET
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.maps import TileGame
from icrl_utils.llama.adapters import (
    ONLINE,
    adapter_parameters,
    backbone,
    causal_lm,
    keep_dtype,
    never_repack,
)
from icrl_utils.llama.attention import check_attention
from icrl_utils.llama.cache import CACHE_ARGUMENT, GrowingCache
from icrl_utils.llama.load import CONTEXT, checkpoint_id, load_history, load_llama
from icrl_utils.llama.readout import OddsReadout, QReadout, action_logits
from icrl_utils.llama.words_agent import WordsAgent, load_words_agent
from icrl_utils.paths import ASSETS, ROOT, config_sha256, file_sha256, in_repository, read_json
from icrl_utils.play.policy import PATIENCE, Choice, Step, check_started, check_temperature
from icrl_utils.ranges import whole_number
from icrl_utils.versions import check_repository

CACHE_BYTES = 2**30  # keys and values of all maps played at once
TYPICAL_TOKENS = 3_000  # of a history at the end of thirty episodes: between a good agent's 600 and 6,060 for loops


def maps_at_once(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Maps whose keys and values in ``dtype`` fit into ``CACHE_BYTES`` at ``TYPICAL_TOKENS`` tokens per history."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * dtype.itemsize
    return max(1, CACHE_BYTES // (per_token * TYPICAL_TOKENS))


class Agent:
    """A causal Llama that plays: it reads its history and chooses an action by four Q-values.

    Q(history, a) = link(z_a), z_a = scale * logit of a's word - offset at the last token of the history (see
    ``QReadout``). The action is drawn from a softmax of z, see ``Choice``. Behind the sigmoid link z is about log Q if
    Q is small: which of two moves is drawn depends on the *ratio* of their values, so a seen hole hardly ever is.

    Args:
        model: a ``LlamaForCausalLM``, plain or wrapped by peft (its active adapter plays). It is used, not copied: a
            training run can evaluate the very model that it trains.
        format: how histories are written; ``readout``: from logits to Q.
        memory: False is the memory-less baseline: the same model, its context cleared at every episode.
        name: in records; by default ``agent`` or ``memory-less``.
        max_tokens: a longer history loses whole oldest episodes, which is said once. Tokens that stay have seen the
            dropped ones: their keys and values are not recomputed.
        training_seed: in records; the seed of the training run that made the weights, None for a live one.
        temperature: of the choice after ``patience`` moves of an episode, in units of z; 0 is greedy play.
    """

    def __init__(
        self,
        model: nn.Module,
        format: HistoryFormat,
        readout: QReadout,
        memory: bool = True,
        name: str | None = None,
        max_tokens: int = CONTEXT,
        training_seed: int | None = None,
        temperature: float = 0.0,
        patience: int = PATIENCE,
    ):
        check_temperature(temperature)
        self.patience = whole_number("patience", patience, 1)
        check_attention(model)
        self.model, self.format, self.readout, self.memory = never_repack(model), format, readout, memory
        self.name = name if name is not None else "agent" if memory else "memory-less"
        self.max_tokens, self.training_seed = max_tokens, training_seed
        self.temperature = temperature
        self._choice: Choice | None = None  # before `start`
        self._reset_id = int(format.tokenize("reset")[0]) if format.name == "compact" else -1
        self._warned = False

    @property
    def device(self) -> torch.device:
        return causal_lm(self.model).lm_head.weight.device

    @property
    def batch_maps(self) -> int:
        return maps_at_once(causal_lm(self.model).config, causal_lm(self.model).lm_head.weight.dtype)

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        n, self._choice = len(maps), Choice(self.temperature, rngs, self.patience)
        self._cache = GrowingCache()
        # For every cached token the episode that it belongs to, -1 for padding; a row sees the episodes >= oldest.
        self._episode = torch.empty((n, 0), dtype=torch.int16, device=self.device)
        self._now = torch.full((n,), -1, dtype=torch.int16, device=self.device)
        self._oldest = torch.zeros(n, dtype=torch.int16, device=self.device)
        self._position = torch.zeros(n, dtype=torch.int64, device=self.device)

    def act(self, step: Step) -> np.ndarray:
        choice = check_started(self, self._choice)
        return choice(self.append(step).cpu().numpy(), step)

    def append(self, step: Step) -> Tensor:
        """Append one step to all histories: float32 [n, 4], the read-out z (before the link) at their ends."""
        check_started(self, self._choice)
        ids = torch.from_numpy(self.format.encode_steps(*step)).to(self.device)
        self._now += torch.from_numpy(step.action == RESET).to(self._now)
        # In the compact text `reset` closes the episode before it (at the very first step there is none).
        closes_episode = (ids == self._reset_id).to(torch.int16)
        episode = torch.where(ids >= 0, self._now[:, None] - closes_episode, -1)
        used = (episode >= 0).any(0)
        return self._read(self._extend(ids[:, used], episode[:, used]))

    def recall(self, histories: Sequence[np.ndarray]) -> None:
        """Right after ``start``: begin with these histories, int64 token ids [T] each, possibly none.

        They are finished episodes as ``format.render`` tells them; the next step begins a new one. To the agent all of
        a given history counts as one episode: one that does not fit into ``max_tokens`` is dropped whole.
        """
        check_started(self, self._choice)
        longest = max(map(len, histories))
        padded = np.full((len(histories), longest), -1)
        for row, told in zip(padded, histories, strict=True):
            told = told[:-1] if len(told) and told[-1] == self._reset_id else told  # the next step writes it
            row[: len(told)] = told
        ids = torch.from_numpy(padded).to(self.device)
        self._now += (ids >= 0).any(1)  # a row without a history begins as ever
        if longest:
            self._extend(ids, torch.where(ids >= 0, self._now[:, None], -1))

    def _extend(self, ids: Tensor, episode: Tensor) -> Tensor:
        """Append ids [n, new] to the histories: hidden states [n, d] at the last real token of each.

        episode: int16 [n, new], the episode of each token, -1 for padding.
        """
        self._episode = torch.cat([self._episode, episode], 1)
        self._forget()
        count = (episode >= 0).cumsum(1)
        position = self._position[:, None] + count - 1
        self._position += count[:, -1]
        hidden = self._forward(ids.clamp(min=0), position.clamp(min=0), self._mask(ids.shape[1]))
        return hidden[torch.arange(len(ids), device=self.device), count.argmax(1)]  # the first of the largest counts

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._choice).keep(rows)
        kept = torch.from_numpy(rows).to(self.device)
        self._cache.keep(kept)
        self._episode, self._now = self._episode[kept], self._now[kept]
        self._oldest, self._position = self._oldest[kept], self._position[kept]

    def q_values(self, text: str) -> np.ndarray:
        """float32 [4]: Q of left, down, right, up at the end of one history, in the words of ``format``.

        Raises ValueError for unknown words and for a text that does not end where an action is due.
        """
        episodes = self.format.parse_to_decision(text)
        episodes = self.format.fit(episodes, self.max_tokens) if self.memory else episodes[-1:]
        ids = self.format.tokenize(self.format.render(episodes))
        return self.readout.q(torch.from_numpy(self.read(ids))).numpy()

    def read(self, ids: np.ndarray) -> np.ndarray:
        """float32 [4]: the read-out z at the end of int64 token ids [T], from one forward pass without a cache."""
        return self._read(self._forward(torch.from_numpy(ids)[None].to(self.device))[:, -1])[0].cpu().numpy()

    def _forget(self) -> None:
        """Hide what a row must not see any more, and drop columns that no row sees."""
        if self.memory and self._episode.shape[1] <= self.max_tokens:
            return
        if not self.memory:
            self._oldest = self._now.clone()
        while (full := (self._episode >= self._oldest[:, None]).sum(1) > self.max_tokens).any():
            if (full & (self._oldest == self._now)).any():
                raise ValueError(f"max_tokens={self.max_tokens} is too short for one episode; give a longer context.")
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"a history is longer than max_tokens={self.max_tokens}: its oldest episodes are dropped (said "
                    "once)",
                    stacklevel=5,
                )
            self._oldest += full
        hidden = int((self._episode >= self._oldest[:, None]).any(0).int().argmax())
        cached = self._cache.get_seq_length()
        if 2 * hidden > cached and hidden <= cached:  # seldom, so that the columns are not moved at every step
            self._cache.drop(hidden)
            self._episode = self._episode[:, hidden:]

    def _mask(self, new: int) -> Tensor:
        """bool [n, 1, new, tokens]: which tokens each new one attends to. Every token sees itself, hidden or not: a
        row without any would be NaN."""
        total = self._episode.shape[1]
        own = torch.arange(total - new, total, device=self.device)[:, None]
        column = torch.arange(total, device=self.device)
        visible = (self._episode >= self._oldest[:, None])[:, None] & (column < own)
        return (visible | (column == own))[:, None]

    @torch.no_grad()
    def _forward(self, ids: Tensor, position: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Hidden states [n, new tokens, d] after the last layer; with a mask the tokens join the cache."""
        # Dropout off, and activation checkpointing too, under which the library would drop the cache.
        training = self.model.training
        if training:
            self.model.eval()
        cached = {"use_cache": False} if mask is None else {"use_cache": True, CACHE_ARGUMENT: self._cache}
        output = backbone(self.model)(input_ids=ids, position_ids=position, attention_mask=mask, **cached)
        if training:
            self.model.train()
        return output.last_hidden_state

    @torch.no_grad()
    def _read(self, hidden: Tensor) -> Tensor:
        logits = action_logits(hidden, causal_lm(self.model).lm_head, torch.as_tensor(self.format.action_ids))
        return self.readout.z(logits)


def load_agent(
    path: str | Path,
    memory: bool = True,
    device: str | torch.device | None = None,
    base: str | Path | None = None,
    **options,
) -> Agent | WordsAgent:
    """The agent in an adapter folder, on the frozen base that it was trained on: a `WordsAgent` where values are read
    after the action word, in a language model's own words, else an `Agent`.

    Args:
        path: a folder written by ``python -m icrl_utils train``, absolute or relative to the repository.
        memory: False: the memory-less baseline (same weights, the context is cleared at every episode).
        device: by default the GPU where there is one.
        base: the base model's folder or name on the Hub; by default the one that the adapter's run.json names.
        options: more arguments of the agent's class, instead of those in the adapter's run.json (``play``).

    The adapter is merged into a float32 base: the same function, without the adapter's extra products. A base in
    half precision or in 4 bits would lose a part of it, so there it stays apart.

    Raises:
        FileNotFoundError: no adapter there. ValueError: altered or damaged files, a base other than the one trained on,
            or one that cannot read the history format of the training. And the errors of `load.load_llama`.
    """
    folder = _adapter_folder(path)
    run = _checked_record(folder, path)
    base = run["base"] if base is None else base
    options = {"temperature": run["config"].get("temperature", 0.0)} | run.get("play", {}) | options
    options |= {"memory": memory, "training_seed": run["config"]["seed"]}
    if run["history"] == "words":
        _check_base(base, run, path)
        scale, offset = run["readout"]["scale"], run["readout"]["offset"]
        return load_words_agent(base, folder, OddsReadout(scale, offset), device, **options)
    try:
        history = load_history(base, run["history"], "base")
    except ValueError as error:
        raise ValueError(
            f"path={str(path)!r} was trained on histories in the format {run['history']!r}, which base={str(base)!r} "
            f"cannot read ({error}); leave base out."
        ) from error
    _check_base(base, run, path)
    quantization = run.get("quantization")
    tiny = history.name == "compact"
    frozen = load_llama(base, quantization, device, torch.float32 if tiny else None)
    model = keep_dtype(PeftModel.from_pretrained(frozen, folder))
    if not all(parameter.isfinite().all() for parameter in adapter_parameters(model, ONLINE).values()):
        raise ValueError(
            f"path={str(path)!r} holds weights that are not finite: its training diverged; train it again."
        )
    if frozen.dtype == torch.float32 and not quantization:
        model = model.merge_and_unload()
    return Agent(model.eval(), history, QReadout(**run["readout"]), **options)


def _checked_record(folder: Path, path: str | Path) -> dict[str, Any]:
    """run.json of the adapter in ``folder``. Raises ValueError where its files are not those that it describes."""
    run = read_json(folder / "run.json", "sha256", "base", "base_sha256", "history", "readout", "config")
    found = {"sha256": file_sha256(folder / "adapter_model.safetensors"), "config_sha256": config_sha256(folder)}
    for name, file in {"sha256": "adapter_model.safetensors", "config_sha256": "adapter_config.json"}.items():
        if run.get(name, found[name]) != found[name]:  # records of version 0.1.0 have no config_sha256
            raise ValueError(
                f"path={str(path)!r}: {file} is not the file that run.json describes ({name} differs); "
                "restore both with `git checkout`, or train the adapter again."
            )
    return run


def _check_base(base: str | Path, run: Mapping[str, Any], path: str | Path) -> None:
    """Raises ValueError if ``base`` is not the one that the adapter was trained on."""
    config = config_sha256(in_repository(base)) if in_repository(base).is_dir() else None
    same_config = config is None or run.get("base_config_sha256", config) == config
    if checkpoint_id(base) != run["base_sha256"] or not same_config:
        raise ValueError(
            f"path={str(path)!r} was trained on another base than {str(base)!r} (sha256 differs, of its weights or of "
            f"its config.json); give the folder of {run['base']} as it was then as `base`, or train the adapter again "
            "on this one."
        )


def _adapter_folder(path: str | Path) -> Path:
    check_repository()
    folder = in_repository(path)
    if not (folder / "adapter_config.json").exists():
        known = sorted(str(f.parent.relative_to(ROOT)) for f in ASSETS.glob("adapters/*/adapter_config.json"))
        raise FileNotFoundError(
            f"path={str(path)!r} holds no adapter (adapter_config.json); choose one of: "
            f"{', '.join(known) or 'none yet'}, or make one with `python -m icrl_utils train --out FOLDER`."
        )
    if not (folder / "run.json").exists():
        raise FileNotFoundError(
            f"path={str(path)!r} holds an adapter without run.json, so its read-out is unknown; give a folder that "
            "`python -m icrl_utils train` wrote."
        )
    return folder
