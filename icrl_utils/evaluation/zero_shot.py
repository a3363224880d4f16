"""What a language model knows about a history before any training: does it expect again what the history has shown?

Histories are in its own words (`history.words`), on lakes such as agents are trained on: none that is held out. Behind
every action word whose outcome the history tells, three things are read:

    right          the likeliest of the 66 words that can follow (64 tiles, goal, hole) is what the move led to
    right_of_all   so is the likeliest of the model's whole vocabulary
    log_odds       logit of the word goal minus logit of the word hole

The same is asked of a twin with random weights, which says what the architecture brings by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from icrl_utils.evaluation.tables import Table, parts_of
from icrl_utils.history.compact import GOAL_WORD, HOLE_WORD, OBSERVED
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.words import Words
from icrl_utils.lake.held_out import training_maps
from icrl_utils.lake.maps import TRAINING_MAPS
from icrl_utils.llama.adapters import backbone, causal_lm
from icrl_utils.llama.language_model import language_model
from icrl_utils.llama.load import load_llama, random_twin
from icrl_utils.play.collect import Behaviour, collect
from icrl_utils.plots.language_model import plot_zero_shot
from icrl_utils.ranges import checked_seed, whole_number
from icrl_utils.statistics import Interval, interval

COLUMNS = {
    "model": str,
    "history": int,  # 0, 1, ...: each on a lake of its own
    "position": int,  # of the action word, in tokens
    "shown": int,  # how often the history has told before what this move on this tile leads to
    "distance": int,  # tokens since the last time; 0 where it is new
    "outcome": str,  # goal, hole, wall (the move leads nowhere) or tile (another one)
    "right": int,
    "right_of_all": int,
    "log_odds": float,
}
# Chosen before the first look, as are the groups below. The statistic: share of the moves in a group that the model is
# right about, all histories together, with a 95 % interval over histories.
HISTORIES, TOKENS, SEED = 48, 384, 1312
MANY = 10**9
SHOWN = {"0": (0, 0), "1": (1, 1), "2": (2, 2), "3-4": (3, 4), "5-8": (5, 8), "9+": (9, MANY)}
DISTANCE = {"2-8": (2, 8), "10-32": (10, 32), "34-96": (34, 96), "98+": (98, MANY)}
OUTCOMES = ("goal", "hole", "wall", "tile")
UNTOUCHED, TWIN = "SmolLM2, untouched", "random weights"

AT_ONCE = 4  # histories of a forward pass


class Subject(NamedTuple):
    """Who is asked: a model, and its words for the game."""

    name: str
    model: PreTrainedModel
    words: Words


def subjects(name_or_path: str | None = None) -> list[Subject]:
    """The untouched language model, see `llama.language_model.language_model`, and its twin with random weights."""
    folder = language_model(name_or_path)
    words = Words(AutoTokenizer.from_pretrained(folder))
    model = load_llama(folder, dtype=torch.float32)
    return [Subject(UNTOUCHED, model, words), Subject(TWIN, random_twin(model), words)]


def histories(n: int | None = None) -> np.ndarray:
    """int64 [n, TOKENS], in the ids of ``compact``: the first tokens of play on ``n`` training lakes (all HISTORIES by
    default), by the players of the training data."""
    lakes = training_maps(TRAINING_MAPS, HISTORIES, SEED)
    play = collect(lakes, Behaviour(), np.random.default_rng([SEED, 1]), min_tokens=TOKENS, step_tokens=2)
    ids, bounds = HistoryFormat("compact").encode_episodes(play.tiles, play.actions, play.steps, play.outcome)
    begins = bounds[np.concatenate([[0], np.cumsum(play.episodes_per_map)[:-1]])]
    return ids[begins[:, None] + np.arange(TOKENS)][: HISTORIES if n is None else whole_number("n", n, 1)]


def zero_shot(asked: Sequence[Subject], ids: np.ndarray, seed: int = 0, progress: bool = False) -> Table:
    """One row for each subject and each move that ``ids``, int64 [n, T], tell the outcome of. ``seed``, together with
    the place of a history, draws its words; they are the same for all subjects."""
    moves = list(told_moves(ids))
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for subject in asked:
        found = _answers(subject, ids, moves, checked_seed(seed), progress)
        for move, answer in zip(moves, found, strict=True):
            row = {"model": subject.name, **move._asdict(), **answer}
            for name, column in columns.items():
                column.append(row[name])
    return {name: np.array(columns[name], dtype=kind) for name, kind in COLUMNS.items()}


class Move(NamedTuple):
    """A move whose outcome the history tells; see ``COLUMNS``."""

    history: int
    position: int
    shown: int
    distance: int
    outcome: str
    observed: int  # compact id of what it led to


def told_moves(ids: np.ndarray) -> Iterator[Move]:
    """All moves of histories int64 [n, T], in order."""
    history = HistoryFormat("compact")
    decisions = history.decisions(ids)
    tiles = history.tiles(ids, decisions.position)
    for i, row in enumerate(ids):
        before: dict[tuple[int, int], list[int]] = {}  # (tile, action) -> where the history told what it leads to
        for d in np.flatnonzero(decisions.has_target[i]):
            tile, position = int(tiles[i, d]), int(decisions.position[i, d]) + 1
            told = before.setdefault((tile, int(decisions.action[i, d])), [])
            observed = int(row[position + 1])
            ends = {GOAL_WORD: "goal", HOLE_WORD: "hole", tile: "wall"}
            distance = position - told[-1] if told else 0
            yield Move(i, position, len(told), distance, ends.get(observed, "tile"), observed)
            told.append(position)


def _answers(
    subject: Subject, ids: np.ndarray, moves: Sequence[Move], seed: int, progress: bool
) -> Iterator[dict[str, float]]:
    """What ``subject`` says about each of ``moves``."""
    dictionary = np.stack([subject.words.dictionary(np.random.default_rng([seed, i])) for i in range(len(ids))])
    tokens = np.take_along_axis(dictionary, ids, 1)
    for first in tqdm(range(0, len(ids), AT_ONCE), desc=subject.name, disable=not progress):
        hidden = _hidden_states(subject.model, tokens[first : first + AT_ONCE])
        for i, states in enumerate(hidden, first):
            yield from _read(subject, states, dictionary[i], [move for move in moves if move.history == i])


@torch.no_grad()
def _hidden_states(model: PreTrainedModel, tokens: np.ndarray) -> torch.Tensor:
    """[n, T, width], after the last norm."""
    output = backbone(model)(input_ids=torch.from_numpy(tokens).to(model.device), use_cache=False)
    return output.last_hidden_state


@torch.no_grad()
def _read(
    subject: Subject, states: torch.Tensor, dictionary: np.ndarray, moves: Sequence[Move]
) -> Iterator[dict[str, float]]:
    """The three answers to each of the moves of one history; states [T, width]."""
    if not moves:
        return
    logits = causal_lm(subject.model).lm_head(states[[move.position for move in moves]]).cpu().numpy()
    truth = dictionary[[move.observed for move in moves]]
    of_game = dictionary[OBSERVED][logits[:, dictionary[OBSERVED]].argmax(1)]
    odds = logits[:, subject.words.goal] - logits[:, subject.words.hole]
    for right, anything, log_odds in zip(of_game == truth, logits.argmax(1) == truth, odds, strict=True):
        yield {"right": int(right), "right_of_all": int(anything), "log_odds": round(float(log_odds), 2)}


# ---------------------------------------------------------------------------------------------------- what comes of it


def groups(table: Table) -> dict[str, dict[str, np.ndarray]]:
    """question -> group -> bool [rows], of the rows that it counts."""
    seen = table["shown"] > 0
    return {
        "all": {"seen": seen, "new": ~seen},
        "shown": {name: _within(table["shown"], *ends) for name, ends in SHOWN.items()},
        "distance": {name: _within(table["distance"], *ends) for name, ends in DISTANCE.items()},
        "outcome": {name: seen & (table["outcome"] == name) for name in OUTCOMES},
    }


def _within(values: np.ndarray, low: int, high: int) -> np.ndarray:
    inside: np.ndarray = (values >= low) & (values <= high)
    return inside


def share(table: Table, rows: np.ndarray, column: str = "right") -> Interval:
    """Mean of ``column`` over ``rows``, bool [rows of the table], of one model, with a 95 % interval over histories."""
    n = int(table["history"].max()) + 1
    place = table["history"][rows]
    return interval(np.bincount(place, table[column][rows], n), np.bincount(place, minlength=n))


def describe(table: Table) -> str:
    """The shares as a text table, three digits each, and the mean log-odds; n counts moves."""
    lines = [f"{'model':<22}{'moves':<18}{'n':>6}  {'right of 66 words':<21}{'right of all':<21}log-odds goal : hole"]
    for name, part in parts_of(table, "model").items():
        for question, masks in groups(part).items():
            for group, rows in masks.items():
                cells = [_interval_text(share(part, rows, column)) for column in ("right", "right_of_all", "log_odds")]
                label = group if question == "all" else f"{question} {group}"
                lines.append(f"{name:<22}{label:<18}{rows.sum():>6}  {cells[0]:<21}{cells[1]:<21}{cells[2]}")
    return "\n".join(lines)


def _interval_text(value: Interval) -> str:
    return f"{value.estimate:.3f} {value.low:.3f}..{value.high:.3f}"


def plot(table: Table, title: str) -> Figure:
    """The figure of the experiment."""
    parts = parts_of(table, "model")
    masks = {name: groups(part) for name, part in parts.items()}
    rates: Mapping[str, Any] = {
        question: {
            name: {group: share(part, rows) for group, rows in masks[name][question].items()}
            for name, part in parts.items()
        }
        for question in ("shown", "distance", "outcome")
    }
    odds = {
        name: {g: part["log_odds"][rows] for g, rows in masks[name]["outcome"].items()} for name, part in parts.items()
    }
    n = len(np.unique(table["history"]))
    return plot_zero_shot(rates, odds, f"{title}\n{n} histories of {TOKENS} tokens; 95 % intervals over histories")
