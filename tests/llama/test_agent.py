"""The Llama as a policy: cached play equals reading the whole history again, in every mode."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from icrl_utils.history.episodes import HOLE, LIMIT, RESET, RUNNING, Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.lake.maps import MapDistribution
from icrl_utils.llama.adapters import PROJECTIONS
from icrl_utils.llama.agent import Agent, load_agent
from icrl_utils.llama.cache import GrowingCache
from icrl_utils.llama.load import CONTEXT, new_tiny_llama
from icrl_utils.llama.readout import QReadout
from icrl_utils.paths import ASSETS, config_sha256, file_sha256
from icrl_utils.play.policy import PATIENCE, Choice, Step
from icrl_utils.play.rollout import rollout
from icrl_utils.tools.bench import Rereader

COMPACT = HistoryFormat("compact")
PAPER = HistoryFormat("paper", make_paper_tokenizer())
PLAIN = HistoryFormat("paper", make_paper_tokenizer(special_tokens=("<|endoftext|>",)))
FORMATS = [COMPACT, PAPER, PLAIN]
MAPS = MapDistribution(3, 4).sample(6, 0)


def tiny_model(seed=0):
    return new_tiny_llama(COMPACT.vocab_size, COMPACT.action_ids, hidden=32, layers=2, heads=2, seed=seed).eval()


def sharp_model(history=COMPACT):
    """Larger weights than at birth: what the agent does depends on its history."""
    model = new_tiny_llama(history.vocab_size, history.action_ids, hidden=32, layers=2, heads=2).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "embed" in name:
                parameter.mul_(8)
    return model


class Spy(Agent):
    """Remembers z of every step, next to the original number of each row."""

    def start(self, maps, rngs):
        super().start(maps, rngs)
        self.rows, self.seen = np.arange(len(maps)), [{} for _ in maps]

    def append(self, step):
        z = super().append(step)
        for row, episode, value in zip(self.rows, self._now.tolist(), z, strict=True):
            self.seen[row].setdefault(episode, []).append(value.numpy())
        return z

    def keep(self, rows):
        super().keep(rows)
        self.rows = self.rows[rows]


@pytest.mark.parametrize("history", FORMATS, ids=lambda history: history.name)
def test_histories_that_it_begins_with_are_read_as_if_they_had_been_played(history):
    """Of three lengths, one of them none; then two steps on each."""
    agent = Agent(sharp_model(history), history, QReadout())
    played = rollout(agent, MAPS[:3], [0.0] * 2, seed=3)
    past = [[], played.episodes(1), played.episodes(2)[:1]]
    agent.start(MAPS[:3], [np.random.default_rng(i) for i in range(3)])
    agent.recall([history.tokenize(history.render(episodes)) for episodes in past])
    tiles = np.array([lake.starts[0] for lake in MAPS[:3]])
    running = np.zeros(3, np.uint8)
    for action, made in ((RESET, ()), (2, (2,))):
        z = agent.append(Step(np.full(3, action), tiles, running))
        for i, tile in enumerate(tiles.tolist()):
            text = history.render([*past[i], Episode((tile,) * (1 + len(made)), made)])
            np.testing.assert_allclose(agent.readout.q(z[i]).numpy(), agent.q_values(text), atol=1e-5)


def test_recalling_nothing_is_no_recall():
    agent = Agent(sharp_model(), COMPACT, QReadout())
    step = Step(np.full(2, RESET), np.array([1, 2]), np.zeros(2, np.uint8))
    found = []
    for recalls in (False, True):
        agent.start(MAPS[:2], [np.random.default_rng(i) for i in range(2)])
        if recalls:
            agent.recall([np.zeros(0, np.int64)] * 2)
        found.append(agent.append(step).numpy())
    np.testing.assert_array_equal(*found)
    with pytest.raises(RuntimeError, match="act\\(\\) before start"):
        Agent(sharp_model(), COMPACT, QReadout()).recall([np.zeros(0, np.int64)])


def uncached_z(model, episodes, history=COMPACT):
    """float32 [4] from one plain forward pass over the whole text."""
    ids = torch.from_numpy(history.tokenize(history.render(episodes)))[None]
    with torch.no_grad():
        return QReadout().z(model(input_ids=ids).logits[0, -1, torch.from_numpy(history.action_ids)]).numpy()


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("history", FORMATS, ids=["compact", "paper", "plain"])
@pytest.mark.slow
def test_cached_play_equals_the_uncached_forward(history, memory):
    """At every decision of every map, also after finished maps were compacted away and forgotten columns dropped; in
    the paper format, and its fallback for tokenizers without header tokens, with rows of different lengths."""
    model = sharp_model(history)
    agent = Spy(model, history, QReadout(), memory=memory)
    records = rollout(agent, MAPS, [0, 0.5, 0.5, 1, 1, 1], step_limit=20)
    assert len({int(records.steps[i].sum()) for i in range(len(MAPS))}) > 1  # so maps were dropped at different times
    for i in range(len(MAPS)):
        episodes = records.episodes(i)
        for e, episode in enumerate(episodes):
            for t in range(episode.steps):
                running = Episode(episode.tiles[: t + 1], episode.actions[:t])
                context = [*episodes[:e], running] if memory else [running]
                np.testing.assert_allclose(agent.seen[i][e][t], uncached_z(model, context, history), atol=2e-4)


def test_memory_less_forgets_and_memory_does_not():
    model = sharp_model()
    text = "0 right 1 down hole reset 0 "
    with_memory, without = (Agent(model, COMPACT, QReadout(), memory=m).q_values(text) for m in (True, False))
    fresh = Agent(model, COMPACT, QReadout()).q_values("0")
    np.testing.assert_allclose(without, fresh, atol=1e-6)
    assert np.abs(with_memory - fresh).max() > 1e-3


def test_memory_less_cache_stays_short():
    class Watched(Agent):
        longest = 0

        def append(self, step):
            self.longest = max(self.longest, self._cache.get_seq_length())
            return super().append(step)

    lengths = {}
    for memory in (True, False):
        agent = Watched(sharp_model(), COMPACT, QReadout(), memory=memory)
        rollout(agent, MAPS[:1], [0] * 30, step_limit=10)
        lengths[memory] = agent.longest
    assert lengths[False] <= 3 * 22 < lengths[True]  # 22 tokens are one episode of ten steps


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_actions_depend_neither_on_the_batch_nor_on_the_cache(temperature):
    agent = Agent(sharp_model(), COMPACT, QReadout(), temperature=temperature)
    together = rollout(agent, MAPS, "greedy", episodes=4, step_limit=20)
    apart = rollout(agent, MAPS, "greedy", episodes=4, step_limit=20, batch_maps=1)
    np.testing.assert_array_equal(together.actions, apart.actions)
    uncached = rollout(Rereader(agent), MAPS, "greedy", episodes=4, step_limit=20)
    np.testing.assert_array_equal(together.actions, uncached.actions)


def test_greedy_action_is_the_argmax_of_the_action_word_logits():
    agent = Agent(sharp_model(), COMPACT, QReadout(scale=0.5, offset=3.0))
    records = rollout(agent, MAPS[:2], "greedy", episodes=2, step_limit=15)
    for i in range(2):
        first, *_ = records.episodes(i)
        for t in range(first.steps):
            z = uncached_z(agent.model, [Episode(first.tiles[: t + 1], first.actions[:t])])
            assert first.actions[t] == z.argmax()


def step_of(n, action):
    return Step(np.full(n, action), np.zeros(n, np.int64), np.full(n, RUNNING, np.uint8))


@pytest.mark.parametrize("moves", [1, PATIENCE - 5, PATIENCE, 3 * PATIENCE])
def test_moves_are_drawn_from_a_softmax_whose_temperature_rises_with_the_moves_made(moves):
    """Chi-square against exp(z / t) / sum exp(z / t) with t = .7 min(moves / PATIENCE, 1)."""
    n, z = 4_000, np.array([-2.0, -2.3, -1.95, -2.1], np.float32)
    choose = Choice(0.7, [np.random.default_rng([1, row]) for row in range(n)])
    flat = np.zeros((n, 4), np.float32)
    assert (choose(np.tile(z, (n, 1)), step_of(n, RESET)) == 2).all()  # no move made: the largest
    for _ in range(moves - 1):
        choose(flat, step_of(n, 0))
    p = np.exp(z / (0.7 * min(moves / PATIENCE, 1)))
    expected = n * p / p.sum()
    count = np.bincount(choose(np.tile(z, (n, 1)), step_of(n, 0)), minlength=4)
    assert ((count - expected) ** 2 / expected).sum() < 16.3  # 99.9 % of chi-square with three degrees of freedom
    assert (choose(np.tile(z, (n, 1)), step_of(n, RESET)) == 2).all()  # a new episode


def test_temperature_zero_is_greedy():
    z = np.array([[-2.0, -2.3, -1.99, -2.1]], np.float32)
    choose = Choice(0.0, [np.random.default_rng(0)])
    assert [choose(z, step_of(1, action)).item() for action in [RESET] + [0] * 60] == [2] * 61


def test_every_lake_has_its_own_generator_and_its_own_count_of_moves():
    """Also after others have left."""
    z = np.array([-2.0, -2.01, -2.02, -2.03], np.float32)
    actions = [[RESET, 0, 0, RESET, 0, 0, 0, 0], [RESET, 1, 1, 1, 1, 1, 1, 1], [RESET, 2, 2, 2, 2, RESET, 2, 2]]

    def play(rows, leaving=None):
        choose, chosen = Choice(5.0, [np.random.default_rng(row) for row in rows]), []
        for t in range(8):
            if t == 4 and leaving is not None:
                choose.keep(np.delete(np.arange(len(rows)), leaving))
                rows = np.delete(rows, leaving)
            step = Step(np.array([actions[row][t] for row in rows]), np.zeros(len(rows), int), np.zeros(len(rows), int))
            chosen.append(dict(zip(rows, choose(np.tile(z, (len(rows), 1)), step), strict=True)))
        return chosen

    together, alone = play(np.arange(3), leaving=1), [play(np.array([row])) for row in range(3)]
    for t, choices in enumerate(together):
        assert choices == {row: alone[row][t][row] for row in choices}
    assert len({choice for choices in together for choice in choices.values()}) == 4  # chance did decide


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature=-1 must not be negative"):
        Agent(tiny_model(), COMPACT, QReadout(), temperature=-1)


def test_old_episodes_are_dropped_whole_and_it_is_said_once():
    """One layer: tokens that stay have not seen the dropped ones, so play equals a fresh text of the rest."""
    model = new_tiny_llama(COMPACT.vocab_size, COMPACT.action_ids, hidden=32, layers=1, heads=2).eval()
    agent = Spy(model, COMPACT, QReadout(), max_tokens=64)
    with pytest.warns(UserWarning, match="max_tokens=64") as caught:
        records = rollout(agent, MAPS[:2], [0] * 12, step_limit=10)
    assert len([w for w in caught if "max_tokens" in str(w.message)]) == 1
    for i in range(2):
        episodes = records.episodes(i)
        for e, episode in enumerate(episodes):
            for t in range(episode.steps):
                running = Episode(episode.tiles[: t + 1], episode.actions[:t])
                kept = [*episodes[:e], running]
                while sum(len(COMPACT.encode_episode(x)) for x in kept) > 64:
                    kept.pop(0)
                np.testing.assert_allclose(agent.seen[i][e][t], uncached_z(model, kept), atol=1e-4)


def test_max_tokens_shorter_than_an_episode_is_refused():
    with pytest.raises(ValueError, match="max_tokens=10"), pytest.warns(UserWarning, match="dropped"):
        rollout(Agent(tiny_model(), COMPACT, QReadout(), max_tokens=10), MAPS[:1], [0] * 5)


def test_growing_cache_keeps_what_it_was_given_and_moves_it_seldom():
    cache = GrowingCache()
    given = torch.randn(3, 2, 300, 4)
    moves = set()
    for t in range(0, 300, 2):
        for layer in (0, 1):
            keys, values = cache.update((layer + 1) * given[:, :, t : t + 2], -given[:, :, t : t + 2], layer)
        moves.add(keys.data_ptr())
    assert len(moves) <= 4  # 64, 128, 256, 512
    torch.testing.assert_close(keys, 2 * given)
    torch.testing.assert_close(values, -given)
    cache.drop(100)
    cache.keep(torch.tensor([0, 2]))
    assert cache.get_seq_length() == cache.get_seq_length(1) == 200
    for layer in (0, 1):
        keys, values = cache.update(given[[0, 2], :, :2], given[[0, 2], :, :2], layer)
        torch.testing.assert_close(keys[:, :, :-2], (layer + 1) * given[[0, 2], :, 100:])
        torch.testing.assert_close(values[:, :, :-2], -given[[0, 2], :, 100:])
        torch.testing.assert_close(keys[:, :, -2:], given[[0, 2], :, :2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 right 1 down hole", "does not end where an action is due"),
        ("0 right", "does not end where an action is due"),
        ("0 right 1 down hole reset", "does not end where an action is due"),
        ("", "does not end where an action is due"),
        ("0 north 1", "north"),
        ("0 right 64", "64"),
    ],
)
def test_q_values_reject_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        Agent(tiny_model(), COMPACT, QReadout()).q_values(text)


def test_q_values_are_those_that_play_uses():
    agent = Agent(sharp_model(), COMPACT, QReadout(offset=0.5))
    agent.start(MAPS[:1], [np.random.default_rng(0)])
    played = [
        (RESET, 8, RUNNING),
        (2, 9, RUNNING),
        (1, 13, HOLE),
        (RESET, 8, RUNNING),
        (0, 8, LIMIT),
        (RESET, 0, RUNNING),
    ]
    z = [agent.append(Step(*(np.array([entry]) for entry in step))) for step in played]
    q = agent.q_values("8 right 9 down hole reset 8 left limit reset 0 ")
    assert q.dtype == np.float32 and q.shape == (4,)
    np.testing.assert_allclose(q, torch.sigmoid(z[-1])[0], atol=1e-6)


def test_a_live_model_is_used_as_it_is_and_left_as_it_was():
    model = get_peft_model(sharp_model(), LoraConfig(r=4, target_modules=list(PROJECTIONS), lora_dropout=0.5))
    model.train()
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    agent = Agent(model, COMPACT, QReadout())
    before_training = agent.q_values("0 right 1")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    q = agent.q_values("0 right 1")
    assert np.abs(q - before_training).max() > 1e-4
    np.testing.assert_array_equal(q, agent.q_values("0 right 1"))  # no dropout
    assert model.training and all(module.training for module in model.modules())
    assert trainable == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batch_maps_follows_the_memory_budget():
    small = Agent(tiny_model(), COMPACT, QReadout())
    large = Agent(new_tiny_llama(72, COMPACT.action_ids, hidden=64, layers=4, heads=2), COMPACT, QReadout())
    assert small.batch_maps == 2**30 // (2 * 2 * 32 * 4 * 3000)
    assert abs(small.batch_maps - 4 * large.batch_maps) < 4
    halved = Agent(tiny_model().to(torch.bfloat16), COMPACT, QReadout())
    assert halved.batch_maps == pytest.approx(2 * small.batch_maps, abs=1)


def test_bfloat16_is_close_to_float32():
    exact, rounded = (Spy(tiny_model().to(dtype), COMPACT, QReadout()) for dtype in (torch.float32, torch.bfloat16))
    for agent in (exact, rounded):
        rollout(agent, MAPS[:2], [0, 0], step_limit=10)
    difference = [np.abs(np.array(exact.seen[i][e]) - rounded.seen[i][e]).max() for i in range(2) for e in range(2)]
    assert 0 < max(difference) < 0.05


def test_an_eager_model_is_refused():
    model = tiny_model()
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="sdpa"):
        Agent(model, COMPACT, QReadout())


# ---------------------------------------------------------------------------------------------------- load_agent


@pytest.fixture
def shipped(tmp_path):
    """A base and an adapter as the training commands write them."""
    base = tmp_path / "base"
    model = sharp_model()
    model.save_pretrained(base)
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path / "dqn"
    peft.save_pretrained(folder)
    run = {
        "sha256": file_sha256(folder / "adapter_model.safetensors"),
        "readout": {"link": "sigmoid", "scale": 0.5, "offset": 2.0},
        "history": "compact",
        "config": {"seed": 5},
        "base": str(base),
        "base_sha256": file_sha256(base / "model.safetensors"),
    }
    (folder / "run.json").write_text(json.dumps(run))
    return folder, base, peft


def test_load_agent_plays_as_the_unmerged_adapter(shipped):
    folder, _, peft = shipped
    live = Agent(peft, COMPACT, QReadout("sigmoid", 0.5, 2.0))
    loaded = load_agent(folder)
    text = "0 right 1 down hole reset 0 right 1 left 0"
    np.testing.assert_allclose(loaded.q_values(text), live.q_values(text), atol=1e-5)
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    plain = Agent(peft.get_base_model(), COMPACT, loaded.readout)
    with peft.disable_adapter():
        assert np.abs(plain.q_values(text) - loaded.q_values(text)).max() > 1e-3  # the adapter does something


def test_load_agent_memory_less(shipped):
    agent = load_agent(shipped[0], memory=False)
    assert (agent.name, agent.training_seed) == ("memory-less", 5)
    np.testing.assert_allclose(agent.q_values("0 right hole reset 3"), agent.q_values("3"), atol=1e-6)


def test_load_agent_refuses_altered_weights(shipped):
    folder, _, _ = shipped
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"dqn.*sha256"):
        load_agent(folder)


def changed(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_load_agent_refuses_an_altered_config_of_adapter_and_base(shipped):
    """With lora_alpha = 80 instead of 8 the same weights would play as another agent; so with other positions."""
    folder, base, _ = shipped
    changed(folder / "run.json", config_sha256=config_sha256(folder), base_config_sha256=config_sha256(base))
    changed(folder / "adapter_config.json", base_model_name_or_path="moved", peft_version="0.99")
    load_agent(folder)
    changed(folder / "adapter_config.json", lora_alpha=80)
    with pytest.raises(ValueError, match=r"adapter_config.json is not the file .* \(config_sha256 differs\)"):
        load_agent(folder)
    changed(folder / "adapter_config.json", lora_alpha=8)
    load_agent(folder)
    changed(base / "config.json", rms_norm_eps=0.5)
    with pytest.raises(ValueError, match=r"another base .*sha256 differs, of its weights or of its config.json"):
        load_agent(folder)


def test_load_agent_plays_as_run_json_says(shipped):
    folder, _, _ = shipped
    changed(folder / "run.json", play={"temperature": 0.25, "patience": 7, "max_tokens": 99})
    agent = load_agent(folder)
    assert (agent.temperature, agent.patience, agent.max_tokens) == (0.25, 7, 99)
    agent.start(MAPS[:1], [np.random.default_rng(0)])
    assert agent._choice.patience == 7
    assert load_agent(folder, patience=3).patience == 3
    with pytest.raises(ValueError, match="patience=0: pass a whole number of at least 1"):
        load_agent(folder, patience=0)


@pytest.mark.parametrize("name", ["dqn", "dqn-seed1", "dqn-seed2"])
def test_the_shipped_records_say_how_the_shipped_agents_always_played(name):
    run = json.loads((ASSETS / "adapters" / name / "run.json").read_text())
    assert run["play"] == {"temperature": 0.5, "patience": PATIENCE, "max_tokens": CONTEXT} and PATIENCE == 25
    assert run["config_sha256"] == config_sha256(ASSETS / "adapters" / name)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_load_agent_names_a_damaged_record(shipped, text):
    (shipped[0] / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json is damaged .*git checkout"):
        load_agent(shipped[0])


def test_load_agent_refuses_weights_that_are_not_finite(shipped):
    folder, _, _ = shipped
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    changed(folder / "run.json", sha256=file_sha256(folder / "adapter_model.safetensors"))
    with pytest.raises(ValueError, match="holds weights that are not finite"):
        load_agent(folder)


def test_load_agent_refuses_another_base(shipped, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"another base.*other"):
        load_agent(shipped[0], base=tmp_path / "other")


def test_load_agent_names_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*icrl_utils train"):
        load_agent(tmp_path / "nowhere")


def test_load_agent_needs_run_json(shipped):
    (shipped[0] / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="run.json"):
        load_agent(shipped[0])
