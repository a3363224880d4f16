"""The bench of fine-tuning compares what it says it compares. No test here depends on a clock."""

import pytest
import torch
from transformers import LlamaForCausalLM

from icrl_utils.profiles import PROFILES
from icrl_utils.tools import bench_words


def test_it_reports_both_ways_and_their_ratio(capsys):
    figures = bench_words.bench_finetune(PROFILES["smoke"])
    assert set(figures) == {"stage_one", "dqn", "times_stage_one", "times_dqn", "of_peak"}
    assert all(value > 0 for value in figures.values())
    *ways, total = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in ways] == [
        "finetune, straightforward", "finetune, ours, float32", "finetune, ours",
    ]  # fmt: skip
    assert f"{figures['times_dqn']:.1f} times straightforward" in total


def test_both_ways_predict_the_same_outcomes(monkeypatch):
    """Ours is over the 66 words of the game, straightforward over all 500: a little more to choose from."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(bench_words.SMALL).eval()
    batch = bench_words.random_batch(500, 2, 64, 1.0, seed=0)
    losses = []
    monkeypatch.setattr(bench_words, "_updater", lambda parameters: lambda loss: losses.append(loss.item()))
    bench_words.ours(model, batch, torch.float32)[0]()
    bench_words.straightforward(model, batch)[0]()
    ours, theirs = losses
    assert theirs == pytest.approx(ours, abs=3.0) and theirs > ours  # log 500 against log 66: two nats at most
