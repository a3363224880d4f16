"""The ``paper`` history format, byte for byte the text of arXiv 2501.14176. For real Llamas.

A message is ``<|start_header_id|>ROLE<|end_header_id|>CONTENT<|eot_id|>``. An episode is ``<|begin_of_text|>``, the
first ``observation``, then for each step ``action`` and ``observation``; a ``reward`` message (``1.0``) only on a
goal; an ``edit`` message (``...``) only after truncation; then ``<|end_of_text|>``. No spaces, no line ends. The text
of a running episode ends with the header of its next action: Q is read at the last token of that header.

Fallback: a tokenizer without these special tokens gets the same messages as lines of plain text::

    begin
    observation: 8
    action: right
    observation: 9
    reward: 1.0
    end

The space before the content is part of it: `` right`` is the one token of the action, and the colon is where Q is
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from icrl_utils.history.episodes import (
    GOAL,
    HOLE,
    LIMIT,
    OUTCOMES,
    RESET,
    RUNNING,
    Decisions,
    Episode,
    Outcome,
    pack_decisions,
)
from icrl_utils.history.text import Tokenizer
from icrl_utils.lake.maps import ACTIONS
from icrl_utils.ranges import LARGEST_INT16


@dataclass(frozen=True)
class Markup:
    """The strings around roles and contents."""

    begin: str
    before_role: str
    after_role: str
    before_content: str
    after_content: str
    end: str

    def header(self, role: str) -> str:
        return f"{self.before_role}{role}{self.after_role}"

    def content(self, content: object) -> str:
        return f"{self.before_content}{content}{self.after_content}"

    def message(self, role: str, content: object) -> str:
        return self.header(role) + self.content(content)


LLAMA3 = Markup("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "", "<|eot_id|>", "<|end_of_text|>")
LLAMA3_TOKENS = {LLAMA3.begin, LLAMA3.before_role, LLAMA3.after_role, LLAMA3.after_content, LLAMA3.end}
PLAIN = Markup("begin\n", "", ":", " ", "\n", "end\n")

_FOLLOWERS = {  # what may follow what in a text; "header" is the header of an action that is still to be chosen
    "end": ("begin",),
    "begin": ("first observation",),
    "first observation": ("action", "header"),
    "action": ("observation",),
    "observation": ("action", "header", "reward", "edit", "end"),
    "reward": ("end",),
    "edit": ("end",),
    "header": (),
}


class PaperText:
    """Reads and writes ``paper`` text; `icrl_utils.history.format.HistoryFormat` explains the methods.

    Raises ValueError if the tokenizer splits an action word, or joins what belongs to different messages.
    """

    separator = ""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self.tokenizer = tokenizer
        has_special = tokenizer is None or LLAMA3_TOKENS <= tokenizer.get_vocab().keys()
        self.markup = LLAMA3 if has_special else PLAIN
        self._pattern = _pattern(self.markup)
        # There are few different steps and tiles: each is tokenized once. Dicts, since workers get a pickled copy.
        self._ids_of_step: dict[tuple[int, int, int], np.ndarray] = {}
        self._tile_of_ids: dict[tuple[int, ...], int] = {}
        self.vocab_size, self.action_ids, self.min_step_tokens = 0, np.array([], np.int64), 0  # no tokenizer, no tokens
        self.observation_header: np.ndarray | None = None
        if tokenizer is not None:
            self.vocab_size = len(tokenizer)
            self._read_tokens()
            self._check_tokens()

    # --- text ---

    def step_text(self, action: int, tile: int, outcome: int) -> str:
        """What one step adds to the text (RESET begins an episode); a step that goes on ends with a header."""
        m = self.markup
        text = m.begin if action == RESET else m.content(ACTIONS[action])
        text += m.message("observation", tile)
        if outcome == GOAL:
            text += m.message("reward", "1.0")
        if outcome == LIMIT:
            text += m.message("edit", "...")
        return text + (m.header("action") if outcome == RUNNING else m.end)

    def render_episode(self, episode: Episode) -> str:
        actions, tiles = (RESET, *episode.actions), [tile for tile in episode.tiles if tile is not None]
        unanswered = ""
        if len(tiles) < len(actions):
            if episode.outcome:
                _reject_unknown_tile()
            unanswered = self.markup.content(ACTIONS[actions[-1]])
            actions = actions[:-1]
        outcomes = [RUNNING] * (len(tiles) - 1) + [OUTCOMES.index(episode.outcome)]
        return "".join(map(self.step_text, actions, tiles, outcomes)) + unanswered

    def parse(self, text: str) -> list[Episode]:
        episodes: list[Episode] = []
        tiles: list[int | None] = []
        actions: list[int] = []
        outcome: Outcome | None = None
        previous = "end"
        for position, kind, content in self._messages(text):
            kind = "first observation" if previous == "begin" and kind == "observation" else kind
            if kind not in _FOLLOWERS[previous]:
                expected = " or ".join(_FOLLOWERS[previous]) or "nothing"
                raise ValueError(
                    f"character {position} of the history: {kind} cannot follow {previous}; {expected} can"
                )
            if kind in ("first observation", "observation"):
                tiles.append(int(content))
            elif kind == "action":
                actions.append(ACTIONS.index(content))
            elif kind in ("reward", "edit"):
                outcome = "goal" if kind == "reward" else "limit"
            elif kind == "end":
                episodes.append(Episode(tuple(tiles), tuple(actions), outcome or "hole"))
                tiles, actions, outcome = [], [], None
            previous = kind
        if tiles:
            if len(tiles) == len(actions):
                tiles.append(None)
            episodes.append(Episode(tuple(tiles), tuple(actions), outcome))
        return episodes

    def _messages(self, text: str) -> Iterator[tuple[int, str, str]]:
        """Yields (character, kind, content) of a text that begins and ends between messages."""
        position = 0
        while position < len(text):
            match = self._pattern.match(text, position)
            if match is None:
                raise ValueError(
                    f"character {position} of the history: {text[position : position + 60]!r} is not a message of "
                    f"the paper format; one looks like {self.markup.message('action', 'right')!r}, with roles "
                    f"observation (a tile number), action ({', '.join(ACTIONS)}), reward (1.0) and edit (...)"
                )
            kind = str(match.lastgroup)  # every alternative of the pattern is a named group
            yield position, kind, match[kind]
            position = match.end()

    # --- tokens ---

    def tokenize(self, text: str) -> np.ndarray:
        for _ in self._messages(text):  # a byte-level tokenizer would take any misspelt word
            pass
        return self._ids(text)

    def encode_action(self, action: int) -> np.ndarray:
        return self._ids(self.markup.header("action") + self.markup.content(ACTIONS[action]))[len(self._header) :]

    def encode_steps(self, action: np.ndarray, tile: np.ndarray, outcome: np.ndarray) -> np.ndarray:
        if (tile < 0).any():
            _reject_unknown_tile()
        # One number for each step: the few different ones are tokenized, the rest is a table look-up.
        shape = (RESET + 1, int(tile.max(initial=0)) + 1, len(OUTCOMES))
        different, which = np.unique(np.ravel_multi_index((action, tile, outcome), shape), return_inverse=True)
        pieces = [self._step_ids(*map(int, np.unravel_index(step, shape))) for step in different]
        table = np.full((len(pieces), max(map(len, pieces), default=0)), -1, dtype=np.int64)
        for i, piece in enumerate(pieces):
            table[i, : len(piece)] = piece
        return table[which]

    def join_steps(self, steps: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        used = steps >= 0
        return steps[used], np.concatenate([[0], np.cumsum(used.sum(1))])[starts]

    def decisions(self, ids: np.ndarray) -> Decisions:
        self._require_tokenizer()
        n, length = ids.shape
        # Only an action header puts its last token before an action word, even where a row begins inside of it.
        row, position = np.nonzero((ids[:, :-1] == self._header[-1]) & np.isin(ids[:, 1:], self.action_ids))
        # What stands between a decision and the next one of its row, or the row's end, tells how the step ended.
        has_next = np.append(row, -1)[1:] == row
        until = np.where(has_next, np.append(position, 0)[1:], length)

        def between(marker: np.ndarray) -> np.ndarray:
            seen = np.pad(np.cumsum(_occurs(ids, marker), axis=1), ((0, 0), (1, 0)))
            return seen[row, until] > seen[row, position]

        edited = between(self._edit)
        terminated = between(self._end) & ~edited
        return pack_decisions(
            (n, (length - 2) // self._shortest_step + 1),
            row,
            position=position,
            action=(ids[row, position + 1][:, None] == self.action_ids).argmax(1),
            reward=terminated & between(self._reward),
            terminated=terminated,
            has_target=terminated | (has_next & ~edited),
        )

    def tiles(self, ids: np.ndarray, position: np.ndarray) -> np.ndarray:
        self._require_tokenizer()
        # The last tokens before the end of the observation and the action's header: the longest tile, digit by digit,
        # and one more, which shows that no digit went before.
        column = position[..., None] - self._after_tile + np.arange(-len(str(LARGEST_INT16)), 1)
        window = np.where(column >= 0, ids[np.arange(len(ids))[:, None, None], column.clip(0)], -1)
        different, which = np.unique(window.reshape(-1, window.shape[-1]), axis=0, return_inverse=True)
        told = np.array([self._tile_told(tuple(tokens)) for tokens in different.tolist()], np.int64)
        return told[which].reshape(position.shape)

    def _tile_told(self, tokens: tuple[int, ...]) -> int:
        if tokens not in self._tile_of_ids:
            self._tile_of_ids[tokens] = self._decode_tile(tokens)
        return self._tile_of_ids[tokens]

    def _decode_tile(self, tokens: tuple[int, ...]) -> int:
        """The number at the end of ``tokens`` (negative ones are padding), -1 if they do not show where it begins."""
        told = self._require_tokenizer().decode(
            [token for token in tokens if token >= 0], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        number = re.search(r"[^0-9]([0-9]+)[^0-9]*\Z", told)
        return int(number[1]) if number else -1

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("tokenizer is None: HistoryFormat('paper', tokenizer) needs the model's tokenizer for ids")
        return self.tokenizer

    def _step_ids(self, action: int, tile: int, outcome: int) -> np.ndarray:
        step = action, tile, outcome
        if step not in self._ids_of_step:
            self._ids_of_step[step] = self._encode_step(*step)
        return self._ids_of_step[step]

    def _encode_step(self, action: int, tile: int, outcome: int) -> np.ndarray:
        # Tokenized behind a header, where it will stand: a tokenizer may treat the beginning of a text differently.
        if action == RESET:
            return self._ids(self.step_text(action, tile, outcome))
        return self._ids(self.markup.header("action") + self.step_text(action, tile, outcome))[len(self._header) :]

    def _ids(self, text: str) -> np.ndarray:
        tokenizer = self._require_tokenizer()
        try:
            ids = np.array(tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=np.int64)
        except Exception as error:  # a tokenizer without an unknown token raises this very class
            _reject_unknown_words(text, error)
        if tokenizer.unk_token_id is not None and (ids == tokenizer.unk_token_id).any():
            _reject_unknown_words(text)
        return ids

    def _read_tokens(self) -> None:
        m = self.markup
        self._header = self._ids(m.header("action"))
        self.observation_header = self._ids(m.header("observation"))
        self._reward, self._edit = self._ids(m.header("reward")), self._ids(m.header("edit"))
        self._end = self._ids(m.end)
        words = [self._ids(m.header("action") + m.before_content + word)[len(self._header) :] for word in ACTIONS]
        split = [ACTIONS[a] for a, ids in enumerate(words) if len(ids) != 1]
        if split:
            needed = [m.before_content + word for word in split]
            raise ValueError(
                f"tokenizer splits the action words {split}, but Q(history, action) is the logit of one token: use a "
                f"Llama 3 tokenizer, or call tokenizer.add_tokens({needed}) and "
                "model.resize_token_embeddings(len(tokenizer))"
            )
        self.action_ids = np.concatenate(words)
        lengths = [len(self._step_ids(a, tile, RUNNING)) for a in range(len(ACTIONS)) for tile in range(10)]
        self._shortest_step = min(lengths)
        others = (RESET, 0, RUNNING), (0, 0, HOLE)  # after a goal or the step limit there is more
        self.min_step_tokens = min(self._shortest_step, *(len(self._step_ids(*step)) for step in others))
        one, two = (self._step_ids(0, tile, RUNNING)[::-1] for tile in (1, 2))
        self._after_tile = int((one != two).argmax())  # tokens that follow the tile's last one

    def _check_tokens(self) -> None:
        """The tokens of the steps must be the tokens of the whole text, and the decisions must be found in them."""
        episodes = [
            Episode((8, 9, 13), (2, 1), "goal"),
            Episode((10, 5), (1,), "hole"),
            Episode((0, 0, 999), (0, 3), "limit"),
            Episode((7,), ()),
        ]
        ids = self._ids("".join(map(self.render_episode, episodes)))
        steps = [(RESET, 8, 0), (2, 9, 0), (1, 13, GOAL), (RESET, 10, 0), (1, 5, HOLE)]
        steps += [(RESET, 0, 0), (0, 0, 0), (3, 999, LIMIT), (RESET, 7, 0)]
        same = np.array_equal(ids, np.concatenate([self._step_ids(*step) for step in steps]))
        found = self.decisions(ids[None])
        if not same or (
            found.action[found.valid].tolist() != [2, 1, 1, 0, 3]
            or found.terminated[found.valid].tolist() != [False, True, True, False, False]
            or found.reward[found.valid].tolist() != [0, 1, 0, 0, 0]
        ):
            raise ValueError(
                "tokenizer joins or changes tokens where one message ends and the next begins, so that histories "
                "cannot grow step by step: use a Llama 3 tokenizer, or add its special tokens by "
                f"tokenizer.add_special_tokens({{'extra_special_tokens': {sorted(LLAMA3_TOKENS)}}}) and "
                "model.resize_token_embeddings(len(tokenizer))"
            )


def _pattern(m: Markup) -> re.Pattern[str]:
    contents = {"observation": "[0-9]+", "action": "|".join(ACTIONS), "reward": r"1\.0", "edit": r"\.\.\."}
    messages = [
        f"{re.escape(m.header(role) + m.before_content)}(?P<{role}>{content}){re.escape(m.after_content)}"
        for role, content in contents.items()
    ]
    header = rf"(?P<header>{re.escape(m.header('action'))}\Z)"
    return re.compile("|".join([*messages, header, f"(?P<begin>{re.escape(m.begin)})", f"(?P<end>{re.escape(m.end)})"]))


def _occurs(ids: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """bool [B, T]: where the token sequence begins, wholly inside of its row."""
    padded = np.pad(ids, ((0, 0), (0, len(sequence) - 1)), constant_values=-1)
    return np.all([padded[:, k : k + ids.shape[1]] == token for k, token in enumerate(sequence)], axis=0)


def _reject_unknown_words(text: str, cause: Exception | None = None) -> NoReturn:
    raise ValueError(
        f"tokenizer has unknown tokens in {text[:200]!r}: use a byte-level one, such as Llama 3's"
    ) from cause


def _reject_unknown_tile() -> NoReturn:
    raise ValueError(
        "tiles: the last tile of an ended episode is not known (compact text does not tell it), but the paper format "
        "writes it; make the episodes from play, such as Records.episodes"
    )
