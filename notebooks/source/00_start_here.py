# %% [markdown]
# # 00 · Start here: can a network learn without changing?
#
# ![A lake in fog, a frozen network, and a growing text](../assets/figures/notebook_00.png)
#
# A network with frozen weights is put on a frozen lake it has never seen. It is told one number: the tile it stands
# on. It dies, and dies again; some episodes later it walks to the goal on the shortest way. No weight has moved.
# **Where did the learning happen?**
#
# | | |
# | --- | --- |
# | **Goals** | See in-context RL happen; know what its curve must be compared with; check your set-up |
# | **Prerequisites** | Python; you have heard of neural networks |
# | **Reading** | 20 minutes |
# | **Exercises** | 10 minutes |
# | **Run time** | smoke 30 s · cpu 30 s on two cores |
# | **Peak memory** | 0.8 GB |
# | **Downloads** | none |
#
# The course in one line: here you watch the effect; [01](01_environment_and_history.ipynb) turns a game into text,
# [02](02_q_values_from_logits.ipynb) reads values out of a Llama, [03](03_replay_and_target_networks.ipynb) and
# [04](04_lora_dqn_training.ipynb) train them, [05](05_a_real_language_model.ipynb) does it with a real language model,
# [06](06_generalization.ipynb) asks how far it carries, and [07](07_a_general_problem_solver.ipynb) what else the same
# weights play, and what they compute.

# %% [markdown]
# ## Is everything in place?
#
# `doctor` lists versions, memory, GPU and whether the shipped weights are unaltered. Lines that begin with `!` need
# your attention; put the whole output into a bug report. What you see on the web page is the machine that made it.

# %%
from icrl_utils import get_profile
from icrl_utils.course import doctor

profile = get_profile()  # smoke, cpu, t4 or full: how much is computed, set by ICRL_PROFILE
print(doctor.report())

# %% [markdown]
# ## The game
#
# One lake will accompany us through the course: number 23 of 500 that are *held out*. Nothing in this course was ever
# trained on them. You start on **S** and want to reach the flag. Dark discs are holes: one step in, and the episode
# ends with nothing. Then a new episode begins, on the same lake.
#
# How was it chosen? By a rule that a test holds: the first lake of the list, four by four with one start and one goal,
# on which the agent without memory fails ten times out of ten, and the agent with memory, in each of three training
# runs, fails at first and has learned the way after five episodes. So it is a lake *on which learning can be seen*. How
# often that is so, 500 lakes tell (notebook 06), not this one.

# %%
from icrl_utils.lake.held_out import COURSE_LAKE as lake
from icrl_utils.plots.lakes import plot_lake

plot_lake(lake, title=f"The lake as it is: {lake.optimal_steps(0)} moves from S to the flag")

# %% [markdown]
# The player does not get this picture. All it is ever told is **the number of the tile it stands on**, and when an
# episode ends, how: goal, hole, or cut off after 100 moves. Not the width of the lake, not where the holes are, not
# even that a goal exists. At the beginning, its world looks like this:

# %%
plot_lake(lake, known={0}, title="The lake as the player knows it at first")

# %% [markdown]
# ## First attempt: luck
#
# A fair four-sided die also finds the goal now and then. `rollout` lets any player play any number of lakes; 300 copies
# of our lake tell us how much luck is worth here. (`schedule="greedy"` says that the player makes every move itself,
# from the first one on; how it makes them, here by dice, is its own affair.)

# %%
from icrl_utils import rollout
from icrl_utils.play.baselines import RandomPolicy

luck = rollout(RandomPolicy(), [lake] * 300, schedule="greedy", episodes=10, seed=0)
outcome = {name: (luck.outcome == code).mean() for code, name in ((1, "goal"), (2, "hole"), (3, "limit"))}
print({name: round(float(share), 2) for name, share in outcome.items()})
first, last = luck.success[:, :3].mean(), luck.success[:, -3:].mean()
print(f"goals in the first three episodes {first:.2f}, in the last three {last:.2f}")

# %% [markdown]
# Expected: about one episode in twenty-five reaches the goal, at the end no more often than at the beginning. Luck does
# not learn.
#
# ## Second attempt: a trained network without memory
#
# Load the agent that comes with the course: a Llama of 0.8 million parameters, trained on thousands of *other*
# lakes. `memory=False` clears its context at every new episode, so it begins each one knowing nothing about this lake.
# Five episodes on ours, and on the next two of the list. (Before you run it: what will be different in the second one?)

# %%
from icrl_utils import held_out_maps, load_agent
from icrl_utils.lake.held_out import COURSE_LAKE_NUMBER

forgetful = load_agent("assets/adapters/dqn", memory=False)
for number in range(COURSE_LAKE_NUMBER, COURSE_LAKE_NUMBER + 3):
    walks = rollout(forgetful, [held_out_maps("in_distribution")[number]], "greedy", episodes=5, seed=0)
    print(f"lake {number}")
    for episode in walks.episodes(0):
        print("  ", *episode.tiles[:12], "..." if episode.steps > 11 else "", "->", episode.outcome)

# %% [markdown]
# Expected: on each lake the same walk again and again. The weights hold what is true of lakes *in general*: a good
# first guess. On ours that guess is deadly, five times out of five, and on one of the next two it happens to be lucky,
# as often. What is true of *this* lake cannot be in the weights: nobody knew it when they were trained. And a player
# whose situation is the same at the beginning of each episode does the same each time, but for a little chance.
#
# ## The idea: do not clear the context
#
# A language model reads a text and predicts what comes next. So write down everything that happens, episode after
# episode, and let the *same* network read it all before each move. With $h_t$ the history up to now, $\theta$ the
# frozen weights, $a_t$ the action and $o_{t+1}$ what comes back from the lake:
#
# $$a_t = \arg\max_a Q_\theta(h_t, a), \qquad h_{t+1} = h_t \, a_t \, o_{t+1}$$
#
# $Q_\theta(h, a)$ is the network's estimate of how much reward will follow if it takes $a$ after $h$. In ordinary
# reinforcement learning experience changes $\theta$. Here $\theta$ is the same at every $t$; **only $h$ grows**.
# Training (notebooks 03 and 04) did not teach the network this lake. It taught it to *learn lakes*. (In an episode that
# drags on, our agent lets dice decide between moves of similar value, so that it leaves a circle; notebook 04.)
#
# *(Test that the code does what this equation says: `tests/test_equations.py::test_00_*`.)*
#
# Now the same network with its memory. Nobody helps it and nothing is forced: it makes every move itself, from the
# first one on. We let it try our lake nine times, ten episodes each, each time from an empty history and with other
# luck.

# %%
agent = load_agent("assets/adapters/dqn")
weights_before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
tries = rollout(agent, [lake] * 9, schedule="greedy", episodes=10, seed=0)
goals = tries.success.sum(axis=1)
print("tries that reach the goal, by episode:", tries.success.sum(axis=0).tolist(), "of 9")
print("goals in the ten episodes of each try:", goals.tolist())

# %% [markdown]
# One may not show the best of nine. Here is the *middle* one by the number of its goals: the words it had read in the
# end, and three of its ten episodes, with the tiles that it had visited by then and the places where it had died.

# %%
from icrl_utils.history.format import HistoryFormat

episodes = tries.episodes(int(goals.argsort(kind="stable")[4]))
text = HistoryFormat("compact").render(episodes)
print(f"{len(episodes)} episodes are {len(text.split())} words of history. They begin:\n{text[:230]} ...")

# %%
from icrl_utils.plots.lakes import plot_trajectories

chosen = {"early: episode 0": 0, "middle: episode 4": 4, "late: episode 9": 9}
paths = {title: episodes[i] for title, i in chosen.items()}
known = {title: {tile for episode in episodes[: i + 1] for tile in episode.tiles} for title, i in chosen.items()}
deaths = {title: {e.tiles[-1] for e in episodes[:i] if e.outcome == "hole"} for title, i in chosen.items()}
plot_trajectories(lake, paths, known, deaths)

# %% [markdown]
# Expected: the first episode is that of the agent without memory, and ends in the same hole. Then it tries other ways
# and dies in other places; after about five episodes the goal, and from then on the shortest way. It does not always
# get there: on 500 lakes about one in a hundred of its last ten of thirty episodes fails (notebook 06), and what it
# still does wrong is as interesting as what it does right. The claim was that no weight has moved. Check it:

# %%
unchanged = all(tensor.equal(weights_before[name]) for name, tensor in agent.model.state_dict().items())
assert unchanged, "a weight changed while the agent played: this would not be in-context learning"
print(f"{sum(tensor.numel() for tensor in weights_before.values()):,} weights, none has changed")

# %% [markdown]
# ## One death, one lesson
#
# We can ask the network directly: it stands on tile 0, and we choose what it remembers. First nothing; then an episode
# in which it went right, into the hole; then one in which it found the goal by another way. What does it think of its
# four moves each time?

# %%
from icrl_utils.plots.values import plot_q_bars

death, win = "0 right hole reset", "0 down 4 right 5 right 6 up goal reset"
q = {"no memory": agent.q_values("0"), "after a death": agent.q_values(f"{death} 0"),
     "after a win": agent.q_values(f"{win} 0")}  # fmt: skip
plot_q_bars(q, title="Q of the four moves on tile 0")

# %% [markdown]
# Expected: without memory *right* looks best, the move that is deadly here. After the death its bar is gone, and *down*
# is the best. After the win *down* has grown threefold: it leads to a known goal. (Values are low, since Q counts a
# reward that is four moves away, and every move takes 40 % off: the exact value is .22.) The network was not
# retrained; it *read* where the moves led. Three histories, one network, three opinions: that is in-context learning in
# one picture. Next to the goal the difference is larger still:

# %%
way = "0 down 4 right 5 right 6"
for name, past in (("no memory", ""), ("after a win", f"{win} ")):
    print(f"{name:12s} Q(up on tile 6) = {agent.q_values(past + way)[3]:.2f}")

# %% [markdown]
# ## One lake is an anecdote
#
# It was chosen, too. So: more held-out lakes, thirty episodes each, and beside the agent two players that cannot
# learn. All meet the same luck: on each lake they begin their episodes on the same start tiles. The band is a 95 %
# interval; it comes from drawing the *lakes* anew, since episodes on one lake depend on each other.

# %%
from icrl_utils.plots.curves import plot_learning_curves

lakes = held_out_maps("in_distribution")[5 :: 2_000 // profile.maps]
players = [agent, forgetful, RandomPolicy()]
records = {player.name: rollout(player, lakes, schedule="greedy", episodes=30, seed=0) for player in players}
plot_learning_curves(records, title="The same weights, with and without memory", resamples=profile.bootstrap)

# %% [markdown]
# Expected: the agent begins where the others are, and leaves them behind within ten episodes. The memory-less one knows
# lakes in general and remembers the episode it is in, but every episode it begins anew, and so it stays where that
# carries it: on the lakes where its one habit happens to lead to the goal. On these 25 lakes that can hardly be told
# from luck; on 500 it reaches .29, and the die .16. In the `smoke` profile there are two lakes only, and the bands tell
# you so. Notebook 06 has 500.
#
# What shows learning is the distance to a player that differs in **one** thing only: the memory-less agent has the same
# weights, the same lakes, the same luck, and no memory. Each difference below is taken lake by lake, then averaged.

# %%
from icrl_utils.statistics import interval

gain = (records["agent"].success * 1.0 - records["memory-less"].success)[:, -10:].mean(axis=1)
mean, low, high = interval(gain, resamples=profile.bootstrap)
print(f"what memory adds in the last ten episodes: {mean:+.2f} (95 % interval {low:+.2f} to {high:+.2f})")

# %% [markdown]
# ## A trap: what does the curve have to be compared with?
#
# The paper that this course follows plays by another schedule. In its first twenty episodes some moves are *forced* at
# random, to help with exploring: with $\varepsilon$ the probability that a move is the player's own, it is 0 in the
# first two episodes, .1 in the next two, and so on; in the last ten episodes it is 1. (The forced moves are the same
# for every player on a lake, which makes curves under this schedule zigzag together.) Now it is tempting to divide the
# end of the curve by its beginning and to report the ratio as improvement. The next cell does that for a player who
# knows the map and *cannot* learn anything: the oracle, which always walks the shortest way.

# %%
from icrl_utils.play.baselines import OraclePolicy

oracle = rollout(OraclePolicy(), held_out_maps("in_distribution")[:200], schedule="paper", seed=0)
first, last = oracle.success[:, :2].mean(), oracle.success[:, -10:].mean()
print(f"oracle: {first:.2f} in the first two episodes, {last:.2f} in the last ten: {last / first - 1:+.0%}")
plot_learning_curves(oracle, title="A player that has nothing to learn, by the paper's schedule", resamples=0)

# %% [markdown]
# Hundreds of percent of "learning". The first episodes are random *whoever plays*, because the schedule forces every
# move there (the strip below the axis shows $\varepsilon$). A rising curve can show that the schedule ends. Only the
# distance to a player under the same schedule shows what was learned.

# %% [markdown]
# ## Exercise 1: does it die twice in the same way?
#
# *Difficulty: easy. About 10 minutes.*
#
# Success mixes two skills, finding the goal and staying alive. The purest sign of memory is the second one: **never
# step into a hole by an edge that has killed you before.** An *edge* is a pair (tile, action), such as "9, down".
#
# Count the repeated deaths in a list of episodes. An `Episode` has `tiles` (where it stood; the last one is where it
# ended), `actions` (0 left, 1 down, 2 right, 3 up) and `outcome` (`"goal"`, `"hole"` or `"limit"`).


# %% tags=["exercise"]
def repeat_deaths(episodes: list) -> int:
    """How many episodes end in a hole by a (tile, action) that already killed in an earlier one?"""
    raise NotImplementedError


# %% tags=["check"]
from icrl_utils.course import checks

checks.check_repeat_deaths(repeat_deaths)


# %% tags=["solution"]
def repeat_deaths(episodes: list) -> int:
    deadly, repeated = set(), 0
    for episode in episodes:
        if episode.outcome == "hole":
            edge = (episode.tiles[-2], episode.actions[-1])  # where it stood, what it did
            repeated += edge in deadly
            deadly.add(edge)
    return repeated


# %% [markdown]
# The package has the same count for all lakes at once (`statistics.repeat_deaths`). In the last ten episodes, where
# nothing is forced, a player with a perfect memory has none:

# %%
from icrl_utils.history.episodes import HOLE
from icrl_utils.statistics import repeat_deaths as repeat_deaths_of_all

for name, r in records.items():
    again = repeat_deaths_of_all(r.tiles, r.actions, r.steps, r.outcome == HOLE)[:, -10:]
    deaths = (r.outcome == HOLE)[:, -10:].sum()
    print(f"{name:12s} {deaths:3d} deaths in {again.size} episodes, {again.sum():3d} by an edge that had killed before")

# %% [markdown]
# Expected: the agent has the fewest. If it is not zero, you have found a flaw of our agent: it read the death and
# walked into it all the same. Improving such figures is what notebooks 03, 04 and 06 are about.
#
# ## Now you
#
# A lake that you have not seen, and that the agent has not seen. You get what it gets: tile numbers. The rules are the
# same for both: every move is the player's own, from the first one on, and you begin on the same tiles. Its score of an
# episode appears when you have played it. Can you do better than 0.8 million weights? Run the cell in Jupyter, and
# click.

# %%
from icrl_utils.course.widgets import play_against_agent

game = play_against_agent(agent, held_out_maps("in_distribution")[436])
game

# %% [markdown]
# While you play, watch yourself: you write a map in your head, you try what you have not tried, you avoid what killed
# you. None of this is in your genes as "tile 13 is a hole". It is in your memory, and your genes are what makes your
# memory useful. Weights and context divide the work in the same way. For readers without Jupyter: the agent's own
# score on that lake.

# %%
for number, episode in enumerate(game.opponent):
    print(f"episode {number + 1}: {episode.outcome:5s} after {episode.steps:3d} moves")

# %% [markdown]
# It needs some episodes, and walks to and fro for a while before it goes on. Exploring well is harder than using what
# is known, for this agent and for the paper's. Did you explore better? Notebook 06 measures it.
#
# ## The symbols of notebooks 00 to 03
#
# One table for all of them, so that no letter means two things. You need the first group now; come back for the others.
#
# | symbol | what it is | first in |
# | --- | --- | --- |
# | $t$ | number of a move, counted over all episodes on a lake | 00 |
# | $a$ | an action: left, down, right or up; $a_t$ the one that was taken | 00 |
# | $o$ | what comes back from the lake: a tile number, or how the episode ended | 00 |
# | $h$ | a history: everything seen and done up to a move | 00 |
# | $\theta$ | the weights of the network; $\bar\theta$ those of its slow copy (03) | 00 |
# | $Q$ | value of an action; $Q^*$ the exact one, $Q_{\text{online}}$, $Q_{\text{target}}$ those of two networks | 00 |
# | $\varepsilon$ | probability that a move is the player's own (in textbooks often the opposite) | 00 |
# | $i$ | position of a token in a text | 01 |
# | $x$ | a token; $x_i$ the one at position $i$ | 01 |
# | $\mathcal{D}$ | the positions of all decisions in a text | 01 |
# | $e$, $n_e$ | an episode, and its number of moves | 01 |
# | $u$ | the network's hidden state at one position | 02 |
# | $m$ | its width: so many numbers | 02 |
# | $v$ | a token of the vocabulary | 02 |
# | $w$ | a row of the output embedding; $w_v$ that of token $v$ | 02 |
# | $\ell$ | a logit | 02 |
# | $z$ | what is read out for an action, before the link to Q | 02 |
# | $\beta$ | scale of the read-out | 02 |
# | $c$ | offset of the read-out | 02 |
# | $\sigma$ | the sigmoid: $\sigma(z) = 1 / (1 + \exp(-z))$ | 02 |
# | $\gamma$ | discount: a reward one move later counts so much less | 02 |
# | $N$ | histories in a batch | 02 |
# | $T$ | tokens of a history, or of a slice of it | 02 |
# | $D$ | decisions in it | 02 |
# | $V$ | tokens in the vocabulary | 02 |
# | $b$ | bytes of a number | 02 |
# | $s$ | a tile in the game of one known lake; $s'$ the next one | 03 |
# | $r$ | reward | 03 |
# | $y$ | target that a value is moved to | 03 |
# | $\alpha$ | share of the way that the slow copy takes at a step (Polyak) | 03 |
# | $d$ | number of a decision in a slice | 03 |
# | $k$ | a number of optimizer steps | 03 |
# | $A$, $B$ | the two thin matrices of a LoRA adapter | 03 |
#
# Three words that the notebooks use before they say how they are made. *Development lakes* are lakes of the same law as
# the held-out ones, kept for tuning: nothing is trained on them, and no result is read from them. *Discount*: a reward
# that comes two moves later is counted with the factor $\gamma^2$. *Adapter*: a small addition to a frozen network,
# which alone is trained (04).
#
# ## Recap
#
# - **In-context reinforcement learning**: weights stay frozen, experience accumulates in the text that the network
#   reads. $a_t = \arg\max_a Q_\theta(h_t, a)$, and only $h_t$ grows.
# - The right comparison is the *same* agent without memory, on the same lakes with the same luck. The beginning of a
#   curve with forced random moves is not the agent.
# - One lake is an anecdote; intervals are over lakes.
# - A repeated death is the simplest measurable failure of memory.
#
# **Questions.** Answer before you unfold.
#
# 1. Somebody shows you a curve that rises from .2 to 1.0. What would you ask for?
# 2. Memory-less and random succeed about equally often on 25 lakes. Do they play alike?
# 3. The agent's context is cleared after every *move*. What is left of it?
#
# <details><summary>Answers</summary>
#
# 1. What a player that cannot learn reaches by the same schedule on the same lakes (here: the oracle rises as much),
#    the same agent without memory, and an interval over lakes.
# 2. No. The die reaches the goal now and then on every lake; the memory-less agent always on some lakes and never on
#    most. Equal means, other causes: look at single lakes.
# 3. Its weights and the number of the tile: a fixed first guess for every tile, whatever the lake. Notebook 01 measures
#    how good the best such guess is.
#
# </details>
#
# ## Further reading
#
# - Rentschler and Roberts, *RL + Transformer = A General-Purpose Problem Solver*, [arXiv
#   2501.14176](https://arxiv.org/abs/2501.14176): the paper that this course follows, with a Llama 3.1 8B.
# - Laskin et al., *In-context Reinforcement Learning with Algorithm Distillation*, [arXiv
#   2210.14215](https://arxiv.org/abs/2210.14215): the same effect from imitating a learning algorithm.
# - Lee et al., *Supervised Pretraining Can Learn In-Context Reinforcement Learning*, [arXiv
#   2306.14892](https://arxiv.org/abs/2306.14892): the same effect from optimal actions as labels, which our agent never
#   sees.
# - Duan et al., *RL²: Fast Reinforcement Learning via Slow Reinforcement Learning*, [arXiv
#   1611.02779](https://arxiv.org/abs/1611.02779): the older idea, with a recurrent network.
#
# Next: [01, how does a game become text?](01_environment_and_history.ipynb)
