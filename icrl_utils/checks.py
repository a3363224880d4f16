"""The checks that students run in the exercises: each says in one line what is wrong, and never raises.

    Passed: ...     the answer is right
    Not yet: ...    what is wrong, with an input, the answer given and the answer wanted
    Open: ...       the stub still raises NotImplementedError

Sections follow the notebooks.
"""

from __future__ import annotations

import copy
import functools
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import torch

from icrl_utils.baselines import RandomPolicy
from icrl_utils.history import Episode, HistoryFormat
from icrl_utils.lake import ACTIONS, PAPER_IN_DISTRIBUTION
from icrl_utils.rollout import rollout

LEFT, DOWN, RIGHT, UP = range(4)


class Wrong(Exception):
    """Raised inside a check; its text is what the student reads after ``Not yet:``."""


def student_check(check: Callable[..., str]) -> Callable[..., None]:
    """A check takes the student's answer, raises ``Wrong`` or returns one sentence of what was shown to be right."""

    @functools.wraps(check)
    def run(*answers, **options) -> None:
        try:
            praise = check(*answers, **options)
        except NotImplementedError:
            print("Open: write the body of the function in the cell above, run it, then run this cell again.")
        except Wrong as wrong:
            print(f"Not yet: {wrong}")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"line {last.lineno} of {last.name}: {last.line}" if last.line else f"in {last.name}"
            print(f"Not yet: your function raised {type(error).__name__}: {error} ({place})")
        else:
            print(f"Passed: {praise}")

    return run


def require(condition: bool, message: str) -> None:
    """Raises ``Wrong(message)`` unless ``condition``."""
    if not condition:
        raise Wrong(message)


def _answer(function: Callable, *arguments):
    """The student's answer to copies of the arguments: an answer that changes its input must not change ours."""
    return function(*(copy.deepcopy(argument) for argument in arguments))


# --------------------------------------------------------------------------------------------------- 00 start here


@student_check
def check_repeat_deaths(repeat_deaths: Callable[[list[Episode]], int], seed: int = 0) -> str:
    """How many episodes end in a hole by a (tile, action) that had killed before."""
    die = Episode((8, 9, 13), (RIGHT, DOWN), "hole")  # from 9 down
    same_hole = Episode((8, 12, 13), (DOWN, RIGHT), "hole")  # the same hole, entered from 12
    elsewhere = Episode((8, 9, 5, 6, 10), (RIGHT, UP, RIGHT, DOWN), "hole")  # from 6 down
    win = Episode((6, 2, 3), (UP, RIGHT), "goal")
    lost = Episode((8, 8), (LEFT,), "limit")
    cases = [
        ([die], 0, "one death is no repetition: count a death only if the same edge killed in an *earlier* episode"),
        ([die, die], 1, "9, down killed twice: the second time is a repetition"),
        ([die, same_hole], 0, "the hole 13 was entered from 9 and then from 12. An edge is the pair (tile before the "
                              "last action, last action), not the hole"),
        ([die, elsewhere], 0, "'down' killed twice, but once at 9 and once at 6. An edge is the pair (tile before the "
                              "last action, last action), not the action alone"),
        ([win, win], 0, "two episodes that reach the goal by the same edge are no deaths: look at `outcome`"),
        ([lost, lost], 0, "an episode that was cut off ('limit') is no death: look at `outcome`"),
        ([die, win, die, same_hole, die], 2, "9, down killed three times: the second and the third are repetitions, "
                                             "whatever happened in between"),
    ]  # fmt: skip
    for episodes, wanted, reason in cases:
        given = _answer(repeat_deaths, episodes)
        require(given == wanted, f"{_short(episodes)} -> you say {given!r}, it is {wanted}. {reason}.")
    lakes = PAPER_IN_DISTRIBUTION.sample(20, seed)
    records = rollout(RandomPolicy(), lakes, "greedy", seed=seed)
    for i in range(len(lakes)):
        episodes = records.episodes(i)
        deaths = [(e.tiles[-2], e.actions[-1]) for e in episodes if e.outcome == "hole"]
        wanted, given = len(deaths) - len(set(deaths)), _answer(repeat_deaths, episodes)
        require(given == wanted, f"30 random episodes on {lakes[i].id}: you count {given!r}, there are {wanted}.")
    return "repeated deaths are counted by edge, on six hand-made histories and 20 lakes of random play."


def _short(episodes: list[Episode]) -> str:
    return "[" + ", ".join(f"{e.tiles} {e.outcome}" for e in episodes) + "]"


# ---------------------------------------------------------------------------------- 01 environment and history


@student_check
def check_next_tile(next_tile: Callable[[int, int, int, int], int], seed: int = 0) -> str:
    """next_tile(tile, action, height, width) -> tile, on ice without holes and goals."""
    inside = {action: _answer(next_tile, 7, action, 3, 5) for action in range(4)}  # row 1, column 2 of 3 x 5
    wanted = {LEFT: 6, DOWN: 12, RIGHT: 8, UP: 2}
    if inside != wanted and sorted(inside.values()) == sorted(wanted.values()):
        raise Wrong(
            "your four moves go to the right tiles, but in another order. Gymnasium numbers the actions 0 left, "
            f"1 down, 2 right, 3 up; on 3 x 5 you move from 7 to {list(inside.values())}, it is [6, 12, 8, 2]."
        )
    if inside != wanted and inside == {LEFT: 6, DOWN: 10, RIGHT: 8, UP: 4}:
        raise Wrong(
            "up and down change the number by one whole row, and a row has `width` tiles, not `height`: on 3 x 5 "
            "(height x width) down from 7 is 12."
        )
    require(inside == wanted, f"on 3 x 5 the moves left, down, right, up from 7 lead to {list(inside.values())} "
                              "with your function, it is [6, 12, 8, 2].")  # fmt: skip
    walls = [
        (5, LEFT, "the left edge: tile 4 is at the end of the row above, not next to tile 5"),
        (9, RIGHT, "the right edge: tile 10 is at the beginning of the row below, not next to tile 9"),
        (2, UP, "the upper edge"),
        (12, DOWN, "the lower edge"),
    ]
    for tile, action, edge in walls:
        given = _answer(next_tile, tile, action, 3, 5)
        require(given == tile, f"on 3 x 5, {ACTIONS[action]} from {tile} runs against {edge}. The agent stays on "
                               f"{tile}, you say {given!r}.")  # fmt: skip
    rng = np.random.default_rng(seed)
    for height, width in rng.integers(1, 9, (50, 2)).tolist():
        tile, action = int(rng.integers(height * width)), int(rng.integers(4))
        wanted_tile = _next_tile(tile, action, height, width)
        given = _answer(next_tile, tile, action, height, width)
        require(given == wanted_tile, f"on {height} x {width} (height x width), {ACTIONS[action]} from {tile}: you "
                                      f"say {given!r}, it is {wanted_tile}.")  # fmt: skip
    return "moves and walls, on 50 lakes of many sizes."


def _next_tile(tile: int, action: int, height: int, width: int) -> int:
    row, column = divmod(tile, width)
    row += (action == DOWN) - (action == UP)
    column += (action == RIGHT) - (action == LEFT)
    return min(max(row, 0), height - 1) * width + min(max(column, 0), width - 1)


@student_check
def check_decision_positions(positions: Callable[[list[str]], list[int]], seed: int = 0) -> str:
    """positions(words of a compact history) -> where Q is read."""
    words = "8 right 9 down hole reset 8 up 4".split()
    given = _as_list(_answer(positions, words))
    if given == [1, 3, 7]:
        raise Wrong(
            f"{' '.join(words)!r}: you give {given}, where the action words stand. The logits that predict a token "
            "stand at the position *before* it: Q is read at [0, 2, 6]. At the action itself it is too late."
        )
    if given == [0, 2, 6, 8]:
        raise Wrong(
            f"{' '.join(words)!r}: position 8 is the open end. No action follows in the text, so there is nothing to "
            "learn from yet: a decision is a position whose *next* word is an action."
        )
    require(given == [0, 2, 6], f"{' '.join(words)!r}: you give {given}, it is [0, 2, 6].")
    given = _as_list(_answer(positions, "right 9 down hole reset 8 up".split()))
    require(given == [1, 5], f"a slice may begin anywhere: 'right 9 down hole reset 8 up' has its decisions at [1, 5], "
                             f"you give {given}.")  # fmt: skip
    for words in _slices(seed):
        is_action = [word in ACTIONS for word in words]
        wanted = [t for t in range(len(words) - 1) if is_action[t + 1]]
        given = _as_list(_answer(positions, words))
        require(given == wanted, f"{' '.join(words[:14])} ...: you give {given[:6]}..., it is {wanted[:6]}...")
    return "decisions found in 50 slices of random play, wherever they begin and end."


@student_check
def check_learn_from(learn_from: Callable[[list[str]], list[str]], seed: int = 0) -> str:
    """learn_from(words) -> for each decision "reward", "next" or "nothing": what its target is made of."""
    cases = [
        ("8 right 9 down hole reset 8", ["next", "reward"],
         "a hole ends the game: nothing comes after it, so the target is the reward alone, which is 0"),
        ("6 up 2 right goal reset 8", ["next", "reward"],
         "a goal ends the game: the target is the reward alone, which is 1"),
        ("8 left 8 left limit reset 8 up 4 up 0", ["next", "nothing", "next", "nothing"],
         "'limit' is not the end of the game, only the clock was stopped. The reward alone would teach that going on "
         "is worth nothing, and the next decision in the text belongs to another episode: from the cut step nothing "
         "can be learned (nor from the last one, 'up 0': what comes after it is not in the text)"),
    ]  # fmt: skip
    for text, wanted, reason in cases:
        given = _as_list(_answer(learn_from, text.split()))
        require(len(given) == len(wanted), f"{text!r} has {len(wanted)} decisions, you answer for {len(given)}.")
        require(given == wanted, f"{text!r}: you say {given}, it is {wanted}; {reason}.")
    history = HistoryFormat("compact")
    for words in _slices(seed):
        d = history.decisions(history.tokenize(" ".join(words))[None])
        names = np.where(d.terminated, "reward", np.where(d.has_target, "next", "nothing"))
        wanted, given = names[d.valid].tolist(), _as_list(_answer(learn_from, words))
        require(given == wanted, f"'... {' '.join(words[-12:])}': you end with {given[-4:]}, it is {wanted[-4:]}.")
    return "every decision of 50 slices of random play knows what its target is made of."


def _slices(seed: int) -> Iterator[list[str]]:
    """Words of 50 slices of random play, some with a step limit that cuts episodes off; they begin anywhere."""
    rng = np.random.default_rng(seed)
    history = HistoryFormat("compact")
    for k, limit in enumerate((6, 100)):
        lakes = PAPER_IN_DISTRIBUTION.sample(25, rng)
        records = rollout(RandomPolicy(), lakes, "greedy", seed=seed + k, episodes=6, step_limit=limit)
        for i in range(len(lakes)):
            words = history.render(records.episodes(i)).split()
            first = int(rng.integers(len(words) // 2))
            yield words[first : first + int(rng.integers(6, 60))]


def _as_list(answer) -> list:
    """Lists, arrays and tensors alike."""
    return answer.tolist() if hasattr(answer, "tolist") else list(answer)


# ------------------------------------------------------------------------------------------ 02 Q-values from logits


@student_check
def check_read_q(read_q: Callable[..., torch.Tensor], seed: int = 0) -> str:
    """read_q(logits [B, T, V], position [B, D], action_ids [4], scale, offset) -> Q [B, D, 4]."""
    for k in range(20):
        generator = torch.Generator().manual_seed(1_000 * seed + k)
        b, t, v, d = (int(n) for n in torch.randint(2, 6, (4,), generator=generator))
        v += 7
        logits = torch.randn(b, t + 2, v, generator=generator) * 3
        position = torch.randint(0, t + 1, (b, d), generator=generator)
        action_ids = torch.randperm(v, generator=generator)[:4]  # in any order, as in a real vocabulary
        scale, offset = 0.3 + k / 20, 1.0 + k / 10
        rows = torch.arange(b)[:, None]
        z = scale * logits[rows, position][..., action_ids] - offset
        given = _answer(read_q, logits, position, action_ids, scale, offset)
        require(isinstance(given, torch.Tensor), f"read_q gives a {type(given).__name__}, it has to be a tensor.")
        shape = f"{b} histories of {d} decisions: Q has the shape ({b}, {d}, 4), yours has {tuple(given.shape)}."
        require(given.shape == (b, d, 4), shape)
        here = logits[rows, position][..., action_ids]
        late = scale * logits[rows, position + 1][..., action_ids] - offset
        in_order = scale * logits[rows, position][..., action_ids.sort().values] - offset
        first_row = scale * logits[0][position][..., action_ids] - offset
        mistakes = [
            (late.sigmoid(), "you read one position too late, at the action word itself. The logits that *predict* the "
                             "action stand at the decision, one position before it"),
            (in_order.sigmoid(), "you have sorted the action ids. Their order is the order of the actions, left, down, "
                                 "right, up, whatever numbers they are"),
            (first_row.sigmoid(), "every history has its own logits: you took those of the first one for all"),
            ((scale * (here - offset)).sigmoid(), "z = scale * logit - offset: the offset is taken off after scaling"),
            (z, "this is z. Q = sigmoid(z)"),
            ((-z).sigmoid(), "the sign is turned: Q must rise with the logit, or the worst action becomes the best"),
            ((scale * here + offset).sigmoid(), "the offset is taken off, not added"),
        ]  # fmt: skip
        if not torch.allclose(given.float(), z.sigmoid(), atol=1e-5):
            for mistake, reason in mistakes:
                require(not torch.allclose(given.float(), mistake, atol=1e-5), f"{reason}.")
            raise Wrong(f"Q[0, 0] should be {_numbers(z.sigmoid()[0, 0])}, yours is {_numbers(given[0, 0])}.")
    return "Q is read at the decisions, in the order of the actions, on 20 random tables of logits."


@student_check
def check_greedy(greedy: Callable[[torch.Tensor], torch.Tensor], seed: int = 0) -> str:
    """greedy(q [B, D, 4]) -> int64 [B, D]: the number of the best action."""
    generator = torch.Generator().manual_seed(seed)
    for b, d in ((2, 3), (4, 4), (1, 5), (6, 2), (4, 1)):
        q = torch.rand(b, d, 4, generator=generator)
        given, wanted = _answer(greedy, q), q.argmax(-1)
        require(isinstance(given, torch.Tensor), f"greedy gives a {type(given).__name__}, it has to be a tensor.")
        require(not given.is_floating_point(), "you return the largest value; wanted is which action has it (argmax).")
        if given.shape != wanted.shape:
            raise Wrong(
                f"for q of shape ({b}, {d}, 4) you return shape {tuple(given.shape)}, it is ({b}, {d}): one action for "
                "each decision, so the maximum runs over the *last* axis, the four actions."
            )
        for axis in (0, 1):
            other = f"your maximum runs over axis {axis} of [history, decision, action]; wanted is the best action."
            require(not torch.equal(given, q.argmax(axis)), other)
        require(not torch.equal(given, q.argmin(-1)), "this is the worst action: argmax, not argmin.")
        wrong = f"q[0, 0] = {_numbers(q[0, 0])}: the best action is {int(wanted[0, 0])}, you say {int(given[0, 0])}."
        require(torch.equal(given, wanted), wrong)
    return "the best of four actions for every decision."


@student_check
def check_fit_readout(fit_readout: Callable[..., tuple[float, float]], seed: int = 0) -> str:
    """fit_readout(logits [N, 4], middle, spread) -> (scale, offset): median of Q = middle, std of z = spread."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        level, width = rng.uniform(-5, 25), rng.uniform(0.2, 4)
        logits = rng.normal(level, width, (200, 4))
        middle, spread = rng.uniform(0.05, 0.6), rng.uniform(0.2, 1.5)
        answer = _answer(fit_readout, logits, middle, spread)
        require(isinstance(answer, tuple) and len(answer) == 2, "return two numbers: scale, offset.")
        scale, offset = map(float, answer)
        require(scale > 0, f"scale = {scale:.3g}: it must be positive, a negative one would turn best into worst.")
        z = scale * logits - offset
        require(abs(z.std() - spread) < 0.01 * spread, f"logits around {level:.1f}: z = scale * logit - offset has the "
                f"standard deviation {z.std():.3g}, wanted is {spread:.3g}. Only the scale can change it.")  # fmt: skip
        q = np.median(1 / (1 + np.exp(-z)))
        reversed_sign = np.median(1 / (1 + np.exp(-(scale * logits + offset))))
        require(abs(reversed_sign - middle) > 0.01 or abs(q - middle) < 0.01,
                "your offset has the wrong sign: it is taken *off*, z = scale * logit - offset.")  # fmt: skip
        before = np.median(1 / (1 + np.exp(-(scale * (logits - offset)))))
        require(abs(before - middle) > 0.01 or abs(q - middle) < 0.01,
                "your offset fits scale * (logit - offset), but it is taken off after scaling.")  # fmt: skip
        require(abs(q - middle) < 0.01, f"the median of Q = sigmoid(z) is {q:.3f}, wanted is {middle:.3f}. The z with "
                "sigmoid(z) = p is log(p / (1 - p)).")  # fmt: skip
    return "scale and offset bring ten sets of logits to the wanted middle and spread; the best action stays the best."


def _numbers(values) -> str:
    return "[" + ", ".join(f"{float(value):.3f}" for value in values) + "]"
