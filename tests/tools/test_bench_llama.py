"""The benches of the real Llama compare what they say they compare. No test here depends on a clock."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from icrl_utils import __main__
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.llama.adapters import ONLINE, adapter_parameters, add_adapters
from icrl_utils.llama.agent import Agent
from icrl_utils.llama.memory import SHAPES
from icrl_utils.llama.readout import QNetwork, QReadout
from icrl_utils.play.rollout import rollout
from icrl_utils.profiles import PROFILES
from icrl_utils.tools import bench_llama
from icrl_utils.tools.bench_llama import Workload
from icrl_utils.training.configs import PAPER_RECIPE, TrainConfig, train_options

CONFIG = LlamaConfig(
    vocab_size=2000, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, tie_word_embeddings=False,
)  # fmt: skip
TINY = Workload("tiny", CONFIG, slices=4, slices_at_once=2, slice_tokens=64, maps=2, episodes=1)
ACTION_IDS = np.array([5, 6, 7, 8])


def test_random_batch_has_an_action_word_after_each_decision_and_nowhere_else():
    batch = bench_llama.make_random_batch(TINY, ACTION_IDS, seed=0)
    is_action = torch.isin(batch.ids, torch.from_numpy(ACTION_IDS))
    assert is_action.nonzero()[:, 1].reshape(4, -1).equal(batch.position + 1)
    assert torch.from_numpy(ACTION_IDS)[batch.action].equal(batch.ids.gather(1, batch.position + 1))
    assert not batch.has_target[:, -1][~batch.terminated[:, -1]].any() and batch.has_target[:, :-1].all()


def llama_of_actions(action_ids: np.ndarray) -> LlamaForCausalLM:
    """Its likeliest word is always an action: all others have logit 0, and the actions' are z, w, -z and -w."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    rows = torch.randn(2, CONFIG.hidden_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()[action_ids] = torch.cat([rows, -rows])
    return model


def test_paper_loss_is_ours_where_its_maximum_falls_on_an_action():
    """All else that it computes has weight 0: neither the value nor the gradient may differ."""
    model = add_adapters(llama_of_actions(ACTION_IDS), rank=2)
    net = QNetwork(model, ACTION_IDS, QReadout("identity", offset=0.0))
    batch = bench_llama.make_random_batch(TINY, ACTION_IDS, seed=0)
    results = []
    for loss_of in (bench_llama.our_loss, bench_llama.paper_loss):
        model.zero_grad()
        loss = loss_of(net, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in adapter_parameters(model, ONLINE).values()])
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert results[0][1].abs().max() > 0.1


@pytest.mark.parametrize("name", [profile.name for profile in PROFILES.values() if profile.device == "gpu"])
def test_a_gpu_profile_is_measured_at_the_shape_that_it_trains(name):
    trained = TrainConfig(**train_options(PROFILES[name]))
    workload, device = bench_llama.workload_and_device(PROFILES[name])
    assert workload.config is SHAPES[trained.base] and device.type == "cuda"
    assert (workload.slices, workload.slice_tokens) == (trained.slices, trained.slice_tokens)


def test_the_papers_micro_batch_is_half_a_step():
    full, t4 = (bench_llama.workload_and_device(PROFILES[name])[0] for name in ("full", "t4"))
    assert (full.shape, full.slices, full.slices_at_once) == ("Llama-3.1-8B-Instruct", 10, 5)
    assert full.slices_at_once * full.slice_tokens == PAPER_RECIPE["micro_tokens"]
    assert (t4.shape, t4.slices, t4.slices_at_once) == ("SmolLM2-135M-Instruct", 2, 1)


@pytest.mark.parametrize("profile", [None, PROFILES["smoke"], PROFILES["cpu"]])
def test_without_a_gpu_the_small_twin_is_measured(profile):
    assert bench_llama.workload_and_device(profile) == (bench_llama.SMALL, torch.device("cpu"))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench_llama, "SMALL", TINY)
    monkeypatch.setattr(bench_llama, "matmul_peak", lambda device, dtype: 1e12)


@pytest.mark.slow
def test_bench_step_real_on_the_cpu_keeps_no_file(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_llama, "RESULTS", tmp_path / "bench_gpu.csv")
    assert __main__.main(["bench", "step-real", "--profile", "smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("step-real")] == [
        f"step-real tiny {way}" for way in ("paper", "smallest", "fastest")
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bench_step_real_needs_less_memory_than_the_papers_way(tiny):
    paper, smallest, fastest = bench_llama.bench_step_real()
    logits = 2 * 64 * 2000 * 4  # of one of the paper's micro-batches
    assert paper["peak_bytes"] - smallest["peak_bytes"] > 3 * logits
    assert fastest["peak_bytes"] > smallest["peak_bytes"]
    for row in (smallest, fastest):
        assert row["peak_bytes"] == pytest.approx(row["planned_bytes"], rel=0.1)
        assert row["per_second"] == pytest.approx(4 * 64 / row["seconds"])


def test_step_updates_the_online_adapter_and_releases_everything():
    model = add_adapters(LlamaForCausalLM(CONFIG), rank=2)
    batch = bench_llama.make_random_batch(TINY, ACTION_IDS, seed=0)
    way = bench_llama.Way(bench_llama.our_loss, None, False, 1)
    step, held = bench_llama.make_step(model, way, batch, ACTION_IDS)
    before = {name: p.clone() for name, p in adapter_parameters(model, ONLINE).items()}
    without_state = held()
    step()
    parameters = sum(p.numel() for p in before.values())
    assert held() - without_state == pytest.approx(8 * parameters, rel=0.02)  # AdamW's two averages, and step counts
    assert any(not p.equal(before[name]) for name, p in adapter_parameters(model, ONLINE).items())
    assert all(p.grad is None for p in model.parameters())


def test_generator_plays_the_word_that_an_argmax_over_the_vocabulary_gives():
    """Where actions stand out it must choose as our agent does: the same episodes, cached or not."""
    history = HistoryFormat("paper", make_paper_tokenizer())
    model = llama_of_actions(history.action_ids)
    maps = PAPER_IN_DISTRIBUTION.sample(1, 0)
    ours, theirs = (
        rollout(policy, maps, [0.5], seed=0, step_limit=20)
        for policy in (Agent(model, history, QReadout()), bench_llama.Generator(model, history))
    )
    assert (ours.actions == theirs.actions).all() and len(set(ours.actions.ravel())) > 2


def test_bench_rollout_real_reports_both_ways(tiny, capsys):
    ours, theirs = bench_llama.bench_rollout_real(PROFILES["smoke"])
    assert (ours["way"], theirs["way"]) == ("ours", "generate") and ours["work"] > theirs["work"] > 0
    assert "2 maps at once" in capsys.readouterr().out


def test_gpu_rows_replace_those_of_the_same_bench_and_shape(tmp_path):
    def row(bench, shape, way):
        return {"bench": bench, "shape": shape, "way": way, "device": "a, b", "work": 1, "seconds": 0.5}

    path, gpu = tmp_path / "results" / "bench.csv", torch.device("cuda")
    bench_llama.keep_gpu_rows([row("step-real", "8b", "paper")], gpu, path)
    bench_llama.keep_gpu_rows([row("rollout-real", "8b", "ours")], gpu, path)
    bench_llama.keep_gpu_rows([row("step-real", "8b", "smallest"), row("step-real", "8b", "paper")], gpu, path)
    header, *lines = path.read_text().splitlines()
    assert header == ",".join(bench_llama.COLUMNS)
    assert [line.split(",")[:3] for line in lines] == [
        ["rollout-real", "8b", "ours"], ["step-real", "8b", "smallest"], ["step-real", "8b", "paper"],
    ]  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["bench.csv"]
