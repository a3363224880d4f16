"""Every equation of a notebook, written down once more in plain code and compared with what the package computes.

``test_NN_*`` belongs to notebook NN, which names its tests.
"""

import jupytext
import numpy as np
import pytest
import torch

from icrl_utils.dqn.dqn import moves_that_led_nowhere, polyak_update, td_loss, td_targets
from icrl_utils.dqn.replay import ReplayBuffer, make_batch
from icrl_utils.history.episodes import RESET, Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.lake.held_out import development_maps
from icrl_utils.lake.maps import ACTIONS, PAPER_IN_DISTRIBUTION, PRETRAINING_MAPS
from icrl_utils.llama.adapters import ONLINE, adapter_parameters, add_adapters, backbone
from icrl_utils.llama.agent import Agent
from icrl_utils.llama.load import new_tiny_llama
from icrl_utils.llama.readout import QNetwork, QReadout
from icrl_utils.play.baselines import RandomPolicy
from icrl_utils.play.collect import RANDOM_PLAY, collect
from icrl_utils.play.policy import Choice, Step
from icrl_utils.play.rollout import rollout
from icrl_utils.statistics import interval
from icrl_utils.tools.build_notebooks import sources
from icrl_utils.training.configs import TrainConfig
from icrl_utils.training.optimizers import learning_rate_factor

COMPACT = HistoryFormat("compact")
PAPER_TOKENIZER = make_paper_tokenizer()
PAPER = HistoryFormat("paper", PAPER_TOKENIZER)


@pytest.fixture(scope="module")
def model():
    return new_tiny_llama(COMPACT.vocab_size, COMPACT.action_ids, hidden=32, layers=2, heads=2, seed=3).eval()


@pytest.fixture(scope="module")
def random_play():
    """Episodes with all three endings on lakes of many sizes."""
    records = rollout(RandomPolicy(), PRETRAINING_MAPS.sample(30, seed=1), "greedy", episodes=5, seed=1, step_limit=9)
    episodes = [episode for i in range(30) for episode in records.episodes(i)]
    assert {episode.outcome for episode in episodes} == {"goal", "hole", "limit"}
    return episodes


# --------------------------------------------------------------------------------------------------- 00 start here


def test_00_the_agent_plays_the_largest_q_of_its_history(model):
    """a_t = argmax_a Q(h_t, a), h_{t+1} = h_t a_t o_{t+1}: the same as asking for Q with the whole text each time."""
    agent = Agent(model, COMPACT, QReadout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    records = rollout(agent, PRETRAINING_MAPS.sample(3, seed=5), "greedy", episodes=3, seed=0, step_limit=8)
    asked = 0
    for i in range(3):
        past: list[Episode] = []
        for episode in records.episodes(i):
            for t, action in enumerate(episode.actions):
                history = COMPACT.render([*past, Episode(episode.tiles[: t + 1], episode.actions[:t])])
                assert agent.q_values(history).argmax() == action
                asked += 1
            past.append(episode)
    assert asked > 20
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------------------------- 01 environment and history


def test_01_tile_numbers():
    """tile = row * width + column, and the four moves in these coordinates."""
    for lake in PRETRAINING_MAPS.sample(50, seed=2):
        for tile in set(range(lake.n_tiles)) - {*lake.goals, *lake.holes}:
            row, column = next(
                (r, c) for r in range(lake.height) for c in range(lake.width) if r * lake.width + c == tile
            )
            assert lake.rows[row][column] in "SF"
            around = [(row, column - 1), (row + 1, column), (row, column + 1), (row - 1, column)]
            inside = [(r, c) if 0 <= r < lake.height and 0 <= c < lake.width else (row, column) for r, c in around]
            assert [r * lake.width + c for r, c in inside] == lake.next_tile[tile].tolist()


def test_01_the_naive_law_of_the_notebook_draws_tiles_as_the_package_does():
    """`random_rows` as the reader sees it: shares of the letters, and of what the package's law would keep."""
    cells = [cell.source for cell in jupytext.read(sources(["01"])[0]).cells if "def random_rows" in cell.source]
    exec(cells[0], namespace := {})
    rng = np.random.default_rng(0)
    drawn = [namespace["random_rows"](rng) for _ in range(4_000)]
    text = "".join(row for rows in drawn for row in rows)
    law = PAPER_IN_DISTRIBUTION
    start, goal = law.start_prob, (1 - law.start_prob) * law.goal_prob
    hole = (1 - start - goal) * law.hole_prob
    for letter, share in (("S", start), ("G", goal), ("H", hole)):
        assert text.count(letter) / len(text) == pytest.approx(share, abs=0.006)
    sizes = {len(side) for rows in drawn for side in (rows, rows[0])}
    assert sizes == set(range(law.min_size, law.max_size + 1))


def test_01_tokens_of_a_history(random_play):
    compact = sum(2 * e.steps + 2 for e in random_play)
    paper = sum(10 * e.steps + 7 + 7 * (e.outcome == "goal") + 5 * (e.outcome == "limit") for e in random_play)
    assert len(COMPACT.tokenize(COMPACT.render(random_play))) == compact
    assert len(PAPER.tokenize(PAPER.render(random_play))) == paper


@pytest.mark.parametrize("history", [COMPACT, PAPER], ids=["compact", "paper"])
def test_01_decisions(history, random_play):
    """D = {i : x_{i+1} is an action word}; in the paper's text the role "action" is another word than any action."""
    ids = history.tokenize(history.render(random_play))
    found = history.decisions(ids[None])
    wanted = [t for t in range(len(ids) - 1) if ids[t + 1] in history.action_ids]
    assert found.position[found.valid].tolist() == wanted
    assert len(wanted) == sum(e.steps for e in random_play)


# ------------------------------------------------------------------------------------------ 02 Q-values from logits


def test_02_read_out(model, random_play):
    """Q(h, a) = sigmoid(beta (w_a . u) - c), and w_a . u is the logit of the model's own forward pass."""
    readout = QReadout(scale=0.7, offset=1.3)
    ids = torch.from_numpy(COMPACT.tokenize(COMPACT.render(random_play[:4])))[None]
    d = COMPACT.decisions(ids.numpy())
    position = torch.from_numpy(d.position[d.valid])[None]
    with torch.no_grad():
        logits = model(ids).logits[0, position[0]][:, COMPACT.action_ids]
        z, _ = QNetwork(model, COMPACT.action_ids, readout)(ids, position)
        h = backbone(model)(ids).last_hidden_state[0, position[0]]
    w = model.lm_head.weight.detach()
    by_hand = np.array([[float(w[a] @ h[t]) for a in COMPACT.action_ids] for t in range(len(h))])
    np.testing.assert_allclose(by_hand, logits, atol=1e-5)
    q_by_hand = 1 / (1 + np.exp(-(0.7 * by_hand - 1.3)))
    np.testing.assert_allclose(readout.q(z)[0], q_by_hand, atol=1e-5)
    text = COMPACT.render([*random_play[:3], Episode((random_play[3].tiles[0],), ())])
    last = len(COMPACT.tokenize(text)) - 1
    asked = Agent(model, COMPACT, readout).q_values(text)
    np.testing.assert_allclose(asked, q_by_hand[position[0].tolist().index(last)], atol=1e-5)


def test_02_bytes_of_logits(model):
    """N T V b bytes for full logits, N D 4 b for what DQN uses."""
    B, T, D = 3, 20, 7
    ids, position = torch.zeros(B, T, dtype=torch.int64), torch.zeros(B, D, dtype=torch.int64)
    with torch.no_grad():
        full = model(ids).logits
        z, _ = QNetwork(model, COMPACT.action_ids, QReadout())(ids, position)
    assert full.nbytes == B * T * COMPACT.vocab_size * full.itemsize
    assert z.nbytes == B * D * len(ACTIONS) * z.itemsize


def test_02_gap_of_two_actions(model):
    """|z_a - z_a'| = beta |(w_a - w_a') . u| <= beta |w_a - w_a'| |u|: parallel rows cannot tell actions apart."""
    s = 1.7
    readout = QReadout(scale=s, offset=0.4)
    ids = torch.randint(0, 64, (4, 30), generator=torch.Generator().manual_seed(0))
    position = torch.arange(30).expand(4, -1)
    w = model.lm_head.weight[COMPACT.action_ids].detach()
    with torch.no_grad():
        z, _ = QNetwork(model, COMPACT.action_ids, readout)(ids, position)
        h = backbone(model)(ids).last_hidden_state
    for a in range(4):
        for b in range(a):
            gap = (z[..., a] - z[..., b]).abs()
            torch.testing.assert_close(gap, s * (h @ (w[a] - w[b])).abs(), atol=1e-4, rtol=1e-4)
            assert (gap <= s * (w[a] - w[b]).norm() * h.norm(dim=-1) + 1e-5).all()


# ---------------------------------------------------------------------------------- 03 replay and target networks


def test_03_td_targets(random_play):
    """y_d = r_d + gamma (1 - end_d) Q_target(d+1, argmax_a Q_online(d+1, a)), decision by decision, on real slices."""
    ids = COMPACT.tokenize(COMPACT.render(random_play[:12]))
    d = COMPACT.decisions(ids[None, : 2 * (len(ids) // 2)])
    n = int(d.valid.sum())
    online, target = torch.rand(2, 1, d.position.shape[1], 4, generator=torch.Generator().manual_seed(0))
    given = td_targets(online, target, torch.from_numpy(d.reward), torch.from_numpy(d.terminated), gamma=0.9)[0]
    for i in range(n):
        if not d.has_target[0, i]:
            continue
        y, e = d.reward[0, i], d.terminated[0, i]
        if not e:
            best = max(range(4), key=lambda a, i=i: online[0, i + 1, a])
            y += 0.9 * float(target[0, i + 1, best])
        assert float(given[i]) == pytest.approx(y, abs=1e-6)
    assert d.terminated[0, :n].any() and not d.has_target[0, :n].all()


def test_03_consistent_backup():
    """y_d = r_d + gamma Q_target(d+1, a_d) where the move led back to its own tile, on real slices of random play."""
    play = collect(development_maps("in_distribution", 5), RANDOM_PLAY, np.random.default_rng(0), min_tokens=200)
    batch = make_batch(ReplayBuffer(play, COMPACT).slices(np.arange(5), 200, np.random.default_rng(0)), COMPACT)
    online, target = torch.rand(2, *batch.action.shape, 4, generator=torch.Generator().manual_seed(0))
    given = td_targets(online, target, batch.reward, batch.terminated, 0.9, moves_that_led_nowhere(batch))
    plain = td_targets(online, target, batch.reward, batch.terminated, 0.9)
    walls = 0
    for row, d in batch.has_target.nonzero().tolist():
        here, there = (int(batch.ids[row, batch.position[row, at]]) for at in (d, min(d + 1, len(given[row]) - 1)))
        if here == there and not batch.terminated[row, d]:
            walls += 1
            assert given[row, d] == pytest.approx(0.9 * float(target[row, d + 1, batch.action[row, d]]), abs=1e-6)
        else:
            assert given[row, d] == plain[row, d]
    assert walls > 50


def test_consistent_backup_keeps_the_best_moves():
    """Its fixed point on known lakes: Q = 0 at walls, Q* elsewhere, so the best actions are those of Q*."""
    for lake in development_maps("in_distribution", 100):
        tile, ends = np.arange(lake.n_tiles)[:, None], [*lake.goals, *lake.holes]
        wall, q = lake.next_tile == tile, np.zeros((lake.n_tiles, 4))
        for _ in range(100):
            following = np.where(wall, q, q.max(1)[lake.next_tile])
            q = np.where(np.isin(lake.next_tile, lake.goals), 1.0, 0.9 * following)
            q[ends] = 0
        exact = lake.optimal_values()
        assert (q[wall] == 0).all() and np.allclose(q[~wall], exact[~wall], atol=1e-4)


def test_03_polyak():
    """target <- (1 - alpha) target + alpha online; after n steps (1 - alpha)^n of the old target is left."""
    old, online, alpha, n = 3.0, 5.0, 0.1, 7
    target = torch.tensor([old])
    for _ in range(n):
        polyak_update([target], [torch.tensor([online])], alpha)
    assert float(target) == pytest.approx((1 - alpha) ** n * old + (1 - (1 - alpha) ** n) * online, abs=1e-5)
    assert 0.45 < (1 - 0.1) ** 7 < 0.5 < (1 - 0.1) ** 6  # half is forgotten after 7 steps, as the notebook says
    assert (1 - 0.01) ** 69 < 0.5 < (1 - 0.01) ** 68  # and after 69


# ------------------------------------------------------------------------------------------- 04 LoRA DQN training


def test_04_choice():
    """exp(z_a / t) / sum_b exp(z_b / t), proportional to (Q_a / (1 - Q_a))^(1 / t), t = tau min(m / 25, 1), and the
    examples of the text."""
    z, tau, moves, n = np.array([-2.0, -1.0, 0.5, -6.0]), 0.5, 15, 4_000
    t = tau * min(moves / 25, 1)
    q = QReadout().q(torch.from_numpy(z)).numpy()
    odds = (q / (1 - q)) ** (1 / t)
    softmax = np.exp(z / t) / np.exp(z / t).sum()
    np.testing.assert_allclose(odds / odds.sum(), softmax, rtol=1e-9)
    choose = Choice(tau, [np.random.default_rng([2, row]) for row in range(n)])
    for action in [RESET] + [0] * moves:
        chosen = choose(np.tile(z, (n, 1)), Step(np.full(n, action), np.zeros(n, int), np.zeros(n, int)))
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / n, softmax, atol=0.03)
    for better, worse, share in ((0.12, 0.10, 3 / 5), (0.10, 0.002, 1 - 1 / 3_000)):  # from move 25 on
        a, b = ((q / (1 - q)) ** (1 / tau) for q in (better, worse))
        assert a / (a + b) == pytest.approx(share, rel=0.01)


def test_04_lora_and_ia3():
    """h = W x + (alpha / r) B A x, and h = l * (W x) for keys and values, W (l * x) for the down projection."""
    torch.manual_seed(0)
    for kind in ("lora", "ia3"):
        base = new_tiny_llama(COMPACT.vocab_size, COMPACT.action_ids, hidden=32, layers=1, heads=2)
        adapted = add_adapters(base, kind, rank=4)
        with torch.no_grad():
            for p in adapter_parameters(adapted, ONLINE).values():
                p.add_(0.1 * torch.randn_like(p))
        block = adapted.get_base_model().model.layers[0]
        for name, layer in (("k_proj", block.self_attn.k_proj), ("down_proj", block.mlp.down_proj)):
            W = layer.get_base_layer().weight
            x = torch.randn(5, W.shape[1])
            if kind == "lora":
                A, B = layer.lora_A[ONLINE].weight, layer.lora_B[ONLINE].weight
                assert A.shape == (4, W.shape[1]) and B.shape == (W.shape[0], 4)
                by_hand = x @ W.T + 2 * (x @ A.T) @ B.T  # alpha = 2 r
            elif name == "k_proj":
                by_hand = layer.ia3_l[ONLINE].flatten() * (x @ W.T)
            else:
                by_hand = (layer.ia3_l[ONLINE].flatten() * x) @ W.T
            torch.testing.assert_close(layer(x), by_hand, atol=1e-5, rtol=1e-5)


def test_04_loss():
    """-y log Q - (1 - y) log(1 - Q) with Q = sigmoid(z), summed over the decisions that have a target."""
    generator = torch.Generator().manual_seed(0)
    z, y = 2 * torch.randn(2, 3, 4, generator=generator), torch.rand(2, 3, generator=generator)
    action, mask = torch.tensor([[0, 1, 2], [3, 0, 1]]), torch.tensor([[True, True, False], [True, False, True]])
    by_hand = 0.0
    for b, d in mask.nonzero().tolist():
        q, target = 1 / (1 + np.exp(-float(z[b, d, action[b, d]]))), float(y[b, d])
        by_hand += -target * np.log(q) - (1 - target) * np.log(1 - q)
    assert float(td_loss(z, action, y, mask, "bce")) == pytest.approx(by_hand, abs=1e-4)


def test_04_learning_rate():
    """Stairs up to 1 in the warm-up, then half a cosine that would be 0 at the last step."""
    config = TrainConfig(steps=300, warmup=40)
    for step in range(300):
        by_hand = (step + 1) / 40 if step < 40 else 0.5 * (1 + np.cos(np.pi * (step - 40) / 260))
        assert learning_rate_factor(step, config) == pytest.approx(by_hand, abs=1e-12)


# --------------------------------------------------------------------------------------------- 06 generalization


def test_06_interval():
    """The middle 95 % of means over n lakes drawn with replacement, drawn one by one."""
    rng = np.random.default_rng(0)
    x = rng.beta(0.5, 0.5, 60)
    means = np.sort([np.mean([x[k] for k in rng.integers(60, size=60)]) for _ in range(4000)])
    found = interval(x, resamples=4000)
    assert found.estimate == pytest.approx(x.mean())
    assert found.low == pytest.approx(means[100], abs=0.01) and found.high == pytest.approx(means[3900], abs=0.01)
