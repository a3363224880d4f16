"""Episodes <-> history text <-> token ids, and the positions of the decisions.

The agent never sees a map. All it has is a *history*: the tiles it stood on, the actions it took, how its episodes
ended, one episode after the other. Here histories are written as text in one of two formats, and the *decisions* are
found in their tokens: the positions whose next token is an action word. There, and only there, Q is read.

- ``compact``, for the tiny Llama: ``8 right 9 down hole reset 8 right ...`` (`icrl_utils.history.compact`)
- ``paper``, for real Llamas: the text of arXiv 2501.14176 (`icrl_utils.history.paper`)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

from icrl_utils.history.compact import CompactText
from icrl_utils.history.episodes import LIMIT, OUTCOMES, RESET, RUNNING, Decisions, Episode
from icrl_utils.history.paper import PaperText
from icrl_utils.history.text import HistoryText, Tokenizer
from icrl_utils.ranges import whole_number, whole_numbers

Ints = Sequence[int] | np.ndarray


class HistoryFormat:
    """One way to write histories: ``HistoryFormat("compact")`` or ``HistoryFormat("paper", tokenizer)``.

    ``compact`` has its own ids, the order of `COMPACT_WORDS`; a tokenizer given with it is checked against them.
    ``paper`` can `render` and `parse` without a tokenizer, and needs the model's for the rest: it has no tokens else.

    Attributes:
        action_ids: int64 [4], the tokens of left, down, right, up.
        vocab_size: number of token ids.
        min_step_tokens: a step, or the start of an episode, adds at least so many tokens.
        observation_header: int64, the tokens before an observation's tile; None in ``compact``, which has no headers.
    """

    def __init__(self, name: str, tokenizer: Tokenizer | None = None) -> None:
        formats: dict[str, Callable[[Tokenizer | None], HistoryText]] = {"compact": CompactText, "paper": PaperText}
        if name not in formats:
            raise ValueError(f"name={name!r} is no history format: use 'compact' (tiny Llama) or 'paper' (real Llamas)")
        self.name = name
        self._text = formats[name](tokenizer)
        self.vocab_size = self._text.vocab_size
        self.action_ids = self._text.action_ids
        self.min_step_tokens = self._text.min_step_tokens
        self.observation_header = self._text.observation_header
        self._has_warned = False

    def render(self, episodes: Sequence[Episode]) -> str:
        """The text of a history. Only its last episode may be running; the text then ends where Q is read."""
        _reject_running_inside([episode.outcome is None for episode in episodes])
        return self._text.separator.join(map(self._text.render_episode, episodes))

    def parse(self, text: str) -> list[Episode]:
        """The episodes of a text that begins with an episode: the inverse of `render`.

        Raises ValueError naming the first word that does not belong where it stands.
        """
        return self._text.parse(text)

    def parse_to_decision(self, text: str) -> list[Episode]:
        """The same of a text that ends where an action is due. Raises ValueError for any other text, too."""
        episodes = self.parse(text)
        last = episodes[-1] if episodes else None
        if last is None or last.outcome is not None or last.tiles[-1] is None:
            raise ValueError(
                f"text={text[-60:]!r} does not end where an action is due; end it with the tile on which the agent "
                "stands (in the paper format with the header of the action)."
            )
        return episodes

    def tokenize(self, text: str) -> np.ndarray:
        """Token ids, int64 [T], of a history or of a part of one. Raises ValueError at a word it cannot have."""
        return self._text.tokenize(text)

    def encode_episode(self, episode: Episode) -> np.ndarray:
        """Token ids, int64, of one episode. Joined over episodes they are ``tokenize(render(episodes))``."""
        unanswered = episode.steps > 0 and episode.outcome is None and episode.tiles[-1] is None
        steps = episode.steps - unanswered
        tiles = [-1 if tile is None else tile for tile in episode.tiles[: steps + 1]]
        ids, _ = self.encode_episodes(tiles, episode.actions[:steps], [steps], [OUTCOMES.index(episode.outcome)])
        return np.concatenate([ids, self._text.encode_action(episode.actions[-1])]) if unanswered else ids

    def encode_episodes(self, tiles: Ints, actions: Ints, steps: Ints, outcomes: Ints) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of many episodes at once, without a Python loop over steps.

        Args:
            tiles: int [sum(steps + 1)], the tiles of all episodes, one episode after the other. ``compact`` does not
                read the tile on which an episode ended.
            actions: int [sum(steps)], likewise.
            steps: int [E], number of actions of each episode.
            outcomes: int [E], GOAL, HOLE or LIMIT; the last one may be RUNNING.

        Returns:
            ids: int64 [tokens]. offsets: int64 [E + 1]; episode e is ``ids[offsets[e]:offsets[e + 1]]``.
        """
        given = {"tiles": tiles, "actions": actions, "steps": steps, "outcomes": outcomes}
        tiles, actions, steps, outcomes = (whole_numbers(name, values) for name, values in given.items())
        starts = np.concatenate([[0], np.cumsum(steps + 1)])
        if len(tiles) != starts[-1] or len(actions) != steps.sum() or len(outcomes) != len(steps):
            raise ValueError(
                f"{len(tiles)} tiles, {len(actions)} actions, {len(steps)} episodes in steps and {len(outcomes)} "
                "outcomes do not fit together: give sum(steps + 1) tiles, sum(steps) actions, one outcome an episode"
            )
        _reject_running_inside(outcomes == RUNNING)
        # One row for each tile: the action that led to it (RESET at the start of an episode), and how that ended.
        row_action = np.full(len(tiles), RESET)
        is_step = np.ones(len(tiles), dtype=bool)
        is_step[starts[:-1]] = False
        row_action[is_step] = actions
        row_outcome = np.full(len(tiles), RUNNING)
        row_outcome[starts[1:] - 1] = outcomes
        return self._text.join_steps(self.encode_steps(row_action, tiles, row_outcome), starts)

    def encode_steps(self, action: Ints, tile: Ints, outcome: Ints) -> np.ndarray:
        """The tokens that one step adds to each of n histories: int64 [n, L], -1 where a row is shorter.

        In ``compact`` L is always 2: (action, tile or how it ended), or (reset, start tile); a history begins without
        the reset. In ``paper`` a row that goes on ends with the header of the next action, where Q is read.

        Args:
            action: int [n], 0..3, or RESET at the start of an episode.
            tile: int [n], where the action led, or the start tile.
            outcome: int [n], RUNNING, GOAL, HOLE or LIMIT.
        """
        given = {"action": action, "tile": tile, "outcome": outcome}
        action, tile, outcome = (whole_numbers(name, values) for name, values in given.items())
        bad = (action < 0) | (action > RESET) | (outcome < RUNNING) | (outcome > LIMIT)
        bad |= (action == RESET) & (outcome != RUNNING)
        if bad.any():
            raise ValueError(
                f"action {action[bad][0]} with outcome {outcome[bad][0]}: use actions 0..3, or RESET = {RESET} with "
                f"outcome 0, and outcomes 0..3 (running, goal, hole, limit)"
            )
        return self._text.encode_steps(action, tile, outcome)

    def decisions(self, ids: np.ndarray) -> Decisions:
        """The decisions in token ids int [B, T]. Rows may begin and end anywhere; negative ids are padding.

        With r the reward, p' the position of the next decision and Q' the target network, the TD target is

            y = r                               where terminated
            y = r + gamma * max_a Q'(p', a)     elsewhere

        After a truncation (``limit``, ``edit``) the episode would have gone on, so r alone is wrong, and the text has
        no next decision to bootstrap from: that step gets no target. Nor does the last decision of a row, unless the
        row still tells that it led to a goal or a hole.
        """
        ids = whole_numbers("ids", ids)
        if ids.ndim != 2:
            raise ValueError(f"ids has shape {ids.shape}: give [B, T], one history a row (ids[None] for a single one)")
        return self._text.decisions(ids)

    def tiles(self, ids: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Where the agent stands at the decisions ``position`` int64 [B, D] of ``ids`` [B, T]: int64 [B, D], the tile,
        -1 where the row begins too late to tell it. Padding of ``position`` gets any number."""
        return self._text.tiles(ids, position)

    def fit(self, episodes: Sequence[Episode], max_tokens: int) -> list[Episode]:
        """The most recent episodes that fit into ``max_tokens``. Whole oldest ones are dropped; it warns once."""
        max_tokens, episodes = whole_number("max_tokens", max_tokens, 0), list(episodes)
        tokens = np.cumsum([len(self.encode_episode(episode)) for episode in reversed(episodes)])
        kept = int((tokens <= max_tokens).sum())
        if episodes and kept == 0:
            raise ValueError(
                f"max_tokens={max_tokens} is less than the {tokens[0]} tokens of the last episode: use a longer context"
            )
        if kept < len(episodes) and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the history has {tokens[-1]} tokens, the context {max_tokens}: the oldest {len(episodes) - kept} of "
                f"{len(episodes)} episodes are dropped (this is said once)",
                stacklevel=2,
            )
        return episodes[len(episodes) - kept :]


def _reject_running_inside(running: Sequence[bool] | np.ndarray) -> None:
    if any(running[:-1]):
        raise ValueError(
            f"episode {int(np.argmax(running))} of {len(running)} has no outcome, but only the last one of a history "
            "may be running: give it one ('limit' if it was cut off) or leave it out"
        )
