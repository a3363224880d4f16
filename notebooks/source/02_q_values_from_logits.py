# %% [markdown]
# # 02 · How do four logits become Q-values?
#
# ![From a history, through a Llama, to four numbers](../assets/figures/notebook_02.png)
#
# A language model answers one question: which token comes next? A reinforcement learner needs another one answered:
# what is each move *worth*? The answer that this course (after the paper) gives is almost too short: **take four of the
# model's own logits and call them Q.** What makes that legitimate, and what does it take to make it work?
#
# | | |
# | --- | --- |
# | **Goals** | Read Q from a Llama; know what scale, offset and rows do; see what an untrained model believes |
# | **Prerequisites** | Notebook 01; PyTorch tensors; what a logit is |
# | **Reading** | 25 minutes |
# | **Exercises** | 40 minutes |
# | **Run time** | smoke 15 s · cpu 30 s on two cores |
# | **Peak memory** | 1 GB |
# | **Downloads** | none |

# %% [markdown]
# ## The base model
#
# `assets/tiny-llama` is a true Llama, only small. It was pretrained by us to predict *the next observation* on
# transcripts of **random** play on lakes of all sizes up to 8 x 8 (and, with rows thrown away later, what each of the
# four moves would lead to; notebook 04). Action words carried no loss. So it knows how lakes answer to moves, and
# nothing about which moves are good. (Real Llamas come in notebook 04.)

# %%
import torch

from icrl_utils import get_profile, held_out_maps
from icrl_utils.history.compact import COMPACT_WORDS
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.held_out import COURSE_LAKE as lake  # that of notebook 00
from icrl_utils.llama.load import load_base, parameter_count

profile = get_profile()
history = HistoryFormat("compact")
base = load_base("assets/tiny-llama")
print(f"{type(base).__name__} with {parameter_count(base):,} parameters and {history.vocab_size} possible tokens")

# %% [markdown]
# ## The naive way: ask what it would say
#
# It is a language model, so let it speak. The agent stands on tile 4 for the second time; the first time it went down
# and fell into a hole. Which token does the model find likeliest where a move is due?

# %%
text = "0 down 4 down hole reset 0 down 4"
ids = torch.from_numpy(history.tokenize(text))[None]
with torch.no_grad():
    logits = base(ids).logits[0, -1]
best = logits.topk(5)
print(
    [(COMPACT_WORDS[i], round(value, 1)) for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
)

# %% [markdown]
# Expected: five words, not one of them a move. Is that an accident of this history? Count over random play:

# %%
import numpy as np

from icrl_utils import rollout
from icrl_utils.play.baselines import RandomPolicy

played = rollout(RandomPolicy(), held_out_maps("in_distribution")[: profile.maps], "greedy", episodes=12, seed=0)
texts = [history.tokenize(history.render(played.episodes(i)))[:160] for i in range(len(played.maps))]
batch = np.stack([ids for ids in texts if len(ids) == 160])
d = history.decisions(batch)  # positions [B, D], and which of them are real
with torch.no_grad():
    all_logits = base(torch.from_numpy(batch)).logits  # [B, T, 72]
rows = np.arange(len(batch))[:, None]
at_decisions = all_logits[rows, d.position][torch.from_numpy(d.valid)]  # [decisions, 72]
is_action = np.isin(at_decisions.argmax(-1).numpy(), history.action_ids)
print(f"at {len(is_action):,} decisions the likeliest token is a move in {is_action.mean():.0%}")

# %% [markdown]
# Expected: 0 %. Nobody ever taught it to say a move; where a move is due, pretraining asked for nothing. And had we
# taught it, by imitation, it would say what its teacher *did*, not what is *good*: the likeliest continuation is not
# what we want. Note the trap, too: whoever takes a maximum over **all** tokens, here or in a learning target, lets
# "moves" such as `17` win. (The released code of the paper does that in its target.)
#
# ## The idea: four logits are four numbers
#
# The last layer of a Llama gives a vector $u_i \in \mathbb{R}^m$ at each position $i$. The logit of token $v$ is its
# inner product with row $w_v$ of the output embedding: $\ell_v = w_v \cdot u_i$. Nothing forces us to feed logits into
# a softmax. A logit is a number that depends on the whole history, and training can move it anywhere. So *declare* the
# four action logits to be action values, and train them to be that. With $u$ at the decision that ends the history $h$,
# and $\beta > 0$ and $c$ the same for all four actions:
#
# $$z_a = \beta\,(w_a \cdot u) - c, \qquad Q(h, a) = \sigma(z_a) = \frac{1}{1 + \exp(-z_a)}$$
#
# *(Test: `tests/test_equations.py::test_02_read_out`.)*
#
# No new layer, no new head: the greedy move is the largest of four logits of an ordinary causal model, and any tool
# that loads the checkpoint can play.

# %%
from icrl_utils.llama.adapters import backbone
from icrl_utils.llama.readout import QReadout, action_logits

action_ids = torch.from_numpy(history.action_ids)
readout = QReadout(scale=1.0, offset=1.0)
with torch.no_grad():
    hidden = backbone(base)(ids).last_hidden_state  # [1, T, d]
    four = action_logits(hidden[:, -1], base.lm_head, action_ids)  # the four rows times the hidden state
assert torch.allclose(four[0], logits[action_ids], atol=1e-5)
print("the same four numbers as in the full logits:", [round(x, 3) for x in four[0].tolist()])
print("as Q:", [round(x, 3) for x in readout.q(readout.z(four))[0].tolist()])

# %% [markdown]
# ## Four rows against 128,256
#
# Why compute them separately, if they are part of the logits anyway? Because the other logits are expensive. With $N$
# histories of $T$ tokens, $D$ decisions in each, a vocabulary of $V$ and numbers of $b$ bytes:
#
# $$\text{full logits: } N\,T\,V\,b \text{ bytes} \qquad\quad \text{what DQN uses: } N\,D \cdot 4\,b \text{ bytes}$$
#
# *(Test: `tests/test_equations.py::test_02_bytes_of_logits`.)* How much that is of a whole step, forward and backward
# with everything that both ways share, has been measured once, by `python -m icrl_utils bench`, at Llama 3's vocabulary
# with a narrow model:

# %%
import csv

from icrl_utils.paths import ASSETS

rows = csv.DictReader((ASSETS / "results" / "bench.csv").open())
measured = {row["figure"]: float(row["value"]) for row in rows if row["benchmark"] == "readout"}
print(f"four rows at the decisions: {measured['times_faster']:.0f} times as fast as full logits at all tokens,")
print(f"in 1/{measured['times_smaller']:.0f} of the memory")

# %% [markdown]
# ## A logit is not a return
#
# Returns on a lake lie between 0 and 1: a goal pays 1, each step before it costs a share ($\gamma < 1$), a hole pays
# 0. Logits know nothing of that. Those of our base at the decisions:

# %%
four_logits = at_decisions[:, action_ids]  # [decisions, 4]
print("mean of each action's logit:", [round(x, 2) for x in four_logits.mean(0).tolist()])
print(f"from {four_logits.min():.1f} to {four_logits.max():.1f}, {(four_logits < 0).float().mean():.0%} below zero")

# %% [markdown]
# A third of them would be negative "returns". In a large pretrained Llama it is worse: there the four logits sit
# together at some level that training happened to choose; in the paper's model it seems to be near +22. Read as a
# return, that promises 22 goals; the squared errors of the first training steps are near 22² = 484, where differences
# of .1 matter. The paper multiplies all rewards by 30, which brings returns near the logits. We go the other way, and
# store it beside the adapter: **scale** $\beta$ and **offset** $c$ bring the logits to where returns are, and $\sigma$
# keeps them within $[0, 1]$.
#
# Whatever $\beta > 0$ and $c$ are, the *order* of the four actions does not change, so the greedy move is the same:

# %%
for scale, offset in ((1.0, 0.0), (1.0, 1.0), (0.3, 2.0)):
    q = QReadout(scale=scale, offset=offset).q(QReadout(scale=scale, offset=offset).z(four_logits))
    same = (q.argmax(-1) == four_logits.argmax(-1)).float().mean()
    print(f"scale {scale}, offset {offset}: median Q {q.median():.2f}, greedy move the same in {same:.0%}")

# %% [markdown]
# Why start low (offset 1 makes the median about .35)? On most tiles of most lakes the optimal value is small, and an
# action that was never tried should not look like a promise by accident. An optimistic start is a *choice*, one that
# helps exploration; notebook 06 shows it for tables.
#
# ## The rows must differ
#
# How far apart can two actions $a$ and $a'$ be? Their logits are inner products with the *same* $u$, so
#
# $$|z_a - z_{a'}| = \beta\,|(w_a - w_{a'}) \cdot u| \;\le\; \beta\,\lVert w_a - w_{a'} \rVert \, \lVert u \rVert$$
#
# *(Test: `tests/test_equations.py::test_02_gap_of_two_actions`.)*
#
# An adapter (notebook 04) changes $u$ and leaves the rows alone. If two rows are nearly parallel, no $u$ of ordinary
# length tells these actions apart, however long one trains. That is not a remote danger. Our pretraining puts no loss
# on action words; a softmax over all tokens would push all four rows the same way. To tell "surely" (.95) from "never"
# (.05) takes a gap in $z$ of $\sigma^{-1}(.95) - \sigma^{-1}(.05) \approx 5.9$:

# %%
W = base.lm_head.weight[action_ids].detach()  # [4, d]
with torch.no_grad():
    length = backbone(base)(torch.from_numpy(batch[:8])).last_hidden_state.norm(dim=-1).mean()
common = torch.randn(W.shape[1], generator=torch.Generator().manual_seed(0))
parallel = 0.5 * torch.nn.functional.normalize(common + 0.05 * W / W.norm(dim=1, keepdim=True) * common.norm(), dim=-1)
for name, rows in (("rows of the base", W), ("nearly parallel rows", parallel)):
    cosine = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=0)
    gap = (rows[0] - rows[1]).norm() * length
    print(f"{name:22s} cosine(left, down) = {cosine:.3f}, largest possible gap in z = {gap:.1f}, needed 5.9")

# %% [markdown]
# So the four rows of the shipped base are *set* before pretraining: orthogonal to each other, of equal length, and
# never moved. A real Llama's rows for four different words differ enough already.
#
# ## What does it believe?
#
# Give the model a memory of our lake: the first sixteen episodes of random play that found the goal, fell into both
# holes and saw nearly all tiles. Then ask for Q on every tile. (It is asked as if an episode began there. On most tiles
# none ever did, so this is a question outside of its experience; the pattern is worth more than the digits.) On the
# left the exact values $Q^*$ (discount $\gamma = .6$, as in our training; notebook 04 says why), then the base, then
# the agent that notebooks 03 and 04 make of it. Dark is high, the number is the largest of the four, the red triangle
# says which move has it. Tiles that the memory has never visited lie in fog.

# %%
from icrl_utils import load_agent
from icrl_utils.llama.agent import Agent

tries = rollout(RandomPolicy(), [lake] * 1000, "greedy", episodes=16, seed=0)  # a thousand players, each with its luck
for number in range(1000):
    remembered = tries.episodes(number)
    visited = {tile for episode in remembered for tile in episode.tiles}
    if {*lake.goals, *lake.holes} <= visited and len(visited) >= lake.n_tiles - 2:
        break
memory = history.render(remembered)
players = {
    "pretrained base": Agent(base, history, readout, name="pretrained base"),
    "agent": load_agent("assets/adapters/dqn"),
}


def q_map(player) -> np.ndarray:
    """Q of each tile after the memory; holes and goals are left out. [n_tiles, 4]"""
    q = np.full((lake.n_tiles, 4), np.nan)
    for tile in set(range(lake.n_tiles)) - {*lake.holes, *lake.goals}:
        q[tile] = player.q_values(f"{memory} {tile}")
    return q


# %%
from icrl_utils.plots.lakes import plot_q_lakes

exact = lake.optimal_values(gamma=0.6)
maps = {"exact Q*": exact, **{name: q_map(player) for name, player in players.items()}}
plot_q_lakes(lake, maps, known=dict.fromkeys(players, visited))

# %% [markdown]
# Expected: the base's values have no pattern. They cannot have one: its four rows were drawn at random, and no reward
# was ever mentioned. It *knows* that right of 0 comes a hole, since it saw it; it does not know that this is bad. The
# agent's values rise towards the goal, on the way from the start nearly as the exact ones do; farther off not every
# triangle is right. Moves into holes that it has seen are light. So are moves against the edge of the lake where the
# memory has shown it, though in $Q^*$ they are not: bumping into a wall costs one move and no more. That is on purpose:
# notebook 03 shows why we train the agent to count a wall as worth nothing.
#
# A check of that knowledge. The base predicts what comes *after* a move, and is nearly always right where the
# context has already shown it:

# %%
from icrl_utils.dqn.replay import make_batch
from icrl_utils.training.world_model import seen_pair_accuracy

accuracy, pairs = seen_pair_accuracy(base, make_batch(batch, history), action_ids)
print(f"next observation right: {accuracy:.1%} of {pairs:,} (tile, action) pairs that the context had shown before")

# %% [markdown]
# Expected: above 99 %. An excellent memory of the world without a will: that is the right base to start from. How badly
# does it *play*, if it always makes the move with the largest value? Same lakes, same luck, against the die:

# %%
from icrl_utils.statistics import interval

lakes = held_out_maps("in_distribution")[: profile.maps]
untrained = rollout(players["pretrained base"], lakes, "greedy", episodes=3, seed=1)
die = rollout(RandomPolicy(), lakes, "greedy", episodes=3, seed=1)
for name, values in (
    ("base", untrained.success),
    ("random", die.success),
    ("base - random", untrained.success * 1.0 - die.success),
):
    mean, low, high = interval(values.mean(axis=1), resamples=profile.bootstrap)
    print(f"{name:14s} {mean:+.2f}  (95 % interval {low:+.2f} to {high:+.2f})")

# %% [markdown]
# Expected (`cpu` profile): the base is *worse* than the die, by .1 or more, interval below zero. It is no paradox: an
# arbitrary but **fixed** preference walks in circles until it is cut off. Its episodes are long and end nowhere:

# %%
print(f"moves an episode: base {untrained.steps.mean():.0f}, random {die.steps.mean():.0f}")
print(f"cut off: base {(untrained.outcome == 3).mean():.0%}, random {(die.outcome == 3).mean():.0%}")

# %% [markdown]
# So the memory of the agent of notebook 00 was in the base already; what to *want* was not. That is put there by four
# numbers, a reward, and the next two notebooks.
#
# ## Exercise 1: read Q
#
# *Difficulty: medium. About 15 minutes.*
#
# The whole read-out, from full logits (so that you can test it on any model). Every history of the batch has its own
# decisions.


# %% tags=["exercise"]
def read_q(logits, position, action_ids, scale, offset):
    """logits [B, T, V], position int64 [B, D], action_ids int64 [4] -> Q [B, D, 4]."""
    raise NotImplementedError


# %% tags=["check"]
from icrl_utils.course import checks

checks.check_read_q(read_q)


# %% tags=["solution"]
def read_q(logits, position, action_ids, scale, offset):
    rows = torch.arange(len(logits))[:, None]  # [B, 1], beside position [B, D]
    z = scale * logits[rows, position][..., action_ids] - offset
    return torch.sigmoid(z)


# %% [markdown]
# ## Exercise 2: which move?
#
# *Difficulty: easy. About 5 minutes.*


# %% tags=["exercise"]
def greedy(q):
    """q [B, D, 4] -> int64 [B, D]: the number (0..3) of the best action at every decision."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_greedy(greedy)


# %% tags=["solution"]
def greedy(q):
    return q.argmax(dim=-1)


# %% [markdown]
# ## Exercise 3: a read-out for another model
#
# *Difficulty: medium. About 20 minutes.*
#
# You get the four action logits of some pretrained model at many decisions; they may sit at +22 or at -4. Choose scale
# and offset so that $z = \beta\,\ell - c$ has the standard deviation `spread` over all numbers, and the median of
# $Q = \sigma(z)$ is `middle`.


# %% tags=["exercise"]
def fit_readout(logits, middle, spread):
    """logits float [N, 4] (a NumPy array) -> (scale, offset)."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_fit_readout(fit_readout)


# %% tags=["solution"]
def fit_readout(logits, middle, spread):
    scale = spread / logits.std()
    middle_z = np.log(middle / (1 - middle))  # sigmoid(middle_z) = middle
    return scale, scale * np.median(logits) - middle_z


# %% [markdown]
# ## Recap
#
# - The likeliest token and the best move are different questions. Never take a maximum over the whole vocabulary.
# - $Q(h, a) = \sigma(\beta\, w_a \cdot u - c)$ at the decision: four rows, no head. A positive scale and a common
#   offset bring logits to where returns are and never change the greedy move.
# - Only four rows at the decisions are needed, and only they are computed.
# - Frozen rows must differ, or no hidden state can tell the actions apart.
# - The base remembers what it saw almost perfectly and plays worse than a die. Knowing what *will* happen is not
#   knowing what is *good*.
#
# **Questions.** Answer before you unfold.
#
# 1. Why may the offset $c$ not differ from action to action, if the greedy move is to stay what any other tool
#    computes?
# 2. The base predicts the next observation nearly perfectly and plays worse than a die. What single thing is missing?
# 3. Somebody proposes four new output rows, trained from the start, instead of the model's own. What is lost?
#
# <details><summary>Answers</summary>
#
# 1. The largest of $\beta \ell_a - c$ is the largest of $\ell_a$ only if the same number is taken from all four. An
#    offset of its own for each action would have to be shipped and applied, or another tool plays other moves.
# 2. That a goal is worth something: no reward ever entered its loss, so no move is better than another to it.
# 3. That the checkpoint stays an ordinary causal model: new rows are a head, which other tools do not know. (A head
#    works, too, and sets scale and direction freely.)
#
# </details>
#
# ## Further reading
#
# - [arXiv 2501.14176](https://arxiv.org/abs/2501.14176), section 3: the logit as Q, the factor 30.
# - Farebrother et al., *Stop Regressing: Training Value Functions via Classification*, [arXiv
#   2403.03950](https://arxiv.org/abs/2403.03950): why a value behind a sigmoid or softmax is easier to train than a
#   free number.
# - Snell et al., *Offline RL for Natural Language Generation with Implicit Language Q Learning*, [arXiv
#   2206.11871](https://arxiv.org/abs/2206.11871): values for a language model with extra heads, the way not taken here.
#
# Next: [03, why does naive bootstrapping fail?](03_replay_and_target_networks.ipynb)
