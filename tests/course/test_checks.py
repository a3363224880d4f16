"""The students' checks: every stored wrong answer is told what is wrong with *it*, unusual right ones pass, and an
error is blamed on whoever made it.

An exercise has a right answer with switches: each switch makes one mistake that students make. ``WRONG`` pairs the
mistakes with words of the advice that is meant for them, ``RIGHT`` holds answers that are right in an unusual way.
"""

import itertools
import math
import re
from collections import Counter
from fractions import Fraction

import jupytext
import numpy as np
import pytest
import torch

from icrl_utils.course import answers, checks
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.maps import ACTIONS
from icrl_utils.tools.build_notebooks import sources

ALL_CHECKS = [name for name in vars(checks) if name.startswith("check_")]
WRONG = {}  # check -> [(answer, words of the advice)]
RIGHT = {}  # check -> [answer]


def verdict(capsys, check, answer, **options) -> str:
    """The one line that a student reads."""
    getattr(checks, check)(answer, **options)
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    return text


# --------------------------------------------------------------------------------------------------- 00 start here


def repeat_deaths(episodes, edge=lambda e: (e.tiles[-2], e.actions[-1]), ends=("hole",), first_counts=False, most=9999):
    seen, count = set(), 0
    for episode in episodes:
        if episode.outcome in ends:
            count += first_counts or edge(episode) in seen
            seen.add(edge(episode))
    return min(count, most)


def consecutive_deaths_only(episodes):
    deaths = [(e.tiles[-2], e.actions[-1]) for e in episodes if e.outcome == "hole"]
    return sum(a == b for a, b in itertools.pairwise(deaths))


def deaths_by_counter(episodes):
    deaths = Counter((e.tiles[-2], e.actions[-1]) for e in episodes if e.outcome == "hole")
    return np.array([count - 1 for count in deaths.values()], dtype=np.int32).sum(dtype=np.int32)


def deaths_by_unique_rows(episodes):
    deaths = torch.tensor([(e.tiles[-2], e.actions[-1]) for e in episodes if e.outcome == "hole"]).reshape(-1, 2)
    return torch.tensor(len(deaths) - len(deaths.unique(dim=0)))


RIGHT["check_repeat_deaths"] = [
    deaths_by_counter,
    deaths_by_unique_rows,
    lambda episodes: float(repeat_deaths(iter(episodes))),
]
WRONG["check_repeat_deaths"] = [
    (lambda e: repeat_deaths(e, edge=lambda episode: episode.tiles[-1]), "last action), not the hole"),
    (lambda e: repeat_deaths(e, edge=lambda episode: episode.actions[-1]), "not the action alone"),
    (lambda e: repeat_deaths(e, first_counts=True), "One death is no repetition"),
    (lambda e: repeat_deaths(e, ends=("hole", "goal")), "reach the goal by the same edge are no deaths"),
    (lambda e: repeat_deaths(e, ends=("hole", "limit")), "An episode that was cut off"),
    (lambda e: repeat_deaths(e, most=1), "the second and the third are both repetitions"),
    (consecutive_deaths_only, "whatever happened in between"),
    (lambda e: repeat_deaths(e) if len(e) < 9 else 5, "This was random play on the lake"),
    (lambda e: repeat_deaths(e) + 0.5, "a whole number"),
]  # fmt: skip


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


def next_tile_round_the_world(tile, action, height, width):
    row, column = divmod(tile, width)
    drow, dcolumn = ((0, -1), (1, 0), (0, 1), (-1, 0))[action]
    return (row + drow) % height * width + (column + dcolumn) % width


def next_tile_by_padding(tile, action, height, width):
    lake = np.pad(np.arange(height * width, dtype=np.int32).reshape(height, width), 1, mode="edge")
    row, column = divmod(tile, width)
    drow, dcolumn = ((0, -1), (1, 0), (0, 1), (-1, 0))[action]
    return lake[row + 1 + drow, column + 1 + dcolumn]


def next_tile_in_floats(tile, action, height, width):
    row, column = np.floor(tile / width), tile % width
    row = np.clip(row + (0, 1, 0, -1)[action], 0, height - 1)
    return row * width + np.clip(column + (-1, 0, 1, 0)[action], 0, width - 1)


def next_tile_by_torch(tile, action, height, width):
    place = torch.tensor(divmod(tile, width)) + torch.tensor([[0, -1], [1, 0], [0, 1], [-1, 0]])[action]
    row, column = torch.minimum(place.clamp(min=0), torch.tensor([height - 1, width - 1]))
    return row * width + column


def except_at(action, answer):
    """Without walls for one action only."""
    return lambda tile, a, height, width: (answer if a == action else next_tile)(tile, a, height, width)


RIGHT["check_next_tile"] = [next_tile_by_padding, next_tile_in_floats, next_tile_by_torch]
WRONG["check_next_tile"] = [
    (lambda *a: next_tile(*a, order=("up", "down", "left", "right")), "in another order"),
    (lambda *a: next_tile(*a, order=("left", "right", "up", "down")), "in another order"),
    (lambda tile, action, height, width: next_tile(tile, action, height, width, stride=height), "not `height`"),
    (lambda *a: next_tile(*a, stride=1), "that is, by `width`"),
    (lambda tile, *a: tile, "row * width + column"),
    (lambda *a: next_tile(*a, walls=False), "the left edge"),
    (next_tile_round_the_world, "the left edge"),
    (except_at(2, lambda tile, a, height, width: tile + 1), "the right edge"),
    (except_at(3, lambda tile, a, height, width: tile - width), "the upper edge"),
    (except_at(1, lambda tile, a, height, width: tile + width), "the lower edge"),
    (lambda tile, action, height, width: next_tile(tile, action, 3, 5), "on a lake of"),
]  # fmt: skip


def positions(words):
    return [t for t in range(len(words) - 1) if words[t + 1] in ACTIONS]


RIGHT["check_decision_positions"] = [
    lambda words: (t for t in range(len(words) - 1) if words[t + 1] in ACTIONS),
    lambda words: set(positions(words)),
    lambda words: np.flatnonzero(np.isin(words[1:], ACTIONS)).astype(np.int32),
    lambda words: torch.tensor([float(t) for t in positions(words)], dtype=torch.float64),
]
WRONG["check_decision_positions"] = [
    (lambda words: [t + 1 for t in positions(words)], "the action words themselves stand"),
    (lambda words: [t for t, word in enumerate(words) if word in ACTIONS], "the action words themselves stand"),
    (lambda words: [t for t, word in enumerate(words) if word.isdecimal()], "the open end of the text"),
    (lambda words: list(range(0, len(words) - 1, 2)), "every second word"),
    (lambda words: [t for t in positions(words) if words[t - 1] != "reset"], "the first decision after a reset"),
    (lambda words: positions(words)[::-1], "not in rising order"),
    (lambda words: [word in ACTIONS for word in words[1:]], "True or False for every word"),
    (lambda words: positions(words)[:1], "words[t + 1] in left, down, right, up"),
    (lambda words: [0, 2, 6], "words[t + 1] in left, down, right, up"),  # the answer to the first text
    (lambda words: [t for t in range(len(words)) if words[t + 1] in ACTIONS], "IndexError: list index out of range"),
    (lambda words: [words[t] for t in positions(words)], "it should be a number"),
]  # fmt: skip


def learn_from(words, limit="nothing", last="nothing", goal="reward", hole="reward"):
    labels = []
    for t in positions(words):
        after = words[t + 2] if t + 2 < len(words) else ""
        has_next = t + 3 < len(words) and words[t + 3] in ACTIONS
        labels.append({"goal": goal, "hole": hole, "limit": limit}.get(after, "next" if has_next else last))
    return labels


def learn_from_generator(words):
    yield from learn_from(words)


RIGHT["check_learn_from"] = [
    lambda words: np.array(learn_from(words), dtype="U7"),
    learn_from_generator,
    lambda words: tuple(map(np.str_, learn_from(words))),
]
WRONG["check_learn_from"] = [
    (lambda words: learn_from(words, hole="next"), "A hole ends the game"),
    (lambda words: ["next"] * len(positions(words)), "A hole ends the game"),
    (lambda words: learn_from(words, goal="nothing"), "A goal ends the game"),
    (lambda words: learn_from(words, limit="reward"), "only the clock was stopped"),
    (lambda words: learn_from(words, limit="next"), "only the clock was stopped"),
    (lambda words: learn_from(words, last="next"), "What comes after the last decision"),
    (lambda words: learn_from(words)[:-1], "Give one for each decision"),
    (lambda words: [label.upper() for label in learn_from(words)], "Use these three"),
    (lambda words: [None for _ in positions(words)], "Use these three"),
    (lambda words: learn_from(words) if len(words) < 12 else ["next"] * len(positions(words)), "Look at the decision"),
]  # fmt: skip


# ------------------------------------------------------------------------------------------ 02 Q-values from logits


def read_q(logits, position, action_ids, scale, offset, shift=0, sign=1.0):
    rows = torch.arange(len(logits))[:, None]
    return torch.sigmoid(sign * (scale * logits[rows, position + shift][..., action_ids] - offset))


def four_logits(logits, position, action_ids):
    return logits[torch.arange(len(logits))[:, None], position][..., action_ids]


def read_q_by_loops(logits, position, action_ids, scale, offset):
    q = torch.zeros(*position.shape, 4, dtype=torch.float64)
    for b, d, a in np.ndindex(*q.shape):
        z = scale * logits[b, position[b, d], action_ids[a]].item() - offset
        q[b, d, a] = 1 / (1 + math.exp(-z))
    return q


def read_q_by_one_hot(logits, position, action_ids, scale, offset):
    at = torch.nn.functional.one_hot(position, logits.shape[1]).float()
    actions = torch.nn.functional.one_hot(action_ids, logits.shape[2]).float()
    return (1 + torch.tanh((scale * torch.einsum("bdt,btv,av->bda", at, logits, actions) - offset) / 2)) / 2


def read_q_by_gather(logits, position, action_ids, scale, offset):
    logits.mul_(scale).sub_(offset)  # in place: the check must not lose its own
    four = logits.gather(1, position[..., None].expand(-1, -1, logits.shape[-1]))[..., action_ids]
    return four.sigmoid().requires_grad_()


RIGHT["check_read_q"] = [read_q_by_loops, read_q_by_one_hot, read_q_by_gather]
WRONG["check_read_q"] = [
    (lambda *a: read_q(*a, shift=1), "one position too late"),
    (lambda x, p, ids, s, c: read_q(x, p, ids.sort().values, s, c), "sorted the action ids"),
    (lambda x, p, ids, s, c: torch.sigmoid(s * x[0][p][..., ids] - c), "its own logits"),
    (lambda x, p, ids, s, c: torch.sigmoid(s * (four_logits(x, p, ids) - c)), "taken off after scaling"),
    (lambda x, p, ids, s, c: s * four_logits(x, p, ids) - c, "Q = sigmoid(z)"),
    (lambda *a: read_q(*a, sign=-1.0), "The sign is turned"),
    (lambda x, p, ids, s, c: read_q(x, p, ids, s, -c), "not added"),
    (lambda x, p, ids, s, c: read_q(x, p, ids, s, 0.0), "The offset is missing"),
    (lambda x, p, ids, s, c: read_q(x, p, ids, 1.0, c), "The scale is missing"),
    (lambda x, p, ids, s, c: (s * four_logits(x, p, ids) - c).softmax(-1), "need not sum to 1"),
    (lambda x, p, ids, s, c: read_q(x, p, torch.arange(x.shape[2]), s, c), "only the four action ids"),
    (lambda x, p, ids, s, c: torch.sigmoid(s * x[..., ids] - c), "read only at `position`"),
    (lambda x, p, ids, s, c: read_q(x, p, ids, s, c).numpy(), "a torch tensor"),
    (lambda x, p, ids, s, c: read_q(x, p, ids, s, c).logit() / 0 * 0, "a finite number"),
    (lambda x, p, ids, s, c: torch.full((*p.shape, 4), 0.5), "with the logits at `position`"),
    (lambda x, p, ids, s, c: read_q(x, p, ids[:, None], s, c), "of shape"),
]  # fmt: skip


def greedy_by_loops(q):
    best = torch.zeros(q.shape[:2], dtype=torch.int32)
    for b, d in np.ndindex(*best.shape):
        best[b, d] = max(range(4), key=lambda a: q[b, d, a])
    return best


RIGHT["check_greedy"] = [
    greedy_by_loops,
    lambda q: q.sort(dim=2, descending=True).indices[..., 0],
    lambda q: torch.from_numpy(q.numpy().astype(np.float64).argmax(2)),
    lambda q: torch.tensor([[row.index(max(row)) for row in rows] for rows in q.tolist()]),
]
WRONG["check_greedy"] = [
    (lambda q: q.argmax(1), "the *last* axis"),
    (lambda q: q.argmax(0), "the *last* axis"),
    (lambda q: q.argmax(), "One action for each decision"),
    (lambda q: q.max(-1), "a torch tensor"),
    (lambda q: q.max(-1).values, "which action has it"),
    (lambda q: q.argmin(-1), "This is the worst action"),
    (lambda q: q.argmax(1) if q.shape[1] == 4 else q.argmax(-1), "over axis 1, the decisions"),
    (lambda q: q.argmax(0) if q.shape[:2] == (4, 4) else q.argmax(-1), "over axis 0, the histories"),
    (lambda q: q.argmax(-1).float(), "an index has to be an integer"),
    (lambda q: q.argmax(-1) + 1, "numbered from 0"),
    (lambda q: torch.zeros(q.shape[:2], dtype=torch.int64), "wanted is the index of the largest"),
]  # fmt: skip


def fit_readout(logits, middle, spread):
    scale = spread / logits.std()
    return scale, scale * np.median(logits) - np.log(middle / (1 - middle))


def with_scale(scale_of):
    """The right offset for a scale that may be wrong."""

    def answer(logits, middle, spread):
        scale = scale_of(logits, spread)
        return scale, scale * np.median(logits) - np.log(middle / (1 - middle))

    return answer


def with_offset(offset_of):
    """The right scale, and an offset of scale, logits, middle, logit of middle."""

    def answer(logits, middle, spread):
        scale = spread / logits.std()
        return scale, offset_of(scale, logits, middle, np.log(middle / (1 - middle)))

    return answer


def fit_readout_by_torch(logits, middle, spread):
    logits = torch.from_numpy(logits)
    scale = spread / logits.std()
    return torch.stack([scale, scale * logits.quantile(0.5) - torch.logit(torch.tensor(middle))])


def fit_readout_by_loops(logits, middle, spread):
    values = sorted(float(x) for row in logits for x in row)
    mean = sum(values) / len(values)
    scale = spread / math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))
    yield scale
    yield scale * values[len(values) // 2] - math.log(middle) + math.log(1 - middle)


RIGHT["check_fit_readout"] = [
    lambda *a: list(fit_readout(*a)),
    lambda *a: np.array(fit_readout(*a), dtype=np.float32),
    fit_readout_by_torch,
    fit_readout_by_loops,
]
WRONG["check_fit_readout"] = [
    (with_scale(lambda x, s: s / x.std(0).mean()), "the deviation of each action"),
    (with_scale(lambda x, s: s / x.std(1).mean()), "the deviation within each decision"),
    (with_scale(lambda x, s: s / x.var()), "You divide by the variance"),
    (with_scale(lambda x, s: x.std() / s), "This is the inverse"),
    (with_scale(lambda x, s: 1 / x.std()), "wanted is `spread`"),
    (with_scale(lambda x, s: -s / x.std()), "The scale must be positive"),
    (with_scale(lambda x, s: s), "Only the scale can change the deviation"),
    (with_offset(lambda s, x, m, z: z - s * np.median(x)), "wrong sign: it is taken *off*"),
    (with_offset(lambda s, x, m, z: np.median(x) - z / s), "taken off after scaling"),
    (with_offset(lambda s, x, m, z: s * np.median(x) - m), "log(p / (1 - p))"),
    (with_offset(lambda s, x, m, z: s * np.median(x) + z), "The sign of the last term"),
    (with_offset(lambda s, x, m, z: s * np.median(x)), "This brings the median of Q to .5"),
    (with_offset(lambda s, x, m, z: s * np.median(x, 0).mean() - z), "the median of each action"),
    (with_offset(lambda s, x, m, z: s * x.mean() - z), "You take the mean of the logits"),
    (with_offset(lambda s, x, m, z: 0.0), "with yours; wanted is middle"),
    (lambda *a: fit_readout(*a)[::-1], "in the wrong order"),
    (lambda *a: fit_readout(*a)[0], "collect the answers in a list"),
    (lambda *a: (*fit_readout(*a), 0.0), "2 numbers: scale, offset"),
    (lambda x, m, s: (s / x.std(0), 0.0), "it should be a number"),  # one scale an action
]  # fmt: skip


# ---------------------------------------------------------------------------------- 03 replay and target networks


def td_targets(
    online, target, reward, terminated, gamma, chooser="online", valuer="target", shift=1, ends="right", roll=False,
    grad=False, rewards=1.0, axis=-1,
):  # fmt: skip
    """Right by default; each other argument makes one mistake."""
    networks = {"online": online, "target": target}
    value = networks[valuer].gather(-1, networks[chooser].argmax(axis, keepdim=True)).flatten(1)
    following = value.roll(-shift, dims=1)
    if shift == 1 and not roll:
        following = torch.cat([following[:, :-1], torch.zeros_like(following[:, :1])], 1)
    if shift == -1:
        following = torch.cat([torch.zeros_like(following[:, :1]), following[:, 1:]], 1)
    goes_on = {"right": ~terminated, "ignored": 1, "exchanged": terminated, "over the sum": 1}[ends]
    y = rewards * reward + gamma * following * goes_on
    y = y * ~terminated if ends == "over the sum" else y
    return y if grad else y.detach()


def td_targets_by_loops(online, target, reward, terminated, gamma):
    y = reward.to(torch.float64).clone()
    for b, d in np.ndindex(*y.shape):
        if not terminated[b, d] and d + 1 < y.shape[1]:
            y[b, d] += gamma * target[b, d + 1, online[b, d + 1].argmax()].item()
    return y


def td_targets_by_numpy(online, target, reward, terminated, gamma):
    online, target = online.detach().numpy(), target.detach().numpy()
    value = np.take_along_axis(target, online.argmax(-1)[..., None], -1)[..., 0]
    following = np.append(value[:, 1:], np.zeros((len(value), 1)), axis=1)
    return torch.from_numpy(np.where(terminated.numpy(), reward.numpy(), reward.numpy() + gamma * following))


@torch.no_grad()
def td_targets_in_place(online, target, reward, terminated, gamma):
    one_hot = torch.nn.functional.one_hot(online.argmax(2), 4)
    reward[:, :-1] += gamma * ((target * one_hot).sum(2)[:, 1:]).masked_fill(terminated[:, :-1], 0.0)
    return reward


def td_mistake(**mistake):
    return lambda *a: td_targets(*a, **mistake)


RIGHT["check_td_targets"] = [td_targets_by_loops, td_targets_by_numpy, td_targets_in_place]
WRONG["check_td_targets"] = [
    (td_mistake(ends="ignored"), "through the end of an episode"),
    (td_mistake(ends="ignored", roll=True), "through the end of an episode"),
    (td_mistake(ends="over the sum"), "delete the reward of the step that ends"),
    (td_mistake(ends="exchanged"), "the wrong way round"),
    (td_mistake(chooser="target"), "both chooses and values"),
    (td_mistake(valuer="online"), "comes from the online network"),
    (td_mistake(chooser="target", valuer="online"), "roles are exchanged"),
    (td_mistake(shift=0), "values at the decision itself"),
    (td_mistake(shift=-1), "the decision before"),
    (lambda online, target, reward, over, gamma: td_targets(online, target, reward, over, 1.0), "Gamma is missing"),
    (td_mistake(rewards=0.0), "The reward is missing"),
    (lambda online, target, reward, over, gamma: reward, "the reward alone"),
    (td_mistake(axis=1), "argmax runs over the decisions"),
    (td_mistake(roll=True), "torch.roll would go around"),
    (td_mistake(grad=True), "gradient flows through the target"),
    (td_mistake(rewards=2.0), "There: reward"),
    (lambda online, *rest: online, "last axis, the four actions"),
    (lambda *a: td_targets(*a) / 0, "a finite number"),
    (lambda *a: td_targets(*a).tolist(), "a torch tensor"),
]  # fmt: skip


def gets_target(outcomes, cut=False, last_goal=True, last_hole=True, last_running=False):
    last = len(outcomes) - 1
    rules = {"goal": last_goal, "hole": last_hole, "limit": cut, None: last_running}
    before = {"goal": True, "hole": True, "limit": cut, None: True}
    return [rules[outcome] if d == last else before[outcome] for d, outcome in enumerate(outcomes)]


RIGHT["check_gets_target"] = [
    lambda outcomes: np.array(gets_target(outcomes)),
    lambda outcomes: torch.tensor(gets_target(outcomes)),
    lambda outcomes: (value for value in gets_target(outcomes)),
    lambda outcomes: np.array(gets_target(outcomes), dtype=np.int32),
]
WRONG["check_gets_target"] = [
    (lambda o: gets_target(o, cut=True), "the game would have gone on"),
    (lambda o: gets_target(o, last_goal=False, last_hole=False), "throws away the most valuable step"),
    (lambda o: gets_target(o, last_hole=False), "The slice ends with a hole"),
    (lambda o: gets_target(o, last_running=True), "beyond the slice"),
    (lambda o: [True] * len(o), "beyond the slice"),
    (lambda o: gets_target(o)[:-1] + [o[-1] is not None], "A cut-off at the end of a slice"),
    (lambda o: gets_target(o)[:-1], "Give one for each decision"),
    (lambda o: [not value for value in gets_target(o)], "exchanged: True means"),
    (lambda o: [math.nan] * len(o), "Every entry is True or False"),
    (lambda o: [str(value) for value in gets_target(o)], "Every entry is True or False"),
    (lambda o: gets_target(o) if len(o) < 6 else [True] * len(o), "the others if a decision follows"),
]  # fmt: skip


def alpha_for(steps, share=0.99):
    return 1 - (1 - share) ** (1 / steps)


def alpha_by_bisection(steps, share=0.99):
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - (1 - middle) ** steps < share else (low, middle)
    return Fraction(middle).limit_denominator(10**9).__float__()


RIGHT["check_alpha_for"] = [
    alpha_by_bisection,
    lambda steps, share=0.99: np.float32(-np.expm1(np.log1p(-share) / steps)),
    lambda steps, share=0.99: torch.tensor(1 - share, dtype=torch.float64).log().div(steps).exp().neg().add(1),
]
WRONG["check_alpha_for"] = [
    (lambda steps, share=0.99: share / steps, "not made in equal pieces"),
    (lambda steps, share=0.99: 1 - share ** (1 / steps), "exchanged what is made and what is left: (1"),
    (lambda steps, share=0.99: share ** (1 / steps), "this is no alpha yet"),
    (lambda steps, share=0.99: (1 - share) ** (1 / steps), "This is 1 - alpha"),
    (lambda steps, share=0.99: -math.log(1 - share) / steps, "an approximation for small alpha"),
    (lambda steps, share=0.99: 1 - (1 - share) ** steps, "The exponent is turned round"),
    (lambda steps, share=0.99: 0.5, "updates make"),
    (lambda steps, share=0.99: 2.0, "lies between 0 and 1"),
    (lambda steps, share: alpha_for(steps, share), "Keep the line that begins with `def`"),
    (lambda steps, share=0.99: alpha_for(steps), "updates make"),  # takes 99 % for granted
    (lambda steps, share=0.99: math.inf, "a finite number"),
]  # fmt: skip


# ------------------------------------------------------------------------------------------- 04 LoRA DQN training


def lora_weights(hidden, mlp, layers, heads, kv, rank, grouped=True, attention_too=True, mlp_too=True, of_pair=(1, 1)):
    key = hidden * kv // heads if grouped else hidden
    shapes = [(hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden)] if attention_too else []
    shapes += [(hidden, mlp), (hidden, mlp), (mlp, hidden)] if mlp_too else []
    return layers * sum(rank * (of_pair[0] * n + of_pair[1] * m) for n, m in shapes)


def lora_weights_by_arrays(hidden, mlp, layers, heads, kv, rank):
    ends = np.array([hidden, hidden, hidden * kv / heads, hidden * kv / heads, mlp, mlp, hidden], dtype=np.float64)
    starts = np.array([hidden] * 6 + [mlp], dtype=np.float64)
    return layers * rank * (ends + starts).sum()


def lora_weights_by_loops(hidden, mlp, layers, heads, kv, rank):
    count = 0
    for _ in range(layers):
        for inputs, outputs in {"q": (hidden, hidden), "o": (hidden, hidden), "k": (hidden, hidden // heads * kv),
                                "v": (hidden, hidden // heads * kv), "gate": (hidden, mlp), "up": (hidden, mlp),
                                "down": (mlp, hidden)}.values():  # fmt: skip
            count += np.int32(inputs * rank) + np.int32(rank * outputs)
    return count


def lora_weights_by_counting(hidden, mlp, layers, heads, kv, rank):
    """Counts real matrices, which have no storage."""
    shapes = [(hidden, hidden)] * 2 + [(hidden * kv // heads, hidden)] * 2 + [(mlp, hidden)] * 2 + [(hidden, mlp)]
    pairs = [(torch.empty(rank, n, device="meta"), torch.empty(m, rank, device="meta")) for m, n in shapes]
    return torch.tensor(layers * sum(a.numel() + b.numel() for a, b in pairs))


RIGHT["check_lora_weights"] = [lora_weights_by_arrays, lora_weights_by_loops, lora_weights_by_counting]
WRONG["check_lora_weights"] = [
    (lambda *a: lora_weights(*a, grouped=False), "grouped-query attention"),
    (lambda *a: lora_weights(*a, mlp_too=False), "attention only"),
    (lambda *a: lora_weights(*a, attention_too=False), "the MLP only"),
    (lambda *a: lora_weights(*a, of_pair=(0, 1)), "but not A"),
    (lambda *a: lora_weights(*a, of_pair=(1, 0)), "but not B"),
    (lambda *a: lora_weights(*a) // a[2], "one layer only"),
    (lambda *a: lora_weights(*a[:5], 1), "The rank is missing"),
    (lambda h, m, n, heads, kv, r: n * (2 * h * h + 2 * h * (h * kv // heads) + 3 * h * m), "of the matrices"),
    (lambda h, m, n, heads, kv, r: n * r * 4 * h, "q and v only"),
    (lambda *a: lora_weights(*a) + 1, "(inputs, outputs) of all seven"),
    (lambda h, *a: {128: 309_248, 4096: 83_886_080}.get(h, 0), "a Llama of another shape"),  # the two known answers
    (lambda *a: lora_weights(*a) + 0.5, "a whole number"),
]  # fmt: skip


def test_the_formula_of_lora_weights_counts_what_peft_makes():
    from icrl_utils.llama.adapters import ONLINE, adapter_parameters, add_adapters
    from icrl_utils.llama.load import new_tiny_llama

    model = add_adapters(new_tiny_llama(72, [64, 65, 66, 67], hidden=48, layers=2, heads=4), rank=8)
    mlp = model.config.intermediate_size
    count = sum(p.numel() for p in adapter_parameters(model, ONLINE).values())
    assert count == lora_weights(48, mlp, 2, 4, 4, 8)


def half_cosine(progress):
    return 0.5 * (1 + math.cos(math.pi * progress))


def rate_factor(step, steps, warmup, first=1, progress=lambda s, n, w: (s - w) / (n - w), shape=half_cosine):
    return (step + first) / warmup if step < warmup else shape(progress(step, steps, warmup))


def rate_factor_by_table(step, steps, warmup):
    fall = torch.linspace(0, math.pi, steps - warmup + 1, dtype=torch.float64)[:-1].cos().add(1).div(2)
    return torch.cat([torch.linspace(1 / warmup, 1, warmup, dtype=torch.float64), fall])[step]


RIGHT["check_rate_factor"] = [
    rate_factor_by_table,
    lambda step, steps, warmup: np.float32(rate_factor(step, steps, warmup)),
    lambda *a: rate_factor(*a, shape=lambda p: math.cos(math.pi / 2 * p) ** 2),
    lambda step, *a: np.array([rate_factor(s, *a) for s in range(step + 1)]).astype(np.float64)[step],
]  # fmt: skip
WRONG["check_rate_factor"] = [
    (lambda *a: rate_factor(*a, first=0), "The first update has the factor 0"),
    (lambda *a: rate_factor(*a, first=2), "equal stairs"),
    (lambda step, steps, warmup: (step + 1) / steps if step < warmup else rate_factor(step, steps, warmup),
     "You rise over all steps"),
    (lambda step, steps, warmup: 1 if step < warmup else rate_factor(step, steps, warmup), "There is no warm-up"),
    (lambda *a: rate_factor(*a, progress=lambda s, n, w: s / n), "counts from step 0"),
    (lambda *a: rate_factor(*a, progress=lambda s, n, w: (s - w) / (n - w - 1)), "The last update has the factor 0"),
    (lambda *a: rate_factor(*a, progress=lambda s, n, w: (s - w + 1) / (n - w)), "the wave begins there"),
    (lambda *a: rate_factor(*a, progress=lambda s, n, w: (s - w) / n), "so it does not end at 0"),
    (lambda *a: rate_factor(*a, shape=lambda p: 1 - p), "straight line"),
    (lambda *a: rate_factor(*a, shape=lambda p: math.cos(math.pi * p)), "goes down to -1"),
    (lambda *a: rate_factor(*a, shape=lambda p: math.cos(math.pi * p / 2)), "quarter of a wave"),
    (lambda *a: rate_factor(*a, shape=lambda p: 1.0), "It does not fall"),
    (lambda *a: rate_factor(*a, shape=lambda p: half_cosine(p) ** 2), "After the warm-up: (1 + cos(pi * p)) / 2"),
    (lambda *a: rate_factor(*a, shape=lambda p: math.nan), "a finite number"),
]  # fmt: skip


# ------------------------------------------------------------------------------------- 05 a real language model


def value_after_action(logits, goal, hole, scale, offset, link=torch.sigmoid, sign=1, shift=-1):
    return link(sign * scale * (logits[:, goal] - logits[:, hole]) + shift * offset)


RIGHT["check_value_after_action"] = [
    lambda x, g, h, s, o: 1 / (1 + torch.exp(-(s * (x[:, g] - x[:, h]) - o))),
    lambda x, g, h, s, o: torch.stack([torch.sigmoid(s * (row[g] - row[h]) - o) for row in x.double()]),
    lambda x, g, h, s, o: torch.sigmoid(s * (x.log_softmax(1)[:, g] - x.log_softmax(1)[:, h]) - o),
]
WRONG["check_value_after_action"] = [
    (lambda *a: value_after_action(*a, link=lambda z: z), "This is z, before the link function"),
    (lambda *a: value_after_action(*a, sign=-1), "Holes come out on top"),
    (lambda *a: value_after_action(*a, shift=1), "The offset is subtracted"),
    (lambda x, g, h, s, o: torch.sigmoid(s * (x[:, g] - x[:, h] - o)), "Scale first"),
    (lambda x, g, h, s, o: torch.sigmoid(x[:, g] - x[:, h] - o), "multiplied by the scale"),
    (lambda x, g, h, s, o: torch.sigmoid(s * x[:, g] - o), "This reads goal alone"),
    (lambda x, g, h, s, o: torch.sigmoid(x[:, g] - x[:, h]), "Scale and offset are missing"),
    (lambda *a: value_after_action(*a, link=lambda z: z.softmax(0)), "no softmax over the four"),
    (lambda x, g, h, s, o: torch.sigmoid(s * (x[g] - x[h]) - o) if g < 4 and h < 4 else x, "One value for each"),
]


def moves_to_ask(tiles, actions, begins, **switch):
    return [set(moves) for moves in checks._moves_to_ask(tiles, actions, begins, **switch)]


def moves_by_hand(tiles, actions, begins):
    found = []
    for d, action in enumerate(actions):
        if begins[d]:
            found.append([])
        elif tiles[d - 1] == tiles[d]:
            found.append([] if actions[d - 1] == action else [actions[d - 1]])
        else:
            found.append([move for move in (3, 2, 1, 0) if move != action])
    return found


RIGHT["check_moves_to_ask"] = [
    moves_by_hand,
    lambda *a: (frozenset(moves) for moves in moves_by_hand(*a)),
    lambda *a: [np.array(sorted(moves), dtype=int) for moves in moves_by_hand(*a)],
]
WRONG["check_moves_to_ask"] = [
    (lambda *a: moves_to_ask(*a, made=False), "it needs no branch"),
    (lambda *a: moves_to_ask(*a, first=False), "ask nothing there"),
    (lambda *a: moves_to_ask(*a, wall=False), "consistent backup needs the value of the same move only"),
    (lambda *a: moves_to_ask(*a, across=True), "belongs to another episode"),
    (lambda *a: [*moves_to_ask(*a)[1:], set()], "one decision early"),
    (lambda tiles, actions, begins: [set() for _ in tiles], "One entry a decision"),
    (lambda tiles, actions, begins: [set(range(4)) for _ in tiles], "One entry a decision"),
]


def trace_targets(*inputs, **switch):
    return checks._trace_targets(*inputs, **switch)


def trace_forwards(reward, ended, value, greedy, gamma, trace):
    """Each target by itself, from the decisions behind it."""

    def target(d):
        if ended[d] or d == len(reward) - 1:
            return float(reward[d])
        rest = (1 - trace) * float(value[d + 1]) + trace * target(d + 1) if greedy[d + 1] else float(value[d + 1])
        return float(reward[d]) + gamma * rest

    return torch.tensor([target(d) for d in range(len(reward))])


RIGHT["check_trace_targets"] = [
    trace_forwards,
    lambda *a: trace_forwards(*a).double().requires_grad_(),
    lambda *a: trace_targets(*a).float(),
]
WRONG["check_trace_targets"] = [
    (lambda *a: trace_targets(*a, cut=False), "the trace is cut"),
    (lambda *a: trace_targets(*a, own=True), "greedy[d + 1], not greedy[d]"),
    (lambda *a: trace_targets(*a, swapped=True), "The shares are exchanged"),
    (lambda *a: trace_targets(*a, end=False), "the target is the reward alone"),
    (lambda *a: trace_targets(*a, plain=True), "one-step target"),
    (lambda *a: trace_targets(*a)[:-1], "One target a decision"),
]


# --------------------------------------------------------------------------------------------- 06 generalization


def early_late(success, epsilon):
    return success[:, epsilon == 0].mean(), success[:, epsilon == 1].mean()


def growth(success, epsilon):
    early, late = early_late(success, epsilon)
    return late / early - 1


def growth_by_loops(success, epsilon):
    wins, played = Counter(), Counter()
    for row in success.tolist():
        for won, share in zip(row, epsilon.tolist(), strict=True):
            wins[share] += won
            played[share] += 1
    return Fraction(wins[1], played[1]) / Fraction(wins[0], played[0]) - 1


RIGHT["check_improvement"] = [
    lambda s, e: float(growth_by_loops(s, e)),
    lambda s, e: torch.tensor(s[:, e > 0.99]).double().mean() / torch.tensor(s[:, e < 0.01]).double().mean() - 1,
    lambda s, e: growth(s.astype(np.float32), e),
    lambda s, e: s.mean(0) @ ((e == 1) / (e == 1).sum()) / (s.mean(0) @ ((e == 0) / (e == 0).sum())) - 1,
]  # fmt: skip
WRONG["check_improvement"] = [
    (lambda s, e: growth(s, e) + 1, "ratio - 1"),
    (lambda s, e: early_late(s, e)[1] - early_late(s, e)[0], "difference in points"),
    (lambda s, e: 1 - early_late(s, e)[0] / early_late(s, e)[1], "relative to the *beginning*"),
    (lambda s, e: 100 * growth(s, e), "9.0 for 900 %"),
    (lambda s, e: growth(s, 1 - e), "Beginning and end are exchanged"),
    (lambda s, e: s[:, 20:].mean() / s[:, :10].mean() - 1, "not the first ten"),
    (lambda s, e: s[:, -1].mean() / s[:, 0].mean() - 1, "not one of each"),
    (lambda s, e: s[:, e == 1].mean() / s[:, e < 1].mean() - 1, "not all below 1"),
    (lambda s, e: s[:, 20:].mean() / s[:, :2].mean() - 1, "the same columns whatever epsilon is"),
    (lambda s, e: s[:, -10:].mean() / s[:, :2].mean() - 1, "the same columns whatever epsilon is"),
    (lambda s, e: math.nan, "a finite number"),
    (lambda s, e: s[:, []].mean() / s[:, :2].mean() - 1, "a finite number"),
    (lambda s, e: 3.21, "episodes at epsilon = 0"),
    (lambda s, e: s[:, e == 1].mean(1) / 0.15 - 1, "it should be a number"),  # one number a map
]  # fmt: skip


def interval(a, b, resamples, rng, ends=(0.025, 0.975), paired=True, unit="lakes"):
    a, b = np.asarray(a, float), np.asarray(b, float)
    if unit == "episodes":
        a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    draw = rng.integers(len(a), size=(resamples, len(a)))
    other = draw if paired else rng.integers(len(a), size=draw.shape)
    if unit == "single lakes":
        draw, other = draw[:, :1], other[:, :1]
    means = a.mean(1)[draw].mean(1) - b.mean(1)[other].mean(1)
    return np.quantile(means, ends)


def interval_by_loops(a, b, resamples, rng):
    difference, means = a.mean(1) - b.mean(1), []
    for _ in range(resamples):
        means.append(rng.choice(difference, len(difference)).mean())
    means.sort()
    yield means[int(0.025 * resamples)]
    yield means[min(math.ceil(0.975 * resamples), resamples - 1)]


def interval_by_counts(a, b, resamples, rng):
    n = len(a)
    counts = torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), size=resamples))  # how often each lake is drawn
    means = counts.double() @ torch.from_numpy(a.mean(1) - b.mean(1)) / n
    return means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))


def normal_interval(a, b, resamples, rng):
    difference = a.mean(1) - b.mean(1)
    half = 1.96 * difference.std() / len(difference) ** 0.5
    return difference.mean() - half, difference.mean() + half


RIGHT["check_paired_interval"] = [
    interval_by_loops,
    interval_by_counts,
    lambda *a: [np.float32(end) for end in interval(*a)],
]
WRONG["check_paired_interval"] = [
    (lambda *a: interval(*a, paired=False), "lakes of a and b independently"),
    (lambda *a: interval(*a, unit="episodes"), "Episodes of one lake are alike"),
    (lambda *a: interval(*a, unit="single lakes"), "how much single lakes differ"),
    (lambda *a: interval(*a, ends=(0.16, 0.84)), "68 %"),
    (lambda *a: interval(*a, ends=(0.05, 0.95)), "This holds 90 %"),
    (lambda *a: interval(*a, ends=(0.005, 0.913)), "with as much left out on one side"),
    (lambda *a: interval(*a, ends=(0.0, 1.0)), "quantiles of many resampled means"),
    (lambda *a: interval(*a)[::-1], "return low, high"),
    (lambda a, b, *rest: interval(b, a, *rest), "b minus a"),
    (lambda *a: interval(*a) + 1, "has to hold the mean itself"),
    (lambda a, b, n, rng: interval(a, b, n, np.random.default_rng()), "with no other"),
    (lambda a, b, n, rng: interval(a, b, n, np.random.default_rng(0)), "Nothing seems to be drawn"),
    (normal_interval, "Nothing seems to be drawn"),
    (lambda a, b, n, rng: interval(a, b, 4000, rng), "`resamples` says how many"),
    (lambda *a: interval(*a).mean(), "it should be a list"),
    (lambda *a: (math.nan, math.nan), "a finite number"),
    (lambda *a: (-math.inf, math.inf), "a finite number"),
    (lambda a, b, n, rng: interval(a - b, 0 * b, n, rng), "numpy boolean subtract"),
]  # fmt: skip


PAIRS = [("too few lakes", "an interval over lakes"), ("no baseline", "R-max in the same protocol"),
         ("one training run", "five training seeds"), ("random play at first", "the greedy schedule")]  # fmt: skip

RIGHT["check_objections"] = [
    lambda: (list(pair) for pair in PAIRS),
    lambda: np.array(PAIRS),
    lambda: dict(PAIRS).items(),
    lambda: set(PAIRS),
]
WRONG["check_objections"] = [
    (lambda: PAIRS[:3], "Look at the beginning of the curve"),
    (lambda: [], "Look at the beginning of the curve"),
    (lambda: PAIRS[:1] * 4, "An objection that is repeated counts once"),
    (lambda: PAIRS[:3] + [("No  Baseline", "something else")], "An objection that is repeated counts once"),
    (lambda: [("a", "b")] * 4, "a few words"),
    (lambda: [(objection, objection) for objection, _ in PAIRS], "not the objection again"),
    (lambda: [objection for objection, _ in PAIRS], "a pair of strings"),
    (lambda: [(*pair, "more words") for pair in PAIRS], "a pair of strings"),
    (lambda: [(objection, 3.0) for objection, _ in PAIRS], "a pair of strings"),
    (lambda: dict(PAIRS), "collect the answers in a list"),
    (lambda: "too few lakes: an interval", "collect the answers in a list"),
]  # fmt: skip


# ------------------------------------------------------------------------------------ 07 a general problem solver


def retold(words, numbers, new_words, back=False, tiles=True, moves=True):
    names = {str(tile): str(name) for tile, name in enumerate(numbers)} if tiles else {}
    if moves:
        names |= {ACTIONS[action]: ACTIONS[name] for action, name in enumerate(new_words)}
    if back:
        names = {new: old for old, new in names.items()}
    return [names.get(word, word) for word in words]


def retold_in_place(words, numbers, new_words):
    for i, word in enumerate(words):
        if word.isdecimal():
            words[i] = str(numbers[int(word)])
        elif word in ACTIONS:
            words[i] = ACTIONS[new_words[ACTIONS.index(word)]]
    return words


def retold_one_after_the_other(words, numbers, new_words):
    for tile, name in enumerate(numbers):
        words = [str(name) if word == str(tile) else word for word in words]
    return retold(words, numbers, new_words, tiles=False)


def retold_by_digits(words, numbers, new_words):
    return [
        "".join(str(numbers[int(digit)]) for digit in word) if word.isdecimal() else word
        for word in retold(words, numbers, new_words, tiles=False)
    ]


RIGHT["check_retold"] = [
    retold_in_place,
    lambda *inputs: (word for word in retold(*inputs)),
    lambda *inputs: np.array(retold(*inputs)),
]
WRONG["check_retold"] = [
    (lambda *inputs: retold(*inputs, tiles=False), "4 becomes 1, and 3 becomes 0"),
    (lambda *inputs: retold(*inputs, back=True), "that is the way back"),
    (lambda *inputs: retold(*inputs, moves=False), "here left becomes down"),
    (lambda words, numbers, new: retold(words, numbers, [new[0], 1, 2, 3]), "here up becomes left"),
    (lambda *inputs: [w for w in retold(*inputs) if w not in ("hole", "reset")], "exactly one new name"),
    (lambda *inputs: ["ice" if w == "hole" else w for w in retold(*inputs)], "only tiles and moves have new names"),
    (retold_by_digits, "Replace whole words, not digits"),
    (lambda words, numbers, new: [int(w) if w.isdecimal() else w for w in retold(words, numbers, new)], "strings, too"),
    (lambda *inputs: " ".join(retold(*inputs)), "collect the answers in a list"),
    (retold_one_after_the_other, "renames it twice"),
]  # fmt: skip


def cached(moves, visits, gamma, reach=0, power=1):
    return [gamma ** (d - power) if d <= visits + reach else 0.0 for d in range(1, moves + 1)]


def cached_by_walking(moves, visits, gamma):
    written = np.zeros(moves + 1)
    for visit in range(visits + 1):  # the last one is the question
        for d in range(moves, 0, -1):
            written[d] = 0 if visit == 0 else 1 if d == 1 else gamma * written[d - 1]
    return written[1:]


RIGHT["check_cache_while_walking"] = [
    cached_by_walking,
    lambda m, v, g: torch.where(torch.arange(m) < v, g ** torch.arange(m).double(), 0.0),
    lambda m, v, g: (x for x in cached(m, v, g)),
]
WRONG["check_cache_while_walking"] = [
    (lambda m, v, g: cached(m, m, g), "a planner's"),
    (lambda m, v, g: cached(m, v, g, reach=-1), "One visit too few"),
    (lambda m, v, g: cached(m, v, g, reach=1) if m > v + 1 else cached(m, v, g), "One visit too many"),
    (lambda m, v, g: cached(m, v, g, power=0), "not gamma"),
    (lambda m, v, g: cached(m, v, 1.0), "costs a factor gamma"),
    (lambda m, v, g: cached(m, v, g)[::-1], "The order is turned"),
    (lambda m, v, g: [*cached(m, v, g), 0.0], "one value for each distance"),
    (lambda m, v, g: cached(m, v, g)[0], "collect the answers in a list"),
    (lambda m, v, g: [0.1] * m, "latest visit before now"),
]


def visible(tokens, query, keys, causal=True, myself=True, rows=slice(None)):
    mask = np.tril(np.ones((tokens, tokens), bool)) if causal else np.ones((tokens, tokens), bool)
    mask[query, keys] = False
    mask[query, query] |= myself
    return mask


def visible_by_loops(tokens, query, keys):
    return [[k <= q and (k == q or q != query or k not in keys) for k in range(tokens)] for q in range(tokens)]


def hidden_from_all(tokens, query, keys):
    mask = np.tril(np.ones((tokens, tokens), bool))
    mask[:, keys] = False
    return mask


RIGHT["check_visible"] = [
    visible_by_loops,
    lambda *inputs: torch.from_numpy(visible(*inputs)),
    lambda *inputs: visible(*inputs).astype(int),
]
WRONG["check_visible"] = [
    (lambda t, q, k: np.tril(np.ones((t, t), bool)), "Nothing is cut"),
    (lambda *inputs: visible(*inputs).T, "Rows and columns are exchanged"),
    (lambda *inputs: ~visible(*inputs), "True and False are exchanged"),
    (lambda *inputs: visible(*inputs, causal=False), "look into the future"),
    (lambda t, q, k: visible(t, q, k) & ~np.eye(t, dtype=bool), "No token sees itself"),
    (lambda t, q, k: visible(t, q, k, myself=q not in k), "must go on to see itself"),
    (hidden_from_all, "hide `keys` from everybody"),
    (lambda *inputs: visible(*inputs)[:-1], "one row for each token that looks"),
    (lambda *inputs: visible(*inputs).astype(float) / 2, "Every entry is True or False"),
    (lambda t, q, k: visible(t, q, [*k, 0]), "Begin with np.tril"),
]


# ------------------------------------------------------------------------------------------- wrong ones, right ones


def every(answers_of):
    """Parameters (check, entry) of a table, with readable ids."""
    return [
        pytest.param(check, entry, id=f"{check.removeprefix('check_')}-{index}")
        for check, entries in answers_of.items()
        for index, entry in enumerate(entries)
    ]


def test_every_check_has_its_wrong_and_its_unusual_right_answers():
    assert set(WRONG) == set(RIGHT) == set(ALL_CHECKS)
    for check in ALL_CHECKS:
        assert len({advice for _, advice in WRONG[check]}) >= 6, check
        assert len(RIGHT[check]) >= 3, check


@pytest.mark.parametrize(("check", "wrong"), every(WRONG))
def test_a_wrong_answer_gets_the_advice_that_is_meant_for_it(check, wrong, capsys):
    answer, advice = wrong
    for seed in range(10):
        text = verdict(capsys, check, answer, seed=seed)
        assert text.startswith("Not yet: ") and advice in text, text


@pytest.mark.parametrize(("check", "answer"), every(RIGHT))
def test_an_unusual_right_answer_passes(check, answer, capsys):
    for seed in range(10):
        assert verdict(capsys, check, answer, seed=seed).startswith("Passed: ")


# -------------------------------------------------------------------------------------- what holds for every check


each_check = pytest.mark.parametrize("check", ALL_CHECKS)


def shipped():
    """check -> (stub, solution), as the notebooks have them; they may use nothing but numpy, torch and themselves."""
    found = {}
    for source in sources():
        cells = [cell for cell in jupytext.read(source).cells if cell.metadata.get("tags")]
        codes = {
            tag: [c.source for c in cells if tag in c.metadata["tags"]] for tag in ("exercise", "check", "solution")
        }
        for stub, asked, solution in zip(*codes.values(), strict=True):
            check, name = re.search(r"checks\.(check_\w+)\((\w+)\)", asked).groups()
            spaces = [{"np": np, "torch": torch}, {"np": np, "torch": torch}]
            exec(stub, spaces[0])
            exec(solution, spaces[1])
            found[check] = (spaces[0][name], spaces[1][name])
    return found


SHIPPED = shipped()


def test_every_exercise_has_a_check_and_every_check_an_exercise():
    assert set(SHIPPED) == set(ALL_CHECKS)


@each_check
def test_the_stub_of_the_notebook_is_open(check, capsys):
    assert verdict(capsys, check, SHIPPED[check][0]).startswith("Open: write the body of the function")


@each_check
@pytest.mark.slow
def test_the_solution_of_the_notebook_passes_on_20_seeds(check, capsys):
    for seed in range(20):
        assert verdict(capsys, check, SHIPPED[check][1], seed=seed).startswith("Passed: ")


@each_check
def test_a_forgotten_return_is_called_that(check, capsys):
    def forgot(*inputs):
        SHIPPED[check][1](*inputs)

    text = verdict(capsys, check, forgot)
    assert text.startswith("Not yet: forgot(") and "returned None" in text and "`return`" in text


@each_check
@pytest.mark.parametrize(
    "value",
    [-1, True, "goal", b"goal", math.nan, -math.inf, [], [None], [math.nan] * 3, (math.nan, math.nan), {}, {"a": 1},
     object(), len, 1j, 10**400, np.array(math.nan), np.array([None]), np.full((2, 3, 4), np.nan),
     torch.tensor(math.nan), torch.full((2, 2, 4), math.inf), [[1, 2], [3]], itertools.count()],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_no_check_accepts_nonsense_or_trips_over_it(check, value, capsys):
    assert verdict(capsys, check, lambda *inputs, **names: value).startswith("Not yet: ")


@each_check
@pytest.mark.parametrize("share", [math.nan, math.inf])
def test_one_number_that_is_not_finite_is_enough_to_fail(check, share, capsys):
    """The solution, with its last number replaced."""

    def spoiled(*inputs):
        value = SHIPPED[check][1](*inputs)
        if isinstance(value, torch.Tensor):
            value = value.double()
            value.reshape(-1)[-1] = share
            return value
        return [*value[:-1], share] if isinstance(value, list | tuple) else share

    assert verdict(capsys, check, spoiled).startswith("Not yet: ")


# --------------------------------------------------------------------------------------------------- who is to blame


def broken(*inputs):
    return 1 / 0


def broken_generator(*inputs):
    yield 1 / 0


def broken_in_a_library(*inputs):
    return torch.zeros(2) @ torch.zeros(3)


def broken_in_a_helper(*inputs):
    return max(map(broken, [inputs]))


@each_check
@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (broken, "in broken: return 1 / 0"),
        (broken_generator, "in broken_generator: yield 1 / 0"),
        (broken_in_a_library, "in broken_in_a_library: return torch.zeros(2) @ torch.zeros(3)"),
        (broken_in_a_helper, "in broken: return 1 / 0"),
    ],
)
def test_an_error_of_the_student_is_shown_with_its_line(check, answer, line, capsys):
    text = verdict(capsys, check, answer)
    assert text.startswith(f"Not yet: {answer.__name__}(") and "Error: " in text and line in text, text


@each_check
@pytest.mark.parametrize("bug", [TypeError, NotImplementedError])
def test_an_error_of_the_course_surfaces_as_one(check, bug, monkeypatch, capsys):
    """Whichever check: reading the answer fails, after the student's function returned."""

    def fails(*inputs):
        raise bug("a bug of the course")

    monkeypatch.setattr(answers, "plain", fails)
    monkeypatch.setattr(answers.Answer, "tensor", fails)
    with pytest.raises(bug, match="a bug of the course"):
        getattr(checks, check)(SHIPPED[check][1])
    assert capsys.readouterr().out == ""


def test_an_error_that_a_library_calls_not_implemented_is_no_open_stub(capsys):
    def unsupported(q):
        raise NotImplementedError("\"argmax_cpu\" not implemented for 'Half'")

    assert verdict(capsys, "check_greedy", unsupported).startswith("Not yet: ")


@each_check
@pytest.mark.parametrize("answer", [None, 7, "next_tile"])
def test_what_is_no_function_is_called_that(check, answer, capsys):
    assert "without brackets" in verdict(capsys, check, answer)


@each_check
def test_a_function_with_other_inputs_is_called_that(check, capsys):
    text = verdict(capsys, check, lambda a, b, c, d, e, f, g: 0)
    assert "a function of (a, b, c, d, e, f, g)" in text and "Keep the line that begins with `def`" in text


def test_functions_of_a_library_can_be_answers(capsys):
    assert verdict(capsys, "check_greedy", torch.argmax).startswith("Not yet: ")
    assert "RuntimeError: " in verdict(capsys, "check_greedy", torch.inverse)


def test_messages_show_inputs_as_python_writes_them():
    assert answers.show([None, "goal", 3, 0.123456]) == "[None, 'goal', 3, 0.1235]"
    assert answers.show(torch.zeros(2, 3, dtype=torch.int64)) == "int64 [2, 3]"
    assert answers.show(np.array([1.0, 2.5])) == "[1, 2.5]"
    assert answers.show(list(range(12))) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... 12 in all]"


def test_a_message_names_input_answer_and_right_answer(capsys):
    text = verdict(capsys, "check_next_tile", lambda *a: next_tile(*a, walls=False))
    assert text == (
        "Not yet: <lambda>(5, 0, 3, 5): yours is 4, it should be 5. On 3 x 5 (height x width), left from 5 runs "
        "against the left edge: tile 4 is at the end of the row above, not next to tile 5. The agent stays.\n"
    )


# -------------------------------------------------------------------------- the checks know what the package knows


def test_the_reference_answers_agree_with_the_package():
    """What the checks take for right is what the course's own code does."""
    history = HistoryFormat("compact")
    words = "8 right 9 down hole reset 8 left 8 left limit reset 8 up 4 right goal reset 8 up 4 up 0".split()
    d = history.decisions(history.tokenize(" ".join(words))[None])
    assert d.position[d.valid].tolist() == positions(words)
    names = np.where(d.terminated, "reward", np.where(d.has_target, "next", "nothing"))[d.valid]
    assert names.tolist() == learn_from(words)
