"""The language model as a policy: cached play equals reading the whole history again."""

import numpy as np
import pytest
import torch

from icrl_utils.history.episodes import RESET, RUNNING
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_compact_tokenizer
from icrl_utils.history.words import Words
from icrl_utils.lake.maps import MapDistribution
from icrl_utils.llama.agent import load_agent
from icrl_utils.llama.frozen import FrozenLlama
from icrl_utils.llama.load import load_base
from icrl_utils.llama.lora import Lora
from icrl_utils.llama.readout import OddsReadout
from icrl_utils.llama.words_agent import FIRST_BUFFER, WordsAgent
from icrl_utils.play.policy import Step
from icrl_utils.play.rollout import rollout

COMPACT = HistoryFormat("compact")
MAPS = MapDistribution(3, 4).sample(5, 0)


@pytest.fixture(scope="module")
def llama():
    return FrozenLlama(load_base("assets/tiny-llama"))


@pytest.fixture(scope="module")
def adapter(llama):
    """Weights with which the moves depend on the history."""
    lora, draw = Lora(llama.shape, range(4), rank=4), torch.Generator().manual_seed(1)
    for tensor in lora.parameters():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
    return lora.layer_weights(torch.float32)


def make(llama, adapter, **options):
    return WordsAgent(llama, Words(make_compact_tokenizer()), adapter, OddsReadout(), **options)


class Spy(WordsAgent):
    """Remembers z of every decision, by the original number of its row."""

    def start(self, maps, rngs):
        super().start(maps, rngs)
        self.rows, self.seen, self.words_of = np.arange(len(maps)), [[] for _ in maps], self._dictionary.numpy()

    def append(self, step):
        z = super().append(step)
        for row, running, value in zip(self.rows, step.outcome == RUNNING, z, strict=True):
            if running:
                self.seen[row].append(value.numpy())
        return z

    def keep(self, rows):
        super().keep(rows)
        self.rows = self.rows[rows]


def reread(agent, episodes, dictionary):
    """z [decisions, 4] of a whole history, from one pass of the tokens of each decision's text and each move."""
    ids = COMPACT.tokenize(COMPACT.render(episodes))
    decisions = np.flatnonzero((ids[:-1] < 64) & (ids[1:] >= 64) & (ids[1:] < 68))
    llama, rows = agent.llama, []
    for place in decisions:
        start = 0
        if not agent.memory:
            start = int(np.flatnonzero(ids[:place] == 71)[-1]) + 1 if (ids[:place] == 71).any() else 0
        texts = np.stack([np.append(ids[start : place + 1], 64 + a) for a in range(4)])
        tokens = torch.from_numpy(dictionary[texts])
        with torch.no_grad():
            x = llama.history(llama.embed(tokens), 0, llama.shape.layers, agent.adapter)[:, -1:]
        rows.append(agent._read(x)[:, 0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("memory", [True, False])
def test_cached_play_equals_reading_everything_again(llama, adapter, memory):
    agent = Spy(llama, Words(make_compact_tokenizer()), adapter, OddsReadout(), memory=memory, temperature=0.5)
    records = rollout(agent, MAPS, [0.0, 0.5, 1.0, 1.0], seed=3, step_limit=40)
    longest = 0
    for row in range(len(MAPS)):
        episodes = records.episodes(row)
        expected = reread(agent, episodes, agent.words_of[row])
        np.testing.assert_allclose(np.stack(agent.seen[row])[: len(expected)], expected, atol=2e-3)
        longest = max(longest, len(COMPACT.tokenize(COMPACT.render(episodes))))
    assert longest > 60


def test_the_cache_grows_beyond_its_first_buffer(llama, adapter):
    agent = Spy(llama, Words(make_compact_tokenizer()), adapter, OddsReadout(), temperature=0.5)
    records = rollout(agent, MAPS[:2], [0.0] * 40, seed=5, step_limit=12)
    episodes = records.episodes(0)
    assert len(COMPACT.tokenize(COMPACT.render(episodes))) > FIRST_BUFFER
    expected = reread(agent, episodes, agent.words_of[0])
    np.testing.assert_allclose(np.stack(agent.seen[0])[: len(expected)], expected, atol=2e-3)


def test_a_lake_is_played_the_same_alone_and_among_others(llama, adapter):
    together = rollout(make(llama, adapter, temperature=0.5), MAPS, "greedy", seed=1, episodes=3, step_limit=20)
    by_two = rollout(
        make(llama, adapter, temperature=0.5, batch_maps=2), MAPS, "greedy", seed=1, episodes=3, step_limit=20
    )
    np.testing.assert_array_equal(together.actions, by_two.actions)


def test_the_memory_less_twin_forgets_at_every_episode(llama, adapter):
    """The same episode again: with memory z differs, without it is the same."""
    steps = [Step(np.array([a]), np.array([t]), np.array([o], np.uint8)) for a, t, o in
             [(RESET, 3, 0), (2, 4, 0), (1, 8, 2), (RESET, 3, 0), (2, 4, 0)]]  # fmt: skip
    for memory in (True, False):
        agent = make(llama, adapter, memory=memory)
        agent.start(MAPS[:1], [np.random.default_rng(0)])
        z = [agent.append(step) for step in steps]
        same = torch.allclose(z[1], z[4], atol=1e-4)
        assert same != memory
        assert agent.name == ("agent" if memory else "memory-less")


def test_old_tokens_are_out_of_sight_beyond_max_tokens(llama, adapter):
    agent = make(llama, adapter, max_tokens=12, temperature=0.5)
    with pytest.warns(UserWarning, match="longer than max_tokens=12"):
        rollout(agent, MAPS[:2], "greedy", seed=1, episodes=4, step_limit=10)
    agent.start(MAPS[:1], [np.random.default_rng(0)])
    for _ in range(9):
        z = agent.append(Step(np.array([0]), np.array([5]), np.array([0], np.uint8)))
    wide = make(llama, adapter)
    wide.start(MAPS[:1], [np.random.default_rng(0)])
    for _ in range(9):
        expected = wide.append(Step(np.array([0]), np.array([5]), np.array([0], np.uint8)))
    assert not torch.allclose(z, expected, atol=1e-4)


def test_q_values_of_a_text(llama, adapter):
    agent = make(llama, adapter)
    text = "8 right 9 down hole reset 8"
    q = agent.q_values(text)
    dictionary = agent.words.dictionary(np.random.default_rng(0))
    ids = COMPACT.tokenize(text)
    for action in range(4):
        tokens = torch.from_numpy(dictionary[np.append(ids, 64 + action)])[None]
        with torch.no_grad():
            x = llama.history(llama.embed(tokens), 0, 4, adapter)[:, -1:]
        assert q[action] == pytest.approx(float(agent._read(x).sigmoid()), abs=1e-5)
    assert make(llama, adapter, memory=False).q_values(text) == pytest.approx(make(llama, adapter).q_values("8"))
    with pytest.raises(ValueError, match="does not end where an action is due"):
        agent.q_values("8 right 9 down hole reset")


def test_bad_arguments_are_named(llama, adapter):
    for name, value in [("max_tokens", 2), ("patience", 0), ("batch_maps", 0), ("temperature", -1.0), ("seed", -1)]:
        with pytest.raises(ValueError, match=name):
            make(llama, adapter, **{name: value})
    with pytest.raises(RuntimeError, match="before start"):
        make(llama, adapter).act(Step(np.array([RESET]), np.array([0]), np.array([0], np.uint8)))


def test_load_agent_gives_what_was_trained(tmp_path, llama):
    from icrl_utils.training.configs import FinetuneConfig
    from icrl_utils.training.finetuning import finetune

    config = FinetuneConfig(
        base="assets/tiny-llama", out=str(tmp_path / "run"), stage_one=2, steps=4, slice_tokens=64, eval_maps=2,
        eval_step_limit=5, precision="no", rank=2,
    )  # fmt: skip
    agent = load_agent(finetune(config, progress=False))
    assert isinstance(agent, WordsAgent) and agent.temperature == config.temperature and agent.training_seed == 0
    assert agent.q_values("8 right 9 down hole reset 8").shape == (4,)
    assert not load_agent(tmp_path / "run", memory=False).memory
    with pytest.raises(ValueError, match="was trained on another base"):
        other = tmp_path / "other"
        load_base("assets/tiny-llama").float().save_pretrained(other)
        model = load_base(other)
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
        model.save_pretrained(other)
        load_agent(tmp_path / "run", base=other)


def test_too_little_memory_is_refused_before_weights_are_loaded(monkeypatch):
    from icrl_utils.llama import memory, words_agent

    monkeypatch.setattr(words_agent, "load_llama", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 5_000_000})())
    with pytest.raises(ValueError, match=r"too little memory: base='assets/tiny-llama' in float32"):
        words_agent.load_frozen("assets/tiny-llama")
