"""Episodes <-> history text <-> token ids, and the positions of the decisions.

The agent never sees a map. All it has is a *history*: the tiles it stood on, the actions it took and how its
episodes ended, one episode after the other. This room writes that history as text in one of two formats and finds
the *decisions* in the tokens: the positions whose next token is an action word. There, and only there, Q is read.

``compact`` (tiny Llama) is two words a step and the same number of tokens for every row of a batch::

    8 right 9 down hole reset 8 right 9 right goal reset 0 ...

``paper`` (real Llamas) is the text of arXiv 2501.14176, see `icrl_utils.paper_text`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from icrl_utils.lake import ACTIONS

OUTCOMES = (None, "goal", "hole", "limit")  # how a step ends; the index is the outcome's code in arrays
RUNNING, GOAL, HOLE, LIMIT = range(4)
RESET = 4  # in arrays of actions: not an action but the beginning of an episode

COMPACT_TILES = 64  # maps up to 8 x 8
COMPACT_WORDS = [*map(str, range(COMPACT_TILES)), *ACTIONS, *OUTCOMES[1:], "reset"]
_COMPACT_ID = {word: i for i, word in enumerate(COMPACT_WORDS)}
_FIRST_ACTION = _COMPACT_ID[ACTIONS[0]]
_FIRST_OUTCOME = _COMPACT_ID["goal"]
_RESET_ID = _COMPACT_ID["reset"]


@dataclass(frozen=True)
class Episode:
    """One episode: ``tiles[t]`` is where the agent stood before ``actions[t]``, ``tiles[-1]`` where it ended.

    ``outcome`` None means that the episode is still running (or was cut off). The last tile is None where the text
    does not tell it: in ``compact`` the outcome stands in its place; in a running episode, the last action has not
    been answered yet.
    """

    tiles: tuple[int | None, ...]
    actions: tuple[int, ...]
    outcome: Literal["goal", "hole", "limit"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tiles", tuple(None if tile is None else int(tile) for tile in self.tiles))
        object.__setattr__(self, "actions", tuple(map(int, self.actions)))
        if len(self.tiles) != len(self.actions) + 1:
            raise ValueError(
                f"tiles has {len(self.tiles)} entries for {len(self.actions)} actions: give one tile before each "
                "action and one after the last (None if it is not known)"
            )
        known = self.tiles if self.tiles[-1] is not None or not self.actions else self.tiles[:-1]
        if any(tile is None or tile < 0 for tile in known):
            raise ValueError(f"tiles {self.tiles}: tile numbers are 0 or more; only the one after an action at the end may be None")
        if not set(self.actions) <= set(range(len(ACTIONS))):
            raise ValueError(f"actions {self.actions}: use 0..3 for {', '.join(ACTIONS)}")
        if self.outcome not in OUTCOMES or (self.outcome and not self.actions):
            raise ValueError(
                f"outcome {self.outcome!r} after {len(self.actions)} actions: use 'goal', 'hole' or 'limit' after at "
                "least one action, or None while the episode is running"
            )

    @property
    def reward(self) -> float:
        """Return of the episode: 1.0 if it ended on a goal, else 0.0."""
        return float(self.outcome == "goal")

    @property
    def steps(self) -> int:
        """Number of actions."""
        return len(self.actions)


class Decisions(NamedTuple):
    """Where a batch of histories [B, T] decides, as arrays [B, D] padded on the right (``valid`` False, rest 0).

    D depends on T only, so that a compiled training step is compiled once. Decision j's successor, whose Q-values
    enter the TD target, is decision j + 1 of the same row; it is not used where ``terminated``.
    """

    position: np.ndarray  # int64: Q is read here; the next token is the action word
    action: np.ndarray  # int64: 0..3, the action that was taken
    reward: np.ndarray  # float32: 1.0 where the action led onto a goal
    terminated: np.ndarray  # bool: the action led onto a goal or into a hole, so the target is the reward alone
    has_target: np.ndarray  # bool: False after truncation and where the row ends before the successor
    valid: np.ndarray  # bool: False is padding


class HistoryFormat:
    """One way to write histories: ``HistoryFormat("compact")`` or ``HistoryFormat("paper", tokenizer)``.

    ``compact`` has its own ids, the order of `COMPACT_WORDS`; a tokenizer given with it is only checked against them.
    ``paper`` needs the tokenizer of the model for everything but `render` and `parse`.

    ``action_ids`` int64 [4] are the tokens of left, down, right, up; ``vocab_size`` is the number of tokens.
    """

    def __init__(self, name: str, tokenizer=None) -> None:
        if name == "compact":
            self._text = CompactText(tokenizer)
        elif name == "paper":
            from icrl_utils.paper_text import PaperText

            self._text = PaperText(tokenizer)
        else:
            raise ValueError(f"name {name!r} is not a history format: use 'compact' (tiny Llama) or 'paper' (real Llamas)")
        self.name = name
        self.vocab_size = self._text.vocab_size
        self.action_ids = self._text.action_ids
        self._warned = False

    def render(self, episodes: Sequence[Episode]) -> str:
        """The text of a history. A running episode can only be the last one; its text ends where Q is read."""
        _reject_running_inside([episode.outcome is None for episode in episodes])
        return self._text.separator.join(map(self._text.render_episode, episodes))

    def parse(self, text: str) -> list[Episode]:
        """The episodes of a text that begins at the beginning of an episode: the inverse of `render`.

        Raises ValueError that names the first word that does not belong where it stands.
        """
        return self._text.parse(text)

    def tokenize(self, text: str) -> np.ndarray:
        """Token ids int64 [T] of a text or a piece of one. Raises ValueError at a word that does not belong in it."""
        return self._text.tokenize(text)

    def encode_episode(self, episode: Episode) -> np.ndarray:
        """Token ids int64 of one episode. Joined over episodes they are ``tokenize(render(episodes))``."""
        unanswered = bool(episode.actions) and episode.tiles[-1] is None and episode.outcome is None
        actions = episode.actions[:-1] if unanswered else episode.actions
        tiles = [-1 if tile is None else tile for tile in episode.tiles[: len(actions) + 1]]
        ids, _ = self.encode_episodes(tiles, actions, [len(actions)], [OUTCOMES.index(episode.outcome)])
        return np.concatenate([ids, self._text.encode_action(episode.actions[-1])]) if unanswered else ids

    def encode_episodes(self, tiles, actions, lengths, outcomes) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of many episodes at once.

        Parameters: ``tiles`` int [sum(lengths + 1)], the tiles of all episodes one after the other (with the last one
        of each; ``compact`` does not read it when the episode has ended); ``actions`` int [sum(lengths)]; ``lengths``
        int [E], actions per episode; ``outcomes`` int [E], RUNNING, GOAL, HOLE or LIMIT.

        Returns ``ids`` int64 and ``offsets`` int64 [E + 1]: episode e is ``ids[offsets[e]:offsets[e + 1]]``.
        """
        tiles, actions, lengths, outcomes = (np.asarray(a, dtype=np.int64) for a in (tiles, actions, lengths, outcomes))
        starts = np.concatenate([[0], np.cumsum(lengths + 1)])
        if len(tiles) != starts[-1] or len(actions) != lengths.sum() or len(outcomes) != len(lengths):
            raise ValueError(
                f"{len(tiles)} tiles, {len(actions)} actions, {len(lengths)} lengths and {len(outcomes)} outcomes do not "
                "fit together: give sum(lengths + 1) tiles, sum(lengths) actions and one outcome for each length"
            )
        _reject_running_inside(outcomes == RUNNING)
        # One row for each tile: the action that led to it (RESET at the start of an episode) and how the step ended.
        step_action = np.full(len(tiles), RESET)
        is_step = np.ones(len(tiles), dtype=bool)
        is_step[starts[:-1]] = False
        step_action[is_step] = actions
        step_outcome = np.zeros(len(tiles), dtype=np.int64)
        step_outcome[starts[1:] - 1] = outcomes
        return self._text.join_steps(self.encode_steps(step_action, tiles, step_outcome), starts)

    def encode_steps(self, action, tile, outcome) -> np.ndarray:
        """Tokens that one step of n environments adds to their histories: int64 [n, L], -1 where a row is shorter.

        ``action`` int [n] is what was done, RESET at the start of an episode; ``tile`` int [n] is where it led;
        ``outcome`` int [n] is RUNNING, GOAL, HOLE or LIMIT. In ``compact`` L is always 2: (action, tile or outcome) or
        (reset, tile); the very first ``reset`` of a history is not part of it. In ``paper`` a running row ends with
        the header of the next action, where Q is read.
        """
        action, tile, outcome = (np.asarray(a, dtype=np.int64) for a in (action, tile, outcome))
        if ((action < 0) | (action > RESET)).any():
            raise ValueError(f"action {action[(action < 0) | (action > RESET)][0]}: use 0..3, or RESET = {RESET}")
        if ((outcome < RUNNING) | (outcome > LIMIT)).any():
            raise ValueError(f"outcome {outcome[(outcome < RUNNING) | (outcome > LIMIT)][0]}: use 0..3 for {OUTCOMES}")
        return self._text.encode_steps(action, tile, outcome)

    def decisions(self, ids: np.ndarray) -> Decisions:
        """The decisions in token ids int [B, T]; rows may begin and end anywhere, negative ids are padding.

        With r the reward, Q' the target network and p' the position of the next decision, the TD target is

            y = r                                   if terminated
            y = r + gamma * max_a Q'(p', a)         otherwise

        After a truncation (``limit``, ``edit``) the episode would have gone on, so r alone is wrong, and the text holds
        no next decision to bootstrap from: no target. The same holds for the last decision of a row, unless its
        terminal outcome is still inside.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2:
            raise ValueError(f"ids has shape {ids.shape}: give [B, T], one history in each row (ids[None] for a single one)")
        return self._text.decisions(ids)

    def fit(self, episodes: Sequence[Episode], max_tokens: int) -> list[Episode]:
        """The most recent episodes that fit into ``max_tokens``: whole oldest ones are dropped, and it is said once."""
        episodes = list(episodes)
        total = np.cumsum([0] + [len(self.encode_episode(episode)) for episode in reversed(episodes)])
        kept = int((total <= max_tokens).sum()) - 1
        if episodes and kept == 0:
            raise ValueError(
                f"max_tokens {max_tokens} is less than the {total[1]} tokens of the last episode: use a longer context"
            )
        if kept < len(episodes) and not self._warned:
            self._warned = True
            warnings.warn(
                f"the history of {total[-1]} tokens is longer than the context of {max_tokens}: the oldest "
                f"{len(episodes) - kept} of {len(episodes)} episodes are dropped (said once)",
                stacklevel=2,
            )
        return episodes[len(episodes) - kept :]


class CompactText:
    """The ``compact`` format: see the module's docstring."""

    separator = " "
    vocab_size = len(COMPACT_WORDS)
    action_ids = np.arange(_FIRST_ACTION, _FIRST_ACTION + len(ACTIONS))

    def __init__(self, tokenizer=None) -> None:
        if tokenizer is not None and tokenizer.convert_tokens_to_ids(COMPACT_WORDS) != list(range(self.vocab_size)):
            raise ValueError(
                f"tokenizer with {len(tokenizer)} tokens does not number the compact words as COMPACT_WORDS does: "
                "use the one saved next to the tiny Llama, or HistoryFormat('paper', tokenizer)"
            )

    def render_episode(self, episode: Episode) -> str:
        words = [str(episode.tiles[0])]
        for action, tile in zip(episode.actions, episode.tiles[1:], strict=True):
            words += [ACTIONS[action], str(tile)]
        if episode.outcome:
            words[-1:] = [episode.outcome, "reset"]
        elif words[-1] == "None":  # the last action is not answered yet
            words.pop()
        self.tokenize(" ".join(words))  # rejects tiles that are too large
        return " ".join(words)

    def parse(self, text: str) -> list[Episode]:
        self.tokenize(text)
        episodes: list[Episode] = []
        tiles, actions, outcome = [], [], None
        expected = "tile"
        for i, word in enumerate(text.split()):
            kind = _kind(word)
            if kind not in expected.split(" or "):
                raise ValueError(f"word {i} of the history is {word!r}, but a word of kind {expected} comes there")
            if kind == "tile":
                tiles.append(int(word))
                expected = "action"
            elif kind == "action":
                actions.append(ACTIONS.index(word))
                expected = "tile or outcome"
            elif kind == "outcome":
                tiles.append(None)
                outcome = word
                expected = "reset"
            else:
                episodes.append(Episode(tuple(tiles), tuple(actions), outcome))
                tiles, actions, outcome = [], [], None
                expected = "tile"
        if tiles:
            tiles += [None] * (len(actions) + 1 - len(tiles))
            episodes.append(Episode(tuple(tiles), tuple(actions), outcome))
        return episodes

    def tokenize(self, text: str) -> np.ndarray:
        words = text.split()
        for i, word in enumerate(words):
            if word not in _COMPACT_ID:
                if word.isdecimal() and int(word) >= COMPACT_TILES:
                    _reject_tile(int(word))
                raise ValueError(
                    f"word {i} of the history is {word!r}: the compact vocabulary has 0..{COMPACT_TILES - 1}, "
                    f"{', '.join(COMPACT_WORDS[COMPACT_TILES:])}"
                )
        return np.array([_COMPACT_ID[word] for word in words], dtype=np.int64)

    def encode_steps(self, action: np.ndarray, tile: np.ndarray, outcome: np.ndarray) -> np.ndarray:
        running = outcome == RUNNING
        if (bad := running & (tile < 0) | (tile >= COMPACT_TILES)).any():
            _reject_tile(int(tile[bad][0]))
        first = np.where(action == RESET, _RESET_ID, _FIRST_ACTION + action)
        second = np.where(running, tile, _FIRST_OUTCOME - GOAL + outcome)
        return np.stack([first, second], axis=-1)

    def encode_action(self, action: int) -> np.ndarray:
        return self.action_ids[action : action + 1]

    def join_steps(self, steps: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Steps put `reset` in front of an episode, episodes own the one behind them: shift by one.
        ids = steps.reshape(-1)[1:]
        if len(ids) and ids[-1] >= _FIRST_OUTCOME:
            ids = np.append(ids, _RESET_ID)
        return ids, np.minimum(2 * starts, len(ids))

    def decisions(self, ids: np.ndarray) -> Decisions:
        n, length = ids.shape
        padded = np.pad(ids, ((0, 0), (0, 4)), constant_values=-1)
        is_tile = (padded >= 0) & (padded < COMPACT_TILES)
        is_action = (padded >= _FIRST_ACTION) & (padded < _FIRST_OUTCOME)
        decides = is_tile[:, :-1] & is_action[:, 1:]
        row, position = np.nonzero(decides)
        after = padded[row, position + 2]
        terminated = (after == _COMPACT_ID["goal"]) | (after == _COMPACT_ID["hole"])
        return pack_decisions(
            (n, length // 2),
            row,
            position=position,
            action=padded[row, position + 1] - _FIRST_ACTION,
            reward=after == _COMPACT_ID["goal"],
            terminated=terminated,
            has_target=terminated | decides[row, position + 2],
        )


def pack_decisions(shape: tuple[int, int], row, position, action, reward, terminated, has_target) -> Decisions:
    """Spread values [N] of the decisions, sorted by row, over arrays ``shape`` = [B, D]."""
    counts = np.bincount(row, minlength=shape[0])
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)

    def spread(values, dtype) -> np.ndarray:
        array = np.zeros(shape, dtype=dtype)
        array[row, column] = values
        return array

    return Decisions(
        position=spread(position, np.int64),
        action=spread(action, np.int64),
        reward=spread(reward, np.float32),
        terminated=spread(terminated, bool),
        has_target=spread(has_target, bool),
        valid=spread(True, bool),
    )


def _kind(word: str) -> str:
    if word in ACTIONS:
        return "action"
    if word in OUTCOMES:
        return "outcome"
    return "reset" if word == "reset" else "tile"


def _reject_tile(tile: int) -> None:
    raise ValueError(
        f"tile {tile} is not in the compact vocabulary (0..{COMPACT_TILES - 1}): maps larger than 8 x 8 do not fit the tiny "
        "Llama; use a smaller map, or HistoryFormat('paper', tokenizer) with a real Llama"
    )


def _reject_running_inside(running) -> None:
    if any(running[:-1]):
        raise ValueError(
            f"episode {int(np.argmax(running))} of {len(running)} has no outcome: only the last episode of a history can be "
            "running; end it with 'limit' or leave it out"
        )
