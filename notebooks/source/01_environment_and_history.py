# %% [markdown]
# # 01 · How does a game become text?
#
# ![A walk on a lake, the same walk as words, the words as token numbers](../assets/figures/notebook_01.png)
#
# A language model reads tokens and nothing else: no map, no memory of last week, no reward signal. **What must be
# written down so that a lake can be learned from the text alone, and how little is enough?**
#
# | | |
# | --- | --- |
# | **Goals** | Draw lakes by the paper's law; know why a tile number is no state; write histories; find decisions |
# | **Prerequisites** | Notebook 00; NumPy |
# | **Reading** | 25 minutes |
# | **Exercises** | 35 minutes |
# | **Run time** | smoke 10 s · cpu 30 s on two cores |
# | **Peak memory** | 0.6 GB |
# | **Downloads** | none |

# %% [markdown]
# ## The law of lakes
#
# If the agent is to *learn lakes*, it must meet thousands of different ones, and we must be able to draw new ones that
# it has never met. The naive way: draw every tile at random, and play.

# %%
import numpy as np

from icrl_utils import LakeMap, get_profile

profile = get_profile()


def random_rows(rng) -> list[str]:
    """Each tile: start with probability .1, else goal with .1, else hole with .2, else ice."""
    height, width = rng.integers(3, 6, 2)  # 3, 4 or 5
    u = rng.random((height, width))
    letters = np.select([u < 0.1, u < 0.19, u < 0.352], ["S", "G", "H"], "F")
    return ["".join(row) for row in letters]


# %% [markdown]
# (.1 + .9 x .1 = .19, and .19 + .81 x .2 = .352.) How many of these are worth playing? `LakeMap` refuses a map without
# a start or a goal; `optimal_steps` is the length of the shortest way, or -1 where there is none.

# %%
rng = np.random.default_rng(0)
kinds = {"no start or no goal": 0, "some start is cut off": 0, "less than 4 moves": 0, "worth playing": 0}
for _ in range(2_000):
    try:
        candidate = LakeMap(random_rows(rng))
    except ValueError:
        kinds["no start or no goal"] += 1
        continue
    shortest = min(candidate.optimal_steps(start) for start in candidate.starts)
    kinds["some start is cut off" if shortest < 0 else "less than 4 moves" if shortest < 4 else "worth playing"] += 1
print({kind: f"{count / 2_000:.1%}" for kind, count in kinds.items()})

# %% [markdown]
# Expected: only about one candidate in twenty is worth playing. The others have nothing to find, cannot be solved, or
# can be solved by luck. So the paper's law *rejects*: a map is kept only if **every** start has a way to a goal, and
# the nearest goal is at least 4 moves away. Nothing is repaired by hand, so the law stays as simple as it looks:
# the lakes worth playing among all lakes. `MapDistribution` does the same for thousands of maps at once.

# %%
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION, PAPER_OUT_OF_DISTRIBUTION
from icrl_utils.plots.lakes import plot_lakes

inside, outside = PAPER_IN_DISTRIBUTION.sample(6, seed=1), PAPER_OUT_OF_DISTRIBUTION.sample(6, seed=1)
titles = [f"3..5: {min(map(lake.optimal_steps, lake.starts))} moves" for lake in inside]
titles += [f"6..7: {min(map(lake.optimal_steps, lake.starts))} moves" for lake in outside]
# Titles are keys: number them, so that no two are equal.
plot_lakes({f"{i + 1}.  {title}": lake for i, (title, lake) in enumerate(zip(titles, inside + outside, strict=True))})

# %% [markdown]
# Upper row: the sizes on which the agent is trained ("in distribution"). Lower row: larger ones ("out of
# distribution"). The 500 + 500 maps on which we *measure* are held out: stored in a file with a checksum, and refused
# by everything that trains.

# %%
from icrl_utils.lake.held_out import COURSE_LAKE as lake  # that of notebook 00
from icrl_utils.play.collect import RANDOM_PLAY, collect

try:
    collect([lake], RANDOM_PLAY, np.random.default_rng(0))
except ValueError as error:
    print(error)

# %% [markdown]
# ## A number is not a place
#
# What the player sees is the number of its tile. With rows and columns counted from 0:
#
# $$\text{tile} = \text{row} \cdot \text{width} + \text{column}$$
#
# *(Test: `tests/test_equations.py::test_01_tile_numbers`.)*
#
# *Right* adds 1, on every lake. But *down* adds the **width**, which nobody tells. The same first words can therefore
# go on in many ways. We take all held-out lakes on which a player can start on tile 0, and look at what *down* does:

# %%
from collections import Counter

from icrl_utils import held_out_maps

follow = Counter()
for other in held_out_maps("in_distribution"):
    if 0 in other.starts:
        below = int(other.next_tile[0, 1])
        follow["hole" if below in other.holes else below] += 1
print("0 down ->", dict(follow.most_common()))

# %% [markdown]
# Expected: four different answers to the same words: the tiles 3, 4 and 5, and holes.
# The true state of the world is the pair (lake, tile); the player sees only the second half. Such a problem is called
# a **partially observable** Markov decision process, POMDP. The observation alone does not say what comes next.
#
# ## What can one do without memory?
#
# Does it matter? Let us try the best that one can do *without* seeing the difference: one table for all lakes, which
# holds for each of 25 tile numbers the probabilities of the four moves. Nobody has to guess them. On a known lake the
# chance to reach the goal with such a table can be computed exactly, and how it changes with each number, too. So we
# climb: 400 training lakes of the law of the held-out ones, the gradient averaged over them, a hundred steps, from six
# random beginnings, the best of which is kept (`play/memoryless.py`; the gradient is the policy gradient theorem's).
# Three such tables, each from other lakes. (Before you run it: will this beat a fair die? And if the table always plays
# its *likeliest* move?)

# %%
from icrl_utils.lake.held_out import training_maps
from icrl_utils.play.memoryless import MemorylessTablePolicy, train_memoryless_table

tables = []
for seed in range(1 if profile.name == "smoke" else 3):
    lakes = training_maps(PAPER_IN_DISTRIBUTION, 40 if profile.name == "smoke" else 400, seed)
    tables.append(train_memoryless_table(lakes, seed))

# %%
from icrl_utils import rollout
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy
from icrl_utils.plots.style import POLICY_COLORS
from icrl_utils.plots.values import plot_intervals
from icrl_utils.statistics import interval

lakes = held_out_maps("in_distribution")[: 5 * profile.maps]
players = {
    "oracle": [OraclePolicy()],
    "memory-less table": [MemorylessTablePolicy(table) for table in tables],
    "random": [RandomPolicy()],
    "memory-less table, argmax": [MemorylessTablePolicy(table, greedy=True) for table in tables],
}
success = {}  # name -> [lakes], averaged over tables and ten episodes each
for name, group in players.items():
    runs = [rollout(player, lakes, "greedy", episodes=10, seed=0).success.mean(axis=1) for player in group]
    success[name] = interval(np.mean(runs, axis=0), resamples=profile.bootstrap)
    print(f"{name:26s} {success[name].estimate:.2f}  ({success[name].low:.2f} to {success[name].high:.2f})")
plot_intervals({"": success}, f"success on {len(lakes)} held-out lakes (95 % interval)", colors=POLICY_COLORS)

# %% [markdown]
# Expected: the table reaches .29 on the held-out lakes (.26 to .31), the die .16. That is as much as the agent of
# notebook 00 reaches when its context is cleared after every episode (.29), a Llama that remembers at least the running
# episode: what lakes have in common is worth no more than this, and the rest of the way to 1 is memory.
#
# And the same tables with their likeliest move: less than .1, far below the die. What was right on average is now done
# on *every* visit. Who remembers nothing and throws no dice walks into the same wall or circle until the clock stops:
# more than half of these episodes are cut off. Two lessons. Without memory, at least be random. And a deterministic
# player who is to do better must have something that changes from visit to visit.
#
# ## The idea: the history is the state
#
# What the player cannot see it can remember. The *history* of everything it saw and did tells which lakes are still
# possible: after "0 down 4" all lakes that are not four tiles wide are ruled out. A player who reads the whole
# history loses nothing. So the history is what we give the model, and the only question left is how to write it.
#
# ## Episodes
#
# First as data. `rollout` keeps what happened as `Episode`s; six random ones on our lake:

# %%
records = rollout(RandomPolicy(), [lake], schedule="greedy", episodes=6, seed=2, step_limit=12)
episodes = records.episodes(0)
for episode in episodes:
    print(episode)

# %% [markdown]
# Three endings. **goal** pays 1 and **hole** pays 0: both end the game (*terminated*). **limit** pays 0 and is another
# thing: somebody stopped the clock (*truncated*), here after 12 moves, usually after 100. The game could have gone on.
# Keep them apart; exercise 3 shows why.
#
# ## How not to write it
#
# One's first idea is a line of JSON for each step, or a sentence. How long is that? Words and punctuation marks are a
# fair first guess of the number of tokens.

# %%
import json
import re

step = {"tile": 8, "action": "right", "next_tile": 9, "reward": 0.0, "terminated": False, "truncated": False}
sentence = "You stand on tile 8. You go right. Now you stand on tile 9. Nothing happened."
pieces = {text: re.findall(r"\w+|[^\w\s]", text) for text in (json.dumps(step), sentence)}
for parts in pieces.values():
    print(f"{len(parts)} pieces: {' '.join(parts)}")
json_tokens = len(pieces[json.dumps(step)])

# %% [markdown]
# Twenty to forty tokens a step, nearly all of them the same in every step. A model pays for each: its memory grows with
# their number, its attention compares every token with every earlier one, and what must be looked up lies further
# away. Write only what is **new**.
#
# ## The compact format
#
# Tile numbers and action words take turns. The last observation of an episode is replaced by how it ended, then comes
# `reset`. That is all, two tokens a step:

# %%
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat

compact = HistoryFormat("compact")
two = [Episode((0, 4, 8), (1, 1), "hole"), Episode((0, 4, 5, 6, 2), (1, 2, 2, 3), "goal")]
print(compact.render(two))

# %% [markdown]
# The reward needs no token of its own, since `goal` says it. The tile on which an episode ended needs none either: it
# was reached by an edge that is in the text. The vocabulary has 72 words: 64 tile numbers (lakes up to 8 x 8), four
# actions, three endings, `reset`. The orange triangles mark *decisions*; we come to them in a moment.

# %%
from icrl_utils.plots.lakes import plot_history_tokens

plot_history_tokens(compact.render(two), width=9.8, title="What the tiny Llama reads, with the numbers of the words")

# %% [markdown]
# Two properties are worth a check. Nothing is lost: what was written can be read back. And nothing is accepted that
# the model does not know: an unknown word is an error with a next step, not silently some other number.

# %%
records = rollout(RandomPolicy(), held_out_maps("in_distribution")[: profile.maps], "greedy", episodes=10, seed=1)
for i in range(len(records.maps)):
    pairs = zip(compact.parse(compact.render(records.episodes(i))), records.episodes(i), strict=True)
    for read, written in pairs:
        assert (read.tiles[:-1], read.actions, read.outcome) == (written.tiles[:-1], written.actions, written.outcome)
print(f"{10 * len(records.maps)} episodes written and read back unchanged")
try:
    compact.tokenize("0 rigth 1")
except ValueError as error:
    print(error)

# %% [markdown]
# Because every step has exactly two tokens, *many lakes grow in lock-step*: three players, a reset and two moves, no
# padding. This is what makes playing a hundred lakes at once cheap.

# %%
from icrl_utils.history.episodes import RESET

batch = {"action": [[RESET] * 3, [2, 3, 1], [1, 2, 1]], "tile": [[8, 0, 3], [9, 0, 7], [13, 1, 11]]}
outcome = [[0, 0, 0], [0, 0, 0], [2, 0, 0]]  # the first player falls into a hole
for action, tile, end in zip(batch["action"], batch["tile"], outcome, strict=True):
    print(compact.encode_steps(action, tile, end).tolist())

# %% [markdown]
# ## The paper's format
#
# A pretrained Llama knows other words, and it was trained on chats with roles and headers. The paper speaks that
# language: each observation and each action is a message. Same two episodes, same information:

# %%
from icrl_utils.history.tokenizers import make_paper_tokenizer

tokenizer = make_paper_tokenizer()  # a small stand-in: same special tokens and costs as Llama 3's, no download
paper = HistoryFormat("paper", tokenizer)
assert paper.parse(paper.render(two)) == two
plot_history_tokens(paper.render(two[:1]), paper, tokenizer, title="Two moves in the paper's format")

# %% [markdown]
# ## What it costs
#
# With $n_e$ the number of moves in episode $e$, and $[\cdot]$ equal to 1 if true, else 0:
#
# $$\text{compact: } \sum_e (2 n_e + 2)$$
#
# $$\text{paper: } \sum_e (10\, n_e + 7 + 7\,[\text{goal}] + 5\,[\text{limit}])$$
#
# *(Test: `tests/test_equations.py::test_01_tokens_of_a_history`.)*

# %%
for name, format in (("compact", compact), ("paper", paper)):
    print(name, [len(format.encode_episode(episode)) for episode in two], "tokens for 2 and 4 moves")

# %% [markdown]
# Thirty episodes on one lake, for three players: the oracle, a random one, and one that walks in circles until it is
# cut off after 100 moves (bad agents do that). JSON is counted in the pieces of above.

# %%
from icrl_utils.plots.values import plot_token_costs

lakes = held_out_maps("in_distribution")[: profile.maps]
mean_steps = {p.name: rollout(p, lakes, "greedy", episodes=5).steps.mean() for p in (OraclePolicy(), RandomPolicy())}
tokens = {}
for name, n in (mean_steps | {"in circles": 100}).items():
    end = {"oracle": 7, "in circles": 5}.get(name, 0)  # what the message about a goal or the limit costs more
    cost = {"compact": 2 * n + 2, "paper": 10 * n + 7 + end, "JSON": json_tokens * n}
    tokens[f"{name}\n({n:.0f} moves an episode)"] = {way: 30 * each for way, each in cost.items()}
plot_token_costs(tokens, title="A history of thirty episodes")

# %% [markdown]
# The tiny Llama's context of 8,192 tokens holds thirty episodes of circles in the compact format (6,060). (That it
# *fits* does not say that it is remembered: histories in training were up to 3,200 tokens long, and recall was checked
# up to 5,120, see the lab book, section 4.) In the paper's format eight of them fill it, and JSON would not even hold a
# random player's memory. What does not fit is dropped, oldest episodes first, and said once:

# %%
import warnings

long_history = [Episode((8,) * 101, (0,) * 100, "limit")] * 30
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    kept = HistoryFormat("paper", tokenizer).fit(long_history, max_tokens=8192)
print(len(kept), "of 30 episodes of circles stay in the paper's format:", caught[0].message)

# %% [markdown]
# ## Decisions
#
# A causal model has an output at *every* token, each computed from this token and the earlier ones. At which of them
# do we ask for Q-values? Where the next word is the agent's to choose. With $x_i$ the token at position $i$:
#
# $$\mathcal{D} = \{\, i : x_{i+1} \in \{\text{left, down, right, up}\} \,\}$$
#
# *(Test: `tests/test_equations.py::test_01_decisions`.)*
#
# In the compact format these are the tiles on which a move follows; in the paper's, the last token of an action
# header. `format.decisions` finds them and says, for each, what was done and what came of it.

# %%
ids = compact.tokenize("0 down 4 down hole reset 0 left 0 left limit reset 0 down 4")
found = compact.decisions(ids[None])  # a batch of one history
for name, values in found._asdict().items():
    print(f"{name:10s} {values[found.valid].tolist()}")

# %% [markdown]
# Read the columns. At position 0 the agent went down (1) and nothing ended, so the next decision, at position 2, tells
# what this was worth. At 2 it went down again, died, and the episode *terminated*. At 6 and 8 it ran against the wall;
# the second time the clock was stopped. At 12 it went down. `has_target` is False at 8 and 12. Why? Exercise 3 asks
# you.
#
# ## Exercise 1: one move on the ice
#
# *Difficulty: easy. About 10 minutes.*
#
# Where does a move lead, on ice without holes and goals? Actions are numbered 0 left, 1 down, 2 right, 3 up.
# At the edge of the lake the agent stays where it is.


# %% tags=["exercise"]
def next_tile(tile: int, action: int, height: int, width: int) -> int:
    """The tile after one move."""
    raise NotImplementedError


# %% tags=["check"]
from icrl_utils.course import checks

checks.check_next_tile(next_tile)


# %% tags=["solution"]
def next_tile(tile: int, action: int, height: int, width: int) -> int:
    row, column = divmod(tile, width)
    row += (0, 1, 0, -1)[action]
    column += (-1, 0, 1, 0)[action]
    inside = 0 <= row < height and 0 <= column < width
    return row * width + column if inside else tile


# %% [markdown]
# ## Exercise 2: where is Q read?
#
# *Difficulty: easy. About 5 minutes.*
#
# The set $\mathcal{D}$ above, in plain Python, for a list of compact words that may begin and end anywhere. Being one
# position off here is the classic mistake: the code runs, the loss falls, and the agent learns to name the move that it
# has already made.


# %% tags=["exercise"]
def decision_positions(words: list[str]) -> list[int]:
    """The positions at which the four action logits are read, in rising order."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_decision_positions(decision_positions)


# %% tags=["solution"]
def decision_positions(words: list[str]) -> list[int]:
    actions = {"left", "down", "right", "up"}
    return [t for t in range(len(words) - 1) if words[t + 1] in actions]


# %% [markdown]
# ## Exercise 3: what can be learned from a decision?
#
# *Difficulty: medium. About 20 minutes. It is the door to notebook 03.*
#
# Q-learning compares $Q$ at a decision with a *target*: the reward, plus what the next decision is worth. Answer for
# each decision of a list of words, in their order:
#
# - `"reward"`: the episode ended there, by goal or hole. The target is the reward alone.
# - `"next"`: the next decision is in the text. The target is the reward (0) plus a share of its value.
# - `"nothing"`: no target can be made.


# %% tags=["exercise"]
def learn_from(words: list[str]) -> list[str]:
    """For each decision: "reward", "next" or "nothing"."""
    raise NotImplementedError


# %% tags=["check"]
checks.check_learn_from(learn_from)


# %% tags=["solution"]
def learn_from(words: list[str]) -> list[str]:
    actions = {"left", "down", "right", "up"}
    answers = []
    for t in range(len(words) - 1):
        if words[t + 1] in actions:
            came, then = (words[t + 2 : t + 4] + ["", ""])[:2]  # what came of it, and the word after that
            ended = came in ("goal", "hole")
            answers.append("reward" if ended else "next" if came.isdecimal() and then in actions else "nothing")
    return answers


# %% [markdown]
# ## Recap
#
# - Lakes are drawn by a law with rejection; about one candidate in twenty is kept. Held-out lakes are never trained on.
# - A tile number is an observation, not a state. The best table for all lakes reaches less than a third of the goals,
#   and only with dice: its argmax does worse than a die. The **history** is the state.
# - Compact: two tokens a step, every row the same length. Paper: about ten, in the language of a chat model. Both are
#   read back exactly.
# - Q is read at decisions: the position *before* an action word. After a truncation nothing can be learned from the
#   cut step; after a goal or a hole the reward is all there is.
#
# **Questions.** Answer before you unfold.
#
# 1. Would the table do better if it could see the width of the lake as well as the tile number?
# 2. The compact text does not name the tile on which an episode ended. What does a reader lose?
# 3. Two players have the same success. One writes 14 tokens an episode, the other 70. Name two costs of the longer one.
#
# <details><summary>Answers</summary>
#
# 1. A little: tile and width give the row and the column, so it would know where it is and where no wall can be. Holes
#    and goals would still be unknown. Stretch: train one table for each width, and measure how much.
# 2. Nothing that it can use: the edge (tile, action) that led there is in the text, and the episode is over. It cannot
#    tell whether two edges lead into the same hole.
# 3. Memory and time of the model grow with the number of tokens, and the context is full after fewer episodes: what is
#    dropped cannot be learned from.
#
# </details>
#
# ## Further reading
#
# - Gymnasium's [FrozenLake](https://gymnasium.farama.org/environments/toy_text/frozen_lake/), whose rules are ours.
# - Kaelbling, Littman and Cassandra, *Planning and acting in partially observable stochastic domains* (1998): why a
#   history, or a belief computed from it, is a state.
# - Pardo et al., *Time Limits in Reinforcement Learning*, [arXiv 1712.00378](https://arxiv.org/abs/1712.00378): why a
#   time limit is not the end of the game.
# - [arXiv 2501.14176](https://arxiv.org/abs/2501.14176) and its released code: where the paper's format comes from.
#
# Next: [02, how do four logits become Q-values?](02_q_values_from_logits.ipynb)
