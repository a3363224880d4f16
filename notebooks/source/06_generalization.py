# %% [markdown]
# # 06 · How well does it learn on lakes that nobody has seen?
#
# ![Four kinds of unseen lakes: new, larger, exchanged, known in two halves](../assets/figures/notebook_06.png)
#
# A rising curve is easy to draw and easy to misread. **How much of it is learning, how good is that learning beside
# ordinary algorithms with the same experience, and how sure can we be?**
#
# | | |
# | --- | --- |
# | **Goals** | honest baselines, paired intervals, two schedules; larger lakes, changing lakes, stitching |
# | **Prerequisites** | notebook 00 (the protocol); notebook 04 for how the agent was made; mean and quantile |
# | **Reading** | 40 minutes |
# | **Exercises** | 50 minutes |
# | **Run time** | smoke 1 min · cpu 2 min on two cores |
# | **Peak memory** | 2 GB |
# | **Downloads** | none |

# %%
import numpy as np

from icrl_utils import get_profile, held_out_maps, load_agent, rollout
from icrl_utils.course import checks, widgets
from icrl_utils.evaluation.experiments import by_policy, describe, read_table, results_path, summary
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.plots.changes import plot_progress
from icrl_utils.plots.curves import plot_learning_curves
from icrl_utils.statistics import interval

profile = get_profile()
lakes = held_out_maps("in_distribution")[: profile.maps]
limit = 20 if profile.name == "smoke" else 100  # moves until an episode is cut off; 100 is gymnasium's and the paper's
print(f"{len(lakes)} of 500 held-out lakes are played live in this notebook (profile {profile.name})")

# %% [markdown]
# **Held-out** means: these 500 lakes were drawn once from the paper's law (3 to 5 tiles wide and high, at least four
# moves from every start to the nearest goal), are shipped as a file, and are rejected by every function that collects
# data or trains. Whatever was tuned for this course was tuned on other, *development* lakes.
#
# ## 1 · The naive way to show that an agent learns
#
# Play thirty episodes on each lake, in the paper's schedule: in the first two every move is random, then the agent is
# let loose step by step, and in the last ten it decides alone. Draw success by episode. Done?

# %%
agent = load_agent(f"assets/adapters/{profile.adapter}")
played = {"agent": rollout(agent, lakes, "paper", seed=0, step_limit=limit, progress=True)}
plot_learning_curves(played, title="Live: it learns!  (Does it?)", resamples=profile.bootstrap)

# %% [markdown]
# And what does it look like on *one* of these lakes? Tiles with a question mark are those that the agent has not yet
# stood on; a cross on an edge says that it has died there before. The lake is chosen by a rule: of the lakes where the
# agent died on at least two edges and took a shortest way in the end, one whose way has the most bends.


# %%
def bends(episode):
    return sum(a != b for a, b in zip(episode.actions, episode.actions[1:], strict=False))


def story(records, i):
    episodes, shortest = records.episodes(i), records.steps[i, -1] == records.optimal_steps[i, -1]
    deaths = {episode.tiles[-2:] for episode in episodes if episode.outcome == "hole"}
    return bool(records.success[i, -1] and shortest and len(deaths) >= 2), bends(episodes[-1]), len(deaths)


number = max(range(len(lakes)), key=lambda i: story(played["agent"], i))
episodes = played["agent"].episodes(number)
plot_progress(lakes[number], episodes, [0, 2, 6, 12, 18, 29])

# %%
widgets.episode_slider(lakes[number], episodes)

# %% [markdown]
# The paper draws this curve for its agent, reports that it begins at about 10 % and grows by 900 %, and calls that
# in-context learning. Before you believe it (or ours), do the same with other players.
#
# ### Exercise 1 · Measure the growth (easy, 10 minutes)
# Growth from the episodes with $\varepsilon = 0$ to those with $\varepsilon = 1$, where $\varepsilon$ is the
# probability that the *player* decides (elsewhere in the literature it is the other way round).


# %% tags=["exercise"]
def improvement(success, epsilon):
    """success: bool [maps, episodes]; epsilon: [episodes]. Relative growth of mean success, 9.0 for 900 %."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_improvement(improvement)


# %% tags=["solution"]
def improvement(success, epsilon):
    early, late = success[:, epsilon == 0].mean(), success[:, epsilon == 1].mean()
    return late / early - 1


# %% [markdown]
# ## 2 · The idea: everybody plays the same game
#
# A number means something beside other numbers. Seven players meet the same lakes, the same starts, the same coins and
# the same forced moves; nothing differs but who decides when a player may decide.
#
# | player | learns on the lake? | knows |
# | --- | --- | --- |
# | random | no | nothing |
# | memory-less | no | the agent's weights; its context is cleared after every episode |
# | tabular Q | yes | the episodes of this lake; values start at 0 |
# | optimistic tabular Q | yes | the same; values start at 1, so whatever is untried looks good |
# | R-max | yes | the same; plans on the graph of moves seen, and to the nearest untried one |
# | oracle | no | the map |
# | agent | in its context, if at all | its frozen weights, the episodes of this lake |

# %%
others = [load_agent(f"assets/adapters/{profile.adapter}", memory=False), RandomPolicy(), TabularPolicy(0.0),
          TabularPolicy(1.0), RMaxPolicy(), OraclePolicy()]  # fmt: skip
for player in others:
    played[player.name] = rollout(player, lakes, "paper", seed=0, step_limit=limit)
plot_learning_curves(played, title="Live: the same lakes, the same luck", resamples=profile.bootstrap)


# %%
def growth(success, epsilon):
    return success[:, epsilon == 1].mean() / success[:, epsilon == 0].mean() - 1


print("Growth from episodes with epsilon = 0 to episodes with epsilon = 1:")
for name, records in played.items():
    print(f"  {name:22s}{growth(records.success, records.epsilon):+8.0%}")

# %% [markdown]
# **The oracle "improves" too**, as much as the agent, and it learns nothing: it knows the map from the start. The
# growth measures that random play is bad. The schedule alone makes every curve rise for everybody who decides better
# than a die, whether it remembers or not. This is the first thing that the paper's curve does *not* show.
#
# What then is evidence of learning *in context*?
#
# - **agent minus memory-less**, in the last ten episodes: equal weights, equal freedom, only memory differs;
# - **rising at constant $\varepsilon$**: the `greedy` schedule, where the agent decides from the first move on (section
#   5);
# - beside **tabular Q-learning**, which is what the same experience is worth to a textbook algorithm.
#
# ## 3 · How sure are we?
#
# Episodes on one lake are relatives: they share the lake and the history. What is independent are lakes. So an interval
# comes from drawing *lakes* with replacement, many times, and taking the middle 95 % of the resampled means (the
# bootstrap):
#
# $$\hat\mu_b = \frac{1}{n}\sum_{i=1}^{n} x_{k_i},\qquad k_i \sim \mathrm{U}\{1,\dots,n\},\qquad
#   \bigl[\hat\mu_{(2.5\,\%)},\ \hat\mu_{(97.5\,\%)}\bigr]$$
#
# where $x_k$ is the mean over the episodes of lake $k$ (code: `icrl_utils.statistics.interval`, test
# `test_06_interval`). For a *difference* of two players on the same lakes, $x_k$ is the difference on lake $k$: easy
# and hard lakes cancel, and the interval becomes narrower for free.
#
# ### Exercise 2 · A paired interval (medium, 20 minutes)


# %% tags=["exercise"]
def paired_interval(success_a, success_b, resamples, rng):
    """success_a, success_b: bool [maps, episodes], both players on the same maps. Returns (low, high): the 95 %
    bootstrap interval of mean success of a minus that of b."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_paired_interval(paired_interval)


# %% tags=["solution"]
def paired_interval(success_a, success_b, resamples, rng):
    difference = success_a.mean(1) - success_b.mean(1)  # one number a lake
    drawn = rng.integers(len(difference), size=(resamples, len(difference)))  # whole lakes, with replacement
    low, high = np.quantile(difference[drawn].mean(1), [0.025, 0.975])
    return low, high


# %%
last = {name: records.success[:, -10:].mean(1) for name, records in played.items()}
print("Success in the last ten episodes, live:")
for name, values in last.items():
    alone, gap = interval(values, resamples=profile.bootstrap), interval(last["agent"] - values)
    print(f"  {name:22s}{alone.estimate:5.2f} [{alone.low:.2f}, {alone.high:.2f}]     agent minus this one "
          f"{gap.estimate:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]")  # fmt: skip

# %% [markdown]
# Where all lakes agree (the oracle: 1.00 on each of them), the bootstrap has nothing to vary and the interval has no
# width. That is no certainty. If none of $n$ lakes fails, up to about $3/n$ of all lakes may: 3 % for a hundred.
#
# ## 4 · The same on all 500 lakes, for three training runs
#
# Everything above was played just now. **What follows is read from a file**, `assets/results/in_distribution.csv.gz`,
# which `python -m icrl_utils evaluate in_distribution --write` remakes: all 500 lakes, the agents of three training
# runs (they differ in nothing but the seed), and posterior sampling, a player that knows the law that lakes come from
# and is the quickest to find a goal, next to the oracle, who knows the map.

# %%
table = read_table(results_path("in_distribution"))
success = by_policy(table)
paper = table["epsilon"][: success["agent"].shape[2]]
plot_learning_curves(success, paper, title="From the file: all held-out lakes", resamples=profile.bootstrap)

# %% [markdown]
# The band of a curve says how much the mean would vary with *other lakes*. It says nothing about other training runs:
# two runs with different seeds are different agents. So they are told one by one.

# %%
seeds = [run[:, -10:].mean() for run in success["agent"]]
over_lakes = interval(success["agent"][:, :, -10:].mean((0, 2)), resamples=profile.bootstrap)
print("last ten episodes, by training run: " + ", ".join(f"{value:.3f}" for value in seeds))
print(f"mean {np.mean(seeds):.3f}; over lakes [{over_lakes.low:.3f}, {over_lakes.high:.3f}], over runs "
      f"{min(seeds):.3f} to {max(seeds):.3f}")  # fmt: skip
agrees = interval(played["agent"].success[:, -10:].mean(1) - success["agent"][0, : len(lakes), -10:].mean(1))
print(f"live minus file, same agent and lakes: {agrees.estimate:+.3f} (0 unless rounding turned a close decision)")

# %% [markdown]
# One number a player is too few. Success says nothing about the *way*; a player may reach the goal by detours, forget
# what it knew, or die twice on the same edge. The table gives, with 95 % intervals: success, how often an episode ends
# by an edge already seen to kill (`repeat_death`), the share of shortest paths among successes (`shortest_path`), in
# the last ten episodes; and over all episodes P(success | success before) (`retention`) and the episodes until the
# first success (31 where there is none). Compare the last two with care. Forced moves spoil retention for everybody,
# even for the oracle, and a player that succeeds late is counted mostly in episodes where nothing is forced.

# %%
rows = summary(table)
print(describe(rows))

# %% [markdown]
# ## 5 · Without forced exploration
#
# In the paper's schedule random moves fill the context with experience, whether the player wants it or not. The honest
# test of an agent is to let it decide from the first move on: then it must explore by itself. Every curve that rises
# here rises because its player learns.

# %%
greedy = {}
for player in (agent, others[0], RandomPolicy(), TabularPolicy(0.0), TabularPolicy(1.0), RMaxPolicy()):
    greedy[player.name] = rollout(player, lakes[:50], "greedy", seed=0, step_limit=limit)
plot_learning_curves(greedy, title="Live: the player decides from the first move on", resamples=profile.bootstrap)

# %%
for name in ("agent", "memory-less", "tabular Q"):
    values = greedy[name].success
    rise = interval(values[:, -10:].mean(1) - values[:, :3].mean(1), resamples=profile.bootstrap)
    print(f"{name:14s} last ten minus first three episodes {rise.estimate:+.2f} [{rise.low:+.2f}, {rise.high:+.2f}]")
outcome = {code: (greedy["agent"].outcome[:, -10:] == code).mean() for code in (1, 2, 3)}
print(f"\nHow the agent's last ten of these episodes end: goal {outcome[1]:.1%}, hole {outcome[2]:.1%}, "
      f"cut off after 100 moves {outcome[3]:.1%}")  # fmt: skip

# %% [markdown]
# Fifty lakes are few. On all 500, for the three training runs, **from the file** `assets/results/exploration.csv.gz`:

# %%
alone = read_table(results_path("exploration"))
success = by_policy(alone)
plot_learning_curves(success, title="From the file: 500 lakes, the player decides from the first move on",
                     resamples=profile.bootstrap)  # fmt: skip

# %%
mean = {name: success[name].mean(0) for name in ("agent", "R-max")}  # over training runs: [maps, episodes]
for title, part in {"0 to 4": slice(0, 5), "10 to 14": slice(10, 15), "last ten": slice(-10, None)}.items():
    agent_s, other_s = mean["agent"][:, part].mean(1), mean["R-max"][:, part].mean(1)
    ahead = interval(agent_s - other_s, resamples=profile.bootstrap)
    print(f"episodes {title:8s}  agent {agent_s.mean():.3f}  R-max {other_s.mean():.3f}  "
          f"difference {ahead.estimate:+.3f} [{ahead.low:+.3f}, {ahead.high:+.3f}]")  # fmt: skip

# %% [markdown]
# What does a player do after a failure: the same again, or something new? Count the (tile, action) pairs that an
# episode tries and no earlier one has tried. And how many lakes are still unsolved after so many episodes?

# %%
from icrl_utils.plots.values import plot_lines
from icrl_utils.statistics import never_solved, new_pairs

x, found, unsolved = np.arange(1, 30), {}, {}
for name in ("agent", "memory-less", "tabular Q", "R-max"):
    records = greedy[name]
    new, failed = new_pairs(records.tiles, records.actions)[:, 1:], ~records.success[:, :-1]
    found[name] = x, (new * failed).sum(0) / np.maximum(failed.sum(0), 1)
    unsolved[name] = x, never_solved(success[name][0])[:, :-1].mean(0)  # from the file; the first training run
plot_lines({"Live, 50 lakes: new pairs in the episode after a failure": found}, xlabel="episode")

# %%
plot_lines({"From the file, 500 lakes: share not solved once": unsolved}, xlabel="episodes played")

# %% [markdown]
# Nothing rewards exploration for its own sake. Within an episode the value of a move does count what it may reveal,
# since the next decision will have read it. But it ends with the episode: what a death would teach for the *next* one
# counts nothing. And how good an untried move is, the network has to guess. Where it guesses too low it walks in a
# circle. The paper reports circles of its agent, in words. Here is one: the same weights at temperature 0, on the first
# of our lakes where that ends in a cut-off.

# %%
cold = load_agent(f"assets/adapters/{profile.adapter}", temperature=0.0)
still = rollout(cold, lakes[:50], "greedy", episodes=12, step_limit=limit)
circles = np.argwhere(still.outcome == 3)
print(f"cut off in the first twelve episodes: {(still.outcome == 3).mean():.1%} at temperature 0, "
      f"{(greedy['agent'].outcome[:, :12] == 3).mean():.1%} at the shipped one")  # fmt: skip
i, e = circles[0] if len(circles) else (0, 0)
plot_progress(lakes[i], still.episodes(i), [e])

# %% [markdown]
# The rising temperature of the agent's choice (notebook 04, section 6) ends such circles sooner or later: on all 500
# lakes .4 % of the last ten episodes are cut off.
#
# ## 6 · Larger lakes
#
# Lakes 6 and 7 tiles wide and high have on average 2.4 times as many tiles as those that DQN trained on (3 to 5), their
# ways are longer, and so are their histories. DQN never saw such lakes; pretraining saw random play on some. 500 of
# them are held out, too. First a few of them live, then all **from the file**
# `assets/results/out_of_distribution.csv.gz`:

# %%
large_lakes = held_out_maps("out_of_distribution")[: profile.maps // 4]
for player in (agent, RMaxPolicy()):
    records = rollout(player, large_lakes, "paper", seed=0, step_limit=limit)
    print(f"live, {len(large_lakes)} larger lakes: {records.policy:6s} {records.success[:, -10:].mean():.2f} "
          "of the last ten episodes")  # fmt: skip
larger = read_table(results_path("out_of_distribution"))
success = by_policy(larger)
paper = larger["epsilon"][: success["agent"].shape[2]]
plot_learning_curves(success, paper, title="From the file: 500 larger lakes (the base saw random play on such)",
                     resamples=profile.bootstrap)  # fmt: skip

# %%
print(describe(summary(larger)))
agent_rows = {name: by_policy(larger, name)["agent"][:, :, -10:] for name in ("success", "steps", "repeat_death")}
failed = 1 - agent_rows["success"]
cut_off = failed * (agent_rows["steps"] == 100)
print(f"How the agent's last ten episodes fail: {(failed - cut_off).mean():.1%} die, {cut_off.mean():.1%} are cut off; "
      f"{agent_rows['repeat_death'].mean():.1%} die by an edge that had killed before")  # fmt: skip

# %% [markdown]
# The agent learns here, too, again far from its memory-less twin and from tabular Q-learning. What it lacks is the
# straight way: .50 of its successes take a shortest path, R-max's .74. A part of that is distance. On the known graph
# its values are close to the exact ones up to four moves from a goal; further away they stay near .12, about what it
# gives to a move never tried (notebook 04, section 8), and so it goes to and fro, or tries something new although a way
# is known. But even where the goal is four moves away the share is only .59 (R-max .77): the larger lake itself, or its
# longer history, costs more than the distance does. Nearly all of its deaths are on edges that it had not yet tried, so
# it does not forget what kills. What helped on development lakes stands in the lab book, sections 6 and 7.
#
# ## 7 · A changing lake
#
# Sixty episodes in one context; after thirty the lake is another one, and nobody is told. The paper does this with its
# schedule started anew at the change (its Fig. 7): success falls, then rises to almost the old level, "adaptation".
# But the moves after the change are random again, for everybody. The oracle, which never has to learn anything, shows
# the same dip and the same rise (first panel). So that curve cannot tell adaptation from its schedule.
#
# The clean experiment lets the player decide throughout. Three changes, from all to little: a **new lake**; **one hole
# moved** onto a shortest way; **the goal moved**. Beside the agent: R-max that never forgets (it believes what it saw
# last), R-max that knows its last ten episodes only, R-max that is told the moment of the change, optimistic Q.
# **From the file** `assets/results/changing_lake.csv.gz`:

# %%
from icrl_utils.evaluation.changing import Exchange, changing_lake, changing_summary, describe_changes, exchanges
from icrl_utils.evaluation.experiments import plot_experiment

changed = read_table(results_path("changing_lake"))
print(describe_changes(changed))
plot_experiment(changed, "changing_lake")

# %% [markdown]
# `fresh` and `after`: episodes until the first of two successes in a row, on the first lake and on the second (31 where
# there is none). `regret`: episodes after the change that the oracle wins and the player does not (dynamic regret).
# `old_moves`: in the first five episodes after the change, the share of moves that are right on the old lake and wrong
# on the new one.
#
# Compare `after` with `fresh`: what the agent knows of the old lake costs it dearly. On a fresh lake it is the quickest
# of all learners (3.4 episodes, R-max 4.2); on an exchanged one it needs 14.5 (R-max 7.2, told 4.5), and in the last
# ten episodes it succeeds in .72, R-max that is told in 1.00. It clings: .33 of its first moves are right on the old
# lake only, against .09. One moved hole is as bad in the end (.68), a moved goal is mended soonest (6.2 episodes). A
# guess at why: each slice of its training held one lake, so it never paid to doubt an old death or an old way; training
# on slices that cross changes would test it. Forgetting is cheap: R-max that knows ten episodes only is nearly as quick
# as the one that is told. And in the first panel the agent's second rise ends lower than its first, which the schedule
# alone, as the oracle shows, would not do: the paper's "almost the old level" is not what we find.
#
# The same at your own scale: other kinds, other lakes, more of them.

# %%
kind = "moved goal"
before, after = exchanges(n=4)[kind]
rerun = changing_lake([agent, RMaxPolicy(), OraclePolicy()], {kind: Exchange(before, after)})
print(f"Live, {kind}, {len(before)} lakes:")
print(describe(changing_summary(rerun, kind)))

# %% [markdown]
# ## 8 · Stitching
#
# The paper shows its agent two walks on one lake: one from tile 2 to the goal, one from tile 8 into a hole. They share
# tile 10. Play begins on tile 8, so neither walk is a solution, but the first half of one and the second half of the
# other are (its Fig. 5). "All five trials succeed". Here is the same, for our agent:

# %%
from icrl_utils.evaluation.stitching import (
    PAPER_CROSSING,
    crossings_of_every_kind,
    describe_stitching,
    gain_of_both,
    stitching,
)

walks = PAPER_CROSSING.shown("both walks")
tries = rollout(agent, [PAPER_CROSSING.lake], "greedy", episodes=5, shown=[walks], step_limit=limit).episodes(0)
plot_progress(PAPER_CROSSING.lake, [*walks, *tries], range(7))

# %% [markdown]
# Look at the attempts (episodes 2 to 6; episodes 0 and 1 are the walks shown). A later attempt may simply have learned
# from the death in the first one. **Only the first attempt tells of stitching**, and one lake tells little. So: 300
# generated crossings, the first attempt scored by itself, "reached the goal" apart from "switched at the crossing". And
# controls: only one of the two walks; both with their outcomes exchanged; players without memory, or without planning.
# **From the file** `assets/results/stitching.csv.gz`:

# %%
stitched = read_table(results_path("stitching"))
print(describe_stitching(stitched))
for name in ("agent", "R-max"):
    gain = gain_of_both(stitched, name)
    print(f"{name}: first attempt with both walks minus with the better one alone {gain.estimate:+.2f} "
          f"[{gain.low:+.2f}, {gain.high:+.2f}]")  # fmt: skip
plot_experiment(stitched, "stitching")

# %% [markdown]
# It does join walks, in part. With both walks in its context the first attempt arrives in .63 [.59, .68] of the
# crossings, .13 [.09, .17] more often than with the better walk alone; by a switch at the crossing in .41, where the
# walk to the goal alone makes .26. The three training runs agree (.62, .62, .66). Where it comes to the crossing it
# switches, in .90. What it seldom does is go there: the walk that ended in a hole is the way to it, and it comes to the
# crossing in .48 only. R-max, which keeps moves apart from where a walk ended, joins every pair (1.00; with the walk to
# the goal alone .53). With exchanged outcomes the agent goes on along the walk "to the goal" and into the hole (in .92,
# where it comes to the crossing): it reads the outcomes, and not the shape of the walks.
#
# And the paper's lake? Our agent's first attempt fails there nearly always (0, 0 and .2 by training run), and nearly
# every later one arrives. Five trials in a row, counted together, would have said "four of five succeed at stitching".
# What they show is learning from one death. The later attempts on the generated crossings say the same: .91 with both
# walks, but .75 even where only the walk to the hole was shown.
#
# The same at your own scale, then a bench: draw a lake, walks that are shown, and a lake that comes later.

# %%
few = {law: drawn[:4] for law, drawn in crossings_of_every_kind(n=4).items()}
print("Live, four crossings:", describe_stitching(stitching([agent, RMaxPolicy()], few)), sep="\n")

# %%
widgets.lake_bench(agent, PAPER_CROSSING.lake, "2 down down down down down\n8 right right right")

# %% [markdown]
# ## 9 · Explore the curves yourself
#
# Choose players, schedule, number of lakes and smoothing. Take few lakes, and see how quickly a "result" becomes noise:
# the paper has 50.

# %%
widgets.learning_curve_explorer({"paper (live)": played, "greedy (live)": greedy})

# %% [markdown]
# ### Exercise 3 · What does a curve show? (hard, 20 minutes, no code needed)
# A colleague sends a figure: thirty episodes, the paper's schedule, 50 lakes, one training run, no other player,
# success from .10 to .90, "learning in context is proved". Write down at least four objections, each with the figure or
# number that would answer it. Then compare. The check only counts what you wrote.


# %% tags=["exercise"]
def objections():
    """Your objections: a list of at least four (objection, what would answer it) pairs of strings."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_objections(objections)


# %% tags=["solution"]
def objections():
    return [
        ("it starts at epsilon = 0: the low beginning is random play, not the agent",
         "the same agent with the greedy schedule; growth of an oracle under this schedule"),
        ("a good agent without memory would rise, too, while the forced moves become fewer",
         "the memory-less twin on the same lakes, and the paired difference"),
        ("no baseline says what this experience is worth", "tabular Q-learning and R-max in the same protocol"),
        ("50 lakes leave +-8 points at 90 %", "a bootstrap interval over lakes, and more lakes"),
        ("one training run may be a lucky one", "several training seeds, shown one by one"),
        ("success does not tell how it is reached", "shortest paths, repeated deaths, how failures end"),
        ("are the lakes really unseen?", "a held-out file that training rejects"),
    ]  # fmt: skip


# %% [markdown]
# ## 10 · What the paper's curve shows, and what it does not
#
# Fairness first: the paper (arXiv 2501.14176) showed that a language model with a small adapter, trained by nothing but
# rewards, can use its context to play unseen lakes, and its held-out lakes are fresh. What its Figure 3 cannot tell:
#
# 1. how much of the rise is the schedule (its baseline is $\varepsilon = 0$; sections 2 and 5 above);
# 2. how much a memory-less model would achieve (no such curve);
# 3. how good it is beside simple algorithms with the same experience (no baselines);
# 4. how sure it is (one training run, 50 lakes, no interval).
#
# Our figures answer these questions *for our small agent*. They say nothing about theirs.

# %% [markdown]
# ## Recap
#
# - Under a schedule that goes from forced to free, *every* decent player's curve rises. The oracle's does.
# - Evidence of learning in context: the distance to the memory-less twin, paired by lakes; a rise at constant freedom;
#   a place among learners that had the same experience.
# - Intervals come from lakes, not from episodes; training seeds are shown one by one.
# - Success is not all: look at the way, at repeated deaths, and at how failures end.
# - Live results and results from a file are different things: this notebook says which is which.
#
# ## Further reading
# - Rentschler and Roberts 2025, arXiv 2501.14176: sections 4.1 and 4.6.
# - Agarwal et al. 2021, *Deep reinforcement learning at the edge of the statistical precipice*, arXiv 2108.13264:
#   intervals for few runs.
# - Brafman and Tennenholtz 2002, *R-max*, JMLR 3: a plan for what is unknown.
# - Osband, Russo, Van Roy 2013, *(More) efficient reinforcement learning via posterior sampling*, arXiv 1306.0940.
# - Lee et al. 2023, *Supervised pretraining can learn in-context reinforcement learning* (DPT), arXiv 2306.14892.
