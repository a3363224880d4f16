"""The students' checks: stored wrong answers are rejected for the reason that is wrong with them, right ones pass."""

import numpy as np
import pytest
import torch

from icrl_utils import checks
from icrl_utils.history import HistoryFormat
from icrl_utils.lake import ACTIONS

SEEDS = range(10)


def verdict(capsys, check, answer, **options) -> str:
    """The one line that a student reads."""
    check(answer, **options)
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    return text


def assert_rejected(capsys, check, answer, reason: str) -> None:
    """The check says what is wrong, on every seed."""
    for seed in SEEDS:
        text = verdict(capsys, check, answer, seed=seed)
        assert text.startswith("Not yet: ") and reason in text, text


def assert_passes(capsys, check, answer) -> None:
    for seed in SEEDS:
        text = verdict(capsys, check, answer, seed=seed)
        assert text.startswith("Passed: "), text


def open_stub(*arguments):
    raise NotImplementedError


def broken(*arguments):
    return 1 / 0


ALL_CHECKS = [check for name, check in vars(checks).items() if name.startswith("check_")]


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
def test_every_check_knows_an_open_stub_and_reports_errors_of_the_student(check, capsys):
    assert verdict(capsys, check, open_stub).startswith("Open: ")
    text = verdict(capsys, check, broken)
    assert text.startswith("Not yet: ") and "ZeroDivisionError" in text and "broken" in text


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("answer", [None, -1, "goal"])
def test_no_check_accepts_nonsense(check, answer, capsys):
    assert verdict(capsys, check, lambda *arguments: answer).startswith("Not yet: ")


# --------------------------------------------------------------------------------------------------- 00 start here


def repeat_deaths(episodes, edge=lambda e: (e.tiles[-2], e.actions[-1]), ends=("hole",), first_counts=False):
    seen, count = set(), 0
    for episode in episodes:
        if episode.outcome in ends:
            count += first_counts or edge(episode) in seen
            seen.add(edge(episode))
    return count


def test_repeat_deaths_right(capsys):
    assert_passes(capsys, checks.check_repeat_deaths, repeat_deaths)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (dict(edge=lambda e: e.tiles[-1]), "not the hole"),
        (dict(edge=lambda e: e.actions[-1]), "not the action alone"),
        (dict(first_counts=True), "one death is no repetition"),
        (dict(ends=("hole", "goal")), "are no deaths"),
        (dict(ends=("hole", "limit")), "is no death"),
    ],
)
def test_repeat_deaths_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_repeat_deaths, lambda episodes: repeat_deaths(episodes, **wrong), reason)


def test_repeat_deaths_forgets_after_another_death(capsys):
    def last_death_only(episodes):
        deaths = [(e.tiles[-2], e.actions[-1]) for e in episodes if e.outcome == "hole"]
        return sum(a == b for a, b in zip(deaths, deaths[1:], strict=False))

    assert_rejected(capsys, checks.check_repeat_deaths, last_death_only, "whatever happened in between")


# ---------------------------------------------------------------------------------- 01 environment and history


def next_tile(tile, action, height, width, order=ACTIONS, walls=True, stride=None):
    stride = stride or width
    row, column = divmod(tile, width)
    drow, dcolumn = {"left": (0, -1), "down": (1, 0), "right": (0, 1), "up": (-1, 0)}[order[action]]
    if not walls:
        return tile + drow * stride + dcolumn
    if 0 <= row + drow < height and 0 <= column + dcolumn < width:
        return tile + drow * stride + dcolumn
    return tile


def test_next_tile_right(capsys):
    assert_passes(capsys, checks.check_next_tile, next_tile)


def modulo_walls(tile, action, height, width):
    row, column = divmod(tile, width)
    drow, dcolumn = ((0, -1), (1, 0), (0, 1), (-1, 0))[action]
    return (row + drow) % height * width + (column + dcolumn) % width


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda *a: next_tile(*a, order=("up", "down", "left", "right")), "in another order"),
        (lambda *a: next_tile(*a, order=("left", "right", "up", "down")), "in another order"),
        (lambda *a: next_tile(*a, walls=False), "the left edge"),
        (modulo_walls, "the left edge"),
        (lambda tile, action, height, width: next_tile(tile, action, height, width, stride=height), "not `height`"),
        (lambda tile, action, height, width: max(0, next_tile(tile, action, height, width, walls=False)), "left edge"),
    ],
)
def test_next_tile_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_next_tile, wrong, reason)


def test_next_tile_that_forgets_only_the_lower_edge(capsys):
    def wrong(tile, action, height, width):
        return tile + width if action == 1 else next_tile(tile, action, height, width)

    assert_rejected(capsys, checks.check_next_tile, wrong, "the lower edge")


def positions(words):
    return [t for t in range(len(words) - 1) if words[t + 1] in ACTIONS]


def test_decision_positions_right(capsys):
    assert_passes(capsys, checks.check_decision_positions, positions)
    assert_passes(capsys, checks.check_decision_positions, lambda words: np.array(positions(words)))


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda words: [t + 1 for t in positions(words)], "where the action words stand"),
        (lambda words: [t for t, word in enumerate(words) if word.isdecimal()], "open end"),
        (lambda words: list(range(0, len(words) - 2, 2)), "it is [0, 2, 6]"),  # every second word, resets included
        (lambda words: [t for t in positions(words) if words[t] != "8"], "it is [0, 2, 6]"),
        (lambda words: positions(words)[::-1], "it is [0, 2, 6]"),
    ],
)
def test_decision_positions_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_decision_positions, wrong, reason)


def learn_from(words, limit="nothing", last="nothing"):
    answers = []
    for t in positions(words):
        after = words[t + 2] if t + 2 < len(words) else ""
        if after in ("goal", "hole"):
            answers.append("reward")
        elif after == "limit":
            answers.append(limit)
        else:
            has_next = t + 3 < len(words) and words[t + 3] in ACTIONS
            answers.append("next" if has_next else last)
    return answers


def test_learn_from_right(capsys):
    assert_passes(capsys, checks.check_learn_from, learn_from)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda words: learn_from(words, limit="reward"), "only the clock was stopped"),  # truncation as termination
        (lambda words: learn_from(words, limit="next"), "belongs to another episode"),
        (lambda words: learn_from(words, last="next"), "not in the text"),
        (lambda words: ["next"] * len(positions(words)), "a hole ends the game"),  # done ignored
        (lambda words: learn_from(words)[:-1], "decisions, you answer for"),
    ],
)
def test_learn_from_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_learn_from, wrong, reason)


def test_the_reference_answers_agree_with_the_package():
    """What the checks take for right is what the course's own code does."""
    history = HistoryFormat("compact")
    words = "8 right 9 down hole reset 8 left 8 left limit reset 8 up 4 right goal reset 8 up 4 up 0".split()
    d = history.decisions(history.tokenize(" ".join(words))[None])
    assert d.position[d.valid].tolist() == positions(words)
    names = np.where(d.terminated, "reward", np.where(d.has_target, "next", "nothing"))[d.valid]
    assert names.tolist() == learn_from(words)


# ------------------------------------------------------------------------------------------ 02 Q-values from logits


def read_q(logits, position, action_ids, scale, offset, shift=0, sign=1.0):
    rows = torch.arange(len(logits))[:, None]
    return torch.sigmoid(sign * (scale * logits[rows, position + shift][..., action_ids] - offset))


def test_read_q_right(capsys):
    assert_passes(capsys, checks.check_read_q, read_q)


def gathered(logits, position):
    return logits[torch.arange(len(logits))[:, None], position]


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda *a: read_q(*a, shift=1), "one position too late"),
        (lambda x, p, ids, s, o: read_q(x, p, ids.sort().values, s, o), "sorted the action ids"),
        (lambda x, p, ids, s, o: torch.sigmoid(s * x[0][p][..., ids] - o), "its own logits"),
        (lambda x, p, ids, s, o: torch.sigmoid(s * (gathered(x, p)[..., ids] - o)), "taken off after scaling"),
        (lambda x, p, ids, s, o: s * gathered(x, p)[..., ids] - o, "Q = sigmoid(z)"),
        (lambda *a: read_q(*a, sign=-1.0), "the sign is turned"),
        (lambda x, p, ids, s, o: read_q(x, p, ids, s, -o), "not added"),
        (lambda x, p, ids, s, o: torch.sigmoid(s * gathered(x, p) - o), "has the shape"),  # the whole vocabulary
        (lambda x, p, ids, s, o: torch.sigmoid(s * x[..., ids] - o), "has the shape"),  # every position
        (lambda x, p, ids, s, o: read_q(x, p, ids, s, o).numpy(), "has to be a tensor"),
        (lambda x, p, ids, s, o: gathered(x, p)[..., ids].softmax(-1), "should be"),
    ],
)
def test_read_q_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_read_q, wrong, reason)


def test_greedy_right(capsys):
    assert_passes(capsys, checks.check_greedy, lambda q: q.argmax(-1))


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda q: q.argmax(1), "last* axis"),
        (lambda q: q.argmax(0), "last* axis"),
        (lambda q: q.argmax(), "one action for each decision"),
        (lambda q: q.max(-1).values, "argmax"),
        (lambda q: q.argmin(-1), "worst action"),
        (lambda q: q.argmax(1) if q.shape[1] == 4 else q.argmax(-1), "axis 1"),
        (lambda q: torch.zeros(q.shape[:2], dtype=torch.int64), "the best action is"),
    ],
)
def test_greedy_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_greedy, wrong, reason)


def fit_readout(logits, middle, spread):
    scale = spread / logits.std()
    return scale, scale * np.median(logits) - np.log(middle / (1 - middle))


def test_fit_readout_right(capsys):
    assert_passes(capsys, checks.check_fit_readout, fit_readout)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda x, m, s: (-fit_readout(x, m, s)[0], 0.0), "must be positive"),
        (lambda x, m, s: (fit_readout(x, m, s)[0], -fit_readout(x, m, s)[1]), "wrong sign"),
        (lambda x, m, s: (fit_readout(x, m, s)[0], fit_readout(x, m, s)[1] * x.std() / s), "after scaling"),
        (lambda x, m, s: (s / x.var(), fit_readout(x, m, s)[1]), "Only the scale can change it"),
        (lambda x, m, s: (s / x.std(), s / x.std() * np.median(x) - m), "log(p / (1 - p))"),
        (lambda x, m, s: s / x.std(), "two numbers"),
    ],
)
def test_fit_readout_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_fit_readout, wrong, reason)
