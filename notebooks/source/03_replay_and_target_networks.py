# %% [markdown]
# # 03 · Why does naive bootstrapping fail?
#
# ![A network that runs after its own guess, and one whose target stands still](../assets/figures/notebook_03.png)
#
# Q-learning asks a network to agree with its own guess about the next step. Nobody tells it the right answer. **How can
# a value that is learned from a value become true, and why does the obvious way blow up?**
#
# | | |
# | --- | --- |
# | **Goals** | see Q-learning run away, and what stops it; TD targets by hand; four ways to get them wrong |
# | **Prerequisites** | notebooks 01 (histories, decisions) and 02 (Q from logits); expectation, gradient |
# | **Reading** | 45 minutes |
# | **Exercises** | 35 minutes |
# | **Run time** | smoke 30 s · cpu 1 min on two cores |
# | **Peak memory** | 0.9 GB |
# | **Downloads** | none |

# %%
import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# %%
from icrl_utils import FrozenLakeVectorEnv, HistoryFormat, LakeMap, get_profile
from icrl_utils.course import checks
from icrl_utils.dqn import one_lake
from icrl_utils.dqn.dqn import polyak_update, td_loss, td_targets
from icrl_utils.dqn.replay import ReplayBuffer, make_batch
from icrl_utils.history.episodes import GOAL, HOLE, LIMIT
from icrl_utils.lake.held_out import held_out_maps, training_maps
from icrl_utils.lake.maps import ACTIONS, DEFAULT_MAP, TRAINING_MAPS
from icrl_utils.play.collect import RANDOM_PLAY, Behaviour, collect
from icrl_utils.plots.lakes import plot_history_tokens, plot_lake
from icrl_utils.plots.values import plot_lines, plot_one_lake, plot_probes, plot_sets, plot_values_against_exact

profile = get_profile()
small = profile.name == "smoke"  # the same cells, fewer steps: what they show is then not to be taken seriously

# %% [markdown]
# ## 1 · The naive way, failing
#
# Take one lake, so small that the exact answer is known. Value iteration gives $Q^*(s, a)$: what the best player will
# get, discounted by 0.9 a move (as in the paper; our own training takes 0.6, and notebook 04 says why), after taking
# action $a$ on tile $s$. In the figure each tile has four triangles, one a move: the darker the higher, and a red mark
# points to the best. (It is gymnasium's own lake. That of notebooks 00 to 02 is held out, and nothing is trained on
# it.)

# %%
lake = DEFAULT_MAP
exact = torch.tensor(lake.optimal_values(gamma=0.9), dtype=torch.float32)
plot_lake(lake, q=exact.numpy(), title="What a perfect learner would believe: Q*")

# %% [markdown]
# Now learn this table from random play, with a small network that is told row and column of a tile. The obvious way is
# three lines long. For every move $(s, a, r, s')$ that was played, in the order played, compute
#
# $$y = r + 0.9 \max_{a'} Q(s', a')$$
#
# *with the network itself* ($y = r$ if the move ended the episode), and take a gradient step on $(Q(s, a) - y)^2$.
# First the data: random moves, on many copies of the lake at once.


# %% tags=["from:dqn.one_lake.random_play"]
def random_play(env: FrozenLakeVectorEnv, rounds: int, seed: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
    """For each round, on all lakes of ``env``: tile, action, reward, next tile, whether the move ended the episode,
    whether the clock did, and whether it was a move at all (the step after an end only begins a new episode)."""
    rng = np.random.default_rng(seed)
    (tile, _), begins = env.reset(seed=seed), np.zeros(env.num_envs, bool)
    for _ in range(rounds):
        action = rng.integers(4, size=env.num_envs)
        next_tile, reward, terminated, truncated, _ = env.step(action)
        yield tile, action, reward, next_tile, terminated, truncated & ~terminated, ~begins
        tile, begins = next_tile, terminated | truncated


# %%
SEEDS = 8
data = one_lake.played(lake, SEEDS)  # the columns of random_play, each [SEEDS, moves]
goals = data[2].sum(1, dtype=int).tolist()
print(f"{SEEDS} times {data[0].shape[1]:,} rounds; times that the goal was reached: {goals}")

# %% [markdown]
# One run proves nothing, so we train eight networks side by side, each on its own play: the weights of all eight are
# stacked, and one batched product computes the table $Q$ of all 16 tiles for each of them (`one_lake.outputs`). A *way*
# to learn has three switches, all off in the naive way:
#
# - `replay`: draw the 32 moves of a step at random from everything that was played, instead of the 32 latest;
# - `alpha`: take the maximum from a **slow copy** of the network, which goes this share of the way towards it at every
#   step (section 9), instead of from the network itself (alpha = 1);
# - `link`: let $Q$ be the sigmoid of what the network puts out, as in notebook 02, with the loss that belongs to it
#   (cross-entropy), instead of the output itself with squares.

# %%
from icrl_utils.dqn.one_lake import BATCH, GAMMA, LOOK_EVERY, STEPS, Way, new_networks, outputs, q_tables


# %% tags=["from:dqn.one_lake.losses"]
def losses(way: Way, online: list[Tensor], slow: list[Tensor], moves: list[Tensor], lake: LakeMap) -> Tensor:
    """Of every move, given the networks and their copies: [seeds, moves]. ``moves``: columns of `random_play`."""
    tile, action, reward, next_tile, over, _, is_move = moves
    run, is_bounded = torch.arange(len(tile))[:, None], way.link == "sigmoid"
    best = q_tables(slow, lake, is_bounded).detach().amax(-1)
    y = reward.float() + GAMMA * best[run, next_tile] * ~over
    z = outputs(online, lake)[run, tile, action]
    return is_move * (F.binary_cross_entropy_with_logits(z, y, reduction="none") if is_bounded else (z - y) ** 2)


# %% tags=["from:dqn.one_lake.learn"]
def learn(way: Way, data: list[Tensor], lake: LakeMap, steps: int = STEPS) -> Tensor:
    """Q-learning from ``data``, columns of `random_play`. Q [looks, seeds, tiles, 4], one look every 100 steps."""
    (seeds, n), draw, looks = data[0].shape, torch.Generator().manual_seed(1), []
    run, online = torch.arange(seeds)[:, None], new_networks(seeds)
    slow, adam = [weight.detach().clone() for weight in online], torch.optim.Adam(online, lr=3e-3)
    for step in range(steps):
        latest = torch.arange(BATCH) + BATCH * step % n
        at = torch.randint(n, (seeds, BATCH), generator=draw) if way.replay else latest
        loss = losses(way, online, slow, [column[run, at] for column in data], lake).mean(1).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        polyak_update(slow, online, way.alpha)
        looks += [q_tables(online, lake, way.link == "sigmoid").detach()] if step % LOOK_EVERY == LOOK_EVERY - 1 else []
    return torch.stack(looks)


# %% [markdown]
# (Before you run it: which of the two will have the smaller error? And can an error be larger than 1?)

# %%
steps = 200 if small else STEPS
ways = {"naive": Way("none", False, 1.0), "slow copy, α = 0.01": Way("none", False, 0.01)}
x = np.arange(LOOK_EVERY, steps + 1, LOOK_EVERY)
curves = {}
for name, way in ways.items():
    q = learn(way, data, lake, steps)
    curves[name] = {"error of Q": (x, one_lake.root_mean_square_error(q, lake))}
plot_lines(curves, log="y", xlabel="gradient steps", ylabel="root mean square error of Q",
           reference={"largest possible return": 1.0}, title="Eight networks (thin) and their median")  # fmt: skip

# %% [markdown]
# Expected: most of the naive networks end above 1, the worst beyond 100. That is absurd: no return of this game is
# larger than 1, and a network that always answered 0 would be nearer to the truth. With a copy that is slow enough all
# eight come to the exact values within a few hundredths.
#
# Is that the whole story? Eight networks and two ways are few. So every combination was learned by 32 networks, and
# where they ended stands in a file (`python -m icrl_utils remake one-lake` makes it anew, in a minute). Move the
# sliders; below them, for readers without Jupyter, is the way that this course takes (but for the link): alpha = .1.

# %%
from icrl_utils.course.widgets import one_lake_explorer

rows = one_lake.read_file()
one_lake_explorer(rows)

# %%
plot_one_lake(rows, link="none", replay=True, alpha=0.1)

# %% [markdown]
# And in numbers, with intervals for the median (the file again):

# %%
from icrl_utils.statistics import median_interval

ends = [row for row in rows if row["reaches_goal"]]
print(f"{'link':9s}{'replay':>7s}{'alpha':>7s}   {'median error':26s}reach the goal")
for link, replay, alpha in dict.fromkeys((row["link"], row["replay"], row["alpha"]) for row in ends):
    own = [row for row in ends if (row["link"], row["replay"], row["alpha"]) == (link, replay, alpha)]
    middle, low, high = median_interval(np.array([float(row["error"]) for row in own]))
    walks = sum(int(row["reaches_goal"]) for row in own)
    found = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    print(f"{link:9s}{replay:>7s}{alpha:>7s}   {found:26s}{walks}/{len(own)}")

# %% [markdown]
# ## 2 · The idea
#
# Three things that are harmless one by one feed each other here (Sutton and Barto call them the deadly triad):
#
# - **bootstrapping**: the target contains a guess;
# - **function approximation**: raising $Q$ on one tile raises it on its neighbours too, the *next* tile among them, and
#   so raises its own target;
# - **off-policy data**: random play visits a tile near the start a hundred times before it visits the goal once, so the
#   few true rewards are outvoted by guesses.
#
# The remedies are those of DQN (Mnih et al. 2015), and one of our own. A **target network**, a slow copy that takes no
# gradient, makes the target stand still long enough to be reached. **Replay** mixes old and new moves, so that what is
# learned near the goal is not unlearned while the player walks about elsewhere. A **bounded read-out** cannot leave
# [0, 1] whatever happens inside. What did each do here?
#
# - *Replay alone did not help*: median error 24 with it (1 to 67), 13 without (1 to 49). Random play on one small lake
#   is well mixed already. Its time comes when the lake and the player's habits change, that is, in our real data.
# - *The slow copy works only where it is slow.* With alpha = .01 the error is .02, and 26 to 30 of 32 networks walk to
#   the goal. With alpha = .1, which is the paper's and our own, about half of the networks run away (medians 4 and 11),
#   and with .3 it is worse than no copy at all (220 to 240).
# - *The sigmoid holds at every alpha*, even without a copy: median errors from .09 to .17. So at our alpha it is the
#   bounded read-out that keeps training stable, and the copy does the rest. It is no cure-all: after as many steps the
#   values are less exact than those of the slowest copies without a sigmoid, and 16 to 26 of 32 networks reach the
#   goal.
#
# Be careful with the conclusion: it is *this* network with *these* settings. A table instead of a network cannot
# explode (nothing is shared between tiles), another learning rate may not, and a target network makes divergence rare
# rather than impossible.
#
# The rest of this notebook builds these parts for histories instead of tiles, and tests each one alone.

# %% [markdown]
# ## 3 · Behaviour: from random to nearly optimal
#
# Nothing in DQN asks the data to be good; the network learns what *would* have been best from whatever was done. But it
# must see how goals are reached, and it must see all kinds of mistakes, or it will not know their value. So the players
# of our data differ: each lake gets one of skill between "random" and "nearly optimal", mostly rising within a set of
# 20 to 40 episodes. A skilled move is the greedy move of a tabular Q-learner, which like the agent we want knows only
# what it has seen.

# %%
rng = np.random.default_rng(0)
lakes = training_maps(TRAINING_MAPS, 60 if small else 600, rng)
players = {"random play": RANDOM_PLAY, "the mixture used for training": Behaviour()}
sets = {name: collect(lakes, behaviour, rng) for name, behaviour in players.items()}


# %%
def by_place(play):
    """Share of episodes that reach the goal: in each tenth of the sets, and in each set, sorted."""
    first = np.cumsum(play.episodes_per_map) - play.episodes_per_map
    lake_of = np.repeat(np.arange(len(first)), play.episodes_per_map)
    tenth = 10 * (np.arange(len(lake_of)) - first[lake_of]) // play.episodes_per_map[lake_of]
    goal = play.outcome == GOAL
    return np.bincount(tenth, goal) / np.bincount(tenth), np.sort(np.bincount(lake_of, goal) / play.episodes_per_map)


# %%
titles = ["by place within a set", "by set, sorted from worst to best"]
panels = {title: {} for title in titles}
for name, play in sets.items():
    for title, share in zip(titles, by_place(play), strict=True):
        panels[title][name] = (100 * (np.arange(len(share)) + 0.5) / len(share), share)
plot_lines(panels, xlabel=["% of the episodes of a set", "% of the sets"],
           ylabel="share that reaches the goal", ylim=(0, 1.03))  # fmt: skip

# %% [markdown]
# Why not simply let a player who knows the map show the way? Because he would leave traces in the text that the text
# cannot explain. Look at moves that are made for the *first time* on a lake. How do they end?


# %%
def first_tries(play):
    """Of the moves that had never been made on their lake before: the shares that end in a hole and at a goal."""
    episode = np.repeat(np.arange(len(play.steps)), play.steps)
    lake_of = np.repeat(np.arange(len(play.episodes_per_map)), play.episodes_per_map)
    tile = np.delete(play.tiles, np.cumsum(play.steps + 1) - 1)  # without the last tile of each episode
    _, first = np.unique(np.stack([lake_of[episode], tile, play.actions]), axis=1, return_index=True)
    ends = np.zeros(len(tile), int)
    ends[np.cumsum(play.steps) - 1] = play.outcome
    return [(ends[first] == code).mean() for code in (HOLE, GOAL)]


# %%
sets["players who know the map"] = collect(lakes, Behaviour(habit_share=0.0, expert_share=1.0), rng)
print(f"{'a move made for the first time ends ...':42s}{'in a hole':>10s}{'at a goal':>11s}")
for name, play in sets.items():
    print(f"{name:42s}" + "{:10.0%}{:11.0%}".format(*first_tries(play)))

# %% [markdown]
# Though well over half of their moves are random, players who know the map are luckier with new moves than our other
# players, who know only what they have seen. The text does not say who is playing, so a network that learns from such
# play takes their knowledge for luck that awaits everyone. This is **confounding**: the value of a move that somebody
# *chose for reasons you cannot see* is not its value when you make it. Off-policy learning may learn from anybody,
# provided that the choice depends on nothing but the history (and dice). All our players obey.
# (`Behaviour(expert_share=0.5)` mixes the other kind in. In our one comparison, in `assets/lab_book.md`, success was
# not worse for it: they are left out because the targets are wrong, not because the harm was measured.)
#
# One kind of player in our data is bad on purpose. A tabular learner never walks in circles for long, but a
# half-trained network does, and a network that has never read about circles does not know that they lead nowhere. So on
# a quarter of the lakes the player has *habits*: one move for each tile, drawn by dice for each episode and kept to its
# end.
#
# In the end a skilled player's moves are often optimal, but they never are a *target*: what the network is told is
# which action was taken and what reward came, never which action would have been right.
#
# One thing is guarded by the package and not by discipline. The lakes that every figure of this course is measured on
# are held out, and collecting refuses to play them:

# %%
try:
    collect(held_out_maps("in_distribution")[:3], RANDOM_PLAY, rng)
except ValueError as error:
    print(error)

# %% [markdown]
# ## 4 · Replay of sets
#
# DQN on Atari replays single moves. Our network reads histories, so the unit of replay is a *slice*: so many tokens
# (384 here, 640 in training) from the episodes of one lake and one player. In what order should the episodes of a set
# stand in a slice?
#
# - **as played**: skill mostly rises from left to right, as it will when the agent itself learns;
# - **shuffled**: the paper's way. No trend to imitate, and the same set can be shown in many orders. Shuffling also
#   allows *weights*: successful episodes five times as likely (`hi`), or a fifth as likely (`low`); the paper calls
#   this data quality. Good episodes come first, poor ones fall off the end of the slice.

# %%
history = HistoryFormat("compact")
buffer = ReplayBuffer(collect(lakes[:12], Behaviour(), np.random.default_rng(3), min_tokens=384), history)
orders = {"as played": ("as_played", "mid"), "shuffled": ("shuffled", "mid"), "shuffled, hi": ("shuffled", "hi"),
          "shuffled, low": ("shuffled", "low")}  # fmt: skip
codes = {int(history.tokenize(word)[0]): code for word, code in (("goal", GOAL), ("hole", HOLE), ("limit", LIMIT))}
panels = {}
for name, (order, quality) in orders.items():
    slices = buffer.slices(np.arange(12), 384, np.random.default_rng(4), order, quality)
    panels[name] = [[codes[token] for token in ids.tolist() if token in codes] for ids in slices]
plot_sets(panels, title="Twelve sets, cut into slices of 384 tokens in four ways")

# %% [markdown]
# Rows differ in length because a bad player's episodes cost more tokens: more failures, fewer episodes.
#
# In training half of the slices also get their **tile numbers permuted**: each number is replaced by another one, the
# same throughout the slice. Then geometry is gone ("9 lies to the right of 8" no longer holds), and only a look-up of
# what happened before tells where a move leads. That is the skill that carries to lakes of any shape.
# (`ReplayBuffer.slices(..., relabel=0.5)`; in the `paper` format a tile is not one token of its own, so there it is
# off.)
#
# A lake is used once: a fresh one is drawn for every slice (sampling is fast, see notebook 01). The paper trained on
# 250 lakes, and its training loss went on falling after the test loss had stopped: with few lakes the cheapest way to a
# small loss is to recognise the lake and recall it, which is no learning in context. `TrainConfig(map_pool=250)` lets
# you try.

# %% [markdown]
# ## 5 · TD targets, by hand
#
# A slice of $T$ tokens holds $D$ decisions $d = 0, 1, \dots$ in time order. With $r_d$ the reward of the step that
# followed, and $\text{end}_d = 1$ if that step ended the episode at a goal or a hole (else 0), the double-DQN target is
#
# $$y_d = r_d + \gamma\,(1 - \text{end}_d)\;Q_{\text{target}}\bigl(d{+}1,\ a^\star\bigr),\qquad
#   a^\star = \arg\max_a Q_{\text{online}}(d{+}1, a)$$
#
# (code: `dqn.td_targets`; compared with this equation, one decision at a time, by `test_03_td_targets`). The
# next decision of the row is the successor, *unless* the episode ended: then the next decision belongs to another
# episode, which the action did not cause.

# %%
text = "0 down 4 down hole reset 0 down 4 right 5 left"
plot_history_tokens(text, title="Five decisions: one death, then another try")

# %% [markdown]
# Let us invent the values of both networks and do the arithmetic with pencil and paper.

# %%
q_online = [[2, 3, 5, 1], [2, 6, 3, 1], [1, 2, 6, 0], [3, 1, 7, 2], [4, 9, 8, 1]]  # one row a decision, in tenths;
q_target = [[2, 2, 4, 1], [3, 4, 8, 1], [1, 3, 5, 1], [2, 1, 5, 9], [3, 6, 7, 2]]  # columns: left, down, right, up
d = history.decisions(history.tokenize(text)[None])
n = d.valid.sum()
reward, terminated = torch.from_numpy(d.reward[:, :n]), torch.from_numpy(d.terminated[:, :n])
online, target = torch.tensor([q_online, q_target])[:, None] / 10
y = td_targets(online, target, reward, terminated, gamma=0.9)[0]

# %%
by_hand = [
    0 + 0.9 * 0.4,  # next is decision 1: online prefers down (.6), which the target network values at .4
    0.0,  # died: no future, whatever the next decision (a new episode) is worth
    0 + 0.9 * 0.5,  # next is decision 3: online prefers right (.7), valued .5; up would be .9, but is not chosen
    0 + 0.9 * 0.6,  # next is decision 4: online prefers down (.9), valued .6
    float("nan"),  # its successor lies beyond the slice
]
print("decision   by hand   td_targets   is learned from")
for i in range(n):
    print(f"{i:8d}{by_hand[i]:10.2f}{y[i]:13.2f}   {'yes' if d.has_target[0, i] else 'no'}")

# %% [markdown]
# Four mistakes are so common that you should be able to recognise each by its numbers: bootstrapping through the death
# (decision 1 would get .45), the target network for both jobs (decision 0 would get .72), aligning a decision with
# itself instead of its successor, and letting gradient flow through the target. The last is the meanest, because
# nothing in the numbers of $y$ changes.
#
# ### Exercise 1 · TD targets (medium, 15 minutes)
# Write them yourself. The check knows the four mistakes and some more.


# %% tags=["exercise"]
def my_td_targets(q_online, q_target, reward, terminated, gamma):
    """q_online, q_target: [B, D, 4]; reward: [B, D]; terminated: bool [B, D]. Returns targets [B, D], no gradient.

    The last decision of a row has no successor in the row: bootstrap from 0 there (section 6 leaves it out).
    """
    raise NotImplementedError


# %% tags=["check"]
checks.check_td_targets(my_td_targets)


# %% tags=["solution"]
def my_td_targets(q_online, q_target, reward, terminated, gamma):
    with torch.no_grad():
        best = q_online.argmax(-1, keepdim=True)  # the online network chooses ...
        value = q_target.gather(-1, best)[..., 0]  # ... the target network values
        following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)  # of the next decision
        return reward + gamma * following * ~terminated


# %% [markdown]
# ### A wall: a gap that a noisy network overlooks
#
# Next to the goal the best move is worth 1. A bump into the wall there is worth $\gamma \cdot 1 = .9$ (.6 in our
# training): nothing is lost but one move. A network that errs by .1 now and then prefers the bump, still stands on the
# same tile with the same values, and bumps until the clock stops it. In our first trials that was the fate of three in
# four failed episodes.
#
# The **consistent backup** (Bellemare et al. 2016) widens the gap without moving the best action. Where a move led
# back to the tile that it came from, $s_{d+1} = s_d$, the target continues with the *same* action instead of the best:
#
# $$y_d = r_d + \gamma\, Q_{\text{target}}(d{+}1,\ a_d) \qquad\text{if } s_{d+1} = s_d$$
#
# Its only solution is $Q = 0$ for a wall: what bumping *for ever* is worth. All other values stay as they are. (Code:
# the argument `repeated` of `td_targets`; tests: `test_03_consistent_backup`, and on a hundred lakes
# `test_consistent_backup_keeps_the_best_moves`.) By value iteration on our lake, on tile 14, left of the goal, where
# `down` is a wall:


# %%
def values(consistent, gamma=0.9):
    """Q of every tile and action by value iteration: [tiles, 4]."""
    q, tile = np.zeros((lake.n_tiles, 4)), np.arange(lake.n_tiles)[:, None]
    lasts, goal = np.isin(tile, lake.goals + lake.holes), np.isin(lake.next_tile, lake.goals)
    for _ in range(200):
        following = np.where(consistent & (lake.next_tile == tile), q, q.max(1)[lake.next_tile])
        q = np.where(lasts, 0, np.where(goal, 1, gamma * following))
    return q


assert np.allclose(values(consistent=False), exact, atol=1e-4)
for name, q in {"plain": values(False), "consistent": values(True)}.items():
    print(f"{name:12s}" + "  ".join(f"{action} {value:.2f}" for action, value in zip(ACTIONS, q[14], strict=True)))

# %% [markdown]
# ## 6 · Cut off is not dead
#
# An episode that reaches the step limit is *truncated*: somebody stopped the clock. The game would have gone on, so
# $y = r$ says something false, namely that from there nothing can be gained any more. The paper treats truncation as an
# end. How much does that cost? It depends on how often a move is cut off. In a table that averages its targets, a move
# that was cut off in a share of its visits gets the share of its value too little, and so does everything before it.
# So count, for every tile and action of our lake: visits, and visits that were cut off. Two kinds of players: random
# ones, and players of habit (one fixed move a tile for each episode, section 3), who walk in circles until they are cut
# off. And five step limits; the paper's and ours is 100.


# %%
def visits(limit, habits, seed, n=200 if small else 500):
    """How often each tile and action was tried, and how often the clock stopped there: two arrays [tiles, 4]."""
    rng, env = np.random.default_rng(seed), FrozenLakeVectorEnv([lake] * n, step_limit=limit)
    (tile, _), begins = env.reset(seed=seed), np.ones(n, bool)
    tried, cut, habit = *np.zeros((2, lake.n_tiles * 4)), np.zeros((n, lake.n_tiles), int)
    for _ in range(400):
        habit[begins] = rng.integers(4, size=(begins.sum(), lake.n_tiles))
        action = habit[np.arange(n), tile] if habits else rng.integers(4, size=n)
        next_tile, _, terminated, truncated, _ = env.step(action)
        np.add.at(tried, 4 * tile + action, ~begins)
        np.add.at(cut, 4 * tile + action, truncated & ~terminated & ~begins)
        tile, begins = next_tile, terminated | truncated
    return tried.reshape(-1, 4), cut.reshape(-1, 4)


# %%
def worth(goes_on):
    """The table in which every (tile, action) is the mean of its targets: in a share ``goes_on`` of the visits the
    value of the next tile counts, otherwise nothing."""
    goal, over = (np.isin(lake.next_tile, tiles) for tiles in (lake.goals, lake.goals + lake.holes))
    q = np.zeros((lake.n_tiles, 4))
    for _ in range(200):
        q = np.where(goal, 1.0, 0.9 * goes_on * ~over * q.max(1)[lake.next_tile])
    return q


# %%
ordinary = [tile for tile in range(lake.n_tiles) if tile not in lake.holes + lake.goals]
limits, panels = [6, 12, 25, 50, 100], {}
for name, habits in (("random players", False), ("players of habit", True)):
    errors = {"cut off = the end (the paper)": [], "cut off: no target (ours)": []}
    for limit in limits:
        counts = [visits(limit, habits, seed) for seed in range(2 if small else 8)]
        as_end = [worth(1 - cut / np.maximum(tried, 1)) for tried, cut in counts]
        left_out = [worth((tried > cut) | (tried == 0)) for tried, cut in counts]  # never tried: no fault of the clock
        for line, tables in zip(errors.values(), (as_end, left_out), strict=True):
            line.append([np.abs(q - exact.numpy())[ordinary].mean() for q in tables])
    panels[name] = {meaning: (limits, np.array(line)) for meaning, line in errors.items()}

# %%
for name, lines in panels.items():
    (_, as_end), (_, left_out) = lines.values()
    for limit, ours, theirs in zip(limits, np.median(left_out, axis=1), np.median(as_end, axis=1), strict=True):
        print(f"{name:18s} limit {limit:3d}:  as an end {theirs:.3f}   no target {ours:.3f}")
plot_lines(panels, xlabel="step limit", ylabel="mean error of Q",
           title="What it costs to count a cut-off as an end")  # fmt: skip

# %% [markdown]
# Where clocks are short the mistake is large: at a limit of 12 moves the mean error is .11 for both kinds of players.
# At the limit of 100 it hardly matters on this lake: random players are never cut off there, and players of habit
# seldom enough to leave an error of about .01. So this is no reason for the paper's results, and no merit of ours; it
# is a mistake that waits for longer games or shorter clocks.
#
# A step without a target costs information, but says nothing false; where a move is *always* cut off nothing is left,
# which is why our line is not at 0 for the limit of 6. Bootstrapping from the tile where the clock stopped would be
# right as well, but our text cannot do it: after `limit` comes `reset`, and no decision is ever made there. The same
# holds for the last decision of a slice, whose successor we do not see, *unless* the slice still tells that it led to a
# goal or a hole: then the reward is the whole truth.
#
# ### Exercise 2 · Which decisions get a target? (easy, 10 minutes)


# %% tags=["exercise"]
def gets_target(outcomes):
    """outcomes: how the steps after the decisions of one slice ended, in order, each "goal", "hole", "limit" or None
    (the episode went on). Returns a list of bool: may this decision be learned from?"""
    raise NotImplementedError


# %% tags=["check"]
checks.check_gets_target(gets_target)


# %% tags=["solution"]
def gets_target(outcomes):
    last = len(outcomes) - 1
    return [outcome in ("goal", "hole") or (outcome is None and d < last) for d, outcome in enumerate(outcomes)]


# %% [markdown]
# ## 7 · The maximum of noisy values is too large
#
# Suppose four actions are all worth exactly 0.5, and a network knows each value up to an error of 0.1. The *maximum* of
# its four guesses is not 0.5 on average: it picks whichever error is luckiest. Bootstrapping hands this surplus on,
# step after step. Two networks with independent errors do better: one chooses, the other values, and the luck of the
# chooser is no luck for the other.

# %%
rng, surplus = np.random.default_rng(0), {"one network": [], "two networks": []}
candidates = [2, 4, 16, 64, 256, 1024, 8192, 128_256]
for k in candidates:
    chooser, other = rng.normal(0.5, 0.1, (2, max(20, 400_000 // k), k))
    surplus["one network"].append(chooser.max(-1).mean() - 0.5)
    surplus["two networks"].append(np.take_along_axis(other, chooser.argmax(-1)[:, None], -1).mean() - 0.5)
lines = {name: (candidates, values) for name, values in surplus.items()}
plot_lines({"": lines}, log="x", xlabel="candidates for the maximum", ylabel="too much",
           title="Equal values, known up to 0.1: surplus of the maximum")  # fmt: skip

# %% [markdown]
# The right end of the axis is not a joke. The paper's released code takes the maximum in the *target* over all 128,256
# words of the vocabulary, although only four of them are actions and only four were ever trained. Ours runs over the
# four (`td_targets` never sees another column).
#
# Does it matter where learning is going on? On a slippery lake the targets themselves are random. We train many tables
# from random play, with the step size 0.5, so that their values keep on jumping, and look at what they believe the
# start is worth. `single` values with the table that chooses; `double` keeps two tables, and each learns from its own
# choice and the other's value (van Hasselt 2010).

# %%
puddle, ROWS, ROUNDS = LakeMap(("SFF", "FFG")), 256, 400 if small else 4000
truth = puddle.optimal_values(gamma=0.9, slippery=True)[0].max()
tables = {"single": np.zeros((1, ROWS, 6, 4)), "double": np.zeros((2, ROWS, 6, 4))}
beliefs, row, rng = {name: [] for name in tables}, np.arange(ROWS), np.random.default_rng(1)
for step in random_play(FrozenLakeVectorEnv([puddle] * ROWS, slippery=True), ROUNDS):
    tile, action, reward, next_tile, over, _, is_move = step
    for name, q in tables.items():
        mine = rng.integers(len(q), size=ROWS)  # which table learns and chooses; the other one, if any, values
        best = q[mine, row, next_tile].argmax(1)
        y = reward + 0.9 * q[len(q) - 1 - mine, row, next_tile, best] * ~over
        q[mine, row, tile, action] += 0.5 * is_move * (y - q[mine, row, tile, action])
        beliefs[name].append(q[-1, row, 0, q[0, :, 0].argmax(1)].mean())

# %%
lines = {name: (np.arange(0, ROUNDS, 50), values[::50]) for name, values in beliefs.items()}
plot_lines({"": lines}, xlabel="moves", ylabel="believed worth of the start", reference={"exact": truth},
           title=f"A slippery lake of six tiles: mean belief of {ROWS} tables")  # fmt: skip

# %% [markdown]
# The single maximum settles well above the truth, and more data does not help: the noise that feeds it never ends. The
# double one learns more slowly and stays a little *below*, which is the safer side to err on.
#
# DQN's online and target network are not independent: one is a delayed copy of the other. So double DQN removes a part
# of the bias, not all. On lakes that do not slip, with four actions and values squeezed into [0, 1], do not expect a
# large effect; it costs nothing, since both networks have computed their values anyway.

# %% [markdown]
# ## 8 · A target network for the price of an adapter
#
# A copy of an 8-billion-parameter model costs 16 GB. But DQN changes only a small adapter on a frozen base (notebook
# 04), so the copy has to hold the adapter only: two adapters, `ONLINE` and `TARGET`, on one base.

# %%
from icrl_utils.llama.adapters import ONLINE, TARGET, adapter_parameters, add_adapters, target_network
from icrl_utils.llama.load import load_base
from icrl_utils.llama.readout import QNetwork, QReadout

model = add_adapters(load_base(profile.base_path), kind="lora", rank=32)
net = QNetwork(model, history.action_ids, QReadout())
online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
size = {"base": sum(p.numel() for name, p in model.named_parameters() if "lora" not in name),
        "online adapter": sum(p.numel() for p in online.values()),
        "target adapter": sum(p.numel() for p in target.values())}  # fmt: skip
for name, count in size.items():
    print(f"{name:16s}{count:10,} parameters")

# %% [markdown]
# Four properties make this a target network. They look obvious, and each is easy to get wrong: it must start as an
# equal copy (LoRA draws one of its factors at random, *per adapter*); it must take no gradient; one optimizer step must
# not move it; and the block that uses it must give the online network back.

# %%
batch = make_batch(buffer.slices(np.arange(4), 128, np.random.default_rng(0)), history)
with target_network(model):
    z_target, _ = net(batch.ids, batch.position)
z, _ = net(batch.ids, batch.position)
print("equal at the start:          ", torch.equal(z, z_target))
y = td_targets(net.readout.q(z), net.readout.q(z_target), batch.reward, batch.terminated, gamma=0.9)
td_loss(z, batch.action, y, batch.has_target, "bce").backward()
print("gradient in the online one:  ", any(p.grad is not None for p in online.values()))
others = [p for name, p in model.named_parameters() if f".{ONLINE}" not in name]
print("none in target or base:      ", all(p.grad is None for p in others))

# %%
before = [p.detach().clone() for p in target.values()]
torch.optim.AdamW(online.values(), lr=1e-2).step()
print("a step leaves it in peace:   ", all(map(torch.equal, before, target.values())))
with target_network(model):
    print("... and what it computes:    ", torch.equal(net(batch.ids, batch.position)[0], z_target))
print("afterwards online again:     ", not torch.equal(net(batch.ids, batch.position)[0], z_target))

# %% [markdown]
# ## 9 · Polyak averaging, and how half a digit stops it
#
# After every optimizer step the target adapter $\bar\theta$ moves a little towards the online one $\theta$:
#
# $$\bar\theta \leftarrow (1 - \alpha)\,\bar\theta + \alpha\,\theta$$
#
# (code: `dqn.polyak_update`, test `test_03_polyak`). After $k$ steps the weight of what it was at first is
# $(1 - \alpha)^k$: with $\alpha = 0.1$ half of it is forgotten after 7 steps, with $\alpha = 0.01$ after 69.
#
# The paper compares these two and finds $\alpha = 0.01$ worse. But its target adapter is kept in **bfloat16**, which
# has 8 significant bits: next to 1.0 lie 0.9961 and 1.0078. A step smaller than half of that gap is rounded away
# *completely*, every time. Let an online parameter jump from 1.0 (where IA3's factors start) to 1.2 and follow it:

# %%
steps = np.arange(400)


def follow(alpha, dtype, start, goal):
    """The course of one target parameter after the online one has jumped from ``start`` to ``goal``."""
    value, online_value = torch.tensor(start, dtype=dtype), torch.tensor(goal, dtype=dtype)
    course = []
    for _ in steps:
        course.append(float(value))
        value = value + alpha * (online_value - value)  # in bfloat16 the sum is rounded to the nearest neighbour
    return np.array(course)


# %%
panels = {f"α = {alpha}": {str(dtype).removeprefix("torch."): (steps, follow(alpha, dtype, 1.0, 1.2))
                            for dtype in (torch.float32, torch.bfloat16)} for alpha in (0.1, 0.01)}  # fmt: skip
plot_lines(panels, xlabel="Polyak steps", ylabel="target parameter", reference={"online parameter": 1.2},
           title="In bfloat16 the target stops early, or never leaves")  # fmt: skip

# %% [markdown]
# With $\alpha = 0.01$ in bfloat16 the "target network" stays the untrained network until some factor has moved by more
# than about .4 upwards or .2 downwards (numbers below 1 lie half as far apart), so learning bootstraps from nonsense.
# What the paper's ablation measures may thus be rounding rather than $\alpha$. (We infer this from its code and from
# arithmetic; we did not re-run the 8B model.) How much of a whole adapter is stuck depends on where its parameters
# start, at 1 (IA3) or at 0 (LoRA's B):

# %%
generator = torch.Generator().manual_seed(0)
change = 0.05 * torch.randn(10_000, generator=generator)  # by so much training has moved the online parameters
print(f"{'':34s}{'α = 0.1':>12s}{'α = 0.03':>12s}{'α = 0.01':>12s}")
for name, start in (("IA3, starts at 1", 1.0), ("LoRA's B, starts at 0", 0.0)):
    for dtype in (torch.float32, torch.bfloat16):
        shares = []
        for alpha in (0.1, 0.03, 0.01):
            slow, fast = torch.full_like(change, start).to(dtype), (start + change).to(dtype)
            for _ in range(1000):
                slow = slow + alpha * (fast - slow)
            shares.append(((slow - fast).float().abs().sum() / change.abs().sum()).item())
        print(f"{name:24s}{str(dtype)[6:]:>10s}" + "".join(f"{share:11.0%} " for share in shares))

# %% [markdown]
# Each number is the part of the way that is still missing after 1,000 steps. This is why both adapters stay in float32
# in this course, at any size: each takes 1 MB here and 0.3 GB for 8 billion weights, little beside the base. (One more
# trap: LoRA's change is the product $BA$, and the average of products is not the product of averages. We average $A$
# and $B$, as everybody does; for a slow target the difference is small.)

# %% [markdown]
# ## 10 · Probe environments: a ladder of things that must work
#
# A DQN that learns *something* may still be wrong in half of its parts. Probes are tiny "games" that need exactly one
# ingredient each, with a known answer. Ours are texts. The learner is the real thing, a Llama read at its decisions,
# but with one layer of width 32 and all weights trained: it needs a second.


# %%
from icrl_utils.llama.load import new_tiny_llama


def small_llama(seed=0, hidden=32):
    llama = new_tiny_llama(history.vocab_size, history.action_ids, hidden=hidden, layers=1, heads=2, seed=seed)
    return QNetwork(llama, history.action_ids, QReadout())


# %%
def dqn(net, batch_of_step, steps, gamma=0.9, lr=3e-3, alpha=0.1):
    """Double DQN on all weights of a small network: the loop of notebook 04 with everything else left out."""
    slow = copy.deepcopy(net).requires_grad_(False)
    adam = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        batch = batch_of_step(step)
        z_target, _ = slow(batch.ids, batch.position)
        z, _ = net(batch.ids, batch.position)
        y = td_targets(net.readout.q(z), net.readout.q(z_target), batch.reward, batch.terminated, gamma)
        loss = td_loss(z, batch.action, y, batch.has_target, "bce") / batch.has_target.sum()
        adam.zero_grad(), loss.backward(), adam.step()
        polyak_update(slow.parameters(), net.parameters(), alpha)
    return net


# %% [markdown]
# Two helpers: texts of different length become one batch (padded at the end, where causal attention never looks), and a
# text becomes the four Q-values at its end.


# %%
def batch_of(texts):
    ids = [history.tokenize(text) for text in texts]
    padded = np.stack([np.pad(i, (0, max(map(len, ids)) - len(i)), constant_values=-1) for i in ids])
    batch = make_batch(padded, history)  # -1 is padding: no decision is found there ...
    return batch._replace(ids=batch.ids.clamp(min=0))  # ... but an embedding needs some id


@torch.no_grad()
def q_at_end(net, text):
    ids = torch.from_numpy(history.tokenize(text))[None]
    return net.readout.q(net(ids, torch.tensor([[ids.shape[1] - 1]]))[0])[0, 0]


# %% [markdown]
# Five rungs. Read the texts as stories; `right` is asked for in all of them.
#
# 1. **reward**: `right` pays, `left` kills. Needs: the value of *the action taken* is trained, and no other.
# 2. **discount**: the goal lies two moves beyond. Needs $\gamma$ and the *next* decision.
# 3. **end**: `right` dies, and after the reset a sure win waits. Needs: no bootstrapping across an end.
# 4. **cut off**: on tile 1, `right` leads towards the goal, but half of the time the clock stops first. Needs: no
#    target there.
# 5. **memory**: two lakes with the same tile 0. In one of them `left` pays, in the other `right`. Before the first move
#    nobody can know; after one episode everybody can. Needs: the network reads the *earlier* episode. This rung is
#    in-context learning in its smallest form.

# %%
ways_on = [f"0 {path} {move} hole" for path in ("", "right 1", "right 1 right 2") for move in ("left", "down", "up")]
two_lakes = [
    f"0 {first} {'goal' if first == good else 'hole'} reset 0 {then} {'goal' if then == good else 'hole'}"
    for good in ("left", "right") for first in ("left", "right") for then in ("left", "right")
]  # fmt: skip
probes = {  # name: texts, history at which `right` is asked for, value wanted
    "reward": (["0 right goal", "0 left hole", "0 up hole", "0 down hole"], "0", 1.0),
    "discount": (["0 right 1 right 2 right goal", *ways_on], "0", 0.81),
    "end": (["0 right hole reset 1 right goal"], "0", 0.0),
    "cut off": (["1 right 2 right goal", "1 right limit", "2 left hole", "2 up hole", "2 down hole"], "1", 0.9),
    "memory": (two_lakes, "0 left hole reset 0", 1.0),
}

# %% [markdown]
# A probe is worth something only if it *fails* when its ingredient is broken. So each is run twice, the second time
# with the damage done to the batch, to $\gamma$, or (for memory) to the history, which is cut before the second
# episode.

# %%
damages = {
    "reward": ("actions shifted by one", lambda b: b._replace(action=(b.action + 1) % 4), {}),
    "discount": ("γ = 0", lambda b: b, {"gamma": 0.0}),
    "end": ("bootstraps across the end", lambda b: b._replace(terminated=b.terminated & (b.reward > 0)), {}),
    "cut off": ("a cut-off counts as an end", lambda b: b._replace(
        terminated=b.terminated | ~b.has_target, has_target=b.has_target | (b.action == 2)), {}),
    "memory": ("history cleared", lambda b: b, {}),
}  # fmt: skip

# %%
rows = []
for name, (texts, question, wanted) in probes.items():
    damage, spoil, options = damages[name]
    short = [text.split("reset ")[-1] for text in texts] if name == "memory" else texts
    good, bad = batch_of(texts), spoil(batch_of(short))
    count = 60 if small else 250
    learned = q_at_end(dqn(small_llama(), lambda _: good, count), question)[2]  # noqa: B023
    broken = q_at_end(dqn(small_llama(), lambda _: bad, count, **options), question.split("reset ")[-1])[2]  # noqa: B023
    rows.append({"probe": name, "wanted": wanted, "learned": float(learned), "broken": float(broken), "damage": damage})
plot_probes(rows, title="Value of “right”: a ladder of five probes")

# %% [markdown]
# Climb in this order when something does not learn: the lowest rung that fails names the broken part. The package's own
# tests have such probes, too, and a few more.

# %% [markdown]
# ## 11 · The last rung before the real thing: exact Q*
#
# Back to the lake of section 1, where everything is known. The same small Llama now learns from histories of random
# play on this one lake. If all parts are right, then it must arrive at $Q^*$ for every tile and action: not roughly,
# but within a hundredth on average, although it never saw anybody play well.

# %%
sets = ReplayBuffer(collect([lake] * 64, RANDOM_PLAY, np.random.default_rng(0), min_tokens=512), history)
rng, net, stages = np.random.default_rng(1), small_llama(), {}
LOOKS = (0, 10, 20, 30) if small else (0, 100, 200, 400)


def batch_and_look(step):
    if step in LOOKS:
        with torch.no_grad():
            z, _ = net(torch.arange(lake.n_tiles)[:, None], torch.zeros(lake.n_tiles, 1, dtype=int))
        stages[f"after {step} steps"] = net.readout.q(z)[ordinary, 0].numpy()
    return make_batch(sets.crossing_slices(16, 64, rng), history)


dqn(net, batch_and_look, LOOKS[-1] + 1, lr=5e-3)
plot_values_against_exact(stages, exact[ordinary].numpy(), title="One lake, a one-layer Llama, random play only")

# %% [markdown]
# The points settle on the diagonal. So tokens, decisions, targets, loss, read-out and target network work together, and
# what remains is the question of the course: on *one* lake the network could memorise the table. On a lake that it has
# never seen, the table must come out of the context.

# %%
table = np.full((lake.n_tiles, 4), np.nan)
table[ordinary] = list(stages.values())[-1]
plot_lake(lake, q=table, title="Learned from random play; compare with the first figure")

# %% [markdown]
# ### Exercise 3 · How slow is a slow copy? (easy, 10 minutes)
# The course uses $\alpha = 0.1$ at every optimizer step. A reader wants a target that has made 99 % of the way to a
# fixed online network after a given number of steps. Which $\alpha$ does that?


# %% tags=["exercise"]
def alpha_for(steps, share=0.99):
    """The Polyak factor with which, after ``steps`` updates, ``share`` of the way is made. A float in (0, 1]."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_alpha_for(alpha_for)


# %% tags=["solution"]
def alpha_for(steps, share=0.99):
    return 1 - (1 - share) ** (1 / steps)  # what is left of the way is (1 - alpha) ** steps


# %% [markdown]
# ## Recap
#
# - A network that bootstraps from itself can run away from the truth without any bug. On this lake replay alone did not
#   stop it, a slow copy did where alpha was .03 or less, and a bounded read-out did at every alpha.
# - An end is not a cut-off. An end makes $y = r$; a cut-off gives no target; the last decision of a slice gets one only
#   if the slice tells that it led to an end.
# - A single maximum over noisy values is too large, the more candidates the worse. Choose with one network, value with
#   the other, and only among the four actions.
# - The target network is a second adapter: equal at the start, without gradient, moved by Polyak averaging in float32.
#   In bfloat16 it can stand still without a warning.
# - Probes name the broken part; exact Q* proves the whole.
#
# **Questions.** Answer before you unfold.
#
# 1. With alpha = .1 and no sigmoid some networks run away and others do not. What would you report: the best, the mean,
#    or something else?
# 2. A friend's loss falls steadily while Q grows past 1. Is that a contradiction?
# 3. Why is a consistent backup no lie, though it gives a wall another value than $Q^*$ does?
#
# <details><summary>Answers</summary>
#
# 1. All of them: how many ran away of how many, and the median with its interval. The mean of errors from .05 to 500 is
#    the error of the worst; the best was chosen after the fact.
# 2. No. The loss compares Q with its own target. Both can climb together, and the loss says nothing about the truth.
# 3. It answers another question: what is this move worth if I make it whenever I am here? For the best move both
#    questions have the same answer, so the best move stays the best.
#
# </details>
#
# **Next:** notebook 04 puts the same loop on the pretrained tiny Llama, with lakes that are new every time.
#
# ## Further reading
# - Sutton and Barto, *Reinforcement Learning*, 2nd ed., chapter 11: the deadly triad.
# - Mnih et al. 2015, *Human-level control through deep reinforcement learning*: replay and target network.
# - Bellemare et al. 2016, *Increasing the action gap: new operators for reinforcement learning*, arXiv 1512.04860:
#   the consistent backup.
# - van Hasselt, Guez, Silver 2016, *Deep reinforcement learning with double Q-learning*, arXiv 1509.06461.
# - Pardo et al. 2018, *Time limits in reinforcement learning*, arXiv 1712.00378: truncation.
# - van Hasselt et al. 2018, *Deep reinforcement learning and the deadly triad*, arXiv 1812.02648: how often it bites.
# - Rentschler and Roberts 2025, arXiv 2501.14176: the method that this course follows.
