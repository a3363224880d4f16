# %% [markdown]
# # 05 · Can a real language model do it?
#
# ![A history in words, and branches of one word each behind it](../assets/figures/notebook_05.png)
#
# So far the Llama was ours, pretrained on lakes and nothing else. The claim of this course is about *language models*.
# So here is one: SmolLM2, 135 million weights, pretrained on two trillion tokens of text by people who never thought
# of lakes. **What does it bring, and what does reinforcement learning have to add?**
#
# | | |
# | --- | --- |
# | **Goals** | a game in a language model's own words; values after an action; what pretraining brings and lacks |
# | **Prerequisites** | notebooks 03 and 04 |
# | **Reading** | 40 minutes |
# | **Exercises** | 45 minutes |
# | **Run time** | smoke 1 min · cpu 1 min; 12 min with SmolLM2 (10 of them training and play) |
# | **Peak memory** | 5 GB with the weights, 2 GB without |
# | **Downloads** | none needed; `make language-model` fetches SmolLM2 (98 MB, Apache 2.0) |

# %%
import csv
import gc
import json
import shutil

import numpy as np
import torch
from transformers import AutoTokenizer

# %%
from icrl_utils import HistoryFormat, development_maps, get_profile, load_agent, rollout
from icrl_utils.course import checks
from icrl_utils.evaluation import experiments, language_model
from icrl_utils.history.words import Words
from icrl_utils.paths import ASSETS, BUILD, LANGUAGE_MODEL
from icrl_utils.play.baselines import RandomPolicy, TabularPolicy
from icrl_utils.plots.curves import plot_learning_curves
from icrl_utils.plots.values import plot_lines
from icrl_utils.profiles import PROFILES
from icrl_utils.statistics import interval, repeat_deaths

# %%
real = get_profile()  # of the last part; the first is about SmolLM2 on every machine
small = real.name == "smoke"
weights = (LANGUAGE_MODEL / "config.json").exists() and not small
base = LANGUAGE_MODEL if weights else ASSETS / "tiny-llama"
compact = HistoryFormat("compact")
stand_in = "The weights of SmolLM2 are not used here (make language-model). Cells that need them run on the tiny Llama,"
print("SmolLM2" if weights else f"{stand_in} which proves the code; figures about SmolLM2 come from files.")

# %% [markdown]
# ## 1 · A lake as a story
#
# The tiny Llama has a word for each tile. A real tokenizer has not: in the `paper` text a step is ten tokens with
# Llama 3 and more with a tokenizer that splits numbers into digits. But it has thousands of whole English words. So we
# *name* the tiles:

# %%
words = Words(AutoTokenizer.from_pretrained(base))
dictionary = words.dictionary(np.random.default_rng(7))
ids = compact.tokenize("8 left 8 down goal reset 8 right 9 down hole reset 8")
print(words.text(ids, dictionary))

# %% [markdown]
# Every word is one token of the model's own vocabulary, two a step, the same stride for every row: rollouts in
# lock-step and the search for decisions work as in `compact`, on the same ids; a *dictionary* of 72 tokens translates.
# It is drawn anew for every history. Where "river" was a hole a minute ago it is the goal now, so no weight can
# remember it: only the history tells. (Code: `history/words.py`; tests: `tests/history/test_words.py`.)
#
# What does a step cost in each text?

# %%
from icrl_utils.history.tokenizers import make_paper_tokenizer

lakes = development_maps("in_distribution")[:8]
played = rollout(RandomPolicy(), lakes, "paper", seed=1)
steps = played.steps.sum()
paper = {"paper, Llama 3's way": HistoryFormat("paper", make_paper_tokenizer())}
if weights:
    paper["paper, SmolLM2"] = HistoryFormat("paper", AutoTokenizer.from_pretrained(base))
for name, text in (paper | {"its own words": compact}).items():
    tokens = sum(len(text.tokenize(text.render(played.episodes(row)))) for row in range(len(lakes)))
    print(f"{name:22s}{tokens / steps:5.1f} tokens a step, resets and ends included")

# %% [markdown]
# ## 2 · Before any training
#
# **Guess first:** show SmolLM2 a history in which *apple, down* has led into a hole, and ask what follows when *apple,
# down* comes again. It has never seen a lake. How often is it right: as good as never, every second time, nearly
# always? And a twin with the same architecture and random weights?
#
# <details><summary>Then look</summary>
#
# More than half of the time, against as good as never. Continuing a pattern that the context has shown is called
# *induction*; language models learn it because texts repeat themselves. It fades with distance and grows with
# repetition, and it is weaker for *hole* than for *goal*.
# </details>

# %%
zero_shot = experiments.read_table(experiments.results_path("zero_shot"))
experiments.plot_experiment(zero_shot, "zero_shot")

# %% [markdown]
# From file: `python -m icrl_utils evaluate zero_shot --write` remakes it. 48 histories of 384 tokens on training lakes;
# intervals over histories. The last panel is the one to remember: the **log-odds of the word goal against the word
# hole**, read behind an action. Where the history has shown that this move reaches the goal they are high, where it has
# shown a hole they are low. Nobody trained that. It is a value function of one step, for free.
#
# ## 3 · Read the value after the action
#
# In notebooks 02 to 04 four logits are read *before* the move, at the tile. For that the network has to look up four
# outcomes at once, a thing that language modelling never asked of it. Behind the action word it only has to go on with
# a text. So here is the other read-out:
#
# $$Q(h, a) = \sigma\big(\beta\,[\ell_{goal}(h\,a) - \ell_{hole}(h\,a)] - c\big)$$
#
# where $\ell_v(h\,a)$ is the logit of the word $v$ behind the history $h$ and the word of the action $a$; $\beta = ½$
# and $c = 2$. It costs more at play: each step appends what happened and *tries* all words that can follow. (Code:
# `readout.OddsReadout`, `words_agent.WordsAgent`; tests: `test_the_read_out_is_the_log_odds_of_goal_against_hole`,
# `test_cached_play_equals_reading_everything_again`.)
#
# ### Exercise 1 · The read-out (easy, 10 minutes)


# %% tags=["exercise"]
def value_after_action(logits, goal, hole, scale, offset):
    """float tensor [4]: Q of the four moves.

    logits [4, V]: next-token logits, row a behind the word of move a. goal, hole: tokens of the two words.
    """
    raise NotImplementedError


# %% tags=["check"]
checks.check_value_after_action(value_after_action)


# %% tags=["solution"]
def value_after_action(logits, goal, hole, scale, offset):
    odds = logits[:, goal] - logits[:, hole]
    return torch.sigmoid(scale * odds - offset)


# %% [markdown]
# ## 4 · Branches
#
# A TD target needs the largest value at the *next* decision, over four moves. One of them was made and stands in the
# history. The other three do not. They are asked as **branches**: one word each, which continues the history behind
# that tile, sees everything up to there and no other branch. One forward pass serves the history and all its branches,
# and no gradient flows through them: they are targets. (Code: `dqn/branches.py`, `frozen.FrozenLlama.branched`; test:
# `test_a_branch_is_the_next_token_of_the_history_up_to_there`.)
#
# ### Exercise 2 · What has to be asked? (medium, 15 minutes)


# %% tags=["exercise"]
def moves_to_ask(tiles, actions, begins):
    """For each decision the set of moves (0 to 3) that need a branch there, so that the decision *before* it has a
    target.

    tiles[d]: where decision d is taken; actions[d]: the move that was made; begins[d]: d begins an episode. After a
    move that led nowhere the consistent backup (notebook 03) wants the value of the same move again, nothing else.
    """
    raise NotImplementedError


# %% tags=["check"]
checks.check_moves_to_ask(moves_to_ask)


# %% tags=["solution"]
def moves_to_ask(tiles, actions, begins):
    asked = []
    for d, made in enumerate(actions):
        led_nowhere = not begins[d] and tiles[d] == tiles[d - 1]
        wanted = set() if begins[d] else {actions[d - 1]} if led_nowhere else {0, 1, 2, 3}
        asked.append(wanted - {made})
    return asked


# %% [markdown]
# ### A goal that is felt several moves before
#
# A one-step target moves the value of a goal back by one decision an update. Every update of this model costs seconds,
# so we let a target reach further, **as long as the moves that follow were greedy** (Watkins' Q(λ)):
#
# $$y_d = r_d + \gamma\big[(1-\lambda)\max_a Q(h_{d+1}, a) + \lambda\,y_{d+1}\big]$$
#
# where the move at $d+1$ was the best one there, and the one-step target elsewhere. Behind the first bad move nothing
# is believed, so it stays right for data of any quality. $\lambda = 0.9$.
#
# ### Exercise 3 · The trace (hard, 20 minutes)


# %% tags=["exercise"]
def trace_targets(reward, ended, value, greedy, gamma, trace):
    """float tensor [D]: the targets of D decisions in order.

    ended [D]: the move ended the episode (the last one always does). value [D]: max over a of Q at decision d.
    greedy [D]: the move made at d is the best one there. Work backwards.
    """
    raise NotImplementedError


# %% tags=["check"]
checks.check_trace_targets(trace_targets)


# %% tags=["solution"]
def trace_targets(reward, ended, value, greedy, gamma, trace):
    y = reward.clone()
    for d in range(len(y) - 2, -1, -1):
        if not ended[d]:
            follows = (1 - trace) * value[d + 1] + trace * y[d + 1] if greedy[d + 1] else value[d + 1]
            y[d] = reward[d] + gamma * follows
    return y


# %% [markdown]
# ## 5 · Two stages, one adapter, live
#
# The base stays frozen; LoRA of rank 16 on all seven projections of all layers learns. **Stage one**, 16 updates:
# predict behind every action word what the history has shown. **Stage two**, double DQN as above, with a tenth of
# stage one's loss beside it. There is no second network: targets come from the online network's own branches, without
# gradient, and what *plays* is a Polyak average of the adapter. We tried a target network as well; it cost 1.2 times
# the time and learned no better (lab book).
#
# What makes it cheap: products in bfloat16 where the processor has it; hidden states and the head only at decisions,
# for the 66 words in play instead of 49,152; branches without gradient, and only half of the decisions asked. `python
# -m icrl_utils bench language-model` compares with the straightforward way in the same run.

# %%
from icrl_utils.training.configs import FinetuneConfig
from icrl_utils.training.finetuning import finetune
from icrl_utils.training.folder import read_log

size = {"base": str(base), "slice_tokens": 384, "stretch": 1, "seed": 1, "eval_every": 10_000}
look = {"eval_maps": 24, "eval_step_limit": 40, "log_every": 8}
if not weights:  # a few updates of the tiny Llama: the code, not the result
    size |= {"slice_tokens": 96, "rank": 4}
    look |= {"eval_maps": 2, "eval_step_limit": 5, "log_every": 2}
live = BUILD / "notebook-05" / "live"
shutil.rmtree(live, ignore_errors=True)
config = FinetuneConfig(out=str(live), steps=216 if weights else 8, stage_one=16 if weights else 4, **size, **look)
print(f"{config.steps} updates of {config.slices} x {config.slice_tokens} tokens")

# %%
folder = finetune(config, resume=True)  # interrupted? run this cell again: it goes on

# %%
def read_log(folder):
    with (folder / "train_log.csv").open() as file:
        return list(csv.DictReader(file))


def curve(rows, column):
    found = [(float(row["tokens"]), float(row[column])) for row in rows if row.get(column)]
    return tuple(np.array(found).reshape(-1, 2).T)


columns = {"seen_accuracy": "right about seen moves", "q_seen_hole": "Q of seen holes",
           "q_seen_goal": "Q of seen goals", "q_wall": "Q of walls"}  # fmt: skip
runs = {"live, this machine": folder, "the shipped run": language_model.SHIPPED}
panels = {name: {label: curve(read_log(run), key) for key, label in columns.items()} for name, run in runs.items()}
plot_lines(panels, "tokens", "", log="x", ylim=(-0.02, 1.02), title="Update by update")

# %% [markdown]
# Stage one is over in a moment: what language pretraining has begun needs a dozen updates. Then holes and goals part,
# and last the walls learn that they are worth nothing, which is what ends circles.
#
# ## 6 · Does it play?
#
# Same lakes, same starts, same forced moves for all. **Guess:** after so few updates, is it ahead of tabular
# Q-learning, which has the same episodes and nothing else?

# %%
agent = load_agent(folder, name="SmolLM2, live" if weights else "tiny Llama, a few updates")
lakes = development_maps("in_distribution")[: 24 if weights else 3]
limit = 40 if weights else 8
players = [agent, TabularPolicy(), RandomPolicy()]
records = {p.name: rollout(p, lakes, "paper", seed=1, step_limit=limit, progress=True) for p in players}
for name, r in records.items():
    last = interval(r.success[:, -10:].mean(1))
    again = repeat_deaths(r.tiles, r.actions, r.steps, r.outcome == 2)[:, -10:].mean()
    print(f"{name:28s}last ten {last.estimate:.2f} [{last.low:.2f}, {last.high:.2f}]  repeated deaths {again:.3f}")

# %%
run_facts = json.loads((folder / "run.json").read_text())
title = f"{len(lakes)} development lakes, step limit {limit}, live, {run_facts['seconds'] / 60:.1f} minutes of training"
plot_learning_curves(records, title=title)

# %% [markdown]
# ### The shipped run, on held-out lakes
#
# The same command, more updates: `python -m icrl_utils finetune`. Its adapter is `assets/adapters/smollm2-dqn`, its
# machine, hours and tokens stand in `run.json`:

# %%
shipped = json.loads((language_model.SHIPPED / "run.json").read_text())
print(f"{shipped['tokens']:,} tokens in {shipped['seconds'] / 3600:.1f} hours on {shipped['device']}")
results = experiments.read_table(experiments.results_path("language_model"))
experiments.plot_experiment(results, "language_model")

# %%
print(experiments.describe_settings(results))

# %% [markdown]
# From file (`python -m icrl_utils evaluate language_model --write`): held-out lakes, step limit 100, one training seed,
# so the intervals are over lakes and say nothing about other runs. The slow players (untouched, stage one only,
# memory-less) play fewer lakes, of the first setting only. Read it in this order:
#
# - **untouched.** Obeyed as it is, it succeeds in about half of its last ten episodes, as often as tabular Q-learning,
#   and nobody has ever trained it on a lake. But it dies again where it has died before in a fifth of its episodes.
# - **stage one.** Better predictions alone make no better player (a trial on development lakes: lab book, section 10):
#   it knows what it has seen, and that is not yet a reason to go anywhere. DQN makes the difference.
# - **with and without memory.** The same weights, the context cleared at every episode: .29 instead of .998.
# - **SmolLM2 and the tiny Llama.** They succeed equally often, SmolLM2 with 1.0 million tokens of training instead of
#   15 (and 18 of pretraining). On larger lakes both are behind R-max; what fails there are circles, not deaths. But
#   SmolLM2 knows the way better: .60 of its successes there are shortest paths, against .38. Read after the move, there
#   is depth left to look where the next tile leads.
#
# ## 7 · What is language pretraining worth?
#
# The same command at equal *transitions*, a step being two tokens for all: SmolLM2, a twin of its architecture with
# **random weights**, and the **tiny Llama** with this read-out. **Guess** who learns: the twin has 160 times as many
# weights as the tiny Llama, and knows nothing at all.

# %%
runs = {"SmolLM2": "worth-smollm2", "random weights": "worth-random", "tiny Llama": "worth-tiny"}
folders = {name: ASSETS / "runs" / run for name, run in runs.items()}
titles = {"seen_accuracy": "right about seen moves", "q_seen_hole": "Q of seen holes", "q_seen_goal": "Q of seen goals"}
panels = {t: {name: curve(read_log(f), c) for name, f in folders.items()} for c, t in titles.items()}
plot_lines(panels, "tokens", "", log="x", ylim=(-0.02, 1.02), title="One seed each, 166 thousand tokens")

# %%
for name, run in folders.items():
    print(f"{name:15s}last ten on 24 development lakes, limit 40: {float(read_log(run)[-1]['success_last']):.2f}")

# %% [markdown]
# The logs are shipped (`assets/runs`), with the command that makes each in its `run.json`; the adapters are not. An
# architecture without pretraining learns nothing in this time. What SmolLM2 got from two trillion tokens of text and
# the tiny Llama from eighteen million tokens of random play is the same thing, looking up what the context has shown,
# and that is what DQN builds on. And look at the tiny Llama: read before the move it needed *millions* of tokens to get
# where it is here (notebook 04). **The read-out decides**, at every size.

# %% [markdown]
# ## 8 · One GPU: up to Llama 3.1 8B
#
# The paper's model is sixty times larger and reads the paper's text: `train` of notebook 04 with `--history paper`,
# four logits before the move, a base in 4 bits, two adapters. What changes is what it takes to *fit*.
#
# **What you see below.** Without a GPU (profiles `smoke` and `cpu`) the calls are made on a random Llama of a quarter
# of a million weights, saved as Llama 3 is: that proves the code, and no success rate there means anything. In the
# profiles `t4` and `full` the very same cells load a real one.
#
# **What we have not run:** these cells on Colab or on a T4, DQN training of 8 billion weights, and the read-out of
# section 3 in the paper's text. No figure in this half comes from any of them.

# %%
from icrl_utils.llama.adapters import TARGET, add_adapters
from icrl_utils.llama.agent import Agent
from icrl_utils.llama.load import load_history, load_llama, save_small_llama
from icrl_utils.llama.readout import QReadout

is_real = real.history == "paper"
checkpoint = real.base_path if is_real else save_small_llama(BUILD / "notebook-05" / "small-llama")
device = None if is_real else "cpu"  # None: the GPU

# %% [markdown]
# The default of `t4` is SmolLM2-135M, since it is what we have run; `--base HuggingFaceTB/SmolLM2-360M-Instruct` is a
# size larger. Neither is gated, and neither knows Llama 3's header tokens: they get the same messages as lines of plain
# text. To take **Meta's Llama** instead, accept its licence on the model's page, run `hf auth login`, and put its name
# into the cell above, for example `checkpoint = "meta-llama/Llama-3.2-1B-Instruct"`. Gated weights, a checkpoint that
# is no Llama, a tokenizer that splits an action word: all are refused by a message before any weights are downloaded.

# %% [markdown]
# ## 9 · A base in four bits
#
# NF4 (Dettmers et al. 2023) replaces each weight of the projections by the nearest of 16 levels, which lie at the
# quantiles of a normal distribution because weights look like one. 64 weights share a scale, and the scales are
# quantized too: 0.52 bytes a weight instead of 2. At every product a matrix is written out in the compute dtype and
# thrown away again. That is affordable because nobody updates it: what learns are the two adapters, in float32.

# %%
text = load_history(checkpoint, "paper")
model = add_adapters(load_llama(checkpoint, "nf4", device), rank=8)
sizes_of = {}
for name, parameter in model.named_parameters():
    part_of = "target" if TARGET in name else "online" if "lora" in name else "base"
    key = part_of, str(parameter.dtype).removeprefix("torch.")
    sizes_of[key] = sizes_of.get(key, 0) + parameter.nbytes
for (part_of, dtype), size in sizes_of.items():
    print(f"{part_of:8s}{dtype:10s}{size / 1e6:10.3f} MB")

# %% [markdown]
# uint8 are the projections, two weights to a byte; embedding, norms and head keep the compute dtype. That is bfloat16
# from Ampere on. A **T4 has none** and only emulates it (which `torch.cuda.is_bf16_supported()` calls supported), so it
# computes in float16, whose range is a problem: gradients are small, and below $3 \cdot 10^{-8}$ there is only zero.
# Hence *loss scaling*: multiply the loss, and with it every gradient, by a large number, and divide it out again in
# float32, before the update. `train` does this where the GPU has no bfloat16 (`hardware.resolve_precision`).
#
# How does a history look to this model, and where is Q read?

# %%
from icrl_utils.history.episodes import Episode

past = text.render([Episode((8, 9, 13), (2, 1), "hole"), Episode((8,), ())])
ids = text.tokenize(past)
print(past, f"\n\n{len(ids)} tokens; decisions at", text.decisions(ids[None]).position[0, :2], "and at the end")
player = Agent(model, text, QReadout(offset=0.0))
print("z of left, down, right, up:", player.read(ids).round(1))

# %% [markdown]
# The level of these logits depends on the checkpoint: in the paper's Llama it seems to be near +22. Returns lie in [0,
# 1], so our recipe first measures the mean at the decisions of one slice and counts the read-out's offset from there
# (`centred`).

# %% [markdown]
# ## 10 · The memory plan
#
# Every term can be computed from shapes, before a download (`llama/memory.py`, one formula a property; test:
# `test_prediction_is_within_a_tenth_of_the_measured_peak`, on the CPU). Five slices of 4,096 tokens at once, as in the
# paper, with LoRA on Llama 3.1 8B in bfloat16:

# %%
from icrl_utils.llama.memory import GIB, plan

llama = "meta-llama/Llama-3.1-8B-Instruct"
print(plan(llama, slices=5, maps=8).table())

# %% [markdown]
# Most of it are activations, not weights. So the **out-of-memory ladder** begins there, with what costs least:
#
# 1. *Micro-batches*: forward and backward on a few slices at a time. The gradients add up, the update is the same
#    (`test_micro_batches_and_checkpointing_make_the_update_of_the_whole_batch`).
# 2. *Activation checkpointing*: keep the input of each layer only, and compute the layer again in the backward pass. It
#    costs one more forward pass. With two adapters on one base there is a trap: the second computation uses the adapter
#    that is active *then* (`test_backward_with_the_target_active_is_refused`).
# 3. Then fewer maps at once, 4 bits, shorter slices (a shorter memory!), a smaller rank, a smaller model.

# %%
for measure, rung in plan(llama, slices=5, maps=8).ladder():
    print(f"{rung.peak / GIB:8.1f} GiB with {measure}")

# %% [markdown]
# Each line keeps what the lines before it gave up. `train` makes the plan for your GPU by itself, *before* weights are
# loaded, and where it does not fit, the message says which rung does. If the plan fits and memory runs out all the
# same, something else sits on the GPU: restart the kernel, look at `nvidia-smi`. A T4 has 14.6 GiB:

# %%
from icrl_utils.llama.memory import check_memory

try:
    check_memory(plan(llama, slices=5, maps=8, dtype=torch.float16), int(14.6 * GIB))
except ValueError as error:
    print(str(error).splitlines()[0], str(error).splitlines()[-1], sep="\n...\n")

# %% [markdown]
# ## 11 · Two recipes
#
# `--recipe paper` sets what the paper and its code say, one by one (`test_the_papers_recipe_setting_by_setting`);
# `ours`, the default, carries over what has worked on the tiny Llama. Where they differ:

# %%
from icrl_utils.training.configs import UNLIKE_THE_PAPER, recipe_table, train_options

print(f"{'setting':24s}{'paper':>12s}{'ours':>12s}")
for row in recipe_table():
    if row["paper"] != row["ours"]:
        print(f"{row['setting']:24s}{row['paper']:>12s}{row['ours']:>12s}")
print("\nWhere --recipe paper leaves the paper on purpose:", *UNLIKE_THE_PAPER, sep="\n- ")

# %% [markdown]
# Read `ours` as a proposal: **we have not trained it at 8 billion weights.** The auxiliary loss and the permuted tile
# numbers of the tiny Llama are missing in both columns; they need histories where a tile is one token.

# %% [markdown]
# ## 12 · Train
#
# The options of a profile, and then `train`, as in notebook 04. The same on the command line: `python -m icrl_utils
# train --profile t4 --out build/t4`, with `--resume` after an interruption (on Colab let `out` lie on a mounted Google
# Drive: its own disk goes with the session), and `accelerate launch -m icrl_utils train ...` for several GPUs.

# %%
from dataclasses import replace

from icrl_utils.training.configs import TrainConfig
from icrl_utils.training.training import train

quick = {"device": "cpu", "steps_per_chunk": 2, "log_every": 1, "eval_maps": 1, "eval_step_limit": 2}
little = replace(PROFILES["t4"], base=str(checkpoint), slices=2, slice_tokens=256, train_tokens=4 * 512)
options = train_options(real) | {"base": checkpoint} if is_real else train_options(little) | quick
out = BUILD / "notebook-05" / f"real-{real.name}"
config = TrainConfig(**options | {"minutes": real.train_minutes, "out": str(out)})
print(f"{config.steps} steps of {config.slices} x {config.slice_tokens:,} tokens, in parts of {config.micro_tokens:,}")

# %%
model = player = None  # beside the model in training a GPU may have no room for a second one
gc.collect()
folder = train(config, resume=True)  # goes on where this cell was stopped before, in this session or an earlier one
print(*(f"{row['step']:>5s} TD error {float(row['td_error']):.3f}" for row in read_log(folder)[-3:]), sep="\n")
facts = json.loads((folder / "run.json").read_text())
print("base in", facts["quantization"], "· precision", facts["precision"], "· read-out", facts["readout"])

# %% [markdown]
# The folder has the same files as every adapter of the course, and the same call makes an agent of it. The base stays
# in 4 bits; the adapter is *not* merged into it, because the sum would be rounded to 16 levels again.

# %%
players = {"agent": load_agent(folder, device=device), "random": RandomPolicy()}
some, most = (8, 100) if is_real else (2, 4)  # lakes, moves an episode
for name, player in players.items():
    played = rollout(player, development_maps("in_distribution", some), "paper", seed=1, step_limit=most)
    print(f"{name:8s} success in the last ten episodes {played.success[:, -10:].mean():.2f}")

# %% [markdown]
# The adapter is an ordinary peft adapter: `PeftModel.from_pretrained(base, folder).push_to_hub("you/frozen-lake")`
# shares it, and nothing in the course needs the Hub. Send `run.json` along: it holds the read-out, without which logits
# are not Q-values.

# %% [markdown]
# ## Recap
#
# - A game becomes text in a model's own words: one token a word, named anew in every history.
# - Language pretraining brings *induction*: it expects again what the context has shown. It brings no wish to go
#   anywhere.
# - Read behind the action, a value is the odds of *goal* against *hole*. A dozen updates sharpen what is known, a few
#   hundred of DQN make an agent of it.
# - Branches ask what was not done, without gradient; a trace carries a goal back along greedy moves.
# - What is not computed is what makes it fast: other words of the vocabulary, gradients of targets, layers twice.
# - Shapes alone tell whether a larger model fits.
#
# **Questions.** Why are the words of tiles drawn anew for every history, and what would happen if they were not? Why
# may the trace not go on behind a move that was not greedy? What does stage one alone lack?
#
# <details><summary>Answers</summary>
#
# With fixed words the adapter could learn what *river* is worth on the lakes of training; memory in weights would look
# like learning in context, and fail on the first lake that differs. The moves behind a bad one say what *that* play is
# worth, not the best. Stage one knows what every seen move leads to, one step ahead; a value says which of two harmless
# moves is nearer to the goal.
# </details>
#
# **Next:** notebook 06 asks how good the tiny agent is: larger and changing lakes, stitching, honest baselines.
#
# ## Further reading
# - Ben Allal et al. 2025, *SmolLM2: when Smol goes big*, arXiv 2502.02737.
# - Olsson et al. 2022, *In-context learning and induction heads*, arXiv 2209.11895.
# - Watkins 1989, *Learning from delayed rewards*, and Sutton and Barto, *Reinforcement learning*, section 12.10.
# - Hu et al. 2021, *LoRA*, arXiv 2106.09685. Dettmers et al. 2023, *QLoRA*, arXiv 2305.14314.
# - Rentschler and Roberts 2025, arXiv 2501.14176, whose claim this notebook tests.
