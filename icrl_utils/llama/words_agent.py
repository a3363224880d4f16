"""A language model as a policy, its values read after the action word: many histories in lock-step, one pass a step.

A pass appends what just happened (a tile, or how the episode ended) and tries the five words that can follow it: four
actions, at which values are read, and the line break. All five stand behind the same token and do not see each other.
When the next step tells which one it was, its keys and values join the cache; nothing is computed twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from icrl_utils.hardware import faster_in_bfloat16
from icrl_utils.history.compact import FIRST_ACTION, GOAL_WORD
from icrl_utils.history.episodes import GOAL, RESET, RUNNING
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.words import Words
from icrl_utils.lake.maps import TileGame
from icrl_utils.llama.frozen import Adapter, FrozenLlama, after_attention, heads_of, of_branches
from icrl_utils.llama.language_model import language_model
from icrl_utils.llama.load import load_llama, random_twin
from icrl_utils.llama.lora import Lora
from icrl_utils.llama.memory import check_main_memory, plan
from icrl_utils.llama.readout import OddsReadout
from icrl_utils.play.policy import PATIENCE, Choice, Step, check_started, check_temperature
from icrl_utils.ranges import checked_seed, whole_number

FOLLOWERS = FIRST_ACTION + np.array([0, 1, 2, 3, 7])  # compact ids; place RESET = 4: line break
NEW = 1 + len(FOLLOWERS)  # tokens of a pass
FIRST_BUFFER = 256  # tokens; the cache doubles when it is full
ACTIONS_READ = slice(1, 5)  # of the tokens of a pass


class WordsAgent:
    """A frozen language model, with an adapter or without, that plays by Q(history, a) behind the word of each action.

    Args:
        llama, adapter: the model. An empty adapter is the untouched model, obeyed where it finds goal likelier than
            hole.
        words: its words for the game. readout: see `OddsReadout`.
        memory: False is the memory-less baseline: it sees the running episode only.
        name: in records; by default ``agent`` or ``memory-less``. training_seed: in records.
        max_tokens: older tokens of a history are out of sight, which is said once.
        temperature, patience: see `icrl_utils.play.policy.Choice`.
        seed: of the dictionaries, together with the generators of the histories.
        batch_maps: how many maps `rollout` plays at once.
    """

    def __init__(
        self,
        llama: FrozenLlama,
        words: Words,
        adapter: Adapter,
        readout: OddsReadout,
        memory: bool = True,
        name: str | None = None,
        max_tokens: int = 8192,
        training_seed: int | None = None,
        temperature: float = 0.0,
        patience: int = PATIENCE,
        seed: int = 0,
        batch_maps: int = 50,
    ):
        check_temperature(temperature)
        self.llama, self.words, self.adapter, self.readout, self.memory = llama, words, adapter, readout, memory
        self.name = name if name is not None else "agent" if memory else "memory-less"
        self.max_tokens = whole_number("max_tokens", max_tokens, NEW)
        self.patience = whole_number("patience", patience, 1)
        self.batch_maps = whole_number("batch_maps", batch_maps, 1)
        self.training_seed, self.temperature, self.seed = training_seed, temperature, checked_seed(seed)
        self._choice: Choice | None = None  # before `start`
        self._warned = False

    def start(self, maps: Sequence[TileGame], rngs: list[np.random.Generator]) -> None:
        n, shape, device = len(maps), self.llama.shape, self.llama.device
        self._choice = Choice(self.temperature, rngs, self.patience)
        drawn = [self.words.dictionary(np.random.default_rng([self.seed, *_key(rng)])) for rng in rngs]
        self._dictionary = torch.from_numpy(np.stack(drawn)).to(device)
        self._length = 0  # of the cached histories; what the last pass tried stands in `_tried`
        self._oldest = torch.zeros(n, dtype=torch.int64, device=device)  # the first token that a history still sees
        size = (shape.layers, 2, n, shape.kv_heads)  # 2: keys, values
        self._cache = torch.empty(*size, FIRST_BUFFER, shape.head, dtype=self.llama.dtype, device=device)
        self._tried = torch.empty(*size, NEW, shape.head, dtype=self.llama.dtype, device=device)

    def act(self, step: Step) -> np.ndarray:
        choice = check_started(self, self._choice)
        return choice(self.append(step).cpu().numpy(), step)

    def keep(self, rows: np.ndarray) -> None:
        check_started(self, self._choice).keep(rows)
        kept = torch.from_numpy(rows).to(self.llama.device)
        self._dictionary, self._oldest = self._dictionary[kept], self._oldest[kept]
        self._cache, self._tried = self._cache[:, :, kept], self._tried[:, :, kept]

    @torch.no_grad()
    def append(self, step: Step) -> Tensor:
        """Tell all histories what happened: float32 [n, 4], the read-out z of their four moves."""
        check_started(self, self._choice)
        llama, n = self.llama, len(step.action)
        if self._length:  # the word that followed what happened before: an action, or the line break
            which = (torch.from_numpy(step.action) + 1).to(llama.device)
            index = which.view(1, 1, n, 1, 1, 1).expand(*self._tried.shape[:4], 1, self._tried.shape[-1])
            place = self._grow()
            self._cache[:, :, :, :, place] = self._tried.gather(4, index)[:, :, :, :, 0]
        now = self._grow()
        self._forget(torch.from_numpy(step.action == RESET).to(llama.device), now)
        happened = np.where(step.outcome == RUNNING, step.tile, GOAL_WORD + step.outcome.astype(int) - GOAL)
        ids = np.concatenate([happened[:, None], np.broadcast_to(FOLLOWERS, (n, NEW - 1))], 1)
        x = llama.embed(self._dictionary.gather(1, torch.from_numpy(ids).to(llama.device)))
        rotation = llama.rotation(torch.tensor([[now] + (NEW - 1) * [now + 1]], device=llama.device))
        first = int(self._oldest.min())
        mask = self._mask(first, now)
        for i, layer in enumerate(llama.layers):
            lora = self.adapter.get(i)
            q, k, v = heads_of(x, layer, lora, llama.shape, rotation)
            self._tried[i, 0], self._tried[i, 1] = k, v
            self._cache[i, :, :, :, now] = self._tried[i, :, :, :, 0]
            keys, values = self._cache[i, :, :, :, first : now + 1]
            x = after_attention(x, of_branches(q, keys, values, k, v, mask), layer, lora, llama.shape)
        return self._read(x[:, ACTIONS_READ])

    def _mask(self, first: int, now: int) -> Tensor:
        """[n, 1, 1, NEW, K], added to scores: what each new token sees of the tokens first .. now. The first new one
        stands at ``now`` itself and is its own key already."""
        place = torch.arange(first, now + 1, device=self.llama.device)
        hidden = (place < self._oldest[:, None]).unsqueeze(1).repeat(1, NEW, 1)
        hidden[:, 0, -1] = True
        mask = torch.zeros(hidden.shape, dtype=self.llama.dtype, device=self.llama.device)
        return mask.masked_fill(hidden, float("-inf"))[:, None, None]

    def _forget(self, begins: Tensor, now: int) -> None:
        if not self.memory:
            self._oldest = torch.where(begins, now, self._oldest)
        if now + 2 - self.max_tokens > int(self._oldest.min()):
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"a history is longer than max_tokens={self.max_tokens}: its oldest tokens are out of sight (said "
                    "once)",
                    stacklevel=4,
                )
            self._oldest = self._oldest.clamp(min=now + 2 - self.max_tokens)

    def _grow(self) -> int:
        """Room for one more token in the cache: its place."""
        if self._length == self._cache.shape[4]:
            longer = (*self._cache.shape[:4], 2 * self._length, self._cache.shape[5])
            cache = torch.empty(longer, dtype=self._cache.dtype, device=self._cache.device)
            cache[:, :, :, :, : self._length] = self._cache
            self._cache = cache
        self._length += 1
        return self._length - 1

    def _read(self, hidden: Tensor) -> Tensor:
        return self.readout.z(self.llama, hidden, self.words.goal, self.words.hole)

    @torch.no_grad()
    def q_values(self, text: str) -> np.ndarray:
        """float32 [4]: Q of left, down, right, up at the end of one history, in the words of the ``compact`` format,
        which are translated into a language model's own.

        Raises ValueError for unknown words and for a text that does not end where an action is due.
        """
        history = HistoryFormat("compact")
        episodes = history.parse_to_decision(text)
        ids = history.tokenize(text if self.memory else history.render(episodes[-1:]))[-self.max_tokens + 1 :]
        dictionary = self.words.dictionary(np.random.default_rng(self.seed))
        tokens = torch.from_numpy(dictionary[ids])[None].to(self.llama.device)
        moves = torch.from_numpy(dictionary[FOLLOWERS[:4]])[None].to(self.llama.device)
        behind = torch.full_like(moves, len(ids) - 1)
        embedded = self.llama.embed(tokens), self.llama.embed(moves)
        _, x = self.llama.branched(*embedded, behind, 0, self.llama.shape.layers, self.adapter)
        return self._read(x)[0].sigmoid().cpu().numpy()


def load_words_agent(
    base: str | Path,
    adapter: Path | None = None,
    readout: OddsReadout | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **options,
) -> WordsAgent:
    """The language model ``base`` with the adapter in a folder, or untouched.

    Args:
        base: what `language_model.language_model` takes. readout: by default `OddsReadout()`.
        dtype: of the products; by default the faster one of bfloat16 and float32 here.
        options: more arguments of `WordsAgent`.
    """
    llama, words = load_frozen(base, device, dtype)
    weights = Lora.load(adapter, llama.shape).to(llama.device).layer_weights(llama.dtype) if adapter else {}
    return WordsAgent(llama, words, weights, OddsReadout() if readout is None else readout, **options)


def load_frozen(
    base: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    random_weights: bool = False,
) -> tuple[FrozenLlama, Words]:
    """The written-out Llama ``base`` and its words; ``dtype`` as in `load_words_agent`.

    random_weights: its architecture with the weights that pretraining begins with, to compare with.
    """
    checkpoint = language_model(base)
    words = Words(AutoTokenizer.from_pretrained(checkpoint))  # first: what cannot be told is refused at once
    if torch.device(device or "cpu").type == "cpu":
        weights = plan(checkpoint, dtype=torch.float32).weights
        check_main_memory(2 * weights, f"base={str(base)!r} in float32, and a copy for the products,")
    model = load_llama(checkpoint, device=device, dtype=torch.float32)
    model = random_twin(model) if random_weights else model
    if dtype is None:
        dtype = torch.bfloat16 if faster_in_bfloat16(model.device.type) else torch.float32
    return FrozenLlama(model, dtype), words


def _key(rng: np.random.Generator) -> list[int]:
    """Numbers for the dictionary of a history that do not disturb the generator of its moves."""
    seeds = rng.bit_generator.seed_seq.spawn(1)[0]  # type: ignore[attr-defined]  # numpy's stubs know no seed_seq
    return [int(number) for number in seeds.generate_state(2)]
