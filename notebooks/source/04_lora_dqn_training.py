# %% [markdown]
# # 04 · How does a pretrained model become an in-context learner?
#
# ![A frozen stack of layers with small trainable matrices beside each layer](../assets/figures/notebook_04.png)
#
# The base model knows how lakes *work*. It has never been told what is worth doing on them. We leave every one of its
# weights as it is, add a small adapter, and train that with the DQN of notebook 03. **Is that enough to turn a model of
# the world into an agent that learns a new lake while it plays?**
#
# | | |
# | --- | --- |
# | **Goals** | know what the base knows; LoRA and IA3; the training loop line by line; train an agent, live |
# | **Prerequisites** | notebooks 02 and 03; what a matrix rank is |
# | **Reading** | 35 minutes |
# | **Exercises** | 25 minutes |
# | **Run time** | smoke 40 s · cpu 11 min on two cores, 9 of them training (bounded by the clock) |
# | **Peak memory** | 2 GB |
# | **Downloads** | none |

# %%
import csv
import json
import shutil

import numpy as np
import torch

# %%
from icrl_utils import HistoryFormat, development_maps, get_profile, load_agent, rollout
from icrl_utils.course import checks
from icrl_utils.history.episodes import GOAL, HOLE, LIMIT
from icrl_utils.llama.agent import Agent
from icrl_utils.paths import ASSETS, BUILD
from icrl_utils.play.baselines import RandomPolicy
from icrl_utils.plots.curves import plot_learning_curves
from icrl_utils.plots.values import plot_calibration, plot_lines, plot_training_log
from icrl_utils.profiles import PROFILES
from icrl_utils.statistics import interval

profile = get_profile()
profile = profile if profile.history == "compact" else PROFILES["cpu"]  # this notebook is about the tiny Llama
small = profile.name == "smoke"
history = HistoryFormat("compact")


# %% [markdown]
# ## 1 · What the base knows, and what it does not
#
# `assets/tiny-llama` is a Llama with the architecture of its large relatives and few weights. It was trained from
# scratch on transcripts of *purely random* play on lakes of 2 to 8 tiles width, with two questions. **After** each
# action word: what is observed next? And **before** each move, at the tile: what would each of the four moves lead to,
# as far as the transcript has shown it? (The second question is read off by rows of its own, which are thrown away
# when pretraining ends.) Action words carried no loss, so it was never even asked what a player would do.
#
# Why the second question? Q is read *before* the move, for four moves at once. A base that has only ever answered the
# first question has the knowledge, but not there where it is needed, and DQN has to move it. In our trials that took
# 3.5 million tokens, against less than 1 million for a base that was asked both (`training/world_model.py`; tests:
# `tests/training/test_world_model.py`).


# %%
def read_log(folder, name="train_log.csv"):
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


# %%
from icrl_utils.llama.adapters import add_adapters
from icrl_utils.llama.load import load_base, parameter_count

tiny = ASSETS / "tiny-llama"
base = load_base(profile.base_path)
print(f"{parameter_count(base):,} weights, {base.config.num_hidden_layers} layers, width {base.config.hidden_size}")
for stage, name in {"first": "first_stage.json", "second": "run.json"}.items():
    facts = json.loads((tiny / name).read_text())
    print(f"{stage} stage: {facts['tokens'] / 1e6:.1f} million tokens in {facts['seconds'] / 60:.0f} minutes")
plot_training_log(read_log(tiny, "first_stage_log.csv"), title="The shipped base: first stage of pretraining")

# %% [markdown]
# The right panel is an exam in *in-context* knowledge. On a lake that the model has never seen, after random play, it
# is asked what follows a pair (tile, action) that has occurred before in the same text, once after the action word and
# once before it. Lakes do not slip, so somebody who looks the pair up is always right; somebody who only knows lakes in
# general is not. Both curves begin where general knowledge carries, a little above one half, and then rise to 1,
# between 1.3 and 4 million tokens for the first question and 5 for the second: a look-up needs several parts (where was
# I, what did I do, what came then), and none of them helps before the others are there.
#
# In that first stage no transcript was longer than 640 tokens, some ten episodes, and the look-up learned just that: in
# histories of 2,560 tokens this base was right only every other time, and agents on it died where they had died before
# (lab book, section 4). So a second, short stage went on with slices of 640 and of 3,200 tokens in turns, and with
# rotary positions that turn more slowly (`rope_theta` 500,000, as Llama 3 has it). Let us hold the first exam here, on
# development lakes, by length:

# %%
from icrl_utils.dqn.replay import make_batch
from icrl_utils.training.configs import PretrainConfig
from icrl_utils.training.pretraining import development_transcripts
from icrl_utils.training.world_model import seen_pair_accuracy

for tokens in (128, 256) if small else (640, 1_280, 2_560):
    exam = development_transcripts(PretrainConfig(slice_tokens=tokens), history, n=8 if small else 20_480 // tokens)
    accuracy, pairs = seen_pair_accuracy(base, make_batch(exam.numpy(), history), torch.as_tensor(history.action_ids))
    print(f"{tokens:5,} tokens: right on {accuracy:.2%} of {pairs:,} pairs that were seen before in the same history")

# %% [markdown]
# ## 2 · The naive way: let the base play
#
# A model that looks up what happened after (8, down) knows that this was a hole. Is it not an agent already? Let us
# read its action logits as values and play greedily, in the protocol of the paper: in the first twenty episodes of a
# lake some moves are forced to be random, which fills the context with experience, in the last ten none.

# %%
from icrl_utils.llama.readout import QNetwork, QReadout

lakes, limit = development_maps("in_distribution", 64)[: profile.maps], 20 if small else 100  # moves an episode
readout = QReadout("sigmoid", scale=1.0, offset=1.0)
players = {"base": Agent(base, history, readout, name="base"), "random": RandomPolicy()}
records = {name: rollout(player, lakes, "paper", seed=1, step_limit=limit) for name, player in players.items()}
plot_learning_curves(records, title="The base knows lakes, but not what to want", resamples=profile.bootstrap)

# %% [markdown]
# Worse than a die, once it may decide alone: an argmax of meaningless numbers is a habit, and habits run in circles
# until the step limit. Knowledge of the world is not knowledge of what is good. Only reward can tell that, and it has
# to get into the weights somehow.

# %% [markdown]
# ## 3 · The idea: small changes to frozen weights
#
# **LoRA** (Hu et al. 2021) leaves a weight matrix $W$ ($m \times n$) alone and adds a product of two thin ones, times a
# constant (here $\alpha / r = 2$; this $\alpha$ is not Polyak's),
#
# $$h = W x + \frac{\alpha}{r}\, B A\, x,\qquad A \in \mathbb{R}^{r\times n},\ B \in \mathbb{R}^{m\times r}.$$
#
# $B$ starts at zero, so training starts exactly at the base. **IA3** (Liu et al. 2022), which the paper uses, is
# thinner still: it learns one factor for each output of the key and value projections and for each input of the down
# projection, $h = \ell \odot (W x)$ or $h = W (\ell \odot x)$, starting at 1.
#
# (Code: `adapters.add_adapters`, which is peft; tests: `test_04_lora_and_ia3` computes both equations by hand,
# `test_fresh_adapters_leave_the_base_as_it_is`.) What do they cost on our model?

# %%
print(f"{'':8s}{'trainable':>12s}{'of all':>9s}{'weights':>10s}{'gradient + Adam state':>24s}")
for kind in ("full", "lora", "ia3"):
    model = load_base(profile.base_path)
    total = parameter_count(model)
    if kind != "full":
        model = add_adapters(model, kind, rank=32)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    megabytes = f"{4 * total / 1e6:7.1f} MB{3 * 4 * trainable / 1e6:21.1f} MB"  # float32; Adam keeps two averages
    print(f"{kind:8s}{trainable:12,}{trainable / total:9.1%}{megabytes}")

# %% [markdown]
# On a model this small, adapters save nothing worth having. They are used here because they are what makes the *same
# code* fit one GPU with an 8-billion-parameter Llama, where training all weights would need more than 100 GB for
# weights, gradients and Adam's two averages alone.
#
# ### Exercise 1 · Count an adapter (easy, 15 minutes)
# How many weights has a LoRA of rank $r$ on all seven projections of a Llama? Write the formula; the check tries it on
# our model and on the shape of Llama 3.1 8B. Mind grouped-query attention: keys and values have fewer heads than
# queries.


# %% tags=["exercise"]
def lora_weights(hidden, mlp, layers, heads, key_value_heads, rank):
    """Trainable weights of LoRA on q, k, v, o (attention) and gate, up, down (MLP) in all layers.

    hidden: width; mlp: inner width of the MLP; q is hidden x hidden, k and v have key_value_heads of the heads.
    """
    raise NotImplementedError


# %% tags=["check"]
checks.check_lora_weights(lora_weights)


# %% tags=["solution"]
def lora_weights(hidden, mlp, layers, heads, key_value_heads, rank):
    key = hidden * key_value_heads // heads
    shapes = [(hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden)]  # q k v o
    shapes += [(hidden, mlp), (hidden, mlp), (mlp, hidden)]  # gate up down
    return layers * sum(rank * (n + m) for n, m in shapes)  # A is r x n, B is m x r


# %% [markdown]
# ### What can each of them change?
#
# Counting weights does not say what they can *do*. Ask directly: some other training has moved a projection from $W$ to
# $W^\ast$. How much of that move can an adapter imitate at best? For LoRA the answer is a truncated singular value
# decomposition, for IA3 a least-squares fit of each row, so no training is needed.


# %%
def missing(W, moved, rank=None):
    """The part of the move that the best LoRA of this rank (None: the best IA3) cannot imitate, 0 to 1."""
    move = moved - W
    if rank is None:
        factor = (moved * W).sum(1, keepdim=True) / (W * W).sum(1, keepdim=True)
        return float((moved - factor * W).norm() / move.norm())
    return float(torch.linalg.svdvals(move)[rank:].norm() / move.norm())


# %%
W = base.model.layers[0].self_attn.k_proj.weight.detach()
draw = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
moves = {
    "new look-up: 4 new directions": W + 0.1 * normal(W.shape[0], 4) @ normal(4, W.shape[1]),
    "louder and quieter features": W * (1 + 0.3 * normal(W.shape[0], 1)),
    "everything a little": W + 0.1 * normal(*W.shape),
}
ways = {"LoRA r = 4": 4, "LoRA r = 32": 32, "IA3": None}
print(f"{'part of the move that cannot be imitated':42s}" + "".join(f"{name:>14s}" for name in ways))
for name, moved in moves.items():
    print(f"{name:42s}" + "".join(f"{missing(W, moved, rank):14.0%}" for rank in ways.values()))

# %% [markdown]
# IA3 turns the volume of features that exist; it cannot compare things that the base never compared. LoRA can write new
# directions, as many as its rank. Neither reaches everything. The paper shows that IA3 suffices for a Llama of 8
# billion weights, which has a great many features to turn up. Does it for ours? A race on one batch: how fast can each
# adapter fit the rewards at the ends of episodes, the only targets that need no network? (A race on *one* batch says
# nothing about generalization. Optimizer and learning rate differ, too: each adapter gets what suits it.)


# %%
from icrl_utils.dqn.dqn import (
    moves_that_led_nowhere,
    polyak_update,
    q_and_targets,
    squared_td_error,
    td_loss,
    td_targets,
)
from icrl_utils.hardware import make_accelerator
from icrl_utils.training.configs import TrainConfig
from icrl_utils.training.data import Chunks, batches, training_source
from icrl_utils.training.optimizers import make_optimizers
from icrl_utils.training.training import train
from icrl_utils.training.world_model import observation_positions, world_model_loss


# %%
def race(kind, steps, optimizer, rate, **options):
    """TD error on one fixed batch after each step."""
    config = TrainConfig(base=profile.base_path, slices=4, steps_per_chunk=1, slice_tokens=128 if small else 256)
    batch = next(batches(Chunks(config, training_source(config)), 0, make_accelerator(device="cpu")))
    model = add_adapters(load_base(config.base), kind, **options)
    net, errors = QNetwork(model, history.action_ids, readout, fold=True), []
    (optimizer,) = make_optimizers(model, optimizer, rate, rate, weight_decay=0.0)
    for _ in range(steps):
        z, _ = net(batch.ids, batch.position)
        loss = td_loss(z, batch.action, batch.reward, batch.terminated, "bce") / batch.terminated.sum()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        errors.append(loss.item())
    return np.arange(steps), errors


# %%
count = 4 if small else 40
lines = {"LoRA r = 32, Muon": race("lora", count, "muon", 4e-3, rank=32),
         "LoRA r = 4, Muon": race("lora", count, "muon", 4e-3, rank=4),
         "LoRA r = 32, AdamW": race("lora", count, "adamw", 3e-3, rank=32),
         "IA3, AdamW": race("ia3", count, "adamw", 3e-2)}  # fmt: skip
plot_lines({"": lines}, xlabel="steps on one batch", ylabel="loss at the ends of episodes",
           title="How fast an adapter can fit")  # fmt: skip

# %% [markdown]
# All four fit this batch, IA3 with its 2,368 factors among them, and AdamW is the faster optimizer here. So one batch
# decides nothing; training to the end does. After 7.7 million tokens an agent with IA3 succeeds in .68 [.63, .74] of
# its last ten episodes and dies where it had died before in .29 of them; with LoRA it succeeds in .98 [.98, .99], and
# that hardly ever happens (200 development lakes, one training seed, both with .1 of the auxiliary loss of section 4;
# lab book, section 7). Turning up and down what the base computes is not enough here.

# %% [markdown]
# ## 4 · The loop, line by line
#
# Everything is in place: data (03), read-out (02), targets (03), adapter (above). The cells of this section are the
# body of `training.train`, in its order, and you can run them one at a time. (A test compares these cells
# with the package, statement by statement: what you read here *is* what trains.)

# %%
from icrl_utils.llama.adapters import ONLINE, TARGET, adapter_parameters, target_network
from icrl_utils.training.runs import Run
from icrl_utils.training.training import load_frozen, q_network

pieces = BUILD / "notebook-04" / "pieces"
sizes = {"base": profile.base_path, "device": "cpu"} | dict(profile.training)  # the rest is as in the shipped run
config = TrainConfig(**sizes | {"out": str(pieces)})

# %% [markdown]
# **Data.** A chunk of fresh lakes is drawn and played whenever slices are needed. The data of step $k$ are a function
# of (seed, $k$) alone, so that an interrupted run goes on with exactly what it would have seen.

# %% tags=["from:training.training.train"]
accelerator = make_accelerator(config.precision, config.device)
data = Chunks(config, training_source(config))
action_ids = torch.as_tensor(data.history.action_ids, device=accelerator.device)

# %% [markdown]
# **Model.** One frozen base, two adapters. `q_network` makes one network of the base and the active adapter, which
# computes $W + \frac{\alpha}{r}BA$ once per step instead of multiplying every token by $B$ and $A$: the same function,
# faster in a small model.

# %% tags=["from:training.training.train"]
base = load_frozen(config, accelerator)
parameters = parameter_count(base)
model = add_adapters(base, config.adapter, config.rank, config.seed)
online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
optimizers = make_optimizers(model, config.optimizer, config.lr, config.lr, config.weight_decay)
net, readout = q_network(model, data, config, accelerator)
tensors = {f"online.{n}": p for n, p in online.items()} | {f"target.{n}": p for n, p in target.items()}

# %% [markdown]
# `Run` is the bookkeeper: log, checkpoints, learning rate, Ctrl-C. It contains no learning. (`accelerator` takes care
# of several GPUs, where there are any.)

# %%
resume, progress = False, False

# %% tags=["from:training.training.train"]
run = Run(config, accelerator, tensors, optimizers, parameters, resume, progress)

# %%
batch = next(batches(data, run.step, accelerator))
print(f"{tuple(batch.ids.shape)} tokens, {int(batch.has_target.sum()):,} decisions with a target, "
      f"{int((batch.reward * batch.has_target).sum())} of them reach a goal")  # fmt: skip

# %% [markdown]
# **Two forward passes.** The target network goes first: no adapter may be switched between the online forward and its
# backward.

# %%
gamma, consistent = config.gamma, config.consistent
part, share = batch, 1.0  # all of it at once; a real Llama takes a batch in parts (section 11)

# %% tags=["from:training.training.train"]
decisions = run.mean_count(batch.has_target)

# %% tags=["from:training.training.train"]
observation = observation_positions(part.ids) if config.world_model else None

# %% tags=["from:dqn.dqn.q_and_targets"]
with target_network(model):
    z_target, _ = net(batch.ids, batch.position)
z, logits = net(batch.ids, batch.position, observation)

# %% [markdown]
# **Targets**, as in notebook 03, with its consistent backup. On ice a move against a wall is worth $\gamma$ times the
# tile itself: a gap that a noisy network overlooks, and then it bumps into the wall until the step limit. Where a move
# led nowhere (`repeated`), the target continues with the same move instead of the best one, and walls become worth 0.
#
# The same noise makes an agent walk in circles: known tiles to and fro, while untried moves are within reach. In the
# values, a circle is a delay: it is worth $\gamma^k$ times the best untried move. With the paper's $\gamma = .9$ a
# delay by one move costs a tenth, and a network that errs by a tenth does not see it. A smaller discount makes delay
# dear. For our first agents, which played greedily, that one number was worth more than anything else that we tried
# (200 development lakes, last ten episodes, 7.7 million tokens: .68 with .9, .80 with .8; lab book, section 3). We use
# $\gamma = .6$. It has a price: a small $\gamma$ also makes known goals far away look poor beside something new.

# %% tags=["from:dqn.dqn.q_and_targets"]
q, q_target = readout.q(z.detach()), readout.q(z_target)
repeated = moves_that_led_nowhere(batch) if consistent else None
y = td_targets(q, q_target, batch.reward, batch.terminated, gamma, repeated)

# %% [markdown]
# **Loss.** Returns lie in [0, 1], so $Q = \sigma(z)$ is treated like a probability and the loss is the cross-entropy
# $-y\log Q - (1-y)\log(1-Q)$, whose gradient with respect to $z$ is $Q - y$: as strong for a value of .02 that should
# be 0 as for one of .98 that should be 1. (Tests: `test_bce_gradient_is_q_minus_y`, `test_04_loss`.) Three hundredths
# of the loss of the first pretraining question (what is observed next?) are added, so that the world model is not
# forgotten: it carries no information about actions. Without them an agent that decides from the first move on dies
# nearly four times as often where it had died before (.015 against .004 of its last ten episodes); with three times as
# much its ways are longer (lab book, section 7).
#
# `q_and_targets` is the two cells above in one call. They showed what is in it; here it makes the graph that `backward`
# goes back through and uses up.

# %% tags=["from:training.training.train"]
z, y, logits = q_and_targets(net, model, part, readout, config.gamma, config.consistent, observation)
loss = td_loss(z, part.action, y, part.has_target, config.loss) / decisions
error = squared_td_error(readout.q(z.detach()), part, y) / decisions
total = loss
if logits is not None:
    total = loss + config.world_model * share * world_model_loss(logits, part.ids, action_ids)
accelerator.backward(total)

# %% [markdown]
# **Update**, and the target adapter follows by 10 %:

# %% tags=["from:training.training.train"]
run.update(online.values())
polyak_update(target.values(), online.values(), config.polyak)

# %%
with torch.no_grad():
    after, _ = net(batch.ids, batch.position)
    moved = (readout.q(after) - readout.q(z))[batch.has_target].abs().mean()
print(
    f"TD loss {loss.item():.3f}, gradient norm {run.sums['grad_norm']:.3f}; one step moved Q by {moved:.4f} on average"
)

# %% [markdown]
# **Learning rate.** A linear warm-up, then a cosine that *ends at zero*. Every update is noisy; with small steps at the
# end the noise averages out instead of adding up. This is why the number of steps has to be known before, and why a run
# that is cut off by the clock is worth less than a shorter one that could land. (Code:
# `optimizers.learning_rate_factor`, test `test_04_learning_rate`.)
#
# ### Exercise 2 · The schedule (easy, 10 minutes)


# %% tags=["exercise"]
def rate_factor(step, steps, warmup):
    """Factor of the learning rate for the update after ``step`` updates (0, 1, ..., steps - 1).

    Rises in equal stairs to 1 at the last of ``warmup`` updates (never 0), then half a cosine wave from 1 down to 0,
    which it would reach at step = steps.
    """
    raise NotImplementedError


# %% tags=["check"]
checks.check_rate_factor(rate_factor)


# %% tags=["solution"]
def rate_factor(step, steps, warmup):
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return 0.5 * (1 + np.cos(np.pi * progress))


# %% [markdown]
# ## 5 · Train it, live
#
# First measure what a step costs *here*, with data making included, then choose the number of steps so that the cosine
# ends in time. Your machine decides how far the run gets; the clock bounds it in any case (`minutes`). A new
# measurement means another number of steps: this cell also clears away what an earlier run has left.

# %%
short = {"steps": 4 if small else 20, "log_every": 4, "eval_maps": 1, "eval_step_limit": 1}
live = BUILD / "notebook-04" / "live"
trial = TrainConfig(**sizes | short | {"out": str(BUILD / "notebook-04" / "trial")})
for old in (trial.out, live):
    shutil.rmtree(old, ignore_errors=True)
speeds = [float(row["tokens_per_s"]) for row in read_log(train(trial, progress=False))]
budget = 60 * profile.train_minutes * np.median(speeds[1:] or speeds)  # tokens; the first steps only warm up
steps = int(min(0.88 * budget, profile.train_tokens) / trial.step_tokens)  # the rest of the time is for looking
print(f"{np.median(speeds):,.0f} tokens a second, so {steps:,} steps of {trial.step_tokens:,} tokens")

# %% [markdown]
# Now the run. The bar shows the TD error and, every now and then, the success on development lakes (with a step limit
# of 30, so that loops are cheap: a lower bound). Interrupt it if you like, and run the cell again: with `resume=True`
# it goes on from its checkpoint and ends with the same weights. To start anew, run the cell above again first.

# %%
steps = max(steps, 4)
chosen = {"steps": steps, "warmup": min(100, 1 + steps // 10), "minutes": profile.train_minutes,
          "log_every": 1 + steps // 60, "eval_every": 1 + steps // 5, "eval_maps": 4 if small else 32}  # fmt: skip
config = TrainConfig(**sizes | chosen | {"out": str(live)})
folder = train(config, resume=True)

# %%
run_facts = json.loads((folder / "run.json").read_text())
print(
    f"{run_facts['steps_done']} of {config.steps} steps, {run_facts['tokens'] / 1e6:.2f} million tokens in "
    f"{run_facts['seconds'] / 60:.1f} minutes; {run_facts['of_matmul_peak']:.0%} of what this machine can multiply"
)

# %% [markdown]
# ## 6 · Did it learn to learn?
#
# The weights are frozen again from here on. Every player gets the same lakes, the same starts and the same forced
# moves, so differences are compared lake by lake. **memory-less** is the very same agent, whose context is cleared
# after every episode: whatever it achieves, it achieves without learning on the lake. **base** is the agent without its
# adapter. It chooses as the agent does, so that nothing differs but the training.
#
# How does it choose? A *greedy* player takes the move of the largest value. Where two moves are worth nearly the same,
# the network's error decides, and it decides the same way whenever the player comes back: it walks to and fro until it
# is cut off. Our agents become restless instead. They draw their moves from a softmax of the read-out, and its
# temperature $t$ rises with the number $m$ of moves made in the episode, from 0 (greedy) to $\tau = ½$:
#
# $$\pi(a \mid h) = \frac{e^{z_a/t}}{\sum_b e^{z_b/t}} \propto \left(\frac{Q_a}{1-Q_a}\right)^{1/t},\qquad
#   t = \tau \cdot \min\left(\frac{m}{25},\, 1\right)$$
#
# Whoever knows the way has arrived before $t$ matters. Whoever is still there after 25 moves is probably lost. What
# counts for small values is $Q^{1/t}$, that is their *ratio*: at $t = ½$, of two moves worth .12 and .10 the better one
# is drawn three times in five, which ends circles, while beside .10 a seen hole worth .002 is drawn once in some 3,000
# times.
# (Code: `icrl_utils.play.policy.Choice`; tests: `test_04_choice`,
# `test_moves_are_drawn_from_a_softmax_whose_temperature_rises_with_the_moves_made`.)

# %%
untrained = Agent(load_base(profile.base_path), history, readout, temperature=config.temperature)
players = {"agent": load_agent(folder), "memory-less": load_agent(folder, memory=False), "base": untrained}
for name, player in players.items():
    records[name] = rollout(player, lakes, "paper", seed=1, step_limit=limit, progress=True)
plot_learning_curves(
    {name: records[name] for name in ("agent", "memory-less", "base", "random")}, resamples=profile.bootstrap,
    title=f"This run, {run_facts['tokens'] / 1e6:.1f} million tokens, trained just now",
)  # fmt: skip

# %%
first = {name: r.success[:, :10].mean(1) for name, r in records.items()}
last = {name: r.success[:, -10:].mean(1) for name, r in records.items()}
for name in ("agent", "memory-less", "base", "random"):
    found = interval(last[name], resamples=profile.bootstrap)
    print(f"{name:12s} last ten episodes {found.estimate:.2f}  [{found.low:.2f}, {found.high:.2f}]")
print("\nThe agent's last ten episodes, lake by lake, against ...")
others = {"its own first ten": first["agent"], "memory-less": last["memory-less"], "the base": last["base"]}
for name, other in others.items():
    gap = interval(last["agent"] - other, resamples=profile.bootstrap)
    verdict = "above" if gap.low > 0 else "below" if gap.high < 0 else "cannot be told apart"
    print(f"  {name:18s} {gap.estimate:+.2f}  [{gap.low:+.2f}, {gap.high:+.2f}]  {verdict}")

# %% [markdown]
# Read the figure with care: the first ten episodes are mostly forced moves (the strip below the axis), so rising from
# there is no proof of anything. The proof is the distance between agent and memory-less in the last ten episodes: both
# decide alone, with equal weights, and the only difference is that one of them may remember. Notebook 06 takes this
# apart.

# %% [markdown]
# ## 7 · Beside the long run
#
# The adapter that the other notebooks use, `assets/adapters/dqn`, was trained by the same code for longer. Its log lies
# beside it. **this run** is what you have just trained; **shipped run** is not.

# %%
shipped = ASSETS / "adapters" / profile.adapter
facts = json.loads((shipped / "run.json").read_text())
print(f"shipped: {facts['tokens'] / 1e6:.1f} million tokens, {facts['seconds'] / 60:.0f} minutes on {facts['device']}")
print(f"remade by: {facts['command']}")
columns = ("tokens", "td_error", "success_last")
logs = {"this run": folder, "shipped run": shipped}
logs = {name: [{column: row[column] for column in columns} for row in read_log(run)] for name, run in logs.items()}
plot_training_log(logs, title="The live run beside the shipped one (success: last ten episodes, step limit 30)")

# %%
players["shipped agent"] = load_agent(shipped)
records["shipped agent"] = rollout(players["shipped agent"], lakes, "paper", seed=1, step_limit=limit)
titles = {"this run": "agent", "shipped run": "shipped agent", "this run, memory-less": "memory-less"}
plot_learning_curves({title: records[name] for title, name in titles.items()}, resamples=profile.bootstrap,
                     title="Development lakes: trained just now, and shipped")  # fmt: skip

# %%
from icrl_utils.statistics import repeat_deaths, shortest_path_rate

for title, name in titles.items():
    r = records[name]
    goal, hole, cut = (f"{(r.outcome[:, -10:] == code).mean():.0%}" for code in (GOAL, HOLE, LIMIT))
    again = repeat_deaths(r.tiles, r.actions, r.steps, r.outcome == HOLE)[:, -10:].mean()
    print(f"{title:24s} goal {goal:>4s}, hole {hole:>4s}, cut off {cut:>4s}; "
          f"{again:.0%} die where they had died before")  # fmt: skip

# %% [markdown]
# Then what is longer training good for? On lakes like these the two may well be equal. The difference shows in the
# values of the next section, and where it is harder: with another weight of the auxiliary loss, on larger lakes, .72
# [.68, .76] of the last ten episodes succeeded after 7.7 million tokens and .79 [.76, .83] after 15.4 million (200
# development lakes, one training seed; lab book, section 6). And where the live run is ahead at equal tokens in the
# right panel above, that is its schedule: its learning rate has come down to zero there, while the shipped run was
# still taking large steps.
#
# Two kinds of failure, and they need different remedies. A player that dies where it had died before does not look up
# what it knows. One that is cut off walks in circles. What does the temperature do about them, and what does it cost?
# The shipped agent again, with its own temperature $\tau$, and with others:

# %%
for temperature in (0.0, 0.25, 0.5, 1.0):
    player = load_agent(shipped, temperature=temperature, name=f"temperature {temperature:g}")
    r = rollout(player, lakes, "paper", seed=1, step_limit=limit)
    success, steps, optimal = r.success[:, -10:], r.steps[:, -10:], r.optimal_steps[:, -10:]
    goal, hole, cut = (f"{(r.outcome[:, -10:] == code).mean():.0%}" for code in (GOAL, HOLE, LIMIT))
    short = interval(*shortest_path_rate(success, steps, optimal), resamples=profile.bootstrap)
    print(f"temperature {temperature:<4g}  goal {goal:>4s}, hole {hole:>4s}, cut off {cut:>4s}; of the goals "
          f"{short.estimate:.0%} [{short.low:.0%}, {short.high:.0%}] on a shortest path")  # fmt: skip

# %% [markdown]
# Temperature turns cut-offs into goals. The price would be detours, if the dice were thrown from the first move on:
# with a constant $\tau = ½$ fewer than half of the goals of an earlier agent were reached on a shortest path (lab book,
# section 5). Because $t$ *rises* within the episode, whoever knows the way hardly pays. Rescued episodes are seldom
# shortest paths, though, so the share may fall while every single episode is as good as before or better.

# %% [markdown]
# ## 8 · What has changed inside?
#
# Ask all three networks, base, live and shipped, for the values of moves whose outcome the history has *already shown*,
# and compare with the exact value on the graph of everything seen so far: a way to the goal of $d$ moves is worth
# $\gamma^{d-1}$, a seen hole 0, a wall 0 (consistent backup). This is what the *known* moves guarantee: where an
# untried move beside the way promises more, the right value is higher, which happens on long ways. (Code:
# `icrl_utils.evaluation.calibration`; test: `test_kinds_of_moves_and_their_exact_values`.)

# %%
from icrl_utils.evaluation.calibration import KINDS, known_graph_values

asked = {"base": untrained, "this run": players["agent"], "shipped run": players["shipped agent"]}
rows = []
for title, player in asked.items():
    rows += [row | {"policy": title} for row in known_graph_values(player, lakes[:24], config.gamma, episodes=8)]
rows.sort(key=lambda row: KINDS.index(row["kind"]))
plot_calibration(rows, title="Q of moves, sorted by what the history has shown about them")

# %% [markdown]
# Read it from top to bottom. A good in-context learner spreads out: to the right where a way to the goal is known, to
# the left at walls and seen holes. The base's values are scattered over the same range in every row, since it has never
# heard of rewards. How far the others have come tells what they look up and what not: values far from the goal need
# look-ups of look-ups, and a seen hole needs the exact pair (tile, action), not only the neighbourhood. "Never tried"
# has no exact value: there the network must guess, and what it guesses decides whether it explores.

# %% [markdown]
# ## Recap
#
# - A world model is not an agent. It knows what follows; only reward tells what is worth following.
# - LoRA adds new directions, IA3 rescales old ones. Both start exactly at the base and leave it untouched.
# - The whole loop is: fresh lakes, play, slices, two forward passes, TD targets, cross-entropy, update, Polyak.
# - A schedule that ends at zero needs a number of steps that fits the clock: measure first, then train.
# - Evidence for in-context learning is the distance to the memory-less twin at equal weights, not a rising curve.
#
# **Next:** notebook 05 does the same with a real language model.
#
# ## Further reading
# - Hu et al. 2021, *LoRA: Low-rank adaptation of large language models*, arXiv 2106.09685.
# - Liu et al. 2022, *Few-shot parameter-efficient fine-tuning is better and cheaper than in-context learning* (IA3),
#   arXiv 2205.05638.
# - Farebrother et al. 2024, *Stop regressing: training value functions via classification*, arXiv 2403.03950.
# - Laskin et al. 2022, *In-context reinforcement learning with algorithm distillation*, arXiv 2210.14215: another way
#   to an agent that learns in its context, by imitating learners.
