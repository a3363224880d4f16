# %% [markdown]
# # 07 · A general problem solver? Other games, and what the network computes
#
# ![The value of a way moves by one move at each later visit](../assets/figures/notebook_07.png)
#
# The paper behind this course is called *RL + Transformer = A General-Purpose Problem Solver*. Our agent was trained on
# frozen lakes and on nothing else. **Which other games do the same weights play, does it explore better or plan better,
# and what does the network compute, and when?**
#
# | | |
# | --- | --- |
# | **Goals** | test a claim on new games; take exploring and planning apart; find a mechanism by cuts and patches |
# | **Prerequisites** | notebooks 02 and 05; what attention heads and residual streams are |
# | **Reading** | 40 minutes |
# | **Exercises** | 50 minutes |
# | **Run time** | smoke 1 min · cpu 2 min on two cores |
# | **Peak memory** | 2 GB |
# | **Downloads** | none |
#
# Each experiment here is one function, one row of `icrl_utils.evaluation.experiments.EXPERIMENTS`, one file in
# `assets/results/` and one command, `python -m icrl_utils evaluate NAME --write`. Laws, seeds and statistics were fixed
# in code before the first look. A cell that begins with `# live` runs the same function at your own scale.

# %%
import numpy as np  # noqa: F401 (for exercise 3)

from icrl_utils import get_profile, load_agent
from icrl_utils.course import checks
from icrl_utils.evaluation import experiments, handoff, inside, made_up, rehearsal, surgery
from icrl_utils.evaluation.experiments import plot_experiment, read_table, results_path
from icrl_utils.lake.games import GAMES
from icrl_utils.play.baselines import RandomPolicy, RMaxPolicy
from icrl_utils.play.rollout import rollout

profile = get_profile()
agent = load_agent(f"assets/adapters/{profile.adapter}")
few = min(profile.maps, 20)  # games, lakes or histories for what runs live: raise it for narrower intervals

# %% [markdown]
# ## 1 · Other games, the same weights
#
# To the agent a game is a text: tile numbers, four words for moves, `goal`, `hole`, `limit`, `reset`. So everything can
# be told to it that has four moves and at most 64 places. Seven laws besides lakes:
#
# | law | what is new |
# | --- | --- |
# | numbers permuted | the same lakes, their tiles numbered at random (as in half of the agent's training histories) |
# | numbers and words permuted | and "left" may lead down, too |
# | key and door | two floors; a key tile leads upstairs, and only there the goals are open |
# | random graphs | twelve places, every move leads anywhere, three places are deadly |
# | rivers | every move drifts downstream; rocks, and at the end a fall with one landing place |
# | bandits | one move an episode; each of the four pays with a chance of its own |
# | slippery lakes | a move goes astray in two of three cases |
#
# In the last two the same move does not always end alike. In all its training a move had one outcome, for ever.

# %%
game = GAMES["random graphs"].sample(1, seed=5)[0]
print(agent.format.render(rollout(RandomPolicy(), [game], "greedy", seed=0, episodes=6).episodes(0)))

# %% [markdown]
# **Predict before you go on.** On which of the eight laws does the agent learn at all? On which is it ahead of R-max in
# the first five episodes, and on which in the last five?
#
# ### Exercise 1 · The same game in other words (easy, 10 minutes)
# A game told with permuted numbers and words is the same game: whoever only *looks up* loses nothing. Translate a
# history. Tile $t$ is called `numbers[t]`. Action $a$ is called by the word number `new_words[a]` of left, down, right,
# up (0 to 3). All other words stay.


# %% tags=["exercise"]
def retold(words, numbers, new_words):
    """words: a compact history as a list of words. Returns the same history in the new words, a list of str."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_retold(retold)


# %% tags=["solution"]
def retold(words, numbers, new_words):
    actions = ["left", "down", "right", "up"]
    named = {str(tile): str(name) for tile, name in enumerate(numbers)}
    named |= {actions[action]: actions[name] for action, name in enumerate(new_words)}
    return [named.get(word, word) for word in words]


# %% [markdown]
# Now play one. You get what the agent gets, and it plays beside you. Its score of an episode appears when you have
# played it.

# %%
from icrl_utils.course.widgets import play_against_agent

play_against_agent(agent, game, episodes=8)

# %%
# live: two laws, few games, one training seed; the player decides from the first move on
laws = {law: GAMES[law].sample(few, experiments.GAMES_SEED) for law in ("key and door", "bandits")}
played = experiments.games([agent, RMaxPolicy(), RandomPolicy()], laws)
plot_experiment(played, "games")

# %% [markdown]
# **From the file** `assets/results/games.csv.gz`: 200 games of each law, three training seeds, the greedy schedule,
# seed 0. The lakes are held out, and so are those in other words.

# %%
games_table = read_table(results_path("games"))
for law, part in experiments.by_law(games_table).items():
    rows = {row["policy"]: row for row in experiments.summary_of_law(part)}
    ours = "  ".join(f"{rows['agent'][key].estimate:.2f}" for key in ("first_five", "last_five"))
    leads = [rows["R-max"][key] for key in ("lead_first", "lead_last")]
    texts = [f"{v.estimate:+.2f} [{v.low:+.2f}, {v.high:+.2f}]" for v in leads]
    print(f"{law:27s} agent, first and last five {ours}   minus R-max {texts[0]}  {texts[1]}")
plot_experiment(games_table, "games")

# %% [markdown]
# What holds: **on every law without chance the same weights learn**. They succeed in .31 to .61 of the first five
# episodes and in .75 to .99 of the last five; their memory-less twin ends at .10 to .34, plain tabular Q-learning at
# .27 to .61. Nobody ever showed them a key, a graph without neighbours, or a river.
#
# What does not: the lead over R-max in the first five episodes is .16 on lakes, .13 on rivers, .07 with a key, .05 on
# random graphs, and within the error 0 once the numbers are permuted. So a part of the good beginning is *knowledge
# about lakes*: numbers as on a grid probably tell where the unknown lies. In the last five R-max is ahead on all six,
# by .01 on lakes and by .08 to .24 elsewhere. Optimistic Q-learning is ahead on five; on rivers, where no way leads
# back, the agent is ahead of it by .11.
#
# Where moves end by chance it fails, as it should, or nearly so. On bandits it ends a little ahead of the other
# learners (.68, optimistic Q-learning .62) and .12 behind the one who knows the arms. On slippery lakes it reaches .32,
# where optimistic Q-learning has .58. In its world one look at a move tells everything; here it does not.
#
# So "general" means: *whatever is a deterministic maze told in these words*. That is more than lakes, and less than the
# title says.

# %% [markdown]
# ## 2 · Does it explore better, or plan better?
#
# It begins ahead of R-max and ends behind it. Two abilities may differ: to *find out*, and to *use* what was found. So
# let one player explore for six episodes, and another one play the next three. Both are told every step, one decides
# (test `test_both_are_told_everything_and_one_decides`):

# %%
import inspect

print(inspect.getsource(handoff.HandOff.act))

# %% [markdown]
# A row of the matrix is an explorer, a column a player. **Predict:** is the agent's *row* better than that of R-max? Is
# its *column*?

# %%
# live: few lakes of one size, one training seed
lakes = {sizes: drawn[:few] for sizes, drawn in handoff.lakes_of_every_size().items() if sizes == "3 to 5"}
handed = handoff.hand_off([agent], lakes)
handoff.plot_hand_off(handed, "Live: one explores, another one plays")

# %% [markdown]
# **From the file** `assets/results/hand_off.csv.gz`: 200 held-out lakes of each size, three training seeds, seed 0.

# %%
handed = read_table(results_path("hand_off"))
for sizes, what, found in handoff.differences(handed):
    print(f"lakes {sizes:8s} as {what:46s}{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
plot_experiment(handed, "hand_off")

# %% [markdown]
# This statistic, fixed beforehand, averages a row over all players and a column over all explorers. It hides a quarrel:
# optimistic Q-learning as a *player* wants everything tried, and so it does worst after those who find a goal soon (.33
# after posterior sampling, .37 after the agent). With players who use what they know, cell by cell, and therefore
# looked at afterwards:

# %%
success = handoff.per_map(handed, ("sizes", "explorer", "player"), "success")
for sizes in handoff.LAKES_OF_SIZE:
    for who in ("R-max", "agent"):
        explores = handoff.interval(success[sizes, "agent", who] - success[sizes, "R-max", who])
        plays = handoff.interval(success[sizes, who, "agent"] - success[sizes, who, "R-max"])
        print(f"lakes {sizes:8s} agent minus R-max: as explorer, {who} plays {explores.estimate:+.3f} "
              f"[{explores.low:+.3f}, {explores.high:+.3f}]; as player, {who} explored {plays.estimate:+.3f} "
              f"[{plays.low:+.3f}, {plays.high:+.3f}]")  # fmt: skip

# %% [markdown]
# **The agent is the better explorer.** R-max plays better on what the agent found than on what R-max itself found: .95
# against .88, on larger lakes .57 against .44. **And the worse planner**, if there is much to be used: on its own
# findings R-max is ahead of it by .03 (larger lakes .04), on those of posterior sampling by .09 and .14. After R-max or
# random play both do equally well, within what 200 lakes can tell.
#
# The last pair is a hint. Posterior sampling finds a goal quickly, by a short way, and walks there once or twice. For
# R-max once is enough. What does the agent need?

# %% [markdown]
# ## 3 · What is computed, and when?
#
# A planner reads the map in its head *when it decides*. A cache has written values beside the places *while it walked*.
# Both can play well. Which one is our network?
#
# ### 3.1 A way, and how often it was walked
#
# We tell the agent one way of $d$ moves to a goal, over tile numbers drawn at random, walked $k$ times, and ask on its
# first tile what the right first move is worth. Exact: $\gamma^{d-1}$ with $\gamma = .6$ (code: `made_up.predictions`,
# test `test_the_prediction_of_a_cache_is_what_a_table_does`).
#
# - **It plans when it decides:** $\gamma^{d-1}$, however often the way was walked. Once is enough to know it.
# - **It caches while it walks:** as a table under Q-learning. At each visit a tile is worth $\gamma$ times what was
#   written at the next tile *on the visit before*; so values travel one move a visit.
#
# ### Exercise 2 · What would a cache know? (medium, 20 minutes)
# Compute the second prediction. During the first walk nothing is known; unknown values are 0. A move onto the goal is
# worth 1 once the goal was seen. Ask after `visits` walks, all of which reached the goal.


# %% tags=["exercise"]
def cached(moves, visits, gamma):
    """Returns a list of `moves` floats: the values of the right move at 1, 2, ..., `moves` moves from the goal."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_cache_while_walking(cached)


# %% tags=["solution"]
def cached(moves, visits, gamma):
    written = [0.0] * moves  # at distance 1, 2, ...: nothing is known during the first walk
    for _ in range(visits):  # the later walks, and the question as the last visit
        for d in reversed(range(moves)):  # a walk passes the far tiles first
            written[d] = 1.0 if d == 0 else gamma * written[d - 1]
    return written


# %% [markdown]
# **Predict** the lines for one, two and six walks before you run the next cell.

# %%
# live: few ways of each length, one training seed
ways = made_up.ways_of_every_length(few)
print(made_up.describe_values(made_up.values_by_distance([agent], ways)))

# %% [markdown]
# **From the file** `assets/results/values_by_distance.csv.gz`: 200 ways of each length, three training seeds. Below on
# the right the goal is reached once only; all later walks are cut off one move before it, so they tell nothing new.

# %%
values_table = read_table(results_path("values_by_distance"))
plot_experiment(values_table, "values_by_distance")

# %% [markdown]
# A goal two moves away, seen once, is worth .11, and one eight moves away .08. The agent has read where the first move
# leads, and that the next one leads to the goal, and does not put the two together. **It does not look ahead, not even
# over two moves.** Let it walk by once more, and the value is .53 (exact: .60). It need not reach the goal again: .51
# where the second walk was cut off before. So one visit makes one backup, without any new reward. The cache predicts
# just that.
#
# Then the cache ends, too. Three moves away .36 would be exact: after six walks it is .30, not much more than eight
# moves away (.25, exact .03), and .20 where the later walks were cut off. Beyond two moves values follow *how often* a
# way was rewarded rather than how long it is. This may be the floor that notebook 06 (section 6) met on larger lakes:
# beyond two moves all ways look alike, and little keeps the agent from a detour.

# %% [markdown]
# ### 3.2 Who reads what? Cutting attention
#
# If the cache is real, somebody writes it and somebody reads it. We tell a way of two moves twice, the second time cut
# off before the goal, with two other ways between, and forbid single tokens to look at others. Two cuts decide:
#
# - the *question* must not see the next tile's later visit: a cache loses everything, a planner nothing;
# - that *later visit* must not see the goal: the same.
# - The question must not see the goal itself: a planner loses everything, a cache nothing.
#
# Controls cut equally many tokens at random.
#
# ### Exercise 3 · A mask with a hole (medium, 20 minutes)
# Entry `[q, k]` says whether token `q` may look at token `k`: itself and earlier ones. One token, `query`, must not see
# those in `keys`. It goes on to see itself, even if `keys` names it: a softmax over nothing is no number.


# %% tags=["exercise"]
def visible(tokens, query, keys):
    """Returns bool [tokens, tokens], as a numpy array, torch tensor or nested list."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_visible(visible)


# %% tags=["solution"]
def visible(tokens, query, keys):
    mask = np.tril(np.ones((tokens, tokens), bool))
    mask[query, keys] = False
    mask[query, query] = True
    return mask


# %% [markdown]
# In the network a mask enters through a hook: before each layer's attention runs, its argument `attention_mask` is
# replaced by one that has a mask for each head. The whole tool:

# %%
print(inspect.getsource(inside.attention_cut))

# %%
# live: few histories, one training seed; all heads, and each of the sixteen
cuts = inside.attention_cuts([agent], inside.draw_stories(few))
print(inside.describe_cuts(cuts))

# %% [markdown]
# **From the file** `assets/results/attention_cuts.csv.gz`: 200 histories, three training seeds.

# %%
cuts_table = read_table(results_path("attention_cuts"))
print(inside.describe_cuts(cuts_table))
plot_experiment(cuts_table, "attention_cuts")

# %% [markdown]
# A cache it is. If the question must not see the next tile's later visit, the value falls from .51 to .11, and if that
# visit must not see the goal, to .13 (a story without any goal: .06). The goal itself is hardly read at the question:
# .47 without. Random cuts cost nothing at the question, and at the later visit .03 for one token and .12 for two: some
# of them hit what tells the visit where it is.
#
# Writing is the work of two heads: heads 1 and 2 of layer 3, with .13 and .26, in all three training runs (which share
# their base, so that heads keep their places). Reading is spread over all four heads of layer 4, about .10 each.
#
# One result nobody predicted: without the *earlier visits of its own tile* the question says .65 instead of .51, above
# the exact .60. Something that is read there lowers the value. We do not know what.
#
# ### 3.3 Where is the value? Patching activations
#
# Two histories that differ in one word: the way ends on a goal, or in a hole. Run the one with the hole, but exchange
# *one* state, that of one token after one layer, for the state of the run with the goal. If the value comes back, it
# was there.

# %%
print(inspect.getsource(inside.patched))

# %%
# live: few ways, one training seed
patches = inside.activation_patching([agent], inside.draw_patch_ways(few))
print(inside.describe_patching(patches))

# %% [markdown]
# **From the file** `assets/results/activation_patching.csv.gz`: 200 ways of each length, three training seeds.

# %%
plot_experiment(read_table(results_path("activation_patching")), "activation_patching")

# %% [markdown]
# One move from the goal the value stays at the word `goal` until layer 3, and layer 4 carries it to the question: a
# look-up. Two moves away it makes a stop: layer 3 carries it from `goal` to the *next tile's later visit* (.80 of it is
# there), layer 4 from there to the question. That is the cache, and why it reaches two moves: **each look-up takes a
# layer, and what the last layer has written at a tile no later token can read.** A third move would need a layer more.
# (This fits both maps, and it predicts that a deeper network reaches further. An agent of six layers did find shorter
# ways, lab book, section 7; nobody has looked inside it yet.)

# %% [markdown]
# ### 3.4 Operations on a real history
#
# Made-up ways are clean. Lakes are not. Here the agent gets twelve episodes of random play on a held-out lake, and is
# asked about one move that leads onto a goal, one that leads to a goal in two moves, and one that leads into a hole.
# Then the history is operated on: this one outcome becomes `limit`, goals and holes are exchanged, every reward is
# removed, or the history is another lake's. **Predict** the value of a seen hole after each.

# %%
# live: few lakes, one training seed
operated = surgery.context_surgery([agent], surgery.HeldOutLakes().sample(few, surgery.SURGERY_SEED))
print(surgery.describe_surgery(operated))

# %% [markdown]
# **From the file** `assets/results/context_surgery.csv.gz`: 200 held-out lakes, three training seeds.

# %%
operated_table = read_table(results_path("context_surgery"))
print(surgery.describe_surgery(operated_table))
plot_experiment(operated_table, "context_surgery")

# %% [markdown]
# What the agent believes stands in its context, word for word. A seen hole is worth .00; call it a goal, and the same
# weights give 1.00. Delete that one word, and it is worth .20, about as much as a move never tried. ("Goal in 2" does
# not end an episode: the first operation deletes nothing there, and its value stays.) Without any reward "goal in 2"
# falls from .54 to .15, and holes stay holes. Limits: random play found a goal on 124 of the 200 lakes only, and after
# "outcomes exchanged" other goals lie nearby, so that .28 is no pure case.
#
# ## 4 · Rehearsal: imagined walks
#
# If walking is what passes values on, walks need not be real. Before each episode we write $j$ walks behind the history
# that only repeat what it has shown: they begin on a random known tile, follow random known moves, and end on a goal or
# after ten moves. (A model that is learned, and values that are backed up along imagined experience: Sutton called this
# Dyna.) After the episode they are taken out again. The control has equally many tokens: the same walks over tile
# numbers that the lake does not have. **Predict:** what does it do on lakes of 3 to 5, what on larger ones? Think of
# how far the cache reaches.

# %%
# live: few lakes of one size, one training seed
some = {"3 to 5": rehearsal.lakes_to_rehearse()["3 to 5"][: few // 2]}
print(rehearsal.describe_rehearsal(rehearsal.rehearsal([agent], some)))

# %% [markdown]
# **From the file** `assets/results/rehearsal.csv.gz`: 100 held-out lakes of each size, three training seeds, greedy
# schedule.

# %%
rehearsed = read_table(results_path("rehearsal"))
for (sizes, metric, walks), found in rehearsal.gains(rehearsed).items():
    print(f"lakes {sizes:8s}{metric:14s} {walks} walks, known moves minus elsewhere "
          f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")  # fmt: skip
plot_experiment(rehearsed, "rehearsal")

# %% [markdown]
# It does next to nothing. Known moves minus elsewhere, in success, lies between -.01 and +.02 at both sizes for one,
# two and four walks, and in shortest paths between -.02 and +.03; the one interval of twelve without 0 (four walks,
# lakes of 3 to 5: +.017, .005 to .031) is what chance would give. The reading above explains it: a walk makes one
# backup, and the cache ends after two moves. A random walk rarely passes the one tile where a second visit would help,
# and further away there is nothing that it could write.

# %% [markdown]
# ## Recap
#
# Answer first, then unfold.
#
# <details><summary>Which games do the same weights play, and which not?</summary>
#
# Every deterministic one among ours: permuted lakes, key and door, random graphs, rivers, from .75 to .99 of the last
# five episodes. Not bandits and slippery lakes, where one look at a move does not tell all.
# </details>
#
# <details><summary>How do we know that a part of its good beginning is knowledge about lakes?</summary>
#
# Its lead over R-max in the first five episodes disappears when the tile numbers are permuted, with everything else
# equal.
# </details>
#
# <details><summary>What distinguishes a planner from a cache, if both know the way?</summary>
#
# How often the way was walked. A planner is right after one walk, a cache knows one move more with each visit.
# </details>
#
# <details><summary>What is written where, and who reads it?</summary>
#
# At a tile's later visit, in layer 3, mostly by two heads that look at the outcome; read by layer 4 at the question.
# </details>
#
# <details><summary>Why does the cache reach two moves?</summary>
#
# Layer 3 looks up what a move led to and writes the value at the tile, layer 4 reads it one move away. What layer 4
# writes no later token can read. (Layers 1 and 2 probably join each outcome with its tile and move: not tested.)
# </details>
#
# <details><summary>What would be evidence against this account?</summary>
#
# A value two moves away that is right after one walk; a cut of the later visit that costs nothing; a patch at the later
# visit that brings nothing back. Each was measured, and none was found.
# </details>
#
# ## Further reading
# - Rentschler and Roberts 2025, arXiv 2501.14176: the title that this notebook puts to the test.
# - Sutton 1991, *Dyna, an integrated architecture for learning, planning, and reacting*: imagined experience.
# - Brafman and Tennenholtz 2002, *R-max*, JMLR 3.
# - Geva et al. 2023, *Dissecting recall of factual associations in auto-regressive language models*, arXiv 2304.14767:
#   attention knock-out.
# - Meng et al. 2022, *Locating and editing factual associations in GPT*, arXiv 2202.05262: patching activations.
# - Olsson et al. 2022, *In-context learning and induction heads*, arXiv 2209.11895: how a look-up is made of heads.
