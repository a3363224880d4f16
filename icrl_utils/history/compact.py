"""The ``compact`` history format of the tiny Llama: two words a step, the same for every row of a batch.

    8 right 9 down hole reset 8 right 9 right goal reset 0 ...

Tiles and actions alternate; the last observation of an episode is replaced by how it ended, then comes ``reset``.
There is no begin token: position 0 is the first tile.
"""

from __future__ import annotations

import numpy as np

from icrl_utils.history.episodes import (
    ENDS,
    GOAL,
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

COMPACT_TILES = 64  # maps up to 8 x 8
COMPACT_WORDS = [*map(str, range(COMPACT_TILES)), *ACTIONS, *ENDS, "reset"]  # a word's index is its id
_ID = {word: i for i, word in enumerate(COMPACT_WORDS)}
FIRST_ACTION, _FIRST_OUTCOME = _ID[ACTIONS[0]], _ID[ENDS[0]]
GOAL_WORD, HOLE_WORD = _ID["goal"], _ID["hole"]
OBSERVED = [*range(COMPACT_TILES), GOAL_WORD, HOLE_WORD]  # what a move can lead to

_KIND = {word: "a tile number" for word in COMPACT_WORDS[:COMPACT_TILES]}
_KIND |= {word: "an action" for word in ACTIONS} | {word: "goal, hole or limit" for word in ENDS}
_KIND["reset"] = "reset"
_FOLLOWERS = {
    "reset": ("a tile number",),
    "a tile number": ("an action",),
    "an action": ("a tile number", "goal, hole or limit"),
    "goal, hole or limit": ("reset",),
}


class CompactText:
    """Reads and writes ``compact`` text; `icrl_utils.history.format.HistoryFormat` explains the methods."""

    separator = " "
    vocab_size = len(COMPACT_WORDS)
    action_ids: np.ndarray = np.arange(FIRST_ACTION, _FIRST_OUTCOME)
    min_step_tokens = 2
    observation_header: np.ndarray | None = None

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        if tokenizer is not None and [tokenizer.get_vocab().get(w) for w in COMPACT_WORDS] != [*_ID.values()]:
            raise ValueError(
                f"tokenizer with {len(tokenizer)} tokens does not number the compact words as COMPACT_WORDS "
                "does: use the one saved next to the tiny Llama, or HistoryFormat('paper', tokenizer)"
            )

    def render_episode(self, episode: Episode) -> str:
        words = [str(episode.tiles[0])]
        for action, tile in zip(episode.actions, episode.tiles[1:], strict=True):
            words += [ACTIONS[action], str(tile)]
        if episode.outcome:
            words[-1:] = [episode.outcome, "reset"]
        elif episode.tiles[-1] is None:  # the last action is not answered yet
            words.pop()
        text = " ".join(words)
        self.tokenize(text)  # rejects tiles that the vocabulary does not have
        return text

    def parse(self, text: str) -> list[Episode]:
        self.tokenize(text)
        episodes: list[Episode] = []
        tiles: list[int | None] = []
        actions: list[int] = []
        outcome: Outcome | None = None
        previous = "reset"
        for i, word in enumerate(text.split()):
            kind = _KIND[word]
            if kind not in _FOLLOWERS[previous]:
                expected = " or ".join(_FOLLOWERS[previous])
                raise ValueError(f"word {i} of the history is {word!r}: {expected} has to stand there")
            if kind == "a tile number":
                tiles.append(int(word))
            elif kind == "an action":
                actions.append(_ID[word] - FIRST_ACTION)
            elif kind == "reset":
                episodes.append(Episode(tuple(tiles), tuple(actions), outcome))
                tiles, actions, outcome = [], [], None
            else:
                outcome = OUTCOMES[_ID[word] - _FIRST_OUTCOME + GOAL]
                tiles.append(None)
            previous = kind
        if tiles:
            if len(tiles) == len(actions):
                tiles.append(None)
            episodes.append(Episode(tuple(tiles), tuple(actions), outcome))
        return episodes

    def tokenize(self, text: str) -> np.ndarray:
        words = text.split()
        for i, word in enumerate(words):
            if word not in _ID:
                if word.isdecimal() and int(word) >= COMPACT_TILES:
                    _reject_tile(word)
                raise ValueError(
                    f"word {i} of the history is {word!r}, which the compact vocabulary does not have: use tile "
                    f"numbers 0..{COMPACT_TILES - 1}, {', '.join(COMPACT_WORDS[COMPACT_TILES:])}"
                )
        return np.array([_ID[word] for word in words], dtype=np.int64)

    def encode_action(self, action: int) -> np.ndarray:
        return self.action_ids[action : action + 1]

    def encode_steps(self, action: np.ndarray, tile: np.ndarray, outcome: np.ndarray) -> np.ndarray:
        running = outcome == RUNNING
        bad = (tile >= COMPACT_TILES) | (running & (tile < 0))  # the tile of an ended step is not written
        if bad.any():
            _reject_tile(tile[bad][0])
        first = np.where(action == RESET, _ID["reset"], FIRST_ACTION + action)
        second = np.where(running, tile, _FIRST_OUTCOME - GOAL + outcome)
        return np.stack([first, second], axis=-1)

    def join_steps(self, steps: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A step's row puts `reset` before the start tile; in a text it closes the episode before: shift by one.
        ids = steps.reshape(-1)[1:]
        if len(ids) and ids[-1] >= _FIRST_OUTCOME:
            ids = np.append(ids, _ID["reset"])
        return ids, np.minimum(2 * starts, len(ids))

    def decisions(self, ids: np.ndarray) -> Decisions:
        n, length = ids.shape
        ids = np.pad(ids, ((0, 0), (0, 3)), constant_values=-1)  # so that "two and three tokens on" always exists
        is_tile = (ids >= 0) & (ids < COMPACT_TILES)
        is_action = (ids >= FIRST_ACTION) & (ids < _FIRST_OUTCOME)
        decides = is_tile[:, :-1] & is_action[:, 1:]
        row, position = np.nonzero(decides)
        after = ids[row, position + 2]
        terminated = (after == _ID["goal"]) | (after == _ID["hole"])
        return pack_decisions(
            (n, length // 2),
            row,
            position=position,
            action=ids[row, position + 1] - FIRST_ACTION,
            reward=after == _ID["goal"],
            terminated=terminated,
            has_target=terminated | decides[row, position + 2],
        )

    def tiles(self, ids: np.ndarray, position: np.ndarray) -> np.ndarray:
        return np.take_along_axis(ids, position, axis=1)  # Q is read at the tile itself, whose id is its number


def _reject_tile(tile: object) -> None:
    raise ValueError(
        f"tile {tile} is not in the compact vocabulary, 0..{COMPACT_TILES - 1}: maps larger than 8 x 8 do not fit "
        "the tiny Llama; use a smaller map, or HistoryFormat('paper', tokenizer) with a real Llama"
    )
