"""The checks that students run in the exercises, in the order of the notebooks.

Each takes the student's function and the seed of its random cases, and prints one line:

    Passed: ...     the answer is right
    Not yet: ...    what is wrong, for which input, what came, what should have come, and what to do about it
    Open: ...       the function is still the stub of the exercise

A check first asks for cases made by hand, each of which catches one mistake and has the advice for it, then for random
ones, so that no result can be written down beforehand. `course.answers` tells how a function is asked and its
answer read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from icrl_utils.course.answers import Answer, Failed, NotAttempted, Wrong, ask, compare, compare_numbers, show
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.maps import ACTIONS, PAPER_IN_DISTRIBUTION
from icrl_utils.play.baselines import RandomPolicy
from icrl_utils.play.rollout import rollout

LEFT, DOWN, RIGHT, UP = range(4)


def student_check(check: Callable[[Callable, int], str]) -> Callable[..., None]:
    """Makes a check print its verdict. It returns what was shown to be right, or raises what is not.

    Every other error is a bug of the course, not of the student, and is left to surface as one.
    """

    @functools.wraps(check)
    def run(answer: Callable, seed: int = 0) -> None:
        try:
            print(f"Passed: {check(answer, seed)}")
        except NotAttempted:
            print("Open: write the body of the function in the cell above, run it, then run this cell again.")
        except (Wrong, Failed) as verdict:
            print(f"Not yet: {verdict}")

    return run


# --------------------------------------------------------------------------------------------------- 00 start here


@student_check
def check_repeat_deaths(repeat_deaths: Callable[[list[Episode]], int], seed: int) -> str:
    """repeat_deaths(episodes) -> how many end in a hole by a (tile, action) that had killed before."""
    die = Episode((8, 9, 13), (RIGHT, DOWN), "hole")  # from 9 down
    same_hole = Episode((8, 12, 13), (DOWN, RIGHT), "hole")  # the same hole, entered from 12
    elsewhere = Episode((8, 9, 5, 6, 10), (RIGHT, UP, RIGHT, DOWN), "hole")  # from 6 down
    win = Episode((6, 2, 3), (UP, RIGHT), "goal")
    lost = Episode((8, 8), (LEFT,), "limit")
    cases = [
        ([die], 0, "One death is no repetition: count a death only if the same edge killed in an *earlier* episode."),
        ([die, die], 1, "9, down killed twice: the second time is a repetition."),
        ([die, same_hole], 0, "The hole 13 was entered from 9 and then from 12. An edge is the pair (tile before the "
                              "last action, last action), not the hole."),
        ([die, elsewhere], 0, "'down' killed twice, but once at 9 and once at 6. An edge is the pair (tile before the "
                              "last action, last action), not the action alone."),
        ([win, win], 0, "Two episodes that reach the goal by the same edge are no deaths: look at `outcome`."),
        ([lost, lost], 0, "An episode that was cut off ('limit') is no death: look at `outcome`."),
        ([die, die, die], 2, "9, down killed three times: the second and the third are both repetitions."),
        ([die, win, die, same_hole, die], 2, "9, down killed three times: the second and the third are repetitions, "
                                             "whatever happened in between."),
    ]  # fmt: skip
    for episodes, wanted, advice in cases:
        answer = ask(repeat_deaths, episodes)
        compare(answer.asked, answer.whole(), wanted, [], advice)
    for lake, episodes in _random_play(seed):
        deaths = [(e.tiles[-2], e.actions[-1]) for e in episodes if e.outcome == "hole"]
        answer = ask(repeat_deaths, episodes)
        advice = f"This was random play on the lake {lake}; its deaths, in order: {show(deaths)}."
        compare(answer.asked, answer.whole(), len(deaths) - len(set(deaths)), [], advice)
    return "repeated deaths are counted by edge, on eight hand-made histories and 20 lakes of random play."


@functools.cache
def _random_play(seed: int) -> list[tuple[str, list[Episode]]]:
    """Names of 20 lakes, each with 30 episodes of random play."""
    lakes = PAPER_IN_DISTRIBUTION.sample(20, seed)
    records = rollout(RandomPolicy(), lakes, "greedy", seed=seed)
    return [(lake.id, records.episodes(i)) for i, lake in enumerate(lakes)]


# ---------------------------------------------------------------------------------- 01 environment and history


@student_check
def check_next_tile(next_tile: Callable[[int, int, int, int], int], seed: int) -> str:
    """next_tile(tile, action, height, width) -> tile, on ice without holes and goals."""
    answers = [ask(next_tile, 7, action, 3, 5) for action in range(4)]  # row 1, column 2 of 3 x 5
    inside, wanted = [answer.whole() for answer in answers], [6, 12, 8, 2]
    asked = f"{answers[0].asked} and the same with the actions 1, 2, 3"
    mistakes = [
        ([6, 10, 8, 4], "Up and down change the number by one whole row, and a row has `width` tiles, not `height`."),
        ([6, 8, 8, 6], "Up and down change the number by one whole row, that is, by `width`."),
    ]
    otherwise = "Write the number as row * width + column; a move changes one of the two by 1."
    if sorted(inside) == sorted(wanted):
        otherwise = (
            "Your four moves go to the right tiles, but in another order: Gymnasium numbers the actions 0 left, 1 "
            "down, 2 right, 3 up."
        )
    compare(asked, inside, wanted, mistakes, otherwise)
    walls = [
        (5, LEFT, "the left edge: tile 4 is at the end of the row above, not next to tile 5"),
        (9, RIGHT, "the right edge: tile 10 is at the beginning of the row below, not next to tile 9"),
        (2, UP, "the upper edge"),
        (12, DOWN, "the lower edge"),
    ]
    for tile, action, edge in walls:
        answer = ask(next_tile, tile, action, 3, 5)
        advice = f"On 3 x 5 (height x width), {ACTIONS[action]} from {tile} runs against {edge}. The agent stays."
        compare(answer.asked, answer.whole(), tile, [], advice)
    rng = np.random.default_rng(seed)
    for height, width in rng.integers(1, 9, (50, 2)).tolist():
        tile, action = int(rng.integers(height * width)), int(rng.integers(4))
        answer = ask(next_tile, tile, action, height, width)
        advice = f"That is {ACTIONS[action]} on a lake of {height} rows with {width} tiles each."
        compare(answer.asked, answer.whole(), _next_tile(tile, action, height, width), [], advice)
    return "moves and walls, on 50 lakes of many sizes."


def _next_tile(tile: int, action: int, height: int, width: int) -> int:
    row, column = divmod(tile, width)
    row += (action == DOWN) - (action == UP)
    column += (action == RIGHT) - (action == LEFT)
    return min(max(row, 0), height - 1) * width + min(max(column, 0), width - 1)


@student_check
def check_decision_positions(positions: Callable[[list[str]], list[int]], seed: int) -> str:
    """positions(words of a compact history) -> where Q is read, in rising order."""
    by_hand = ["8 right 9 down hole reset 8 up 4", "down hole reset 8 right 9 up"]
    for words in [*map(str.split, by_hand), *_slices(seed)]:
        is_action = [word in ACTIONS for word in words]
        wanted = [t for t in range(len(words) - 1) if is_action[t + 1]]
        answer = ask(positions, words)
        if wanted and all(isinstance(entry, bool) for entry in answer.entries()):
            advice = "You answer True or False for every word; wanted are the positions at which it is True."
            raise Wrong(answer.asked, show(answer.value), show(wanted), advice)
        given = answer.wholes()
        late = (
            "There the action words themselves stand. The logits that predict a token stand at the position *before* "
            "it; at the action it is too late."
        )
        mistakes = [
            ([t + 1 for t in wanted], late),
            ([t for t, here in enumerate(is_action) if here], late),
            ([t for t, word in enumerate(words) if word.isdecimal()],
             "You take every tile. One that is the open end of the text, or comes before `limit`, has no action after "
             "it: a decision is a position whose *next* word is an action."),
            (list(range(0, len(words) - 1, 2)),
             "You take every second word. `hole`, `goal` and `reset` disturb the step of two: look at the next word."),
            ([t for t in wanted if words[t - 1] != "reset"],
             "You leave out the first decision after a reset; it is a decision like any other."),
        ]  # fmt: skip
        otherwise = "A decision is a position t with words[t + 1] in left, down, right, up."
        if sorted(given) == wanted:
            otherwise = "These are the right positions, but not in rising order."
        compare(answer.asked, given, wanted, mistakes, otherwise)
    return "decisions found in 50 slices of random play, wherever they begin and end."


@student_check
def check_learn_from(learn_from: Callable[[list[str]], list[str]], seed: int) -> str:
    """learn_from(words) -> for each decision "reward", "next" or "nothing": what its target is made of."""
    cases = [
        ("8 right 9 down hole reset 8", ["next", "reward"],
         "A hole ends the game: nothing comes after it, so the target is the reward alone, which is 0."),
        ("6 up 2 right goal reset 8", ["next", "reward"],
         "A goal ends the game: the target is the reward alone, which is 1."),
        ("8 left 8 left limit reset 8", ["next", "nothing"],
         "'limit' is not the end of the game, only the clock was stopped. The reward alone would teach that going on "
         "is worth nothing, and the next decision in the text belongs to another episode: from the cut step nothing "
         "can be learned."),
        ("8 left 8 left limit reset 8 up 4 down 8", ["next", "nothing", "next", "nothing"],
         "What comes after the last decision, 'down 8', is not in the text: nothing can be learned from it, nor from "
         "the one that 'limit' cut off, for the decision after that belongs to another episode."),
    ]  # fmt: skip
    for text, wanted, advice in cases:
        _compare_labels(learn_from, text.split(), wanted, advice)
    history = HistoryFormat("compact")
    for words in _slices(seed):
        d = history.decisions(history.tokenize(" ".join(words))[None])
        labels = np.where(d.terminated, "reward", np.where(d.has_target, "next", "nothing"))
        _compare_labels(learn_from, words, labels[d.valid].tolist(), "")
    return "every decision of 50 slices of random play knows what its target is made of."


def _compare_labels(learn_from: Callable, words: list[str], wanted: list[str], advice: str) -> None:
    answer = ask(learn_from, words)
    given = answer.entries()
    strange = [label for label in given if label not in ("reward", "next", "nothing")]
    if strange:
        raise Wrong(
            answer.asked, f"a list with {show(strange[0])}", "'reward', 'next' or 'nothing'", "Use these three."
        )
    if len(given) != len(wanted):
        raise Wrong(answer.asked, f"{len(given)} answers", f"{len(wanted)}", "Give one for each decision, in order.")
    if given != wanted:
        first = next(k for k in range(len(wanted)) if given[k] != wanted[k])
        position = [t for t in range(len(words) - 1) if words[t + 1] in ACTIONS][first]
        place = f"Look at the decision that begins {' '.join(words[position : position + 4])!r}."
        compare(answer.asked, given, wanted, [], advice or place)


@functools.cache
def _slices(seed: int) -> list[list[str]]:
    """Words of 50 slices of random play, some with a step limit that cuts episodes off; they begin anywhere."""
    rng = np.random.default_rng(seed)
    history = HistoryFormat("compact")
    slices = []
    for k, limit in enumerate((6, 100)):
        lakes = PAPER_IN_DISTRIBUTION.sample(25, rng)
        records = rollout(RandomPolicy(), lakes, "greedy", seed=seed + k, episodes=6, step_limit=limit)
        for i in range(len(lakes)):
            words = history.render(records.episodes(i)).split()
            first = int(rng.integers(len(words) // 2))
            slices.append(words[first : first + int(rng.integers(6, 60))])
    return slices


# ------------------------------------------------------------------------------------------ 02 Q-values from logits


@student_check
def check_read_q(read_q: Callable[..., Tensor], seed: int) -> str:
    """read_q(logits [B, T, V], position [B, D], action_ids [4], scale, offset) -> Q [B, D, 4]."""
    for k in range(20):
        generator = torch.Generator().manual_seed(1_000 * seed + k)
        b, d, t, v = (int(n) for n in torch.randint(4, (4,), generator=generator) + torch.tensor([2, 2, 6, 12]))
        logits = torch.randn(b, t, v, generator=generator) * 3
        position = torch.randint(t - 1, (b, d), generator=generator)  # fewer than t: no axis looks like another
        action_ids = torch.randperm(v, generator=generator)[:4]  # in any order, as in a real vocabulary
        scale, offset = 0.3 + k / 20, 1.5 + k / 10
        answer = ask(read_q, logits, position, action_ids, scale, offset)
        shape = f"{b} histories of {d} decisions with 4 actions: read only at `position`, and only the four action ids."
        given = answer.tensor((b, d, 4), shape)
        rows = torch.arange(b)[:, None]
        here = logits[rows, position][..., action_ids]
        late = logits[rows, position + 1][..., action_ids]
        in_order = logits[rows, position][..., action_ids.sort().values]
        first_row = logits[0][position][..., action_ids]
        z = scale * here - offset
        mistakes = [
            ((scale * late - offset).sigmoid(), "You read one position too late, at the action word itself. The logits "
             "that *predict* the action stand at the decision, one position before it."),
            ((scale * in_order - offset).sigmoid(), "You have sorted the action ids. Their order is the order of the "
             "actions, left, down, right, up, whatever numbers they are."),
            ((scale * first_row - offset).sigmoid(), "Every history has its own logits: you took those of the first "
             "one for all."),
            ((scale * (here - offset)).sigmoid(), "z = scale * logit - offset: the offset is taken off after scaling."),
            (z, "This is z. Q = sigmoid(z)."),
            ((-z).sigmoid(), "The sign is turned: Q must rise with the logit, or the worst action becomes the best."),
            ((scale * here + offset).sigmoid(), "The offset is taken off, not added."),
            ((scale * here).sigmoid(), "The offset is missing: z = scale * logit - offset."),
            ((here - offset).sigmoid(), "The scale is missing: z = scale * logit - offset."),
            (z.softmax(-1), "You divide the four among each other (softmax). Q-values need not sum to 1: each is the "
             "sigmoid of its own z."),
        ]  # fmt: skip
        otherwise = "Q = sigmoid(scale * logit - offset), with the logits at `position` and the four `action_ids`."
        compare_numbers(answer.asked, given, z.sigmoid(), mistakes, otherwise)
    return "Q is read at the decisions, in the order of the actions, on 20 random tables of logits."


@student_check
def check_greedy(greedy: Callable[[Tensor], Tensor], seed: int) -> str:
    """greedy(q [B, D, 4]) -> int64 [B, D]: the number of the best action."""
    generator = torch.Generator().manual_seed(seed)
    for b, d in ((3, 5), (4, 4), (1, 5), (6, 2), (4, 1)):
        q = torch.rand(b, d, 4, generator=generator)
        answer = ask(greedy, q)
        shape = "One action for each decision: the maximum runs over the *last* axis, the four actions."
        given, wanted = answer.tensor((b, d), shape), q.argmax(-1)
        if answer.value.is_floating_point() and np.array_equal(given, wanted):
            advice = "These are the right numbers, but an index has to be an integer: `.long()`."
            raise Wrong(answer.asked, f"of dtype {answer.value.dtype}", "of dtype torch.int64", advice)
        mistakes = [
            (q.amax(-1), "You return the largest value; wanted is which action has it (argmax)."),
            (q.argmin(-1), "This is the worst action: argmax, not argmin."),
            (wanted + 1, "The actions are numbered from 0."),
        ]
        if d == 4:
            mistakes.append((q.argmax(1), "Your maximum runs over axis 1, the decisions; wanted is the best *action*."))
        if b == 4 and d == 4:
            mistakes.append((q.argmax(0), "Your maximum runs over axis 0, the histories; wanted is the best *action*."))
        row, column = np.unravel_index(np.argmax(given != wanted.numpy()), (b, d))
        otherwise = f"q[{row}, {column}] is {show(q[row, column])}: wanted is the index of the largest."
        compare_numbers(answer.asked, given, wanted, mistakes, otherwise)
    return "the best of four actions for every decision."


@student_check
def check_fit_readout(fit_readout: Callable[..., tuple[float, float]], seed: int) -> str:
    """fit_readout(logits [N, 4], middle, spread) -> (scale, offset): median of Q = middle, std of z = spread.

    The four actions have different distributions, and none is symmetric: only so do the deviation and the median of
    all numbers differ from the means of the four deviations and medians, and the median from the mean. In the first
    case all known mistakes are far from each other, so that none is taken for another.
    """
    rng = np.random.default_rng(seed)
    cases = [(12.0, 2.0, 0.2, 1.3)]
    cases += [tuple(rng.uniform([-5, 0.2, 0.05, 0.2], [25, 4, 0.4, 1.5]).tolist()) for _ in range(9)]
    for level, width, middle, spread in cases:
        centers = level + width * rng.permutation([0.0, 0.6, 1.5, 4.5])
        widths = width * rng.permutation([0.5, 0.8, 1.2, 2.0])
        logits = centers + widths * rng.gamma(2.0, size=(400, 4))
        middle_z = np.log(middle / (1 - middle))
        wanted_scale, median = spread / logits.std(), np.median(logits)
        answer = ask(fit_readout, logits, middle, spread)
        scale, offset = answer.numbers("scale, offset")
        if np.allclose([offset, scale], [wanted_scale, wanted_scale * median - middle_z], rtol=0.01):
            advice = "These are the right two numbers in the wrong order."
            raise Wrong(answer.asked, "(offset, scale)", "(scale, offset)", advice)
        mistakes = [
            (-wanted_scale, "The scale must be positive: a negative one would turn the best action into the worst."),
            (spread / logits.std(0).mean(), "You take the deviation of each action and then the mean of the four. "
             "Wanted is the deviation of all numbers together: the actions also differ from each other."),
            (spread / logits.std(1).mean(), "You take the deviation within each decision and then the mean. Wanted is "
             "the deviation of all numbers together."),
            (spread / logits.var(), "You divide by the variance; the standard deviation is its root."),
            (logits.std() / spread, "This is the inverse: z = scale * logit has the deviation scale * std(logits)."),
            (1 / logits.std(), "This brings the deviation to 1; wanted is `spread`."),
        ]  # fmt: skip
        z_spread = f"Only the scale can change the deviation of z, and yours makes it {scale * logits.std():.3g}; "
        z_spread += f"wanted is spread = {spread:.3g}."
        compare_numbers(f"scale of {answer.asked}", scale, wanted_scale, mistakes, z_spread, tolerance=0.01)
        wanted_offset = scale * median - middle_z
        mistakes = [
            (-wanted_offset, "Your offset has the wrong sign: it is taken *off*, z = scale * logit - offset."),
            (median - middle_z / scale, "Yours fits scale * (logit - offset), but the offset is taken off after "
             "scaling."),
            (scale * median - middle, "Q = middle is not z = middle: the z with sigmoid(z) = p is log(p / (1 - p))."),
            (scale * median + middle_z, "The sign of the last term is turned: the median of scale * logit - offset has "
             "to be log(middle / (1 - middle))."),
            (scale * median, "This brings the median of Q to .5; wanted is `middle`."),
            (scale * np.median(logits, 0).mean() - middle_z, "You take the median of each action and then the mean of "
             "the four. Wanted is the median of all numbers together."),
            (scale * logits.mean() - middle_z, "You take the mean of the logits. Wanted is the median: few large "
             "logits move the mean."),
        ]  # fmt: skip
        # An error of the offset moves z as it is, so it is measured in units of the deviation of z, not of the offset.
        q = 1 / (1 + np.exp(np.clip(offset - scale * median, -500, 500)))
        z_middle = f"The median of Q is {q:.3f} with yours; wanted is middle = {middle:.3f}."
        tolerance = 0.02 * spread / abs(wanted_offset)
        compare_numbers(f"offset of {answer.asked}", offset, wanted_offset, mistakes, z_middle, tolerance)
    return "scale and offset bring ten sets of logits to the wanted middle and spread; the best action stays the best."


# ---------------------------------------------------------------------------------- 03 replay and target networks


@student_check
def check_td_targets(td_targets: Callable[..., Tensor], seed: int) -> str:
    """td_targets(q_online [B, D, 4], q_target, reward [B, D], terminated bool, gamma) -> [B, D] without gradient."""
    for k in range(10):
        generator = torch.Generator().manual_seed(1_000 * seed + k)
        b, d, gamma = 3, 4 + k % 3, (0.9, 0.7)[k % 2]
        online, target = torch.rand(2, b, d, 4, generator=generator)
        # Rewards also on the way, which a lake has not: else "no reward" and "no reward at an end" would look the same.
        reward = (torch.rand(b, d, generator=generator) < 0.5).float()
        terminated = torch.rand(b, d, generator=generator) < 0.4
        reward[:2, :2] = torch.tensor([[0.0, 1.0], [0.0, 1.0]])  # with the next line: every kind of step is there
        terminated[:2, :2] = torch.tensor([[False, False], [True, True]])
        answer = ask(td_targets, online.requires_grad_(), target.requires_grad_(), reward, terminated, gamma)
        shape = f"One target for each of {b} x {d} decisions: the maximum runs over the last axis, the four actions."
        given = answer.tensor((b, d), shape)
        batch = online.detach(), target.detach(), reward, terminated, gamma
        wanted, mistakes = _td_targets(*batch), _td_mistakes(*batch)
        facts = _td_facts(given, wanted, *batch)
        # The last column apart, so that what went wrong there does not hide what went wrong elsewhere.
        inner = [(mistake[:, :-1], advice) for mistake, advice in mistakes]
        otherwise = f"y = reward + gamma * next value * ~terminated. {facts}"
        compare_numbers(answer.asked, given[:, :-1], wanted[:, :-1], inner, otherwise)
        last = "Only the last decision of a row is wrong. It has no successor in the row: bootstrap from 0 there "
        last += "(torch.roll would go around to the first decision)."
        compare_numbers(answer.asked, given, wanted, [], last)
        if answer.value.requires_grad:
            advice = "The network could shrink its error by moving the *target*. Compute it under torch.no_grad()."
            raise Wrong(answer.asked, "right, but gradient flows through the target", "without gradient", advice)
    return "ten random batches: chosen by one network, valued by the other, ends respected, no gradient."


def _td_targets(choose, value, reward, over, gamma, shift: int = 1, axis: int = -1) -> Tensor:
    """The right targets [B, D], or with other arguments wrong ones that students give.

    Args:
        choose, value: [B, D, 4] of the network that chooses the action, and of the one that values it.
        shift: whose value is used: 1 the next decision's.
        axis: over which the best is taken.
    """
    here = value.gather(-1, choose.argmax(axis, keepdim=True)).flatten(1)
    padded = torch.nn.functional.pad(here, (1, 1))
    return reward + gamma * padded[:, 1 + shift : 1 + shift + here.shape[1]] * ~over


def _td_mistakes(online, target, reward, over, gamma) -> list[tuple[Tensor, str]]:
    never = torch.zeros_like(over)
    right = _td_targets(online, target, reward, over, gamma)
    mistakes = [
        (_td_targets(online, target, reward, never, gamma), "You bootstrap through the end of an episode. There the "
         "next decision belongs to *another* episode: where terminated, the target is the reward alone."),
        (right * ~over, "You multiply the whole sum by ~terminated, and so delete the reward of the step that ends an "
         "episode, the only one that a lake pays. Only the value of the *next* decision is multiplied."),
        (_td_targets(online, target, reward, ~over, gamma), "`terminated` is used the wrong way round: the next value "
         "counts where the step did *not* terminate."),
        (_td_targets(target, target, reward, over, gamma), "The target network both chooses and values, so its lucky "
         "errors are chosen. In double DQN the *online* network chooses the action, the target network values it."),
        (_td_targets(online, online, reward, over, gamma), "The value comes from the online network. It only chooses; "
         "the target network values."),
        (_td_targets(target, online, reward, over, gamma), "The roles are exchanged: online chooses, target values."),
        (_td_targets(online, target, reward, over, gamma, shift=0), "Off by one: you use the values at the decision "
         "itself; wanted are those of the next decision, d + 1."),
        (_td_targets(online, target, reward, over, gamma, shift=-1), "Off by one: you use the values of the decision "
         "before; wanted are those of the next one, d + 1."),
        (_td_targets(online, target, reward, over, 1.0), "Gamma is missing: the next value counts for gamma times as "
         "much as a reward now."),
        (right - reward, "The reward is missing: y = reward + ..."),
        (reward, "This is the reward alone; where the step did not terminate, gamma times the next value is added."),
    ]  # fmt: skip
    if online.shape[1] == 4:
        axis = _td_targets(online, target, reward, over, gamma, axis=1)
        mistakes.append((axis, "Your argmax runs over the decisions (axis 1); wanted is the best of four *actions*."))
    return mistakes


def _td_facts(given: np.ndarray, wanted: Tensor, online, target, reward, over, gamma) -> str:
    """What a reader needs to compute by hand the target that is most wrong."""
    row, column = divmod(int(np.abs(given - wanted.numpy())[:, :-1].argmax()), given.shape[1] - 1)
    ended = "terminated" if over[row, column] else "not terminated"
    return (
        f"There: reward {reward[row, column]:.0f}, {ended}, gamma {gamma}, "
        f"next online {show(online[row, column + 1])}, next target {show(target[row, column + 1])}."
    )


@student_check
def check_gets_target(gets_target: Callable[[list], list[bool]], seed: int) -> str:
    """gets_target(outcomes of the steps after the decisions of a slice) -> may each decision be learned from?"""
    cases: list[tuple[list[str | None], list[bool], str]] = [
        ([None, "goal", None, "hole", None], [True, True, True, True, False], "The last decision's successor lies "
         "beyond the slice: there is nothing to bootstrap from, and r = 0 alone would be false."),
        ([None, None, "goal"], [True, True, True], "The slice ends with a goal: there the reward is the whole truth, "
         "no successor is needed. Dropping it throws away the most valuable step (the paper's code does)."),
        ([None, "hole"], [True, True], "The slice ends with a hole: there the reward, 0, is the whole truth, no "
         "successor is needed."),
        ([None, "limit", None, "hole"], [True, False, True, True], "A step that was cut off ('limit') gets no target: "
         "the game would have gone on, and the text does not show the next decision."),
        (["hole", "limit"], [True, False], "A cut-off at the end of a slice is a cut-off: no target."),
    ]  # fmt: skip
    rng = np.random.default_rng(seed)
    kinds = [None, None, None, "goal", "hole", "limit"]
    for _ in range(20):
        outcomes = [kinds[i] for i in rng.integers(6, size=rng.integers(1, 9))]
        wanted = [o in ("goal", "hole") or (o is None and i + 1 < len(outcomes)) for i, o in enumerate(outcomes)]
        cases.append(
            (outcomes, wanted, "Goals and holes get a target, cut-offs none, the others if a decision follows.")
        )
    for outcomes, wanted, advice in cases:
        answer = ask(gets_target, outcomes)
        given = answer.truths()
        if len(given) != len(wanted):
            raise Wrong(answer.asked, f"{len(given)} values", f"{len(wanted)}", "Give one for each decision, in order.")
        mistakes = [([not value for value in wanted], "True and False are exchanged: True means, may be learned from.")]
        compare(answer.asked, given, wanted, mistakes, advice)
    return "ends, cut-offs and the last decision of a slice, on 25 slices."


@student_check
def check_alpha_for(alpha_for: Callable[..., float], seed: int) -> str:
    """alpha_for(steps, share=0.99) -> Polyak factor that makes ``share`` of the way in ``steps`` updates."""
    rng = np.random.default_rng(seed)
    cases = [(2, 0.75), (100,), (1, 0.5)]  # without a second number, share is .99
    cases += [(int(rng.integers(2, 500)), float(rng.uniform(0.1, 0.999))) for _ in range(10)]
    for case in cases:
        steps, share = (*case, 0.99)[:2]
        answer = ask(alpha_for, *case)
        alpha = answer.number()
        mistakes = [
            (share / steps, "The way is not made in equal pieces: each update makes alpha of what is *left*, so after "
             "n updates (1 - alpha)^n is left."),
            (1 - share ** (1 / steps), "You have exchanged what is made and what is left: (1 - alpha)^n is what is "
             "*left* of the way."),
            ((1 - share) ** (1 / steps), "This is 1 - alpha, the part that one update leaves."),
            (share ** (1 / steps), "You have exchanged what is made and what is left, and this is no alpha yet: "
             "(1 - alpha)^n is what is left of the way."),
            (-np.log(1 - share) / steps, "This is an approximation for small alpha: (1 - alpha)^n is about e^(-n alpha)"
             ". Take the n-th root instead of the logarithm."),
            (1 - (1 - share) ** steps, "The exponent is turned round: what one update leaves is the n-th *root* of "
             "what all leave."),
        ]  # fmt: skip
        if 0 < alpha <= 1:
            made = f"With yours, {steps} updates make {1 - (1 - alpha) ** steps:.2%} of the way; wanted is {share:.2%}."
        else:
            made = "A Polyak factor lies between 0 and 1: it is the share of the online network that is mixed in."
        compare_numbers(answer.asked, alpha, 1 - (1 - share) ** (1 / steps), mistakes, made, tolerance=1e-3)
    return "after n updates (1 - alpha)^n of the way is left."


# ------------------------------------------------------------------------------------------- 04 LoRA DQN training


@student_check
def check_lora_weights(lora_weights: Callable[..., int], seed: int) -> str:
    """lora_weights(hidden, mlp, layers, heads, key_value_heads, rank) -> trainable weights of LoRA on 7 projections."""
    rng = np.random.default_rng(seed)
    shapes = [("our tiny Llama", (128, 336, 4, 4, 4, 32)), ("Llama 3.1 8B", (4096, 14336, 32, 32, 8, 32))]
    for _ in range(5):
        kv, head = int(rng.integers(1, 4)), int(rng.integers(8, 64))
        heads, mlp = kv * int(rng.integers(2, 5)), int(rng.integers(100, 999))
        shape = (heads * head, mlp, int(rng.integers(2, 9)), heads, kv, int(rng.integers(1, 17)))
        shapes.append(("a Llama of another shape", shape))
    for name, (hidden, mlp, layers, heads, kv, rank) in shapes:
        key = hidden * kv // heads
        attention = 2 * (hidden + hidden) + 2 * (hidden + key)
        wanted = layers * rank * (attention + 3 * (hidden + mlp))
        answer = ask(lora_weights, hidden, mlp, layers, heads, kv, rank)
        mistakes = [
            (wanted // layers, "You count one layer only."),
            (wanted // rank, "The rank is missing: A is r x inputs and B is outputs x r."),
            (layers * rank * (3 * hidden + 2 * key + 2 * mlp), "You count B (outputs x r), but not A (r x inputs)."),
            (layers * rank * (6 * hidden + mlp), "You count A (r x inputs), but not B (outputs x r)."),
            (layers * (2 * hidden**2 + 2 * hidden * key + 3 * hidden * mlp), "These are the weights of the matrices "
             "themselves; LoRA has rank * (inputs + outputs) for each."),
            (layers * rank * attention, "You count the attention only: gate, up and down of the MLP carry LoRA, too."),
            (layers * rank * 3 * (hidden + mlp), "You count the MLP only: q, k, v and o carry LoRA, too."),
            (layers * rank * (4 * 2 * hidden + 3 * (hidden + mlp)), "Keys and values are smaller than queries: they "
             "have hidden * key_value_heads / heads outputs (grouped-query attention)."),
            (layers * rank * 2 * (hidden + hidden), "You count q and v only; LoRA is on all seven projections here."),
        ]  # fmt: skip
        otherwise = (
            f"This is {name}. Write down (inputs, outputs) of all seven: each carries rank * (inputs + outputs)."
        )
        compare(answer.asked, answer.whole(), wanted, mistakes, otherwise)
    return "right on our tiny Llama (309,248), on Llama 3.1 8B (83,886,080), and on five shapes in between."


@student_check
def check_rate_factor(rate_factor: Callable[[int, int, int], float], seed: int) -> str:
    """rate_factor(step, steps, warmup) -> warm-up in equal stairs to 1, then half a cosine down to 0 at ``steps``."""
    rng = np.random.default_rng(seed)
    for _ in range(5):
        warmup = int(rng.integers(2, 50))
        steps = warmup + int(rng.integers(10, 200))
        rate = np.array([ask(rate_factor, step, steps, warmup).number() for step in range(steps)])
        asked = f"rate_factor(step, {steps}, {warmup})"
        stairs = np.arange(1, warmup + 1) / warmup
        mistakes = [
            (stairs - 1 / warmup, "The first update has the factor 0, it would change nothing. Begin with 1 / warmup."),
            (np.ones(warmup), "There is no warm-up: the factor rises from 1 / warmup to 1 in `warmup` updates."),
            (stairs * warmup / steps, "You rise over all steps; the warm-up has `warmup` of them."),
        ]
        otherwise = f"The warm-up has equal stairs, {show(stairs[0])}, {show(stairs[1])}, ..., up to 1."
        compare_numbers(f"{asked} of the warm-up", rate[:warmup], stairs, mistakes, otherwise, tolerance=1e-6)
        x = np.arange(steps - warmup)  # updates since the warm-up
        progress, half = x / len(x), "Half a wave from 1 to 0 is (1 + cos) / 2."
        falls = [
            (_half_cosine(np.arange(warmup, steps) / steps), "Your cosine counts from step 0; it must begin at 1 where "
             "the warm-up ends."),
            (_half_cosine(x / (len(x) - 1)), "The last update has the factor 0, it would change nothing: 0 would be "
             "reached one update later, at step = steps."),
            (_half_cosine((x + 1) / len(x)), "The first update after the warm-up still has the factor 1: the wave "
             "begins there."),
            (_half_cosine(x / steps), "The cosine takes steps - warmup updates, not `steps`: so it does not end at 0."),
            (1 - progress, "This falls on a straight line; half a cosine wave is slow at both ends."),
            (np.cos(np.pi * progress), f"This goes down to -1. {half}"),
            (np.cos(np.pi / 2 * progress), f"This is a quarter of a wave; it arrives at 0 in full speed. {half}"),
            (np.ones(len(x)), "It does not fall: after the warm-up comes half a cosine wave down to 0."),
        ]  # fmt: skip
        wanted = np.concatenate([stairs, _half_cosine(progress)])
        named = [(np.concatenate([stairs, fall]), advice) for fall, advice in falls]
        otherwise = f"After the warm-up: (1 + cos(pi * p)) / 2 with p from 0 at step {warmup} to 1 at step {steps}."
        compare_numbers(asked, rate, wanted, named, otherwise, tolerance=1e-6)
    return "five schedules: stairs up to 1, then half a cosine that ends at 0."


def _half_cosine(progress: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.cos(np.pi * progress))


# ------------------------------------------------------------------------------------- 05 a real language model


@student_check
def check_value_after_action(value_after_action: Callable[..., Tensor], seed: int) -> str:
    """value_after_action(logits [4, V], goal, hole, scale, offset) -> Q [4]: the sigmoid of the scaled log-odds."""
    draw = torch.Generator().manual_seed(seed)
    for words in (7, 30):
        logits = 4 * torch.randn(4, words, generator=draw) + 9
        goal, hole = torch.randperm(words, generator=draw)[:2].tolist()
        scale, offset = 0.25 + torch.rand(2, generator=draw).numpy().astype(float)
        asked = f"value_after_action(logits of {words} words, goal={goal}, hole={hole}, {show(scale)}, {show(offset)})"
        answer = ask(value_after_action, logits, goal, hole, float(scale), float(offset))
        given = answer.tensor((4,), "One value for each of the four moves; row a of the logits stands behind move a.")
        odds = (logits[:, goal] - logits[:, hole]).double()
        mistakes = [
            (scale * odds - offset, "This is z, before the link function: a value is its sigmoid, between 0 and 1."),
            ((-scale * odds - offset).sigmoid(), "Holes come out on top: subtract hole's logit from goal's."),
            ((scale * odds + offset).sigmoid(), "The offset is subtracted: little is worth anything yet."),
            ((scale * (odds - offset)).sigmoid(), "Scale first, then subtract the offset."),
            ((odds - offset).sigmoid(), "The log-odds are multiplied by the scale first."),
            ((scale * logits[:, goal].double() - offset).sigmoid(), "This reads goal alone. Its logit is high wherever "
             "a word of the game is due; how much higher than that of hole is what counts."),
            (odds.sigmoid(), "Scale and offset are missing: z = scale * log-odds - offset."),
            ((scale * odds - offset).softmax(0), "Values of moves are no probabilities of moves: no softmax over the "
             "four, each has a sigmoid of its own."),
        ]  # fmt: skip
        otherwise = "Q(a) = sigmoid(scale * (logits[a, goal] - logits[a, hole]) - offset)."
        compare_numbers(asked, given, (scale * odds - offset).sigmoid(), mistakes, otherwise, tolerance=1e-4)
    return "the value of a move is how much likelier goal is than hole behind its word."


@student_check
def check_moves_to_ask(moves_to_ask: Callable[..., list[set[int]]], seed: int) -> str:
    """moves_to_ask(tiles, actions, begins) -> for each decision the moves that need a branch there."""
    rng = np.random.default_rng(seed)
    cases = [
        ([8, 9, 13], [RIGHT, DOWN, LEFT], [True, False, False]),
        ([8, 8, 9], [UP, RIGHT, UP], [True, False, False]),
        ([8, 9, 8, 9], [RIGHT, DOWN, RIGHT, UP], [True, False, True, False]),
    ]
    for _ in range(6):
        n = int(rng.integers(6, 20))
        tiles, actions = rng.integers(1, 5, n).tolist(), rng.integers(4, size=n).tolist()
        cases.append((tiles, actions, [True, *(rng.random(n - 1) < 0.3).tolist()]))
    for tiles, actions, begins in cases:
        answer = ask(moves_to_ask, tiles, actions, begins)
        given = [sorted(entry) if isinstance(entry, list) else entry for entry in answer.entries()]
        mistakes = [
            (_moves_to_ask(tiles, actions, begins, made=False), "The move that was made stands in the history itself "
             "and is read there: it needs no branch."),
            (_moves_to_ask(tiles, actions, begins, first=False), "Nothing leads to the first decision of an episode, "
             "so nobody needs its maximum: ask nothing there."),
            (_moves_to_ask(tiles, actions, begins, wall=False), "After a move that led nowhere (the same tile again) "
             "the consistent backup needs the value of the same move only, not the maximum."),
            ([*_moves_to_ask(tiles, actions, begins)[1:], []], "You are one decision early: what is asked at d is "
             "the target of decision d - 1, so the list begins with an empty entry."),
            (_moves_to_ask(tiles, actions, begins, across=True), "The tile before the first decision of an episode "
             "belongs to another episode: that the tiles are equal says nothing."),
        ]  # fmt: skip
        compare(answer.asked, given, _moves_to_ask(tiles, actions, begins), mistakes, "One entry a decision: none "
                "where an episode begins; after a wall the same move again, if it is not the one made; else the three "
                "moves that were not made.")  # fmt: skip
    return "three branches at most: what the history does not tell already, and where somebody needs it."


def _moves_to_ask(tiles, actions, begins, made=True, first=True, wall=True, across=False) -> list[list[int]]:
    """The right answer, and with a switch turned the mistakes."""
    asked = []
    for d in range(len(tiles)):
        bumped = wall and d > 0 and tiles[d] == tiles[d - 1] and (across or not begins[d])
        moves = {actions[d - 1]} if bumped else set(range(4))
        if first and begins[d] and not (across and bumped):
            moves = set()
        asked.append(sorted(moves - {actions[d]} if made else moves))
    return asked


@student_check
def check_trace_targets(trace_targets: Callable[..., Tensor], seed: int) -> str:
    """trace_targets(reward, ended, value, greedy, gamma, trace) [D] -> Watkins' Q(lambda) targets [D]."""
    draw = torch.Generator().manual_seed(seed)
    by_hand = (
        torch.tensor([False, False, True, False, False, True]),
        torch.tensor([True, False, True, True, False, True]),
    )
    for n in (6, 12, 20):
        ended, greedy = torch.rand(n, generator=draw) < 0.25, torch.rand(n, generator=draw) < 0.6
        if n == 6:  # every mistake gives another answer
            ended, greedy = by_hand
        ended[-1] = True
        reward = (ended & (torch.rand(n, generator=draw) < 0.6)).float()
        value = 0.1 + 0.8 * torch.rand(n, generator=draw)
        gamma, trace = 0.6, 0.9
        asked = f"trace_targets({show(reward)}, {show(ended)}, {show(value)}, {show(greedy)}, {gamma}, {trace})"
        answer = ask(trace_targets, reward, ended, value, greedy, gamma, trace)
        given = answer.tensor((n,), "One target a decision.")

        def targets(**switch):
            return _trace_targets(reward, ended, value, greedy, gamma, trace, **switch)  # noqa: B023 (called at once)

        mistakes = [
            (targets(cut=False), "Where the move at d + 1 is not greedy the trace is cut: what followed it says "
             "nothing about the best play, and the target is r + gamma * value[d + 1] alone."),
            (targets(own=True), "The trace to d + 1 is kept if the move there is: greedy[d + 1], not greedy[d]."),
            (targets(swapped=True), "The shares are exchanged: `trace` goes to the target of d + 1."),
            (targets(end=False), "Behind an end there is nothing: the target is the reward alone."),
            (targets(plain=True), "This is the one-step target; the trace mixes the target of d + 1 into it, so work "
             "backwards from the last decision."),
        ]  # fmt: skip
        otherwise = (
            "Backwards: y = r + gamma * ((1 - trace) * value[d + 1] + trace * y[d + 1]) if greedy[d + 1], else r + "
            "gamma * value[d + 1]; r where ended."
        )
        compare_numbers(asked, given, targets(), mistakes, otherwise)
    return "a goal is felt several moves before it in one step, as long as the moves were greedy."


def _trace_targets(
    reward, ended, value, greedy, gamma, trace, cut=True, own=False, swapped=False, end=True, plain=False
):
    """The right answer, and with a switch turned the mistakes."""
    y = reward.double().clone()
    share = 0.0 if plain else 1 - trace if swapped else trace
    for d in range(len(y) - 2, -1, -1):
        if end and ended[d]:
            continue
        keeps = bool(greedy[d if own else d + 1]) or not cut
        mixed = (1 - share) * value[d + 1] + share * y[d + 1] if keeps else value[d + 1]
        y[d] = reward[d] + gamma * mixed
    return y


# --------------------------------------------------------------------------------------------- 06 generalization


@student_check
def check_improvement(improvement: Callable[..., float], seed: int) -> str:
    """improvement(success bool [maps, E], epsilon [E]) -> growth from epsilon = 0 to epsilon = 1, 9.0 for 900 %.

    The first schedule is the paper's, with two episodes at 0 and ten at 1; the others have other numbers of both, so
    that only an answer that looks at epsilon is right for all.
    """
    rng = np.random.default_rng(seed)
    for k in range(10):
        forced, between, free = (2, 18, 10) if k == 0 else rng.integers([1, 18, 1], [6, 25, 9]).tolist()
        epsilon = np.concatenate([np.zeros(forced), np.linspace(0.1, 0.9, between), np.ones(free)])
        success = rng.random((211, len(epsilon))) < np.linspace(0.15, rng.uniform(0.6, 1), len(epsilon))
        success[0, 0] = True  # a growth from nothing would be infinite
        early, late = success[:, :forced].mean(), success[:, -free:].mean()
        answer = ask(improvement, success, epsilon)
        mistakes = [
            (late / early, "This is the ratio. 'Improves by 100 %' means twice as much: ratio - 1."),
            (late - early, "This is the difference in points; wanted is the growth relative to the beginning."),
            ((late - early) / late, "Growth is relative to the *beginning*: divide by the success at epsilon = 0."),
            ((late / early - 1) * 100, "Write 9.0 for 900 %."),
            (early / late - 1, "Beginning and end are exchanged: epsilon = 0 is forced play, the beginning."),
            (_growth(success[:, :10], success[:, -free:]), "The beginning are the episodes with epsilon = 0, not the "
             "first ten."),
            (_growth(success[:, :1], success[:, -1:]), "Take *all* episodes with epsilon = 0 and all with 1, not one "
             "of each."),
            (_growth(success[:, epsilon < 1], success[:, epsilon == 1]), "The beginning are the episodes with epsilon "
             "= 0 only, not all below 1."),
            (_growth(success[:, :2], success[:, 20:]), "You take the same columns whatever epsilon is. Let epsilon "
             "choose them: `epsilon == 0` and `epsilon == 1`."),
            (_growth(success[:, :2], success[:, -10:]), "You take the same columns whatever epsilon is. Let epsilon "
             "choose them: `epsilon == 0` and `epsilon == 1`."),
        ]  # fmt: skip
        otherwise = f"Success is {early:.3f} in the {forced} episodes at epsilon = 0 and {late:.3f} in the {free} at 1."
        compare_numbers(answer.asked, answer.number(), late / early - 1, mistakes, otherwise, tolerance=1e-6)
    return "growth from forced play to free play, on ten made-up players and schedules."


def _growth(early: np.ndarray, late: np.ndarray) -> float:
    """nan where there is nothing to grow from: no student's answer equals that."""
    return late.mean() / early.mean() - 1 if early.any() and late.size else np.nan


@student_check
def check_paired_interval(paired_interval: Callable[..., tuple], seed: int) -> str:
    """paired_interval(success_a, success_b bool [maps, E], resamples, rng) -> 95 % bootstrap interval of a - b."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        maps, episodes = int(rng.integers(80, 160)), int(rng.integers(8, 14))
        easy = 0.5 * rng.beta(0.3, 0.3, (maps, 1))  # for both players: some lakes are easy, some hard ...
        gift = 0.45 * (rng.random((maps, 1)) < 0.5)  # ... and half of them suit player a
        a = rng.random((maps, episodes)) < easy + gift
        b = rng.random((maps, episodes)) < easy
        _check_interval(paired_interval, a, b, rng)
    _check_draws(paired_interval, a, b)
    return "lakes are drawn, pairs stay together, and 95 % of the resampled means lie inside."


def _check_interval(paired_interval: Callable, a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> None:
    """The interval lies around the difference, is as wide as lakes drawn in pairs make it, and has the right ends."""
    answer = ask(paired_interval, a, b, 4000, np.random.default_rng(rng.integers(2**32)))
    low, high = answer.numbers("low, high")
    difference = (a.astype(float) - b).mean(1)
    mean, spread = difference.mean(), difference.std() / len(difference) ** 0.5
    width, wanted = high - low, 2 * 1.96 * spread
    ends = [mean - wanted / 2, mean + wanted / 2]

    def wrong(advice: str) -> Wrong:
        return Wrong(
            answer.asked, f"{show([low, high])}, {width:.3g} wide", f"about {show(ends)}, {wanted:.3g} wide", advice
        )

    if width < 0:
        raise wrong("The ends are exchanged: return low, high.")
    if low < -mean < high and not low < mean < high:
        raise wrong("This is the interval of b minus a; wanted is a minus b.")
    if not low < mean < high:
        raise wrong(f"An interval of the mean has to hold the mean itself, {mean:.3f}.")
    if width > 4 * wanted:
        raise wrong("Yours is how much single lakes differ, not how sure the mean is. Each resample is a *mean* over "
                    "as many lakes as there are.")  # fmt: skip
    unpaired = 2 * 1.96 * np.hypot(a.mean(1).std(), b.mean(1).std()) / len(a) ** 0.5
    by_episode = 2 * 1.96 * (a.astype(float) - b).std() / a.size**0.5
    if not 0.9 < width / wanted < 1.1:
        mistakes = [
            (unpaired, "You draw the lakes of a and b independently. Both played the *same* lakes: draw lakes, and "
                       "take a and b of the lakes drawn."),
            (by_episode, "You draw single episodes. Episodes of one lake are alike, so they are not independent: draw "
                         "whole lakes."),
            (2 * spread, "This is one standard error to each side, which holds about 68 %; take the 2.5 % and 97.5 % "
                         "quantiles of the resampled means."),
            (2 * 1.645 * spread, "This holds 90 %: 2.5 % must lie outside on *each* side."),
        ]  # fmt: skip
        distance, advice = min((abs(np.log(max(width, 1e-9) / mistake)), advice) for mistake, advice in mistakes)
        raise wrong(advice if distance < 0.1 else "Take the 2.5 % and 97.5 % quantiles of many resampled means.")
    if abs(low - ends[0]) > 0.09 * wanted:
        raise wrong(
            "The ends are not the 2.5 % and 97.5 % quantiles, with as much left out on one side as on the other."
        )


def _check_draws(paired_interval: Callable, a: np.ndarray, b: np.ndarray) -> None:
    """The interval comes from ``resamples`` draws by ``rng`` and from nothing else."""

    def interval(resamples: int, start: int) -> tuple[str, list[float]]:
        answer = ask(paired_interval, a, b, resamples, np.random.default_rng(start))
        return answer.asked, answer.numbers("low, high")

    (asked, first), (_, again) = interval(50, 1), interval(50, 1)
    if first != again:
        advice = "Draw with the `rng` that you are given, and with no other: so that the interval can be made again."
        raise Wrong(f"{asked} twice", f"{show(first)} and then {show(again)}", "the same", advice)
    if all(interval(50, start)[1] == first for start in range(2, 8)):  # one may be the same: success comes in steps
        advice = "Nothing seems to be drawn: a bootstrap draws lakes with `rng`, and `resamples` times."
        raise Wrong(f"{asked} with several generators", "the same to the last digit", "a little different", advice)
    asked, (low, high) = interval(1, 3)
    if low != high:
        raise Wrong(
            asked, show([low, high]), "one number twice", "`resamples` says how many means there are: here one."
        )


@student_check
def check_objections(objections: Callable[[], list[tuple[str, str]]], seed: int) -> str:
    """objections() -> at least four different pairs (objection, what would answer it)."""
    answer = ask(objections)
    entries = answer.entries()
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            advice = "Each entry is a pair of strings: (objection, what would answer it)."
            raise Wrong(answer.asked, f"a list with {show(entry)}", "a list of pairs", advice)
        if min(len(part.split()) for part in entry) < 2:
            advice = "Write a few words for each part of a pair."
            raise Wrong(answer.asked, f"a list with {show(entry)}", "a sentence on each side", advice)
        if _same_words(*entry):
            advice = "An answer is the figure or number that would settle the objection, not the objection again."
            raise Wrong(answer.asked, f"a list with {show(entry)}", "two different texts", advice)
    if len(entries) < 4:
        advice = "Look at the beginning of the curve, at who else might play, at the number of lakes, at the training."
        raise Wrong(answer.asked, f"a list of {len(entries)}", "at least four objections", advice)
    different = sum(
        not any(_same_words(entry[0], earlier[0]) for earlier in entries[:i]) for i, entry in enumerate(entries)
    )
    if different < 4:
        advice = "An objection that is repeated counts once."
        raise Wrong(answer.asked, f"{different} different objections", "at least four", advice)
    return f"{len(entries)} objections. Nobody but you can grade them: compare with the solution below."


def _same_words(one: str, other: str) -> bool:
    return one.lower().split() == other.lower().split()


# ------------------------------------------------------------------------------------ 07 a general problem solver


@student_check
def check_retold(retold: Callable[[list[str], list[int], list[int]], list[str]], seed: int) -> str:
    """retold(words, numbers, new_words) -> the history in other words: tile t is called numbers[t], action a by word
    number new_words[a] of left, down, right, up."""
    turn = [DOWN, RIGHT, UP, LEFT]
    cases = [
        ("2 right", [4, 3, 2, 1, 0], [LEFT, DOWN, RIGHT, UP], "These new names change no word of the history."),
        ("4 left 3", [3, 4, 2, 0, 1], [LEFT, DOWN, RIGHT, UP],
         "Tile t is called numbers[t]: 4 becomes 1, and 3 becomes 0. The words of the moves stay here."),
        ("4 left 3", [4, 0, 1, 2, 3], [LEFT, DOWN, RIGHT, UP],
         "Tile t is called numbers[t]. Yours looks up where t stands in `numbers`: that is the way back."),
        ("2 left", [0, 1, 2], turn,
         "Action a gets the word number new_words[a] of left, down, right, up: here left becomes down."),
        ("2 left 2 up", [0, 1, 2], turn, "'left' is action 0, 'down' 1, 'right' 2, 'up' 3: here up becomes left."),
        ("2 right hole reset 1", [2, 1, 0], turn,
         "How an episode ended, and `reset`, are told as before: only tiles and moves have new names."),
        ("0 down 1 down 2", [1, 2, 0], [LEFT, DOWN, RIGHT, UP],
         "Give each word its new name once. Who renames 0 to 1 in the whole text, and then 1 to 2, renames it twice."),
        ("12 down 1", list(range(12, -1, -1)), [LEFT, DOWN, RIGHT, UP],
         "12 is one word, the tile twelve. Replace whole words, not digits."),
    ]  # fmt: skip
    for text, numbers, new_words, advice in cases:
        words = text.split()
        _compare_words(ask(retold, words, numbers, new_words), _retold(words, numbers, new_words), advice)
    rng = np.random.default_rng(seed)
    for words in _slices(seed):
        numbers, new_words = rng.permutation(64).tolist(), rng.permutation(4).tolist()
        advice = f"Here the moves left, down, right, up are called {', '.join(ACTIONS[a] for a in new_words)}."
        _compare_words(ask(retold, words, numbers, new_words), _retold(words, numbers, new_words), advice)
    return "the same game in other words, on eight short histories and 50 slices of random play."


def _retold(words: list[str], numbers: list[int], new_words: list[int]) -> list[str]:
    named = {str(tile): str(name) for tile, name in enumerate(numbers)}
    named |= {ACTIONS[action]: ACTIONS[name] for action, name in enumerate(new_words)}
    return [named.get(word, word) for word in words]


def _compare_words(answer: Answer, wanted: list[str], advice: str) -> None:
    given = answer.entries()
    if not all(isinstance(entry, str) for entry in given):
        strange = next(entry for entry in given if not isinstance(entry, str))
        advice = "A history is a list of words: tile numbers are strings, too."
        raise Wrong(answer.asked, f"a list with {show(strange)}", "a list of strings", advice)
    if len(given) != len(wanted):
        raise Wrong(answer.asked, f"{len(given)} words", f"{len(wanted)}", "Every word has exactly one new name.")
    compare(answer.asked, given, wanted, [], advice)


@student_check
def check_cache_while_walking(cached: Callable[[int, int, float], list[float]], seed: int) -> str:
    """cached(moves, visits, gamma) -> value of the right move 1, 2, ... `moves` moves from the goal, at the question
    that follows `visits` walks to the goal, of a player who only caches."""
    rng = np.random.default_rng(seed)
    random = [(int(rng.integers(2, 12)), int(rng.integers(1, 9)), float(rng.uniform(0.3, 0.95))) for _ in range(30)]
    for moves, visits, gamma in [(1, 1, 0.5), (3, 1, 0.5), (3, 2, 0.5), (4, 2, 0.5), (3, 5, 0.5), *random]:
        answer = ask(cached, moves, visits, gamma)
        given = answer.entries()
        if len(given) != moves:
            advice = "Give one value for each distance from the goal: 1 move, 2 moves, and so on up to `moves`."
            raise Wrong(answer.asked, f"{len(given)} values", f"{moves}", advice)
        values = answer.numbers(", ".join(f"Q{d}" for d in range(1, moves + 1)))
        d = np.arange(1, moves + 1)
        exact = gamma ** (d - 1.0)
        wanted = np.where(d <= visits, exact, 0)
        mistakes = [
            (exact, "These are the exact values: a planner's. Whoever caches knows them only as far as they were "
                    "passed on, one move at each later visit."),
            (np.where(d <= visits - 1, exact, 0), "One visit too few: at the question the agent stands on the tile "
                                                  "again, and looks up once more."),
            (np.where(d <= visits + 1, exact, 0), "One visit too many: during the first walk nothing is known yet, not "
                                                  "even that the last move leads to the goal."),
            (np.where(d <= visits, gamma**d, 0), "The move that reaches the goal is worth 1, not gamma: a way of d "
                                                 "moves is worth gamma ** (d - 1)."),
            (np.where(d <= visits, 1.0, 0), "Each further move costs a factor gamma."),
            (wanted[::-1], "The order is turned: the first value is that of the move next to the goal."),
        ]  # fmt: skip
        otherwise = (
            "Walk step by step: standing d moves away, the move is worth gamma times what was written at the next tile "
            "on the *latest visit before now*; next to the goal it is worth 1, once the goal was seen; unknown is 0."
        )
        compare_numbers(answer.asked, values, wanted, mistakes, otherwise)
    return "values travel one move a visit, on five ways by hand and 30 at random."


@student_check
def check_visible(visible: Callable[[int, int, list[int]], np.ndarray], seed: int) -> str:
    """visible(tokens, query, keys) -> bool [tokens, tokens]: who may look at whom when `query` must not see `keys`."""
    rng = np.random.default_rng(seed)
    cases = [(3, 2, []), (4, 3, [1]), (4, 2, [0, 1]), (5, 3, [3])]
    for _ in range(20):
        tokens = int(rng.integers(5, 20))
        query = int(rng.integers(2, tokens))
        cases.append((tokens, query, sorted(rng.choice(query + 1, int(rng.integers(1, 3)), replace=False).tolist())))
    for tokens, query, keys in cases:
        answer = ask(visible, tokens, query, keys)
        rows = [row if isinstance(row, list) else [] for row in answer.entries()]
        if len(rows) != tokens or any(len(row) != tokens for row in rows):
            advice = "Return one row for each token that looks, with one entry for each token that it may look at."
            raise Wrong(answer.asked, "of another shape", f"of shape [{tokens}, {tokens}]", advice)
        given = np.array([Answer(f"{answer.asked}, row {i}", row).truths() for i, row in enumerate(rows)])
        causal = np.tril(np.ones((tokens, tokens), bool))
        wanted = causal.copy()
        wanted[query, keys] = False
        without_self, whole_column = wanted.copy(), causal.copy()
        whole_column[:, keys] = False
        wanted[query, query] = True
        anywhere = np.ones_like(causal)
        anywhere[query, keys], anywhere[query, query] = False, True
        strict = wanted & ~np.eye(tokens, dtype=bool)
        _compare_masks(answer.asked, given, wanted, [
            (causal, "Nothing is cut: [query, key] must be False for each of `keys`."),
            (wanted.T, "Rows and columns are exchanged: entry [q, k] says whether q may look at k."),
            (~wanted, "True and False are exchanged: True means that it may look."),
            (anywhere, "Tokens look into the future: a token sees itself and *earlier* ones only."),
            (strict, "No token sees itself. A row without any True would be a softmax over nothing."),
            (without_self, "The query must go on to see itself, whatever `keys` says: else a row may have no True."),
            (whole_column, "You hide `keys` from everybody. Only `query` must not see them."),
        ])  # fmt: skip
    return "one token is blind to some others and everybody else sees as before, on 24 masks."


def _compare_masks(asked: str, given: np.ndarray, wanted: np.ndarray, mistakes: list[tuple[np.ndarray, str]]) -> None:
    if (given == wanted).all():
        return
    query, key = np.argwhere(given != wanted)[0].tolist()
    otherwise = "Begin with np.tril, then change the row of `query`."
    advice = next((advice for mistake, advice in mistakes if (given == mistake).all()), otherwise)
    raise Wrong(f"{asked} at [{query}, {key}]", show(bool(given[query, key])), show(bool(wanted[query, key])), advice)
